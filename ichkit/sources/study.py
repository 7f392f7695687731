"""Decodes one study from its files to its volume; runs in a worker."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ichkit.core.errors import DataError
from ichkit.imaging.dicom import StoredPixels, UnreadableError
from ichkit.imaging.hounsfield import (
    decode_stored,
    fill_hounsfield,
    has_broken_intercept,
    hounsfield_extent,
    open_file,
    why_no_head,
)
from ichkit.imaging.parts import UNCUT, WHOLE, PartSettings, cut_parts
from ichkit.imaging.resample import fit_to_square, frame_centre
from ichkit.imaging.sequence_steps import run_sequence_steps
from ichkit.imaging.sequences import SequenceSettings, to_volume
from ichkit.imaging.steps import Origin, run_steps
from ichkit.imaging.store import COMPACT, Codec, write_volume
from ichkit.imaging.windows import as_slices
from ichkit.sources.files import FileRef
from ichkit.sources.sequence_files import read_sequences

MAX_VOLUME_BYTES = 2 * 1024**3
"""1,000 slices of 1024 x 1024; a larger study is a mistake or an attack."""


@dataclass(frozen=True)
class PixelSettings:
    """How stored pixels become a volume.

    Attributes:
        repair: repair broken intercepts (RSNA only).
        hull_hu: lowest and highest HU kept.
        size: side of the square every slice is fitted to; None keeps the native size.
        judges_hu: reject a study whose values cannot be HU of a head (`why_no_head`).
        steps: rows of `imaging.steps.STEPS`, done to the volume of native size, before `size`.
        parts: the sub-studies it gives, cut after the steps.
        sequences: how several sequences become one volume; None for one.
    """

    repair: bool
    hull_hu: tuple[int, int]
    size: int | None
    judges_hu: bool = False
    steps: tuple[str, ...] = ()
    parts: PartSettings = UNCUT
    sequences: SequenceSettings | None = None

    @property
    def has_parts(self) -> bool:
        """True if a study is cut into parts."""
        return self.parts.kind != WHOLE

    @property
    def is_plain(self) -> bool:
        """True if a volume contains the whole source image."""
        return not (self.steps or self.has_parts)

    @property
    def fits_each(self) -> bool:
        """True where every slice is resized as it is read; steps and parts need all in their native size first."""
        return self.size is not None and self.is_plain


@dataclass(frozen=True)
class StudyTask:
    """One study to decode.

    Attributes:
        key: hex digest of everything the volume depends on; names its file.
        slices: for each slice of the volume its files, and how their pixels are stored; several files if a thin series
            is averaged.
        positions_mm: of each slice along the axis of the body; () if unknown.
    """

    key: str
    slices: tuple[tuple[tuple[FileRef, StoredPixels], ...], ...]
    pixels: PixelSettings
    positions_mm: tuple[float, ...] = ()


class Piece(NamedTuple):
    """A study, or a part of one, in the store.

    Attributes:
        name: of the part; empty for the study itself.
        volume: path relative to the store.
        kept: positions in `task.slices` of the rows of its volume.
        padded, brain_share: for each row, as in `StudyRecord`.
        origin: as in `StudyRecord`.
    """

    name: str
    volume: str
    kept: list[int]
    padded: list[bool]
    brain_share: list[float]
    origin: dict[str, Any]


@dataclass(frozen=True)
class StudyRecord:
    """The result of a task.

    Attributes:
        volume: path relative to the store; empty if no slice could be read, or it was cut into parts.
        kept: positions in `task.slices` of the rows of the volume.
        padded: for each kept slice, whether its scanner padded it.
        brain_share: for each kept slice, the share of its pixels from 0 to 80 HU.
        failures: (position in `task.slices`, position inside it, reason) of each file that could not be read.
        origin: the fields of `Origin`; empty without steps and parts.
        parts: of a study that was cut, each with name, volume, sha256, num_bytes, origin, and rows, the positions in
            `kept` of its slices.
    """

    key: str
    volume: str
    sha256: str
    num_bytes: int
    kept: list[int]
    padded: list[bool]
    brain_share: list[float]
    failures: list[tuple[int, int, str]]
    origin: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Its fields, without an empty origin or parts, so that stores without them stay byte-identical."""
        return {name: value for name, value in vars(self).items() if name not in ("origin", "parts") or value}

    def pieces(self) -> Iterator[Piece]:
        """The study itself, or its parts."""
        if not self.parts:
            yield Piece("", self.volume, self.kept, self.padded, self.brain_share, self.origin)
        for part in self.parts:
            rows = part["rows"]
            kept, padded = [self.kept[row] for row in rows], [self.padded[row] for row in rows]
            shares = [self.brain_share[row] for row in rows]
            yield Piece(part["name"], part["volume"], kept, padded, shares, part["origin"])

    def files(self) -> Iterator[tuple[str, str, int]]:
        """Path, SHA-256 and size of every volume."""
        if self.volume:
            yield self.volume, self.sha256, self.num_bytes
        for part in self.parts:
            yield part["volume"], part["sha256"], part["num_bytes"]


