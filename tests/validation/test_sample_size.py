"""Expected precision of an AUC: published values, simulated studies of its own model, and the number needed."""

import numpy as np
import pytest

from ichkit.validation.sample_size import auc_half_width, auc_standard_error, positives_needed


@pytest.mark.parametrize(
    ("auc", "positives", "negatives", "expected"),
    [
        (0.893, 51, 58, 0.0325),  # Hanley & McNeil 1982, their example of CT images
        (0.95, 13, 478, 0.0423),  # epidural hemorrhage in CQ500: an interval of about +-.083
        (0.5, 10, 10, (21 / (12 * 100)) ** 0.5),  # Wilcoxon's exact variance at chance: (p + n + 1) / (12 p n)
    ],
)
def test_standard_errors_are_the_known_ones(auc, positives, negatives, expected):
    assert auc_standard_error(auc, positives, negatives) == pytest.approx(expected, abs=5e-5)


def test_exponential_scores_have_the_expected_spread():
    # The formula's model: scores of negatives are Exp(1), of positives Exp(rate), so that A = 1 / (1 + rate).
    rng, auc, positives, negatives = np.random.default_rng(0), 0.85, 30, 90
    rate = 1 / auc - 1
    found = [(rng.exponential(1 / rate, (positives, 1)) > rng.exponential(1, negatives)).mean() for _ in range(2000)]
    assert np.mean(found) == pytest.approx(auc, abs=0.005)
    assert np.std(found) == pytest.approx(auc_standard_error(auc, positives, negatives), rel=0.06)


def test_the_half_width_is_that_of_the_level():
    assert auc_half_width(0.95, 13, 478, 0.95) == pytest.approx(0.083, abs=5e-4)
    assert auc_half_width(0.9, 50, 50, 0.95) / auc_standard_error(0.9, 50, 50) == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize("half_width", [0.07, 0.06, 0.05, 0.045, 0.035])
def test_one_positive_fewer_than_needed_is_too_few(half_width):
    needed = positives_needed(0.9, 0.25, half_width, 0.95)
    assert auc_half_width(0.9, needed, 3 * needed, 0.95) <= half_width
    assert auc_half_width(0.9, needed - 1, 3 * (needed - 1), 0.95) > half_width


def test_what_is_undefined_has_no_width():
    assert np.isnan(auc_standard_error(float("nan"), 10, 10))
    assert np.isnan(auc_standard_error(0.9, 0, 10))
    assert positives_needed(float("nan"), 0.5, 0.05, 0.95) is None
    assert positives_needed(0.9, 0.0, 0.05, 0.95) is None
    assert positives_needed(1.0, 0.5, 0.05, 0.95) is None
