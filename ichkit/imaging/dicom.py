"""DICOM headers by allow-list; nothing else of a file is ever kept."""

import io
import math
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import pydicom
from pydicom.multival import MultiValue

from ichkit.core.errors import DataError
from ichkit.imaging.tags import EXPLICIT_LITTLE, IMPLICIT_LITTLE, walk_tags

MAX_SIDE = 4096
MAX_FILE_BYTES = 256 * 1024**2
"""Eight times the largest slice that is taken; a larger file is something else."""
HEAD_BYTES = (16_384, 1_048_576)
_PIXEL_TAG = b"\xe0\x7f\x10\x00"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"


class UnreadableError(DataError):
    """A file that cannot be taken; the message is the reason in `rejected.csv` and holds nothing from its header.

    Attributes:
        header: what the header says, where it could be read and only the pixels are at fault.
    """

    header: "Header | None" = None


@dataclass(frozen=True, slots=True)
class StoredPixels:
    """How the pixels of one file are stored: all that decoding them takes.

    Attributes:
        spacing_row_mm, spacing_col_mm: PixelSpacing (between rows, between columns).
        pixel_offset, pixel_bytes: where the stored pixels lie in the file; 0 bytes where they are compressed.
    """

    rows: int
    columns: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    slope: float
    intercept: float
    spacing_row_mm: float
    spacing_col_mm: float
    pixel_offset: int
    pixel_bytes: int


@dataclass(frozen=True, slots=True)
class Header(StoredPixels):
    """What is kept of one file's header.

    Attributes:
        kind: the values of `KIND_TAGS` in lower case, joined by `KIND_SEPARATOR`, only ever matched against key words;
            empty where all of them are.
        slice_uid, study_uid, series_uid, patient_id: without the blanks and zero bytes around them, which mean nothing
            (DICOM PS3.5 table 6.2-1), so that one patient is one patient however a program padded the id.
        position_x, position_y, position_z: ImagePositionPatient in mm.
        row_x .. column_z: ImageOrientationPatient.
        instance_number, acquisition_number: 0 where they are missing or no whole number.
    """

    slice_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    kind: str
    position_x: float
    position_y: float
    position_z: float
    row_x: float
    row_y: float
    row_z: float
    column_x: float
    column_y: float
    column_z: float
    instance_number: int = 0
    acquisition_number: int = 0


STORED_COLUMNS = [field.name for field in fields(StoredPixels)]
_LISTS = (list, MultiValue)
_Values = pydicom.Dataset | Mapping[str, object]
HEADER_COLUMNS = [field.name for field in fields(Header)]
POSITION = ["position_x", "position_y", "position_z"]
ORIENTATION = ["row_x", "row_y", "row_z", "column_x", "column_y", "column_z"]
KIND_TAGS = (
    "ImageType",
    "SeriesDescription",
    "ProtocolName",
    "ConvolutionKernel",
    "Manufacturer",
    "ContrastBolusAgent",
    "BodyPartExamined",
)
KIND_SEPARATOR = "\x1f"
_MAX_NUMBER = 2**31


def read_header(read_head: Callable[[int], bytes], num_bytes: int) -> Header:
    """The header of one CT slice.

    Args:
        read_head: gives the first n bytes of the file, or all of it where it is shorter.
        num_bytes: size of the file.

    Raises:
        UnreadableError: not DICOM, not CT, truncated, absurd, multi-frame, or without the geometry a slice needs.
    """
    if num_bytes == 0:
        raise UnreadableError("empty file")
    if num_bytes > MAX_FILE_BYTES:
        raise UnreadableError(f"file is larger than {MAX_FILE_BYTES // 1024**2} MB")
    for wanted in (*HEAD_BYTES, num_bytes):
        head = read_head(wanted)
        header = _read_ordinary(head, num_bytes)
        if header is not None:
            return header
        if _DEFLATED in head[:1024]:
            raise UnreadableError("deflated transfer syntax is not supported")
        dataset, offset = _parse(head)
        if head[offset : offset + 4] == _PIXEL_TAG and len(head) >= offset + 12:
            syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", IMPLICIT_LITTLE))
            return _check(dataset, syntax, head, offset, num_bytes)
        if len(head) >= num_bytes:
            break
    raise UnreadableError("no pixel data")


def _read_ordinary(head: bytes, num_bytes: int) -> Header | None:
    """The header of an ordinary file; None where pydicom has to look at it, also to say what is wrong with it."""
    tags = walk_tags(head)
    if tags is None or len(head) < tags.pixel_offset + 12:
        return None
    try:
        return _check(tags.values, tags.syntax, head, tags.pixel_offset, num_bytes)
    except UnreadableError:
        return None


