"""Validation while training: its patients, what is chosen by them, and the curve that is for display only."""

import logging
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from support.commands import do
from support.pixels import make_pixel_work
from support.simulated import TASK, flip_labels, rewrite_slices
from support.training import TINY, StopAtLook, config, read_files

from ichkit.cli.main import main
from ichkit.core.errors import ConfigError, FoldError, Stopped
from ichkit.core.progress import StopFlag, logger
from ichkit.core.train_config import ValidationConfig
from ichkit.engine.evaluation import describe_scores, find_best, is_out_of_patience, to_value
from ichkit.engine.inference import load_predictor
from ichkit.imaging.store import Prepared
from ichkit.stages.train import network
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask, Parts
from ichkit.validation.metrics import roc_auc, weighted_log_loss
from ichkit.work.artifacts import read_manifest, read_table
from ichkit.work.folder import THRESHOLDS_NAME

SAME = ("model.safetensors", "oof.parquet", "test.parquet", "cq500.parquet", "stacks_oof.npy")
CURVE = "heldout_curve_for_display_only.csv"
SHARE = "train.validation.share=0.25"
# A rate at which the loss doubles after the first epoch, on any processor, so that the best epoch is not the last.
BEST = (SHARE, "train.validation.keep=best", "train.epochs=4", "train.learning_rate=0.02", "train.schedule=constant")
PATIENT = (*BEST, "train.validation.patience=1", "train.epochs=9")


def make_work(root):
    return make_pixel_work(root, num_patients=16)


def train_fold(work, *changes, run="run"):
    do(train, config(*changes), work, run_name=run, folds=[0])
    return read_files(work.fold(run, 0))


def parts_of(work, *changes, fold=0):
    prepared = Prepared.open(work.prepared, TASK)
    return Parts.of(prepared, fold).hold_validation(config(*changes), fold)


