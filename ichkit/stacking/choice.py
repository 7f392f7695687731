"""How much of a correction to keep: all of a clear gain, less of a doubtful one, none of what chance would give."""

import numpy as np

from ichkit.stacking.rows import log_losses_of_logits

_SHARES = (0.25, 0.5, 0.75, 1.0)
# Standard errors that count as no gain at all. At 1, boosters lost 0.3 % to true posteriors of 80 patients; at 1.5 they
# lost nothing but left half a percent of a 17 % gain behind.
_DOUBT = 1.25


def choose_share(base: np.ndarray, correction: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    """The share in [0, 1] of a class's correction that inner patients support; 0 leaves the base.

    Args:
        base: (n,) float64 logits of the calibrated base on inner patients, by models that saw neither them nor the
            fold to predict.
        correction: (n,) what the stacker would add, by such models too.
        labels: (n,) of 0 and 1.
        patients: (n,) int64 codes; slices of one patient are not independent, so errors are by patient.

    Source: chosen here, because on 80 patients a stacker taken at its best inner loss was measured to lose to its own
        base: the best of four shares, shrunk by `trust`.

    Example:
        >>> patients = np.arange(40)
        >>> labels = patients % 2
        >>> choose_share(np.zeros(40), 2.0 * labels - 1, labels, patients)
        1.0
    """
    losses = log_losses_of_logits(base, labels)
    tried = [losses - log_losses_of_logits(base + share * correction, labels) for share in _SHARES]
    best = int(np.argmax([gains.sum() for gains in tried]))
    return _SHARES[best] * trust(tried[best], patients)


def trust(gains: np.ndarray, patients: np.ndarray) -> float:
    """How far a measured gain can be believed, in [0, 1]: nothing within 1.25 standard errors, then ever more.

    Args:
        gains: (n,) loss of the base less loss of the candidate.

    Source: 1 - (doubt * error / gain)^2, after the positive part of James and Stein (1961).

    Example:
        >>> trust(np.array([1.0, 1.0, 1.0]), np.array([0, 1, 2]))
        1.0
    """
    gain, error = gains.sum(), standard_error_of_sum(gains, patients)
    return float(1 - (_DOUBT * error / gain) ** 2) if gain > _DOUBT * error else 0.0


def standard_error_of_sum(values: np.ndarray, patients: np.ndarray) -> float:
    """Standard error of the sum of (n,) values over patients drawn anew; infinite for a single patient.

    Example:
        >>> round(standard_error_of_sum(np.array([1.0, 1.0, 4.0, 4.0]), np.array([0, 0, 1, 1])), 3)
        6.0
    """
    totals = np.bincount(patients, weights=values)[np.bincount(patients) > 0]
    # The variance of one patient's total, times as many patients.
    return float(np.sqrt(len(totals) * totals.var(ddof=1))) if len(totals) > 1 else np.inf
