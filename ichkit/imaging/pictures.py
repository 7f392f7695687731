"""Images for readers: slices in the brain window as RGB, with heat map overlays and captions."""

from collections.abc import Sequence

import cv2
import numpy as np

from ichkit.imaging.windows import SEQUENCE_TOP, TABLE_HIGH_HU, TABLE_LOW_HU, window_table

# Level and width in HU, as radiologists read a head for blood and as MIDL 2020, section 2.1, has it.
BRAIN_WINDOW = (40.0, 80.0)
# Most of the colour a pixel may get: with less the heat is hard to see, with more the tissue beneath it.
_STRENGTH = 0.6
WINDOWS = (("brain", BRAIN_WINDOW), ("subdural", (75.0, 215.0)), ("bone", (600.0, 2800.0)))
"""Names with (level, width) in HU of the windows that people look at slices through."""
CODE_KNOTS = ((-1024, 0), (-100, 24), (-15, 44), (90, 196), (200, 224), (2000, 255))
"""(HU, code) between which `encode_hounsfield` is linear: most of the 256 codes are for brain and blood."""
_HEAD_HU = -300
_SCALE_START, _SCALE_PIXELS = 16, 100
_FONT, _LINE_PIXELS, _INK = cv2.FONT_HERSHEY_SIMPLEX, 16, (235, 235, 235)


def picture_volume(volume: np.ndarray) -> np.ndarray:
    """The (S, H, W) values that pictures show: of several sequences the first, spread over the brain window.

    Args:
        volume: (S, H, W) int16 HU, returned as it is, or (S, M, H, W) int16 of sequences from 0 to `SEQUENCE_TOP`.
    """
    if volume.ndim == 3:
        return volume
    level, width = BRAIN_WINDOW
    grey: np.ndarray = np.rint(volume[:, 0] * (width / SEQUENCE_TOP) + level - width / 2).astype(np.int16)
    return grey


def brain_picture(slice_hu: np.ndarray) -> np.ndarray:
    """A slice in the brain window.

    Args:
        slice_hu: (H, W) int16 HU.

    Returns:
        (H, W, 3) uint8 RGB, all three channels the same grey.
    """
    return window_picture(slice_hu, *BRAIN_WINDOW)


def window_picture(slice_hu: np.ndarray, level: float, width: float) -> np.ndarray:
    """A slice through a window, otherwise as `brain_picture`."""
    places = np.clip(slice_hu, TABLE_LOW_HU, TABLE_HIGH_HU).astype(np.int32) - TABLE_LOW_HU
    return np.repeat(window_table(level, width)[places][..., None], 3, axis=2)


def encode_hounsfield(slices_hu: np.ndarray) -> np.ndarray:
    """Codes from which all of `WINDOWS` can be shown, finest between -15 and 90 HU (0.7 HU per code).

    Args:
        slices_hu: int16 HU of any shape.

    Returns:
        uint8 of the same shape.

    Example:
        >>> encode_hounsfield(np.array([-2000, 0, 40, 3000])).tolist()
        [0, 66, 124, 255]
    """
    hounsfield, code = np.array(CODE_KNOTS, np.float64).T
    table = np.interp(np.arange(hounsfield[0], hounsfield[-1] + 1), hounsfield, code).round().astype(np.uint8)
    places = np.clip(slices_hu, hounsfield[0], hounsfield[-1]).astype(np.int32) - int(hounsfield[0])
    codes: np.ndarray = table[places]
    return codes


