"""A head as formulas: one kernel says which tissue is at a point and what it measures in Hounsfield units.

Reference frame: millimetres, x to the patient's left, y to the back, z to the vertex, origin in the middle of the brain.
Every head is the reference head stretched, so anatomy is written once, in reference millimetres.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from scipy import ndimage

LATTICE_CELLS = 64  # a power of two, so that periods are a mask
SULCUS_CELL_MM = 3.3
BEND_CELL_MM, BEND_MM = 11.0, 2.2
INNER_RADII_MM = (68.0, 84.0, 74.0)
AIR, SCALP, BONE, BRAIN, FLUID, VENTRICLE, DURA = range(7)

# Lateral ventricle of one side: (x, y, z, radius) at the ends of each segment; the other side is its mirror image.
_VENTRICLE = np.array(
    [
        [6.5, -34.0, 8.0, 3.6, 6.5, -10.0, 19.0, 5.0],  # frontal horn
        [6.5, -10.0, 19.0, 5.0, 13.0, 22.0, 20.0, 5.5],  # body
        [13.0, 22.0, 20.0, 5.5, 24.0, 34.0, 9.0, 7.0],  # atrium
        [24.0, 34.0, 9.0, 7.0, 20.0, 57.0, 3.0, 3.2],  # occipital horn
        [24.0, 34.0, 9.0, 7.0, 32.0, 4.0, -17.0, 3.0],  # temporal horn
    ]
)


class Head(NamedTuple):
    """What makes one head differ from another.

    Attributes:
        width, length, height: half axes of the skull's inner table, mm.
        skull_mm: thickness of the skull.
        scalp_mm: thickness of the scalp.
        sulcus: width of the sulci in units of the gyral noise; grows with atrophy.
        ventricle: factor on the radii of the ventricles.
        asymmetry: how much wider the left ventricle is than the right one, as a factor on its radius.
        grey_hu, white_hu, fluid_hu, dura_hu, bone_hu: tissue values.
        falx_bend_mm: how far the falx leans to the left at the front.
        air_cells: share of the mastoid that is air, as a threshold on the noise.
        pineal_hu, choroid_hu, pallidum_hu: calcifications; 0 where there is none.
        swelling_x, swelling_y, swelling_z, swelling_mm: where the scalp is swollen and by how much.
        enhancement_hu: contrast medium in vessels and sinuses; 0 in a plain scan.
    """

    width: float
    length: float
    height: float
    skull_mm: float
    scalp_mm: float
    sulcus: float
    ventricle: float
    asymmetry: float
    grey_hu: float
    white_hu: float
    fluid_hu: float
    dura_hu: float
    bone_hu: float
    falx_bend_mm: float
    air_cells: float
    pineal_hu: float
    choroid_hu: float
    pallidum_hu: float
    swelling_x: float
    swelling_y: float
    swelling_z: float
    swelling_mm: float
    enhancement_hu: float


def draw_head(generator: np.random.Generator) -> Head:
    """A random adult head, healthy but for its age and its calcifications.

    Source: grey and white matter 37 and 29 HU as in the issue; the other ranges from what plain head CT shows.
    """
    uniform = generator.uniform
    age = uniform()  # 0 young, 1 old: wider sulci and ventricles, more calcium
    return Head(
        width=uniform(63, 71),
        length=uniform(79, 89),
        height=uniform(69, 78),
        skull_mm=uniform(5, 8),
        scalp_mm=uniform(3.5, 7),
        sulcus=0.05 + 0.25 * age * uniform(0.6, 1.0),
        ventricle=0.75 + 0.6 * age * uniform(0.5, 1.0),
        asymmetry=uniform(0.85, 1.2),
        grey_hu=uniform(36, 39),
        white_hu=uniform(28, 31),
        fluid_hu=uniform(4, 9),
        dura_hu=uniform(42, 50) + (uniform(10, 22) if generator.random() < 0.25 else 0.0),
        bone_hu=uniform(1000, 1400),
        falx_bend_mm=uniform(-2, 2),
        air_cells=uniform(-0.4, 0.6),
        pineal_hu=uniform(90, 250) if generator.random() < 0.2 + 0.5 * age else 0.0,
        choroid_hu=uniform(90, 250) if generator.random() < 0.2 + 0.5 * age else 0.0,
        pallidum_hu=uniform(55, 120) if generator.random() < 0.05 + 0.15 * age else 0.0,
        swelling_x=0.0,
        swelling_y=0.0,
        swelling_z=0.0,
        swelling_mm=0.0,
        enhancement_hu=0.0,
    )


def draw_lattice(generator: np.random.Generator) -> np.ndarray:
    """(n, n, n) float32 smooth periodic noise, mean 0 and deviation 1, that folds the cortex and roughens edges."""
    white = generator.standard_normal((LATTICE_CELLS,) * 3, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, 1.0, mode="wrap")
    return np.ascontiguousarray((smooth - smooth.mean()) / smooth.std())


@njit(cache=True, nogil=True, fastmath=True)
def look_up_noise(lattice: np.ndarray, x: float, y: float, z: float) -> float:
    """The lattice at a point in units of its cells, trilinear and periodic."""
    mask = LATTICE_CELLS - 1
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    tx, ty, tz = x - fx, y - fy, z - fz
    i, j, k = int(fx) & mask, int(fy) & mask, int(fz) & mask
    i1, j1, k1 = (i + 1) & mask, (j + 1) & mask, (k + 1) & mask
    low = (lattice[i, j, k] * (1 - tx) + lattice[i1, j, k] * tx) * (1 - ty) + (
        lattice[i, j1, k] * (1 - tx) + lattice[i1, j1, k] * tx
    ) * ty
    high = (lattice[i, j, k1] * (1 - tx) + lattice[i1, j, k1] * tx) * (1 - ty) + (
        lattice[i, j1, k1] * (1 - tx) + lattice[i1, j1, k1] * tx
    ) * ty
    return low * (1 - tz) + high * tz


@njit(cache=True, nogil=True, fastmath=True)
def smooth_step(low: float, high: float, value: float) -> float:
    """0 below `low`, 1 above `high`, smooth between."""
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)


@njit(cache=True, nogil=True, fastmath=True)
def skull_depth(x: float, y: float, z: float) -> float:
    """Depth below the inner table in mm, negative outside; exact on the table, good to a few per cent near it."""
    v = y / INNER_RADII_MM[1]
    a = INNER_RADII_MM[0] * (1 + 0.1 * v)  # wider at the back
    c = INNER_RADII_MM[2] if z > 0 else 1.6 * INNER_RADII_MM[2]
    u, w = x / a, abs(z) / c
    rise = w * np.sqrt(w)  # |w|^1.5: a vertex flatter than an ellipsoid's
    r = np.sqrt(u * u + v * v + rise * w) + 1e-9
    slope = np.sqrt((u / a) ** 2 + (v / INNER_RADII_MM[1]) ** 2 + (1.25 * rise / c) ** 2) / r
    return (1 - r) / (slope + 1e-9)


@njit(cache=True, nogil=True, fastmath=True)
def base_height(x: float, y: float) -> float:
    """Height of the floor of the skull in mm: anterior, middle and posterior fossa, petrous ridge, foramen magnum."""
    side = abs(x)
    if side * side + (y - 26) * (y - 26) < 196:
        return -200.0
    roof = -17 - 0.02 * (side - 27) ** 2 - 0.012 * (y + 55) ** 2  # domes over the orbits, a groove between them
    roof = max(roof, -31.0)
    middle = -27 - 19 * smooth_step(12, 30, side) + 0.012 * (y + 6) ** 2
    floor = roof + (middle - roof) * smooth_step(-42, -30, y)
    behind = y - (4 + 0.42 * side)
    floor += (-64 + 0.004 * side * side - floor) * smooth_step(0, 14, behind)
    return floor + 17 * np.exp(-((behind - 2) ** 2) / 45) * smooth_step(12, 24, side)


@njit(cache=True, nogil=True, fastmath=True)
def tent_height(x: float) -> float:
    """Height of the tentorium in mm."""
    return 6 - 0.45 * abs(x)


@njit(cache=True, nogil=True, fastmath=True)
def in_tent(x: float, y: float) -> bool:
    """Whether the tentorium reaches this far: behind the petrous ridge and outside its notch."""
    return y > 6 + 0.42 * abs(x) and (x / 17) ** 2 + ((y - 12) / 21) ** 2 > 1


@njit(cache=True, nogil=True, fastmath=True)
def below_falx(y: float, z: float) -> bool:
    """Whether a midline point lies under the free edge of the falx."""
    return (y / 58) ** 2 + ((z - 2) / 36) ** 2 < 1 or z < -16


@njit(cache=True, nogil=True, fastmath=True)
def ventricle_depth(x: float, y: float, z: float, scale: float, asymmetry: float) -> float:
    """Depth in mm inside the ventricles, negative outside."""
    side = abs(x)
    best = -1e9
    if side < 48 and -46 < y < 68 and -28 < z < 36:
        factor = scale * (asymmetry if x > 0 else 1.0)
        for row in range(_VENTRICLE.shape[0]):
            ax, ay, az, ar, bx, by, bz, br = _VENTRICLE[row]
            dx, dy, dz = bx - ax, by - ay, bz - az
            t = ((side - ax) * dx + (y - ay) * dy + (z - az) * dz) / (dx * dx + dy * dy + dz * dz)
            t = min(max(t, 0.0), 1.0)
            ex, ey, ez = side - ax - t * dx, y - ay - t * dy, z - az - t * dz
            best = max(best, (ar + (br - ar) * t) * factor - np.sqrt(ex * ex + ey * ey + ez * ez))
    third = 1 - np.sqrt((x / (2.2 * scale)) ** 2 + ((y - 2) / 14) ** 2 + ((z - 1) / 10) ** 2)
    fourth = 1 - np.sqrt((x / (6.5 * scale)) ** 2 + ((y - 36) / (4.5 * scale)) ** 2 + ((z + 34) / 9) ** 2)
    return max(best, 2.2 * scale * third, 4.5 * scale * fourth)


@njit(cache=True, nogil=True, fastmath=True)
def _ball(x: float, y: float, z: float, cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> float:
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2


@njit(cache=True, nogil=True, fastmath=True)
def _base_tissue(x: float, y: float, z: float, below: float, head: Head, lattice: np.ndarray) -> tuple[float, int]:
    """Under the floor of the skull: base with air cells, sinuses, orbits, muscle."""
    side = abs(x)
    globe = _ball(side, y, z, 31, -66, -40, 12, 12, 12)
    if globe < 1:
        return (12.0 if globe < 0.8 else 40.0), SCALP
    if _ball(side, y, z, 30, -56, -40, 17, 26, 15) < 1:
        return -80.0, SCALP
    if _ball(x, y, z, 0, -22, -44, 13, 13, 11) < 1 or _ball(x, y, z, 0, -66, -14, 18, 7, 9) < 1:
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
def _is_cistern(x: float, y: float, z: float) -> bool:
    """Whether a point lies in a basal cistern or in the Sylvian fissure."""
    side = abs(x)
    if z < -4:
        t = min(max((-8 - z) / 52, 0.0), 1.0)
        stem = np.sqrt(x * x * (0.75 + 0.5 * t) + (y - 12 - 8 * t) ** 2)
        radius = 16 - 3 * t
        if radius < stem < radius + 3.2 - 0.06 * side and (y < 30 or z > -14):
            return True
        if _ball(x, y, z, 0, -13, -19, 15, 10, 7) < 1:
            return True
    if _ball(x, y, z, 0, 30, -3, 11, 5, 7) < 1:
        return True
    if -14 < z < 20 and 34 < side < 70:
        fade = 1 - ((z - 3) / 17) ** 2  # wide in the middle of its height, gone at its ends
        if abs(side - 36.5 - 0.012 * y * y) < 1.8 * fade and -17 < y < 15:  # around the insula
            return True
        if abs(y + 10 - 0.3 * (side - 36) - 0.35 * z) < 2.4 * fade * (1.3 - (side - 34) / 50):  # its way to the surface
            return True
    return False


@njit(cache=True, nogil=True, fastmath=True)
def _deep_tissue(x: float, y: float, z: float, head: Head) -> float:
    """HU of the basal ganglia, thalamus and their calcifications; 0 elsewhere."""
    side = abs(x)
    if side > 36 or y < -36 or y > 42 or z < -14 or z > 26:
        return 0.0
    if head.pineal_hu > 0 and _ball(x, y, z, 0, 25, 3, 2.6, 3, 2.6) < 1:
        return head.pineal_hu
    if head.choroid_hu > 0 and _ball(side, y, z, 23, 33, 10, 2.6, 4.5, 3) < 1:
        return head.choroid_hu
    if head.pallidum_hu > 0 and _ball(side, y, z, 20, 0, 3, 3, 7, 4) < 1:
        return head.pallidum_hu
    if (
        _ball(side, y, z, 25, -5, 4, 7, 17, 12) < 1
        or _ball(side, y, z, 10, 9, 6, 8, 13, 9) < 1
        or _ball(side, y, z, 13, -24, 12, 5, 8, 9) < 1
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
    if abs(lean) < 0.9 and not below_falx(y, z):
        return head.dura_hu + 0.4 * head.enhancement_hu
    if tent and abs(z - tent_height(x)) < 1.0:
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
    # Nothing in a brain is as straight as a formula: the inside is bent by some millimetres, less beside the skull.
    bend = BEND_MM * smooth_step(0, 25, depth)
    bent_x = x + bend * look_up_noise(lattice, x / BEND_CELL_MM, y / BEND_CELL_MM, z / BEND_CELL_MM)
    y += bend * look_up_noise(lattice, x / BEND_CELL_MM + 30, y / BEND_CELL_MM, z / BEND_CELL_MM)
    x = bent_x
    dura = _midline_tissue(x, y, z, depth, head)
    if dura > 0:
        return dura, DURA, depth
    deep = _deep_tissue(x, y, z, head)
    if deep > head.grey_hu + 2:
        return deep, BRAIN, depth
    if ventricle_depth(x, y, z, head.ventricle, head.asymmetry) > 0:
        return head.fluid_hu, VENTRICLE, depth
    if deep > 0:
        return deep, BRAIN, depth
    if _is_cistern(x, y, z):
        return head.fluid_hu + 0.2 * head.enhancement_hu, FLUID, depth
    noise = look_up_noise(lattice, x / SULCUS_CELL_MM, y / SULCUS_CELL_MM, 0.5 * z / SULCUS_CELL_MM)
    if y > 10 and z < tent_height(x) and z < 0:  # cerebellum: fine folia, no sulci wide enough to see
        return head.grey_hu - 2 + noise, BRAIN, depth
    near = min(depth, abs(x) + 1.5) if not below_falx(y, z) else depth
    fold = abs(noise)
    if near < 18 and (near < 1 + 4 * head.sulcus or fold < widen * head.sulcus * (1 - near / 18)):
        return head.fluid_hu, FLUID, depth
    if near < 5 or (near < 20 and fold < 0.45):
        return head.grey_hu + 0.1 * head.enhancement_hu, BRAIN, depth
    return head.white_hu, BRAIN, depth
