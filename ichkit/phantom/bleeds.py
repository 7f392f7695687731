"""The five subtypes of hemorrhage as shapes in the reference head, each in its typical location."""

from typing import NamedTuple

import numpy as np
from numba import njit

from ichkit.phantom.anatomy import BRAIN, DURA, FLUID, SULCUS_CELL_MM, VENTRICLE
from ichkit.phantom.difficulty import DEMO, Difficulty
from ichkit.phantom.landmarks import (
    CORONAL_SUTURE_MM,
    INNER_RADII_MM,
    LAMBDOID_SUTURE_MM,
    ball_level,
    below_falx,
    in_tent,
    tent_height,
)
from ichkit.phantom.lattice import look_up_noise

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
LENS, BLOB, LAYER, SULCI, CRESCENT, ALONG_FALX, ON_TENT = range(7)
# Class of each shape: its position in SUBTYPES.
CLASS_OF_SHAPE = np.array([0, 1, 2, 3, 4, 4, 4])
_OEDEMA_HU = 19.0
_OCCIPITAL_MM = 50.0  # blood level in the tips of the occipital horns


class Bleed(NamedTuple):
    """One bleed; the shape decides which fields are used.

    Attributes:
        shape: LENS, BLOB, LAYER, SULCI, CRESCENT, ALONG_FALX or ON_TENT.
        x, y, z: centre, reference mm; for LAYER y is the fluid level.
        rx, ry, rz: half axes, mm; for sheets rx is the greatest thickness.
        side: +1 left, -1 right, 0 both.
        hu: 55-85 for fresh blood, near brain for older blood.
        rim_mm: width of the dark rim of a BLOB.
    """

    shape: float
    x: float
    y: float
    z: float
    rx: float
    ry: float
    rz: float
    side: float
    hu: float
    rim_mm: float


def draw_bleeds(generator: np.random.Generator, subtypes: tuple[str, ...], difficulty: Difficulty = DEMO) -> np.ndarray:
    """(n, 10) float64, one `Bleed` per row, one or more for each requested subtype."""
    rows: list[Bleed] = []
    for subtype in subtypes:
        num_places = 1 + (difficulty.second_share > 0 and generator.random() < difficulty.second_share)
        for _ in range(num_places):
            drawn = _DRAWERS[subtype](generator, difficulty)
            rows += drawn if difficulty.size_factor == (1, 1) else _resize(generator, drawn, difficulty)
    return np.array(rows, np.float64).reshape(-1, len(Bleed._fields))


def _resize(generator: np.random.Generator, bleeds: list[Bleed], difficulty: Difficulty) -> list[Bleed]:
    """The bleeds of one place, all larger or smaller by the same factor, stretched along each axis."""
    size = np.exp(generator.uniform(*np.log(difficulty.size_factor)))
    spread = np.log(difficulty.stretch)
    fx, fy, fz = size * np.exp(generator.uniform(-spread, spread, 3))
    # A thin sheet of blood still covers much of the surface; a little blood in a ventricle lies at its back.
    wide = size**-0.5
    return [
        bleed._replace(y=bleed.y + (1 - size) * (_OCCIPITAL_MM - bleed.y))
        if bleed.shape == LAYER
        else bleed._replace(rx=bleed.rx * fx, ry=bleed.ry * fy * wide, rz=bleed.rz * fz * wide)
        if bleed.shape in (CRESCENT, ALONG_FALX, ON_TENT)
        else bleed._replace(rx=bleed.rx * fx, ry=bleed.ry * fy, rz=bleed.rz * fz)
        for bleed in bleeds
    ]


def _draw_hu(generator: np.random.Generator, difficulty: Difficulty) -> float:
    # Isodense blood is some days old, or of a patient with little haemoglobin.
    is_old = generator.random() < difficulty.old_share
    return generator.uniform(*(difficulty.old_hu if is_old else difficulty.fresh_hu))


