"""Lesions that change the density of brain tissue in regions of the reference head, added to a drawn slice."""

from typing import NamedTuple

import numpy as np
from numba import njit

from ichkit.phantom.anatomy import BRAIN, FLUID, tissue_at
from ichkit.phantom.head import Head
from ichkit.phantom.lattice import look_up_noise
from ichkit.phantom.render import Drawn, Grid, Pose, forget_stale_kernels, sample_points, smooth

_ROUGH_CELL_MM, _ROUGHNESS = 7.0, 0.12
_GREATEST_CONTRAST_HU = 12.0  # between tissues; the rim beside the skull is brighter by beam hardening


class Lesion(NamedTuple):
    """One lesion: an upright cylinder of elliptic section.

    Attributes:
        x, y: centre, reference mm.
        rx, ry: half axes.
        low, high: heights between which it lies.
        shift_hu: added to the brain.
        contrast: factor on the difference between grey and white matter; below 1 their border fades.
        tissue_hu: value towards which the contrast fades.
        effaced: share of the fluid in its sulci that swollen brain replaces.
        core: half axes of a core as a share of those of the lesion; 0 for none.
        core_hu: added to the brain in the core.
        widened: sulci inside it are wider by this much of the gyral noise.
        bit: its bit in the mask; 0 for none.
    """

    x: float
    y: float
    rx: float
    ry: float
    low: float
    high: float
    shift_hu: float
    contrast: float
    tissue_hu: float
    effaced: float
    core: float
    core_hu: float
    widened: float
    bit: float


def add_lesions(
    drawn: Drawn, grid: Grid, thickness_mm: float, head: Head, pose: Pose, lattice: np.ndarray, lesions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The slice with lesions, (H, W) float32 HU, and their mask, (H, W) uint8.

    The filter of the scanner is linear: the change is sampled like the slice (`render.draw_slice`) and filtered alone.

    Args:
        drawn: the slice without lesions, of the same geometry.
        lesions: (n, 14) float64, one `Lesion` per row; of several at one point the first is drawn.
    """
    forget_stale_kernels()
    shape = drawn.hounsfield.shape
    change, marks = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    if not len(lesions):
        return drawn.hounsfield, marks
    starts, along_row, along_column = sample_points(grid, thickness_mm, head, pose)
    _rasterise(starts, along_row, along_column, head, lattice, lesions, change, marks)
    mask = np.zeros(shape, np.uint8)
    for bit in np.unique(marks[marks > 0]):
        mask[smooth((marks == bit).astype(np.float32)) >= 0.5] |= bit
    return drawn.hounsfield + smooth(change), mask


@njit(cache=True, nogil=True, fastmath=True)
def _rasterise(
    starts: np.ndarray,
    along_row: np.ndarray,
    along_column: np.ndarray,
    head: Head,
    lattice: np.ndarray,
    lesions: np.ndarray,
    change: np.ndarray,
    marks: np.ndarray,
) -> None:
    """Fills `change` (H, W) with HU to add and `marks` (H, W) with the bit of the lesion."""
    for i in range(change.shape[0]):
        for j in range(change.shape[1]):
            start = starts[i & 1, j & 1]
            x = start[0] + j * along_row[0] + i * along_column[0]
            y = start[1] + j * along_row[1] + i * along_column[1]
            z = start[2] + j * along_row[2] + i * along_column[2]
            for row in range(lesions.shape[0]):
                bx, by, rx, ry, low, high = lesions[row, :6]
                if z < low or z >= high or abs(x - bx) > 1.2 * rx or abs(y - by) > 1.2 * ry:
                    continue
                noise = look_up_noise(lattice, x / _ROUGH_CELL_MM, y / _ROUGH_CELL_MM + 17.0, z / _ROUGH_CELL_MM)
                reach = np.sqrt(((x - bx) / rx) ** 2 + ((y - by) / ry) ** 2) + _ROUGHNESS * noise
                if reach > 1:
                    continue
                hu, kind, _ = tissue_at(x, y, z, 1.0, head, lattice)
                if kind in (BRAIN, FLUID):
                    change[i, j] = _change(hu, kind, reach, noise, head, lesions[row])
                    marks[i, j] = np.uint8(lesions[row, 13])
                    break


@njit(cache=True, nogil=True, fastmath=True)
def _change(hu: float, kind: int, reach: float, noise: float, head: Head, lesion: np.ndarray) -> float:
    """HU to add at a point inside a lesion."""
    shift_hu, contrast, tissue_hu, effaced, core, core_hu, widened, _ = lesion[6:]
    if kind == FLUID:
        swollen: float = effaced * (head.grey_hu - hu)
        return swollen
    if abs(noise) < widened:
        open_sulcus: float = head.fluid_hu - hu
        return open_sulcus
    away = min(max(tissue_hu - hu, -_GREATEST_CONTRAST_HU), _GREATEST_CONTRAST_HU)
    added: float = shift_hu + (1 - contrast) * away + (core_hu if reach < core else 0.0)
    return added
