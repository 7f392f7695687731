"""Stored pixels to Hounsfield units: one table look-up per pixel for rescaling, repair, clipping and counting."""

import io
import warnings
from collections.abc import Iterable
from functools import lru_cache

import numba
import numpy as np
import pydicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from ichkit.imaging import nifti
from ichkit.imaging.dicom import DEFLATED, NO_PADDING, StoredPixels, UnreadableError, inflate
from ichkit.imaging.geometry import TRANSPOSE, turn_pixels

PADDING_HU = -1400
"""Below any tissue, air and its noise: a slice with such a pixel was padded by its scanner (-2000 stored)."""
BRAIN_HU = (0, 80)
"""What the brain window shows."""
_IS_PADDING, _IS_BRAIN = 1 << 16, 1 << 17
TISSUE_HU = (-500, 3072)
"""Between lung and what 12 bits hold of metal: a PixelPaddingValue in here may as well be a pixel of the head."""
LARGEST_DARK_HU = -100
"""A head is surrounded by air, or stored with a background below it; a darkest pixel above fat is not HU of a head."""
SMALLEST_RANGE_HU = 50
"""From air to bone are 2000 HU; a blank or an overlay has almost none."""
_EXTENT_STEP = 4
_LARGEST_HU = 32767
"""What no CT scale goes beyond: even the extended one for metal ends at 30,710 HU."""


def decode_stored(data: bytes | np.ndarray, header: StoredPixels) -> np.ndarray:
    """(H, W) uint16 stored values, bit patterns as in the file, rows to the back and columns to the left.

    Args:
        data: the pixel bytes where they are uncompressed (`header.pixel_bytes` of them, `header.syntax` empty), else
            what `open_file` makes of the whole file, or the file itself.

    Raises:
        UnreadableError: too few bytes, or a compressed syntax without a working decoder; the message names the syntax
            and the extra that brings the decoder.
    """
    shape = (header.columns, header.rows) if header.turn & TRANSPOSE else (header.rows, header.columns)
    if header.syntax == nifti.SYNTAX:
        volume = data if isinstance(data, np.ndarray) else nifti.read_volume(data)
        stored = volume[header.frame] if header.frame < len(volume) else volume[:0]
    else:
        assert isinstance(data, bytes)
        if header.syntax == DEFLATED:
            data = data[header.pixel_offset : header.pixel_offset + header.pixel_bytes]
        stored = _decode_plain(data, header, shape) if header.pixel_bytes else _decompress(data, header)
    if stored.shape != shape:
        raise UnreadableError("decompressed pixels do not fit Rows and Columns")
    return turn_pixels(stored, header.turn)


def open_file(data: bytes, header: StoredPixels) -> bytes | np.ndarray:
    """A whole file, prepared for `decode_stored`, so that a file of many slices is inflated once.

    Raises:
        UnreadableError: damaged, or too large.
    """
    if header.syntax == nifti.SYNTAX:
        return nifti.read_volume(data)
    return inflate(data) if header.syntax == DEFLATED else data


def fill_hounsfield(
    stored: np.ndarray, header: StoredPixels, hounsfield: np.ndarray, *, repair: bool, hull_hu: tuple[int, int]
) -> tuple[bool, float]:
    """Writes HU, clipped to the hull, into `hounsfield`; returns whether the scanner padded the slice, and its brain.

    Args:
        stored: (H, W) uint16 bit patterns.
        hounsfield: (H, W) int16 to be filled, any strides, so that a volume's row can be handed over.
        repair: mend a broken intercept (see `has_broken_intercept`).
        hull_hu: lowest and highest HU kept.

    Returns:
        is_padded, and the share of pixels from 0 to 80 HU: about 0 outside the head, so that blank slices show.
    """
    table = _hounsfield_table(*_pixel_values(stored, header), repair, *hull_hu)
    is_padded, num_brain = _look_up(stored, table, hounsfield)
    return bool(is_padded), num_brain / stored.size


def has_broken_intercept(bits_stored: int, pixel_representation: int, intercept: float) -> bool:
    """True for the 12 bit unsigned files of RSNA 2019 with a wrong intercept.

    Source: 123 images of the competition, formats 12,0,0 and 12,0,1. The rule is for that data set only: elsewhere such
        a header may be right.
    """
    return bits_stored == 12 and pixel_representation == 0 and intercept > -100


def pixel_format(bits_stored: int, pixel_representation: int, intercept: float) -> str:
    """BitsStored, PixelRepresentation and RescaleIntercept of the header, before any repair.

    Example:
        >>> pixel_format(16, 1, -1024.0)
        '16,1,-1024'
    """
    return f"{bits_stored},{pixel_representation},{intercept:g}"


