"""A writer of DICOM files with the few tags of the data sets, in both uncompressed transfer syntaxes.

Source: DICOM PS3.5 section 7.1 (data elements), PS3.10 section 7.1 (file meta information). Own code because the ids of
the RSNA data are not valid UIDs, which a library refuses or warns about, and because it is much faster.
"""

import struct
from collections.abc import Mapping

import numpy as np

from ichkit.phantom.render import Grid

EXPLICIT_VR, IMPLICIT_VR = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_IMPLEMENTATION_UID = "2.25.208139012345512345871234098712340987"
_LONG_VRS = frozenset({"OB", "OW"})  # in Explicit VR their length takes four bytes; no other such VR is written

# keyword: (group, element, VR); file order is tag order.
TAGS = {
    "ImageType": (0x0008, 0x0008, "CS"),
    "SOPClassUID": (0x0008, 0x0016, "UI"),
    "SOPInstanceUID": (0x0008, 0x0018, "UI"),
    "Modality": (0x0008, 0x0060, "CS"),
    "SeriesDescription": (0x0008, 0x103E, "LO"),
    "PatientID": (0x0010, 0x0020, "LO"),
    "SliceThickness": (0x0018, 0x0050, "DS"),
    "ConvolutionKernel": (0x0018, 0x1210, "SH"),
    "StudyInstanceUID": (0x0020, 0x000D, "UI"),
    "SeriesInstanceUID": (0x0020, 0x000E, "UI"),
    "StudyID": (0x0020, 0x0010, "SH"),
    "SeriesNumber": (0x0020, 0x0011, "IS"),
    "InstanceNumber": (0x0020, 0x0013, "IS"),
    "ImagePositionPatient": (0x0020, 0x0032, "DS"),
    "ImageOrientationPatient": (0x0020, 0x0037, "DS"),
    "SamplesPerPixel": (0x0028, 0x0002, "US"),
    "PhotometricInterpretation": (0x0028, 0x0004, "CS"),
    "Rows": (0x0028, 0x0010, "US"),
    "Columns": (0x0028, 0x0011, "US"),
    "PixelSpacing": (0x0028, 0x0030, "DS"),
    "BitsAllocated": (0x0028, 0x0100, "US"),
    "BitsStored": (0x0028, 0x0101, "US"),
    "HighBit": (0x0028, 0x0102, "US"),
    "PixelRepresentation": (0x0028, 0x0103, "US"),
    "WindowCenter": (0x0028, 0x1050, "DS"),
    "WindowWidth": (0x0028, 0x1051, "DS"),
    "RescaleIntercept": (0x0028, 0x1052, "DS"),
    "RescaleSlope": (0x0028, 0x1053, "DS"),
    "PixelData": (0x7FE0, 0x0010, "OW"),
}


def encode_file(elements: Mapping[str, str | int | bytes], transfer_syntax: str) -> bytes:
    """A DICOM file: preamble, file meta information, data set.

    Args:
        elements: keyword of `TAGS` to value: text (several values joined by a backslash), a number for US, bytes for
            PixelData. SOPInstanceUID is required.
        transfer_syntax: `EXPLICIT_VR` or `IMPLICIT_VR`.

    Example:
        >>> encode_file({"SOPInstanceUID": "2.25.1"}, EXPLICIT_VR)[128:132]
        b'DICM'
    """
    explicit = transfer_syntax == EXPLICIT_VR
    meta = b"".join(
        (
            _encode_element(0x0002, 0x0001, "OB", b"\0\1", True),
            _encode_element(0x0002, 0x0002, "UI", CT_IMAGE_STORAGE, True),
            _encode_element(0x0002, 0x0003, "UI", elements["SOPInstanceUID"], True),
            _encode_element(0x0002, 0x0010, "UI", transfer_syntax, True),
            _encode_element(0x0002, 0x0012, "UI", _IMPLEMENTATION_UID, True),
        )
    )
    length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(meta))
    body = [
        _encode_element(*TAGS[keyword], elements[keyword], explicit)
        for keyword in sorted(elements, key=lambda keyword: TAGS[keyword])
    ]
    return b"\0" * 128 + b"DICM" + length + meta + b"".join(body)


def _encode_element(group: int, element: int, vr: str, value: str | int | bytes, explicit: bool) -> bytes:
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, int):
        data = struct.pack("<H", value)
    else:
        data = value.encode("ascii")
    if len(data) % 2:  # PS3.5 6.2: UIDs are padded with NUL, text with a space
        data += b"\0" if vr in ("UI", "OB") else b" "
    if not explicit:
        return struct.pack("<HHI", group, element, len(data)) + data
    if vr in _LONG_VRS:
        return struct.pack("<HH2sHI", group, element, vr.encode(), 0, len(data)) + data
    return struct.pack("<HH2sH", group, element, vr.encode(), len(data)) + data


def encode_pixels(
    hounsfield: np.ndarray,
    bits_stored: int,
    pixel_representation: int,
    intercept: int,
    padding: np.ndarray | None = None,
) -> bytes:
    """PixelData of HU in one of the seven pixel formats, little endian, 16 bits allocated.

    Args:
        hounsfield: (H, W) int16.
        intercept: as in the header. In the two formats with a wrong intercept, 12 bits unsigned and above -100, the
            stored value is HU modulo 4096, so that HU is (stored + 1000) modulo 4096 - 1000.
        padding: (H, W) bool, pixels outside the scan circle, stored as -2000; for 16-bit signed formats.

    Source: pixel formats measured in the RSNA 2019 data.
    """
    hu = hounsfield.astype(np.int32)
    if bits_stored == 12 and pixel_representation == 0 and intercept > -100:
        stored = np.clip(hu, -1000, 3095) % 4096
    else:
        low, high = (
            (-(1 << bits_stored - 1), (1 << bits_stored - 1) - 1)
            if pixel_representation
            else (0, (1 << bits_stored) - 1)
        )
        stored = np.clip(hu - intercept, low, high)
    if padding is not None:
        stored = np.where(padding, -2000, stored)
    return stored.astype("<i2" if pixel_representation else "<u2").tobytes()


def geometry_elements(grid: Grid, shape: tuple[int, int]) -> dict[str, str | int | bytes]:
    """Tags of position, orientation, size and layout of a slice."""
    down = f"0.000000\\{grid.tilt_cos:.6f}\\{0 - grid.tilt_sin:.6f}"  # 0 - x, so that no "-0.000000" is written
    return {
        "ImagePositionPatient": f"{grid.x:.6f}\\{grid.y:.6f}\\{grid.z:.6f}",
        "ImageOrientationPatient": f"1.000000\\0.000000\\0.000000\\{down}",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": shape[0],
        "Columns": shape[1],
        "PixelSpacing": f"{grid.spacing:.6f}\\{grid.spacing:.6f}",
        "BitsAllocated": 16,
    }


def outside_circle(shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, True outside the circle that the scanner reconstructs."""
    rows, columns = shape
    y, x = np.arange(rows)[:, None] - (rows - 1) / 2, np.arange(columns)[None, :] - (columns - 1) / 2
    return x * x + y * y > (min(shape) / 2) ** 2
