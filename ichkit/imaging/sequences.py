"""Several sequences of one study, such as of MR: their grids, their common frame, and one volume of all."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from ichkit.core.config import SequencesConfig
from ichkit.core.errors import ConfigError, DataError, shorten
from ichkit.imaging.windows import SEQUENCE_TOP

TYPICAL = 1000
"""The stored value of the median of the brain; a third of the range, because a lesion may be three times as bright."""
PERCENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
"""Of the brain, at which histograms are matched."""
_MARGIN_MM = 6.0
_DIGEST = 16
_MOST_SEQUENCES, _MOST_SIDE = 16, 1024


@dataclass(frozen=True)
class SequenceSettings:
    """Which sequences a study has, and what is done to them.

    Attributes:
        names: in the order of the channels.
        reference: position in `names` of the sequence that the others are registered to.
        steps: rows of `sequence_steps.SEQUENCE_STEPS`, in their order.
        shape: (slices, rows, columns) of the grid that they are brought to.
        field_mm: its extents.
        template, template_digest: the file of the step "template" and the digest of its bytes; empty without.
        command: the shell command of the step "strip", with {input} and {mask}; empty without.
        landmarks: for each sequence its `PERCENTILES` in the reference study of the step "histogram"; empty without.
    """

    names: tuple[str, ...]
    reference: int
    steps: tuple[str, ...]
    shape: tuple[int, int, int]
    field_mm: tuple[float, float, float]
    template: str = ""
    template_digest: str = ""
    command: str = ""
    landmarks: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, config: SequencesConfig) -> "SequenceSettings | None":
        """The settings of a config, without landmarks; None without names.

        Raises:
            ConfigError: the reference is no sequence, or a step lacks its file.
            DataError: the template cannot be read.
        """
        if not config.names:
            return None
        reference = config.reference or config.names[0]
        if len(set(config.names)) < len(config.names) or reference not in config.names:
            raise ConfigError(
                f"prepare.sequences: expected distinct names with the reference among them, found {list(config.names)} "
                f'and the reference "{reference}".'
            )
        if ("template" in config.steps) != (config.template is not None):
            raise ConfigError(
                "prepare.sequences: the step template needs a NIfTI file of an atlas, and the file the step: "
                "--set prepare.sequences.template=FILE."
            )
        return cls(
            names=config.names,
            reference=config.names.index(reference),
            steps=config.steps,
            shape=(config.slices, config.rows, config.columns),
            field_mm=config.field_mm,
            template="" if config.template is None else str(config.template),
            template_digest="" if config.template is None else _digest(config.template),
            command=config.strip_command or "",
        )

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "SequenceSettings | None":
        """The settings from the value of `to_json`, without the template; None for {}.

        Raises:
            ValueError, TypeError, KeyError: no such settings.
        """
        if not raw:
            return None
        if not isinstance(raw, dict) or raw.keys() - cls.__dataclass_fields__.keys() or "template" in raw:
            raise ValueError("sequences are not as described in SequenceSettings")
        found = cls(
            names=tuple(map(str, raw["names"])),
            reference=int(raw["reference"]),
            steps=tuple(map(str, raw["steps"])),
            shape=_three(raw["shape"], int),
            field_mm=_three(raw["field_mm"], float),
            template_digest=str(raw.get("template_digest", "")),
            command=str(raw.get("command", "")),
            landmarks=tuple(tuple(map(float, row)) for row in raw.get("landmarks", ())),
        )
        if not 0 <= found.reference < len(found.names) <= _MOST_SEQUENCES or len(found.steps) > _MOST_SEQUENCES:
            raise ValueError("sequences: invalid names, reference or steps")
        if not all(1 <= side <= _MOST_SIDE for side in found.shape) or not all(0 < e < 1e4 for e in found.field_mm):
            raise ValueError("sequences: invalid grid")
        if found.landmarks and [len(row) for row in found.landmarks] != [len(PERCENTILES)] * len(found.names):
            raise ValueError("sequences: invalid landmarks")
        return found

    def with_files(self, config: SequencesConfig) -> "SequenceSettings":
        """The settings of a model with the template and the command that the config names on this machine.

        A model brings neither a path nor a command that is run: those are the user's.

        Raises:
            ConfigError: the config names another template or command than the model was trained with.
            DataError: the template cannot be read.
        """
        given = "" if config.template is None else _digest(config.template)
        if self.template_digest and self.template_digest != given:
            raise ConfigError(
                f"the model was trained on scans registered to a template with the digest {self.template_digest}, "
                f"found {given or 'none'}. Name that file with --set prepare.sequences.template=FILE."
            )
        if self.command and self.command != config.strip_command:
            raise ConfigError(
                f"the model was trained on brains stripped by the command `{shorten(self.command)}`, found "
                f"{'none' if config.strip_command is None else 'another one'}. If you trust it, name it with "
                "--set prepare.sequences.strip_command."
            )
        return replace(self, template=str(config.template or ""))

    def with_marks(self, marks: Sequence[np.ndarray]) -> "SequenceSettings":
        """The settings with landmarks of the `PERCENTILES` of a reference study, its median at `TYPICAL`."""
        scaled = [np.round(one * (TYPICAL / one[2]), 3) for one in marks]
        return replace(self, landmarks=tuple(tuple(one.tolist()) for one in scaled))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Between slices, rows and columns of the grid."""
        slices, rows, columns = (extent / n for extent, n in zip(self.field_mm, self.shape, strict=True))
        return slices, rows, columns

    def to_json(self) -> dict[str, Any]:
        """JSON values that determine the stored bytes: the template by its digest, not by its path."""
        optional = ("template_digest", "command", "landmarks")
        kept = {name: value for name, value in vars(self).items() if name != "template"}
        return {name: _to_lists(value) for name, value in kept.items() if value or name not in optional}


