"""Calibration: reliability curves and the expected calibration error over bins of equal width."""

import numpy as np

# What a bin sums, in the order of the last axis of every array of bins.
COUNT, POSITIVES, PROBABILITY = range(3)


def bin_numbers(probabilities: np.ndarray, num_bins: int) -> np.ndarray:
    """The bin of each probability in [0, 1], of `num_bins` of equal width; 1 falls into the last.

    Source: bins of equal width, as in Naeini et al., AAAI 2015, and Guo et al., ICML 2017 (15 of them). Chosen here
        over bins of equal mass, because the classes are rare: with an epidural share of 0.4 %, the topmost of 15
        equal masses would hold nearly every positive, and probabilities that are too high at 0.2 and too low at 0.9
        would cancel inside it. A bin of few rows weighs as little as its rows.
    """
    scaled = np.asarray(probabilities, np.float64) * num_bins
    return np.minimum(scaled.astype(np.int64), num_bins - 1)


def expected_calibration_error(bins: np.ndarray) -> np.ndarray:
    """The distance between mean probability and share of positives, averaged over the rows of all bins.

    Rows by chance alone keep it above zero: with few of them it says little without its interval.

    Args:
        bins: (..., B, 3) rows, positives and sum of probabilities of each bin.

    Returns:
        (...); NaN without a row.

    Example:
        >>> float(expected_calibration_error(np.array([[3, 0, 0.3], [1, 1, 0.9]])).round(3))
        0.1
    """
    distance = np.abs(bins[..., PROBABILITY] - bins[..., POSITIVES]).sum(-1)
    count = bins[..., COUNT].sum(-1)
    error: np.ndarray = np.divide(distance, count, out=np.full(np.shape(count), np.nan), where=count > 0)
    return error


def positive_share(bins: np.ndarray) -> np.ndarray:
    """(..., B) share of positives of (..., B, 3) bins; NaN for a bin without a row."""
    count = bins[..., COUNT]
    share: np.ndarray = np.divide(bins[..., POSITIVES], count, out=np.full(np.shape(count), np.nan), where=count > 0)
    return share
