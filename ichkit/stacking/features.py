"""What the trees look at: every feature by name, in one list."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ichkit.core.tasks import Task
from ichkit.stacking.neighbours import neighbour_stacks, running_means, study_starts
from ichkit.stacking.rows import FACTS, Rows


@dataclass(frozen=True)
class FeatureGroup:
    """Columns made together.

    Attributes:
        names: (task, number of runs, window) to the names of the columns.
        make: (rows, window) to (N, F) float; NaN where there is nothing.
        description: one sentence.
        source: where the idea comes from.
    """

    names: Callable[[Task, int, int], list[str]]
    make: Callable[[Rows, int], np.ndarray]
    description: str
    source: str


def feature_names(task: Task, num_runs: int, window: int) -> list[str]:
    """The name of every column of `make_features`, in order.

    Example:
        >>> len(feature_names(find_task("hemorrhage"), num_runs=1, window=7))
        85
    """
    return [name for group in FEATURE_GROUPS.values() for name in group.names(task, num_runs, window)]


def make_features(rows: Rows, window: int) -> np.ndarray:
    """(N, F) float32 features of every row; NaN beyond the ends of a study."""
    return np.concatenate([group.make(rows, window) for group in FEATURE_GROUPS.values()], axis=1, dtype=np.float32)


def _neighbour_names(task: Task, num_runs: int, window: int) -> list[str]:
    offsets = range(-(window // 2), window // 2 + 1)
    return [
        f"logit_{name}_{offset:+d}_run{run}" for offset in offsets for run in range(num_runs) for name in task.classes
    ]


def _neighbours(rows: Rows, window: int) -> np.ndarray:
    return neighbour_stacks(rows.logits.reshape(len(rows), -1), rows.study_codes, window, beyond=np.nan).reshape(
        len(rows), window * rows.num_runs * rows.logits.shape[2]
    )


def _step_names(task: Task, _num_runs: int, _window: int) -> list[str]:
    return [f"step_{side}_{name}" for side in ("down", "up") for name in task.classes]


def _steps(rows: Rows, _window: int) -> np.ndarray:
    stacks = neighbour_stacks(rows.mean_logits(), rows.study_codes, 3, beyond=np.nan)
    return np.concatenate([stacks[:, 0] - stacks[:, 1], stacks[:, 2] - stacks[:, 1]], axis=1)


def _mean_names(task: Task, _num_runs: int, _window: int) -> list[str]:
    return [f"mean_{width}_{name}" for width in ("near", "window") for name in task.classes]


def _means(rows: Rows, window: int) -> np.ndarray:
    mean = rows.mean_logits()
    return np.concatenate([running_means(mean, rows.study_codes, reach) for reach in (1, window // 2)], axis=1)


def _study_names(task: Task, _num_runs: int, _window: int) -> list[str]:
    return [f"study_{what}_{name}" for what in ("mean", "maximum") for name in task.classes]


def _study(rows: Rows, _window: int) -> np.ndarray:
    mean, starts = rows.mean_logits(), study_starts(rows.study_codes)
    if not len(starts):
        return np.empty((0, 2 * mean.shape[1]))
    lengths = np.diff(np.append(starts, len(rows)))
    means = np.add.reduceat(mean, starts) / lengths[:, None]
    return np.repeat(np.concatenate([means, np.maximum.reduceat(mean, starts)], axis=1), lengths, axis=0)


def _position_names(_task: Task, _num_runs: int, _window: int) -> list[str]:
    return ["position", "slices_below", "slices_above", "num_slices", "gap_below_mm", "gap_above_mm", "padded"]


def _position(rows: Rows, _window: int) -> np.ndarray:
    index, num_slices, position_mm, gap_mm, padded = (rows.facts[:, column] for column in range(len(FACTS)))
    relative = index / np.maximum(num_slices - 1, 1)
    gap_below_mm = np.full(len(rows), np.nan)
    gap_below_mm[1:] = np.diff(position_mm)
    gap_below_mm[study_starts(rows.study_codes)] = np.nan
    return np.stack([relative, index, num_slices - 1 - index, num_slices, gap_below_mm, gap_mm, padded], axis=1)


FEATURE_GROUPS = {
    "neighbours": FeatureGroup(
        names=_neighbour_names,
        make=_neighbours,
        description="Logits of every class and run in the slice and its neighbours, missing beyond the ends.",
        source="RSNA 2019, third place: boosted trees on neighbours' out-of-fold probabilities",
    ),
    "steps": FeatureGroup(
        names=_step_names,
        make=_steps,
        description="How far the logits of the two adjacent slices lie above the slice's own.",
        source="chosen here, because a tree needs many splits for a difference",
    ),
    "means": FeatureGroup(
        names=_mean_names,
        make=_means,
        description="Logits averaged over three slices, and over the window, fewer at the ends.",
        source="chosen here, because averaging removes the noise of single slices at once",
    ),
    "study": FeatureGroup(
        names=_study_names,
        make=_study,
        description="Mean and maximum of each class's logit over the study.",
        source="RSNA 2019, second-stage models of several top solutions",
    ),
    "position": FeatureGroup(
        names=_position_names,
        make=_position,
        description="Where the slice lies in its study, the gaps to its neighbours, and the padding group.",
        source="data: end slices are positive 0.84 % of the time, padded ones half as often as others",
    ),
}
