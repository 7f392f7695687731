"""Stored pixels to Hounsfield units: one look-up per pixel does rescaling, repair, clipping and what is counted."""

import io
import warnings
from functools import lru_cache

import numba
import numpy as np
import pydicom

from ichkit.imaging.dicom import StoredPixels, UnreadableError

PADDING_HU = -1400
"""Below any tissue, air and its noise: a slice with such a pixel was padded by its scanner (-2000 stored)."""
BRAIN_HU = (0, 80)
"""What the brain window shows."""
_IS_PADDING, _IS_BRAIN = 1 << 16, 1 << 17


def decode_stored(data: bytes, header: StoredPixels) -> np.ndarray:
    """(H, W) uint16 stored values, bit patterns as in the file.

    Args:
        data: the pixel bytes where they are uncompressed (`header.pixel_bytes` of them), else the whole file.

    Raises:
        UnreadableError: too few bytes, or a compressed syntax without a working decoder; the message names the syntax
            and the extra that brings the decoder.
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
        raise UnreadableError(_why_not_decoded(data, error)) from error
    if stored.shape != (header.rows, header.columns):
        raise UnreadableError("decompressed pixels do not fit Rows and Columns")
    return np.ascontiguousarray(stored).astype(np.int64).astype(np.uint16)


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
    table = _hounsfield_table(
        header.bits_stored,
        header.high_bit,
        header.pixel_representation,
        header.slope,
        header.intercept,
        repair,
        *hull_hu,
    )
    is_padded, num_brain = _look_up(stored, table, hounsfield)
    return bool(is_padded), num_brain / stored.size


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


def _why_not_decoded(data: bytes, error: Exception) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        syntax = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).file_meta.TransferSyntaxUID
    try:
        is_available = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:  # pydicom knows the syntax, but nobody decodes it
        is_available = False
    if is_available:
        return f"pixels cannot be decompressed ({type(error).__name__})"
    return f"no decoder for {syntax.name}; pip install 'ichkit[dicom]'"


@lru_cache(maxsize=64)
def _hounsfield_table(
    bits_stored: int, high_bit: int, signed: int, slope: float, intercept: float, repair: bool, low: int, high: int
) -> np.ndarray:
    """(65536,) int32 of every 16 bit pattern: its HU in the low 16 bits, above them whether it is padding, or brain.

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
    table = np.clip(hounsfield, low, high).astype(np.int32) & 0xFFFF
    table |= np.where(hounsfield < PADDING_HU, _IS_PADDING, 0).astype(np.int32)
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
