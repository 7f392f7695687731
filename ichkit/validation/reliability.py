"""Calibration: reliability curves and the expected calibration error over bins of equal width."""

import numpy as np

# The sums of a bin, in the order of the last axis of every array of bins.
COUNT, POSITIVES, PROBABILITY = range(3)


def bin_numbers(probabilities: np.ndarray, num_bins: int) -> np.ndarray:
    """The bin of each probability in [0, 1], of `num_bins` of equal width; 1 is in the last.

    Source: bins of equal width, as in Naeini et al., AAAI 2015, and Guo et al., ICML 2017 (15 of them). Chosen here
        over bins of equal mass, because the classes are rare: with an epidural prevalence of 0.4 %, the last of 15
        such bins would contain nearly all positives, and probabilities that are too high at 0.2 and too low at 0.9
        would cancel in it. The weight of a bin is its number of rows.
    """
    scaled = np.asarray(probabilities, np.float64) * num_bins
    return np.minimum(scaled.astype(np.int64), num_bins - 1)


def expected_calibration_error(bins: np.ndarray) -> np.ndarray:
    """The difference between mean probability and share of positives of a bin, averaged over the rows of all bins.

    Chance alone keeps it above zero: with few rows it is only meaningful with its interval.

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
