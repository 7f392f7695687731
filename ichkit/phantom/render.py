"""Slices of a head: analytic shapes sampled at several depths, which gives the partial volume effect of a scanner."""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from ichkit.phantom.anatomy import AIR, tissue_at
from ichkit.phantom.bleeds import CLASS_OF_SHAPE, SUBTYPES, bleed_at, sulcus_factor
from ichkit.phantom.head import Head
from ichkit.phantom.landmarks import INNER_RADII_MM

_HEADREST_HU = 120.0
# Depth of each pixel of a 2 x 2 tile, as a share of the slice thickness.
_DEPTHS = np.array([[-3, 1], [3, -1]]) / 8


class Grid(NamedTuple):
    """The pixel grid of a slice in patient millimetres (x left, y back, z up).

    Attributes:
        x, y, z: centre of the first pixel (ImagePositionPatient).
        spacing: pixel size, mm.
        tilt_cos, tilt_sin: a row's direction is (1, 0, 0), a column's (0, tilt_cos, -tilt_sin).
    """

    x: float
    y: float
    z: float
    spacing: float
    tilt_cos: float
    tilt_sin: float


@dataclass(frozen=True)
class Pose:
    """Rotation and position of a head in the scanner.

    Attributes:
        rotation: (3, 3) from patient axes to head axes.
        centre_mm: (3,) centre of the brain in patient millimetres.
    """

    rotation: np.ndarray
    centre_mm: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """One slice as drawn, before noise.

    Attributes:
        hounsfield: (H, W) float32.
        bits: (H, W) uint8; bit c is set if class c of `SUBTYPES` fills at least half of the slice's thickness.
        area_mm2: (5,) float64 area of each class in `bits`.
    """

    hounsfield: np.ndarray
    bits: np.ndarray
    area_mm2: np.ndarray


def draw_pose(generator: np.random.Generator, centre_z_mm: float, turn_degrees: float = 5.0) -> Pose:
    """A random pose: rotated by a few degrees about each axis and a few millimetres off centre.

    Args:
        turn_degrees: standard deviation of the rotation about the axes of height and width.
    """
    yaw, nod, roll = np.deg2rad(
        [generator.normal(0, turn_degrees), generator.normal(0, turn_degrees), generator.normal(0, 3)]
    )
    cz, sz, cx, sx, cy, sy = np.cos(yaw), np.sin(yaw), np.cos(nod), np.sin(nod), np.cos(roll), np.sin(roll)
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    centre = np.array([generator.normal(0, 4), generator.normal(0, 4), centre_z_mm])
    return Pose(about_z @ about_x @ about_y, centre)


def draw_slice(
    grid: Grid,
    thickness_mm: float,
    shape: tuple[int, int],
    head: Head,
    pose: Pose,
    lattice: np.ndarray,
    bleeds: np.ndarray,
    lookalikes: np.ndarray | None = None,
) -> Drawn:
    """One slice of a head.

    Each pixel is sampled once, at one of four depths that alternate in a 2 x 2 pattern. The binomial filter that models
    the scanner's resolution removes exactly the frequencies of this pattern, so that the result is the mean over four
    depths at a quarter of the cost.

    Args:
        thickness_mm: extent along the slice normal that is averaged.
        shape: (rows, columns).
        lattice: (n, n, n) float32 of `draw_lattice`.
        bleeds: (n, 10) float64 of `draw_bleeds`.
        lookalikes: (m, 10) float64 of `draw_lookalikes`, drawn below the bleeds and not in the mask; None for none.
    """
    forget_stale_kernels()
    starts, along_row, along_column = sample_points(grid, thickness_mm, head, pose)
    sampled = np.empty(shape, np.float32)
    shapes = np.full(shape, -1, np.int8)
    table = (grid.x - pose.centre_mm[0], grid.y - pose.centre_mm[1], grid.spacing)
    under = np.empty((0, bleeds.shape[1])) if lookalikes is None else lookalikes
    _rasterise(starts, along_row, along_column, head, lattice, bleeds, under, table, sampled, shapes)
    bits = _gather_bits(shapes) if len(bleeds) else np.zeros(shape, np.uint8)
    counts = np.array([np.count_nonzero(bits & 1 << c) for c in range(len(SUBTYPES))])
    return Drawn(smooth(sampled), bits, counts * grid.spacing**2)


