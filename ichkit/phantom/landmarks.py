"""The anatomical landmarks of the reference head, as formulas in reference millimetres.

Reference frame: x to the patient's left, y to the back, z to the vertex, origin at the centre of the brain. Every head
is a scaled reference head.
"""

import numpy as np
from numba import njit

INNER_RADII_MM = (68.0, 84.0, 74.0)
CORONAL_SUTURE_MM, LAMBDOID_SUTURE_MM = -22.0, 48.0

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
    depth: float = (1 - r) / (slope + 1e-9)
    return depth


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
    height: float = floor + 17 * np.exp(-((behind - 2) ** 2) / 45) * smooth_step(12, 24, side)
    return height


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
    deepest: float = max(best, 2.2 * scale * third, 4.5 * scale * fourth)
    return deepest


@njit(cache=True, nogil=True, fastmath=True)
def ball_level(x: float, y: float, z: float, cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> float:
    """Below 1 inside the ellipsoid of that centre and those half axes, 1 on it."""
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2


@njit(cache=True, nogil=True, fastmath=True)
def is_cistern(x: float, y: float, z: float, widen: float) -> bool:
    """Whether a point lies in a basal cistern or in the Sylvian fissure."""
    side = abs(x)
    swell = 0.6 * (widen - 1)  # mm
    if z < -4:
        t = min(max((-8 - z) / 52, 0.0), 1.0)
        stem = np.sqrt(x * x * (0.75 + 0.5 * t) + (y - 12 - 8 * t) ** 2)
        radius = 16 - 3 * t
        if radius < stem < radius + 3.2 + swell - 0.06 * side and (y < 30 or z > -14):
            return True
        if ball_level(x, y, z, 0, -13, -19, 15 + swell, 10 + swell, 7 + swell) < 1:
            return True
    if ball_level(x, y, z, 0, 30, -3, 11, 5 + swell, 7 + swell) < 1:
        return True
    if -14 < z < 20 and 34 < side < 70:
        fade = 1 - ((z - 3) / 17) ** 2  # wide in the middle of its height, gone at its ends
        if abs(side - 36.5 - 0.012 * y * y) < (1.8 + swell) * fade and -17 < y < 15:  # around the insula
            return True
        across = abs(y + 10 - 0.3 * (side - 36) - 0.35 * z)  # from the line on which it reaches the surface
        return across < (2.4 + swell) * fade * (1.3 - (side - 34) / 50)
    return False
