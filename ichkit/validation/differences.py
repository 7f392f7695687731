"""Standardized differences between two groups, independent of their sizes."""

import numpy as np


def standardized_mean_difference(values: np.ndarray, reference: np.ndarray) -> float:
    """The difference of the means in units of the pooled standard deviation; NaN if it is undefined.

    Args:
        values: (N,) of one group, without NaN.
        reference: (M,) of the other.

    Source: Austin, Statistics in Medicine 28, 2009: sqrt of the mean of both variances, which does not depend on the
        sizes of the groups; 0.1 is often called negligible.

    Example:
        >>> standardized_mean_difference(np.array([2.0, 4.0]), np.array([1.0, 3.0])).__round__(3)
        0.707
    """
    if min(len(values), len(reference)) < 2:
        return float("nan")
    return _divide(values.mean() - reference.mean(), (values.var(ddof=1) + reference.var(ddof=1)) / 2)


def standardized_share_difference(share: float, reference: float) -> float:
    """The difference of two shares in units of their pooled standard deviation; NaN if it is undefined.

    Source: Austin, Statistics in Medicine 28, 2009.

    Example:
        >>> round(standardized_share_difference(0.5, 0.4), 3)
        0.202
    """
    return _divide(share - reference, (share * (1 - share) + reference * (1 - reference)) / 2)


def _divide(difference: float, variance: float) -> float:
    if difference == 0:
        return 0.0
    return float(difference / np.sqrt(variance)) if variance > 0 else float("nan")
