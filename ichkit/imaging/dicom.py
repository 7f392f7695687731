"""DICOM headers by allow-list: no other tag of a file is read or stored."""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import pydicom
from pydicom.multival import MultiValue

from ichkit.core.errors import DataError
from ichkit.imaging.geometry import TRANSPOSE, in_plane_turn
from ichkit.imaging.tags import EXPLICIT_BIG, EXPLICIT_LITTLE, WANTED_NAMES, is_little_endian, is_vr, walk_tags

MAX_SIDE = 4096
MAX_FILE_BYTES = 256 * 1024**2
"""Eight times the largest slice that is taken; a larger file is something else."""
MAX_FRAMES = 10_000
HEAD_BYTES = (16_384, 1_048_576, 16_777_216)
"""The first bytes of a file that are parsed, until they hold a whole header: the largest, of an Enhanced CT of 10,000
frames, has about 10 MB. A hostile or sparse file of nothing but empty elements would take minutes."""
_ITEM = b"\xfe\xff\x00\xe0"
_MAX_ITEMS = 300_000
"""Of all sequences: about twenty a frame. Each is an object of about 1 kB."""
DEFLATED = "1.2.840.10008.1.2.1.99"
NO_PADDING = -1
_PIXEL_TAG = b"\xe0\x7f\x10\x00"
_META_BEGINS = 132
_MAX_MM = 1e5
"""A hundred metres: no patient lies there."""
_SNIFF_BYTES = 65_536
_ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT and Legacy Converted Enhanced CT."""
_MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "CTReconstructionSequence",
)
"""Functional groups that hold what a slice of its own has in its header (PS3.3 A.38.1.4, C.7.6.16.2)."""
_UNITS = ("HU_MOD", "OD", "US", "MGML", "Z_EFF", "ED", "EDW", "PCT")
"""Defined terms of RescaleType other than HU (PS3.3 C.11.1.1.2); other text may name somebody and is not repeated."""


_FAMILIES = {
    str(family[0]): frozenset(map(str, family))
    for family in (
        (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit),
        (pydicom.uid.JPEGExtended12Bit, pydicom.uid.JPEGBaseline8Bit),
        (pydicom.uid.JPEGLosslessSV1, pydicom.uid.JPEGLossless),
        (pydicom.uid.JPEGLSLossless, pydicom.uid.JPEGLSNearLossless),
        (
            pydicom.uid.JPEG2000Lossless,
            pydicom.uid.JPEG2000,
            pydicom.uid.HTJ2KLossless,
            pydicom.uid.HTJ2KLosslessRPCL,
            pydicom.uid.HTJ2K,
        ),
        (pydicom.uid.RLELossless,),
    )
}
"""What the pixels show, to the transfer syntaxes that name it."""
_GE_PRIVATE = "1.2.840.113619.5.2"
"""Implicit VR little endian, but for the pixels, which are big endian (GE DLX conformance statement)."""


class UnreadableError(DataError):
    """A file that cannot be used; the message is the reason in `rejected.csv`, without any header value."""


@dataclass(frozen=True, slots=True)
class StoredPixels:
    """How the pixels of one slice are stored: everything needed to decode them.

    Attributes:
        rows, columns: of the slice once it is turned (see `turn`).
        padding_value, padding_limit: PixelPaddingValue and PixelPaddingRangeLimit as 16 bit patterns; -1 without.
        spacing_row_mm, spacing_col_mm: PixelSpacing (between rows, between columns) of the turned slice.
        turn: what brings the stored rows and columns to the common orientation (`geometry.in_plane_turn`).
        frame: which frame of its file the slice is, from 0.
        syntax: transfer syntax UID of pixels that must be decompressed, `nifti.SYNTAX`, or empty where they lie in the
            file as they are. Found by reading: the UID of the meta group may be missing or wrong.
        pixel_offset, pixel_bytes: where the stored pixels lie in the file (in the inflated file, where the syntax is
            `DEFLATED`); 0 bytes where they are compressed.
    """

    rows: int
    columns: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    padding_value: int
    padding_limit: int
    slope: float
    intercept: float
    spacing_row_mm: float
    spacing_col_mm: float
    turn: int
    frame: int
    syntax: str
    pixel_offset: int
    pixel_bytes: int


@dataclass(frozen=True, slots=True)
class Header(StoredPixels):
    """The header values of one slice that are used.

    Attributes:
        why_raw: why its values may not be Hounsfield units (no rescale, or a RescaleType other than HU); else empty.
        kind: the values of `KIND_TAGS` in lower case, joined by `KIND_SEPARATOR`, only ever matched against key words;
            empty where all of them are.
        slice_uid, study_uid, series_uid, patient_id: without the blanks and zero bytes around them, which mean nothing
            (DICOM PS3.5 table 6.2-1), so that one patient is one patient however a program padded the id.
        position_x, position_y, position_z: ImagePositionPatient in mm.
        row_x .. column_z: ImageOrientationPatient.
        instance_number, acquisition_number: 0 where they are missing or no whole number.
        thickness_mm: SliceThickness to a tenth; 0 where it is missing or no positive number.
        reference_uid: FrameOfReferenceUID: positions of two series can be compared only where it is the same.
    """

    why_raw: str
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
    thickness_mm: float = 0.0
    reference_uid: str = ""


STORED_COLUMNS = [field.name for field in fields(StoredPixels)]
_LISTS = (list, MultiValue)
_Values = pydicom.Dataset | Mapping[str, object]
_ReadHead = Callable[[int], bytes]
Outcome = tuple[Header | None, str]
"""A slice's header, and the reason why it cannot be used, or an empty text."""
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Offset and encoding of the pixels of a file.

    Attributes:
        head: the first bytes of the file, inflated where `is_deflated`.
        offset: of the element PixelData.
        num_bytes: of the file, inflated.
        declared: transfer syntax UID of the meta group; empty where there is none.
    """

    head: bytes
    offset: int
    num_bytes: int
    declared: str = ""
    is_deflated: bool = False


def read_slices(read_head: _ReadHead, num_bytes: int) -> list[Outcome]:
    """The headers of all CT slices in one file: one, or one a frame of an Enhanced CT.

    Args:
        read_head: gives the first n bytes of the file, or all of it where it is shorter.
        num_bytes: size of the file.

    Returns:
        (header or None, reason or "") of each slice; both if only the pixels are invalid. Reasons are: not DICOM, not
        CT, truncated, invalid values, several frames without functional groups, or missing slice geometry.
    """
    try:
        if num_bytes == 0:
            raise UnreadableError("empty file")
        if num_bytes > MAX_FILE_BYTES:
            raise UnreadableError(f"file is larger than {MAX_FILE_BYTES // 1024**2} MB")
        header = _read_ordinary(read_head(HEAD_BYTES[0]), num_bytes)
        return [(header, "")] if header is not None else _read_any(read_head, num_bytes)
    except UnreadableError as error:
        return [(None, str(error))]


def find_data_set(data: bytes) -> int | None:
    """Where the data set of a file begins, as the length of its meta group says; None without a meta group."""
    if data[128:_META_BEGINS] != b"DICM" or data[_META_BEGINS : _META_BEGINS + 8] != b"\x02\0\0\0UL\x04\0":
        return None
    try:
        return int(_META_BEGINS + 12 + struct.unpack_from("<I", data, _META_BEGINS + 8)[0])
    except struct.error:
        return None


def inflate(data: bytes) -> bytes:
    """A deflated file (PS3.5 A.5) with its data set inflated, at most `MAX_FILE_BYTES` of it.

    Raises:
        UnreadableError: no meta group in front, damaged, or too large.
    """
    start = find_data_set(data)
    if start is None:
        raise UnreadableError("deflated data set without a meta group")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data[start:], MAX_FILE_BYTES)
    except zlib.error as error:
        raise UnreadableError("deflated data set is damaged") from error
    if inflater.unconsumed_tail:
        raise UnreadableError(f"deflated data set is larger than {MAX_FILE_BYTES // 1024**2} MB")
    return data[:start] + inflated


def _read_ordinary(head: bytes, num_bytes: int) -> Header | None:
    """The header of an ordinary file; None if it has to be read with pydicom, which also finds what is wrong."""
    tags = walk_tags(head)
    if tags is None or len(head) < tags.pixel_offset + 12:
        return None
    try:
        header, reason = _check(tags.values, _Place(head, tags.pixel_offset, num_bytes))
    except UnreadableError:
        return None
    return None if reason else header


def _read_any(read_head: _ReadHead, num_bytes: int) -> list[Outcome]:
    """The slices of a file as pydicom reads it.

    Raises:
        UnreadableError: see `read_slices`.
    """
    is_deflated = False
    for wanted in HEAD_BYTES:
        head = read_head(wanted)
        is_whole = len(head) >= num_bytes
        if DEFLATED.encode() in head[:1024]:
            head, is_deflated, is_whole = inflate(read_head(num_bytes)), True, True
            num_bytes = len(head)
        try:
            dataset, offset, declared = _parse(head[: HEAD_BYTES[-1]], is_deflated=is_deflated)
        except UnreadableError:
            if is_whole or not _looks_like_dicom(head):
                raise
            continue  # the end of the head may cut an element in two
        if head[offset : offset + 4] == _PIXEL_TAG and len(head) >= offset + 12:
            if _is_encapsulated(head, offset):
                declared = _find_syntax(read_head(min(num_bytes, offset + _SNIFF_BYTES)), offset, declared)
            place = _Place(head, offset, num_bytes, declared, is_deflated)
            if str(dataset.get("SOPClassUID", "")) in _ENHANCED:
                return _check_frames(dataset, place)
            return [_check(dataset, place)]
        if is_whole:
            break
    raise UnreadableError("no pixel data" if is_whole else f"no pixel data in its first {HEAD_BYTES[-1] // 1024**2} MB")


def _looks_like_dicom(head: bytes) -> bool:
    return head[128:_META_BEGINS] == b"DICM" or _begins_data_set(head)


def _begins_data_set(head: bytes) -> bool:
    """True if a file without the prefix DICM begins like a data set: group 2 or 8, a valid first element.

    Big endian counts, so that it can be refused by its name.
    """
    if len(head) < 132:
        return False
    groups = {int.from_bytes(head[:2], order) for order in ("little", "big")}
    if not groups & {2, 8}:
        return False
    lengths = {int.from_bytes(head[4:8], order) for order in ("little", "big")}
    return is_vr(head[4:6]) or min(lengths) <= 1024


def _parse(head: bytes, *, is_deflated: bool) -> tuple[pydicom.Dataset, int, str]:
    """The data set of a file's head, where PixelData begins, and the transfer syntax UID of the meta group."""
    has_mark = head[128:_META_BEGINS] == b"DICM"
    if not has_mark and not _begins_data_set(head):
        raise UnreadableError("not DICOM")
    if is_deflated:
        # Inflated already, within bounds; pydicom must not do it again.
        head = head.replace(DEFLATED.encode(), EXPLICIT_LITTLE.encode().ljust(len(DEFLATED), b"\0"), 1)
    if head.count(_ITEM) > _MAX_ITEMS:
        raise UnreadableError(f"header has more than {_MAX_ITEMS:,} items of sequences")
    stream = io.BytesIO(_correct_endianness(head))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=not has_mark)
        declared = str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
        is_little = dataset.original_encoding[1]
        is_sane = has_mark or bool(dataset.get("Modality") or dataset.get("SOPClassUID"))
    except pydicom.errors.InvalidDicomError as error:
        raise UnreadableError("not DICOM") from error
    # A hostile header makes pydicom raise anything from struct.error to RecursionError.
    except Exception as error:
        reason = f"header cannot be read ({type(error).__name__})" if has_mark else "not DICOM"
        raise UnreadableError(reason) from error
    if is_little is False:
        raise UnreadableError("big-endian transfer syntax is not supported")
    if declared == _GE_PRIVATE:
        raise UnreadableError("big-endian pixels of a private transfer syntax of GE are not supported")
    if not is_sane:
        raise UnreadableError("not DICOM: no DICM mark, and no data set that could be read without it")
    return dataset, stream.tell(), declared


