"""What a stack says of itself: optimism in sample, calibration, importance, and what its trees may know of pixels."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.simulated import TASK, make_work

from ichkit.core.config import load_config
from ichkit.core.errors import ContractError
from ichkit.core.logits import to_logits
from ichkit.stacking import table as table_module
from ichkit.stacking.fold_models import predict_fold_models, read_fold_models
from ichkit.stacking.rows import log_losses_of_logits
from ichkit.stages.stack import run as stack
from ichkit.stages.stack.facts import render
from ichkit.validation.coherence import make_table_coherent
from ichkit.work.artifacts import ArtifactWriter, read_manifest, read_table
from ichkit.work.schemas import KEY

QUICK = (
    "stack.stackers=[lightgbm]",
    "stack.lightgbm.max_rounds=15",
    "stack.lightgbm.strengths=[strong,base]",
    "stack.num_inner=2",
)


@dataclasses.dataclass(frozen=True)
class ByHeart:
    """Knows the label of every row it learnt from, by the row's logits, and elsewhere says what the base says."""

    answers: dict

    def predict(self, rows, base_logits):
        known = [self.answers.get(logits.tobytes()) for logits in rows.logits]
        return np.stack([base if own is None else own for base, own in zip(base_logits, known, strict=True)])

    def encode(self):
        return {"answers.json": json.dumps({k.hex(): v.tolist() for k, v in self.answers.items()}).encode()}


def learn_by_heart(training, *_):
    certain = 8 * (2 * training.labels - 1)
    answers = {logits.tobytes(): own for logits, own in zip(training.rows.logits, certain, strict=True)}
    return ByHeart(answers), training.inner_base_logits()


def read_by_heart(folder):
    raw = json.loads((folder / "answers.json").read_text())
    return ByHeart({bytes.fromhex(k): np.array(v) for k, v in raw.items()})


def be_overconfident(training, *_):
    return Loud(), 3 * training.inner_base_logits()


class Loud:
    """Three times the base's logits: the right order, and far too sure."""

    def predict(self, rows, base_logits):
        return 3 * np.asarray(base_logits)

    def encode(self):
        return {"loud.txt": b"loud"}


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(stack, "run_tasks", lambda function, tasks, **_: enumerate(map(function, tasks)))


def put_in_place(monkeypatch, fit, load):
    row = dataclasses.replace(table_module.STACKERS["lightgbm"], fit=fit, load=load)
    monkeypatch.setitem(table_module.STACKERS, "lightgbm", row)


def out_of_fold_loss(work, kind):
    table = read_table(work.stacks / "base" / f"{kind}_oof.parquet")
    slices = read_table(work.prepared / "slices.parquet").set_index("slice_id").loc[table.slice_id]
    labels = slices[list(TASK.classes)].to_numpy(float)
    return log_losses_of_logits(to_logits(table[TASK.probability_columns]), labels).mean(axis=0) @ TASK.weight_array()


def test_a_stacker_that_learns_by_heart_looks_perfect_in_sample_and_is_no_better_out_of_fold(
    tmp_path, in_process, monkeypatch
):
    put_in_place(monkeypatch, learn_by_heart, read_by_heart)
    work = make_work(tmp_path / "work", folds=(0, 1, 2), num_folds=3)
    manifest = do(stack, load_config("demo", QUICK), work)
    optimism = manifest.facts["optimism"]
    assert optimism["lightgbm"]["in_sample"] < 0.01
    assert optimism["lightgbm"]["out_of_fold"] == pytest.approx(optimism["base"]["out_of_fold"])
    assert optimism["base"]["in_sample"] == pytest.approx(optimism["base"]["out_of_fold"], rel=0.1)
    shown = {kind: cells for kind, *cells in render(manifest)[0].rows}
    assert shown["lightgbm"][2].endswith(" %")
    assert float(shown["lightgbm"][2].removesuffix(" %")) > 90


