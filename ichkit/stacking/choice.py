"""Shrinkage of the corrections of a stacker by the significance of their gain on inner patients."""

import numpy as np
from scipy.special import stdtrit

from ichkit.stacking.rows import known_rows, log_losses_of_logits

MIN_PATIENTS = 6
"""Minimum number of patients with a positive and with a negative slice of a class; with fewer it keeps its base.

Source: chosen here by `benchmarks/small.py`; with fewer patients the error of a gain cannot be estimated.
"""
_SHARES = (0.25, 0.5, 0.75, 1.0)
# Gains below this quantile of Student's distribution count as none. Its degrees of freedom are those of the patients of
# the rarer label, because they carry most of a gain and of its error. Six classes of several stackers are tested:
# at 0.9 the worst loss of axial fusion to its run on 20 simulated patients was 0.5 %, at 0.95 it was 0.1 %.
_CONFIDENCE = 0.95


def choose_share(base: np.ndarray, correction: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    """The share in [0, 1] of a class's correction to use, chosen on inner patients; 0 leaves the base.

    Args:
        base: (n,) float64 logits of the calibrated base on inner patients, by models that were fitted neither on them
            nor on the fold to predict.
        correction: (n,) the correction by the stacker, by such models too.
        labels: (n,) of 0 and 1; rows at NaN are left out.
        patients: (n,) int64 codes; slices of one patient are not independent, so errors are by patient.

    Below `MIN_PATIENTS` patients of either label the share is 0.

    Source: chosen here: the best of four shares, shrunk by `trust`, because on 80 patients a stacker without shrinkage
        was worse than its own base.

    Example:
        >>> patients = np.arange(40)
        >>> labels = patients % 2
        >>> choose_share(np.zeros(40), 2.0 * labels - 1, labels, patients)
        1.0
    """
    known = known_rows(labels)
    base, correction, labels, patients = base[known], correction[known], labels[known], patients[known]
    support = count_support(labels, patients)
    if support < MIN_PATIENTS:
        return 0.0
    losses = log_losses_of_logits(base, labels)
    tried = [losses - log_losses_of_logits(base + share * correction, labels) for share in _SHARES]
    best = int(np.argmax([gains.sum() for gains in tried]))
    return _SHARES[best] * trust(tried[best], patients, support)


def choose_shares(base: np.ndarray, corrections: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """(C,) float64 `choose_share` of each class; (n, C) arrays, (n,) patients."""
    columns = zip(*(np.ascontiguousarray(part.T) for part in (base, corrections, labels)), strict=True)
    return np.array([choose_share(own, correction, truth, patients) for own, correction, truth in columns])


def count_support(labels: np.ndarray, patients: np.ndarray) -> int:
    """The number of patients with a positive row, or of those with a negative row if that is smaller.

    Args:
        labels: (n,) of 0 and 1; NaN counts for neither.
        patients: (n,) codes.

    Example:
        >>> count_support(np.array([0, 1, 0, 0]), np.array([0, 0, 1, 2]))
        1
    """
    return min(len(np.unique(patients[labels > 0.5])), len(np.unique(patients[labels <= 0.5])))


def trust(gains: np.ndarray, patients: np.ndarray, support: int) -> float:
    """A shrinkage factor in [0, 1] for a measured gain: 0 if it is not significant, increasing with significance.

    Args:
        gains: (n,) loss of the base minus loss of the candidate.
        support: patients of the rarer label, two or more.

    Source: 1 - (doubt * error / gain)^2, after the positive part of James and Stein (1961); doubt is the 95 % quantile
        of Student's distribution, so that it is 0 unless the one-sided interval of the gain excludes 0.

    Example:
        >>> trust(np.array([1.0, 1.0, 1.0]), np.array([0, 1, 2]), support=3)
        1.0
    """
    gain, error = gains.sum(), standard_error_of_sum(gains, patients)
    doubt = float(stdtrit(support - 1, _CONFIDENCE))
    return float(1 - (doubt * error / gain) ** 2) if gain > doubt * error else 0.0


def standard_error_of_sum(values: np.ndarray, patients: np.ndarray) -> float:
    """Standard error of the sum of (n,) values over resampled patients; infinite for a single patient.

    Example:
        >>> round(standard_error_of_sum(np.array([1.0, 1.0, 4.0, 4.0]), np.array([0, 0, 1, 1])), 3)
        6.0
    """
    totals = np.bincount(patients, weights=values)[np.bincount(patients) > 0]
    # The variance of one patient's total, times as many patients.
    return float(np.sqrt(len(totals) * totals.var(ddof=1))) if len(totals) > 1 else np.inf
