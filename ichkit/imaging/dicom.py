"""DICOM headers by allow-list, and stored pixels to Hounsfield units; nothing else of a file is ever kept."""

import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numba
import numpy as np
import pydicom
from pydicom.multival import MultiValue

from ichkit.core.errors import DataError

PADDING_HU = -1400
"""Below any tissue, air and its noise: a slice with such a pixel was padded by its scanner (-2000 stored)."""
MAX_SIDE = 4096
HEAD_BYTES = (16_384, 1_048_576)
_PIXEL_TAG = b"\xe0\x7f\x10\x00"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"


class UnreadableError(DataError):
    """A file that cannot be taken; the message is the reason in `rejected.csv` and holds nothing from its header.

    Attributes:
        header: what the header says, where it could be read and only the pixels are at fault.
    """

    header: "Header | None" = None


@dataclass(frozen=True, slots=True)
class Header:
    """What is kept of one file's header.

    Attributes:
        position_x, position_y, position_z: ImagePositionPatient in mm.
        row_x .. column_z: ImageOrientationPatient.
        spacing_row_mm, spacing_col_mm: PixelSpacing (between rows, between columns).
        pixel_offset, pixel_bytes: where the stored pixels lie in the file; 0 bytes where they are compressed.
        kind: ImageType, SeriesDescription, ConvolutionKernel and ContrastBolusAgent in lower case, only ever matched
            against key words.
    """

    slice_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    kind: str
    rows: int
    columns: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    slope: float
    intercept: float
    position_x: float
    position_y: float
    position_z: float
    row_x: float
    row_y: float
    row_z: float
    column_x: float
    column_y: float
    column_z: float
    spacing_row_mm: float
    spacing_col_mm: float
    pixel_offset: int
    pixel_bytes: int


HEADER_COLUMNS = [field.name for field in fields(Header)]
POSITION = ["position_x", "position_y", "position_z"]
ORIENTATION = ["row_x", "row_y", "row_z", "column_x", "column_y", "column_z"]


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
    for wanted in (*HEAD_BYTES, num_bytes):
        head = read_head(wanted)
        if _DEFLATED in head[:1024]:
            raise UnreadableError("deflated transfer syntax is not supported")
        dataset, offset = _parse(head)
        if head[offset : offset + 4] == _PIXEL_TAG and len(head) >= offset + 12:
            return _check(dataset, head, offset, num_bytes)
        if len(head) >= num_bytes:
            break
    raise UnreadableError("no pixel data")


