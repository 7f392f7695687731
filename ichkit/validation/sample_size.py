"""How precise an AUC will be with so many positives and negatives, and how many a precision needs."""

import math

from scipy.special import ndtri


def auc_standard_error(auc: float, num_positive: int, num_negative: int) -> float:
    """The standard error of an AUC of independent rows; NaN without positives or negatives, or if the AUC is undefined.

    Args:
        auc: in [0, 1].

    Source: Hanley & McNeil, Radiology 143, 1982, with exponential scores: Q1 = A / (2 - A), Q2 = 2 A^2 / (1 + A).

    Example:
        >>> round(auc_standard_error(0.893, 51, 58), 4)
        0.0325
    """
    if math.isnan(auc) or min(num_positive, num_negative) < 1:
        return float("nan")
    of_positives, of_negatives = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (
        auc * (1 - auc) + (num_positive - 1) * (of_positives - auc**2) + (num_negative - 1) * (of_negatives - auc**2)
    )
    return math.sqrt(max(spread, 0.0) / (num_positive * num_negative))


def auc_half_width(auc: float, num_positive: int, num_negative: int, level: float) -> float:
    """Half of the expected width of the interval of an AUC.

    Args:
        level: confidence level, e.g. 0.95.
    """
    return float(ndtri((1 + level) / 2)) * auc_standard_error(auc, num_positive, num_negative)


def positives_needed(auc: float, share_positive: float, half_width: float, level: float) -> int | None:
    """The smallest number of positives for which the interval is expected to be no wider; None if it is undefined.

    Args:
        share_positive: the share of positives among all rows, which is kept.
        half_width: wanted.

    Example:
        >>> positives_needed(0.9, 0.4, 0.05, 0.95)
        75
    """
    if math.isnan(auc) or not 0 < share_positive < 1 or not 0 < auc < 1:
        return None

    def is_enough(positives: int) -> bool:
        negatives = max(1, round(positives * (1 - share_positive) / share_positive))
        return auc_half_width(auc, positives, negatives, level) <= half_width

    enough = 1
    while not is_enough(enough):
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if is_enough(middle) else (middle, enough)
    return enough
