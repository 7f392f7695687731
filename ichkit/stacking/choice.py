"""How much of a correction to keep: all of a clear gain, less of a doubtful one, none of what chance would give."""

import numpy as np
from scipy.special import stdtrit

from ichkit.stacking.rows import log_losses_of_logits

MIN_PATIENTS = 6
"""Patients with a positive slice of a class, and patients with a negative one, below which the class keeps its base.

Source: chosen here by `benchmarks/small.py`; with fewer, the patients there are do not tell the error of a gain.
"""
_SHARES = (0.25, 0.5, 0.75, 1.0)
# Gains below this quantile of Student's distribution count as none. Its degrees of freedom are those of the patients of
# the rarer label, because they carry most of a gain and of its error. Six classes of several stackers are tested:
# at 0.9 the worst loss of axial fusion to its run on 20 simulated patients was 0.5 %, at 0.95 it was 0.1 %.
_CONFIDENCE = 0.95


def choose_share(base: np.ndarray, correction: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    """The share in [0, 1] of a class's correction that inner patients support; 0 leaves the base.

    Args:
        base: (n,) float64 logits of the calibrated base on inner patients, by models that saw neither them nor the
            fold to predict.
        correction: (n,) what the stacker would add, by such models too.
        labels: (n,) of 0 and 1.
        patients: (n,) int64 codes; slices of one patient are not independent, so errors are by patient.

    Below `MIN_PATIENTS` patients of either label the share is 0.

    Source: chosen here, because on 80 patients a stacker taken at its best inner loss was measured to lose to its own
        base: the best of four shares, shrunk by `trust`.

    Example:
        >>> patients = np.arange(40)
        >>> labels = patients % 2
        >>> choose_share(np.zeros(40), 2.0 * labels - 1, labels, patients)
        1.0
    """
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
    """Patients that speak for a class: those with a positive row or those with a negative one, whichever are fewer.

    Args:
        labels: (n,) of 0 and 1.
        patients: (n,) codes.

    Example:
        >>> count_support(np.array([0, 1, 0, 0]), np.array([0, 0, 1, 2]))
        1
    """
    return min(len(np.unique(patients[labels > 0.5])), len(np.unique(patients[labels <= 0.5])))


def trust(gains: np.ndarray, patients: np.ndarray, support: int) -> float:
    """How far a measured gain can be believed, in [0, 1]: nothing where it is not clear of 0, then ever more.

    Args:
        gains: (n,) loss of the base less loss of the candidate.
        support: patients of the rarer label, two or more.

    Source: 1 - (doubt * error / gain)^2, after the positive part of James and Stein (1961); doubt is the 95 % quantile
        of Student's distribution, so that the gain's one-sided interval is clear of 0.

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
