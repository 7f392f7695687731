"""Reads the tags of an ordinary DICOM file directly; any other file is left to pydicom."""

import struct
from dataclasses import dataclass

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
PIXEL_TAG = 0x7FE00010
_META_BEGINS = 132
_TRANSFER_SYNTAX = 0x00020010
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM_GROUP = 0xFFFE
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_WANTED = {
    0x00080008: ("ImageType", b"CS"),
    0x00080016: ("SOPClassUID", b"UI"),
    0x00080018: ("SOPInstanceUID", b"UI"),
    0x00080060: ("Modality", b"CS"),
    0x00080070: ("Manufacturer", b"LO"),
    0x0008103E: ("SeriesDescription", b"LO"),
    0x00100020: ("PatientID", b"LO"),
    0x00180010: ("ContrastBolusAgent", b"LO"),
    0x00180015: ("BodyPartExamined", b"CS"),
    0x00180050: ("SliceThickness", b"DS"),
    0x00181030: ("ProtocolName", b"LO"),
    0x00181210: ("ConvolutionKernel", b"SH"),
    0x0020000D: ("StudyInstanceUID", b"UI"),
    0x0020000E: ("SeriesInstanceUID", b"UI"),
    0x00200012: ("AcquisitionNumber", b"IS"),
    0x00200013: ("InstanceNumber", b"IS"),
    0x00200032: ("ImagePositionPatient", b"DS"),
    0x00200037: ("ImageOrientationPatient", b"DS"),
    0x00200052: ("FrameOfReferenceUID", b"UI"),
    0x00280002: ("SamplesPerPixel", b"US"),
    0x00280004: ("PhotometricInterpretation", b"CS"),
    0x00280008: ("NumberOfFrames", b"IS"),
    0x00280010: ("Rows", b"US"),
    0x00280011: ("Columns", b"US"),
    0x00280030: ("PixelSpacing", b"DS"),
    0x00280100: ("BitsAllocated", b"US"),
    0x00280101: ("BitsStored", b"US"),
    0x00280102: ("HighBit", b"US"),
    0x00280103: ("PixelRepresentation", b"US"),
    0x00280120: ("PixelPaddingValue", b"US"),
    0x00280121: ("PixelPaddingRangeLimit", b"US"),
    0x00281052: ("RescaleIntercept", b"DS"),
    0x00281053: ("RescaleSlope", b"DS"),
    0x00281054: ("RescaleType", b"LO"),
}
_SIGNED_TOO = frozenset((0x00280120, 0x00280121))
"""US or SS, as PixelRepresentation says or the writer thought: 16 bits either way, and the pattern is what is kept."""
_MODALITY_LUT = 0x00283000
WANTED_NAMES = tuple(name for name, _ in _WANTED.values())
"""The allow-list: DICOM keywords of the only tags that are ever looked at."""
_explicit = struct.Struct("<HH2sH").unpack_from
_implicit = struct.Struct("<HHI").unpack_from
_length32 = struct.Struct("<I").unpack_from


@dataclass(frozen=True, slots=True)
class Tags:
    """The wanted tags of one file.

    Attributes:
        values: keyword to str, int, float, or a list of floats; tags that are not there are missing.
        pixel_offset: where the element of PixelData begins.
    """

    values: dict[str, object]
    pixel_offset: int


def walk_tags(head: bytes) -> Tags | None:
    """The wanted tags in the first bytes of a file; None if the file is not ordinary.

    Ordinary: little endian and uncompressed, a correct meta group, known value representations, defined lengths, plain
    ASCII text, and PixelData inside the bytes given. A tenth of pydicom's time, which does the rest. Explicit or
    implicit, little or big endian is what the first element looks like: the transfer syntax UID is missing or wrong in
    files that were copied or anonymised by careless tools.

    Source: DICOM PS3.5 section 7.1, PS3.10 section 7.1.
    """
    try:
        meta, start = _walk_meta(head)
        if _text(meta.get(_TRANSFER_SYNTAX, b"")) not in ("", EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG):
            return None
        if not is_little_endian(head, start):
            return None
        walk = _walk_explicit if is_vr(head[start + 4 : start + 6]) else _walk_implicit
        raw, offset = walk(head, start)
        return Tags({_WANTED[tag][0]: _convert(_WANTED[tag][1], raw[tag]) for tag in raw}, offset)
    except (struct.error, KeyError, ValueError):
        return None


