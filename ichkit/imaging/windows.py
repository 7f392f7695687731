"""Channels: from slices in Hounsfield units to the uint8 input images of a network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numba
import numpy as np

from ichkit.core.config import ChannelsConfig
from ichkit.core.errors import ConfigError
from ichkit.core.rows import find_row

# The whole range of int16 would do too; this one keeps the tables inside the processor's first cache.
TABLE_LOW_HU, TABLE_HIGH_HU = -1024, 3071
SEQUENCE_TOP = 3000
"""Of the values of a sequence without a unit, such as one of MR, which are stored from 0 to this."""


@dataclass(frozen=True)
class Rendering:
    """How one slice, with the slices around it, becomes one image.

    Attributes:
        tables: (T, V) uint8 look-up tables; column v holds the grey level of TABLE_LOW_HU + v.
        offsets: for each channel of the image, which slice it shows, relative to the slice itself.
        table_of: for each channel, the row of `tables` it is seen through.
        stretched: for each channel, lowest and highest HU of a window that is stretched by image instead of being seen
            through a table; empty for tables.
        series: for each channel, which sequence of a volume of several it shows; empty for the first.
    """

    tables: np.ndarray
    offsets: tuple[int, ...]
    table_of: tuple[int, ...]
    stretched: tuple[tuple[float, float], ...] = ()
    series: tuple[int, ...] = ()

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return len(self.offsets)

    @property
    def reach(self) -> int:
        """How many slices before and after a slice its image needs."""
        return max(abs(offset) for offset in self.offsets)

    @cached_property
    def _triples(self) -> np.ndarray:
        """(V, C) grey levels of every channel side by side."""
        return np.ascontiguousarray(self.tables[list(self.table_of)].T)

    def render(self, volume_hu: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The images of some slices of a volume; slices beyond its ends are its end slices.

        Args:
            volume_hu: (S, H, W) int16 HU, or (S, M, H, W) of M sequences.
            rows: (n,) positions in the volume.

        Returns:
            (n, H, W, C) uint8.

        Raises:
            ConfigError: the volume has fewer sequences than the channels show.
        """
        sources = np.clip(np.asarray(rows)[:, None] + np.array(self.offsets), 0, len(volume_hu) - 1)
        if volume_hu.ndim == 4 or self.series:
            volume_hu, sources = self._choose_sequences(volume_hu, sources)
        if self.stretched:
            return _stretch(volume_hu, sources, np.array(self.stretched, np.float64))
        if self.num_channels == 3 and self.reach == 0 and not self.series:
            return _look_up_thrice(volume_hu, sources[:, 0], self._triples)
        return look_up(volume_hu, sources, np.array(self.table_of), self.tables)

    def _choose_sequences(self, volume: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The volume with its sequences behind one another as slices, and the positions of the channels in it."""
        num_sequences = volume.shape[1] if volume.ndim == 4 else 1
        series = self.series or (0,) * self.num_channels
        if max(series) >= num_sequences:
            raise ConfigError(
                f"channels: expected volumes of {max(series) + 1} sequences, one for each channel, found "
                f"{num_sequences}. Name them in prepare.sequences, or use channels.kind=windows."
            )
        return as_slices(volume), sources * num_sequences + np.array(series)


@dataclass(frozen=True)
class Channels:
    """A row of `CHANNELS`.

    Attributes:
        name: key in the table.
        constructor: config to `Rendering`.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    constructor: Callable[[ChannelsConfig], Rendering]
    description: str
    source: str


def window_table(level: float, width: float) -> np.ndarray:
    """(V,) uint8 grey levels of TABLE_LOW_HU..TABLE_HIGH_HU through one window.

    Args:
        level: centre of the window in HU, shown as the middle grey.
        width: extent of the window in HU; level - width / 2 becomes 0 and level + width / 2 becomes 255.

    Source: the linear rule of DICOM PS3.3 C.11.2.1.3.2 (LINEAR_EXACT), rounded to the nearest grey level.

    Example:
        >>> window_table(40, 80)[np.array([0, 40, 80]) - TABLE_LOW_HU].tolist()
        [0, 128, 255]
    """
    hu = np.arange(TABLE_LOW_HU, TABLE_HIGH_HU + 1, dtype=np.float64)
    grey = (hu - (level - width / 2)) / width * 255
    return np.floor(np.clip(grey, 0, 255) + 0.5).astype(np.uint8)


@numba.njit(cache=True, nogil=True)
def look_up(volume_hu: np.ndarray, sources: np.ndarray, table_of: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Images made of slices of a volume, each channel a slice seen through a table.

    Args:
        volume_hu: (S, H, W) int16 HU; values beyond the tables take the table's end.
        sources: (n, C) integers, the slice that each channel of each image shows.
        table_of: (C,) integers, the row of `tables` for each channel.
        tables: (T, V) uint8, see `window_table`.

    Returns:
        (n, H, W, C) uint8.
    """
    num_images, num_channels = sources.shape
    height, width = volume_hu.shape[1:]
    highest = tables.shape[1] - 1
    images = np.empty((num_images, height, width, num_channels), np.uint8)
    for image in range(num_images):
        for channel in range(num_channels):
            table, source = tables[table_of[channel]], volume_hu[sources[image, channel]]
            for y in range(height):
                for x in range(width):
                    value = min(max(np.int64(source[y, x]) - TABLE_LOW_HU, 0), highest)
                    images[image, y, x, channel] = table[value]
    return images


@numba.njit(cache=True, nogil=True)
def _look_up_thrice(volume_hu: np.ndarray, rows: np.ndarray, triples: np.ndarray) -> np.ndarray:
    """`look_up` for three windows of one slice in half the time: (V, 3) triples stand side by side in memory."""
    height, width = volume_hu.shape[1:]
    lowest, highest = np.int32(0), np.int32(len(triples) - 1)
    images = np.empty((len(rows), height, width, 3), np.uint8)
    for i in range(len(rows)):
        for y in range(height):
            source, image = volume_hu[rows[i], y], images[i, y]
            for x in range(width):
                value = min(max(np.int32(source[x]) - np.int32(TABLE_LOW_HU), lowest), highest)
                image[x, 0] = triples[value, 0]
                image[x, 1] = triples[value, 1]
                image[x, 2] = triples[value, 2]
    return images


@numba.njit(cache=True, nogil=True)
def _stretch(volume_hu: np.ndarray, sources: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(n, H, W, C) uint8: each channel clipped to its (C, 2) limits, then stretched from its lowest to its highest."""
    num_images, num_channels = sources.shape
    height, width = volume_hu.shape[1:]
    images = np.zeros((num_images, height, width, num_channels), np.uint8)
    for image in range(num_images):
        for channel in range(num_channels):
            source = volume_hu[sources[image, channel]]
            bottom, top = limits[channel]
            low, high = top, bottom
            for y in range(height):
                for x in range(width):
                    value = min(max(np.float64(source[y, x]), bottom), top)
                    low, high = min(low, value), max(high, value)
            if high <= low:
                continue
            for y in range(height):
                for x in range(width):
                    value = min(max(np.float64(source[y, x]), bottom), top)
                    images[image, y, x, channel] = np.uint8(np.floor((value - low) / (high - low) * 255 + 0.5))
    return images


def as_slices(volume: np.ndarray) -> np.ndarray:
    """(S x M, H, W): the M sequences of each slice of an (S, M, H, W) volume behind one another; (S, H, W) as it is."""
    return volume.reshape(-1, *volume.shape[-2:])


def resize_volume(volume_hu: np.ndarray, size: int) -> np.ndarray:
    """Slices of another size: area average when they shrink, bilinear when they grow.

    Resizing comes before the windows, as partial volume does in a scanner: a pixel is the mean of its tissues' HU.

    Args:
        volume_hu: (S, H, W) or (S, M, H, W) int16 HU; returned as it is where the size is right already.
        size: new height and width in pixels.

    Returns:
        (S, size, size) or (S, M, size, size) int16 HU.
    """
    height, width = volume_hu.shape[-2:]
    if height == width == size:
        return volume_hu
    how = cv2.INTER_AREA if max(height, width) > size else cv2.INTER_LINEAR
    resized = np.stack([cv2.resize(slice_hu, (size, size), interpolation=how) for slice_hu in as_slices(volume_hu)])
    return resized.reshape(*volume_hu.shape[:-2], size, size)


def pad_to_square(volume_hu: np.ndarray) -> np.ndarray:
    """The volume with its shorter side filled up with air on both ends, so that resizing never bends anatomy.

    Args:
        volume_hu: (S, H, W) or (S, M, H, W) int16 HU; returned as it is where it is square already.
    """
    height, width = volume_hu.shape[-2:]
    if height == width:
        return volume_hu
    size = max(height, width)
    top, left = (size - height) // 2, (size - width) // 2
    square = np.full((*volume_hu.shape[:-2], size, size), TABLE_LOW_HU, volume_hu.dtype)
    square[..., top : top + height, left : left + width] = volume_hu
    return square


def make_rendering(config: ChannelsConfig) -> Rendering:
    """The rendering of a config.

    Raises:
        ConfigError: an unknown kind, or windows that do not fit it.
    """
    row = find_row(CHANNELS, config.kind, "channels.kind")
    if not config.windows:
        raise ConfigError("channels.windows: expected at least one (level, width), found none.")
    rendering = row.constructor(config)
    if config.stretch == "window":
        return rendering
    windows = [config.windows[table] for table in rendering.table_of]
    return replace(rendering, stretched=tuple((level - width / 2, level + width / 2) for level, width in windows))


def _window_tables(config: ChannelsConfig) -> np.ndarray:
    return np.stack([window_table(level, width) for level, width in config.windows])


def _several_windows(config: ChannelsConfig) -> Rendering:
    num_windows = len(config.windows)
    return Rendering(_window_tables(config), offsets=(0,) * num_windows, table_of=tuple(range(num_windows)))


def _neighbouring_slices(config: ChannelsConfig) -> Rendering:
    if len(config.windows) != 1:
        raise ConfigError(
            f"channels.windows: kind neighbours shows one window of three slices, found {len(config.windows)} windows. "
            "Name one, e.g. --set 'channels.windows=[[40, 80]]'."
        )
    return Rendering(_window_tables(config), offsets=(-1, 0, 1), table_of=(0, 0, 0))


def _several_sequences(config: ChannelsConfig) -> Rendering:
    return replace(_several_windows(config), series=tuple(range(len(config.windows))))


CHANNELS = {
    "windows": Channels(
        name="windows",
        constructor=_several_windows,
        description="Each channel is the slice itself through one of the configured windows.",
        source="MIDL 2020, section 2.1: brain 40/80, subdural 75/215, bone 600/2800",
    ),
    "neighbours": Channels(
        name="neighbours",
        constructor=_neighbouring_slices,
        description="One window of the slice before, the slice itself and the slice after; ends are repeated.",
        source="common among the first ten of the RSNA 2019 competition",
    ),
    "sequences": Channels(
        name="sequences",
        constructor=_several_sequences,
        description="Each channel is one sequence of a study of several, through its own window.",
        source="Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2.3: DWI, b0 and FLAIR",
    ),
}
