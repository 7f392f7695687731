"""The optimism of choosing the best source, on simulated sources whose true losses are known."""

import numpy as np
import pytest

from ichkit.validation.selection import LossSums, measure_selection
from ichkit.validation.tallies import ScoredRows

# Expected maximum of five independent standard normal numbers: Harter, Biometrika 48, 1961, table 1.
FIVE = 1.16296
ONE = np.ones(1)


def draw_sources(rng, means, num_patients=300, std=0.4):
    """Sources with independent errors: each patient's loss is the mean of its source plus noise."""
    noise = rng.normal(0, std, (len(means), num_patients, 1))
    return [LossSums(mean + own, np.ones((num_patients, 1))) for mean, own in zip(means, noise, strict=True)]


def measure(sources, **options):
    return measure_selection(sources, ONE, **{"num_draws": 128, "seed": 0, **options})


def test_of_equal_sources_the_optimism_is_the_expected_gain_of_the_best():
    rng = np.random.default_rng(0)
    found = [measure(draw_sources(rng, np.full(5, 2.0)), seed=i) for i in range(250)]
    expected = FIVE * 0.4 / np.sqrt(300)
    assert np.mean([one.optimism for one in found]) == pytest.approx(expected, rel=0.1)
    # Corrected by it, the loss of the best is right on average; without, it is too low.
    assert np.mean([one.value + one.optimism for one in found]) == pytest.approx(2.0, abs=0.1 * expected)
    assert np.mean([one.value for one in found]) == pytest.approx(2.0 - expected, abs=0.15 * expected)


def test_one_source_has_no_optimism():
    found = measure(draw_sources(np.random.default_rng(1), [1.0]))
    assert (found.optimism, found.best, found.shares.tolist()) == (0.0, 0, [1.0])


def test_a_source_that_is_best_by_far_has_none_and_is_always_chosen():
    found = measure(draw_sources(np.random.default_rng(2), [1.0, 0.2, 1.0]))
    assert (found.optimism, found.best, found.shares.tolist()) == (0.0, 1, [0.0, 1.0, 0.0])


def test_the_same_source_twice_adds_nothing():
    one = draw_sources(np.random.default_rng(3), [1.0])[0]
    assert measure([one, one, one]).optimism == 0


def test_the_value_is_the_weighted_log_loss_and_classes_without_labels_are_left_out():
    rng = np.random.default_rng(4)
    p, y = rng.uniform(0.05, 0.95, (60, 3)), rng.integers(0, 2, (60, 3)).astype(float)
    y[:, 2], y[:7, 0] = np.nan, np.nan
    patients = np.repeat(np.arange(20), 3)[rng.permutation(60)]
    sums = LossSums.of(ScoredRows({}, p, y, patients))
    found = measure_selection([sums], np.array([0.25, 0.5, 0.25]), num_draws=8, seed=0)
    losses = -np.where(y == 1, np.log(p), np.log(1 - p))
    expected = (0.25 * losses[7:, 0].mean() + 0.5 * losses[:, 1].mean()) / 0.75
    assert found.value == pytest.approx(expected)


def test_a_sample_without_a_class_is_left_out_and_counted():
    counts = np.zeros((30, 2))
    counts[:, 0], counts[3, 1] = 1, 1
    sources = [LossSums(counts * loss, counts) for loss in (1.0, 2.0)]
    found = measure_selection(sources, np.array([0.5, 0.5]), num_draws=200, seed=0)
    assert found.num_left_out == 200  # the one patient of the class is either drawn or not
    assert np.isnan(found.optimism)
