"""One group of rows to its scores: value, interval, number of rows and of positives, as `scores.parquet` holds them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.validation.intervals import Interval, draw_scores, interval_of
from ichkit.validation.metrics import log_loss_by_class, roc_auc_by_class, weighted_log_loss

POOLED = -1  # the `fold` of a score over all folds of its source
ALL_CLASSES, MEAN_CLASS = "all", "mean"
WEIGHTED_LOG_LOSS, LOG_LOSS, ROC_AUC = "weighted_log_loss", "log_loss", "roc_auc"
PLACE = ["source", "dataset", "split", "level", "aggregation", "subgroup", "fold", "metric", "class"]
SCORE_DTYPES = {
    **dict.fromkeys(PLACE, "str"),
    "fold": "int64",
    **dict.fromkeys(["value", "low", "high"], "float64"),
    **dict.fromkeys(["n", "n_positive", "num_left_out"], "int64"),
}


@dataclass(frozen=True)
class ScoredRows:
    """Rows that are scored together.

    Attributes:
        place: the columns of `PLACE` that all their scores share: dataset, split, level, aggregation, subgroup, fold.
        probabilities: (N, C).
        labels: (N, C) float64 of 0 and 1, NaN where unknown.
        members: (N,) what the bootstrap resamples: the patient of each row, for CQ500 the study.
    """

    place: dict[str, str | int]
    probabilities: np.ndarray
    labels: np.ndarray
    members: np.ndarray


@dataclass(frozen=True)
class Value:
    """One score before its interval: metric, class, value, rows and positives, and its (D,) values in the draws."""

    metric: str
    name: str
    value: float
    n: int
    n_positive: int
    draws: np.ndarray


def score_rows(
    rows: ScoredRows, task: Task, metrics: tuple[str, ...], *, num_draws: int, level: float, seed: int
) -> pd.DataFrame:
    """The scores of a group, one row each, columns of `SCORE_DTYPES` but `source`.

    Args:
        metrics: `WEIGHTED_LOG_LOSS`, `LOG_LOSS` (one row per class), `ROC_AUC` (one row per class and, as class
            "mean", their mean: undefined where one of them is).
        num_draws: bootstrap samples; `num_left_out` of them lacked both classes.
        level: what an interval covers, e.g. 0.95.
    """
    table = []
    for value in _values(rows, task, metrics, num_draws, seed):
        interval = interval_of(value.draws, level) if np.isfinite(value.value) else Interval(np.nan, np.nan, num_draws)
        numbers = {"value": value.value, "low": interval.low, "high": interval.high}
        counts = {"n": value.n, "n_positive": value.n_positive, "num_left_out": interval.num_left_out}
        table.append({**rows.place, "metric": value.metric, "class": value.name, **numbers, **counts})
    return pd.DataFrame(table)


def _values(rows: ScoredRows, task: Task, metrics: tuple[str, ...], num_draws: int, seed: int) -> Iterator[Value]:
    p, y = rows.probabilities, rows.labels
    draws = draw_scores(p, y, rows.members, num_draws=num_draws, seed=seed)
    counted, positive = (~np.isnan(y)).sum(0), (y == 1).sum(0)
    whole = (len(y), int((y == 1).any(1).sum()))
    by_class = {LOG_LOSS: (log_loss_by_class, draws.log_loss), ROC_AUC: (roc_auc_by_class, draws.roc_auc)}
    for metric in metrics:
        if metric == WEIGHTED_LOG_LOSS:
            weights = task.weight_array()
            yield Value(metric, ALL_CLASSES, weighted_log_loss(p, y, weights), *whole, draws.log_loss @ weights)
            continue
        measure, drawn = by_class[metric]
        values = measure(p, y)
        for c, name in enumerate(task.classes):
            yield Value(metric, name, float(values[c]), int(counted[c]), int(positive[c]), drawn[:, c])
        if metric == ROC_AUC:
            yield Value(metric, MEAN_CLASS, float(values.mean()), *whole, drawn.mean(1))
