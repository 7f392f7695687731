"""Statistics of the Hounsfield values of a slice that scanners and their settings change."""

import numpy as np

SOFT_HU = (0, 80)
"""Lowest and highest HU of soft tissue: the brain window."""
_AIR_HU, _BONE_HU = -200, 300
_FEWEST_PIXELS = 64
# Immerkær's operator: it removes planes and straight edges; its response to noise of deviation 1 has deviation 6.
_LAPLACIAN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
STATISTICS = ("noise_hu", "soft_tissue_hu", "air_share", "bone_share")
"""Names of the values of `measure_slice`, in order."""


def measure_slice(hounsfield: np.ndarray) -> tuple[float, float, float, float]:
    """Noise and median of soft tissue in HU, and the shares of air (below -200 HU) and bone (above 300 HU).

    Noise is measured where a pixel and its eight neighbours are soft tissue; both are NaN with fewer than 64 pixels.

    Args:
        hounsfield: (H, W) HU.

    Source: Immerkær, "Fast noise variance estimation", Computer Vision and Image Understanding 64, 1996.

    Example:
        >>> noisy = np.random.default_rng(0).normal(40, 5, (200, 200))
        >>> [round(value, 1) for value in measure_slice(noisy)]
        [5.0, 40.0, 0.0, 0.0]
    """
    image = np.asarray(hounsfield, np.float32)
    is_soft = (image >= SOFT_HU[0]) & (image <= SOFT_HU[1])
    median = float(np.median(image[is_soft])) if is_soft.sum() >= _FEWEST_PIXELS else np.nan
    shares = float((image < _AIR_HU).mean()), float((image > _BONE_HU).mean())
    height, width = image.shape
    if min(height, width) < 3:
        return np.nan, median, *shares
    parts = [(y, x) for y in range(3) for x in range(3)]
    inner = {(y, x): (slice(y, height - 2 + y), slice(x, width - 2 + x)) for y, x in parts}
    is_inside = np.logical_and.reduce([is_soft[place] for place in inner.values()])
    if is_inside.sum() < _FEWEST_PIXELS:
        return np.nan, median, *shares
    response = sum(_LAPLACIAN[y, x] * image[place] for (y, x), place in inner.items())
    noise = float(np.sqrt(np.pi / 2) / 6 * np.abs(np.asarray(response)[is_inside]).mean())
    return noise, median, *shares