def _correct_endianness(head: bytes) -> bytes:
    """The head, with a transfer syntax that names little endian where it names big endian and the data set is not."""
    start = find_data_set(head)
    declared = EXPLICIT_BIG.encode() + b"\0"
    if start is None or declared not in head[:start] or not is_little_endian(head, start):
        return head
    return head.replace(declared, EXPLICIT_LITTLE.encode() + b"\0", 1)


def _check_frames(dataset: pydicom.Dataset, place: _Place) -> list[Outcome]:
    """(header or None, reason) of every frame of an Enhanced CT.

    Source: DICOM PS3.3 A.38 and C.7.6.16: what a slice of its own has in its header stands in functional groups, of all
        frames or of one.
    """
    num_frames = _whole(dataset, "NumberOfFrames", 1)
    if not 1 <= num_frames <= MAX_FRAMES:
        raise UnreadableError(f"invalid number of frames: expected 1 to {MAX_FRAMES}")
    top = {name: _value(dataset, name) for name in WANTED_NAMES if name in dataset}
    agents = _items(dataset, "ContrastBolusAgentSequence")
    of_all = _items(dataset, "SharedFunctionalGroupsSequence")[:1]
    shared = _group_values(of_all)
    groups = _items(dataset, "PerFrameFunctionalGroupsSequence")
    if len(groups) != num_frames:
        raise UnreadableError(f"Enhanced CT: {num_frames} frames, functional groups of {len(groups)}")
    found: list[Outcome] = []
    for frame, group in enumerate(groups):
        try:
            values = {**top, **shared, **_group_values([group])}
            if agents and _is_administered([*of_all, group]):
                values["ContrastBolusAgent"] = _meaning(agents[0]) or "contrast"
            uid = f"{_id(values, 'SOPInstanceUID')}.{frame + 1}"
            found.append(_check({**values, "SOPInstanceUID": uid, "NumberOfFrames": 1}, place, frame))
        except UnreadableError as error:
            found.append((None, str(error)))
    return found


