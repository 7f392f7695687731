"""Standardized differences against statsmodels' definition written out, and against shares as means of 0 and 1."""

import numpy as np
import pytest

from ichkit.validation.differences import standardized_mean_difference, standardized_share_difference


def test_a_difference_of_means_is_in_units_of_the_mean_variance():
    rng = np.random.default_rng(0)
    one, other = rng.normal(3, 2, 500), rng.normal(2, 1, 40)
    expected = (sum(one) / 500 - sum(other) / 40) / ((np.std(one, ddof=1) ** 2 + np.std(other, ddof=1) ** 2) / 2) ** 0.5
    assert standardized_mean_difference(one, other) == pytest.approx(expected)
    assert standardized_mean_difference(other, one) == pytest.approx(-expected)
    assert standardized_mean_difference(10 * one, 10 * other) == pytest.approx(expected)


def test_a_share_is_the_mean_of_zeros_and_ones():
    one, other = np.repeat([0.0, 1.0], [700_000, 300_000]), np.repeat([0.0, 1.0], [500_000, 500_000])
    by_means = standardized_mean_difference(one, other)
    assert standardized_share_difference(0.3, 0.5) == pytest.approx(by_means, abs=1e-5)


def test_equal_groups_differ_by_nothing_and_constants_are_undefined():
    assert standardized_mean_difference(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0
    assert np.isnan(standardized_mean_difference(np.array([1.0, 1.0]), np.array([2.0, 2.0])))
    assert np.isnan(standardized_mean_difference(np.array([1.0]), np.array([2.0, 3.0])))
    assert np.isnan(standardized_share_difference(0, 1))