def hounsfield_extent(stored: np.ndarray, header: StoredPixels) -> tuple[float, float] | None:
    """Lowest and highest HU of a slice without its padding, from every 4th row and column; None if all is padding.

    Args:
        stored: (H, W) uint16 bit patterns.
    """
    entries = _plain_table(*_pixel_values(stored, header))[stored[::_EXTENT_STEP, ::_EXTENT_STEP]]
    if np.isnan(entries).all():
        return None
    return float(np.nanmin(entries)), float(np.nanmax(entries))


def is_tissue_padding(header: StoredPixels) -> bool:
    """True if PixelPaddingValue, or the end of its range, is also a value of tissue."""
    if header.padding_value == NO_PADDING:
        return False
    ends = [header.padding_value, header.padding_limit]
    meant = [end - 65536 if header.pixel_representation and end >= 32768 else end for end in ends if end != NO_PADDING]
    low, high = TISSUE_HU
    return any(low < value * header.slope + header.intercept < high for value in meant)


def why_no_head(extents: Iterable[tuple[float, float] | None]) -> str:
    """The reason why the slices of a series together cannot be HU of a head; empty if they can.

    Args:
        extents: (lowest, highest) of each slice, from `hounsfield_extent`.

    Source: chosen here: a slice may be blank or all tissue, a series of a head has air around it.

    Example:
        >>> why_no_head([(24.0, 2024.0), (20.0, 1900.0)])
        'not HU of a head: the darkest pixel of the series is 20, expected below -100'
        >>> why_no_head([(-1000.0, 900.0)])
        ''
    """
    known = [extent for extent in extents if extent is not None]
    if not known:
        return "not HU of a head: nothing but padding"
    low, high = min(extent[0] for extent in known), max(extent[1] for extent in known)
    if high - low < SMALLEST_RANGE_HU:
        return f"not HU of a head: all pixels of the series lie within {high - low:.0f} HU"
    if low > LARGEST_DARK_HU:
        return f"not HU of a head: the darkest pixel of the series is {low:.0f}, expected below {LARGEST_DARK_HU}"
    if high < LARGEST_DARK_HU:
        return f"not HU of a head: the brightest pixel of the series is {high:.0f}, nothing but air"
    return ""


def has_decoder(syntax: str) -> bool:
    """True if pixels of this transfer syntax can be decoded here, or if no package could decode them."""
    if syntax in ("", DEFLATED, nifti.SYNTAX):
        return True
    try:
        return get_decoder(pydicom.uid.UID(syntax)).is_available
    except NotImplementedError:  # pydicom knows no decoder of any package
        return True


def why_undecodable(syntax: str) -> str:
    """The reason for rejecting a file whose decoder is missing, with the extra that installs it."""
    return f"no decoder for {pydicom.uid.UID(syntax).name}; pip install 'ichkit[dicom]'"


def _decode_plain(data: bytes, header: StoredPixels, shape: tuple[int, int]) -> np.ndarray:
    if len(data) < header.pixel_bytes:
        raise UnreadableError("truncated: the pixels end too early")
    return np.frombuffer(data, "<u2", header.rows * header.columns).reshape(shape)


def _decompress(data: bytes, header: StoredPixels) -> np.ndarray:
    """(H, W) uint16 of one frame of a compressed file."""
    syntax = pydicom.uid.UID(header.syntax)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            # What reading found: the meta group may be missing, or name another syntax.
            if not hasattr(dataset, "file_meta"):
                dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = syntax
            stored = pixel_array(dataset, raw=True, index=header.frame)
    # pydicom and its plug-ins raise what they like; whatever it is, the file is rejected and the rest goes on.
    except Exception as error:
        if not has_decoder(syntax):
            raise UnreadableError(why_undecodable(syntax)) from error
        raise UnreadableError(f"pixels cannot be decompressed ({type(error).__name__})") from error
    return np.ascontiguousarray(stored).astype(np.int64).astype(np.uint16)


def _stored_values(bits_stored: int, high_bit: int, signed: int) -> np.ndarray:
    """(65536,) int64: the value of every 16 bit pattern.

    Source: DICOM PS3.3 C.7.6.3.1: bits outside BitsStored are dropped, signed values are two's complement.
    """
    values = (np.arange(65536, dtype=np.int64) >> (high_bit + 1 - bits_stored)) & ((1 << bits_stored) - 1)
    return np.where(values >= 1 << (bits_stored - 1), values - (1 << bits_stored), values) if signed else values