@dataclass(frozen=True)
class DecodedPart:
    """A part in memory: its name, its volume (s, [m,] h, w) int16 HU, the rows of its study, and where it lies."""

    name: str
    volume: np.ndarray
    rows: tuple[int, ...]
    origin: Origin | None


@dataclass(frozen=True)
class DecodedStudy:
    """A study in memory, with the fields of its `StudyRecord`.

    Attributes:
        volume: (S, H, W) or (S, M, H, W) int16 HU; no slices where it was cut into parts.
        origin: None without steps and parts.
        parts: of a study that was cut.
    """

    volume: np.ndarray
    kept: list[int]
    padded: list[bool]
    brain_share: list[float]
    failures: list[tuple[int, int, str]]
    origin: Origin | None = None
    parts: tuple[DecodedPart, ...] = ()

    def pieces(self) -> tuple[DecodedPart, ...]:
        """As `StudyRecord.pieces`."""
        return self.parts or (DecodedPart("", self.volume, tuple(range(len(self.volume))), self.origin),)

    def record(self, key: str, write: Callable[[str, np.ndarray], tuple[str, str, int]]) -> StudyRecord:
        """Its record.

        Args:
            write: from the key and the pixels of a volume to its path, SHA-256 and size.
        """
        volume, sha256, num_bytes = write(key, self.volume) if self.kept and not self.parts else ("", "", 0)
        parts = []
        for part in self.parts:
            names = dict(
                zip(("volume", "sha256", "num_bytes"), write(_part_key(key, part.name), part.volume), strict=True)
            )
            parts.append({"name": part.name, **names, "rows": list(part.rows), "origin": _to_json(part.origin)})
        facts = (self.kept, self.padded, self.brain_share, self.failures, _to_json(self.origin), parts)
        return StudyRecord(key, volume, sha256, num_bytes, *facts)


def _to_json(origin: Origin | None) -> dict[str, Any]:
    return {} if origin is None else origin.to_json()


def _part_key(key: str, name: str) -> str:
    """The key of a part of a study, from which its file is named."""
    return hashlib.sha256(f"{key}\x1f{name}".encode()).hexdigest()[:32]


def store_study(folder: Path, task: StudyTask, *, codec: Codec = COMPACT) -> StudyRecord:
    """Decodes a study and writes its volume, or those of its parts, below `folder`."""

    def write(key: str, volume: np.ndarray) -> tuple[str, str, int]:
        path, digest = write_volume(folder, key, volume, codec)
        return path, digest.sha256, digest.num_bytes

    return decode_study(task).record(task.key, write)