@dataclass(frozen=True)
class Image:
    """One image on its own grid.

    Attributes:
        values: (S, H, W) float32.
        affine: (4, 4) from (column, row, slice) to millimetres of its scanner to the left, the back and the head.
    """

    values: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) between slices, rows and columns."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0)[::-1])


@dataclass(frozen=True)
class Sequences:
    """The images of a study while steps are done to them.

    Attributes:
        images: in the order of the settings.
        frames: for each, (4, 4) from the common frame (mm to the left, back, head) to its scanner.
        mask: of the brain, moving with the first image; None before it is found.
        strips: what lies outside the mask becomes 0 in the end.
        is_placed: the common frame is that of the head: its origin is the centre of the grid.
        matches: histograms are matched to the landmarks in the end.
    """

    images: tuple[Image, ...]
    frames: tuple[np.ndarray, ...]
    mask: Image | None = None
    strips: bool = False
    is_placed: bool = False
    matches: bool = False

    @classmethod
    def start(cls, images: tuple[Image, ...], mask: Image | None = None) -> "Sequences":
        """Images whose scanner coordinates are taken to be common."""
        return cls(images, tuple(np.eye(4) for _ in images), mask)

    def moved(self, transform: np.ndarray) -> "Sequences":
        """In another common frame; `transform` (4, 4) goes from the new one to the old one."""
        return replace(self, frames=tuple(frame @ transform for frame in self.frames))


Step = Callable[[Sequences, SequenceSettings], Sequences]


