"""The crop in the audit: how large the boxes are, where no head was found, and pictures of the extremes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pandas as pd

from ichkit.imaging.parts import UNCUT, whole_id
from ichkit.imaging.pictures import brain_picture, caption_picture, fit_picture, tile_pictures
from ichkit.imaging.resample import frame_centre
from ichkit.imaging.windows import TABLE_LOW_HU
from ichkit.show import page
from ichkit.sources.collect import PlannedSource
from ichkit.sources.plan import StudyTasks
from ichkit.sources.study import StudyTask, decode_study

SIDE_EDGES_MM = (0, 140, 160, 180, 200, 220, 240, 260, 300)
_SIDE, _PLACES, _COLOUR, _JPEG_QUALITY = 200, (0.25, 0.5, 0.75), (255, 200, 0), 88
_MOST_WITHOUT = 2


def measure_crops(crops: pd.DataFrame) -> pd.DataFrame:
    """The table with three columns more.

    Args:
        crops: `crops.parquet`.

    Returns:
        with side_mm, the longer side of the box; share, its area of the picture's; off_centre_mm, from the centre of
        the picture to that of the box.
    """
    high, wide = crops["height"] * crops["spacing_row_mm"], crops["width"] * crops["spacing_col_mm"]
    down = (crops["top"] + (crops["height"] - crops["rows"]) / 2) * crops["spacing_row_mm"]
    across = (crops["left"] + (crops["width"] - crops["columns"]) / 2) * crops["spacing_col_mm"]
    share = crops["height"] * crops["width"] / (crops["rows"] * crops["columns"])
    return crops.assign(side_mm=np.maximum(high, wide), share=share, off_centre_mm=np.hypot(down, across))


def describe_crops(crops: pd.DataFrame) -> dict[str, Any]:
    """The crop in audit.json: counts, the distribution of sides, and medians over the studies with a head.

    Args:
        crops: from `measure_crops`.
    """
    found = crops[crops["is_found"]]
    counts = np.histogram(found["side_mm"], [*SIDE_EDGES_MM, np.inf])[0]
    ends = [*SIDE_EDGES_MM[1:], None]
    return {
        "studies": len(crops),
        "not_found": len(crops) - len(found),
        "side_mm": [
            {"from": low, "to": high, "count": int(n)} for low, high, n in zip(SIDE_EDGES_MM, ends, counts, strict=True)
        ],
        **{
            f"median_{name}": float(found[name].median()) if len(found) else None
            for name in ("side_mm", "share", "off_centre_mm")
        },
    }


def pick_extremes(crops: pd.DataFrame) -> list[tuple[str, int]]:
    """What is drawn: (caption, position in the table) of the extremes and of the first studies without a head.

    Args:
        crops: from `measure_crops`.
    """
    places = np.flatnonzero(crops["is_found"])
    picked: list[tuple[str, int]] = []
    if len(places):
        side, off = (crops[name].to_numpy()[places] for name in ("side_mm", "off_centre_mm"))
        picked.append((f"smallest: side {side.min():.0f} mm", int(places[side.argmin()])))
        picked.append((f"largest: side {side.max():.0f} mm", int(places[side.argmax()])))
        picked.append((f"most off centre: {off.max():.0f} mm", int(places[off.argmax()])))
    without = np.flatnonzero(~crops["is_found"])[:_MOST_WITHOUT]
    return picked + [("no head found: the whole picture", int(position)) for position in without]


def draw_crops(crops: pd.DataFrame, planned: Sequence[PlannedSource]) -> str:
    """A JPEG data URL: three slices of each picked study as its scanner made them, with the box; "" without a crop.

    Args:
        crops: from `measure_crops`.
        planned: the sources, from which the slices are decoded again.
    """
    sources = {item.plan.dataset: item for item in planned}
    tiles = []
    for caption, position in pick_extremes(crops):
        row = crops.iloc[position]
        tasks = sources[row["dataset"]].tasks
        slices = _read_pictures(_task_of(tasks, row["study_id"]), (int(row["rows"]), int(row["columns"])))
        tiles += [caption_picture(fit_picture(_draw_box(one, row), _SIDE), [caption]) for one in slices]
    return page.encode_jpeg(tile_pictures(tiles, len(_PLACES)), _JPEG_QUALITY) if tiles else ""


def _task_of(tasks: StudyTasks, study_id: str) -> StudyTask:
    """The task of a study, or of that of which it is a part."""
    known = tasks.study_ids
    return tasks[known.index(study_id if study_id in known else whole_id(study_id))]


def _read_pictures(task: StudyTask, shape: tuple[int, int]) -> list[np.ndarray]:
    """(H, W) int16 HU of a few slices of a study, as large as its largest picture, before any step."""
    last = len(task.slices) - 1
    chosen = tuple(task.slices[round(place * last)] for place in _PLACES)
    plain = replace(task.pixels, size=None, steps=(), judges_hu=False, parts=UNCUT)
    slices = decode_study(StudyTask(task.key, chosen, plain)).volume
    frames = [np.empty(shape, np.int16) for _ in slices]
    for frame, one in zip(frames, slices, strict=True):
        frame_centre(frame, one.shape, TABLE_LOW_HU)[:] = one
    return [*frames, *[np.full(shape, TABLE_LOW_HU, np.int16)] * (len(_PLACES) - len(frames))]


def _draw_box(slice_hu: np.ndarray, row: pd.Series) -> np.ndarray:
    """(H, W, 3) uint8 in the brain window with the frame of the box, a hundredth of the picture thick."""
    picture = brain_picture(slice_hu)
    thickness = max(1, max(slice_hu.shape) // 100)
    first = (int(row["left"]), int(row["top"]))
    last = (first[0] + int(row["width"]) - 1, first[1] + int(row["height"]) - 1)
    return np.asarray(cv2.rectangle(picture, first, last, _COLOUR, thickness))