def _items(dataset: pydicom.Dataset, name: str) -> list[pydicom.Dataset]:
    value = _value(dataset, name)
    return list(value) if isinstance(value, pydicom.Sequence) else []


def _group_values(groups: list[pydicom.Dataset]) -> dict[str, object]:
    found: dict[str, object] = {}
    for group in groups:
        for macro in _MACROS:
            for item in _items(group, macro)[:1]:
                found.update({name: _value(item, name) for name in WANTED_NAMES if name in item})
        for item in _items(group, "CTImageFrameTypeSequence")[:1]:
            found["ImageType"] = _value(item, "FrameType")
        for item in _items(group, "FrameAnatomySequence")[:1]:
            for region in _items(item, "AnatomicRegionSequence")[:1]:
                found["BodyPartExamined"] = _meaning(region)
    return found


def _is_administered(groups: list[pydicom.Dataset]) -> bool:
    """Whether contrast medium was given before a frame; without a statement, it was (PS3.3 C.7.6.16.2.12)."""
    uses = [item for group in groups for item in _items(group, "ContrastBolusUsageSequence")]
    said = [_text(item, "ContrastBolusAgentAdministered").strip().upper() for item in uses]
    return not said or any(word != "NO" for word in said)


def _meaning(code: pydicom.Dataset) -> str:
    return _text(code, "CodeMeaning")


