"""Draws heat maps: one slice with several classes, or all slices of a study as a strip."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ichkit.core.tasks import Task
from ichkit.engine.heat import fade_heat
from ichkit.imaging.pictures import (
    brain_picture,
    caption_picture,
    draw_scale,
    fit_picture,
    paint_heat,
    tile_pictures,
)
from ichkit.stages.explain.held_out import Explained

_PANEL_SIDE, _PANEL_COLUMNS = 320, 4
_STRIP_SIDE, _STRIP_COLUMNS = 160, 10


def draw_panel(one: Explained, task: Task) -> np.ndarray:
    """A slice in the brain window, and its heat map of each class with probability and label.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    caption = (
        f"slice {one.slice_index} ({one.slice_index + 1} of {one.num_slices}), fold {one.fold}, loss {one.loss:.3f}"
    )
    tiles = [_tile(brain_picture(one.hounsfield), _PANEL_SIDE, caption)]
    for index, heat in zip(one.class_indices, one.heat, strict=True):
        tiles.append(_heat_tile(one, index, heat, _PANEL_SIDE, task))
    return _with_scale(tile_pictures(tiles, _PANEL_COLUMNS))


def draw_strip(explained: Sequence[Explained], task: Task) -> np.ndarray:
    """The slices of a study from feet to head in bands: each has the brain window, then the heat map of each class.

    Args:
        explained: at least one; all with heat maps of the same classes.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    columns = min(_STRIP_COLUMNS, len(explained))
    rows = []
    for first in range(0, len(explained), columns):
        band = explained[first : first + columns]
        rows.append([_tile(brain_picture(one.hounsfield), _STRIP_SIDE, f"slice {one.slice_index}") for one in band])
        for place, index in enumerate(explained[0].class_indices):
            rows.append([_heat_tile(one, index, one.heat[place], _STRIP_SIDE, task) for one in band])
    blank = np.zeros_like(rows[0][0])
    tiles = [tile for row in rows for tile in [*row, *[blank] * (columns - len(row))]]
    return _with_scale(tile_pictures(tiles, columns))


def draw_weights(weights: pd.DataFrame, class_names: Sequence[str]) -> bytes:
    """The part of each slice in the pooled probability of its study, one curve for each class, as SVG.

    Args:
        weights: see `held_out.read_weights`.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ichkit"}):
        figure = Figure(figsize=(6, 2.6), layout="constrained")
        axes = figure.subplots()
        for name in (one for one in class_names if weights[f"w_{one}"].notna().all()):  # a run may have some classes
            axes.plot(weights["slice_index"], weights[f"w_{name}"], marker=".", label=name)
        axes.set(xlabel="slice, from feet to head", ylabel="weight in the study", ylim=(0, None))
        axes.legend()
        buffer = io.BytesIO()
        # Without its metadata the same figure gives the same bytes.
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()


def _tile(picture: np.ndarray, side: int, text: str) -> np.ndarray:
    return caption_picture(fit_picture(picture, side), [text])


def _heat_tile(one: Explained, index: int, heat: np.ndarray, side: int, task: Task) -> np.ndarray:
    """The heat map of a class, faded by its probability, with probability and label."""
    label = "unknown" if np.isnan(one.labels[index]) else f"{one.labels[index]:.0f}"
    text = f"{task.classes[index]} {one.probabilities[index]:.3f} (label {label})"
    return _tile(paint_heat(one.hounsfield, fade_heat(heat, one.probabilities[index])), side, text)


def _with_scale(picture: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [picture, draw_scale(picture.shape[1], "Grad-CAM, faded by the probability: no colour where it is low")]
    )
