"""NIfTI volumes in Hounsfield units: one header per slice, as for slices of DICOM files."""

import gzip
import io
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ichkit.imaging.dicom import MAX_SIDE, NO_PADDING, Header, Outcome, UnreadableError

SYNTAX = "nifti"
"""Stands in `StoredPixels.syntax` in place of a transfer syntax."""
SUFFIXES = (".nii", ".nii.gz")
MAX_BYTES = 1024**3
"""Of a file when unpacked: 1,000 slices of 512 x 512 in 32 bits."""
_HEAD_BYTES = 4096
_PACKED_HEAD_BYTES = 65_536
_GZIP_MARK = b"\x1f\x8b"
_SIZES = (348, 540)
"""Of the header of NIfTI-1 and NIfTI-2, which is its first number."""


def read_slices(read_head: Callable[[int], bytes]) -> list[Outcome]:
    """The headers of all slices of a volume, from the feet to the head; uids are empty, because NIfTI has none.

    Args:
        read_head: gives the first n bytes of the file, or all of it where it is shorter.

    Returns:
        (header, "") of each slice, or one (None, reason): nibabel is missing, no NIfTI, more than three dimensions, no
        orientation, colours, or invalid sizes.
    """
    try:
        head = read_head(_PACKED_HEAD_BYTES)
        if head[:2] == _GZIP_MARK:
            head = _guarded(lambda: zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _HEAD_BYTES))
        nibabel = _import_nibabel()
        header = _guarded(lambda: _image_class(nibabel, head).header_class.from_fileobj(io.BytesIO(head)))
        return [(item, "") for item in _make_headers(nibabel, header)]
    except UnreadableError as error:
        return [(None, str(error))]


def read_volume(data: bytes) -> np.ndarray:
    """(S, H, W) uint16 bit patterns of int16 HU: slices to the head, rows to the back, columns to the left.

    Values are rounded to whole HU; what is not finite becomes padding.

    Raises:
        UnreadableError: damaged, or larger than `MAX_BYTES`.
    """
    nibabel = _import_nibabel()
    if data[:2] == _GZIP_MARK:
        packed = data
        data = _guarded(lambda: gzip.GzipFile(fileobj=io.BytesIO(packed)).read(MAX_BYTES + 1))
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"NIfTI is larger than {MAX_BYTES // 1024**2} MB")
    image = _guarded(lambda: _image_class(nibabel, data).from_bytes(data))
    shape = _check_shape(image.header)
    volume = np.empty(shape, np.int16)
    rest = (0,) * (len(image.shape) - 3)
    for k in range(shape[2]):
        values = _guarded(partial(_read_plane, image, (slice(None), slice(None), k, *rest)))
        volume[:, :, k] = np.clip(np.rint(np.nan_to_num(values, nan=-32768.0)), -32768, 32767).astype(np.int16)
    turned = nibabel.orientations.apply_orientation(volume, _to_lps(nibabel, image.affine))
    return np.ascontiguousarray(turned.transpose(2, 1, 0)).view(np.uint16)


def _read_plane(image: Any, place: tuple[slice | int, ...]) -> np.ndarray:
    return np.asarray(image.dataobj[place], np.float64)


def _import_nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise UnreadableError("NIfTI needs nibabel; pip install 'ichkit[nifti]'") from error
    return nibabel


def _guarded(read: Callable[[], Any]) -> Any:
    """The result of `read`; every exception of nibabel or zlib for a damaged file becomes a reason."""
    try:
        return read()
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"NIfTI cannot be read ({type(error).__name__})") from error


def _image_class(nibabel: Any, data: bytes) -> Any:
    sizes = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    if not sizes & set(_SIZES):
        raise UnreadableError("not NIfTI")
    return nibabel.Nifti1Image if _SIZES[0] in sizes else nibabel.Nifti2Image


def _check_shape(header: Any) -> tuple[int, int, int]:
    shape = tuple(map(int, header.get_data_shape()))
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise UnreadableError("NIfTI: expected one volume of three dimensions")
    dtype = _guarded(header.get_data_dtype)
    if dtype.kind not in "iuf":
        raise UnreadableError("NIfTI: colour or complex values, expected numbers")
    if not all(1 <= side <= MAX_SIDE for side in shape[:3]) or math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise UnreadableError("NIfTI: invalid size")
    return shape[0], shape[1], shape[2]


def _to_lps(nibabel: Any, affine: np.ndarray) -> np.ndarray:
    """(3, 2) the orientation transform (as in nibabel) from stored axes to left, back, head."""
    found = nibabel.orientations.io_orientation(affine)
    return np.asarray(nibabel.orientations.ornt_transform(found, nibabel.orientations.axcodes2ornt("LPS")))


def _make_headers(nibabel: Any, header: Any) -> list[Header]:
    shape = _check_shape(header)
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise UnreadableError("NIfTI without sform and qform: left and right are unknown")
    affine = np.asarray(_guarded(header.get_best_affine), np.float64)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not ((sizes > 0) & (sizes < 100)).all() or np.abs(affine).max() > 1e5:
        raise UnreadableError("NIfTI: voxel size is not between 0 and 100 mm")
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 0.5:
        raise UnreadableError("NIfTI: its axes span no volume")
    turn = _to_lps(nibabel, affine)
    turned = affine @ nibabel.orientations.inv_ornt_aff(turn, shape)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned  # NIfTI counts to the right and the front, DICOM does not
    columns, rows, num_slices = (int(size) for size in _turned_shape(shape, turn))
    # A file keeps 32 bit floats: what they add to 0.8 is noise.
    spacing = np.round(np.linalg.norm(lps[:3, :3], axis=0), 6)
    direction = lps[:3, :3] / spacing
    orientation = [*direction[:, 0].tolist(), *direction[:, 1].tolist()]
    found = []
    for k in range(num_slices):
        x, y, z = np.round((lps @ [0, 0, k, 1])[:3], 6).tolist()
        stored = (rows, columns, 16, 15, 1, NO_PADDING, NO_PADDING, 1.0, 0.0, float(spacing[1]), float(spacing[0]))
        place = (0, k, SYNTAX, 0, 0)
        found.append(Header(*stored, *place, "", "", "", "", "", "", x, y, z, *orientation))
    return found


def _turned_shape(shape: tuple[int, int, int], turn: np.ndarray) -> list[int]:
    sides = [0, 0, 0]
    for side, (axis, _) in zip(shape, turn, strict=True):
        sides[int(axis)] = side
    return sides