def _draw_epidural(generator: np.random.Generator, difficulty: Difficulty) -> list[Bleed]:
    side = generator.choice([-1.0, 1.0])
    y = generator.uniform(CORONAL_SUTURE_MM + 6, LAMBDOID_SUTURE_MM - 14)
    z = generator.uniform(-8, 50)
    v, w = y / INNER_RADII_MM[1], max(z, 0.0) / INNER_RADII_MM[2]
    x = side * INNER_RADII_MM[0] * (1 + 0.1 * v) * np.sqrt(max(1 - v * v - w * w, 0.01))
    radius = generator.uniform(24, 33)
    return [Bleed(LENS, x, y, z, generator.uniform(18, 30), radius, radius, side, _draw_hu(generator, difficulty), 0)]


def _draw_intraparenchymal(generator: np.random.Generator, difficulty: Difficulty) -> list[Bleed]:
    side = generator.choice([-1.0, 1.0])
    place = generator.random()
    if place < 0.4:  # basal ganglia and thalamus, where hypertension bleeds
        x, y, z = generator.uniform(18, 30), generator.uniform(-12, 14), generator.uniform(0, 16)
    elif place < 0.85:  # lobes
        x, y, z = generator.uniform(22, 40), generator.uniform(-45, 50), generator.uniform(14, 54)
    else:  # cerebellum
        x, y, z = generator.uniform(10, 28), generator.uniform(42, 52), generator.uniform(-38, -24)
    rx, ry, rz = generator.uniform(13, 21), generator.uniform(15, 27), generator.uniform(14, 23)
    return [Bleed(BLOB, side * x, y, z, rx, ry, rz, side, _draw_hu(generator, difficulty), generator.uniform(3, 7))]


def _draw_intraventricular(generator: np.random.Generator, difficulty: Difficulty) -> list[Bleed]:
    # Blood sinks to the back in a patient who lies on it; a cast fills one ventricle to the front.
    if generator.random() < 0.3:
        return [Bleed(LAYER, 0, -60, 5, 0, 0, 0, generator.choice([-1.0, 1.0]), _draw_hu(generator, difficulty), 0)]
    return [Bleed(LAYER, 0, generator.uniform(-20, 26), 5, 0, 0, 0, 0, _draw_hu(generator, difficulty), 0)]


def _draw_subarachnoid(generator: np.random.Generator, difficulty: Difficulty) -> list[Bleed]:
    hu = _draw_hu(generator, difficulty)
    side = generator.choice([-1.0, 1.0])
    if generator.random() < 0.65:  # aneurysm: basal cisterns and both Sylvian fissures
        reach = generator.uniform(45, 65)
        return [Bleed(SULCI, side * 8, -10, -8, reach, reach * 0.8, generator.uniform(20, 32), side, hu, 0)]
    y, z = generator.uniform(-35, 35), generator.uniform(15, 62)
    reach = generator.uniform(30, 45)
    return [Bleed(SULCI, side * 45, y, z, reach, reach, generator.uniform(18, 30), side, hu, 0)]


def _draw_subdural(generator: np.random.Generator, difficulty: Difficulty) -> list[Bleed]:
    side = generator.choice([-1.0, 1.0])
    hu = _draw_hu(generator, difficulty)
    place = generator.random()
    if place < 0.75:
        y, z = generator.uniform(-15, 15), generator.uniform(0, 50)
        reach, height = generator.uniform(55, 80), generator.uniform(20, 32)
        return [Bleed(CRESCENT, 0, y, z, generator.uniform(9, 17), reach, height, side, hu, 0)]
    falx = Bleed(ALONG_FALX, 0, generator.choice([-45.0, 45.0]), 30, generator.uniform(7, 12), 45, 32, side, hu, 0)
    if place < 0.9:
        return [falx]
    return [falx, Bleed(ON_TENT, 0, 40, 0, generator.uniform(6, 9), 40, 40, side, hu, 0)]


