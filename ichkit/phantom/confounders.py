"""Scanner artefacts that mimic or hide blood: noise, streaks, metal, motion, bright spots."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import ndimage

from ichkit.phantom.difficulty import DEMO, Difficulty
from ichkit.phantom.render import Grid, Pose, smooth

_PETROUS_LEVEL_MM = -32.0
_LOWEST_HU, _HIGHEST_HU = -1024, 3071
_AIR_BELOW_HU = -200


@dataclass(frozen=True)
class Scan:
    """Image quality of one study.

    Attributes:
        noise_hu: standard deviation of the noise in the brain of a 5 mm slice.
        offset_hu: calibration error, the same in every slice.
        cupping_hu: how much brighter the brain is near the skull than in its centre.
        petrous_hu: depth of the dark band between the petrous bones.
        motion_rate, spot_rate: share of slices with motion and with a bright spot, drawn for each slice.
        kernel: from -1, soft, through 0, standard, to 1, sharp.
        metal: (x, y, z) of a piece of metal in head millimetres, or None.
    """

    noise_hu: float
    offset_hu: float
    cupping_hu: float
    petrous_hu: float
    motion_rate: float
    spot_rate: float
    kernel: float
    metal: tuple[float, float, float] | None


def draw_scan(generator: np.random.Generator, difficulty: Difficulty = DEMO) -> Scan:
    """The quality of a random study."""
    uniform = generator.uniform
    restless = generator.random() < difficulty.restless_share
    metal = None
    if generator.random() < 0.1:
        low = generator.random() < 0.5  # teeth below, a clip or an electrode in the head
        metal = (uniform(-35, 35), uniform(-50, 0), uniform(-62, -52) if low else uniform(-20, 40))
    return Scan(
        noise_hu=uniform(*difficulty.noise_hu),
        offset_hu=generator.normal(0, difficulty.offset_hu),
        cupping_hu=uniform(*difficulty.cupping_hu),
        petrous_hu=uniform(*difficulty.petrous_hu),
        motion_rate=difficulty.motion_rate if restless else 0.02,
        spot_rate=uniform(*difficulty.spot_rate),
        kernel=0.0 if difficulty.kernel == (0, 0) else uniform(*difficulty.kernel),
        metal=metal,
    )


def finish_slice(
    generator: np.random.Generator,
    hounsfield: np.ndarray,
    grid: Grid,
    pose: Pose,
    scan: Scan,
    *,
    noise_factor: float = 1.0,
    sharp: bool = False,
) -> np.ndarray:
    """(H, W) int16 HU of a drawn slice after adding noise and artefacts; none of them to a scan without noise.

    Args:
        hounsfield: (H, W) float32 as drawn.
        noise_factor: factor on the noise; above 1 for thin slices.
        sharp: True for a bone kernel: no smoothing, stronger and finer noise.
    """
    if scan.noise_hu == 0:
        plain: np.ndarray = np.clip(np.rint(hounsfield), _LOWEST_HU, _HIGHEST_HU).astype(np.int16)
        return plain
    image = 3 * hounsfield - 2 * smooth(hounsfield) if sharp else _reconstruct(hounsfield, scan.kernel)
    rows, columns = image.shape
    x = (grid.x - pose.centre_mm[0] + grid.spacing * np.arange(columns, dtype=np.float32))[None, :]
    y = (grid.y - pose.centre_mm[1] + grid.spacing * grid.tilt_cos * np.arange(rows, dtype=np.float32))[:, None]
    height = grid.z - pose.centre_mm[2] - grid.tilt_sin * (pose.centre_mm[1] - grid.y)
    added = scan.cupping_hu * ((x / 70) ** 2 + (y / 85) ** 2 - 0.5) + (scan.offset_hu + generator.normal(0, 1))
    weight = float(np.exp(-(((height - _PETROUS_LEVEL_MM) / 9) ** 2)))
    if weight > 0.05:
        band = np.exp(-(((y - 16) / 9) ** 2)) * np.exp(-((x / 42) ** 4))
        added -= generator.uniform(0.5, 1.3) * scan.petrous_hu * weight * band
    if generator.random() < scan.spot_rate:
        added += _draw_spot(generator, x, y)
    if scan.metal is not None and abs(height - scan.metal[2]) < 8:
        added += _draw_star(generator, x - scan.metal[0], y - scan.metal[1])
    if generator.random() < scan.motion_rate:
        image, streaks = _move(generator, image, grid.spacing)
        added += streaks
    white = generator.standard_normal(image.shape, dtype=np.float32)
    deviation = scan.noise_hu * noise_factor * (2.5 if sharp else 8 / 3)
    return _store(image, added, white if sharp else _reconstruct(smooth(white), scan.kernel), deviation)


def _reconstruct(image: np.ndarray, kernel: float) -> np.ndarray:
    """(H, W) float32 after a kernel from -1, soft, to 1, sharp; 0 changes nothing. Noise weakens or grows with it."""
    if kernel == 0:
        return image
    filtered: np.ndarray = image + np.float32(kernel) * (image - smooth(image))
    return filtered


def _draw_spot(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H, W) HU: a partial volume of bone that looks like a fresh bleed in this slice only."""
    angle, far = generator.uniform(0, 2 * np.pi), generator.uniform(0.3, 0.95)
    sx, sy = 62 * far * np.cos(angle), 76 * far * np.sin(angle)
    rx, ry = generator.uniform(4, 12, 2)
    q = ((x - sx) / rx) ** 2 + ((y - sy) / ry) ** 2
    spot: np.ndarray = generator.uniform(18, 42) * np.exp(-(q**2))
    return spot


def _draw_star(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H, W) HU: metal with bright and dark streaks."""
    r = np.sqrt(x * x + y * y)
    rays = np.cos(generator.integers(5, 9) * np.arctan2(y, x) + generator.uniform(0, 6.3)) ** 3
    return np.where(r < 3, 2500.0, generator.uniform(20, 60) * rays * np.exp(-r / 35))


def _move(generator: np.random.Generator, image: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """A slice with patient motion: the image as a blend of two positions, and broad streaks (H, W) HU to add."""
    shift = np.rint(generator.normal(0, 2.5, 2) / spacing).astype(int)
    moved = np.roll(image, tuple(shift), (0, 1))
    angle = generator.uniform(0, np.pi)
    rows, columns = image.shape
    along = np.cos(angle) * np.arange(columns)[None, :] + np.sin(angle) * np.arange(rows)[:, None]
    place = (along - along.min()).astype(np.int64)
    profile = ndimage.gaussian_filter1d(generator.standard_normal(place.max() + 1), generator.uniform(2, 8) / spacing)
    streaks = (generator.uniform(3, 7) / profile.std() * profile)[place]
    return np.float32(0.6) * image + np.float32(0.4) * moved, streaks


@njit(cache=True, nogil=True, fastmath=True)
def _store(image: np.ndarray, added: np.ndarray, noise: np.ndarray, deviation: float) -> np.ndarray:
    """(H, W) int16 HU: image, artefacts in tissue but not in air, and noise everywhere."""
    out = np.empty(image.shape, np.int16)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            value = image[i, j] + deviation * noise[i, j]
            if image[i, j] > _AIR_BELOW_HU:
                value += added[i, j]
            out[i, j] = np.int16(min(max(np.rint(value), _LOWEST_HU), _HIGHEST_HU))
    return out
