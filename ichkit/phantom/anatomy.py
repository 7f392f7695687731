"""The tissue at each point of the reference head, and its Hounsfield units.

Lengths are reference millimetres; the shapes are in `landmarks`.
"""

import numpy as np
from numba import njit

from ichkit.phantom.head import Head
from ichkit.phantom.landmarks import (
    ball_level,
    base_height,
    below_falx,
    in_tent,
    is_cistern,
    skull_depth,
    smooth_step,
    tent_height,
    ventricle_depth,
)
from ichkit.phantom.lattice import look_up_noise

AIR, SCALP, BONE, BRAIN, FLUID, VENTRICLE, DURA = range(7)
SULCUS_CELL_MM = 3.3
_BEND_CELL_MM, _BEND_MM = 11.0, 2.2


@njit(cache=True, nogil=True, fastmath=True)
def _base_tissue(x: float, y: float, z: float, below: float, head: Head, lattice: np.ndarray) -> tuple[float, int]:
    """Under the floor of the skull: base with air cells, sinuses, orbits, muscle."""
    side = abs(x)
    globe = ball_level(side, y, z, 31, -66, -40, 12, 12, 12)
    if globe < 1:
        return (12.0 if globe < 0.8 else 40.0), SCALP
    if ball_level(side, y, z, 30, -56, -40, 17, 26, 15) < 1:
        return -80.0, SCALP
    if ball_level(x, y, z, 0, -22, -44, 13, 13, 11) < 1 or ball_level(x, y, z, 0, -66, -14, 18, 7, 9) < 1:
        return -900.0, AIR
    noise = look_up_noise(lattice, x / 2.2, y / 2.2, z / 2.2)
    if side < 14 and y < -34 and z < -30:
        return (-900.0 if noise < 0.6 else 500.0), AIR
    if side > 36 and 8 < y < 52 and below > 3 and noise < head.air_cells:
        return -850.0, AIR
    petrous = abs(y - (6 + 0.42 * side)) < 13 and side > 12
    thickness = 26.0 if petrous else 3.0 if y < -30 else 5.0
    if below < thickness or (side > 36 and 8 < y < 52):
        return head.bone_hu * (0.75 + 0.12 * noise), BONE
    return (-75.0 if noise > 0.7 else 50.0 + 4 * noise), SCALP  # fat between muscles


@njit(cache=True, nogil=True, fastmath=True)
def _wall_tissue(outside: float, x: float, y: float, z: float, head: Head) -> tuple[float, int]:
    """Outside the inner table: skull of two tables and diploe, scalp, air."""
    if outside < head.skull_mm:
        t = outside / head.skull_mm
        return (0.45 * head.bone_hu if 0.3 < t < 0.7 else head.bone_hu), BONE
    extra = 0.0
    if head.swelling_mm > 0:
        far = (x - head.swelling_x) ** 2 + (y - head.swelling_y) ** 2 + (z - head.swelling_z) ** 2
        extra = head.swelling_mm * np.exp(-far / 900)
    over = outside - head.skull_mm
    if over > head.scalp_mm + extra:
        return -1000.0, AIR
    if over < 1.2 + extra or over > head.scalp_mm + extra - 1.5:
        return 45.0, SCALP
    return -85.0, SCALP


@njit(cache=True, nogil=True, fastmath=True)
def _deep_tissue(x: float, y: float, z: float, head: Head) -> float:
    """HU of the basal ganglia, thalamus and their calcifications; 0 elsewhere."""
    side = abs(x)
    if side > 36 or y < -36 or y > 42 or z < -14 or z > 26:
        return 0.0
    if head.pineal_hu > 0 and ball_level(x, y, z, 0, 25, 3, 2.6, 3, 2.6) < 1:
        return head.pineal_hu
    if head.choroid_hu > 0 and ball_level(side, y, z, 23, 33, 10, 2.6, 4.5, 3) < 1:
        return head.choroid_hu
    if head.pallidum_hu > 0 and ball_level(side, y, z, 20, 0, 3, 3, 7, 4) < 1:
        return head.pallidum_hu
    if (
        ball_level(side, y, z, 25, -5, 4, 7, 17, 12) < 1
        or ball_level(side, y, z, 10, 9, 6, 8, 13, 9) < 1
        or ball_level(side, y, z, 13, -24, 12, 5, 8, 9) < 1
    ):
        return head.grey_hu + 1
    return 0.0


