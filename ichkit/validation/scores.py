"""The scores of one group of rows: value, interval, number of rows and of positives, as in `scores.parquet`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ichkit.core.tasks import Task
from ichkit.validation.intervals import Interval, basic_interval_of, interval_of
from ichkit.validation.reliability import COUNT, POSITIVES, PROBABILITY, expected_calibration_error, positive_share
from ichkit.validation.tallies import AUC, BINS, LOSS, RANKS, Blocks, ScoredRows, draw_blocks
from ichkit.validation.thresholds import (
    F1_AIM,
    HALF_AIM,
    YOUDEN_AIM,
    accuracy,
    f1_score,
    precision,
    sensitivity,
    specificity,
)

POOLED = -1  # the `fold` of a score over all folds of its source
ALL_CLASSES, MEAN_CLASS, MICRO_CLASS = "all", "mean", "micro"
WEIGHTED_LOG_LOSS, LOG_LOSS, ROC_AUC = "weighted_log_loss", "log_loss", "roc_auc"
AVERAGE_PRECISION, CALIBRATION_ERROR = "average_precision", "calibration_error"
F1_HALF, F1_BEST = "f1_at_half", "f1_at_best"
PRECISION_HALF, RECALL_HALF, ACCURACY_HALF = "precision_at_half", "recall_at_half", "accuracy_at_half"
SENSITIVITY, SPECIFICITY = "sensitivity_at_youden", "specificity_at_youden"
# Without bootstrap samples: DeLong's interval of an AUC, and the chosen thresholds, by criterion.
DELONG_AUC = "roc_auc_delong"
THRESHOLD_OF = {F1_AIM: "threshold_best_f1", YOUDEN_AIM: "threshold_youden"}
PLACE = ["source", "dataset", "split", "level", "aggregation", "subgroup", "fold", "metric", "class"]
SCORE_DTYPES = {
    **dict.fromkeys(PLACE, "str"),
    "fold": "int64",
    **dict.fromkeys(["value", "low", "high"], "float64"),
    **dict.fromkeys(["n", "n_positive", "num_left_out"], "int64"),
}
CURVE_DTYPES = {
    **dict.fromkeys(["source", "dataset", "split", "level", "aggregation", "class"], "str"),
    **dict.fromkeys(["bin_low", "bin_high", "mean_probability", "positive_share", "low", "high"], "float64"),
    **dict.fromkeys(["n", "n_positive"], "int64"),
}


@dataclass(frozen=True)
class Metric:
    """A score that is computed for every bootstrap sample.

    Attributes:
        name: key in `METRICS`, and the `metric` of `scores.parquet`.
        block: the statistics it is computed from, a name in `draw_blocks`.
        measure: computes (..., C), or (...) for a score over all classes, from the blocks and the task.
        has_mean: adds a row for the mean over classes (macro), undefined if one of them is.
        has_micro: adds a row for the counts of decisions of all classes together; its block holds such counts.
        is_biased: it is biased upwards by chance, so its interval is the basic one.
    """

    name: str
    block: str
    measure: Callable[[Blocks, Task], np.ndarray]
    description: str
    source: str
    has_mean: bool = False
    has_micro: bool = False
    is_biased: bool = False


@dataclass(frozen=True)
class Scored:
    """The scores of one group of rows.

    Attributes:
        rows: the scores, each with the columns of `SCORE_DTYPES` except `source`.
        draws: (D,) for each of them: the score of every bootstrap sample.
        curve: a point for each class and non-empty bin, with the columns of `CURVE_DTYPES` except `source`; empty
            unless the calibration error was requested.
    """

    rows: list[dict[str, Any]]
    draws: list[np.ndarray]
    curve: list[dict[str, Any]]


def score_rows(
    rows: ScoredRows, task: Task, metrics: tuple[str, ...], *, num_draws: int, level: float, num_bins: int, seed: int
) -> Scored:
    """The scores of a group, each with its interval and counts.

    Args:
        metrics: keys of `METRICS`; one row per class each, for `WEIGHTED_LOG_LOSS` one over all classes.
        num_draws: number of bootstrap samples.
        level: confidence level, e.g. 0.95.
        num_bins: of the calibration error and of the reliability curve.
    """
    asked = {METRICS[name].block for name in metrics}
    whole, drawn = draw_blocks(rows, asked, num_bins=num_bins, num_draws=num_draws, seed=seed)
    counted = (~np.isnan(rows.labels)).sum(0)
    positive = (rows.labels == 1).sum(0)
    # All bootstrap samples of a single patient are equal: there is no interval.
    is_single = len(np.unique(rows.members)) < 2
    over_all = (len(rows.labels), int((rows.labels == 1).any(1).sum()))
    table, draws = [], []
    for name in metrics:
        metric = METRICS[name]
        value, values = metric.measure(whole, task), metric.measure(drawn, task)
        if value.ndim == 0:
            entries = [(ALL_CLASSES, value, values, *over_all)]
        else:
            entries = [(label, value[c], values[:, c], counted[c], positive[c]) for c, label in enumerate(task.classes)]
        if metric.has_mean:
            entries.append((MEAN_CLASS, value.mean(), values.mean(1), *over_all))
        if metric.has_micro:
            pooled, of_draws = ({metric.block: blocks[metric.block].sum(-2)} for blocks in (whole, drawn))
            micro = metric.measure(pooled, task), metric.measure(of_draws, task)
            entries.append((MICRO_CLASS, *micro, counted.sum(), positive.sum()))
        for label, one, many, n, n_positive in entries:
            interval = _interval(float(one), many, level, metric.is_biased)
            if is_single:
                interval = Interval(np.nan, np.nan, interval.num_left_out)
            numbers = {"value": float(one), "low": interval.low, "high": interval.high}
            counts = {"n": int(n), "n_positive": int(n_positive), "num_left_out": interval.num_left_out}
            table.append({**rows.place, "metric": name, "class": label, **numbers, **counts})
            draws.append(many)
    curve = _curve(rows, task, whole, drawn, level) if CALIBRATION_ERROR in metrics else []
    return Scored(table, draws, curve)


def _weigh(losses: np.ndarray, task: Task) -> np.ndarray:
    """(...) weighted means of (..., C) losses over the classes that are not NaN throughout."""
    weights = task.weight_array()
    unknown = np.isnan(losses).reshape(-1, len(weights)).all(0)
    if unknown.any() and not unknown.all():
        weights = np.where(unknown, 0.0, weights)
        losses, weights = np.where(unknown, 0.0, losses), weights / max(weights.sum(), np.finfo(float).tiny)
    weighed: np.ndarray = losses @ weights
    return weighed


def _interval(value: float, draws: np.ndarray, level: float, is_biased: bool) -> Interval:
    if not np.isfinite(value):
        return Interval(np.nan, np.nan, len(draws))
    return basic_interval_of(value, draws, level) if is_biased else interval_of(draws, level)


def _curve(rows: ScoredRows, task: Task, whole: Blocks, drawn: Blocks, level: float) -> list[dict[str, Any]]:
    """The reliability curve of every class: non-empty bins with the share of positives and its interval."""
    bins, shares = whole[BINS], positive_share(drawn[BINS])  # (C, B, 3), (D, C, B)
    place = {name: rows.place[name] for name in ("dataset", "split", "level", "aggregation")}
    width = 1 / bins.shape[1]
    table = []
    for c, b in np.argwhere(bins[..., COUNT] > 0):
        count, positives, probability = bins[c, b, [COUNT, POSITIVES, PROBABILITY]]
        interval = interval_of(shares[:, c, b], level)
        edges = {"class": task.classes[c], "bin_low": b * width, "bin_high": (b + 1) * width}
        share = {"positive_share": positives / count, "low": interval.low, "high": interval.high}
        counts = {"n": int(count), "n_positive": int(positives)}
        table.append({**place, **edges, "mean_probability": probability / count, **share, **counts})
    return table


METRICS = {
    WEIGHTED_LOG_LOSS: Metric(
        name=WEIGHTED_LOG_LOSS,
        block=LOSS,
        measure=lambda blocks, task: _weigh(blocks[LOSS], task),
        description="The log losses of the classes, weighted; classes without any known label are left out.",
        source="RSNA 2019, evaluation page",
    ),
    LOG_LOSS: Metric(
        name=LOG_LOSS,
        block=LOSS,
        measure=lambda blocks, _task: blocks[LOSS],
        description="Mean binary log loss in nats.",
        source="RSNA 2019, evaluation page",
    ),
    ROC_AUC: Metric(
        name=ROC_AUC,
        block=AUC,
        measure=lambda blocks, _task: blocks["roc_auc"],
        description="Share of (positive, negative) pairs in order, ties half.",
        source="Hanley & McNeil, Radiology 143, 1982",
        has_mean=True,
    ),
    AVERAGE_PRECISION: Metric(
        name=AVERAGE_PRECISION,
        block=RANKS,
        measure=lambda blocks, _task: blocks["average_precision"],
        description="Step-wise area under the precision-recall curve.",
        source="as in scikit-learn",
    ),
    F1_HALF: Metric(
        name=F1_HALF,
        block=HALF_AIM,
        measure=lambda blocks, _task: f1_score(blocks[HALF_AIM]),
        description="F1 at a threshold of 0.5.",
        source="van Rijsbergen, Information Retrieval, 1979, chapter 7",
        has_mean=True,
        has_micro=True,
    ),
    PRECISION_HALF: Metric(
        name=PRECISION_HALF,
        block=HALF_AIM,
        measure=lambda blocks, _task: precision(blocks[HALF_AIM]),
        description="Share of true positives among the rows of 0.5 or more.",
        source="as f1_at_half",
        has_mean=True,
        has_micro=True,
    ),
    RECALL_HALF: Metric(
        name=RECALL_HALF,
        block=HALF_AIM,
        measure=lambda blocks, _task: sensitivity(blocks[HALF_AIM]),
        description="Share of the positives at 0.5 or more.",
        source="as f1_at_half",
        has_mean=True,
        has_micro=True,
    ),
    ACCURACY_HALF: Metric(
        name=ACCURACY_HALF,
        block=HALF_AIM,
        measure=lambda blocks, _task: accuracy(blocks[HALF_AIM]),
        description="Share of correct decisions at a threshold of 0.5; high for rare classes whatever is predicted.",
        source="as f1_at_half",
        has_mean=True,
        has_micro=True,
    ),
    F1_BEST: Metric(
        name=F1_BEST,
        block=F1_AIM,
        measure=lambda blocks, _task: f1_score(blocks[F1_AIM]),
        description="F1 at the best threshold of the other folds.",
        source="as f1_at_half",
    ),
    SENSITIVITY: Metric(
        name=SENSITIVITY,
        block=YOUDEN_AIM,
        measure=lambda blocks, _task: sensitivity(blocks[YOUDEN_AIM]),
        description="Share of positives found at the threshold with the highest J on the other folds.",
        source="Youden, Cancer 3, 1950",
    ),
    SPECIFICITY: Metric(
        name=SPECIFICITY,
        block=YOUDEN_AIM,
        measure=lambda blocks, _task: specificity(blocks[YOUDEN_AIM]),
        description="Share of negatives below that threshold.",
        source="as sensitivity_at_youden",
    ),
    CALIBRATION_ERROR: Metric(
        name=CALIBRATION_ERROR,
        block=BINS,
        measure=lambda blocks, _task: expected_calibration_error(blocks[BINS]),
        description="Difference between probability and share of positives, averaged over bins of equal width.",
        source="Naeini et al., AAAI 2015; Guo et al., ICML 2017",
        is_biased=True,
    ),
}
