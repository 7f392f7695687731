"""One study from its files to its volume; what runs in a worker."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ichkit.imaging.dicom import Header, UnreadableError, decode_stored, has_broken_intercept, to_hounsfield
from ichkit.imaging.resample import fit_to_square, place_in_centre
from ichkit.imaging.store import write_volume
from ichkit.sources.files import FileRef


@dataclass(frozen=True)
class PixelSettings:
    """How stored pixels become a volume.

    Attributes:
        repair: mend broken intercepts (RSNA only).
        hull_hu: lowest and highest HU kept.
        size: side of the square every slice is fitted to; None keeps the native size.
    """

    repair: bool
    hull_hu: tuple[int, int]
    size: int | None


@dataclass(frozen=True)
class StudyTask:
    """One study to be decoded.

    Attributes:
        key: hex digest of everything the volume depends on; names its file.
        slices: for each slice of the volume its files with their headers; several where a thin series is averaged.
    """

    key: str
    slices: tuple[tuple[tuple[FileRef, Header], ...], ...]
    pixels: PixelSettings


@dataclass(frozen=True)
class StudyRecord:
    """What came of a task.

    Attributes:
        volume: path relative to the store, empty where no slice could be read.
        kept: positions in `task.slices` of the rows of the volume.
        padded: for each kept slice, whether its scanner padded it.
        failures: (position in `task.slices`, position inside it, reason) of each file that could not be read.
    """

    key: str
    volume: str
    sha256: str
    num_bytes: int
    kept: list[int]
    padded: list[bool]
    failures: list[tuple[int, int, str]]


@dataclass(frozen=True)
class DecodedStudy:
    """A volume in memory: (S, H, W) int16 HU, and what `StudyRecord` says of it."""

    volume: np.ndarray
    kept: list[int]
    padded: list[bool]
    failures: list[tuple[int, int, str]]


def store_study(folder: Path, task: StudyTask) -> StudyRecord:
    """Decodes a study and writes its volume below `folder`."""
    decoded = decode_study(task)
    if not decoded.kept:
        return StudyRecord(task.key, "", "", 0, [], [], decoded.failures)
    volume, digest = write_volume(folder, task.key, decoded.volume)
    return StudyRecord(
        task.key, volume, digest.sha256, digest.num_bytes, decoded.kept, decoded.padded, decoded.failures
    )


def decode_study(task: StudyTask) -> DecodedStudy:
    """Reads every file of a study into one volume; a file that cannot be read is left out and named.

    A study of mixed matrix sizes gets the largest rows and columns; smaller slices stand in the middle of air.
    """
    kept, padded, images, failures = [], [], [], []
    for position, files in enumerate(task.slices):
        parts = []
        for inside, (ref, header) in enumerate(files):
            try:
                parts.append(_read_slice(ref, header, task.pixels))
            except UnreadableError as error:
                failures.append((position, inside, str(error)))
        if parts:
            kept.append(position)
            images.append(_average([image for image, _ in parts], task.pixels.hull_hu[0]))
            padded.append(any(is_padded for _, is_padded in parts))
    if not images:
        return DecodedStudy(np.empty((0, 0, 0), np.int16), [], [], failures)
    return DecodedStudy(_stack(images, task.pixels.hull_hu[0]), kept, padded, failures)


def is_repaired(header: Header, pixels: PixelSettings) -> bool:
    """True where the slice's intercept is broken and mended."""
    return pixels.repair and has_broken_intercept(header.bits_stored, header.pixel_representation, header.intercept)


def _read_slice(ref: FileRef, header: Header, pixels: PixelSettings) -> tuple[np.ndarray, bool]:
    data = ref.read(header.pixel_offset, header.pixel_bytes) if header.pixel_bytes else ref.read()
    stored = decode_stored(data, header)
    hounsfield, is_padded = to_hounsfield(stored, header, repair=is_repaired(header, pixels), hull_hu=pixels.hull_hu)
    if pixels.size is not None:
        spacing = (header.spacing_row_mm, header.spacing_col_mm)
        hounsfield = fit_to_square(hounsfield, *spacing, pixels.size, pixels.hull_hu[0])
    return hounsfield, is_padded


def _average(images: list[np.ndarray], fill_hu: int) -> np.ndarray:
    """The mean of the slices of a slab, rounded to whole HU; HU are linear, so this is the thicker slice."""
    if len(images) == 1:
        return images[0]
    return np.rint(_stack(images, fill_hu).mean(0, dtype=np.float32)).astype(np.int16)


def _stack(images: list[np.ndarray], fill_hu: int) -> np.ndarray:
    shape = (max(image.shape[0] for image in images), max(image.shape[1] for image in images))
    return np.stack([place_in_centre(image, shape, fill_hu) for image in images])
