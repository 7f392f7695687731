"""Perturbations of a volume, to see how a network behaves away from its training data: the table `PERTURBATIONS`."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

_FULL_DOSE_NOISE_HU = 4.0
"""Standard deviation in brain of a routine head CT of about 5 mm, of which a lower dose is a multiple."""
_SHIFT = 0.05  # of the width of the picture
_ROTATION_DEGREES = 10.0


@dataclass(frozen=True)
class Given:
    """A study before a perturbation.

    Attributes:
        volume: (S, H, W) int16 HU, row i is slice_index i.
        positions_mm: (S,) along the axis of the body; NaN where unknown.
        low_hu, high_hu: ends of the store's range; `low_hu` also fills what lies outside the picture.
    """

    volume: np.ndarray
    positions_mm: np.ndarray
    low_hu: int
    high_hu: int

    def clip(self, hounsfield: np.ndarray) -> np.ndarray:
        """(..) int16 values rounded into the range of the store."""
        clipped: np.ndarray = np.clip(np.rint(hounsfield), self.low_hu, self.high_hu).astype(np.int16)
        return clipped


@dataclass(frozen=True)
class Perturbed:
    """A study after a perturbation.

    Attributes:
        volume: (T, H, W) int16 HU.
        positions_mm: (T,)
        of_slice: (S,) int64, the row of `volume` that shows each given slice; -1 where none does.
    """

    volume: np.ndarray
    positions_mm: np.ndarray
    of_slice: np.ndarray


@dataclass(frozen=True)
class Perturbation:
    """A row of `PERTURBATIONS`.

    Attributes:
        name: key in the table, and the `perturbation` of `robustness.parquet`.
        title: as tables write it.
        apply: the given study and a generator to the perturbed one.
    """

    name: str
    title: str
    apply: Callable[[Given, np.random.Generator], Perturbed]
    description: str
    source: str


def keep_slices(given: Given, volume: np.ndarray) -> Perturbed:
    """A perturbed volume with the same slices."""
    return Perturbed(volume, given.positions_mm, np.arange(len(volume)))


def add_quantum_noise(given: Given, rng: np.random.Generator, dose: float) -> Perturbed:
    """The study with the noise that a share of the dose adds; air and padding at the lower end stay as they are.

    The variance of quantum noise is inversely proportional to the dose, so a share f of it adds a standard deviation of
    sqrt(1 / f - 1) times that of the full dose. White Gaussian noise, without the correlation of a kernel.

    Args:
        dose: share of the full dose in (0, 1].
    """
    added = _FULL_DOSE_NOISE_HU * np.sqrt(1 / dose - 1)
    noise = rng.standard_normal(given.volume.shape, np.float32) * np.float32(added)
    noise[given.volume <= given.low_hu] = 0
    return keep_slices(given, given.clip(given.volume + noise))


def shift_hounsfield(given: Given, _rng: np.random.Generator, shift_hu: int) -> Perturbed:
    """The study with this added to every value."""
    return keep_slices(given, given.clip(given.volume.astype(np.int32) + shift_hu))


def move(given: Given, _rng: np.random.Generator, *, share: float = 0.0, degrees: float = 0.0) -> Perturbed:
    """The study moved in the plane: to the right and down by a share of the width, turned about the middle.

    Args:
        share: of the width of the picture.
        degrees: counter-clockwise on the screen.
    """
    height, width = given.volume.shape[1:]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += share * width
    moved = [
        cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=given.low_hu)
        for image in given.volume
    ]
    return keep_slices(given, given.clip(np.stack(moved)))


def drop_every_second(given: Given, _rng: np.random.Generator) -> Perturbed:
    """Every second slice from the feet; the others are not read."""
    rows = np.arange(len(given.volume))
    return Perturbed(given.volume[::2], given.positions_mm[::2], np.where(rows % 2 == 0, rows // 2, -1))


def average_pairs(given: Given, _rng: np.random.Generator) -> Perturbed:
    """Slabs of two slices, the mean of each pair from the feet; a last slice without a partner stays alone."""
    starts = np.arange(0, len(given.volume), 2)
    counts = np.minimum(2, len(given.volume) - starts)
    slabs = np.add.reduceat(given.volume.astype(np.float32), starts, axis=0) / counts[:, None, None]
    positions = np.add.reduceat(given.positions_mm, starts) / counts
    return Perturbed(given.clip(slabs), positions, np.arange(len(given.volume)) // 2)


def _at_dose(name: str, title: str, dose: float) -> Perturbation:
    return Perturbation(
        name=name,
        title=title,
        apply=lambda given, rng: add_quantum_noise(given, rng, dose),
        description=f"White Gaussian noise of a dose of {100 * dose:g} %, if the full dose has a deviation of "
        f"{_FULL_DOSE_NOISE_HU:g} HU.",
        source="variance inversely proportional to dose, as in Yu et al., J Comput Assist Tomogr 36, 2012; the 4 HU "
        "and the white spectrum are chosen here",
    )


def _at_shift(shift_hu: int) -> Perturbation:
    return Perturbation(
        name=f"hu_{'plus' if shift_hu > 0 else 'minus'}_{abs(shift_hu)}",
        title=f"{shift_hu:+d} HU",
        apply=lambda given, rng: shift_hounsfield(given, rng, shift_hu),
        description=f"{shift_hu:+d} HU everywhere, as of a scanner that is not calibrated.",
        source="the American College of Radiology accepts water at 0 +- 5 HU (CT accreditation, phantom testing)",
    )


_ROWS = (
    _at_dose("dose_half", "half dose", 0.5),
    _at_dose("dose_quarter", "quarter dose", 0.25),
    *(_at_shift(shift_hu) for shift_hu in (-10, -5, 5, 10)),
    Perturbation(
        name="shift",
        title=f"shift by {100 * _SHIFT:g} %",
        apply=lambda given, rng: move(given, rng, share=_SHIFT),
        description="Moved right and down by a share of the width; air comes in at the border.",
        source="chosen here: about 12 mm in a field of view of 250 mm, a head that is not centred",
    ),
    Perturbation(
        name="rotation",
        title=f"rotation by {_ROTATION_DEGREES:g} degrees",
        apply=lambda given, rng: move(given, rng, degrees=_ROTATION_DEGREES),
        description="Turned in the plane about the middle of the picture.",
        source="chosen here: a head that lies turned in its holder",
    ),
    Perturbation(
        name="every_second",
        title="every second slice",
        apply=drop_every_second,
        description="Twice the distance between slices; only slices that are left are compared.",
        source="chosen here: 10 mm where scans of the training data have 5 mm",
    ),
    Perturbation(
        name="slabs_of_2",
        title="slabs of 2 slices",
        apply=average_pairs,
        description="Pairs of slices averaged; each slice gets the probability of its slab.",
        source="chosen here: partial volume of slices twice as thick",
    ),
)
PERTURBATIONS = {row.name: row for row in _ROWS}
