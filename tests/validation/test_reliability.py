"""Bins and the calibration error against plain loops."""

import numpy as np
import pytest

from ichkit.validation.reliability import bin_numbers, expected_calibration_error, positive_share


def plain_error(p: np.ndarray, y: np.ndarray, num_bins: int) -> float:
    """The definition: over bins of equal width, the share of rows times |mean probability - share of positives|."""
    total = 0.0
    for b in range(num_bins):
        last = b == num_bins - 1
        inside = (p >= b / num_bins) & ((p <= 1) if last else (p < (b + 1) / num_bins))
        if inside.any():
            total += inside.mean() * abs(p[inside].mean() - y[inside].mean())
    return total


def fill_bins(p: np.ndarray, y: np.ndarray, num_bins: int) -> np.ndarray:
    bins = np.zeros((num_bins, 3))
    np.add.at(bins, bin_numbers(p, num_bins), np.stack([np.ones(len(p)), y, p], 1))
    return bins


@pytest.mark.parametrize("num_bins", [2, 16])
def test_the_calibration_error_is_its_definition(num_bins):
    rng = np.random.default_rng(num_bins)
    p = rng.random(500) ** 3
    y = (rng.random(500) < p**0.7).astype(float)
    bins = fill_bins(p, y, num_bins)
    assert expected_calibration_error(bins) == pytest.approx(plain_error(p, y, num_bins), abs=1e-12)
    both = expected_calibration_error(np.stack([bins, np.zeros_like(bins)]))
    assert np.isnan(both).tolist() == [False, True]


def test_probabilities_that_say_what_happens_have_no_error_and_the_opposite_all_of_it():
    y = np.array([0, 1, 0, 1.0])
    assert expected_calibration_error(fill_bins(y, y, 15)) == 0
    assert expected_calibration_error(fill_bins(1 - y, y, 15)) == 1
    assert expected_calibration_error(fill_bins(np.full(4, 0.5), y, 15)) == 0


def test_an_edge_belongs_to_the_bin_above_and_one_to_the_last():
    assert bin_numbers(np.array([0, 0.25, 0.4999, 0.5, 0.75, 1.0]), 4).tolist() == [0, 1, 1, 2, 3, 3]


def test_the_share_of_positives_of_an_empty_bin_is_nan():
    shares = positive_share(fill_bins(np.array([0.1, 0.2, 0.9]), np.array([0, 1, 1.0]), 2))
    assert shares.tolist() == [0.5, 1.0]
    assert np.isnan(positive_share(np.zeros((1, 3)))[0])