def test_where_all_rows_take_part_the_out_of_fold_loss_beside_it_is_that_of_the_table(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1, 2), num_folds=3)
    facts = do(stack, load_config("demo", QUICK), work).facts
    for kind in ("lightgbm", "blend"):
        assert facts["optimism"][kind]["out_of_fold"] == pytest.approx(out_of_fold_loss(work, kind), abs=1e-6)
    assert facts["calibration"]["lightgbm"]["loss_after"] == pytest.approx(out_of_fold_loss(work, "lightgbm"), abs=1e-6)
    # Every row stands in the training part of two of the three fold models, so in sample it counts twice.
    assert facts["optimism"]["lightgbm"]["in_sample"] < facts["optimism"]["lightgbm"]["out_of_fold"]


def test_an_overconfident_stacker_is_calibrated_on_inner_patients_and_both_are_told(tmp_path, in_process, monkeypatch):
    put_in_place(monkeypatch, be_overconfident, lambda _: Loud())
    work = make_work(tmp_path / "work", folds=(0, 1, 2), num_folds=3, num_patients=60, noise=0.0)
    told = do(stack, load_config("demo", QUICK), work).facts["calibration"]["lightgbm"]
    assert told["loss_after"] < 0.8 * told["loss_before"]
    assert told["error_after"]["any"] < told["error_before"]["any"]
    slopes = [
        fold_model.calibrations["lightgbm"].slope for fold_model in read_fold_models(work.stacks / "base").fold_models
    ]
    # A third would undo it; how far towards that is what 40 patients support.
    assert all(1 / 3 < slope[TASK.headline_index] < 0.75 for slope in slopes)
    as_it_is = do(stack, load_config("demo", (*QUICK, "stack.calibrate=false")), work).facts["calibration"]["lightgbm"]
    assert as_it_is["loss_after"] == as_it_is["loss_before"] == pytest.approx(told["loss_before"])


def test_the_blend_is_fitted_on_what_inner_models_say_each_part_calibrated_on_the_others(
    tmp_path, in_process, monkeypatch
):
    put_in_place(monkeypatch, be_overconfident, lambda _: Loud())
    trainings, given = [], []
    make, fit = stack._make_training, stack.fit_blend
    monkeypatch.setattr(stack, "_make_training", lambda *rest: trainings.append(make(*rest)) or trainings[-1])
    monkeypatch.setattr(stack, "fit_blend", lambda logits, *rest: given.append(logits) or fit(logits, *rest))
    work = make_work(tmp_path / "work", folds=(0, 1, 2), num_folds=3, num_patients=90, noise=0.5)
    do(stack, load_config("demo", QUICK), work)
    assert len(trainings) == len(given) == 3
    for training, members in zip(trainings, given, strict=True):
        rows = training.chosen_rows()
        base = training.inner_base_logits()[rows]
        whole, calibrated = training.calibrate(3 * base)
        np.testing.assert_array_equal(members[0], base)
        np.testing.assert_array_equal(members[1], calibrated)
        # In sample it would be this; the difference is what the test is for.
        assert not np.allclose(whole.apply(3 * base), calibrated)


def test_a_stacker_that_learnt_by_heart_gets_no_weight_in_the_blend(tmp_path, in_process, monkeypatch):
    put_in_place(monkeypatch, learn_by_heart, read_by_heart)
    work = make_work(tmp_path / "work", folds=(0, 1, 2), num_folds=3)
    do(stack, load_config("demo", QUICK), work)
    for fold_model in read_fold_models(work.stacks / "base").fold_models:
        np.testing.assert_array_equal(fold_model.blend.weights, [[1.0] * TASK.num_classes, [0.0] * TASK.num_classes])


