"""Slice geometry: order along the slice normal, gaps, tilt, and orientation of rows and columns."""

import math
from collections.abc import Sequence

import numpy as np

TRANSPOSE, FLIP_ROWS, FLIP_COLUMNS = 1, 2, 4
"""Bits of a turn; the transpose comes first."""
_AXIAL_COSINE = math.cos(math.radians(45.0))


def in_plane_turn(orientation: Sequence[float]) -> int:
    """The rotation or flip of an axial slice to the common orientation: columns to the left, rows to the back.

    The axes nearest to these are taken, so that a tilted gantry or a turned head changes nothing; 0 for an image that
    is already so, or that is not axial.

    Args:
        orientation: ImageOrientationPatient, six direction cosines.

    Returns:
        bits of `TRANSPOSE`, `FLIP_ROWS`, `FLIP_COLUMNS`, for `turn_pixels`.

    Source: DICOM PS3.3 C.7.6.2.1.1: the first three cosines point along a row, x to the left hand side, y to the back.

    Example:
        >>> in_plane_turn([1, 0, 0, 0, 1, 0]), in_plane_turn([-1, 0, 0, 0, -1, 0])
        (0, 6)
    """
    row_x, row_y, row_z, column_x, column_y, column_z = orientation
    x, y = row_y * column_z - row_z * column_y, row_z * column_x - row_x * column_z
    z = row_x * column_y - row_y * column_x
    if abs(z) < _AXIAL_COSINE * math.sqrt(x * x + y * y + z * z):
        return 0
    if abs(row_y) + abs(column_x) > abs(row_x) + abs(column_y):
        to_left, to_back, turn = column_x, row_y, TRANSPOSE
    else:
        to_left, to_back, turn = row_x, column_y, 0
    return turn | (FLIP_ROWS if to_back < 0 else 0) | (FLIP_COLUMNS if to_left < 0 else 0)


def turn_pixels(pixels: np.ndarray, turn: int) -> np.ndarray:
    """(H, W) pixels, rotated or flipped: (H, W), or (W, H) if transposed; a view."""
    if turn & TRANSPOSE:
        pixels = pixels.T
    if turn & FLIP_ROWS:
        pixels = pixels[::-1]
    return pixels[:, ::-1] if turn & FLIP_COLUMNS else pixels


def slice_normals(orientations: np.ndarray) -> np.ndarray:
    """(N, 3) unit normals of slices, each turned so that its z is positive (towards the head).

    Args:
        orientations: (N, 6) direction cosines of rows and columns.

    Source: DICOM PS3.3 C.7.6.2.1.1, ImageOrientationPatient. Where z is zero (a sagittal or coronal image) the first
        component that is not zero is made positive, so that the order is still defined.
    """
    orientations = np.asarray(orientations, np.float64)
    normals = np.cross(orientations[:, :3], orientations[:, 3:])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    normals = np.where(np.abs(normals) < 1e-9, 0.0, normals)
    leading = normals[:, ::-1]  # z first
    first = np.argmax(leading != 0, axis=1)
    sign = np.sign(leading[np.arange(len(leading)), first])
    turned: np.ndarray = normals * np.where(sign == 0, 1.0, sign)[:, None]
    return turned


def is_axial(orientations: np.ndarray, tolerance_degrees: float = 45.0) -> np.ndarray:
    """(N,) True where the slice normal is within the tolerance of the body's long axis.

    Source: chosen here: gantry tilts reach 30 degrees; a sagittal or coronal reformat stands at 90.
    """
    steep: np.ndarray = slice_normals(orientations)[:, 2] >= np.cos(np.radians(tolerance_degrees))
    return steep


def slab_groups(positions_mm: np.ndarray, thickness_mm: float) -> np.ndarray:
    """(N,) number of the slab each slice falls in, counted from the first slice in steps of `thickness_mm`.

    Args:
        positions_mm: (N,) ascending.
        thickness_mm: the wanted distance between slab centres.

    A last slab thinner than half of the others joins the one before it.
    """
    if not len(positions_mm):
        return np.empty(0, np.int64)
    groups = np.floor((positions_mm - positions_mm[0]) / thickness_mm + 1e-6).astype(np.int64)
    groups = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(groups)
    if len(counts) > 1 and counts[-1] * 2 < counts[0]:
        groups[groups == len(counts) - 1] -= 1
    return groups
