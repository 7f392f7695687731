"""The slices of a study for a page: one small picture that a script shows through three windows, and a static chart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from ichkit.imaging.pictures import CODE_KNOTS, WINDOWS, encode_hounsfield, head_mask
from ichkit.show.blocks import Card, Curve, Viewer
from ichkit.show.page import encode_webp

PAGE_BYTES = 6_000_000
"""A page with viewers of up to 30 studies is at most this large, so that it can be mailed."""
STUDIES_BYTES = 3_000_000
"""Of their slices before base64; the rest of the page is tables, charts and single slices."""
_STUDY_BYTES = 110_000
_MAX_TILES, _COLUMNS = 64, 8
# Tried in this order until a study fits.
_SIDES_AND_QUALITIES = ((256, 60), (224, 50), (192, 45), (160, 40), (128, 30), (96, 20), (64, 10))
HOW_TO_SCROLL = (
    "Click the images, then scroll with the wheel or the arrow keys; Page Up and Down, Home and End jump, H switches "
    "the heat map, K goes to the next key slice (\u25bc), W shows one window. Click the chart to go to a slice."
)
"""The text above the viewers of a page."""
_HEAT_SIDE, _HEAT_QUALITY = 48, 60
_NEAR = 0.1  # of level and width, within which a window has the name of a usual one
_TICK_STEPS, _MOST_TICKS = (1, 2, 5, 10, 20, 50, 100), 8
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Viewed:
    """One study to look at.

    Attributes:
        anchor: id of the viewer, unique in the page.
        title: heading, true of all slices.
        volume_hu: (S, H, W) int16 HU, row 0 at the feet.
        probabilities: (S, C).
        positions_mm: (S,), NaN if unknown.
        labels: (S, C) of 0, 1 or NaN; None if there is no truth.
        heat: slice to (class, (H, W) heat in [0, 1], scaled by the probability); may be empty.
        key_slices: the most important slices, most important first.
        stills: the key slices as pictures, shown without scripts.
        remarks: slice to why it is shown; in the heading while it is.
    """

    anchor: str
    title: str
    volume_hu: np.ndarray
    probabilities: np.ndarray
    positions_mm: np.ndarray
    labels: np.ndarray | None = None
    heat: Mapping[int, tuple[str, np.ndarray]] = field(default_factory=dict)
    key_slices: Sequence[int] = ()
    stills: Sequence[Card] = ()
    remarks: Mapping[int, str] = field(default_factory=dict)


def make_viewer(
    study: Viewed,
    classes: Sequence[str],
    thresholds: Mapping[str, float],
    num_studies: int,
    caption: str = "",
    *,
    windows: Sequence[tuple[str, tuple[float, float]]] = WINDOWS,
    is_open: bool = True,
    num_bytes: int = STUDIES_BYTES,
) -> Viewer:
    """The viewer of a study; of a long study at most 64 evenly spaced slices and the key slices have pictures.

    Args:
        classes: (C,) names.
        thresholds: class to threshold; classes without one are absent.
        num_studies: number of viewers in the page, which share `PAGE_BYTES`.
        caption: text below.
        windows: names with (level, width) in HU, see `name_windows`.
        is_open: False folds the viewer until it is asked for.
        num_bytes: of the slices of all viewers of the page.
    """
    num_slices = len(study.volume_hu)
    spaced = np.linspace(0, num_slices - 1, min(_MAX_TILES, num_slices)).round().astype(int)
    shown = sorted({*spaced.tolist(), *study.key_slices, *study.heat})
    side, sprite = _encode_within(study.volume_hu[shown], min(_STUDY_BYTES, num_bytes // max(num_studies, 1)))
    tiles, heat_at, heat_class = [], {}, {}
    for number, (index, (name, heat)) in enumerate(sorted(study.heat.items())):
        inside = heat * head_mask(study.volume_hu[index])
        tiles.append(_fit(np.clip(inside * 255, 0, 255).astype(np.uint8), _HEAT_SIDE, 0))
        heat_at[shown.index(index)], heat_class[shown.index(index)] = number, name
    mm = [None if np.isnan(value) else round(float(value), 1) for value in study.positions_mm]
    content = {
        "side": side,
        "columns": _COLUMNS,
        "sprite": sprite,
        "shown": shown,
        "knots": CODE_KNOTS,
        "windows": [[name, *window] for name, window in windows],
        "heat": encode_webp(_grid(tiles), _HEAT_QUALITY) if tiles else "",
        "heat_side": _HEAT_SIDE,
        "heat_at": heat_at,
        "heat_class": heat_class,
        "keys": [shown.index(index) for index in study.key_slices],
        "positions_mm": mm,
        "probabilities": study.probabilities.astype(float).round(4).tolist(),
        "truth": None if study.labels is None else _plain(study.labels),
        "remarks": study.remarks,
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    curves = [_curve(study, c, name, thresholds.get(name)) for c, name in enumerate(classes)]
    keys = tuple(_percent(index, num_slices) for index in study.key_slices)
    step = next(step for step in _TICK_STEPS if num_slices <= _MOST_TICKS * step or step == _TICK_STEPS[-1])
    ticks = tuple((index, _percent(index, num_slices)) for index in range(0, num_slices, step))
    first = study.key_slices[0] if study.key_slices else 0
    remark = f": slice {first}, {study.remarks[first]}" if first in study.remarks else ""
    stills = list(study.stills)
    return Viewer(study.anchor, study.title, text, curves, num_slices, keys, ticks, stills, caption, is_open, remark)


def _percent(index: int, num_slices: int) -> float:
    """The middle of a slice along the chart."""
    return 100 * (index + 0.5) / num_slices


def name_windows(windows: Sequence[tuple[float, float]]) -> tuple[tuple[str, tuple[float, float]], ...]:
    """The windows of a run for a viewer, if it has three; those near a usual one have its name.

    Args:
        windows: (level, width) in HU.

    Example:
        >>> name_windows([(40, 80), (75, 215), (35, 30)])
        (('brain', (40, 80)), ('subdural', (75, 215)), ('35/30', (35, 30)))
    """
    if len(windows) != len(WINDOWS):
        return WINDOWS
    named = []
    for window in windows:
        names = (name for name, usual in WINDOWS if np.allclose(window, usual, rtol=_NEAR, atol=0))
        named.append((next(names, f"{window[0]:g}/{window[1]:g}"), (*window,)))
    return tuple(named)


def _curve(study: Viewed, c: int, name: str, threshold: float | None) -> Curve:
    p = study.probabilities[:, c]
    points = " ".join(f"{i + 0.5:g},{100 * (1 - value):.1f}" for i, value in enumerate(p))
    truth: tuple[tuple[int, int], ...] = ()
    if study.labels is not None:
        turns = np.flatnonzero(np.diff(np.concatenate([[False], study.labels[:, c] == 1, [False]]).astype(int)))
        truth = tuple((int(start), int(end - start)) for start, end in turns.reshape(-1, 2))
    dash = _DASHES[c // 6 % len(_DASHES)]
    known = None if threshold is None or np.isnan(threshold) else float(threshold)
    return Curve(name, c % 6, dash, points, float(p.max()), int(p.argmax()), known, truth, study.labels is not None)


def _plain(labels: np.ndarray) -> list[list[int | None]]:
    return [[None if np.isnan(value) else int(value) for value in row] for row in labels]


def _encode_within(slices_hu: np.ndarray, most: int) -> tuple[int, str]:
    """The tile side and the picture of all slices in rows of 8: the largest and best that fits `most` bytes."""
    codes = encode_hounsfield(slices_hu)
    found = (0, "")
    for side, quality in _SIDES_AND_QUALITIES:
        found = side, encode_webp(_grid([_fit(code, side, 0) for code in codes]), quality)
        if len(found[1]) * 3 // 4 <= most:
            break
    return found


def _fit(image: np.ndarray, side: int, fill: int) -> np.ndarray:
    """(side, side) uint8: the image in the middle of a square, scaled until it just fits."""
    scale = side / max(image.shape)
    height, width = (max(1, round(length * scale)) for length in image.shape)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.full((side, side), fill, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=way)
    return square


def _grid(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Square tiles in rows of 8."""
    filled = [*tiles, *[np.zeros_like(tiles[0])] * (-len(tiles) % _COLUMNS)]
    rows = [np.concatenate(filled[i : i + _COLUMNS], axis=1) for i in range(0, len(filled), _COLUMNS)]
    return np.concatenate(rows)
