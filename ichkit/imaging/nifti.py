"""NIfTI volumes: one header per slice, as for slices of DICOM files; in Hounsfield units, or as they are."""

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
_TRAILING_BYTES = 1024**2
_GZIP_MARK = b"\x1f\x8b"
_SMALLEST_MM = 0.05
"""A tenth of the pixel of a head CT: what is smaller has other units."""
_AXES_COSINE = math.cos(math.radians(45))
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
    image, shape = _open(nibabel, data)
    volume = np.empty(shape, np.int16)
    rest = (0,) * (len(image.shape) - 3)
    for k in range(shape[2]):
        values = _guarded(partial(_read_plane, image, (slice(None), slice(None), k, *rest)))
        volume[:, :, k] = np.clip(np.rint(np.nan_to_num(values, nan=-32768.0)), -32768, 32767).astype(np.int16)
    turned = nibabel.orientations.apply_orientation(volume, _to_lps(nibabel, image.affine))
    return np.ascontiguousarray(turned.transpose(2, 1, 0)).view(np.uint16)


def read_image(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(S, H, W) float32 values, and the (4, 4) affine from (column, row, slice) to mm to the left, back and head.

    Slices go to the head, rows to the back, columns to the left; what is not finite becomes 0.

    Raises:
        UnreadableError: damaged, no single volume, without geometry, or larger than `MAX_BYTES`.
    """
    nibabel = _import_nibabel()
    image, shape = _open(nibabel, data)
    _check_affine(image.header)
    values = _guarded(lambda: np.asarray(image.dataobj, np.float32)).reshape(shape)
    turn = _to_lps(nibabel, image.affine)
    turned = nibabel.orientations.apply_orientation(np.nan_to_num(values, posinf=0, neginf=0), turn)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine @ nibabel.orientations.inv_ornt_aff(turn, shape)
    return np.ascontiguousarray(turned.transpose(2, 1, 0)), affine


def encode_image(values: np.ndarray, affine: np.ndarray) -> bytes:
    """A gzipped NIfTI-1 file of (S, H, W) values with an affine as from `read_image`."""
    nibabel = _import_nibabel()
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    return gzip.compress(image.to_bytes(), 4, mtime=0)


def _open(nibabel: Any, data: bytes) -> tuple[Any, tuple[int, int, int]]:
    """The image of a whole file and its shape."""
    if data[:2] == _GZIP_MARK:
        data = _guarded(partial(_unpack, nibabel, data))
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"NIfTI is larger than {MAX_BYTES // 1024**2} MB")
    image = _guarded(lambda: _image_class(nibabel, data).from_bytes(data))
    return image, _check_shape(image.header)


def _unpack(nibabel: Any, packed: bytes) -> bytes:
    """The header and the values of a gzipped file; of what it holds beyond them at most `_TRAILING_BYTES`."""
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        head = file.read(_HEAD_BYTES)
        header = _image_class(nibabel, head).header_class.from_fileobj(io.BytesIO(head))
        num_voxels = math.prod(int(side) for side in header.get_data_shape())
        num_bytes = int(header.get_data_offset()) + num_voxels * header.get_data_dtype().itemsize
        # Reading on to the end of an ordinary file checks its CRC.
        wanted = min(num_bytes + _TRAILING_BYTES, MAX_BYTES + 1) - len(head)
        return head + file.read(max(wanted, 0))


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


def _check_affine(header: Any) -> np.ndarray:
    """The (4, 4) affine of a header, to mm to the right, front and head."""
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise UnreadableError("NIfTI without sform and qform: left and right are unknown")
    affine = np.asarray(_guarded(header.get_best_affine), np.float64)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    is_sane = ((sizes >= _SMALLEST_MM) & (sizes < 100)).all() and np.abs(affine).max() <= 1e5
    if not np.isfinite(affine).all() or not is_sane:
        raise UnreadableError(f"NIfTI: voxel size is not between {_SMALLEST_MM} and 100 mm; are the units metres?")
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 0.5:
        raise UnreadableError("NIfTI: its axes span no volume")
    if int(header["sform_code"]) and int(header["qform_code"]) and not _agree(header):
        # Readers differ in which of the two they take.
        raise UnreadableError("NIfTI: sform and qform name different axes: left and right are unknown")
    return affine


def _agree(header: Any) -> bool:
    """True if sform and qform of a header name the same axes, each within 45 degrees."""
    forms = (np.asarray(_guarded(form), np.float64)[:3, :3] for form in (header.get_sform, header.get_qform))
    directions = [form / np.maximum(np.linalg.norm(form, axis=0), 1e-12) for form in forms]
    return bool(((directions[0] * directions[1]).sum(axis=0) > _AXES_COSINE).all())


def _to_lps(nibabel: Any, affine: np.ndarray) -> np.ndarray:
    """(3, 2) the orientation transform (as in nibabel) from stored axes to left, back, head."""
    found = nibabel.orientations.io_orientation(affine)
    return np.asarray(nibabel.orientations.ornt_transform(found, nibabel.orientations.axcodes2ornt("LPS")))


def _make_headers(nibabel: Any, header: Any) -> list[Header]:
    shape = _check_shape(header)
    affine = _check_affine(header)
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
