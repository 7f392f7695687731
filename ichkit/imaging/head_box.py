"""The box around the head in a volume, without air, table, headrest and tubes."""

from dataclasses import dataclass

import cv2
import numba
import numpy as np
import scipy

MARGIN_MM = 6.0
"""Around the head, so that the coarse grid and a blurred scalp never cut it."""
_COARSE_MM = 2.0
_LOWEST, _HIGHEST = -1000, 1500
_BODY_HU, _BONE_HU = -300, 200
# Of a volume in HU, what is above `_BODY_HU` has a median near that of soft tissue, unless bone or foam fill it.
_TISSUE_HU = (-150, 300)
# Of values of another scale: bone is brighter than the median tissue by this share of the step from air to tissue.
_BONE_STEP = 0.25
# Shells of headrests and tables, cables and most tubes are thinner than twice this; no part of a brain case is.
_THIN_MM = 5.0
_NEAR_BONE_MM = 10.0
# Scalp, swelling and a bulging brain reach less far beyond the skull; a cushion under the head often reaches further.
_BEYOND_BONE_MM = 20.0
_LEAST_AREA_MM2 = 1000.0
# Series of one study, or halves with an empty slice between them, are components of their own.
_SHARE_OF_LARGEST = 0.2


@dataclass(frozen=True)
class Box:
    """A rectangle of a picture, in pixels: rows top to top + height - 1, columns left to left + width - 1."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The (S, height, width) part of an (S, H, W) volume, a view."""
        return volume[:, self.top : self.top + self.height, self.left : self.left + self.width]


def find_head_box(volume_hu: np.ndarray, spacing_mm: tuple[float, float]) -> Box | None:
    """The square box around the head over all slices of a volume, with a margin, inside the picture.

    Threshold, removal of thin structures in each slice, and components over the whole volume on a grid of about 2 mm.
    The head is the component with the most soft tissue near bone, so that a large table does not win; what reaches far
    beyond its bone, such as a cushion it lies on, is left out. A box that would leave the picture is moved inside; a
    picture narrower than the box keeps its whole width.

    Args:
        volume_hu: (S, H, W) int16 HU, any S from 1. Values of another scale are taken too where air is darker than
            tissue and tissue darker than bone.
        spacing_mm: between rows and between columns.

    Returns:
        The box, or None where no head is found: nothing but air, or no bone.

    Source: chosen here. Lengths are those of adult and child heads; measured by `benchmarks/crop.py`.
    """
    steps = tuple(max(1, int(_COARSE_MM / spacing)) for spacing in spacing_mm)
    coarse = _mean_of_blocks(volume_hu, *steps)
    pixel_mm = (steps[0] * spacing_mm[0], steps[1] * spacing_mm[1])
    body_level, bone_level = _find_levels(coarse)
    bone = (coarse > bone_level).astype(np.uint8)
    body = _open_slices((coarse > body_level).astype(np.uint8), _disc(_THIN_MM, pixel_mm))
    found = _find_head(body, bone, pixel_mm)
    if found is None:
        return None
    return _square(found, steps, spacing_mm, volume_hu.shape[1:])


