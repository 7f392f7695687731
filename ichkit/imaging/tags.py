"""The tags of an ordinary DICOM file by walking its bytes; whatever is not ordinary is left to pydicom."""

import struct
from dataclasses import dataclass

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
PIXEL_TAG = 0x7FE00010
_META_BEGINS = 132
_TRANSFER_SYNTAX = 0x00020010
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM_GROUP = 0xFFFE
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_WANTED = {
    0x00080008: ("ImageType", b"CS"),
    0x00080018: ("SOPInstanceUID", b"UI"),
    0x00080060: ("Modality", b"CS"),
    0x00080070: ("Manufacturer", b"LO"),
    0x0008103E: ("SeriesDescription", b"LO"),
    0x00100020: ("PatientID", b"LO"),
    0x00180010: ("ContrastBolusAgent", b"LO"),
    0x00180015: ("BodyPartExamined", b"CS"),
    0x00181030: ("ProtocolName", b"LO"),
    0x00181210: ("ConvolutionKernel", b"SH"),
    0x0020000D: ("StudyInstanceUID", b"UI"),
    0x0020000E: ("SeriesInstanceUID", b"UI"),
    0x00200012: ("AcquisitionNumber", b"IS"),
    0x00200013: ("InstanceNumber", b"IS"),
    0x00200032: ("ImagePositionPatient", b"DS"),
    0x00200037: ("ImageOrientationPatient", b"DS"),
    0x00280002: ("SamplesPerPixel", b"US"),
    0x00280008: ("NumberOfFrames", b"IS"),
    0x00280010: ("Rows", b"US"),
    0x00280011: ("Columns", b"US"),
    0x00280030: ("PixelSpacing", b"DS"),
    0x00280100: ("BitsAllocated", b"US"),
    0x00280101: ("BitsStored", b"US"),
    0x00280102: ("HighBit", b"US"),
    0x00280103: ("PixelRepresentation", b"US"),
    0x00281052: ("RescaleIntercept", b"DS"),
    0x00281053: ("RescaleSlope", b"DS"),
}
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
        syntax: transfer syntax UID.
        pixel_offset: where the element of PixelData begins.
    """

    values: dict[str, object]
    syntax: str
    pixel_offset: int


def walk_tags(head: bytes) -> Tags | None:
    """The wanted tags in the first bytes of a file; None where anything about it is not ordinary.

    Ordinary: little endian and uncompressed, a correct meta group, known value representations, defined lengths, plain
    ASCII text, and PixelData inside the bytes given. A tenth of pydicom's time, which does the rest.

    Source: DICOM PS3.5 section 7.1, PS3.10 section 7.1.
    """
    try:
        meta, start = _walk_meta(head)
        syntax = _text(meta[_TRANSFER_SYNTAX])
        if syntax == EXPLICIT_LITTLE:
            raw, offset = _walk_explicit(head, start)
        elif syntax == IMPLICIT_LITTLE:
            raw, offset = _walk_implicit(head, start)
        else:
            return None
        return Tags({_WANTED[tag][0]: _convert(_WANTED[tag][1], raw[tag]) for tag in raw}, syntax, offset)
    except (struct.error, KeyError, ValueError):
        return None


def _walk_meta(head: bytes) -> tuple[dict[int, bytes], int]:
    """Raw values of group 2, and where the data set begins: where the group's own length says."""
    group, element, vr, length = _explicit(head, _META_BEGINS)
    if head[128:_META_BEGINS] != b"DICM" or (group, element, vr, length) != (2, 0, b"UL", 4):
        raise ValueError
    place = _META_BEGINS + 12
    end = place + _length32(head, _META_BEGINS + 8)[0]
    found = {}
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
    found = {}
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
        if length == _UNDEFINED_LENGTH or group in (2, _ITEM_GROUP):
            raise ValueError
        if tag in _WANTED:
            if vr != _WANTED[tag][1]:
                raise ValueError
            found[tag] = head[start : start + length]
        place = start + length


def _walk_implicit(head: bytes, place: int) -> tuple[dict[int, bytes], int]:
    # pydicom takes two capitals in the place of the first length for explicit data under a wrong name; let it judge.
    if head[place + 4 : place + 6].isalpha():
        raise ValueError
    found = {}
    while True:
        group, element, length = _implicit(head, place)
        tag = group << 16 | element
        if tag == PIXEL_TAG:
            return found, place
        if length == _UNDEFINED_LENGTH or group in (2, _ITEM_GROUP):
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
