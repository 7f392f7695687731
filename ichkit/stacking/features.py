"""The features of the boosted trees, in named groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ichkit.core.errors import ConfigError, nearest
from ichkit.core.tasks import Task
from ichkit.stacking.neighbours import neighbour_stacks, running_means, study_starts
from ichkit.stacking.rows import FACTS, Rows
from ichkit.stacking.summaries import ranks_in_study, study_quantiles

# Up to this distance runs have their own columns, beyond it their mean: five runs would have 570 columns otherwise.
_OWN_REACH = 3
_STEP_REACH = 2
_QUANTILES = (0.5, 0.75, 0.9)
_NARROW_REACH = 1
_BLOCK_ROWS = 32_768


@dataclass(frozen=True)
class FeatureGroup:
    """A group of columns.

    Attributes:
        names: (task, number of runs, window) to the names of the columns.
        make: (rows, window) to (N, F) float; NaN if missing.
        description: one sentence.
        source: its origin.
    """

    names: Callable[[Task, int, int], list[str]]
    make: Callable[[Rows, int], np.ndarray]
    description: str
    source: str


def find_groups(names: Sequence[str]) -> list[FeatureGroup]:
    """The groups of those names, in the order of the table.

    Raises:
        ConfigError: no such group; the message lists the choices.
    """
    for name in names:
        if name not in FEATURE_GROUPS:
            raise ConfigError(
                f'config: unknown group "{name}" in stack.lightgbm.features. {nearest(name, FEATURE_GROUPS)}'
            )
    return [group for name, group in FEATURE_GROUPS.items() if name in names]


def feature_names(task: Task, num_runs: int, window: int, groups: Sequence[str]) -> list[str]:
    """The name of every column of `make_features`, in order.

    Example:
        >>> len(feature_names(find_task("hemorrhage"), num_runs=1, window=19, groups=tuple(FEATURE_GROUPS)))
        201
    """
    return [name for group in find_groups(groups) for name in group.names(task, num_runs, window)]


def make_features(rows: Rows, task: Task, window: int, groups: Sequence[str]) -> np.ndarray:
    """(N, F) float32 features of every row; NaN beyond the ends of a study.

    They are computed in blocks of whole studies, which needs little memory besides the result.
    """
    found = find_groups(groups)
    features = np.empty((len(rows), len(feature_names(task, rows.num_runs, window, groups))), np.float32)
    for block in _blocks(rows):
        part, first = rows.take(block), 0
        for group in found:
            values = group.make(part, window)
            features[block, first : first + values.shape[1]] = values
            first += values.shape[1]
    return features


def _blocks(rows: Rows) -> list[slice]:
    """Runs of whole studies of about `_BLOCK_ROWS` rows."""
    starts = study_starts(rows.study_codes)
    cuts = starts[np.searchsorted(starts, np.arange(0, len(rows), _BLOCK_ROWS))[1:] - 1]
    edges = np.unique([0, *cuts, len(rows)])
    return [slice(first, last) for first, last in pairwise(edges.tolist())]


def _neighbour_names(task: Task, num_runs: int, window: int) -> list[str]:
    names = []
    for offset in range(-(window // 2), window // 2 + 1):
        runs = [f"run{run}" for run in range(num_runs)] if abs(offset) <= _OWN_REACH else ["mean"]
        names += [f"logit_{name}_{offset:+d}_{run}" for run in runs for name in task.classes]
    return names


def _neighbours(rows: Rows, window: int) -> np.ndarray:
    reach, own = window // 2, min(window // 2, _OWN_REACH)
    near = neighbour_stacks(rows.logits.reshape(len(rows), -1), rows.study_codes, 2 * own + 1, beyond=np.nan)
    if own == reach:
        return near.reshape(len(rows), -1)
    far = neighbour_stacks(rows.combined_logits(), rows.study_codes, window, beyond=np.nan)
    parts = (far[:, : reach - own], near, far[:, reach + own + 1 :])
    return np.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1)


def _step_names(task: Task, _num_runs: int, _window: int) -> list[str]:
    offsets = [offset for offset in range(-_STEP_REACH, _STEP_REACH + 1) if offset]
    return [f"step_{offset:+d}_{name}" for offset in offsets for name in task.classes]


def _steps(rows: Rows, _window: int) -> np.ndarray:
    stacks = neighbour_stacks(rows.combined_logits(), rows.study_codes, 2 * _STEP_REACH + 1, beyond=np.nan)
    steps = stacks - stacks[:, _STEP_REACH : _STEP_REACH + 1]
    differences: np.ndarray = np.delete(steps, _STEP_REACH, axis=1).reshape(len(rows), -1)
    return differences


def _mean_names(task: Task, _num_runs: int, _window: int) -> list[str]:
    return [f"mean_{width}_{name}" for width in ("three", "seven", "window") for name in task.classes]


def _means(rows: Rows, window: int) -> np.ndarray:
    mean, reaches = rows.combined_logits(), (_NARROW_REACH, _OWN_REACH, window // 2)
    return np.concatenate([running_means(mean, rows.study_codes, reach) for reach in reaches], axis=1)


def _study_names(task: Task, _num_runs: int, _window: int) -> list[str]:
    summaries = ("mean", "maximum", *(f"quantile{round(100 * share)}" for share in _QUANTILES))
    return [f"study_{summary}_{name}" for summary in summaries for name in task.classes]


def _study(rows: Rows, _window: int) -> np.ndarray:
    mean, starts = rows.combined_logits(), study_starts(rows.study_codes)
    if not len(starts):
        return np.empty((0, (2 + len(_QUANTILES)) * mean.shape[1]))
    lengths = np.diff(np.append(starts, len(rows)))
    means = np.add.reduceat(mean, starts) / lengths[:, None]
    quantiles = study_quantiles(mean, rows.study_codes, _QUANTILES).reshape(len(starts), -1)
    return np.repeat(np.concatenate([means, np.maximum.reduceat(mean, starts), quantiles], axis=1), lengths, axis=0)


def _rank_names(task: Task, _num_runs: int, _window: int) -> list[str]:
    return [f"rank_{name}" for name in task.classes]


def _ranks(rows: Rows, _window: int) -> np.ndarray:
    return ranks_in_study(rows.combined_logits(), rows.study_codes)


def _position_names(_task: Task, _num_runs: int, _window: int) -> list[str]:
    return [
        "position",
        "slices_below",
        "slices_above",
        "slices_to_edge",
        "num_slices",
        "gap_below_mm",
        "gap_above_mm",
        "padded",
        "brain_share",
    ]


def _position(rows: Rows, _window: int) -> np.ndarray:
    index, num_slices, position_mm, gap_mm, padded, brain_share = (rows.facts[:, c] for c in range(len(FACTS)))
    above = num_slices - 1 - index
    relative = index / np.maximum(num_slices - 1, 1)
    gap_below_mm = np.full(len(rows), np.nan)
    gap_below_mm[1:] = np.diff(position_mm)
    gap_below_mm[study_starts(rows.study_codes)] = np.nan
    edge = np.minimum(index, above)
    return np.stack(
        [relative, index, above, edge, num_slices, gap_below_mm, gap_mm, padded, brain_share],
        axis=1,
    )


FEATURE_GROUPS = {
    "neighbours": FeatureGroup(
        names=_neighbour_names,
        make=_neighbours,
        description="Logits of every class in the slice and its neighbours, per run up to three slices away.",
        source="RSNA 2019, third place: boosted trees on out-of-fold probabilities at +-1 to 9; logits are "
        "equivalent, because trees depend on the order only",
    ),
    "steps": FeatureGroup(
        names=_step_names,
        make=_steps,
        description="Differences between the logits of the slices one and two away and the slice's own.",
        source="chosen here, because trees need many splits for a difference",
    ),
    "means": FeatureGroup(
        names=_mean_names,
        make=_means,
        description="Logits averaged over three slices, seven, and the window, fewer at the ends.",
        source="chosen here, because averaging reduces the noise of single slices",
    ),
    "study": FeatureGroup(
        names=_study_names,
        make=_study,
        description="Mean, maximum and quantiles of each class's logit over the study.",
        source="RSNA 2019, second-stage models of several top solutions",
    ),
    "ranks": FeatureGroup(
        names=_rank_names,
        make=_ranks,
        description="Share of the study's other slices with a lower logit, per class.",
        source="chosen here, because a medium logit means more as the highest of a study than as one of many",
    ),
    "position": FeatureGroup(
        names=_position_names,
        make=_position,
        description="Position of the slice in its study, the gaps to its neighbours, padding group, brain share.",
        source="data: end slices are positive 0.84 % of the time, padded ones half as often as others",
    ),
}
