"""The canaries of the second stage: what a fold's labels say never reaches that fold's predictions."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.simulated import TASK, flip_labels, make_work, rewrite_slices

from ichkit.core.config import load_config
from ichkit.core.seeding import make_generator
from ichkit.core.stack_config import StackConfig
from ichkit.stacking.calibration import no_calibration
from ichkit.stacking.table import BASE
from ichkit.stages.stack import plan as stack_plan
from ichkit.stages.stack import run as stack
from ichkit.validation.metrics import roc_auc
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import KEY

KINDS = ("fusion", "lightgbm", "sequence", "blend")
QUICK = (
    "stack.stackers=[fusion,lightgbm,sequence]",
    "stack.sequence.epochs=2",
    "stack.sequence.learning_rate=0.05",
    "stack.sequence.num_seeds=1",
    "stack.sequence.hidden=8",
    "stack.sequence.wide.units=12",
    "stack.sequence.wide.epochs=4",
    "stack.sequence.wide.learning_rate=0.03",
    "stack.fusion.epochs=3",
    "stack.fusion.num_seeds=1",
    "stack.fusion.weight_decay=[0.01]",
    "stack.fusion.learning_rate=0.02",
    "stack.lightgbm.max_rounds=15",
    "stack.lightgbm.strengths=[strong,base]",
    "stack.num_inner=2",
    "stack.num_parts=3",
)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(stack, "run_tasks", lambda function, tasks, **_: enumerate(map(function, tasks)))


def stacked(work, config=None):
    """The out-of-fold table of every kind."""
    do(stack, config or load_config("demo", QUICK), work)
    return {kind: read_table(work.stacks / "base" / f"{kind}_oof.parquet") for kind in KINDS}


def copied(work, where):
    shutil.copytree(work.root, where)
    return WorkFolder(where)


def bytes_of(table, rows):
    return table.loc[rows, TASK.probability_columns].to_numpy().tobytes()


def differs(before, after, rows):
    return {kind for kind in KINDS if bytes_of(before[kind], rows[kind]) != bytes_of(after[kind], rows[kind])}


def test_flipping_a_folds_labels_leaves_its_predictions_byte_identical(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1, 2), num_folds=3, num_patients=36, noise=2.5)
    before = stacked(work)
    flipped = copied(work, tmp_path / "flipped")
    flip_labels(flipped, 1)
    after = stacked(flipped)
    own = {kind: before[kind].fold == 1 for kind in KINDS}
    assert differs(before, after, own) == set()
    # The flip reached everything else, so the silence above means something.
    assert differs(before, after, {kind: ~rows for kind, rows in own.items()}) == set(KINDS)


def test_the_canary_sings_where_a_fold_model_learns_from_the_rows_it_predicts(tmp_path, in_process, monkeypatch):
    honest = stack._make_training

    def leaking(plan, rows, train, *rest):
        class Everything:
            name, held = plan.name, np.zeros(len(train), bool)

        return honest(Everything, rows, train, *rest)

    monkeypatch.setattr(stack, "_make_training", leaking)
    work = make_work(tmp_path / "work", folds=(0, 1, 2), num_folds=3, num_patients=36, noise=2.5)
    before = stacked(work)
    flip_labels(work, 1)
    after = stacked(work)
    assert differs(before, after, {kind: before[kind].fold == 1 for kind in KINDS}) == set(KINDS)


@pytest.mark.slow
def test_with_one_fold_the_labels_of_a_part_do_not_reach_its_predictions(tmp_path, in_process, monkeypatch):
    work = make_work(tmp_path / "work", folds=(0,), num_folds=2, num_patients=60, noise=2.5)
    train = read_table(work.prepared / "slices.parquet")
    train = train[(train.fold == 0).fillna(False)].sort_values(KEY, ignore_index=True)
    plans = []
    plan_fold_models = stack_plan.plan_fold_models

    def plan_once(*arguments):
        # Parts are dealt by label, as folds are; like those they are held fixed here.
        plans[:] = plans or plan_fold_models(*arguments)
        return plans

    monkeypatch.setattr(stack_plan, "plan_fold_models", plan_once)
    before = stacked(work)
    own = plans[1].held
    slices = read_table(work.prepared / "slices.parquet")
    rows = slices.slice_id.isin(train.slice_id[own]).to_numpy()
    for name in TASK.classes:
        slices.loc[rows, name] = 1 - slices.loc[rows, name]
    rewrite_slices(work, slices)
    after = stacked(work)
    assert differs(before, after, dict.fromkeys(KINDS, own)) == set()
    assert differs(before, after, dict.fromkeys(KINDS, ~own)) == set(KINDS)


def test_labels_shuffled_between_patients_cannot_be_predicted(tmp_path, in_process):
    work = make_work(
        tmp_path / "work", folds=(0, 1, 2), num_folds=3, num_patients=90, noise=1.0, slices_per_study=(12, 12)
    )
    slices = read_table(work.prepared / "slices.parquet")
    rows = np.flatnonzero((slices.split == "train").to_numpy())
    rng = make_generator(0, "shuffle")
    # Studies exchange their labels, turned round the axis: where a slice lies says nothing any more.
    labels = slices.loc[rows, list(TASK.classes)].to_numpy(np.int8).reshape(-1, 12, TASK.num_classes)
    labels = np.stack([np.roll(study, rng.integers(12), axis=0) for study in labels[rng.permutation(len(labels))]])
    slices.loc[rows, list(TASK.classes)] = labels.reshape(len(rows), -1)
    rewrite_slices(work, slices)
    truth = read_table(work.prepared / "slices.parquet").set_index("slice_id")
    for kind, table in stacked(work).items():
        for fold, part in table.groupby("fold"):
            own = truth.loc[part.slice_id]
            value, error = auc_with_error(own[TASK.any_class].to_numpy(int), part.p_any.to_numpy(), own.patient_id)
            assert value < 0.5 + 3 * error, f"{kind}, fold {fold}: AUC {value:.3f} +- {error:.3f}"


def auc_with_error(labels, probabilities, patients):
    """AUC, and its standard deviation over patients drawn with replacement."""
    codes, _ = pd.factorize(patients)
    rows = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    rng = make_generator(0, "bootstrap")
    values = []
    for _ in range(200):
        drawn = np.concatenate([rows[code] for code in rng.integers(len(rows), size=len(rows))])
        values.append(roc_auc(labels[drawn], probabilities[drawn]))
    return roc_auc(labels, probabilities), np.std(values)


@pytest.mark.parametrize("calibrate", [True, False])
def test_a_blend_is_fitted_on_predictions_for_inner_patients_that_were_held_out(tmp_path, monkeypatch, calibrate):
    base, held, seen, recalibrated = (np.full((8, 2), value) for value in (0.0, 1.0, 2.0, 3.0))
    (tmp_path / "fusion" / "fold0").mkdir(parents=True)
    np.save(tmp_path / "fusion" / "fold0" / stack._INNER_FILE, held)
    np.save(tmp_path / "fusion" / "fold0" / stack._IN_SAMPLE_FILE, seen)
    given = {}

    def keep(members, labels, names, tolerance):
        given.update(members=members, names=names)

    def cross_fit(inner):
        np.testing.assert_array_equal(inner, held)
        return no_calibration(2), recalibrated

    training = SimpleNamespace(
        chosen_rows=lambda: np.arange(8),
        inner_base_logits=lambda: base,
        calibrate=cross_fit,
        calibration=no_calibration(2),
        labels=np.zeros((8, 2)),
        rows=SimpleNamespace(ensemble=SimpleNamespace(scope=None)),
    )
    monkeypatch.setattr(stack, "fit_blend", keep)
    config = StackConfig(calibrate=calibrate)
    stack._make_fold_model(tmp_path, SimpleNamespace(name="fold0", fold=0), training, ["fusion"], config)
    assert given["names"] == (BASE, "fusion")
    np.testing.assert_array_equal(given["members"], [base, recalibrated if calibrate else held])