@njit(cache=True, nogil=True, fastmath=True)
def _midline_tissue(x: float, y: float, z: float, depth: float, head: Head) -> float:
    """HU of falx, tentorium and the great sinuses; 0 elsewhere."""
    lean = x - head.falx_bend_mm * smooth_step(20, -70, y)
    sinus = head.dura_hu + 7 + head.enhancement_hu
    if depth < 7 and z > -6 and abs(lean) < 5 * (1 - depth / 7) and y > -70:
        return sinus
    tent = in_tent(x, y)
    if tent and abs(z - tent_height(x)) < 4.5 and depth < 6 and y > 40:
        return sinus
    if abs(lean) < 1.1 and not below_falx(y, z):
        return head.dura_hu + 0.4 * head.enhancement_hu
    if tent and abs(z - tent_height(x)) < 1.2:
        return head.dura_hu + 0.4 * head.enhancement_hu
    return 0.0


@njit(cache=True, nogil=True, fastmath=True)
def tissue_at(x: float, y: float, z: float, widen: float, head: Head, lattice: np.ndarray) -> tuple[float, int, float]:
    """HU, tissue code and depth below the inner table (mm) at a point of the reference head.

    Args:
        x, y, z: reference millimetres.
        widen: factor on the width of the sulci here; 1 where nothing distends them.
    """
    depth = skull_depth(x, y, z)
    if depth < 0:
        if z < -50 and -depth < head.skull_mm:
            return 48.0, SCALP, depth
        hu, kind = _wall_tissue(-depth, x, y, z, head)
        return hu, kind, depth
    if z < -12:
        below = base_height(x, y) - z
        if below > 0:
            hu, kind = _base_tissue(x, y, z, below, head, lattice)
            return hu, kind, depth
        depth = min(depth, -below)
    hu, kind = _inner_tissue(x, y, z, depth, widen, head, lattice)
    return hu + head.halo_hu * np.exp(-depth / head.halo_mm), kind, depth


@njit(cache=True, nogil=True, fastmath=True)
def _inner_tissue(
    x: float, y: float, z: float, depth: float, widen: float, head: Head, lattice: np.ndarray
) -> tuple[float, int]:
    """HU and tissue code of a point inside the skull, `depth` below its table or above its floor."""
    # Nothing in a brain is as straight as a formula: the inside is bent by some millimetres, less beside the skull.
    free = smooth_step(0, 25, depth)
    bend = _BEND_MM * free
    shift = free * head.shift_mm * np.exp(-((y / 45) ** 2) - ((z - 10) / 35) ** 2)
    bent_x = x - shift + bend * look_up_noise(lattice, x / _BEND_CELL_MM, y / _BEND_CELL_MM, z / _BEND_CELL_MM)
    y += bend * look_up_noise(lattice, x / _BEND_CELL_MM + 30, y / _BEND_CELL_MM, z / _BEND_CELL_MM)
    x = bent_x
    dura = _midline_tissue(x, y, z, depth, head)
    if dura > 0:
        return dura, DURA
    deep = _deep_tissue(x, y, z, head)
    if deep > head.grey_hu + 2:
        return deep, BRAIN
    if ventricle_depth(x, y, z, head.ventricle, head.asymmetry) > 0:
        return head.fluid_hu, VENTRICLE
    if deep > 0:
        return deep, BRAIN
    if is_cistern(x, y, z, widen):
        return head.fluid_hu + 0.2 * head.enhancement_hu, FLUID
    noise = look_up_noise(lattice, x / SULCUS_CELL_MM, y / SULCUS_CELL_MM, 0.5 * z / SULCUS_CELL_MM)
    if y > 10 and z < tent_height(x) and z < 0:  # cerebellum: fine folia, no sulci wide enough to see
        return head.grey_hu - 2 + noise, BRAIN
    near = min(depth, abs(x) + 1.5) if not below_falx(y, z) else depth
    fold = abs(noise)
    if near < 18 and (near < 1 + 4 * head.sulcus or fold < widen * head.sulcus * (1 - near / 18)):
        return head.fluid_hu, FLUID
    if near < 5 or (near < 20 and fold < 0.45):
        return head.grey_hu + 0.1 * head.enhancement_hu, BRAIN
    return head.white_hu, BRAIN
