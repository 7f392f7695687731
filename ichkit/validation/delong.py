"""DeLong's variance of an AUC and test of the difference between two AUCs on the same rows.

The rows are assumed to be independent. Slices of one patient are not: intervals would be far too narrow, so slices need
the patient bootstrap. Used for studies of external sets such as CQ500, where each study is of another patient.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

_ROUNDING = 1e-12


@dataclass(frozen=True)
class DelongAuc:
    """An AUC, its variance, and its interval, clipped to [0, 1].

    Variance and interval are NaN with fewer than two positives or negatives; the interval also if the variance is 0, as
    for an AUC of 1, because a variance of 0 in the sample does not mean certainty.
    """

    auc: float
    variance: float
    low: float
    high: float


@dataclass(frozen=True)
class DelongTest:
    """Two AUCs, the first minus the second, its variance and interval, and the two-sided p-value."""

    auc: float
    other_auc: float
    difference: float
    variance: float
    low: float
    high: float
    p_value: float


def delong_auc(labels: np.ndarray, scores: np.ndarray, level: float) -> DelongAuc:
    """The AUC of independent rows with DeLong's variance.

    Args:
        labels: (N,) of 0 and 1.
        scores: (N,) of any scale.
        level: confidence level, e.g. 0.95.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988; by midranks as in Sun & Xu, IEEE Signal Processing
        Letters 21, 2014: O(N log N) in place of all pairs.
    """
    auc, covariance = delong_covariance(labels, scores[None])
    low, high = _interval(auc[0], covariance[0, 0], level)
    return DelongAuc(float(auc[0]), float(covariance[0, 0]), max(low, 0.0), min(high, 1.0))


def delong_test(labels: np.ndarray, scores: np.ndarray, other: np.ndarray, level: float) -> DelongTest:
    """The AUC of `scores` minus that of `other` on the same independent rows.

    Scores with the same order of rows differ by 0 with p = 1; a difference with variance 0 has no p-value.

    Args:
        labels: (N,) of 0 and 1.
        scores, other: (N,) of any scale.

    Source: as `delong_auc`.
    """
    auc, covariance = delong_covariance(labels, np.stack([scores, other]))
    difference = float(auc[0] - auc[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    # If the variance is 0, rounding leaves about 1e-17 of the two variances, with either sign.
    if abs(variance) < _ROUNDING * (covariance[0, 0] + covariance[1, 1]):
        variance = 0.0
    if variance == 0 and abs(difference) < _ROUNDING:
        return DelongTest(float(auc[0]), float(auc[1]), 0.0, 0.0, 0.0, 0.0, 1.0)
    low, high = _interval(difference, variance, level)
    p_value = 2 * ndtr(-abs(difference) / np.sqrt(variance)) if variance > 0 else np.nan
    return DelongTest(float(auc[0]), float(auc[1]), difference, variance, low, high, float(p_value))


def delong_covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S,) AUCs of S scores of the same rows and their (S, S) covariance; NaN with too few positives or negatives.

    Args:
        labels: (N,) of 0 and 1.
        scores: (S, N) of any scale.
    """
    from scipy.stats import rankdata  # takes a third of a second, and predict needs none of it

    is_positive = np.asarray(labels) > 0
    num_positive, num_negative = int(is_positive.sum()), int((~is_positive).sum())
    if not num_positive or not num_negative:
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    ranks = rankdata(scores, axis=1)
    # (S, P): the share of negatives that each positive beats; (S, M): of positives that beat each negative.
    beats = (ranks[:, is_positive] - rankdata(scores[:, is_positive], axis=1)) / num_negative
    beaten = 1 - (ranks[:, ~is_positive] - rankdata(scores[:, ~is_positive], axis=1)) / num_positive
    auc = beats.mean(1)
    if min(num_positive, num_negative) < 2:
        return auc, np.full((len(scores), len(scores)), np.nan)
    return auc, np.atleast_2d(np.cov(beats) / num_positive + np.cov(beaten) / num_negative)


def _interval(value: float, variance: float, level: float) -> tuple[float, float]:
    if not variance > 0:
        return float("nan"), float("nan")
    half = float(-ndtri((1 - level) / 2) * np.sqrt(variance))
    return float(value) - half, float(value) + half
