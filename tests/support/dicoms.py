"""Small DICOM files made by pydicom's own writer, for tests that must know every bit of them."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ichkit.imaging.dicom import Header, UnreadableError, read_slices


def make_dataset(
    stored: np.ndarray,
    *,
    slice_uid: str = "1.2.3.1",
    series_uid: str = "1.2.3",
    study_uid: str = "1.2",
    patient_id: str = "ID_patient",
    position: tuple[float, float, float] = (0.0, 0.0, 0.0),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float] = (0.5, 0.5),
    bits_stored: int = 16,
    signed: int = 1,
    intercept: float = -1024,
    slope: float = 1,
    implicit: bool = False,
    **tags: object,
) -> FileDataset:
    """A CT slice; stored is (H, W) uint16 bit patterns."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = slice_uid, series_uid, study_uid
    dataset.PatientID, dataset.Modality = patient_id, "CT"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), list(orientation)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.PixelSpacing = list(spacing)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits_stored, bits_stored - 1
    dataset.PixelRepresentation = signed
    dataset.RescaleIntercept, dataset.RescaleSlope = intercept, slope
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def write_slice(path: Path, stored: np.ndarray | None = None, **tags: object) -> Path:
    """Writes one slice; without pixels, an 8 x 8 one of soft tissue."""
    stored = np.full((8, 8), 1064, np.uint16) if stored is None else stored
    path.parent.mkdir(parents=True, exist_ok=True)
    with pydicom.config.disable_value_validation():
        make_dataset(stored, **tags).save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, num_slices: int, gap_mm: float = 5.0, **tags: object) -> list[Path]:
    """Slices of one series, their files named so that the order of names is not that of positions."""
    series = tags.get("series_uid", "1.2.3")
    return [
        write_slice(
            folder / f"{(i * 7) % 101:04d}_{i}.dcm",
            _tissue_and_air(1024 + i),
            slice_uid=f"{series}.{i + 1}",
            position=(0, 0, i * gap_mm),
            **tags,
        )
        for i in range(num_slices)
    ]


def _tissue_and_air(stored: int) -> np.ndarray:
    """(8, 8) of one value, but for a corner of -1000 HU: without any air the values could not be HU of a head."""
    pixels = np.full((8, 8), stored, np.uint16)
    pixels[0, 0] = 24
    return pixels


def read_header(data: bytes) -> Header:
    """The header of a file of one CT slice; raises its reason where the slice cannot be used."""
    ((header, reason),) = read_slices(lambda length: data[:length], len(data))
    if header is None or reason:
        raise UnreadableError(reason)
    return header
