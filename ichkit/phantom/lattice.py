"""Smooth 3D noise, one lattice per head, for cortical folds, irregular shapes and rough edges."""

import numpy as np
from numba import njit
from scipy import ndimage

LATTICE_CELLS = 64  # a power of two, so that the period is a mask


def draw_lattice(generator: np.random.Generator) -> np.ndarray:
    """(n, n, n) float32 smooth periodic noise with mean 0 and standard deviation 1."""
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
    value: float = low * (1 - tz) + high * tz
    return value
