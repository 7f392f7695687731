import json
import logging
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from support.commands import do
from support.pixels import make_pixel_work, put_volumes
from support.simulated import TASK, flip_labels, rewrite_slices, stack_windows
from support.training import TABLES, config, read_files

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, ConfigError, FoldError
from ichkit.engine.inference import load_predictor
from ichkit.engine.step import Stepper
from ichkit.engine.step_cost import StepCost
from ichkit.imaging.store import Prepared
from ichkit.stages.train import lanes as fold_lanes
from ichkit.stages.train import run as train
from ichkit.work.artifacts import find_damage, read_manifest, read_table
from ichkit.work.inventory import take_inventory
from ichkit.work.places import partial_of
from ichkit.work.schemas import check_predictions


def train_fold(work, *changes, fold=0, **options):
    return do(train, config(*changes), work, run_name="run", folds=[fold], **options)[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store with one finished fold; tests must leave both as they are."""
    work = make_pixel_work(tmp_path_factory.mktemp("work"))
    train_fold(work)
    return work


@pytest.fixture
def fresh_work(tmp_path):
    """The same store, nothing trained."""
    return make_pixel_work(tmp_path)


def test_a_finished_fold_holds_the_tables_of_the_contract(work):
    folder, prepared = work.fold("run", 0), Prepared.open(work.prepared, TASK)
    manifest = read_manifest(folder)
    labelled = prepared.split("train")
    parts = {"oof": labelled[labelled.fold == 0], "test": prepared.split("test"), "cq500": prepared.split("cq500")}
    for name, slices in parts.items():
        table = read_table(folder / f"{name}.parquet")
        own = slices.assign(fold=0)[["slice_id", "fold"]]
        check_predictions(table, TASK, name, own)
        assert len(table) == len(slices) > 0
    oof = read_table(folder / "oof.parquet")
    stacks = np.load(folder / "stacks_oof.npy", allow_pickle=False)
    np.testing.assert_array_equal(stacks, stack_windows(oof))
    assert find_damage(folder, manifest) == []
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert manifest.facts["num_slices"] == len(oof)
    assert {"run": "run", "fold": 0, "data": "phantom", "task": "hemorrhage"}.items() <= manifest.facts.items()
    assert not partial_of(folder).exists()


def test_the_predictor_of_a_fold_gives_exactly_the_values_of_its_tables(work):
    prepared, predictor = Prepared.open(work.prepared, TASK), load_predictor(work.fold("run", 0), "cpu")
    table = read_table(work.fold("run", 0) / "cq500.parquet")
    slices = prepared.split("cq500")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for relative, rows in slices.groupby("volume", sort=False):
        probabilities = predictor.predict_volume(prepared.read_volume(relative))
        stored = table.set_index("slice_id").loc[rows.slice_id, TASK.probability_columns].to_numpy(np.float32)
        np.testing.assert_array_equal(np.clip(probabilities, 1e-6, 1 - 1e-6), stored)
    torch.set_num_threads(threads)
    assert predictor.task == TASK


def test_a_new_external_set_is_predicted_by_finished_weights(fresh_work):
    first = train_fold(fresh_work, "train.epochs=1")
    folder = fresh_work.fold("run", 0)
    weights = (folder / "model.safetensors").read_bytes()
    slices = Prepared.open(fresh_work.prepared, TASK).slices
    own = slices[slices.dataset == "cq500"]
    ids = {name: "site-" + own[name] for name in ("slice_id", "study_id", "series_id", "patient_id")}
    rewrite_slices(fresh_work, pd.concat([slices, own.assign(dataset="site", **ids)], ignore_index=True))
    second = train_fold(fresh_work, "train.epochs=1")
    assert (folder / "model.safetensors").read_bytes() == weights
    assert second.inputs.keys() - first.inputs.keys() == {"site_slices"}
    assert {name: second.inputs[name] for name in first.inputs} == first.inputs
    site, cq500 = (read_table(folder / f"{name}.parquet") for name in ("site", "cq500"))
    assert len(site) > 0
    np.testing.assert_array_equal(site[TASK.probability_columns], cq500[TASK.probability_columns])


def test_the_history_has_a_row_for_each_epoch_and_the_config_can_be_used_again(work):
    history = pd.read_csv(work.fold("run", 0) / "history.csv")
    assert history.epoch.tolist() == [1, 2]
    assert (history.loss > 0).all()
    again = load_config(str(work.fold("run", 0) / "config.yaml"))
    assert again.train == config().train
    assert json.loads((work.fold("run", 0) / "model.json").read_text())["backbone"] == "test_byobnet"


def test_a_short_run_says_and_keeps_what_its_settings_became(fresh_work, caplog):
    settings = ("train.epochs=1", "train.adapts_to_length=true", "train.batch_blocks=16", "train.ema_decay=0.999")
    plan = train.plan(config(*settings), fresh_work, train.TrainOptions("run", [0]))
    with caplog.at_level(logging.INFO, logger="ichkit"):
        manifest = train_fold(fresh_work, *settings)
    adapted = manifest.facts["adapted"]
    assert adapted["batch_blocks"] == 4
    assert adapted["cutmix.probability"] == 0
    assert 0.5 <= adapted["ema_decay"] < 0.999
    mixed = "cutmix.probability 0, drop_rate 0.5, mixup.probability 1"
    said = f"batch_blocks 4, {mixed}, ema_decay {adapted['ema_decay']:g}"
    assert said in " ".join(plan.forecast().steps)
    assert caplog.text.count(said) == 1
    assert f"about {manifest.facts['num_steps']} steps" in " ".join(plan.forecast().steps)
    again = load_config(str(fresh_work.fold("run", 0) / "config.yaml"))
    assert again.train.settings() == config(*settings).train.settings()


def test_training_again_does_nothing(work):
    before = read_files(work.fold("run", 0))
    train_fold(work)
    assert read_files(work.fold("run", 0)) == before


def test_other_settings_are_refused_with_the_difference(work):
    with pytest.raises(ArtifactError, match=r"train\.learning_rate: 0\.003, now 0\.5.*--fresh"):
        train_fold(work, "train.learning_rate=0.5")
    with pytest.raises(ArtifactError, match=r"seed: 0, now 1"):
        train_fold(work, "seed=1")


def test_settings_that_change_only_the_speed_are_not_other_settings(work):
    before = read_files(work.fold("run", 0))
    train_fold(work, "train.workers=3", "train.threads=2")
    assert read_files(work.fold("run", 0)) == before


def test_a_fold_that_does_not_exist_is_named_with_those_that_do(work):
    with pytest.raises(FoldError, match=r"\(0, 1\), found 7\. Choose with `--fold`"):
        train_fold(work, fold=7)


def test_training_before_preparing_names_the_command(tmp_path):
    from ichkit.work.folder import WorkFolder

    with pytest.raises(ArtifactError, match=r"Run `ichkit prepare` first"):
        train_fold(WorkFolder(tmp_path))


def test_a_network_with_further_arguments_is_rebuilt_from_its_card(fresh_work):
    changes = ("train.backbone=test_convnext", "train.backbone_args={depths: [1, 1, 1, 2]}", "train.drop_path_rate=0.2")
    train_fold(fresh_work, *changes, "train.epochs=1", "train.layer_decay=0.8", "train.schedule=one-cycle")
    predictor = load_predictor(fresh_work.fold("run", 0), "cpu")
    assert len(predictor.network.backbone.stages[3].blocks) == 2
    with pytest.raises(ConfigError, match=r'train\.schedule\.kind: unknown "cosinus"\. Did you mean "cosine"'):
        train_fold(fresh_work, "train.schedule=cosinus")


def test_flipping_every_label_of_a_fold_leaves_its_predictions_byte_identical(work, fresh_work):
    flip_labels(fresh_work, fold=0)
    train_fold(fresh_work)
    ours, theirs = (read_files(place.fold("run", 0)) for place in (work, fresh_work))
    for name in ("model.safetensors", "stacks_oof.npy", *(f"{table}.parquet" for table in TABLES)):
        assert ours[name] == theirs[name], name
    before, after = (read_manifest(place.fold("run", 0)).inputs for place in (work, fresh_work))
    assert before == after
    # The canary sings: the same flip in the training part is other training data.
    flip_labels(fresh_work, fold=1)
    with pytest.raises(ArtifactError, match="the slices or labels of its training part"):
        train_fold(fresh_work)


def test_changed_test_slices_are_predicted_anew_without_training(fresh_work):
    before = train_fold(fresh_work)
    old = read_files(fresh_work.fold("run", 0))
    prepared = Prepared.open(fresh_work.prepared, TASK)
    relative = prepared.split("test").volume[0]
    brighter = prepared.read_volume(relative) + np.int16(20)
    put_volumes(fresh_work, prepared.slices, {relative: brighter}, prepared.manifest.settings)
    after = train_fold(fresh_work)
    new = read_files(fresh_work.fold("run", 0))
    assert {name for name in old if old[name] != new[name]} == {"test.parquet", "manifest.json"}
    assert before.inputs["test_slices"] != after.inputs["test_slices"]
    assert after.facts["backbone"] == before.facts["backbone"]


def test_splits_without_slices_get_empty_tables(tmp_path):
    work = make_pixel_work(tmp_path, test_studies=0, cq500_studies=0)
    train_fold(work, "train.epochs=1")
    for name in ("test", "cq500"):
        table = read_table(work.fold("run", 0) / f"{name}.parquet")
        assert table.empty
        check_predictions(table, TASK, name)


def test_a_run_from_before_a_setting_existed_is_up_to_date_where_the_setting_is_off(fresh_work):
    train_fold(fresh_work)
    path = fresh_work.fold("run", 0) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["train"]["mixup"], manifest["settings"]["train"]["augment"]["shift_hu"]
    path.write_text(json.dumps(manifest))
    before = read_files(path.parent)
    train_fold(fresh_work)
    assert read_files(path.parent) == before
    with pytest.raises(ArtifactError, match=r"train\.augment\.shift_hu: 0, now 5"):
        train_fold(fresh_work, "train.augment.shift_hu=5")


def test_fresh_starts_over(fresh_work):
    train_fold(fresh_work)
    changed = train_fold(fresh_work, "train.epochs=1", fresh=True)
    assert changed.settings["train"]["epochs"] == 1


@pytest.mark.parametrize(
    "change", ["train.sampling=slices", "train.augment.per=slice", "train.ema_decay=null", "train.tta=hflip"]
)
def test_variants_train_and_predict_something_else(fresh_work, work, change):
    train_fold(fresh_work, change)
    ours, theirs = (read_table(place.fold("run", 0) / "oof.parquet") for place in (fresh_work, work))
    assert not np.array_equal(ours[TASK.probability_columns], theirs[TASK.probability_columns])


def test_a_loss_that_is_no_number_stops_training_and_names_slices_but_no_patient(fresh_work, monkeypatch):
    from ichkit.models import losses

    monkeypatch.setitem(
        losses.LOSSES,
        "bce",
        losses.Loss("bce", lambda *_: lambda logits, _labels: logits.sum() * float("nan"), "Broken.", "this test"),
    )
    with pytest.raises(ConfigError, match=r"found nan in fold 0, epoch 1, step 1, for the blocks around \w+") as caught:
        train_fold(fresh_work, "train.loss=bce")
    assert not any(
        patient in str(caught.value) for patient in Prepared.open(fresh_work.prepared, TASK).folds.patient_id
    )


def test_a_run_that_does_not_fit_into_memory_says_what_to_change(fresh_work, monkeypatch):
    from ichkit.models import losses

    hungry = losses.Loss("bce", lambda *_: lambda logits, _labels: logits.sum() * torch.empty(10**15)[0], "", "")
    monkeypatch.setitem(losses.LOSSES, "bce", hungry)
    with pytest.raises(
        ConfigError, match=r"out of memory on this machine: .*--set train\.accumulate=4, or --set train\.grad_ch"
    ):
        train_fold(fresh_work, "train.loss=bce", "train.accumulate=2")


def test_a_run_says_before_its_first_step_what_to_expect(fresh_work, monkeypatch, caplog):
    monkeypatch.setattr(Stepper, "measure_cost", lambda _self: StepCost(3600.0, 2_500_000_000))
    with caplog.at_level(logging.INFO, logger="ichkit"):
        train_fold(fresh_work, "train.epochs=1")
    said = [record.getMessage() for record in caplog.records]
    expected = next(i for i, text in enumerate(said) if "expecting about" in text)
    assert "2.50 GB" in said[expected]
    assert "without a GPU this takes about" in said[expected + 1]
    assert expected < next(i for i, text in enumerate(said) if "epoch 1 of 1" in text)


def test_nothing_that_names_a_patient_is_logged(fresh_work, caplog):
    with caplog.at_level(logging.DEBUG, logger="ichkit"):
        train_fold(fresh_work, "train.epochs=1")
    slices = Prepared.open(fresh_work.prepared, TASK).slices
    assert "parameters" in caplog.text
    assert "epoch 1 of 1" in caplog.text
    for column in ("patient_id", "study_id", "slice_id", "volume"):
        assert not any(value in caplog.text for value in slices[column].unique())


def test_labels_shown_by_the_pixels_are_learnt(tmp_path):
    work = make_pixel_work(tmp_path, num_patients=12, contrast=8.0)
    train_fold(work, "train.epochs=12", "train.label_prior_bias=true", "train.cutmix.probability=0")
    table = read_table(work.fold("run", 0) / "oof.parquet").set_index("slice_id")
    slices = Prepared.open(work.prepared, TASK).split("train").set_index("slice_id").loc[table.index]
    positive = slices["any"].to_numpy(np.int64) == 1
    assert np.median(table.p_any[positive]) > np.median(table.p_any[~positive])


@pytest.mark.slow
def test_several_folds_at_once_give_the_bytes_of_each_alone(fresh_work, work, monkeypatch):
    monkeypatch.setattr(fold_lanes, "count_cores", lambda: 2)
    do(train, config(), fresh_work, run_name="run")
    ours, theirs = (read_files(place.fold("run", 0)) for place in (fresh_work, work))
    assert take_inventory(fresh_work).finished_runs["run"] == [0, 1]
    for name in ("model.safetensors", *(f"{table}.parquet" for table in TABLES)):
        assert ours[name] == theirs[name], name


def test_importing_the_stage_leaves_torch_alone():
    code = "import sys, ichkit.stages.train.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_labels_shuffled_between_patients_cannot_be_learnt(tmp_path):
    work = make_pixel_work(tmp_path, num_patients=40, num_folds=2)
    prepared = Prepared.open(work.prepared, TASK)
    slices, rng = prepared.slices, np.random.default_rng(0)
    rows = np.flatnonzero(slices.split == "train")
    classes = list(TASK.classes)
    studies = slices.study_id.iloc[rows].to_numpy()
    labels = {study: slices.loc[rows[studies == study], classes].to_numpy() for study in np.unique(studies)}
    for study, other in zip(labels, rng.permutation(list(labels)), strict=True):
        own = rows[studies == study]
        slices.loc[own, classes] = np.resize(labels[other], (len(own), len(classes)))
    rewrite_slices(work, slices)
    from ichkit.validation.metrics import roc_auc

    for fold in (0, 1):
        train_fold(work, "train.epochs=6", fold=fold)
        table = read_table(work.fold("run", fold) / "oof.parquet")
        truth = slices.set_index("slice_id").loc[table.slice_id, "any"].to_numpy(np.int64)
        patients = pd.factorize(slices.set_index("slice_id").loc[table.slice_id, "patient_id"])[0]
        draws = []
        for _ in range(300):
            drawn = rng.integers(0, patients.max() + 1, patients.max() + 1)
            sample = np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])
            draws.append(roc_auc(truth[sample], table.p_any.to_numpy()[sample]))
        assert roc_auc(truth, table.p_any.to_numpy()) < 0.5 + 3 * np.nanstd(draws)


def test_weights_are_plain_tensors_that_fit_the_card(work):
    folder = work.fold("run", 0)
    weights = load_file(folder / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    (damaged,) = [folder.parent.parent.parent / "damaged"]
    damaged.mkdir()
    for name, data in read_files(folder).items():
        (damaged / name).write_bytes(data if name != "model.safetensors" else data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"model\.safetensors: changed since it was written"):
        load_predictor(damaged, "cpu")
