"""Heat maps of whole studies in the pictures of their source, for NIfTI and DICOM outputs."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.engine.heat import fade_heat, heat_maps
from ichkit.engine.inference import Predictor
from ichkit.imaging.pictures import picture_volume
from ichkit.imaging.steps import Origin, restore
from ichkit.imaging.windows import TABLE_LOW_HU

LEAST_PROBABILITY = 0.05
"""Slices below it have no heat map: each takes a backward pass per network, and the map of nothing says nothing."""


@dataclass(frozen=True)
class StudyHeat:
    """The heat of one study.

    Attributes:
        picture_hu: (S, H, W) int16 HU in the source picture.
        heat: (S, H, W) float32 in [0, 1]: Grad-CAM divided by its maximum, times the probability.
        shown: (S,) the class of each map; empty without one.
    """

    picture_hu: np.ndarray
    heat: np.ndarray
    shown: tuple[str, ...]


def find_heat(
    volume: np.ndarray, origin: Origin, rows: pd.DataFrame, predictors: list[Predictor], task: Task, main: str
) -> StudyHeat:
    """The mean heat map over the networks of each slice, for the most probable class but the one that covers all.

    Args:
        volume: (S, h, w) or (S, M, h, w) int16 HU, as stored.
        origin: where it lies in the source picture.
        rows: its slices from feet to head: position_mm and the probabilities.
        main: the class whose probability decides whether a slice has a map.
    """
    p = rows[task.probability_columns].to_numpy(np.float64)
    known = [c for c in range(task.num_classes) if not np.isnan(p[:, c]).all()]
    drawn = np.array([c for c in known if task.classes[c] != task.any_class] or known)
    best = drawn[p[:, drawn].argmax(axis=1)]
    is_hot = p[:, task.classes.index(main)] >= LEAST_PROBABILITY
    positions = rows["position_mm"].to_numpy(np.float64)
    heat = np.zeros((len(volume), *volume.shape[-2:]), np.float32)
    for c in np.unique(best[is_hot]).tolist():
        at = np.flatnonzero(is_hot & (best == c))
        own = [predictor for predictor in predictors if task.classes[c] in predictor.classes]
        maps = np.mean([heat_maps(predictor, volume, at, [c], positions)[:, 0] for predictor in own], axis=0)
        heat[at] = fade_heat(maps, p[at, c])
    shown = tuple(task.classes[c] if hot else "" for c, hot in zip(best.tolist(), is_hot.tolist(), strict=True))
    return StudyHeat(restore(picture_volume(volume), origin, TABLE_LOW_HU), restore(heat, origin, 0.0), shown)