def _check(dataset: _Values, place: _Place, frame: int = 0) -> Outcome:
    """The header of one slice, and what is wrong with its pixels, or an empty text.

    Raises:
        UnreadableError: the header itself cannot be used.
    """
    modality = _text(dataset, "Modality")
    if modality.strip().upper() != "CT":
        raise UnreadableError("not CT" if modality else "no Modality")
    rows, columns = _whole(dataset, "Rows"), _whole(dataset, "Columns")
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise UnreadableError(f"invalid size: Rows and Columns must be 1 to {MAX_SIDE}")
    if _whole(dataset, "SamplesPerPixel", 1) != 1:
        raise UnreadableError("colour image")
    # Values of a palette are indices, not measurements. PS3.3 C.7.6.3.1.2; CT has MONOCHROME1 or 2 (C.8.2.1.1.2).
    if not (_text(dataset, "PhotometricInterpretation") or "MONOCHROME").startswith("MONOCHROME"):
        raise UnreadableError("colour image")
    if _whole(dataset, "NumberOfFrames", 1) > 1:
        raise UnreadableError("multi-frame image")
    allocated, stored = _whole(dataset, "BitsAllocated"), _whole(dataset, "BitsStored")
    high_bit = _whole(dataset, "HighBit", stored - 1)
    if allocated != 16 or not (1 <= stored <= 16 and stored - 1 <= high_bit <= 15):
        raise UnreadableError("expected 16 bits allocated and at most 16 stored")
    if isinstance(dataset, pydicom.Dataset) and _items(dataset, "ModalityLUTSequence"):
        raise UnreadableError("Modality LUT Sequence is not supported, expected RescaleSlope and RescaleIntercept")
    slope, intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
    if slope <= 0:
        raise UnreadableError("RescaleSlope is 0" if slope == 0 else "RescaleSlope is negative")
    x, y, z = _numbers(dataset, "ImagePositionPatient", 3)
    if max(abs(x), abs(y), abs(z)) > _MAX_MM:
        raise UnreadableError("ImagePositionPatient is more than 100 m from the origin")
    row_x, row_y, row_z, column_x, column_y, column_z = orientation = _numbers(dataset, "ImageOrientationPatient", 6)
    if _parallelogram(orientation) < 0.5:
        raise UnreadableError("ImageOrientationPatient spans no plane")
    spacing_row, spacing_col = _numbers(dataset, "PixelSpacing", 2)
    if not (0 < spacing_row < 100 and 0 < spacing_col < 100):
        raise UnreadableError("PixelSpacing is not between 0 and 100 mm")
    reason, syntax, pixel_offset, pixel_bytes = "", "", 0, 0
    try:
        syntax, pixel_offset, pixel_bytes = _locate_pixels(place, 2 * rows * columns, frame)
    except UnreadableError as error:
        reason = str(error)
    turn = in_plane_turn(orientation)
    if turn & TRANSPOSE:
        rows, columns, spacing_row, spacing_col = columns, rows, spacing_col, spacing_row
    signed = _whole(dataset, "PixelRepresentation", 0)
    padding = _pattern(dataset, "PixelPaddingValue"), _pattern(dataset, "PixelPaddingRangeLimit")
    values = (rows, columns, stored, high_bit, signed, *padding, slope, intercept, spacing_row, spacing_col)
    where = (turn, frame, syntax, pixel_offset, pixel_bytes)
    uids = _id(dataset, "SOPInstanceUID"), _id(dataset, "StudyInstanceUID"), _id(dataset, "SeriesInstanceUID")
    texts = (_why_raw(dataset), *uids, _id(dataset, "PatientID"), _kind(dataset))
    place_mm = (x, y, z, row_x, row_y, row_z, column_x, column_y, column_z)
    numbers = _count(dataset, "InstanceNumber"), _count(dataset, "AcquisitionNumber")
    frame_uid = _id(dataset, "FrameOfReferenceUID")
    return Header(*values, *where, *texts, *place_mm, *numbers, _thickness(dataset), frame_uid), reason


