"""Net benefit against its definition counted row by row, and the laws of a decision curve."""

import numpy as np
import pytest

from ichkit.validation.net_benefit import measure_net_benefit

THRESHOLDS = np.array([0.05, 0.1, 0.25, 0.5, 0.9])


def draw(num_rows=200, seed=0):
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(num_rows), 2)
    y = (rng.random(num_rows) < p).astype(float)
    y[:5] = np.nan
    return p, y, np.arange(num_rows) // 2


def count(p, y, t):
    """The definition: each row counted."""
    known = ~np.isnan(y)
    p, y = p[known], y[known]
    hits, alarms = sum((p >= t) & (y == 1)), sum((p >= t) & (y == 0))
    return (hits - alarms * t / (1 - t)) / len(y)


def test_the_curve_is_its_definition_counted_row_by_row():
    p, y, patient = draw()
    found = measure_net_benefit(p, y, patient, THRESHOLDS, num_draws=20, seed=0)
    assert found.of_model == pytest.approx([count(p, y, t) for t in THRESHOLDS])
    assert found.of_all == pytest.approx([count(np.ones(len(p)), y, t) for t in THRESHOLDS])
    assert (found.n, found.n_positive) == (195, np.nansum(y))
    share = np.nansum(y) / 195
    assert found.of_all == pytest.approx(share - (1 - share) * THRESHOLDS / (1 - THRESHOLDS))


def test_acting_on_everyone_is_worth_nothing_where_the_threshold_is_the_prevalence():
    y = np.repeat([1.0, 0, 0, 0], 25)
    found = measure_net_benefit(np.ones(100), y, np.arange(100), np.array([0.25]), num_draws=5, seed=0)
    assert found.of_all == pytest.approx([0])
    assert found.gain == pytest.approx([0])


def test_perfect_probabilities_reach_the_prevalence_at_every_threshold_and_no_model_more():
    p, y, patient = draw()
    perfect = measure_net_benefit(np.nan_to_num(y), y, patient, THRESHOLDS, num_draws=5, seed=0)
    assert perfect.of_model == pytest.approx(np.full(5, np.nansum(y) / 195))
    other = measure_net_benefit(p, y, patient, THRESHOLDS, num_draws=5, seed=0)
    assert (other.of_model <= perfect.of_model).all()


def test_samples_are_of_patients_and_a_gain_is_paired():
    p, y, patient = draw()
    y = np.where(np.isnan(y), 0, y)
    together = measure_net_benefit(p, y, np.zeros(200), THRESHOLDS, num_draws=30, seed=0)
    assert together.draws_of_model == pytest.approx(np.tile(together.of_model, (30, 1)))
    apart = measure_net_benefit(p, y, patient, THRESHOLDS, num_draws=2000, seed=0)
    # The net benefit is a mean over 100 patients of equal size; its spread is that of their means.
    odds = THRESHOLDS / (1 - THRESHOLDS)
    worth = np.where(p[:, None] >= THRESHOLDS, np.where(y[:, None] == 1, 1.0, -odds), 0.0)
    expected = worth.reshape(100, 2, -1).mean(1).std(0) / 10
    np.testing.assert_allclose(apart.draws_of_model.std(0), expected, rtol=0.1)
    np.testing.assert_array_equal(apart.draws_of_gain, apart.draws_of_model - np.maximum(apart.draws_of_all, 0))


def test_without_both_classes_there_is_no_curve():
    p, _, patient = draw()
    for y in (np.zeros(200), np.ones(200), np.full(200, np.nan)):
        assert measure_net_benefit(p, y, patient, THRESHOLDS, num_draws=5, seed=0) is None