def decode_stored(data: bytes, header: Header) -> np.ndarray:
    """(H, W) uint16 stored values, bit patterns as in the file.

    Args:
        data: the pixel bytes where they are uncompressed (`header.pixel_bytes` of them), else the whole file.

    Raises:
        UnreadableError: too few bytes, or a compressed syntax without a working decoder.
    """
    if header.pixel_bytes:
        if len(data) < header.pixel_bytes:
            raise UnreadableError("truncated: the pixels end too early")
        return np.frombuffer(data, "<u2", header.rows * header.columns).reshape(header.rows, header.columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = pydicom.pixels.pixel_array(io.BytesIO(data), raw=True)
    # pydicom and its plug-ins raise what they like; whatever it is, the file is rejected and the rest goes on.
    except Exception as error:
        text = str(error)
        missing = "plugins" in text or "missing dependencies" in text
        hint = "no decoder for its compression; pip install 'ichkit[dicom]'" if missing else type(error).__name__
        raise UnreadableError(f"pixels cannot be decompressed ({hint})") from error
    if stored.shape != (header.rows, header.columns):
        raise UnreadableError("decompressed pixels do not fit Rows and Columns")
    return np.ascontiguousarray(stored).astype(np.int64).astype(np.uint16)


def to_hounsfield(
    stored: np.ndarray, header: Header, *, repair: bool, hull_hu: tuple[int, int]
) -> tuple[np.ndarray, bool]:
    """(H, W) int16 HU clipped to the hull, and whether the scanner padded the slice.

    Args:
        stored: (H, W) uint16 bit patterns.
        repair: mend a broken intercept (see `has_broken_intercept`).
        hull_hu: lowest and highest HU kept.
    """
    table, is_padding = _hounsfield_table(
        header.bits_stored,
        header.high_bit,
        header.pixel_representation,
        header.slope,
        header.intercept,
        repair,
        *hull_hu,
    )
    hounsfield = np.empty(stored.shape, np.int16)
    padded = _look_up(stored.reshape(-1), table, is_padding, hounsfield.reshape(-1))
    return hounsfield, bool(padded)


def has_broken_intercept(bits_stored: int, pixel_representation: int, intercept: float) -> bool:
    """True for the 12 bit unsigned files of RSNA 2019 whose intercept is lost.

    Source: 123 images of the competition, formats 12,0,0 and 12,0,1. The rule is for that data set only: elsewhere such
        a header may be right.
    """
    return bits_stored == 12 and pixel_representation == 0 and intercept > -100


def pixel_format(bits_stored: int, pixel_representation: int, intercept: float) -> str:
    """BitsStored, PixelRepresentation and RescaleIntercept as the header has them.

    Example:
        >>> pixel_format(16, 1, -1024.0)
        '16,1,-1024'
    """
    return f"{bits_stored},{pixel_representation},{intercept:g}"


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


def _check(dataset: pydicom.Dataset, head: bytes, offset: int, num_bytes: int) -> Header:
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", _IMPLICIT_LITTLE))
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
    if np.linalg.norm(np.cross(orientation[:3], orientation[3:])) < 0.5:
        raise UnreadableError("ImageOrientationPatient spans no plane")
    spacing_row, spacing_col = _numbers(dataset, "PixelSpacing", 2)
    if not (0 < spacing_row < 100 and 0 < spacing_col < 100):
        raise UnreadableError("PixelSpacing is not between 0 and 100 mm")
    header = Header(
        _text(dataset, "SOPInstanceUID"),
        _text(dataset, "StudyInstanceUID"),
        _text(dataset, "SeriesInstanceUID"),
        _text(dataset, "PatientID"),
        _kind(dataset),
        rows,
        columns,
        stored,
        high_bit,
        _whole(dataset, "PixelRepresentation", 0),
        slope,
        intercept,
        x,
        y,
        z,
        *orientation,
        spacing_row,
        spacing_col,
        pixel_offset=0,
        pixel_bytes=0,
    )
    try:
        pixel_offset, pixel_bytes = _locate_pixels(head, offset, syntax, 2 * rows * columns, num_bytes)
    except UnreadableError as error:
        error.header = header
        raise
    return replace(header, pixel_offset=pixel_offset, pixel_bytes=pixel_bytes)


def _locate_pixels(head: bytes, offset: int, syntax: str, expected: int, num_bytes: int) -> tuple[int, int]:
    """Offset and length of uncompressed pixels; (0, 0) where they are compressed.

    Source: DICOM PS3.5 7.1.2 and 7.1.3: tag, VR and 32 bit length, or tag and length alone.
    """
    explicit = syntax != _IMPLICIT_LITTLE
    (length,) = struct.unpack_from("<I", head, offset + (8 if explicit else 4))
    if syntax not in (_IMPLICIT_LITTLE, _EXPLICIT_LITTLE):
        return 0, 0
    start = offset + (12 if explicit else 8)
    if length == _UNDEFINED_LENGTH or length < expected:
        raise UnreadableError("pixel data shorter than Rows x Columns")
    if start + expected > num_bytes:
        raise UnreadableError("truncated: the pixels end too early")
    return start, expected


def _kind(dataset: pydicom.Dataset) -> str:
    words = [_text(dataset, name) for name in ("ImageType", "SeriesDescription", "ConvolutionKernel")]
    contrast = "contrast agent" if _text(dataset, "ContrastBolusAgent") else ""
    return "|".join([*words, contrast]).lower()


def _value(dataset: pydicom.Dataset, name: str) -> object:
    try:
        return dataset.get(name)
    # A value that cannot be converted raises on access, with any type of exception.
    except Exception as error:
        raise UnreadableError(f"{name} cannot be read") from error


def _text(dataset: pydicom.Dataset, name: str) -> str:
    value = _value(dataset, name)
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def _number(dataset: pydicom.Dataset, name: str, default: float | None = None) -> float:
    value = _value(dataset, name)
    value = value[0] if isinstance(value, MultiValue) and len(value) else value
    if value is None or value == "":
        if default is None:
            raise UnreadableError(f"no {name}")
        return default
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UnreadableError(f"{name} is not a number") from error
    if not np.isfinite(number):
        raise UnreadableError(f"{name} is not finite")
    return number


def _whole(dataset: pydicom.Dataset, name: str, default: int | None = None) -> int:
    return int(_number(dataset, name, default))


def _numbers(dataset: pydicom.Dataset, name: str, count: int) -> list[float]:
    value = _value(dataset, name)
    if value is None or not isinstance(value, MultiValue | list) or len(value) != count:
        raise UnreadableError(f"no {name} of {count} numbers")
    try:
        numbers = [float(item) for item in value]
    except (TypeError, ValueError) as error:
        raise UnreadableError(f"{name} is not numeric") from error
    if not np.isfinite(numbers).all():
        raise UnreadableError(f"{name} is not finite")
    return numbers


@lru_cache(maxsize=64)
def _hounsfield_table(
    bits_stored: int, high_bit: int, signed: int, slope: float, intercept: float, repair: bool, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
    """(65536,) int16 HU of every 16 bit pattern, and (65536,) bool whether it is padding.

    Source: DICOM PS3.3 C.7.6.3.1 (bits outside BitsStored are dropped, signed values are two's complement) and
        C.11.1.1.2 (slope and intercept). Repair: see `has_broken_intercept`; the lost intercept is -1000, and stored
        values had wrapped at 4096.
    """
    patterns = np.arange(65536, dtype=np.int64)
    values = (patterns >> (high_bit + 1 - bits_stored)) & ((1 << bits_stored) - 1)
    if signed:
        values = np.where(values >= 1 << (bits_stored - 1), values - (1 << bits_stored), values)
    if repair:
        values, intercept = (values + 1000) % 4096, -1000.0
    hounsfield = np.rint(values * slope + intercept)
    return np.clip(hounsfield, low, high).astype(np.int16), hounsfield < PADDING_HU


@numba.njit(cache=True, nogil=True)
def _look_up(stored: np.ndarray, table: np.ndarray, is_padding: np.ndarray, hounsfield: np.ndarray) -> bool:
    padded = False
    for i in range(stored.size):
        value = stored[i]
        hounsfield[i] = table[value]
        padded |= is_padding[value]
    return padded