def _parse(head: bytes) -> tuple[pydicom.Dataset, int]:
    stream = io.BytesIO(head)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(stream, stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError as error:
        raise UnreadableError("not DICOM") from error
    # A hostile header makes pydicom raise anything from struct.error to RecursionError.
    except Exception as error:
        raise UnreadableError(f"header cannot be read ({type(error).__name__})") from error
    return dataset, stream.tell()


def _check(dataset: _Values, syntax: str, head: bytes, offset: int, num_bytes: int) -> Header:
    if syntax == _BIG_ENDIAN:
        raise UnreadableError("big-endian transfer syntax is not supported")
    modality = _text(dataset, "Modality")
    if modality != "CT":
        raise UnreadableError("not CT" if modality else "no Modality")
    rows, columns = _whole(dataset, "Rows"), _whole(dataset, "Columns")
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise UnreadableError(f"absurd size: Rows and Columns must be 1 to {MAX_SIDE}")
    if _whole(dataset, "SamplesPerPixel", 1) != 1:
        raise UnreadableError("colour image")
    if _whole(dataset, "NumberOfFrames", 1) > 1:
        raise UnreadableError("multi-frame image")
    allocated, stored = _whole(dataset, "BitsAllocated"), _whole(dataset, "BitsStored")
    high_bit = _whole(dataset, "HighBit", stored - 1)
    if allocated != 16 or not (1 <= stored <= 16 and stored - 1 <= high_bit <= 15):
        raise UnreadableError("expected 16 bits allocated and at most 16 stored")
    slope, intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
    if slope == 0:
        raise UnreadableError("RescaleSlope is 0")
    x, y, z = _numbers(dataset, "ImagePositionPatient", 3)
    orientation = _numbers(dataset, "ImageOrientationPatient", 6)
    if _parallelogram(orientation) < 0.5:
        raise UnreadableError("ImageOrientationPatient spans no plane")
    spacing_row, spacing_col = _numbers(dataset, "PixelSpacing", 2)
    if not (0 < spacing_row < 100 and 0 < spacing_col < 100):
        raise UnreadableError("PixelSpacing is not between 0 and 100 mm")
    failure = None
    try:
        pixel_offset, pixel_bytes = _locate_pixels(head, offset, syntax, 2 * rows * columns, num_bytes)
    except UnreadableError as error:
        failure, pixel_offset, pixel_bytes = error, 0, 0
    header = Header(
        rows,
        columns,
        stored,
        high_bit,
        _whole(dataset, "PixelRepresentation", 0),
        slope,
        intercept,
        spacing_row,
        spacing_col,
        pixel_offset,
        pixel_bytes,
        _id(dataset, "SOPInstanceUID"),
        _id(dataset, "StudyInstanceUID"),
        _id(dataset, "SeriesInstanceUID"),
        _id(dataset, "PatientID"),
        _kind(dataset),
        x,
        y,
        z,
        *orientation,
        _count(dataset, "InstanceNumber"),
        _count(dataset, "AcquisitionNumber"),
    )
    if failure is not None:
        failure.header = header
        raise failure
    return header


def _locate_pixels(head: bytes, offset: int, syntax: str, expected: int, num_bytes: int) -> tuple[int, int]:
    """Offset and length of uncompressed pixels; (0, 0) where they are compressed.

    Source: DICOM PS3.5 7.1.2 and 7.1.3: tag, VR and 32 bit length, or tag and length alone.
    """
    explicit = syntax != IMPLICIT_LITTLE
    (length,) = struct.unpack_from("<I", head, offset + (8 if explicit else 4))
    if syntax not in (IMPLICIT_LITTLE, EXPLICIT_LITTLE):
        return 0, 0
    start = offset + (12 if explicit else 8)
    if length == _UNDEFINED_LENGTH or length < expected:
        raise UnreadableError("pixel data shorter than Rows x Columns")
    if start + expected > num_bytes:
        raise UnreadableError("truncated: the pixels end too early")
    return start, expected


def _parallelogram(orientation: list[float]) -> float:
    """Area spanned by the direction cosines of rows and columns: 1 where they are what they should be."""
    a, b, c, d, e, f = orientation
    return math.hypot(b * f - c * e, c * d - a * f, a * e - b * d)


def _kind(dataset: _Values) -> str:
    words = [_text(dataset, name).replace(KIND_SEPARATOR, " ").strip().lower() for name in KIND_TAGS]
    return KIND_SEPARATOR.join(words) if any(words) else ""


def _id(dataset: _Values, name: str) -> str:
    return _text(dataset, name).strip(" \0")


def _count(dataset: _Values, name: str) -> int:
    """A number that only orders slices: one that cannot be read is no reason to refuse the file."""
    try:
        number = _whole(dataset, name, 0)
    except UnreadableError:
        return 0
    return number if abs(number) < _MAX_NUMBER else 0


def _value(dataset: _Values, name: str) -> object:
    try:
        return dataset.get(name)
    # A value that cannot be converted raises on access, with any type of exception.
    except Exception as error:
        raise UnreadableError(f"{name} cannot be read") from error


def _text(dataset: _Values, name: str) -> str:
    value = _value(dataset, name)
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def _number(dataset: _Values, name: str, default: float | None = None) -> float:
    value = _value(dataset, name)
    if isinstance(value, _LISTS) and len(value):
        value = value[0]
    if value is None or value == "":
        if default is None:
            raise UnreadableError(f"no {name}")
        return default
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UnreadableError(f"{name} is not a number") from error
    if not math.isfinite(number):
        raise UnreadableError(f"{name} is not finite")
    return number


def _whole(dataset: _Values, name: str, default: int | None = None) -> int:
    return int(_number(dataset, name, default))


def _numbers(dataset: _Values, name: str, count: int) -> list[float]:
    value = _value(dataset, name)
    if value is None or not isinstance(value, _LISTS) or len(value) != count:
        raise UnreadableError(f"no {name} of {count} numbers")
    try:
        numbers = [float(item) for item in value]
    except (TypeError, ValueError) as error:
        raise UnreadableError(f"{name} is not numeric") from error
    if not all(map(math.isfinite, numbers)):
        raise UnreadableError(f"{name} is not finite")
    return numbers