def _locate_pixels(place: _Place, expected: int, frame: int) -> tuple[str, int, int]:
    """Transfer syntax (empty for plain pixels), offset and length; the latter are 0 where the pixels are compressed.

    The element itself decides: two letters or a length behind the tag, a length or none. Source: DICOM PS3.5 7.1.2 and
    7.1.3; A.4 (compressed pixels have no defined length).
    """
    if _is_encapsulated(place.head, place.offset):
        if not place.declared:
            raise UnreadableError("compressed pixels without a transfer syntax that names the compression")
        return place.declared, 0, 0
    explicit = _is_explicit(place.head, place.offset)
    (length,) = struct.unpack_from("<I", place.head, place.offset + (8 if explicit else 4))
    start = place.offset + (12 if explicit else 8) + frame * expected
    if length < (frame + 1) * expected:
        raise UnreadableError("pixel data shorter than Rows x Columns")
    if start + expected > place.num_bytes:
        raise UnreadableError("truncated: the pixels end too early")
    return DEFLATED if place.is_deflated else "", start, expected


def _is_explicit(head: bytes, offset: int) -> bool:
    """Whether two letters follow the tag: a length there would be odd, and lengths are even."""
    return head[offset + 4 : offset + 6] in (b"OB", b"OW", b"UN")