def _restore_signs(values: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """The values; one of slope 1 that would be more HU than any CT gives is a negative one whose sign was lost.

    Args:
        values: from `_stored_values`.

    Source: chosen here. Some programs copy signed pixels into files that say unsigned: a padding of -2000 is stored as
        63536 and would be drawn as metal around the head.
    """
    is_beyond = values * slope + intercept > _LARGEST_HU
    return np.where(is_beyond & (slope == 1), values - 65536, values)


def _are_padding(values: np.ndarray, signed: int, padding_value: int, padding_limit: int) -> np.ndarray:
    """(65536,) bool: patterns equal to PixelPaddingValue, or between it and PixelPaddingRangeLimit.

    Args:
        values: from `_stored_values`.
        padding_value, padding_limit: 16 bit patterns, or -1.

    Source: PS3.3 C.7.5.1.1.2. US and SS are told apart by PixelRepresentation, as the pixels are, whatever the file
        says. A padding that BitsStored cannot hold is looked for in all 16 bits.
    """
    if padding_value == NO_PADDING:
        return np.zeros(65536, bool)
    ends = [padding_value, padding_value if padding_limit == NO_PADDING else padding_limit]
    meant = [end - 65536 if signed and end >= 32768 else end for end in ends]
    if values.min() <= min(meant) and max(meant) <= values.max():
        return (values >= min(meant)) & (values <= max(meant))
    patterns = np.arange(65536, dtype=np.int64)
    if signed:
        patterns = np.where(patterns >= 32768, patterns - 65536, patterns)
    return (patterns >= min(meant)) & (patterns <= max(meant))


def _pixel_values(stored: np.ndarray, header: StoredPixels) -> tuple[int, int, int, int, int, float, float]:
    """The parameters that the HU of a slice depend on: the first arguments of the tables below."""
    layout = header.bits_stored, header.high_bit, header.pixel_representation
    return (*layout, *_padding_of(stored, header), header.slope, header.intercept)


def _padding_of(stored: np.ndarray, header: StoredPixels) -> tuple[int, int]:
    """PixelPaddingValue and its limit; none if it is a value of tissue and no corner of the slice has it.

    Source: chosen here: what pads a slice lies outside the circle of its reconstruction, so it is in the corners. Some
        writers name a padding that they do not use, often 0.
    """
    padding = header.padding_value, header.padding_limit
    if not is_tissue_padding(header):
        return padding
    corners = np.zeros(65536, bool)
    corners[stored[:: max(stored.shape[0] - 1, 1), :: max(stored.shape[1] - 1, 1)]] = True
    values = _stored_values(header.bits_stored, header.high_bit, header.pixel_representation)
    is_used = (corners & _are_padding(values, header.pixel_representation, *padding)).any()
    return padding if is_used else (NO_PADDING, NO_PADDING)


@lru_cache(maxsize=64)
def _plain_table(
    bits_stored: int,
    high_bit: int,
    signed: int,
    padding_value: int,
    padding_limit: int,
    slope: float,
    intercept: float,
) -> np.ndarray:
    """(65536,) float32 HU of every 16 bit pattern, neither repaired nor clipped; NaN where it is padding."""
    values = _stored_values(bits_stored, high_bit, signed)
    hounsfield = _restore_signs(values, slope, intercept) * slope + intercept
    is_padding = _are_padding(values, signed, padding_value, padding_limit) | (hounsfield < PADDING_HU)
    return np.where(is_padding, np.nan, hounsfield).astype(np.float32)


@lru_cache(maxsize=64)
def _hounsfield_table(
    bits_stored: int,
    high_bit: int,
    signed: int,
    padding_value: int,
    padding_limit: int,
    slope: float,
    intercept: float,
    repair: bool,
    low: int,
    high: int,
) -> np.ndarray:
    """(65536,) int32 of every 16 bit pattern: its HU in the low 16 bits, above them whether it is padding, or brain.

    Source: DICOM PS3.3 C.11.1.1.2 (slope and intercept); padding is the lowest HU kept. Repair: see
        `has_broken_intercept`; the lost intercept is -1000, and stored values had wrapped at 4096.
    """
    values = _stored_values(bits_stored, high_bit, signed)
    is_padding = _are_padding(values, signed, padding_value, padding_limit)
    if repair:
        values, intercept = (values + 1000) % 4096, -1000.0
    values = _restore_signs(values, slope, intercept)
    hounsfield = np.where(is_padding, min(low, PADDING_HU), np.rint(values * slope + intercept))
    table = np.clip(hounsfield, low, high).astype(np.int32) & 0xFFFF
    table |= np.where(is_padding | (hounsfield < PADDING_HU), _IS_PADDING, 0).astype(np.int32)
    is_brain = (hounsfield >= BRAIN_HU[0]) & (hounsfield <= BRAIN_HU[1])
    return table | np.where(is_brain, _IS_BRAIN, 0).astype(np.int32)


@numba.njit(cache=True, nogil=True)
def _look_up(stored: np.ndarray, table: np.ndarray, hounsfield: np.ndarray) -> tuple[bool, int]:
    flags, num_brain = 0, 0
    for row in range(stored.shape[0]):
        for column in range(stored.shape[1]):
            entry = table[stored[row, column]]
            hounsfield[row, column] = np.int16(entry & 0xFFFF)
            flags |= entry
            num_brain += (entry & _IS_BRAIN) >> 17
    return flags & _IS_PADDING != 0, num_brain