def sample_points(grid: Grid, thickness_mm: float, head: Head, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sampled points of a slice in reference millimetres: those of the first tile, and the steps between pixels.

    Returns:
        (2, 2, 3) points of the first pixel at each depth of the tile, (3,) steps to the next column and row.
    """
    to_head = head_stretch(head)[:, None] * pose.rotation
    along_row = grid.spacing * to_head @ np.array([1.0, 0.0, 0.0])
    along_column = grid.spacing * to_head @ np.array([0.0, grid.tilt_cos, -grid.tilt_sin])
    normal = to_head @ np.array([0.0, grid.tilt_sin, grid.tilt_cos])
    first = to_head @ (np.array([grid.x, grid.y, grid.z]) - pose.centre_mm)
    starts = first + (thickness_mm * _DEPTHS)[..., None] * normal  # (2, 2, 3)
    return starts, along_row, along_column


def head_stretch(head: Head) -> np.ndarray:
    """(3,) factors from millimetres of a head to reference millimetres."""
    stretch: np.ndarray = np.array(INNER_RADII_MM) / np.array([head.width, head.length, head.height])
    return stretch


@functools.cache
def forget_stale_kernels() -> None:
    """Removes compiled kernels older than any module of this package, once per process, before the first is loaded.

    numba 0.68 checks only the file of a kernel, not the files of kernels it calls, and would use an outdated anatomy.
    """
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    # Kernels in a read-only folder were not compiled here and cannot be stale.
    with contextlib.suppress(OSError):
        for index in Path(_rasterise.stats.cache_path or ".").glob("*.nbi"):
            if index.stat().st_mtime < newest:
                index.unlink()


@njit(cache=True, nogil=True, fastmath=True)
def smooth(image: np.ndarray) -> np.ndarray:
    """(H, W) float32 after the 3 x 3 binomial filter, borders kept; white noise of deviation 1 falls to 3/8."""
    rows, columns = image.shape
    out = image.copy()
    for i in range(1, rows - 1):
        for j in range(1, columns - 1):
            above = image[i - 1, j - 1] + 2 * image[i - 1, j] + image[i - 1, j + 1]
            here = image[i, j - 1] + 2 * image[i, j] + image[i, j + 1]
            below = image[i + 1, j - 1] + 2 * image[i + 1, j] + image[i + 1, j + 1]
            out[i, j] = (above + 2 * here + below) / 16
    return out


@njit(cache=True, nogil=True, fastmath=True)
def _rasterise(
    starts: np.ndarray,
    along_row: np.ndarray,
    along_column: np.ndarray,
    head: Head,
    lattice: np.ndarray,
    bleeds: np.ndarray,
    lookalikes: np.ndarray,
    table: tuple[float, float, float],
    sampled: np.ndarray,
    shapes: np.ndarray,
) -> None:
    """Fills `sampled` (H, W) with HU and `shapes` (H, W) with the bleed's shape or -1."""
    rows, columns = sampled.shape
    for i in range(rows):
        for j in range(columns):
            start = starts[i & 1, j & 1]
            x = start[0] + j * along_row[0] + i * along_column[0]
            y = start[1] + j * along_row[1] + i * along_column[1]
            z = start[2] + j * along_row[2] + i * along_column[2]
            if x * x / 9000 + y * y / 11500 + (z * z / 10000 if z > 0 else 0.0) > 1:
                sampled[i, j] = _headrest(table[0] + j * table[2], table[1] + i * table[2])
                continue
            hu, kind, depth = tissue_at(x, y, z, sulcus_factor(x, y, z, bleeds), head, lattice)
            if kind == AIR and hu < -990:
                hu = _headrest(table[0] + j * table[2], table[1] + i * table[2])
            else:
                if lookalikes.shape[0] > 0:
                    hu, _ = bleed_at(x, y, z, kind, depth, hu, lookalikes, lattice)
                if bleeds.shape[0] > 0:
                    hu, shape = bleed_at(x, y, z, kind, depth, hu, bleeds, lattice)
                    shapes[i, j] = shape
            sampled[i, j] = hu


@njit(cache=True, nogil=True)
def _gather_bits(shapes: np.ndarray) -> np.ndarray:
    """(H, W) uint8: bit c is set where class c holds two or more of the four depths around a pixel's corner."""
    rows, columns = shapes.shape
    bits = np.zeros((rows, columns), np.uint8)
    count = np.zeros(len(SUBTYPES), np.uint8)
    for i in range(rows - 1):
        for j in range(columns - 1):
            count[:] = 0
            for k in range(4):
                shape = shapes[i + k // 2, j + k % 2]
                if shape >= 0:
                    count[CLASS_OF_SHAPE[shape]] += 1
            for c in range(len(SUBTYPES)):
                if count[c] >= 2:
                    bits[i, j] |= np.uint8(1 << c)
    return bits


@njit(cache=True, nogil=True, fastmath=True)
def _headrest(x: float, y: float) -> float:
    """HU of the headrest, a shell under the head, or of air."""
    if y > 25:
        r = np.sqrt(x * x + (y - 8) ** 2)
        if 112 < r < 114.5 and y > 30 + 0.1 * abs(x):
            return _HEADREST_HU
    return -1000.0
