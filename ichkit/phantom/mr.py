"""Slices of a head as MR shows them: the tissue of each point, its signal in each sequence, and its lesions."""

from typing import NamedTuple

import numpy as np
from numba import njit
from scipy import ndimage

from ichkit.phantom.anatomy import AIR, BONE, BRAIN, DURA, FLUID, SCALP, VENTRICLE, tissue_at
from ichkit.phantom.head import Head
from ichkit.phantom.landmarks import INNER_RADII_MM
from ichkit.phantom.lattice import look_up_noise
from ichkit.phantom.render import forget_stale_kernels, smooth

SEQUENCES = ("dwi", "b0", "flair")
"""Diffusion-weighted (b = 1000 s/mm2), the same without diffusion weighting, fluid-attenuated inversion recovery."""
GREY, WHITE = 7, 8
"""Of the tissue codes below; those up to 6 are those of `anatomy`."""
_NO_LESION = -1
_EDGE_CELL_MM, _EDGE = 6.0, 0.35
# Relative to white matter, which is 1 in each sequence. Source: chosen here, in the order that every text book shows:
# fat suppressed and fluid dark in diffusion, fluid brightest in b0, fluid dark and grey matter above white in FLAIR.
_CODES = (AIR, SCALP, BONE, BRAIN, FLUID, VENTRICLE, DURA, GREY, WHITE)
_SIGNALS = {
    "dwi": (0.0, 0.15, 0.03, 1.0, 0.2, 0.2, 0.3, 1.1, 1.0),
    "b0": (0.0, 0.35, 0.05, 1.0, 2.4, 2.5, 0.4, 1.25, 1.0),
    "flair": (0.0, 0.9, 0.08, 1.0, 0.3, 0.2, 0.6, 1.2, 1.0),
}
"""Of the tissues of `_CODES`."""
_DEPTHS = np.array([[-3, 1], [3, -1]]) / 8
_NUM_FIELD = 4


class Lesion(NamedTuple):
    """An ellipsoid with an irregular edge inside the brain.

    Attributes:
        x, y, z: centre, reference mm.
        rx, ry, rz: half axes, mm.
        side: +1 for the left half of the head alone, -1 for the right, 0 for both.
        dwi, b0, flair: factor on the signal of the brain in each of `SEQUENCES`.
    """

    x: float
    y: float
    z: float
    rx: float
    ry: float
    rz: float
    side: float
    dwi: float
    b0: float
    flair: float


class Plane(NamedTuple):
    """A slice in patient millimetres (x to the left, y to the back, z up).

    Attributes:
        first: (3,) centre of its first pixel.
        along_row, along_column: (3,) from a pixel to the next in its row and in its column.
        normal: (3,) of length 1.
        thickness_mm: extent along the normal.
        shape: (rows, columns).
    """

    first: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray
    normal: np.ndarray
    thickness_mm: float
    shape: tuple[int, int]


def draw_tissues(
    plane: Plane, head: Head, rotation: np.ndarray, centre_mm: np.ndarray, lattice: np.ndarray, lesions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The tissue of each pixel of a slice and the number of its lesion, sampled at four alternating depths.

    Args:
        rotation, centre_mm: of the head, as in `render.Pose`.
        lattice: (n, n, n) float32 of `draw_lattice`.
        lesions: (n, 10) float64, rows of `Lesion`; of several at a point the first counts.

    Returns:
        (H, W) uint8 codes and (H, W) int16, -1 without a lesion.
    """
    forget_stale_kernels()
    stretch = np.array(INNER_RADII_MM) / np.array([head.width, head.length, head.height])
    to_head = stretch[:, None] * rotation
    first = to_head @ (plane.first - centre_mm)
    starts = first + (plane.thickness_mm * _DEPTHS)[..., None] * (to_head @ plane.normal)  # (2, 2, 3)
    tissues, numbers = np.zeros(plane.shape, np.uint8), np.full(plane.shape, _NO_LESION, np.int16)
    middle_hu = (head.grey_hu + head.white_hu) / 2
    axes = (to_head @ plane.along_row, to_head @ plane.along_column)
    _rasterise(starts, *axes, head, lattice, lesions, middle_hu, tissues, numbers)
    return tissues, numbers


def show(sequence: str, tissues: np.ndarray, numbers: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """(H, W) float32 signal of a slice in one of `SEQUENCES`, 1 in white matter, before noise.

    Args:
        tissues, numbers: of `draw_tissues`.
        lesions: (n, 10) float64.
    """
    table = np.zeros(max(_CODES) + 1, np.float32)
    table[list(_CODES)] = _SIGNALS[sequence]
    column = Lesion._fields.index(sequence)
    factors = np.append(lesions[:, column], 1.0).astype(np.float32)  # the last is that of -1, no lesion
    return smooth(np.ascontiguousarray(table[tissues] * factors[numbers]))


def draw_field(generator: np.random.Generator, shape: tuple[int, int, int], strength: float) -> np.ndarray:
    """(S, H, W) float32 factor of a coil: smooth, about 1, with a standard deviation of `strength`."""
    coarse = generator.standard_normal((_NUM_FIELD,) * 3)
    zoom = [length / _NUM_FIELD for length in shape]
    field = ndimage.zoom(coarse, zoom, order=3, mode="nearest", grid_mode=True)
    field = (field - field.mean()) / field.std()
    factor: np.ndarray = np.exp(strength * field).astype(np.float32)
    return factor


@njit(cache=True, nogil=True, fastmath=True)
def _rasterise(
    starts: np.ndarray,
    along_row: np.ndarray,
    along_column: np.ndarray,
    head: Head,
    lattice: np.ndarray,
    lesions: np.ndarray,
    middle_hu: float,
    tissues: np.ndarray,
    numbers: np.ndarray,
) -> None:
    """Fills `tissues` and `numbers` (H, W)."""
    rows, columns = tissues.shape
    for i in range(rows):
        for j in range(columns):
            start = starts[i & 1, j & 1]
            x = start[0] + j * along_row[0] + i * along_column[0]
            y = start[1] + j * along_row[1] + i * along_column[1]
            z = start[2] + j * along_row[2] + i * along_column[2]
            if x * x / 9000 + y * y / 11500 + (z * z / 10000 if z > 0 else 0.0) > 1:
                continue
            hu, kind, _ = tissue_at(x, y, z, 1.0, head, lattice)
            if kind != BRAIN:
                tissues[i, j] = kind
                continue
            tissues[i, j] = GREY if hu > middle_hu else WHITE
            numbers[i, j] = _lesion_at(x, y, z, lesions, lattice)


@njit(cache=True, nogil=True, fastmath=True)
def _lesion_at(x: float, y: float, z: float, lesions: np.ndarray, lattice: np.ndarray) -> int:
    """The first lesion that a point of the brain lies in, or -1."""
    for number in range(lesions.shape[0]):
        cx, cy, cz, rx, ry, rz, side = lesions[number, :7]
        if side * x < 0:
            continue
        level = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2
        if level > 2:
            continue
        edge = _EDGE * look_up_noise(lattice, x / _EDGE_CELL_MM + 11, y / _EDGE_CELL_MM, z / _EDGE_CELL_MM)
        if level + edge < 1:
            return number
    return _NO_LESION
