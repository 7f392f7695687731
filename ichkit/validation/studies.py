"""Slice-to-study aggregation: the table `AGGREGATIONS`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.validation.metrics import study_maximum

MAXIMUM = "maximum"


@dataclass(frozen=True)
class Aggregation:
    """A slice-to-study aggregation.

    Attributes:
        name: key in `AGGREGATIONS`, and the `aggregation` of `scores.parquet`.
        score: (predictions, task, number of top slices) to one row per study, sorted by study_id.
    """

    name: str
    score: Callable[[pd.DataFrame, Task, int], pd.DataFrame]
    description: str
    source: str


def top_mean(predictions: pd.DataFrame, task: Task, num_top: int) -> pd.DataFrame:
    """One row per study: study_id and for each class the mean of its `num_top` highest slices, or of all if fewer."""
    study, names = pd.factorize(predictions.study_id, sort=True)
    size = np.bincount(study)
    first = np.cumsum(size) - size
    columns = {}
    for column in task.probability_columns:
        p = predictions[column].to_numpy(np.float64)
        order = np.lexsort((-p, study))
        is_top = np.arange(len(p)) - first[study[order]] < num_top
        total = np.bincount(study[order], weights=np.where(is_top, p[order], 0.0))
        columns[column] = total / np.minimum(size, num_top)
    return pd.DataFrame({"study_id": names, **columns})


def noisy_or(predictions: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One row per study: study_id and for each class the probability that at least one slice is positive.

    Slices are assumed independent, which neighbours are not, so it is too high, more so with more slices.
    """
    columns = task.probability_columns
    free = pd.DataFrame(np.log1p(-predictions[columns].to_numpy(np.float64)), predictions.index, columns)
    totals = free.groupby(predictions.study_id, sort=True).sum(min_count=1)  # NaN for a class that is not predicted
    table = pd.DataFrame(-np.expm1(totals.to_numpy()), totals.index, columns)
    return table.rename_axis("study_id").reset_index()


AGGREGATIONS = {
    MAXIMUM: Aggregation(
        name=MAXIMUM,
        score=lambda predictions, task, _num_top: study_maximum(predictions, task),
        description="The maximum over the slices; used for the leaderboard.",
        source="MIDL 2020, section 3.1",
    ),
    "top_mean": Aggregation(
        name="top_mean",
        score=top_mean,
        description="The mean of the highest slices, which is less sensitive to a single artefact.",
        source="chosen here, because a hemorrhage is rarely visible in a single slice",
    ),
    "noisy_or": Aggregation(
        name="noisy_or",
        score=lambda predictions, task, _num_top: noisy_or(predictions, task),
        description="The probability of at least one positive slice, with slices assumed independent.",
        source="Pearl, Probabilistic Reasoning in Intelligent Systems, 1988, section 4.3.2",
    ),
}