def _is_encapsulated(head: bytes, offset: int) -> bool:
    at = offset + (8 if _is_explicit(head, offset) else 4)
    return head[at : at + 4] == b"\xff\xff\xff\xff"


@lru_cache(maxsize=1)
def _compressed_syntaxes() -> frozenset[str]:
    """UIDs that name a compression."""
    return frozenset(
        uid for uid in pydicom.uid.AllTransferSyntaxes if uid.is_encapsulated and str(uid).startswith("1.2.840.10008")
    )


def _find_syntax(head: bytes, offset: int, declared: str) -> str:
    """The declared transfer syntax, or that of the pixels themselves if it names another compression than theirs."""
    found = _sniff_syntax(head, offset)
    is_known = declared in _compressed_syntaxes()
    return declared if is_known and (not found or declared in _FAMILIES.get(found, ())) else found


def _sniff_syntax(head: bytes, offset: int) -> str:
    """The transfer syntax, guessed from the first bytes of the first compressed fragment; empty if they are unknown.

    Source: PS3.5 A.4 (items of fragments behind an offset table); JPEG's SOF marks FFC0, FFC1, FFC3 (ISO 10918-1),
        FFF7 of JPEG-LS (ISO 14495-1), FF4F of JPEG 2000 (ISO 15444-1); the header of RLE (PS3.5 G.5), whose first
        segment begins behind its 64 bytes, here of two segments, because pixels have 16 bits.
    """
    at = offset + (12 if _is_explicit(head, offset) else 8)
    for _ in range(2):  # the offset table, then the first fragment
        if head[at : at + 4] != b"\xfe\xff\x00\xe0" or len(head) < at + 8:
            return ""
        fragment = at + 8
        at = fragment + struct.unpack_from("<I", head, at + 4)[0]
    if head[fragment : fragment + 2] == b"\xff\x4f":
        return str(pydicom.uid.JPEG2000Lossless)
    if head[fragment : fragment + 8] == struct.pack("<II", 2, 64) and not any(head[fragment + 12 : fragment + 64]):
        return str(pydicom.uid.RLELossless)
    if head[fragment : fragment + 2] != b"\xff\xd8":
        return ""
    known = {
        0xC0: pydicom.uid.JPEGBaseline8Bit,
        0xC1: pydicom.uid.JPEGExtended12Bit,
        0xC3: pydicom.uid.JPEGLosslessSV1,
        0xF7: pydicom.uid.JPEGLSLossless,
    }
    at = fragment + 2
    while at + 4 <= len(head) and head[at] == 0xFF:
        if head[at + 1] in known:
            return str(known[head[at + 1]])
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return ""


def _why_raw(dataset: _Values) -> str:
    """Why the rescaled values may not be HU.

    Source: PS3.3 C.8.2.1: RescaleIntercept and RescaleSlope are type 1 in CT; C.11.1.1.2: RescaleType.
    """
    missing = [name for name in ("RescaleIntercept", "RescaleSlope") if _is_empty(_value(dataset, name))]
    if missing:
        return f"no {' and no '.join(missing)}: Hounsfield units are unknown"
    unit = _text(dataset, "RescaleType").strip().upper()
    if unit in ("", "HU"):
        return ""
    return f"RescaleType is {unit if unit in _UNITS else 'another unit'}, expected HU"