def history_of(work, run="run"):
    return pd.read_csv(work.fold(run, 0) / "history.csv")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store with a fold of run `best`, and one of run `patient`; tests add runs of their own."""
    work = make_work(tmp_path_factory.mktemp("work"))
    train_fold(work, *BEST, run="best")
    train_fold(work, *PATIENT, run="patient")
    return work


def test_validation_patients_come_from_the_training_part_alone_and_are_the_same_each_time(work):
    whole, parts, again = parts_of(work), parts_of(work, SHARE), parts_of(work, SHARE)
    assert whole.validation is None
    held = set(parts.validation.patient_id)
    assert len(held) == 2
    assert not held & set(parts.train.patient_id)
    assert not held & set(parts.heldout.patient_id)
    assert held | set(parts.train.patient_id) == set(whole.train.patient_id)
    assert parts.validation.equals(again.validation)
    others = [set(parts_of(work, SHARE, f"seed={seed}").validation.patient_id) for seed in range(1, 6)]
    assert any(other != held for other in others)


def test_too_few_patients_for_the_share_are_named(work):
    with pytest.raises(
        FoldError, match=r"validation\.share: expected at least 20 patients in the training part of fold 0"
    ):
        parts_of(work, "train.validation.share=0.05")


def test_the_scores_of_an_epoch_are_those_of_the_weights_that_predict(work):
    predictor, parts = load_predictor(work.fold("best", 0), "cpu"), parts_of(work, SHARE)
    prepared = Prepared.open(work.prepared, TASK)
    rows, found = [], []
    for relative, own in parts.validation.groupby("volume", sort=False):
        found.append(predictor.predict_volume(prepared.read_volume(relative))[own.slice_index])
        rows.append(own)
    labels = pd.concat(rows)[list(TASK.classes)].to_numpy(np.float64)
    probabilities = np.clip(np.concatenate(found).astype(np.float64), 1e-6, 1 - 1e-6)
    history, manifest = history_of(work, "best"), read_manifest(work.fold("best", 0))
    kept = history[history.epoch == manifest.facts["kept_epoch"]].iloc[0]
    loss = weighted_log_loss(probabilities, labels, TASK.weight_array())
    assert kept.validation_weighted_log_loss == pytest.approx(loss, rel=1e-4)
    assert kept.validation_loss == pytest.approx(loss, rel=1e-4)  # weighted-bce is the score
    for number, name in enumerate(TASK.classes):
        expected = roc_auc(labels[:, number], probabilities[:, number])
        assert kept[f"validation_auc_{name}"] == pytest.approx(expected, nan_ok=True)


def test_labels_per_study_that_a_pool_learns_are_scored_as_such(tmp_path, monkeypatch):
    changes = (SHARE, "train.pool=attention", "train.sampling=studies", "train.max_slices=9", "train.epochs=1")
    work = make_work(tmp_path)
    train_fold(work, *changes, "train.curve=heldout", run="slices")
    monkeypatch.setattr(network, "has_study_labels", lambda _: True)
    train_fold(work, *changes, "train.curve=heldout", run="studies")
    predictor, prepared = load_predictor(work.fold("studies", 0), "cpu"), Prepared.open(work.prepared, TASK)
    parts = parts_of(work, SHARE)
    curve = pd.read_csv(work.fold("studies", 0) / CURVE).iloc[-1]
    history = history_of(work, "studies").iloc[-1].filter(like="validation").rename(lambda n: n.split("_", 1)[1])
    for rows, shown in ((parts.validation, history), (parts.heldout, curve)):
        found, labels = [], []
        for relative, own in rows.groupby("volume", sort=False):
            read = predictor.read_study(prepared.read_volume(relative), own.position_mm.to_numpy())
            found.append(read.of_study.astype(np.float64))
            labels.append(own[list(TASK.classes)].to_numpy(np.float64).max(0))
        loss = weighted_log_loss(np.array(found), np.array(labels), TASK.weight_array())
        assert shown.weighted_log_loss == pytest.approx(loss, rel=1e-4)
        area = roc_auc(np.array(labels)[:, TASK.headline_index], np.array(found)[:, TASK.headline_index])
        assert shown.auc_any == pytest.approx(area, nan_ok=True)
    of_slices = history_of(work, "slices").iloc[-1]
    assert abs(of_slices.validation_weighted_log_loss - history.weighted_log_loss) > 0.01


def test_the_best_epoch_is_kept_and_it_is_not_the_last_one(work):
    history, manifest = history_of(work, "best"), read_manifest(work.fold("best", 0))
    best = int(history.validation_weighted_log_loss.idxmin())
    assert manifest.facts["kept_epoch"] == history.epoch[best] < 4
    assert manifest.facts["num_validation_slices"] == len(parts_of(work, SHARE).validation)
    last = train_fold(work, *BEST, "train.validation.keep=last", run="last")
    assert last["model.safetensors"] != (work.fold("best", 0) / "model.safetensors").read_bytes()
    assert history_of(work, "last").loss.tolist() == history.loss.tolist()


@pytest.mark.slow
def test_the_best_weights_are_those_of_a_run_that_ends_there(work):
    epoch = read_manifest(work.fold("best", 0)).facts["kept_epoch"]
    train_fold(work, SHARE, *BEST[3:], f"train.epochs={epoch}", run="short")
    ours, theirs = (load_file(work.fold(run, 0) / "model.safetensors") for run in ("best", "short"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_stops_once_it_runs_out_of_patience(work):
    history = history_of(work, "patient")
    values = history.validation_weighted_log_loss.tolist()
    assert len(values) < 9
    assert values[-1] >= min(values[:-1])
    assert all(later < earlier for earlier, later in pairwise(values[:-1]))


@pytest.mark.parametrize("looks", [(4, 1), *(pytest.param(n, marks=pytest.mark.slow) for n in ((0,), (3,), (11,)))])
def test_a_run_that_chooses_ends_in_the_same_bytes_when_it_was_stopped(work, tmp_path, looks):
    task = FoldTask(config(*PATIENT), make_work(tmp_path), "patient", 0, trains=True)
    for number in looks:
        with pytest.raises(Stopped):
            do_fold(task, StopAtLook(number))
    do_fold(task, StopFlag())
    resumed, straight = read_files(task.folder), read_files(work.fold("patient", 0))
    assert {name: resumed[name] == straight[name] for name in SAME} == dict.fromkeys(SAME, True)
    ours, theirs = (
        frame.filter(like="validation")
        for frame in (pd.read_csv(task.folder / "history.csv"), history_of(work, "patient"))
    )
    assert ours.equals(theirs)


@pytest.mark.slow
def test_plateau_lowers_the_rate_by_the_validation_values_and_resumes(work, tmp_path):
    changes = (
        SHARE,
        "train.epochs=8",
        "train.learning_rate=0.01",
        "train.schedule={kind: plateau, patience: 0, drop_factor: 0.5}",
        "train.log_every=1",
    )
    straight = train_fold(work, *changes, run="plateau")
    steps = pd.read_json(work.fold("plateau", 0) / "steps.jsonl", lines=True)
    rates = steps.groupby("epoch").learning_rate.agg(["min", "max"])
    assert (rates["min"] == rates["max"]).all()
    values = history_of(work, "plateau").validation_weighted_log_loss
    falls = [values[i] >= values[:i].min() * (1 - 1e-4) for i in range(1, len(values) - 1)]
    assert any(falls)
    expected = [0.01, 0.01]
    for fell in falls:
        expected.append(expected[-1] * (0.5 if fell else 1))
    assert rates["max"].tolist() == pytest.approx(expected)
    task = FoldTask(config(*changes), make_work(tmp_path), "plateau", 0, trains=True)
    with pytest.raises(Stopped):
        do_fold(task, StopAtLook(8))
    do_fold(task, StopFlag())
    assert read_files(task.folder)["model.safetensors"] == straight["model.safetensors"]


@pytest.mark.slow
def test_phases_share_the_validation_patients_and_each_keeps_its_best(work, tmp_path):
    phases = "train.phases=[{classes: [any], epochs: 2}, {epochs: 2}]"
    straight = train_fold(work, *BEST[:2], phases, run="two")
    history = history_of(work, "two")
    first, last = history[history.phase == 1], history[history.phase == 2]
    assert first.validation_auc_any.notna().all()
    assert first.validation_auc_subdural.isna().all()
    assert last.validation_auc_subdural.notna().all()
    task = FoldTask(config(*BEST[:2], phases), make_work(tmp_path), "two", 0, trains=True)
    for looks in (3, 2):
        with pytest.raises(Stopped):
            do_fold(task, StopAtLook(looks))
    do_fold(task, StopFlag())
    assert read_files(task.folder)["model.safetensors"] == straight["model.safetensors"]


def test_no_label_of_the_held_out_fold_reaches_a_choice(work, tmp_path):
    other = make_work(tmp_path)
    flip_labels(other, fold=0)
    files, before = train_fold(other, *PATIENT, run="patient"), read_files(work.fold("patient", 0))
    assert {name: files[name] == before[name] for name in SAME} == dict.fromkeys(SAME, True)


def test_the_curve_of_the_held_out_fold_changes_nothing_whatever_its_labels_are(work, tmp_path):
    plain, other = train_fold(work, SHARE, run="plain"), make_work(tmp_path)
    shown = train_fold(work, SHARE, "train.curve=heldout", run="shown")
    flip_labels(other, fold=0)
    flipped = train_fold(other, SHARE, "train.curve=heldout", run="shown")
    for files in (shown, flipped):
        assert {name: files[name] == plain[name] for name in SAME} == dict.fromkeys(SAME, True)
    assert set(shown) - set(plain) == {CURVE}
    # The curve itself is of the held-out labels: flipped, an AUC is one minus itself.
    ours, theirs = (pd.read_csv(place.fold("shown", 0) / CURVE) for place in (work, other))
    assert ours.epoch.tolist() == [1, 2]
    assert ours.auc_any.tolist() == pytest.approx((1 - theirs.auc_any).tolist())
    table = read_table(work.fold("shown", 0) / "oof.parquet").set_index("slice_id")
    labels = parts_of(work).heldout.set_index("slice_id").loc[table.index, "any"]
    assert ours.auc_any.iloc[-1] == pytest.approx(roc_auc(labels.to_numpy(float), table.p_any.to_numpy()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("train.validation.keep=best",), r"train\.validation\.share: is 0, but keep: best needs patients"),
        (("train.validation.patience=2",), r"train\.validation\.share: is 0, but patience: 2 needs patients"),
        (("train.schedule=plateau",), r"train\.validation\.share: is 0, but train\.schedule: plateau needs patients"),
        (
            ("train.phases=[{schedule: plateau}]",),
            r"train\.validation\.share: is 0, but train\.schedule: plateau needs",
        ),
        (
            (SHARE, "train.validation.keep=best", "train.curve=heldout"),
            r"train\.curve: the curve of the held-out fold is",
        ),
        ((SHARE, "train.validation.patience=2", "train.curve=heldout"), r"train\.curve: .* for display only"),
        ((SHARE, "train.schedule=plateau", "train.curve=heldout"), r"train\.curve: .* for display only"),
    ],
)
def test_a_choice_without_patients_to_choose_by_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(*changes)


def test_the_terminal_and_the_plan_name_validation(work, caplog, monkeypatch):
    words = [word for change in (*TINY, SHARE) for word in ("--set", change)]
    command = ["train", "--work", str(work.root), "--run", "planned", "--fold", "0", "--dry-run", *words]
    plan = " ".join(CliRunner().invoke(main, command).output.split())
    parts = parts_of(work, SHARE)
    assert f"{len(parts.train)} slices of {parts.train.patient_id.nunique()} patients" in plan
    assert f"{len(parts.validation)} of 2 patients for validation" in plan
    monkeypatch.setattr(logger, "propagate", True)  # the command line has switched it off
    with caplog.at_level(logging.INFO, logger="ichkit"):
        train_fold(work, SHARE, "train.epochs=1", run="told")
    row = history_of(work, "told").iloc[0]
    said = next(text for text in caplog.messages if "validation on" in text)
    assert f"weighted log loss {row.validation_weighted_log_loss:.4f}, AUC" in said
    assert all(name in said for name in TASK.classes)


def test_the_best_is_the_first_lowest_and_what_is_undefined_is_never_best():
    inf = float("inf")
    assert find_best([0.3, 0.2, 0.2, inf]) == 1
    assert find_best([inf, inf]) is None
    assert to_value(0.8, "mean_auc") == -0.8
    assert to_value(float("nan"), "mean_auc") == inf
    patient = ValidationConfig(share=0.2, patience=2)
    assert not is_out_of_patience([0.3, 0.2, 0.25], patient)
    assert is_out_of_patience([0.3, 0.2, 0.25, 0.2], patient)
    assert not is_out_of_patience([inf] * 5, patient)
    assert not is_out_of_patience([0.1] * 9, ValidationConfig(share=0.2))


def test_an_undefined_area_is_a_dash_in_the_terminal():
    scores = {"loss": 0.1, "weighted_log_loss": 0.2, "mean_auc": 0.5, "auc_any": float("nan"), "auc_subdural": 1.0}
    assert describe_scores(scores) == "loss 0.1000, weighted log loss 0.2000, AUC any -, subdural 1.000"


def test_one_class_of_patients_is_enough_for_validation(tmp_path):
    work = make_work(tmp_path)
    slices = read_table(work.prepared / "slices.parquet")
    rewrite_slices(work, slices.assign(**{name: slices[name].where(slices[name].isna(), 0) for name in TASK.classes}))
    train_fold(work, *BEST, "train.epochs=1", "train.validation.metric=mean_auc")
    assert history_of(work).validation_mean_auc.isna().all()
    assert read_manifest(work.fold("run", 0)).facts["kept_epoch"] == 1


def test_thresholds_are_the_best_of_the_validation_studies_for_each_class(work):
    predictor, parts = load_predictor(work.fold("best", 0), "cpu"), parts_of(work, SHARE)
    prepared, found, labels = Prepared.open(work.prepared, TASK), [], []
    for relative, own in parts.validation.groupby("volume", sort=False):
        found.append(predictor.predict_volume(prepared.read_volume(relative))[own.slice_index].max(0))
        labels.append(own[list(TASK.classes)].to_numpy(np.float64).max(0))
    found, labels = np.array(found, np.float64), np.array(labels)
    table = pd.read_csv(work.fold("best", 0) / THRESHOLDS_NAME)
    assert table["class"].tolist() == list(TASK.classes)
    assert table.n.tolist() == [len(found)] * len(TASK.classes)
    for c, threshold in enumerate(table.threshold):
        is_positive = labels[:, c] == 1
        if is_positive.all() or not is_positive.any():
            assert np.isnan(threshold)
            continue

        def youden(at, c=c, is_positive=is_positive):
            is_yes = found[:, c] >= at - 1e-6  # in other batches a processor may round otherwise
            return is_yes[is_positive].mean() - is_yes[~is_positive].mean()

        assert youden(threshold) == pytest.approx(max(youden(at) for at in found[:, c]))
    assert table.threshold.notna().any()


def test_no_label_of_the_held_out_fold_has_a_part_in_a_threshold(work, tmp_path):
    """A canary: it sings where a label of a validation patient is turned instead."""
    before = (work.fold("best", 0) / THRESHOLDS_NAME).read_bytes()
    other = make_work(tmp_path)
    flip_labels(other, 0)
    assert train_fold(other, *BEST, run="held")[THRESHOLDS_NAME] == before
    slices = read_table(other.prepared / "slices.parquet")
    rows = slices.slice_id.isin(parts_of(work, SHARE).validation.slice_id).to_numpy(bool)
    slices.loc[rows, list(TASK.classes)] = 1 - slices.loc[rows, list(TASK.classes)]
    rewrite_slices(other, slices)
    assert train_fold(other, *BEST, run="sung")[THRESHOLDS_NAME] != before


def test_thresholds_stay_when_a_finished_fold_predicts_again_and_without_validation_there_are_none(work):
    assert THRESHOLDS_NAME not in train_fold(work, "train.epochs=1", run="whole")
    before = (work.fold("best", 0) / THRESHOLDS_NAME).read_bytes()
    train_fold(work, *BEST, "train.embeddings=true", run="best")
    assert (work.fold("best", 0) / THRESHOLDS_NAME).read_bytes() == before