def is_little_endian(head: bytes, start: int) -> bool:
    """True where the data set that begins at `start` is little endian: the group of its first element is a low one."""
    return head[start + 1 : start + 2] <= head[start : start + 1]


def is_vr(two_bytes: bytes) -> bool:
    """True for the two letters of a value representation (PS3.5 section 6.2)."""
    return two_bytes in _LONG_VRS or two_bytes in _SHORT_VRS


def _walk_meta(head: bytes) -> tuple[dict[int, bytes], int]:
    """Raw values of group 2, and the offset of the data set, from the length of the group."""
    group, element, vr, length = _explicit(head, _META_BEGINS)
    if head[128:_META_BEGINS] != b"DICM" or (group, element, vr, length) != (2, 0, b"UL", 4):
        raise ValueError
    place = _META_BEGINS + 12
    end = place + _length32(head, _META_BEGINS + 8)[0]
    found: dict[int, bytes] = {}
    while place < end:
        group, element, vr, length = _explicit(head, place)
        place += 8
        if vr in _LONG_VRS:
            (length,) = _length32(head, place)
            place += 4
        elif vr not in _SHORT_VRS:
            raise ValueError
        if group != 2:
            raise ValueError
        found[group << 16 | element] = head[place : place + length]
        place += length
    if place != end:
        raise ValueError
    return found, end


def _walk_explicit(head: bytes, place: int) -> tuple[dict[int, bytes], int]:
    found: dict[int, bytes] = {}
    while True:
        group, element, vr, length = _explicit(head, place)
        tag = group << 16 | element
        start = place + 8
        if vr in _LONG_VRS:
            (length,) = _length32(head, start)
            start += 4
        elif vr not in _SHORT_VRS:
            raise ValueError
        if tag == PIXEL_TAG:
            return found, place
        if length == _UNDEFINED_LENGTH or group in (2, _ITEM_GROUP) or tag == _MODALITY_LUT:
            raise ValueError
        if tag in _WANTED:
            if vr != _WANTED[tag][1] and not (vr == b"SS" and tag in _SIGNED_TOO):
                raise ValueError
            found[tag] = head[start : start + length]
        place = start + length


def _walk_implicit(head: bytes, place: int) -> tuple[dict[int, bytes], int]:
    # pydicom takes any two capitals in the place of the first length for explicit data; let it judge.
    if head[place + 4 : place + 6].isalpha():
        raise ValueError
    found: dict[int, bytes] = {}
    while True:
        group, element, length = _implicit(head, place)
        tag = group << 16 | element
        if tag == PIXEL_TAG:
            return found, place
        if length == _UNDEFINED_LENGTH or group in (2, _ITEM_GROUP) or tag == _MODALITY_LUT:
            raise ValueError
        if tag in _WANTED:
            found[tag] = head[place + 8 : place + 8 + length]
        place += 8 + length


def _convert(vr: bytes, raw: bytes) -> object:
    if vr == b"US":
        if len(raw) != 2:
            raise ValueError
        return raw[0] | raw[1] << 8
    text = _text(raw)
    if vr == b"DS":
        numbers = [float(part) for part in text.split("\\")] if text else []
        return numbers if len(numbers) > 1 else (numbers[0] if numbers else None)
    if vr == b"IS":
        return int(text) if text else None
    if vr in (b"LO", b"SH"):
        return "\\".join(part.rstrip(" ") for part in text.split("\\"))
    return text


def _text(raw: bytes) -> str:
    text = raw.rstrip(b"\0 ").decode("ascii")
    # A zero byte or an escape in the middle means a character set that is not plain ASCII.
    if text and not text.isprintable():
        raise ValueError
    return text
