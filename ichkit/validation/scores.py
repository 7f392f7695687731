"""One group of rows to its scores: value, interval, number of rows and of positives, as `scores.parquet` holds them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ichkit.core.tasks import Task
from ichkit.validation.intervals import Interval, interval_of, turned_interval_of
from ichkit.validation.reliability import COUNT, POSITIVES, PROBABILITY, expected_calibration_error, positive_share
from ichkit.validation.tallies import BINS, LOSS, RANKS, Blocks, ScoredRows, draw_blocks
from ichkit.validation.thresholds import F1_AIM, HALF_AIM, YOUDEN_AIM, f1_score, sensitivity, specificity

POOLED = -1  # the `fold` of a score over all folds of its source
ALL_CLASSES, MEAN_CLASS = "all", "mean"
WEIGHTED_LOG_LOSS, LOG_LOSS, ROC_AUC = "weighted_log_loss", "log_loss", "roc_auc"
AVERAGE_PRECISION, CALIBRATION_ERROR = "average_precision", "calibration_error"
F1_HALF, F1_BEST = "f1_at_half", "f1_at_best"
SENSITIVITY, SPECIFICITY = "sensitivity_at_youden", "specificity_at_youden"
# Without draws: DeLong's interval of an AUC, and the thresholds that were chosen, by what they are for.
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
    """A score that is recomputed in every draw.

    Attributes:
        name: key in `METRICS`, and the `metric` of `scores.parquet`.
        block: what it is computed from, a name that `draw_blocks` knows.
        measure: the blocks of one or of all draws and the task, to (..., C), or (...) for a score over all classes.
        has_mean: a row for the mean over classes follows, undefined where one of them is.
        is_turned: chance can only raise it, so its interval is the turned one.
    """

    name: str
    block: str
    measure: Callable[[Blocks, Task], np.ndarray]
    description: str
    source: str
    has_mean: bool = False
    is_turned: bool = False


@dataclass(frozen=True)
class Scored:
    """The scores of one group of rows.

    Attributes:
        rows: the scores, each with the columns of `SCORE_DTYPES` but `source`.
        draws: (D,) for each of them: the same score in every draw of the patients.
        curve: a point for each class and bin that holds a row, each with the columns of `CURVE_DTYPES` but `source`;
            empty unless the calibration error was asked for.
    """

    rows: list[dict[str, Any]]
    draws: list[np.ndarray]
    curve: list[dict[str, Any]]


def score_rows(
    rows: ScoredRows, task: Task, metrics: tuple[str, ...], *, num_draws: int, level: float, num_bins: int, seed: int
) -> Scored:
    """The scores of a group, each with its interval and counts.

    Args:
        metrics: keys of `METRICS`; one row per class each, but for `WEIGHTED_LOG_LOSS` one over all.
        num_draws: bootstrap samples; `num_left_out` of them lacked both classes.
        level: what an interval covers, e.g. 0.95.
        num_bins: of the calibration error and of the reliability curve.
    """
    asked = {METRICS[name].block for name in metrics}
    whole, drawn = draw_blocks(rows, asked, num_bins=num_bins, num_draws=num_draws, seed=seed)
    counted = (~np.isnan(rows.labels)).sum(0)
    positive = (rows.labels == 1).sum(0)
    # One patient drawn for himself is the same every time: no interval can be had from him.
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
        for label, one, many, n, n_positive in entries:
            interval = _interval(float(one), many, level, metric.is_turned)
            if is_single:
                interval = Interval(np.nan, np.nan, interval.num_left_out)
            numbers = {"value": float(one), "low": interval.low, "high": interval.high}
            counts = {"n": int(n), "n_positive": int(n_positive), "num_left_out": interval.num_left_out}
            table.append({**rows.place, "metric": name, "class": label, **numbers, **counts})
            draws.append(many)
    curve = _curve(rows, task, whole, drawn, level) if CALIBRATION_ERROR in metrics else []
    return Scored(table, draws, curve)


def _interval(value: float, draws: np.ndarray, level: float, is_turned: bool) -> Interval:
    if not np.isfinite(value):
        return Interval(np.nan, np.nan, len(draws))
    return turned_interval_of(value, draws, level) if is_turned else interval_of(draws, level)


def _curve(rows: ScoredRows, task: Task, whole: Blocks, drawn: Blocks, level: float) -> list[dict[str, Any]]:
    """The reliability curve of every class: bins that hold a row, with the share of positives and its interval."""
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
        measure=lambda blocks, task: blocks[LOSS] @ task.weight_array(),
        description="The log losses of the classes, weighted.",
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
        block=RANKS,
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
        description="F1 where a probability of 0.5 is a yes.",
        source="van Rijsbergen, Information Retrieval, 1979, chapter 7",
    ),
    F1_BEST: Metric(
        name=F1_BEST,
        block=F1_AIM,
        measure=lambda blocks, _task: f1_score(blocks[F1_AIM]),
        description="F1 at the threshold that was best elsewhere.",
        source="as f1_at_half",
    ),
    SENSITIVITY: Metric(
        name=SENSITIVITY,
        block=YOUDEN_AIM,
        measure=lambda blocks, _task: sensitivity(blocks[YOUDEN_AIM]),
        description="Share of positives found at the threshold whose J was highest elsewhere.",
        source="Youden, Cancer 3, 1950",
    ),
    SPECIFICITY: Metric(
        name=SPECIFICITY,
        block=YOUDEN_AIM,
        measure=lambda blocks, _task: specificity(blocks[YOUDEN_AIM]),
        description="Share of negatives left alone at that threshold.",
        source="as sensitivity_at_youden",
    ),
    CALIBRATION_ERROR: Metric(
        name=CALIBRATION_ERROR,
        block=BINS,
        measure=lambda blocks, _task: expected_calibration_error(blocks[BINS]),
        description="Distance between probability and share of positives, averaged over bins of equal width.",
        source="Naeini et al., AAAI 2015; Guo et al., ICML 2017",
        is_turned=True,
    ),
}
