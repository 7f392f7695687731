"""The position of the reference head in a volume: rotation, shift and a scale factor for each axis."""

from dataclasses import dataclass

import numpy as np
import scipy

from ichkit.imaging.regions import HALF_AXES_MM

_BONE_HU, _COARSE_MM = 200, 2.0
_BAND = 0.75
"""Slices whose inside has at least this share of the largest area give the turn, the centre and the two factors."""
_CAP = (0.3, 0.9)
"""Slices of the cap with these shares of the largest area give the height."""
_LEAST_AREA_MM2 = 2000.0
_BACK_SHIFT = 0.025
"""The reference skull is wider at the back: its centroid lies this share of its half length behind its centre."""


@dataclass(frozen=True)
class HeadFrame:
    """The reference frame in a volume.

    Attributes:
        centre: row and column of the centre of the brain.
        turn: angle in the picture, in radians, by which the head is turned from its columns to its rows.
        scale: factors from reference millimetres to pixels, along x and y of the head, as (rows, columns) each.
        heights: (S,) reference millimetres of the slices, towards the vertex.
        is_found: False where no skull encloses a brain; the head is then taken to fill the picture.
    """

    centre: tuple[float, float]
    turn: float
    scale: tuple[float, float]
    spacing_mm: tuple[float, float]
    heights: np.ndarray
    is_found: bool

    def to_picture(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, as floats, of points of the reference frame in mm."""
        across, down = x * self.scale[0], y * self.scale[1]
        cosine, sine = np.cos(self.turn), np.sin(self.turn)
        right, below = cosine * across - sine * down, sine * across + cosine * down
        return self.centre[0] + below / self.spacing_mm[0], self.centre[1] + right / self.spacing_mm[1]

    def to_reference(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """X and y in reference mm of pixels; the inverse of `to_picture`."""
        below, right = (rows - self.centre[0]) * self.spacing_mm[0], (columns - self.centre[1]) * self.spacing_mm[1]
        cosine, sine = np.cos(self.turn), np.sin(self.turn)
        return (cosine * right + sine * below) / self.scale[0], (cosine * below - sine * right) / self.scale[1]


def find_head_frame(volume_hu: np.ndarray, spacing_mm: tuple[float, float], positions_mm: np.ndarray) -> HeadFrame:
    """The reference frame by the inside of the skull, slice by slice.

    Moments of the inside give its centre, turn and half axes; the area of the cap, which shrinks towards the vertex as
    that of the reference head does, gives the height. A nod or a roll of the head and a tilted gantry are not undone.

    Args:
        volume_hu: (S, H, W) int16 HU.
        positions_mm: (S,) towards the vertex; NaN if unknown, then slices of 5 mm are assumed.

    Source: chosen here, in place of the template registration of Jung and Whangbo 2020, which names no method.
    """
    positions = np.asarray(positions_mm, np.float64)
    if not np.isfinite(positions).all() or len(np.unique(positions)) < len(positions):
        positions = 5.0 * np.arange(len(volume_hu), dtype=np.float64)
    steps = tuple(max(1, int(_COARSE_MM / size)) for size in spacing_mm)
    coarse = volume_hu[:, :: steps[0], :: steps[1]]
    pixel_mm = (steps[0] * spacing_mm[0], steps[1] * spacing_mm[1])
    inside = np.stack([_fill(one > _BONE_HU) for one in coarse])
    areas = inside.sum((1, 2)) * pixel_mm[0] * pixel_mm[1]
    if not len(areas) or areas.max() < _LEAST_AREA_MM2:
        middle = ((volume_hu.shape[1] - 1) / 2, (volume_hu.shape[2] - 1) / 2)
        return HeadFrame(middle, 0.0, (1.0, 1.0), spacing_mm, positions - np.median(positions), is_found=False)
    widest = int(areas.argmax())
    band = np.flatnonzero((areas >= _BAND * areas.max()) & (np.arange(len(areas)) >= widest - 1))
    centre, turn, axes = _measure(inside[band], pixel_mm)
    scale = (axes[0] / HALF_AXES_MM[0], axes[1] / HALF_AXES_MM[1])
    shift = _BACK_SHIFT * axes[1]
    row = centre[0] * steps[0] - shift * np.cos(turn) / spacing_mm[0]
    column = centre[1] * steps[1] + shift * np.sin(turn) / spacing_mm[1]
    shares = areas / areas.max()
    cap = np.flatnonzero((shares > _CAP[0]) & (shares < _CAP[1]) & (np.arange(len(areas)) > widest))
    of_height = float(np.sqrt(scale[0] * scale[1]))
    # Of the reference skull the area at height z is that at its centre times 1 - (z / c)^2.5.
    expected = HALF_AXES_MM[2] * (1 - shares[cap]) ** 0.4
    zero = float(np.median(positions[cap] - of_height * expected)) if len(cap) else float(positions[widest])
    return HeadFrame((row, column), turn, scale, spacing_mm, (positions - zero) / of_height, is_found=True)


def _fill(bone: np.ndarray) -> np.ndarray:
    """(h, w) bool: the largest area that bone encloses."""
    labels, count = scipy.ndimage.label(scipy.ndimage.binary_fill_holes(bone) & ~bone)
    if not count:
        return np.zeros_like(bone)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _measure(
    inside: np.ndarray, pixel_mm: tuple[float, float]
) -> tuple[tuple[float, float], float, tuple[float, float]]:
    """Mean centre (row, column) in pixels, turn, and the half axes across and along the head at its widest, in mm."""
    centres, spreads = [], []
    for one in inside:
        rows, columns = np.nonzero(one)
        below, right = (rows - rows.mean()) * pixel_mm[0], (columns - columns.mean()) * pixel_mm[1]
        centres.append((rows.mean(), columns.mean()))
        spreads.append(np.cov(np.stack([right, below])))
    row, column = np.mean(centres, axis=0)
    spread = np.mean(spreads, axis=0)
    values, vectors = np.linalg.eigh(spread)
    down = vectors[:, 1] * np.sign(vectors[1, 1] or 1.0)  # of a head: longer from front to back
    turn = float(np.arctan2(-down[0], down[1]))
    # An ellipse of half axis a has variance a^2 / 4; slices of the band have on average some less area than the widest.
    areas = [one.sum() for one in inside]
    grown = float(np.sqrt(max(areas) / np.mean(areas)))
    across, along = (2 * grown * float(np.sqrt(value)) for value in values)
    return (float(row), float(column)), turn, (across, along)
