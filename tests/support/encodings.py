"""One CT series in every encoding that turns up in archives: meta groups cut and altered, Enhanced CT, NIfTI."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from ichkit.sources.files import scan_files
from ichkit.sources.folder import plan_folder
from ichkit.sources.index import read_index
from ichkit.sources.plan import StudyTasks, order_slices
from ichkit.sources.study import DecodedStudy, PixelSettings, decode_study
from support.dicoms import make_dataset

HULL = (-1024, 3071)
_META_BEGINS = 132


def head_pixels(seed: int = 0, shape: tuple[int, int] = (16, 12)) -> np.ndarray:
    """(H, W) uint16 stored values of air, brain and bone with intercept -1024; no two pixels of a row are alike."""
    return np.random.default_rng(seed).integers(24, 2024, shape).astype(np.uint16)


def to_bytes(dataset: FileDataset) -> bytes:
    """The file as pydicom writes it."""
    buffer = io.BytesIO()
    with pydicom.config.disable_value_validation():
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def data_set_begins(data: bytes) -> int:
    """Where the data set begins behind the meta group."""
    return _META_BEGINS + 12 + struct.unpack_from("<I", data, _META_BEGINS + 8)[0]


def with_meta_uid(data: bytes, uid: bytes | None) -> bytes:
    """The file with another transfer syntax UID in its meta group, or with none; the rest is as it was."""
    at = data.index(b"\x02\x00\x10\x00UI")
    length = struct.unpack_from("<H", data, at + 6)[0]
    element = b""
    if uid is not None:
        uid += b"\0" * (len(uid) % 2)
        element = data[at : at + 6] + struct.pack("<H", len(uid)) + uid
    group = struct.unpack_from("<I", data, _META_BEGINS + 8)[0] + len(element) - 8 - length
    begin = data[: _META_BEGINS + 8] + struct.pack("<I", group) + data[_META_BEGINS + 12 : at]
    return begin + element + data[at + 8 + length :]


def without_meta(data: bytes) -> bytes:
    """The bare data set."""
    return data[data_set_begins(data) :]


def deflated(data: bytes) -> bytes:
    """The file in the deflated transfer syntax."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = packer.compress(without_meta(data)) + packer.flush()
    named = with_meta_uid(data, b"1.2.840.10008.1.2.1.99")
    return named[: data_set_begins(named)] + body


def big_endian(dataset: FileDataset) -> bytes:
    """The bare data set in explicit big endian."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = False, False
    copy = Dataset()
    copy.update({tag: dataset[tag] for tag in list(dataset.keys()) if tag.group > 2})
    write_dataset(buffer, copy)
    return buffer.getvalue()


def enhanced(
    frames: list[np.ndarray], positions: list[tuple[float, float, float]], rescales: list[tuple[float, float]]
) -> FileDataset:
    """An Enhanced CT of uint16 frames: orientation and spacing for all, position and (slope, intercept) of each."""
    dataset = make_dataset(frames[0], slice_uid="1.2.9", series_uid="1.2.8", study_uid="1.2.7", signed=0)
    names = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    for name in names:
        delattr(dataset, name)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = b"".join(frame.astype("<u2").tobytes() for frame in frames)
    shared = Dataset()
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.PixelMeasuresSequence = [item(PixelSpacing=[0.5, 0.5], SliceThickness=5)]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for position, (slope, intercept) in zip(positions, rescales, strict=True):
        group = Dataset()
        group.PlanePositionSequence = [item(ImagePositionPatient=list(position))]
        group.PixelValueTransformationSequence = [
            item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")
        ]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def decode_folder(root: Path, *, judges_hu: bool = False) -> list[DecodedStudy]:
    """Every study below a root, by study_id, as `predict` reads it."""
    plan = plan_folder(read_index(scan_files(root)[0], None), b"salt")
    pixels = PixelSettings(False, HULL, None, judges_hu)
    return [decode_study(task) for task in StudyTasks(order_slices(plan.files)[0], pixels)]


def item(**values: object) -> Dataset:
    """An item of a sequence with these elements."""
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