_DRAWERS = {
    "epidural": _draw_epidural,
    "intraparenchymal": _draw_intraparenchymal,
    "intraventricular": _draw_intraventricular,
    "subarachnoid": _draw_subarachnoid,
    "subdural": _draw_subdural,
}


@njit(cache=True, nogil=True, fastmath=True)
def sulcus_factor(x: float, y: float, z: float, bleeds: np.ndarray) -> float:
    """Factor on the width of the sulci: blood in them holds them open."""
    for row in range(bleeds.shape[0]):
        if bleeds[row, 0] == SULCI:
            _, bx, by, bz, rx, ry, rz, _, _, _ = bleeds[row]
            if ball_level(x, y, z, bx, by, bz, rx, ry, rz) < 1:
                return 3.5
    return 1.0


@njit(cache=True, nogil=True, fastmath=True)
def _in_sheet(shape: float, x: float, y: float, z: float, depth: float, bleed: np.ndarray) -> bool:
    """Whether a point lies in a bleed that hugs skull, falx or tentorium."""
    _, bx, by, bz, rx, ry, rz, side, _, _ = bleed
    if shape == LENS:
        if y < CORONAL_SUTURE_MM or y > LAMBDOID_SUTURE_MM:
            return False
        far = (x - bx) ** 2 + (y - by) ** 2 + (z - bz) ** 2 - depth * depth
        in_lens: bool = depth < rx * (1 - far / (ry * ry))
        return in_lens
    taper = 1 - ((y - by) / ry) ** 2 - ((z - bz) / rz) ** 2
    if taper <= 0:
        return False
    if shape == CRESCENT:
        in_crescent: bool = x * side > 3 and depth < rx * np.sqrt(taper)
        return in_crescent
    if shape == ALONG_FALX:
        return 0 < x * side < rx * np.sqrt(taper) and not below_falx(y, z)
    above = z - tent_height(x)
    return x * side > 0 and in_tent(x, y) and 0 < above < rx * np.sqrt(taper)


@njit(cache=True, nogil=True, fastmath=True)
def bleed_at(
    x: float, y: float, z: float, kind: int, depth: float, hu: float, bleeds: np.ndarray, lattice: np.ndarray
) -> tuple[float, int]:
    """HU and shape (-1 for none) at a point of the reference head after bleeding.

    Args:
        kind, depth, hu: what `tissue_at` says of the point.
    """
    if kind not in (BRAIN, FLUID, VENTRICLE, DURA) or depth < 0:
        return hu, -1
    found = -1
    cell = 2.5 * SULCUS_CELL_MM
    rough = look_up_noise(lattice, x / cell + 11.0, y / cell, z / cell)
    for row in range(bleeds.shape[0]):
        shape, bx, by, bz, rx, ry, rz, side, blood_hu, rim_mm = bleeds[row]
        if shape == BLOB:
            q = np.sqrt(ball_level(x, y, z, bx, by, bz, rx, ry, rz)) + 0.14 * rough
            if q < 1 and kind != DURA:
                hu, found = blood_hu + 3 * rough, int(shape)
            elif q < 1 + rim_mm / ry and kind == BRAIN and found < 0:
                hu = _OEDEMA_HU
        elif shape == LAYER:
            if kind == VENTRICLE and y > by + 2 * rough and (side == 0 or x * side > 0):
                hu, found = blood_hu + 3 * rough, int(shape)
        elif shape == SULCI:
            if kind == FLUID:
                q = ball_level(x, y, z, bx, by, bz, rx, ry, rz)
                if q < 1 + 0.2 * rough:
                    hu, found = blood_hu + 3 * rough, int(shape)
        elif kind != DURA and _in_sheet(shape, x, y, z, depth, bleeds[row]):
            hu, found = blood_hu + 3 * rough, int(shape)
    return hu, found
