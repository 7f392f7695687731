"""The data audit as a self-contained HTML page: SVG charts and a contact sheet of a few studies in three windows."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from ichkit.core.config import ChannelsConfig
from ichkit.core.roles import title_of
from ichkit.core.tasks import Task
from ichkit.imaging.store import open_volume
from ichkit.imaging.windows import TABLE_HIGH_HU, TABLE_LOW_HU, window_table
from ichkit.show import page

_ROOM, _TEMPLATE = "ichkit.stages.prepare", "audit.html.j2"
_NUM_STUDIES, _NUM_COLUMNS, _THUMB = 4, 10, 96
_JPEG_QUALITY = 85
_MAX_IDS = 200
_WIDTH, _HEIGHT, _LEFT, _BELOW = 640, 220, 44, 34


def render_page(audit: dict[str, Any], sheet: str, task: Task, crop_sheet: str = "") -> str:
    """Renders the audit page as HTML.

    Args:
        audit: from `make_audit`.
        sheet: from `draw_contact_sheet`.
        crop_sheet: from `crop_audit.draw_crops`.
    """
    charts = {
        "position": _lines(audit["positives_by_position"]["prevalence"]),
        "length": _bars(audit["slices_per_study"]),
        "gap": _bars(audit["geometry"]["gap_mm"], "mm"),
        "tilt": _bars(audit["geometry"]["tilt_degrees"], "°"),
    }
    crop = audit.get("crop")
    if crop is not None:
        charts["side"] = _bars(crop["side_mm"], "mm")
    shown = {"audit": audit, "charts": charts, "sheet": sheet, "crop": crop, "crop_sheet": crop_sheet, "task": task}
    shown |= {"max_ids": _MAX_IDS, "size": (_WIDTH, _HEIGHT), "title_of": title_of}
    return page.render(_ROOM, _TEMPLATE, **shown)


def draw_contact_sheet(folder: Path, slices: pd.DataFrame, studies: pd.DataFrame, task: Task) -> str:
    """A JPEG data URL: slices of a few studies from feet to head, one row per window.

    Args:
        folder: the folder of the volumes.
    """
    tables = [window_table(level, width) for level, width in ChannelsConfig().windows]
    rows = []
    for volume in _pick_volumes(slices, studies, task):
        array = open_volume(folder / volume)
        chosen = np.unique(np.linspace(0, len(array) - 1, min(_NUM_COLUMNS, len(array))).round().astype(int))
        thumbs = [cv2.resize(np.asarray(array[int(i)]), (_THUMB, _THUMB), interpolation=cv2.INTER_AREA) for i in chosen]
        thumbs += [np.full((_THUMB, _THUMB), TABLE_LOW_HU, np.int16)] * (_NUM_COLUMNS - len(thumbs))
        strip = np.clip(np.concatenate(thumbs, axis=1), TABLE_LOW_HU, TABLE_HIGH_HU) - TABLE_LOW_HU
        rows += [table[strip] for table in tables]
    if not rows:
        return ""
    return page.encode_jpeg(np.concatenate(rows), _JPEG_QUALITY)


def _pick_volumes(slices: pd.DataFrame, studies: pd.DataFrame, task: Task) -> list[str]:
    """Volume paths of the first two positive, one negative and one external study by id."""
    train = studies[studies["split"] == "train"]
    positive = train[train[task.headline_class] == 1]
    negative, external = train[train[task.headline_class] == 0], studies[studies["split"] == "external"]
    picked = pd.concat([positive.head(2), negative.head(1), external.head(1)]).head(_NUM_STUDIES)
    volumes = slices.drop_duplicates(["dataset", "study_id"])[["dataset", "study_id", "volume"]]
    return picked.merge(volumes, on=["dataset", "study_id"], how="left")["volume"].to_list()


def _bars(histogram: list[dict[str, Any]], unit: str = "") -> dict[str, Any]:
    """Rectangles of a bar chart, in view box pixels."""
    most = max((item["count"] for item in histogram), default=0) or 1
    step = (_WIDTH - _LEFT) / max(len(histogram), 1)
    bars = []
    for i, item in enumerate(histogram):
        height = item["count"] / most * (_HEIGHT - _BELOW - 18)
        until = f"{item['from']:g}-{item['to']:g}" if item["to"] is not None else f"from {item['from']:g}"
        bars.append(
            {
                "x": round(_LEFT + i * step + 3, 1),
                "y": round(_HEIGHT - _BELOW - height, 1),
                "width": round(step - 6, 1),
                "height": round(height, 1),
                "middle": round(_LEFT + (i + 0.5) * step, 1),
                "label": f"{until} {unit}".strip(),
                "count": item["count"],
            }
        )
    return {"bars": bars, "base": _HEIGHT - _BELOW}


def _lines(series: dict[str, list[float | None]]) -> dict[str, Any]:
    """Polylines and axis ticks of a line chart with equal x steps, in view box pixels."""
    values = [value for line in series.values() for value in line if value is not None]
    most = max(values, default=0.0) or 1.0
    bottom = _HEIGHT - _BELOW
    lines = []
    for name, line in series.items():
        step = (_WIDTH - _LEFT - 10) / max(len(line) - 1, 1)
        points = [
            f"{_LEFT + i * step:.1f},{bottom - value / most * (bottom - 12):.1f}"
            for i, value in enumerate(line)
            if value is not None
        ]
        lines.append({"name": name, "points": " ".join(points)})
    ticks = [{"y": round(bottom - share * (bottom - 12), 1), "value": most * share} for share in (0, 0.5, 1)]
    return {"lines": lines, "ticks": ticks, "left": _LEFT, "right": _WIDTH - 10, "base": bottom}
