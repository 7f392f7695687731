"""Files with the same slice id: copies, of which one is used, and different slices that share an id."""

import hashlib

import numpy as np
import pandas as pd

from ichkit.core.progress import logger
from ichkit.imaging.dicom import ORIENTATION, POSITION, STORED_COLUMNS, StoredPixels, UnreadableError
from ichkit.imaging.hounsfield import decode_stored
from ichkit.sources.files import FileRef, file_refs

COPY = "duplicate of another file"
_PLACE = ["study_id", "series_id", *POSITION, *ORIENTATION, "rows", "columns"]


def split_copies(index: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(files with a slice_id each, copies with their reason).

    Files with one id are copies if they have the same position and the same bytes or pixels; the first readable one is
    used. All others are kept and get a number appended to their id.

    Args:
        index: readable files, with study_id, series_id and slice_id.
    """
    shared = index["slice_id"].duplicated(keep=False)
    if not shared.any():
        return index, index.iloc[:0].assign(reason="")
    reasons: dict[object, str] = {}
    for _, same in index[shared].groupby(["slice_id", *_PLACE], sort=False, dropna=False):
        if len(same) > 1:
            reasons |= _judge(same)
    good = index.drop(index=list(reasons))
    twice = good["slice_id"].duplicated(keep=False)
    if twice.any():
        number = good.groupby("slice_id").cumcount() + 1
        logger.warning(
            "%d files share their SOPInstanceUID with another file but differ in position or content: all are kept, "
            "with a number appended to the id; labels per slice cannot refer to them",
            int(twice.sum()),
        )
        good = good.assign(slice_id=good["slice_id"].mask(twice, good["slice_id"] + "#" + number.astype("str")))
    copies = index.loc[list(reasons)]
    return good, copies.assign(reason=[reasons[name] for name in copies.index])


def _judge(same: pd.DataFrame) -> dict[object, str]:
    """Row to reason, for files of one id and position: those with the content of an earlier readable file."""
    refs = file_refs(same)
    digests = [_digest(ref) for ref in refs]
    if len(set(digests)) == 1 and digests[0]:
        return dict.fromkeys(same.index[1:], COPY)
    stored = zip(*(same[name].to_list() for name in STORED_COLUMNS), strict=True)
    reasons: dict[object, str] = {}
    seen: list[np.ndarray] = []
    for row, ref, values in zip(same.index, refs, stored, strict=True):
        try:
            pixels = read_pixels(ref, StoredPixels(*values))
        except UnreadableError as error:
            reasons[row] = str(error)
            continue
        if any(np.array_equal(pixels, other) for other in seen):
            reasons[row] = COPY
        seen.append(pixels)
    # If none is readable, the first is kept here and rejected with its reason when all files are read.
    return reasons if seen else dict.fromkeys(same.index[1:], COPY)


def read_pixels(ref: FileRef, header: StoredPixels) -> np.ndarray:
    """(H, W) uint16 stored values of one slice.

    Raises:
        UnreadableError: see `decode_stored`.
    """
    data = ref.read(header.pixel_offset, header.pixel_bytes) if header.pixel_bytes else ref.read()
    return decode_stored(data, header)


def _digest(ref: FileRef) -> bytes:
    try:
        return hashlib.blake2b(ref.read(), digest_size=16).digest()
    except UnreadableError:
        return b""
