"""Checks the pixel values of a series on a few of its slices before it is chosen, and its PixelPaddingValue."""

import numpy as np
import pandas as pd

from ichkit.core.progress import logger
from ichkit.imaging.dicom import STORED_COLUMNS, StoredPixels, UnreadableError
from ichkit.imaging.hounsfield import hounsfield_extent, is_tissue_padding, why_no_head
from ichkit.sources.copies import read_pixels
from ichkit.sources.files import file_refs

_NUM_SAMPLES = 3


def why_unusable(files: pd.DataFrame) -> str:
    """The reason why the pixels of a series cannot be used, from three of its slices; empty if they can.

    Args:
        files: of one series, with position_mm.
    """
    places = np.linspace(0, len(files) - 1, _NUM_SAMPLES + 2)[1:-1].round().astype(int)
    samples = files.sort_values("position_mm", kind="stable").iloc[np.unique(places)]
    stored = zip(*(samples[name].to_list() for name in STORED_COLUMNS), strict=True)
    extents, reason = [], ""
    for ref, values in zip(file_refs(samples), stored, strict=True):
        header = StoredPixels(*values)
        try:
            extents.append(hounsfield_extent(read_pixels(ref, header), header))
        except UnreadableError as error:
            reason = str(error)
    return why_no_head(extents) if extents else reason


def warn_of_tissue_padding(files: pd.DataFrame, source: str) -> None:
    """Warns of slices whose PixelPaddingValue is a value of tissue: such pixels may be padding, or the head."""
    names = list(STORED_COLUMNS)
    kinds = files[["padding_value", "padding_limit", "slope", "intercept", "pixel_representation"]]
    first = files.loc[kinds.drop_duplicates().index, names]
    is_odd = [is_tissue_padding(StoredPixels(*values)) for values in first.itertuples(index=False)]
    odd = kinds.merge(kinds.loc[first.index[is_odd]])
    if len(odd):
        logger.warning(
            "%s: PixelPaddingValue of %d files is a value of tissue: such pixels are taken as air only in slices that "
            "have them in a corner",
            source,
            len(odd),
        )
