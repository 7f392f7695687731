"""What an interval must keep to: coverage, draws left out, and scores that chance can only raise."""

import numpy as np
import pytest

from ichkit.validation.intervals import basic_interval_of, interval_of, p_value_of
from ichkit.validation.reliability import bin_numbers, expected_calibration_error
from ichkit.validation.resampling import resample


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    truth, hits = -np.log(0.8) * 0.8 - np.log(0.2) * 0.2, 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        y = np.repeat(rng.random(80) < 0.8, 3)
        losses = -np.log(np.where(y, 0.8, 0.2)).reshape(80, 3).sum(1)
        drawn = resample(np.stack([losses, np.full(80, 3.0)], 1), [], num_draws=200, seed=trial).sums
        interval = interval_of(drawn[:, 0] / drawn[:, 1], 0.95)
        hits += interval.low <= truth <= interval.high
    assert 0.89 <= hits / 200 <= 0.99


def test_draws_without_both_classes_are_counted_and_over_five_percent_of_them_undo_the_interval():
    values = np.linspace(0, 1, 1000)
    few, many = values.copy(), values.copy()
    few[:50], many[:51] = np.nan, np.nan
    assert interval_of(few, 0.95).num_left_out == 50
    assert np.isfinite([interval_of(few, 0.95).low, interval_of(few, 0.95).high]).all()
    assert interval_of(many, 0.95).num_left_out == 51
    assert np.isnan([interval_of(many, 0.95).low, interval_of(many, 0.95).high]).all()
    assert np.isnan(basic_interval_of(0.5, many, 0.95).low)


def test_a_wider_level_gives_a_wider_interval_around_the_same_draws():
    draws = np.random.default_rng(0).standard_normal(400)
    narrow, wide = interval_of(draws, 0.5), interval_of(draws, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert interval_of(draws, 0.95).low == np.quantile(draws, 0.025)


def test_the_turned_interval_is_the_percentile_one_turned_round_the_value_never_negative_never_without_it():
    draws = np.linspace(0.2, 0.4, 1001)
    turned = basic_interval_of(0.25, draws, 0.95)
    assert turned.low == pytest.approx(2 * 0.25 - np.quantile(draws, 0.975), abs=1e-12)
    assert turned.high == pytest.approx(2 * 0.25 - np.quantile(draws, 0.025), abs=1e-12)
    assert basic_interval_of(0.21, draws, 0.95).low == pytest.approx(0.025, abs=1e-12)
    assert basic_interval_of(0.15, draws, 0.95).low == 0.0
    assert basic_interval_of(0.15, draws, 0.95).high == 0.15


def test_a_calibrated_model_on_few_rows_is_not_called_miscalibrated():
    """Its error is chance: the straight interval nearly always lies far above none, the turned one reaches it."""
    straight, turned = 0, 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        p = rng.random(150)
        y = rng.random(150) < p
        bins = np.zeros((150, 15, 3))
        bins[np.arange(150), bin_numbers(p, 15)] = np.stack([np.ones(150), y, p], 1)
        drawn = resample(bins.reshape(150, -1), [], num_draws=200, seed=trial).sums.reshape(200, 15, 3)
        draws, value = expected_calibration_error(drawn), float(expected_calibration_error(bins.sum(0)))
        straight += interval_of(draws, 0.95).low < 0.05
        turned += basic_interval_of(value, draws, 0.95).low < 0.05
    assert straight < 4
    assert turned > 36


def test_a_p_value_is_twice_the_smaller_share_of_draws_on_the_far_side_of_zero():
    draws = np.append(np.full(3, -1.0), np.full(96, 1.0))
    assert p_value_of(draws) == pytest.approx(2 * 4 / 100)
    assert p_value_of(-draws) == p_value_of(draws)
    assert p_value_of(np.append(draws, np.full(500, np.nan))) == p_value_of(draws)
    assert p_value_of(np.zeros(10)) == 1.0
    assert p_value_of(np.ones(1999)) == pytest.approx(2 / 2000)
    assert np.isnan(p_value_of(np.full(3, np.nan)))