def decode_study(task: StudyTask) -> DecodedStudy:
    """Reads every file of a study into one volume; a file that cannot be read is omitted and listed as a failure.

    A study of mixed matrix sizes gets the largest rows and columns; smaller slices stand in the middle of air. A slice
    whose matrix would swell the volume beyond `MAX_VOLUME_BYTES` is left out like one that cannot be read. Where all
    that was read cannot be HU of a head, every file is left out with that reason (`PixelSettings.judges_hu`).
    Steps come last, then parts, then `PixelSettings.size`.
    """
    if task.pixels.sequences is not None:
        return _decode_sequences(task, task.pixels.sequences)
    shape = _volume_shape(task)
    reader = _Reader(task.pixels)
    volume = np.empty((len(task.slices) if min(shape) else 0, *shape), np.int16)
    kept: list[int] = []
    padded: list[bool] = []
    brain: list[float] = []
    failures: list[tuple[int, int, str]] = []
    for position, files in enumerate(task.slices):
        read, sums = [], None
        for inside, (ref, header) in enumerate(files):
            try:
                if not _fits(header, task, shape):
                    raise UnreadableError(f"its study would take more than {MAX_VOLUME_BYTES // 1024**3} GB")
                row = volume[len(kept)]
                read.append(reader.read_slice(ref, header, row))
            except UnreadableError as error:
                failures.append((position, inside, str(error)))
                continue
            if len(files) > 1:
                sums = row.astype(np.float32) if sums is None else sums + row
        if read:
            if sums is not None:
                # HU are linear, so the mean of thin slices is the thicker slice.
                volume[len(kept)] = np.rint(sums / len(read)).astype(np.int16)
            kept.append(position)
            padded.append(any(is_padded for is_padded, _ in read))
            brain.append(sum(share for _, share in read) / len(read))
    reason = why_no_head(reader.extents) if task.pixels.judges_hu and kept else ""
    if reason:
        lost = {(position, inside) for position, inside, _ in failures}
        places = ((position, inside) for position, files in enumerate(task.slices) for inside in range(len(files)))
        failures += [(*place, f"{reason} (accepted with --accept-raw)") for place in places if place not in lost]
        return DecodedStudy(volume[:0], [], [], [], sorted(failures))
    if task.pixels.is_plain or not kept:
        return DecodedStudy(volume[: len(kept)], kept, padded, brain, failures)
    return _treated(task, volume[: len(kept)], kept, padded, brain, failures)


def _decode_sequences(task: StudyTask, settings: SequenceSettings) -> DecodedStudy:
    """Brings the sequences of a study to one grid; if one of its files cannot be read, none is."""
    refs = [ref for ref, _ in task.slices[0]]
    try:
        volume, brain = to_volume(run_sequence_steps(read_sequences(refs, settings), settings), settings)
    except DataError as error:
        places = [(position, inside) for position, files in enumerate(task.slices) for inside in range(len(files))]
        return DecodedStudy(np.empty((0, 0, 0), np.int16), [], [], [], [(*place, str(error)) for place in places])
    rows = [files[0][1].frame for files in task.slices]
    kept = list(range(len(rows)))
    return _treated(task, volume[rows], kept, [False] * len(rows), brain[rows].tolist(), [])


def _treated(
    task: StudyTask,
    volume: np.ndarray,
    kept: list[int],
    padded: list[bool],
    brain: list[float],
    failures: list[tuple[int, int, str]],
) -> DecodedStudy:
    pieces = _treat(task, volume, kept)
    if task.pixels.has_parts:
        return DecodedStudy(volume[:0], kept, padded, brain, failures, None, pieces)
    (whole,) = pieces
    return DecodedStudy(whole.volume, kept, padded, brain, failures, whole.origin)