def test_without_calibration_a_stacker_that_corrects_nothing_gives_the_runs_own_tables(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1, 2), num_folds=3, num_patients=60, noise=0.3, slope=2.0)
    runs = [read_table(work.fold("base", fold) / "oof.parquet") for fold in range(3)]
    own = make_table_coherent(pd.concat(runs).sort_values(KEY, ignore_index=True), TASK)[TASK.probability_columns]
    for calibrate, is_own in (("true", False), ("false", True)):
        settings = (*QUICK, "stack.lightgbm.strengths=[base]", f"stack.calibrate={calibrate}")
        do(stack, load_config("demo", settings), work)
        for kind in ("lightgbm", "blend"):
            found = read_table(work.stacks / "base" / f"{kind}_oof.parquet")[TASK.probability_columns]
            assert np.allclose(found, own, rtol=1e-5, atol=1e-7) == is_own, (kind, calibrate)


def test_classes_with_too_few_patients_keep_the_base_and_are_named(tmp_path, in_process, caplog):
    work = make_work(tmp_path / "work", folds=(0, 1), num_folds=2, num_patients=10, noise=3.0)
    manifest = do(stack, load_config("demo", QUICK), work)
    assert max(max(counts) for counts in manifest.facts["support"].values()) < manifest.facts["min_support"]
    assert "for others the base is returned. Too few: epidural (" in caplog.text
    assert "lightgbm: no tree has a split" in caplog.text
    assert "any (" in caplog.text
    runs = [read_table(work.fold("base", fold) / "oof.parquet") for fold in range(2)]
    own = make_table_coherent(pd.concat(runs).sort_values(KEY, ignore_index=True), TASK)[TASK.probability_columns]
    for kind in ("lightgbm", "blend"):
        found = read_table(work.stacks / "base" / f"{kind}_oof.parquet")[TASK.probability_columns]
        np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-7)


def test_importance_names_every_feature_and_puts_the_slice_itself_first(tmp_path, in_process, caplog):
    caplog.set_level("INFO", logger="ichkit")
    work = make_work(tmp_path / "work", folds=(0, 1), num_folds=2, num_patients=60, noise=3.0, slope=0.2)
    manifest = do(stack, load_config("demo", QUICK), work)
    assert "lightgbm/importance.csv" in manifest.files
    table = pd.read_csv(work.stacks / "base" / "lightgbm" / "importance.csv")
    note = json.loads((work.stacks / "base" / "lightgbm" / "fold0" / "lightgbm.json").read_text())
    assert sorted(table.feature) == sorted(note["features"])
    sums = table[list(TASK.classes)].sum()
    assert ((sums - 1).abs() < 1e-9).sum() >= 3  # classes whose fold models all kept the base have none
    assert table["mean"].is_monotonic_decreasing
    assert f"  {table.feature[0]} " in caplog.text


def with_brain_shares(work, share=0.4):
    """Writes the share of brain of every slice beside the prepared tables."""
    slices = read_table(work.prepared / "slices.parquet")
    facts = slices[["slice_id", "dataset"]].assign(brain_share=np.float32(share), tilt_degrees=np.float32(0))
    old = read_manifest(work.prepared)
    writer = ArtifactWriter(work.prepared, "prepared")
    for name in old.files:
        writer.write_bytes(name, (work.prepared / name).read_bytes())
    writer.write_table("slice_facts.parquet", facts)
    writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


def test_shares_of_brain_are_learnt_with_where_they_are_known_and_then_asked_for(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1), num_folds=2)
    without = do(stack, load_config("demo", QUICK), work)
    assert not read_fold_models(work.stacks / "base").has_brain_shares
    with_brain_shares(work)
    manifest = do(stack, load_config("demo", QUICK), work)
    assert manifest.inputs["prepared/labels"] != without.inputs["prepared/labels"]
    assert read_fold_models(work.stacks / "base").has_brain_shares
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.split == "test"].sort_values(KEY)
    given = {"base": {k: read_table(work.fold("base", k) / "test.parquet") for k in (0, 1)}}
    with pytest.raises(ContractError, match="expected the column brain_share of every slice"):
        predict_fold_models(work.stacks / "base", given, slices)
    found = predict_fold_models(work.stacks / "base", given, slices.assign(brain_share=0.4))["blend"]
    pd.testing.assert_frame_equal(found, read_table(work.stacks / "base" / "blend_test.parquet"), check_exact=True)
