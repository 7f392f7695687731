"""Distortions of a volume for self-supervised pretraining: a network learns to restore what they destroy."""

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np

_LEVELS = 256
_CURVE_POINTS = 1000
_SHUFFLED_SHARE = 1 / 10  # largest window of a shuffle, as a share of each side
_COVERAGE = 2  # how often a voxel is in a shuffled window, on average
_MOST_BOXES = 5
_HOLE, _KEPT = (1 / 6, 1 / 3), (3 / 7, 4 / 7)  # sides of boxes, as shares of the volume's
DRAWN = {"shuffle": 0.5, "bend": 0.9, "paint": 0.9}
"""Probability of each distortion; of the painted volumes `OUTSIDE_SHARE` are painted outside, the others inside."""
OUTSIDE_SHARE = 0.8


@dataclass(frozen=True)
class Distortion:
    """A row of `DISTORTIONS`.

    Attributes:
        name: key in the table.
        function: from a volume (S, H, W, C) uint8 and a generator to a distorted one of the same shape.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    function: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    description: str
    source: str


def distort(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A distorted copy of a volume (S, H, W, C) uint8; which distortions are applied is drawn.

    Source: Zhou et al., Models Genesis, MICCAI 2019, section 2; probabilities as in the authors' configuration.

    Example:
        >>> volume = np.full((4, 16, 16, 3), 100, np.uint8)
        >>> distort(volume, np.random.default_rng(0)).shape
        (4, 16, 16, 3)
    """
    draws = rng.random(4)
    is_painted_outside = draws[3] < OUTSIDE_SHARE
    chosen = [
        *(["shuffle"] if draws[0] < DRAWN["shuffle"] else []),
        *(["bend"] if draws[1] < DRAWN["bend"] else []),
        *(["paint-outside" if is_painted_outside else "paint-inside"] if draws[2] < DRAWN["paint"] else []),
    ]
    distorted = volume.copy()
    for name in chosen:
        distorted = DISTORTIONS[name].function(distorted, rng)
    return distorted


def bend(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The volume with the grey levels of each channel mapped by a smooth monotone curve, rising or falling."""
    tables = [_draw_curve(rng) for _ in range(volume.shape[3])]
    return np.stack([table[volume[..., channel]] for channel, table in enumerate(tables)], 3)


def shuffle(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The volume with the voxels of many small windows shuffled, all channels alike."""
    sides = np.array(volume.shape[:3])
    largest = np.maximum((sides * _SHUFFLED_SHARE).astype(np.int64), 1)
    largest = np.minimum(np.maximum(largest, 2), sides)  # a window of one voxel has nothing to shuffle
    mean_size = float(np.prod((1 + largest) / 2))
    shuffled = np.ascontiguousarray(volume)
    shuffle_windows(shuffled, largest, int(_COVERAGE * sides.prod() / mean_size), rng)
    return shuffled


def paint_inside(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The volume with one to five boxes filled with noise."""
    painted = volume.copy()
    for box in _draw_boxes(volume.shape, _HOLE, rng):
        painted[box] = _noise(painted[box].shape, rng)
    return painted


def paint_outside(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise, with one to five boxes of the volume kept."""
    painted = _noise(volume.shape, rng)
    for box in _draw_boxes(volume.shape, _KEPT, rng):
        painted[box] = volume[box]
    return painted


@numba.njit(cache=True, nogil=True)
def shuffle_windows(volume: np.ndarray, largest: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Shuffles the voxels of `count` windows in place, one window after another.

    Args:
        volume: (S, H, W, C) uint8.
        largest: (3,) longest sides of a window.
    """
    for _ in range(count):
        size_0, size_1, size_2 = (
            rng.integers(1, largest[0] + 1),
            rng.integers(1, largest[1] + 1),
            rng.integers(1, largest[2] + 1),
        )
        low_0 = rng.integers(0, volume.shape[0] - size_0 + 1)
        low_1 = rng.integers(0, volume.shape[1] - size_1 + 1)
        low_2 = rng.integers(0, volume.shape[2] - size_2 + 1)
        for last in range(size_0 * size_1 * size_2 - 1, 0, -1):  # Fisher and Yates
            other = rng.integers(0, last + 1)
            a, b, c = last // (size_1 * size_2), last // size_2 % size_1, last % size_2
            d, e, f = other // (size_1 * size_2), other // size_2 % size_1, other % size_2
            for channel in range(volume.shape[3]):
                kept = volume[low_0 + a, low_1 + b, low_2 + c, channel]
                volume[low_0 + a, low_1 + b, low_2 + c, channel] = volume[low_0 + d, low_1 + e, low_2 + f, channel]
                volume[low_0 + d, low_1 + e, low_2 + f, channel] = kept


def _draw_curve(rng: np.random.Generator) -> np.ndarray:
    """(256,) uint8: a cubic Bezier curve from one corner of the unit square to the opposite one, as a table."""
    x, y = rng.random((2, 2))
    if rng.random() < 0.5:
        begin, end = 0.0, 1.0
    else:
        begin, end = 1.0, 0.0
    share = np.linspace(0, 1, _CURVE_POINTS)
    basis = np.stack([(1 - share) ** 3, 3 * (1 - share) ** 2 * share, 3 * (1 - share) * share**2, share**3])
    values = np.interp(np.linspace(0, 1, _LEVELS), np.array([0, *x, 1]) @ basis, np.array([begin, *y, end]) @ basis)
    return np.rint(values * (_LEVELS - 1)).astype(np.uint8)


def _draw_boxes(
    shape: tuple[int, ...], shares: tuple[float, float], rng: np.random.Generator
) -> list[tuple[slice, ...]]:
    """One to five boxes inside a volume, sides drawn between two shares of the volume's."""
    boxes = []
    for _ in range(int(rng.integers(1, _MOST_BOXES + 1))):
        sides = [max(round(side * rng.uniform(*shares)), 1) for side in shape[:3]]
        lows = [int(rng.integers(0, whole - side + 1)) for whole, side in zip(shape[:3], sides, strict=True)]
        boxes.append(tuple(slice(low, low + side) for low, side in zip(lows, sides, strict=True)))
    return boxes


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, _LEVELS, shape, dtype=np.uint8)


_SOURCE = "Zhou et al., Models Genesis, MICCAI 2019, section 2"
DISTORTIONS = {
    "bend": Distortion(
        name="bend",
        function=bend,
        description="Grey levels are mapped by a random monotone Bezier curve, one for each channel.",
        source=_SOURCE,
    ),
    "shuffle": Distortion(
        name="shuffle",
        function=shuffle,
        description="Voxels are shuffled inside many windows of at most a tenth of each side.",
        source=_SOURCE,
    ),
    "paint-inside": Distortion(
        name="paint-inside",
        function=paint_inside,
        description="One to five boxes of a sixth to a third of each side are filled with noise.",
        source=f"{_SOURCE}; sizes as in the authors' code",
    ),
    "paint-outside": Distortion(
        name="paint-outside",
        function=paint_outside,
        description="All but one to five boxes of about half of each side is filled with noise.",
        source=f"{_SOURCE}; sizes as in the authors' code",
    ),
}