@numba.njit(cache=True, nogil=True)
def _mean_of_blocks(volume: np.ndarray, step_row: int, step_col: int) -> np.ndarray:
    """(S, ceil(H / step_row), ceil(W / step_col)) int16: means of blocks; blocks at the far edges may be smaller."""
    num_slices, height, width = volume.shape
    rows, columns = -(-height // step_row), -(-width // step_col)
    means = np.empty((num_slices, rows, columns), np.int16)
    sums = np.empty(columns, np.int64)
    for s in range(num_slices):
        for i in range(rows):
            sums[:] = 0
            last = min((i + 1) * step_row, height)
            for y in range(i * step_row, last):
                for j in range(columns):
                    total = 0
                    for x in range(j * step_col, min((j + 1) * step_col, width)):
                        total += min(max(int(volume[s, y, x]), _LOWEST), _HIGHEST)
                    sums[j] += total
            for j in range(columns):
                across = min((j + 1) * step_col, width) - j * step_col
                means[s, i, j] = np.int16(sums[j] // (across * (last - i * step_row)))
    return means


def _find_levels(coarse: np.ndarray) -> tuple[float, float]:
    """The thresholds of body and bone: fixed HU, or by Otsu's method if the values cannot be HU."""
    tissue = coarse[coarse > _BODY_HU]
    if not tissue.size or (tissue.size < coarse.size and _TISSUE_HU[0] <= np.median(tissue) <= _TISSUE_HU[1]):
        return _BODY_HU, _BONE_HU
    body = otsu(coarse)
    air, bright = coarse[coarse <= body], coarse[coarse > body]
    if not bright.size:
        return _BODY_HU, _BONE_HU
    middle = float(np.median(bright))
    return body, middle + _BONE_STEP * (middle - float(np.median(air)))


def otsu(values: np.ndarray) -> float:
    """The threshold with the largest variance between what is above and what is not (Otsu 1979)."""
    levels, counts = np.unique(values, return_counts=True)
    weight = np.cumsum(counts)[:-1] / values.size
    sums = np.cumsum(counts * levels.astype(np.float64)) / values.size
    if not len(weight):
        return float(levels[0])
    between = (sums[-1] * weight - sums[:-1]) ** 2 / (weight * (1 - weight))
    return float(levels[int(between.argmax())])


def _disc(radius_mm: float, pixel_mm: tuple[float, float]) -> np.ndarray:
    """(2a + 1, 2b + 1) uint8 ellipse of that radius; a single pixel where pixels are larger than it."""
    down, across = (int(radius_mm / size) for size in pixel_mm)
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * across + 1, 2 * down + 1)))


def _open_slices(mask: np.ndarray, disc: np.ndarray) -> np.ndarray:
    """(S, h, w) uint8 after morphological opening with the disc."""
    return np.stack([cv2.morphologyEx(one, cv2.MORPH_OPEN, disc) for one in mask])


def _find_head(body: np.ndarray, bone: np.ndarray, pixel_mm: tuple[float, float]) -> Box | None:
    """The box of the head in pixels of the coarse grid.

    Args:
        body, bone: (S, h, w) uint8 masks.
    """
    labels, _ = scipy.ndimage.label(body)
    disc = _disc(_NEAR_BONE_MM, pixel_mm)
    near = np.stack([cv2.dilate(one, disc) for one in bone]).astype(bool) & (bone == 0)
    areas = np.bincount(labels[near], minlength=int(labels.max()) + 1)
    areas[0] = 0
    heads = np.flatnonzero(areas >= max(_SHARE_OF_LARGEST * areas.max(), 1))
    is_head = np.isin(labels, heads) & (labels > 0)
    largest = int(is_head.sum((1, 2)).max(initial=0))
    skull = _bounds((is_head & (bone > 0)).any(0))
    if skull is None or largest * pixel_mm[0] * pixel_mm[1] < _LEAST_AREA_MM2:
        return None
    outline = _bounds(is_head.any(0))
    assert outline is not None  # the skull lies in it
    sides = []
    for axis, size in enumerate(pixel_mm):
        reach = round(_BEYOND_BONE_MM / size)
        sides.append((max(outline[axis][0], skull[axis][0] - reach), min(outline[axis][1], skull[axis][1] + reach)))
    (top, bottom), (left, right) = sides
    return Box(top, left, bottom - top, right - left)


def _bounds(mask: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """First and past-last row and column of the set pixels of an (h, w) mask."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def _square(coarse: Box, steps: tuple[int, ...], spacing_mm: tuple[float, float], shape: tuple[int, ...]) -> Box:
    """The box on the fine grid, square in millimetres, with its margin, moved and clipped into the picture."""
    firsts = (coarse.top * steps[0], coarse.left * steps[1])
    lengths = (coarse.height * steps[0], coarse.width * steps[1])
    ends = [min(first + length, limit) for first, length, limit in zip(firsts, lengths, shape, strict=True)]
    extents = [(end - first) * size for first, end, size in zip(firsts, ends, spacing_mm, strict=True)]
    side_mm = max(extents) + 2 * MARGIN_MM
    found = []
    for first, end, size, limit in zip(firsts, ends, spacing_mm, shape, strict=True):
        length = min(int(np.ceil(side_mm / size)), limit)
        found.append((min(max((first + end - length) // 2, 0), limit - length), length))
    (top, height), (left, width) = found
    return Box(top, left, height, width)