def head_mask(slice_hu: np.ndarray) -> np.ndarray:
    """(H, W) bool: the largest object above -300 HU with everything inside it; all False in air."""
    body = (slice_hu > _HEAD_HU).astype(np.uint8)
    outlines, _ = cv2.findContours(body, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros(body.shape, np.uint8)
    if outlines:
        cv2.drawContours(mask, [max(outlines, key=len)], -1, 1, cv2.FILLED)
    return mask.astype(bool)


def paint_heat(slice_hu: np.ndarray, heat: np.ndarray, *, is_faded: bool = True) -> np.ndarray:
    """A slice in the brain window with a heat map over the head: low values stay grey, high ones turn yellow.

    Args:
        slice_hu: (H, W) int16 HU.
        heat: (H, W) float in [0, 1].
        is_faded: low values are transparent; else those far below the highest are, so that every map is seen, a low
            one in dark colours.

    Returns:
        (H, W, 3) uint8 RGB.

    Example:
        >>> brain = np.full((2, 2), 40, np.int16)
        >>> paint_heat(brain, np.zeros((2, 2)))[0, 0].tolist()
        [128, 128, 128]
    """
    heat = heat * head_mask(slice_hu)
    opacity = None if is_faded else np.clip(heat, 0, 1) / max(float(heat.max()), 1e-6)
    return _blend(brain_picture(slice_hu), heat, opacity)


def draw_scale(width: int, text: str) -> np.ndarray:
    """A line with the colours of heat from 0 to 1, as `paint_heat` paints them on brain of middle grey.

    Args:
        width: of the pictures it belongs to, in pixels.
        text: what the heat is, ASCII.

    Returns:
        (22, W, 3) uint8 RGB.
    """
    start = caption_picture(np.zeros((0, _SCALE_START, 3), np.uint8), ["0"])
    end = caption_picture(np.zeros((0, width - _SCALE_START - _SCALE_PIXELS, 3), np.uint8), [f"1  {text}"])
    bar = np.zeros((len(start), _SCALE_PIXELS, 3), np.uint8)
    bar[4:-6] = _blend(np.full_like(bar[4:-6], 128), np.linspace(0, 1, _SCALE_PIXELS)[None])
    return np.concatenate([start, bar, end], axis=1)


def _blend(picture: np.ndarray, heat: np.ndarray, opacity: np.ndarray | None = None) -> np.ndarray:
    """The picture under the colours of heat, which are as opaque as it is high unless told otherwise."""
    levels = np.floor(np.clip(heat, 0, 1) * 255 + 0.5).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    share = _STRENGTH * (levels.astype(np.float32) / 255 if opacity is None else opacity)[..., None]
    painted: np.ndarray = np.floor((1 - share) * picture + share * colours + 0.5).astype(np.uint8)
    return painted


def enlarge_picture(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture whose longer side is below `side` pixels, enlarged by the smallest whole number that reaches it.

    Args:
        picture: (H, W, 3) uint8.

    Example:
        >>> enlarge_picture(np.zeros((100, 128, 3), np.uint8), 512).shape
        (400, 512, 3)
    """
    times = max(1, -(-side // max(picture.shape[:2])))
    return cv2.resize(picture, None, fx=times, fy=times, interpolation=cv2.INTER_LINEAR) if times > 1 else picture


def fit_picture(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture in the middle of a black square of `side` pixels, scaled until it just fits.

    Args:
        picture: (H, W, 3) uint8.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - scaled.shape[0]) // 2, (side - scaled.shape[1]) // 2
    square[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return square


def caption_picture(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """The picture with lines of text on black below it.

    Args:
        picture: (H, W, 3) uint8 RGB.
        lines: ASCII, which is what OpenCV's fonts have; a line too long for the width is made smaller.

    Returns:
        (H + 16 * lines + 6, W, 3) uint8 RGB; as it is without lines.
    """
    if not lines:
        return picture
    width = picture.shape[1]
    band: np.ndarray = np.zeros((_LINE_PIXELS * len(lines) + 6, width, 3), np.uint8)
    for number, line in enumerate(lines):
        (wide, _), _ = cv2.getTextSize(line, _FONT, 0.42, 1)
        scale = 0.42 * min(1.0, (width - 6) / max(wide, 1))
        at = (3, _LINE_PIXELS * (number + 1) - 3)
        band = cv2.putText(band, line, at, _FONT, scale, _INK, 1, cv2.LINE_AA)
    return np.concatenate([picture, band])


def tile_pictures(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size in rows of `columns`, from left to right; the last row is filled up with black.

    Args:
        pictures: at least one, each (H, W, 3) uint8.

    Returns:
        (rows * H, min(columns, n) * W, 3) uint8.
    """
    columns = min(columns, len(pictures))
    filled = [*pictures, *[np.zeros_like(pictures[0])] * (-len(pictures) % columns)]
    rows = [np.concatenate(filled[first : first + columns], axis=1) for first in range(0, len(filled), columns)]
    return np.concatenate(rows)


def encode_png(picture: np.ndarray) -> bytes:
    """The bytes of a PNG file; the same picture gives the same bytes.

    Args:
        picture: (H, W, 3) uint8 RGB.
    """
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
