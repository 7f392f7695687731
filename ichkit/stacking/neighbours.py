"""Windows over the descriptors of adjacent slices of a study."""

import numba
import numpy as np


def neighbour_stacks(
    descriptors: np.ndarray, study_codes: np.ndarray, window: int = 7, *, beyond: float | None = None
) -> np.ndarray:
    """The window of descriptors centred on every row.

    Args:
        descriptors: (N, C) float, any finite scale (probabilities or logits), rows sorted by study, then slice_index.
        study_codes: (N,) integers, equal for rows of one study, which are contiguous.
        window: odd number of slices; the centre stands at position `window // 2`.
        beyond: the value for slices beyond the ends of a study; None repeats the end slice.

    Returns:
        (N, window, C) float32, position 0 nearest the feet.

    Source: paper section 2.2 (7 x 6 x 1); ends are not specified there: repeated for the network, missing for trees.

    Example:
        >>> neighbour_stacks(np.array([[1.0], [2.0]]), np.array([0, 0]), window=3)[..., 0].tolist()
        [[1.0, 1.0, 2.0], [1.0, 2.0, 2.0]]
    """
    assert descriptors.ndim == 2
    assert len(descriptors) == len(study_codes)
    assert window % 2 == 1
    values = np.ascontiguousarray(descriptors, np.float32)
    first, last = study_bounds(study_codes)
    stacks = np.empty((len(values), window, values.shape[1]), np.float32)
    _fill_stacks(values, first, last, window // 2, beyond is None, 0.0 if beyond is None else beyond, stacks)
    return stacks


def neighbour_rows(study_codes: np.ndarray, window: int) -> np.ndarray:
    """Row numbers of the window centred on every row, ends repeated: (N, window) int64.

    Gathering by these gives `neighbour_stacks` without keeping all windows in memory.

    Example:
        >>> neighbour_rows(np.array([0, 0, 1]), window=3).tolist()
        [[0, 0, 1], [0, 1, 1], [2, 2, 2]]
    """
    first, last = study_bounds(study_codes)
    offsets = np.arange(window) - window // 2
    rows: np.ndarray = np.clip(np.arange(len(study_codes))[:, None] + offsets, first[:, None], last[:, None])
    return rows


def running_means(values: np.ndarray, study_codes: np.ndarray, reach: int) -> np.ndarray:
    """Mean of every column over the slices at most `reach` away in the same study: (N, C) float32.

    Args:
        values: (N, C) float.
        reach: slices to each side; fewer where the study ends.

    Example:
        >>> running_means(np.array([[0.0], [3.0], [9.0]]), np.array([0, 0, 0]), reach=1)[:, 0].tolist()
        [1.5, 4.0, 6.0]
    """
    values = np.ascontiguousarray(values, np.float32)
    first, last = study_bounds(study_codes)
    means = np.empty_like(values)
    _fill_means(values, first, last, reach, means)
    return means


def study_bounds(study_codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last row of each row's study.

    Args:
        study_codes: (N,) integers; a study's rows stand together.

    Returns:
        Two (N,) int64 arrays of row numbers, both ends included.

    Example:
        >>> [bound.tolist() for bound in study_bounds(np.array([5, 5, 2]))]
        [[0, 0, 2], [1, 1, 2]]
    """
    starts = study_starts(study_codes)
    lengths = np.diff(np.append(starts, len(study_codes)))
    return np.repeat(starts, lengths), np.repeat(starts + lengths - 1, lengths)


def study_starts(study_codes: np.ndarray) -> np.ndarray:
    """The first row of each study, in order of appearance: int64.

    Example:
        >>> study_starts(np.array([5, 5, 2])).tolist()
        [0, 2]
    """
    is_start = np.ones(len(study_codes), bool)
    is_start[1:] = study_codes[1:] != study_codes[:-1]
    return np.flatnonzero(is_start)


@numba.njit(cache=True)
def _fill_stacks(
    values: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    reach: int,
    repeats_ends: bool,
    beyond: float,
    stacks: np.ndarray,
) -> None:
    """Writes (N, 2 * reach + 1, C) windows of (N, C) values into `stacks`."""
    num_rows, num_columns = values.shape
    for row in range(num_rows):
        for position in range(2 * reach + 1):
            source = row + position - reach
            is_inside = first[row] <= source <= last[row]
            nearest = min(max(source, first[row]), last[row])
            for column in range(num_columns):
                stacks[row, position, column] = values[nearest, column] if is_inside or repeats_ends else beyond


@numba.njit(cache=True)
def _fill_means(values: np.ndarray, first: np.ndarray, last: np.ndarray, reach: int, means: np.ndarray) -> None:
    """Writes the running means of (N, C) values into `means`; each row sums its own window, so rows are independent."""
    num_rows, num_columns = values.shape
    for row in range(num_rows):
        low, high = max(row - reach, first[row]), min(row + reach, last[row])
        for column in range(num_columns):
            total = 0.0
            for source in range(low, high + 1):
                total += values[source, column]
            means[row, column] = total / (high - low + 1)