def _treat(task: StudyTask, volume: np.ndarray, kept: list[int]) -> tuple[DecodedPart, ...]:
    """The parts of a volume after the steps of the settings and in their size, and where in the picture they lie."""
    pixels = task.pixels
    headers = [task.slices[position][0][1] for position in kept]
    row_mm = float(np.median([header.spacing_row_mm for header in headers]))
    col_mm = float(np.median([header.spacing_col_mm for header in headers]))
    volume, origin = run_steps(pixels.steps, volume, (row_mm, col_mm))
    positions = np.array([task.positions_mm[position] if task.positions_mm else np.nan for position in kept])
    pieces = []
    for cut in cut_parts(pixels.parts, volume, (row_mm, col_mm), positions):
        taken = cut.take(volume, pixels.hull_hu[0])
        if pixels.size is not None:
            fitted = np.empty((*taken.shape[:-2], pixels.size, pixels.size), np.int16)
            for row, image in zip(as_slices(fitted), as_slices(taken), strict=True):
                row[:] = fit_to_square(image, row_mm, col_mm, pixels.size, pixels.hull_hu[0])
            taken = fitted
        place = origin.cut(cut.box, is_found=cut.is_found, is_mirrored=cut.is_mirrored)
        pieces.append(DecodedPart(cut.name, taken, cut.rows, place))
    return tuple(pieces)


def is_repaired(header: StoredPixels, pixels: PixelSettings) -> bool:
    """True if the slice's intercept is broken and to be repaired."""
    return pixels.repair and has_broken_intercept(header.bits_stored, header.pixel_representation, header.intercept)


def _volume_shape(task: StudyTask) -> tuple[int, int]:
    """(H, W) of a study's volume; (0, 0) if even its most common matrix is too large."""
    if task.pixels.fits_each and task.pixels.size is not None:
        return task.pixels.size, task.pixels.size
    shapes = Counter((header.rows, header.columns) for files in task.slices for _, header in files)
    rows = columns = 0
    for (high, wide), _ in sorted(shapes.items(), key=lambda item: (-item[1], item[0])):
        taller, wider = max(rows, high), max(columns, wide)
        if 2 * len(task.slices) * taller * wider <= MAX_VOLUME_BYTES:
            rows, columns = taller, wider
    return rows, columns


def _fits(header: StoredPixels, task: StudyTask, shape: tuple[int, int]) -> bool:
    return task.pixels.fits_each or (header.rows <= shape[0] and header.columns <= shape[1])


class _Reader:
    """Reads the slices of a study one after the other; caches the last file, which may hold several slices.

    Attributes:
        extents: lowest and highest HU of each slice so far; empty unless `judges_hu` is set.
    """

    def __init__(self, pixels: PixelSettings) -> None:
        self.extents: list[tuple[float, float] | None] = []
        self._pixels = pixels
        self._open: tuple[FileRef, bytes | np.ndarray] | None = None

    def read_slice(self, ref: FileRef, header: StoredPixels, row: np.ndarray) -> tuple[bool, float]:
        """Fills one (H, W) row of a volume; returns whether the slice is padded, and its brain share."""
        pixels = self._pixels
        if header.syntax:
            stored = decode_stored(self._open_file(ref, header), header)
        else:
            stored = decode_stored(ref.read(header.pixel_offset, header.pixel_bytes), header)
        if pixels.judges_hu:
            self.extents.append(hounsfield_extent(stored, header))
        resizes = pixels.fits_each
        hounsfield = np.empty(stored.shape, np.int16) if resizes else frame_centre(row, stored.shape, pixels.hull_hu[0])
        facts = fill_hounsfield(stored, header, hounsfield, repair=is_repaired(header, pixels), hull_hu=pixels.hull_hu)
        if resizes and pixels.size is not None:
            spacing = (header.spacing_row_mm, header.spacing_col_mm)
            row[:] = fit_to_square(hounsfield, *spacing, pixels.size, pixels.hull_hu[0])
        return facts

    def _open_file(self, ref: FileRef, header: StoredPixels) -> bytes | np.ndarray:
        if self._open is None or self._open[0] != ref:
            self._open = None  # before the next is read: two large files are never held at once
            self._open = (ref, open_file(ref.read(), header))
        return self._open[1]
