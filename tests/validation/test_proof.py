"""The gain of a second stage and the share of it that locked patients confirm, against sums by hand."""

import numpy as np
import pytest

from ichkit.core.tasks import Task, find_task
from ichkit.validation.metrics import weighted_log_loss
from ichkit.validation.proof import compare_gains, measure_gain

TASK = find_task("hemorrhage")
WEIGHTS = TASK.weight_array()
TWO = Task("two", ("a", "b"), (0.25, 0.75), None, "Two classes.", "this test")


def draw(num_patients=30, seed=0, task=TASK):
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"p{i:02d}" for i in range(num_patients)], rng.integers(3, 9, num_patients))
    labels = (rng.random((len(patients), task.num_classes)) < 0.3).astype(float)
    base, second = (np.clip(0.3 + spread * rng.standard_normal(labels.shape), 0.02, 0.98) for spread in (0.1, 0.05))
    return base, second, labels, patients


def gain(base, second, labels, patients, task=TASK, **changes):
    options = {"num_draws": 512, "level": 0.95, "seed": 7} | changes
    return measure_gain(base, second, labels, patients, task, **options)


def test_the_gain_is_the_difference_of_the_two_losses():
    base, second, labels, patients = draw()
    expected = weighted_log_loss(base, labels, WEIGHTS) - weighted_log_loss(second, labels, WEIGHTS)
    found = gain(base, second, labels, patients)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.num_patients == 30


def test_a_class_is_averaged_over_its_known_labels_as_the_loss_is():
    base, second, labels, patients = draw(task=TWO)
    labels[np.random.default_rng(1).random(labels.shape) < 0.3] = np.nan
    expected = weighted_log_loss(base, labels, TWO.weight_array()) - weighted_log_loss(
        second, labels, TWO.weight_array()
    )
    assert gain(base, second, labels, patients, TWO).value == pytest.approx(expected, rel=1e-12)


def test_every_bootstrap_gain_is_that_of_whole_patients():
    base, second, labels, patients = draw(num_patients=2)
    found = set(np.round(gain(base, second, labels, patients).draws, 12))
    first = patients == "p00"
    expected = []
    for rows in (first, ~first, first | ~first):
        losses = [weighted_log_loss(p[rows], labels[rows], WEIGHTS) for p in (base, second)]
        expected.append(losses[0] - losses[1])
    assert found == set(np.round(expected, 12))


def test_the_interval_covers_the_true_gain_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        patients = np.repeat(np.arange(60), 4)
        truth = np.clip(rng.beta(1, 3, (60, 1)) + np.zeros((60, 2)), 0.02, 0.98)[np.repeat(np.arange(60), 4)]
        labels = (rng.random(truth.shape) < truth).astype(float)
        flat = np.full_like(truth, 0.25)
        found = gain(flat, truth, labels, patients, TWO, seed=seed)
        covered += found.low <= 0.1020 <= found.high
    # 0.1020: the mean information of a beta(1, 3) clipped as above, by 10**7 draws.
    assert 0.90 <= covered / 200 <= 0.99


def test_the_gains_of_the_same_predictions_on_two_groups_differ_by_chance_alone():
    calls = 0
    for seed in range(100):
        own, locked = (draw(seed=number) for number in (2 * seed, 2 * seed + 1))
        kept = compare_gains(gain(*own, seed=1), gain(*locked, seed=2), 0.95)
        calls += kept.low > 0 or kept.high < 0
    assert calls <= 12  # five expected; more than twelve of 100 have a probability of .15 %


def test_a_gain_that_is_only_out_of_fold_is_not_kept():
    base, _, labels, patients = draw()
    leaked = np.where(labels > 0, 0.9, 0.1)
    kept = compare_gains(gain(base, leaked, labels, patients), gain(base, base, labels, patients, seed=8), 0.95)
    assert kept.low > 0
    assert kept.share == pytest.approx(0, abs=1e-12)
    assert np.isnan(compare_gains(gain(base, base, labels, patients), gain(*draw(seed=3)), 0.95).share)
