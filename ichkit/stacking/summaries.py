"""Quantiles of a study, and the rank of each slice in its study."""

import numba
import numpy as np

from ichkit.stacking.neighbours import study_starts


def study_quantiles(values: np.ndarray, study_codes: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Quantiles of every column in every study, linear between order statistics as NumPy's default.

    Args:
        values: (N, C) float, rows of one study together.
        study_codes: (N,) integers, equal for rows of one study.
        shares: in [0, 1].

    Returns:
        (studies, len(shares), C) float64, studies in order of appearance.

    Example:
        >>> study_quantiles(np.array([[1.0], [3.0], [8.0]]), np.array([0, 0, 1]), (0.5,))[:, 0, 0].tolist()
        [2.0, 8.0]
    """
    starts = study_starts(study_codes)
    edges = np.append(starts, len(values))
    quantiles = np.empty((len(starts), len(shares), values.shape[1]))
    _fill_quantiles(np.ascontiguousarray(values, np.float64), edges, np.array(shares, np.float64), quantiles)
    return quantiles


def ranks_in_study(values: np.ndarray, study_codes: np.ndarray) -> np.ndarray:
    """Share of the study's other slices with lower values, ties counting half: (N, C) float32 in [0, 1].

    NaN for a study of one slice.

    Args:
        values: (N, C) float, rows of one study together.
        study_codes: (N,) integers, equal for rows of one study.

    Example:
        >>> ranks_in_study(np.array([[5.0], [1.0], [1.0]]), np.array([0, 0, 0]))[:, 0].tolist()
        [1.0, 0.25, 0.25]
    """
    edges = np.append(study_starts(study_codes), len(values))
    ranks = np.empty(values.shape, np.float32)
    _fill_ranks(np.ascontiguousarray(values, np.float64), edges, ranks)
    return ranks


@numba.njit(cache=True)
def _fill_quantiles(values: np.ndarray, edges: np.ndarray, shares: np.ndarray, quantiles: np.ndarray) -> None:
    """Writes (studies, shares, C) quantiles of (N, C) values."""
    for study in range(len(edges) - 1):
        for column in range(values.shape[1]):
            ordered = np.sort(values[edges[study] : edges[study + 1], column])
            for number in range(len(shares)):
                place = shares[number] * (len(ordered) - 1)
                below = int(place)
                above = min(below + 1, len(ordered) - 1)
                step = ordered[above] - ordered[below]
                quantiles[study, number, column] = ordered[below] + (place - below) * step


@numba.njit(cache=True)
def _fill_ranks(values: np.ndarray, edges: np.ndarray, ranks: np.ndarray) -> None:
    """Writes (N, C) shares of the study below each of (N, C) values."""
    for study in range(len(edges) - 1):
        first, last = edges[study], edges[study + 1]
        for column in range(values.shape[1]):
            for row in range(first, last):
                below = 0.0
                for other in range(first, last):
                    if values[other, column] < values[row, column]:
                        below += 1.0
                    elif values[other, column] == values[row, column] and other != row:
                        below += 0.5
                ranks[row, column] = below / (last - first - 1) if last - first > 1 else np.nan