def sample(
    image: Image, frame: np.ndarray, shape: tuple[int, int, int], spacing_mm: tuple[float, ...], *, order: int = 1
) -> np.ndarray:
    """(S, H, W) float32 of an image on a grid centred at the origin of the common frame; 0 outside the image.

    Args:
        frame: (4, 4) from the common frame to the scanner of the image.
        spacing_mm: between slices, rows and columns of the grid.
        order: 1 for linear, 0 for the nearest pixel, as for a mask.
    """
    to_voxel = np.linalg.inv(image.affine) @ frame @ grid_affine(shape, spacing_mm)
    matrix = to_voxel[:3, :3][::-1, ::-1]  # both in the order (slice, row, column)
    values = image.values
    if order:
        # A coarser grid would skip pixels: each takes about the mean of those around it.
        ratio = np.asarray(spacing_mm) / image.spacing_mm
        blur = 0.4 * np.sqrt(np.maximum(ratio**2 - 1, 0))
        if blur.max() > 0.1:
            values = scipy.ndimage.gaussian_filter(values, blur, mode="nearest")
    found: np.ndarray = scipy.ndimage.affine_transform(
        values, matrix, to_voxel[:3, 3][::-1], output_shape=shape, order=order, mode="constant", cval=0.0
    )
    return found


def grid_affine(shape: tuple[int, int, int], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """(4, 4) from (column, row, slice) of a grid centred at the origin to millimetres."""
    steps = np.array(spacing_mm[::-1], float)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = -steps * (np.array(shape[::-1]) - 1) / 2
    return affine


def place(study: Sequences, mask: Image) -> Sequences:
    """The study with the middle of the brain's box at the origin across and along, its top a margin below the field's.

    Args:
        mask: of the brain, in the first image.

    Raises:
        DataError: the mask is empty.
    """
    if not (mask.values > 0).any():
        raise DataError("no brain was found: the mask, or the first sequence without one, is empty")
    points = np.argwhere(mask.values > 0)[:, ::-1] @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    points = (points - study.frames[0][:3, 3]) @ np.linalg.inv(study.frames[0][:3, :3]).T
    low, high = np.percentile(points, [1, 99], axis=0)
    shift = np.eye(4)
    shift[:3, 3] = (low + high) / 2
    return study.moved(shift)


def to_volume(study: Sequences, settings: SequenceSettings) -> tuple[np.ndarray, np.ndarray]:
    """The stored volume (S, M, H, W) int16 from 0 to `SEQUENCE_TOP`, and (S,) the share of brain in each slice.

    Args:
        study: placed, with a mask.

    Raises:
        DataError: a sequence has nothing in the brain.
    """
    assert study.is_placed
    assert study.mask is not None
    shape, spacing = settings.shape, settings.spacing_mm
    brain = sample(study.mask, study.frames[0], shape, spacing, order=0) > 0
    volume = np.empty((shape[0], len(study.images), *shape[1:]), np.int16)
    for number, (image, frame) in enumerate(zip(study.images, study.frames, strict=True)):
        values = sample(image, frame, shape, spacing)
        marks = measure(values, brain)
        if not marks[2] > 0:
            raise DataError(f"{settings.names[number]} has no brightness in the brain")
        if study.matches and settings.landmarks:
            values = _match(values, marks, np.array(settings.landmarks[number]))
        else:
            values = values * (TYPICAL / marks[2])
        kept = np.where(brain, values, 0) if study.strips else values
        volume[:, number] = np.clip(np.rint(kept), 0, SEQUENCE_TOP)
    return volume, brain.mean((1, 2))


def measure(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """`PERCENTILES` of the values in the brain; zeros without a brain."""
    inside = values[brain & np.isfinite(values)]
    return np.percentile(inside, PERCENTILES) if len(inside) else np.zeros(len(PERCENTILES))


def _match(values: np.ndarray, own: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values after the curve through the percentiles, straight on beyond them, 0 staying 0."""
    own = np.maximum.accumulate(own + 1e-6 * np.arange(len(own)))
    inner = np.interp(values, [0.0, *own], [0.0, *wanted])
    slope = (wanted[-1] - wanted[1]) / max(own[-1] - own[1], 1e-6)
    matched: np.ndarray = np.where(values > own[-1], wanted[-1] + slope * (values - own[-1]), inner)
    return matched


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGEST]
    except OSError as error:
        raise DataError(f"{path}: expected a NIfTI file, it cannot be read ({type(error).__name__}).") from error


def _three(values: Any, kind: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    first, second, third = map(kind, values)
    return first, second, third


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, tuple) else value