def _parallelogram(orientation: list[float]) -> float:
    """Area spanned by the direction cosines of rows and columns: 1 if they are orthonormal."""
    a, b, c, d, e, f = orientation
    return math.hypot(b * f - c * e, c * d - a * f, a * e - b * d)


def _kind(dataset: _Values) -> str:
    words = [_undo_wrong_charset(_text(dataset, name)) for name in KIND_TAGS]
    words = [word.replace(KIND_SEPARATOR, " ").strip().lower() for word in words]
    return KIND_SEPARATOR.join(words) if any(words) else ""


def _undo_wrong_charset(text: str) -> str:
    """The text; UTF-8 that was read as Latin-1 is corrected: many writers omit it in SpecificCharacterSet."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _id(dataset: _Values, name: str) -> str:
    return _text(dataset, name).strip(" \0")


def _count(dataset: _Values, name: str) -> int:
    """A number that only orders slices: a file in which it is unreadable is not rejected."""
    try:
        number = _whole(dataset, name, 0)
    except UnreadableError:
        return 0
    return number if abs(number) < _MAX_NUMBER else 0


def _thickness(dataset: _Values) -> float:
    """SliceThickness, which only tells acquisitions apart: a file in which it is unreadable is not rejected."""
    try:
        thickness = _number(dataset, "SliceThickness", 0.0)
    except UnreadableError:
        return 0.0
    return round(thickness, 1) if 0 < thickness < _MAX_MM else 0.0


def _value(dataset: _Values, name: str) -> object:
    try:
        return dataset.get(name)
    # A value that cannot be converted raises on access, with any type of exception.
    except Exception as error:
        raise UnreadableError(f"{name} cannot be read") from error


def _to_float(value: Any) -> float:
    """A number, or the text of one, where a comma is a decimal point: some writers follow their user's locale."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return float(value.strip(" \0").replace(",", ".") if isinstance(value, str) else value)


def _is_empty(value: object) -> bool:
    if type(value) is float or type(value) is int:
        return False
    return value is None or value == "" or (isinstance(value, _LISTS) and not len(value))


def _text(dataset: _Values, name: str) -> str:
    value = _value(dataset, name)
    if type(value) is str:
        return value
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def _number(dataset: _Values, name: str, default: float | None = None) -> float:
    value = _value(dataset, name)
    # What the walker gives: asking whether these are lists, which is an abstract class, takes as long as the walk.
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, _LISTS) and len(value):
        value = value[0]
    if _is_empty(value):
        if default is None:
            raise UnreadableError(f"no {name}")
        return default
    try:
        number = _to_float(value)
    except (TypeError, ValueError) as error:
        raise UnreadableError(f"{name} is not a number") from error
    if not math.isfinite(number):
        raise UnreadableError(f"{name} is not finite")
    return number


def _whole(dataset: _Values, name: str, default: int | None = None) -> int:
    return int(_number(dataset, name, default))


def _pattern(dataset: _Values, name: str) -> int:
    """The 16 bits of a pixel value stored as US or SS; `NO_PADDING` if the tag is missing."""
    value = _value(dataset, name)
    if isinstance(value, bytes):  # of unknown or other representation
        return int.from_bytes(value[:2], "little") if len(value) >= 2 else NO_PADDING
    return NO_PADDING if _is_empty(value) else _whole(dataset, name) & 0xFFFF


def _numbers(dataset: _Values, name: str, count: int) -> list[float]:
    value = _value(dataset, name)
    if isinstance(value, str):  # under another value representation than DS, as some exports write it
        value = value.split("\\")
    if value is None or not isinstance(value, _LISTS) or len(value) != count:
        raise UnreadableError(f"no {name} of {count} numbers")
    try:
        numbers = [_to_float(item) for item in value]
    except (TypeError, ValueError) as error:
        raise UnreadableError(f"{name} is not numeric") from error
    if not all(map(math.isfinite, numbers)):
        raise UnreadableError(f"{name} is not finite")
    return numbers
