"""Inner splits: what a calibration of held patients knows of them."""

import numpy as np
import pandas as pd
import pytest
from support.simulated import TASK, make_work

from ichkit.core.logits import to_probabilities
from ichkit.stacking import inner
from ichkit.stacking.calibration import fit_calibration
from ichkit.stacking.combine import Ensemble
from ichkit.stacking.inner import make_training_part
from ichkit.stacking.rows import Rows, make_rows
from ichkit.work.artifacts import read_table
from ichkit.work.schemas import KEY


def draw(num_parts, seed=0, num_patients=60, slices=20):
    """Logits that are twice too large, labels, patients and parts."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(num_patients * slices, 2)) * 2 - 1
    labels = (rng.random(truth.shape) < to_probabilities(truth)).astype(float)
    patients = np.repeat(np.arange(num_patients), slices)
    return 2 * truth, labels, patients, (patients // 7) % num_parts


@pytest.mark.parametrize("num_parts", [2, 3, 5])
def test_flipping_the_labels_of_an_inner_part_leaves_its_calibration_as_it_is_to_the_bit(num_parts):
    logits, labels, patients, parts = draw(num_parts)
    before = inner._calibrate(logits, labels, patients, parts, num_parts)
    for part in range(num_parts):
        flipped = np.where(parts[:, None] == part, 1 - labels, labels)
        after = inner._calibrate(logits, flipped, patients, parts, num_parts)
        np.testing.assert_array_equal(after[1 + part].slope, before[1 + part].slope)
        np.testing.assert_array_equal(after[1 + part].intercept, before[1 + part].intercept)
        assert (after[0].slope != before[0].slope).all()  # the flip reached the calibration of all rows


@pytest.mark.parametrize("num_parts", [2, 3])
def test_a_clear_calibration_is_taken_almost_whole_in_every_part(num_parts):
    logits, labels, patients, parts = draw(num_parts, num_patients=200)
    whole, *inside = inner._calibrate(logits, labels, patients, parts, num_parts)
    np.testing.assert_allclose(whole.slope, fit_calibration(logits, labels).slope, atol=0.1)
    for calibration in inside:
        np.testing.assert_allclose(calibration.slope, 0.5, atol=0.15)


def make_slices(folds):
    """One study of two slices for each patient, in these folds; every other patient is positive."""
    positive = np.repeat(np.arange(len(folds)) % 2, 2)
    names = np.repeat([f"p{i}" for i in range(len(folds))], 2)
    slices = pd.DataFrame({"patient_id": names, "study_id": names, "fold": np.repeat(folds, 2)})
    return slices.assign(**dict.fromkeys(TASK.classes, positive))


def training_of(slices, num_inner):
    codes = pd.factorize(slices.study_id)[0]
    nothing = np.zeros((len(slices), 0), np.float32)
    rows = Rows(
        np.zeros((len(slices), 1, 6), np.float32),
        codes,
        np.zeros((len(slices), 6)),
        nothing,
        Ensemble.of_whole(TASK, 1),
    )
    return make_training_part(rows, slices, TASK, num_inner, seed=0)


@pytest.mark.parametrize(
    ("folds", "num_inner", "expected"),
    [
        ([1, 2, 4, 1, 2, 4, 4], 4, [0, 1, 2, 0, 1, 2, 2]),
        ([0, 1, 2, 3, 4, 0], 3, [0, 1, 2, 0, 1, 0]),
        ([0, 3, 3, 3], 5, [0, 1, 1, 1]),
    ],
    ids=["a part for each fold", "more folds than parts", "two folds"],
)
def test_the_inner_parts_are_the_other_folds(folds, num_inner, expected):
    training = training_of(make_slices(folds), num_inner)
    assert training.parts.tolist() == np.repeat(expected, 2).tolist()
    assert len(training.inner_calibrations) == max(expected) + 1


@pytest.mark.parametrize(("num_patients", "num_inner", "expected"), [(2, 4, 2), (3, 4, 3), (9, 4, 4), (9, 2, 2)])
def test_of_a_single_fold_the_patients_are_dealt(num_patients, num_inner, expected):
    training = training_of(make_slices([3] * num_patients), num_inner)
    assert sorted(set(training.parts)) == list(range(expected))
    assert len(training.inner_calibrations) == expected
    assert pd.Series(training.parts).groupby(training.patients).nunique().eq(1).all()


@pytest.mark.parametrize("calibrate", [True, False])
def test_without_calibration_the_base_is_the_mean_of_the_descriptors(tmp_path, calibrate):
    work = make_work(tmp_path / "work", num_patients=150, slope=2.5, noise=0.5)
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.fold == 0].sort_values(KEY, ignore_index=True)
    rows = make_rows([read_table(work.fold("base", 0) / "oof.parquet")], slices, TASK)
    training = make_training_part(rows, slices, TASK, 3, seed=0, calibrate=calibrate)
    mean = rows.combined_logits()
    is_raw = [np.array_equal(found, mean) for found in (training.base_logits(), training.inner_base_logits())]
    assert training.is_supported.any()
    assert is_raw == [not calibrate, not calibrate]
