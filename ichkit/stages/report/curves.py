"""Figures: ROC, precision-recall, reliability and decision curves, training loss, probabilities along a study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ichkit.show.drawing import COLOURS, GRID, MARKERS, MUTED, NARROW, WIDE, in_style, make_figure
from ichkit.validation.net_benefit import NetBenefit

_NUM_POINTS = 160
_SQUARE, _FIFTHS = (3.9, 4.3), (0, 0.2, 0.4, 0.6, 0.8, 1)
_DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), "-")


def roc_points(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False positive rate and sensitivity at every threshold that changes them, from (0, 0) to (1, 1).

    Args:
        labels: (N,) of 0 and 1, both of them present.
        probabilities: (N,).

    Example:
        >>> roc_points(np.array([0, 1, 1]), np.array([0.2, 0.2, 0.9]))
        (array([0., 0., 1.]), array([0. , 0.5, 1. ]))
    """
    order = np.argsort(-probabilities, kind="stable")
    is_last = np.append(np.diff(probabilities[order]) != 0, True)
    true_positives, false_positives = np.cumsum(labels[order])[is_last], np.cumsum(1 - labels[order])[is_last]
    return np.append(0.0, false_positives / false_positives[-1]), np.append(0.0, true_positives / true_positives[-1])


def recall_points(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at every threshold, from the highest; the area of their steps is the average precision.

    Args:
        labels: (N,) of 0 and 1, a 1 among them.
        probabilities: (N,).

    Example:
        >>> recall_points(np.array([0, 1, 1]), np.array([0.2, 0.2, 0.9]))
        (array([0. , 0.5, 1. ]), array([1.        , 1.        , 0.66666667]))
    """
    order = np.argsort(-probabilities, kind="stable")
    is_last = np.append(np.diff(probabilities[order]) != 0, True)
    true_positives, predicted = np.cumsum(labels[order])[is_last], np.flatnonzero(is_last) + 1
    precision = true_positives / predicted
    return np.append(0.0, true_positives / true_positives[-1]), np.append(precision[0], precision)


@in_style
def draw_roc(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """ROC curves by name in the legend; each from `roc_points`."""
    figure, axes = make_figure(*_SQUARE)
    axes.plot([0, 1], [0, 1], color=GRID, lw=1.2)
    for number, (name, points) in enumerate(curves.items()):
        axes.plot(*_thin(*points), label=name, **_line(number))
    axes.set(xlabel="1 - specificity (false positive rate)", ylabel="sensitivity (true positive rate)")
    _finish_square(figure, axes)
    return figure


@in_style
def draw_roc_with_points(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], points: Mapping[str, tuple[float, float]]
) -> Figure:
    """ROC curves as `draw_roc` draws them, with single points such as readers: false positive rate and sensitivity."""
    figure, axes = make_figure(*_SQUARE)
    axes.plot([0, 1], [0, 1], color=GRID, lw=1.2)
    for number, (name, found) in enumerate(curves.items()):
        axes.plot(*_thin(*found), label=name, **_line(number))
    for number, (name, (false_positive_rate, sensitivity)) in enumerate(points.items()):
        colour = COLOURS[(len(curves) + number) % len(COLOURS)]
        axes.plot([false_positive_rate], [sensitivity], MARKERS[number % len(MARKERS)], color=colour, ms=5, label=name)
    axes.set(xlabel="1 - specificity (false positive rate)", ylabel="sensitivity (true positive rate)")
    _finish_square(figure, axes)
    return figure


@in_style
def draw_recall(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], prevalences: Sequence[float]) -> Figure:
    """Precision-recall curves by name in the legend, each from `recall_points`, and the prevalence of each, dotted."""
    figure, axes = make_figure(*_SQUARE)
    for number, ((name, points), prevalence) in enumerate(zip(curves.items(), prevalences, strict=True)):
        axes.axhline(prevalence, lw=0.9, ls=":", alpha=0.8, color=COLOURS[number % len(COLOURS)])
        # The precision of a threshold holds for the recall that it adds, to the left of its point.
        axes.plot(*_thin(*points), drawstyle="steps-pre", label=name, **_line(number))
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (positive predictive value)")
    _finish_square(figure, axes)
    return figure


def _line(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "ls": _DASHES[number % len(_DASHES)], "lw": 1.6}


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points evenly spaced along a curve, so that its steep part keeps its shape."""
    length = np.cumsum(np.append(0, np.abs(np.diff(x)) + np.abs(np.diff(y))))
    keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], _NUM_POINTS)).clip(max=len(length) - 1))
    return x[keep], y[keep]


def _finish_square(figure: Figure, axes: Axes) -> None:
    """Both axes from 0 to 1 with the same ticks, the legend below."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_xticks(_FIFTHS)
    axes.set_yticks(_FIFTHS)
    axes.set_aspect("equal")
    figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, handlelength=2.2, labelspacing=0.3)


@in_style
def draw_reliability(curve: pd.DataFrame, before: pd.DataFrame | None, unit: str) -> Figure:
    """The observed frequency against the mean predicted probability of each bin, above the counts of the bins.

    Args:
        curve: rows of `reliability.parquet`.
        before: those of the first stage, drawn as hollow marks; None draws none.
        unit: what is counted, e.g. "slices".
    """
    figure = Figure(figsize=(2.8, 3.4), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=":")
    if before is not None:
        axes.plot(before.mean_probability, before.positive_share, "o", ms=3, mfc="none", mec=MUTED, alpha=0.8)
    axes.vlines(curve.mean_probability, curve.low, curve.high, color=COLOURS[0], lw=1.6, alpha=0.5)
    axes.plot(curve.mean_probability, curve.positive_share, "-o", ms=3.6, lw=1.2, color=COLOURS[0])
    axes.set(ylabel="observed frequency", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set_yticks([0, 0.5, 1])
    middle, width = (curve.bin_low + curve.bin_high) / 2, curve.bin_high - curve.bin_low
    below.bar(middle, curve.n, width=0.9 * width, color=MUTED, alpha=0.45)
    below.bar(middle, curve.n_positive, width=0.9 * width, color=COLOURS[0])
    below.set_yscale("log")
    below.set(xlabel="predicted probability", ylabel=unit, ylim=(0.7, 2 * curve.n.max()))
    below.yaxis.set_major_locator(LogLocator(numticks=4))
    below.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    below.yaxis.set_minor_locator(NullLocator())
    below.set_xticks([0, 0.5, 1])
    return figure


@in_style
def draw_net_benefit(found: NetBenefit, level: float, size: tuple[float, float]) -> Figure:
    """The decision curve of one class with its interval, and the two defaults.

    Args:
        level: confidence level of the band.
        size: width and height in inches.
    """
    figure, axes = make_figure(*size)
    low, high = np.quantile(found.draws_of_model, [(1 - level) / 2, (1 + level) / 2], axis=0)
    axes.fill_between(found.thresholds, low, high, color=COLOURS[0], alpha=0.18, lw=0)
    axes.plot(found.thresholds, found.of_model, color=COLOURS[0], lw=1.7, label="model")
    axes.plot(found.thresholds, found.of_all, color=COLOURS[1], lw=1.2, ls="--", label="act on all")
    axes.axhline(0, color=MUTED, lw=1.2, ls=":", label="act on none")
    share, top = found.n_positive / found.n, 1.04 * high.max()
    axes.set(xlabel="threshold probability", ylabel="net benefit per study", xlim=(0, 1), ylim=(-0.15 * share, top))
    axes.set_xticks(_FIFTHS)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="outside lower center", ncols=3, fontsize=7.5, handlelength=1.8, columnspacing=1.2)
    return figure


_VALIDATION: dict[str, Any] = {"marker": "s", "mfc": "none", "lw": 0.9, "ms": 5}
_HELD_OUT: dict[str, Any] = {"marker": "x", "lw": 0.9, "ms": 5}


@in_style
def draw_training(
    histories: Mapping[int, pd.DataFrame], heldout: Mapping[int, pd.DataFrame], width: float = NARROW
) -> Figure:
    """The training and validation loss of each fold by epoch.

    Args:
        width: of the figure in inches.
        histories: fold to `history.csv`.
        heldout: fold to the scores of the held-out fold, which are for display only; may be empty.
    """
    figure, axes = make_figure(width, 2.7)
    for number, (fold, history) in enumerate(histories.items()):
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "lw": 1.5, "ms": 3}
        style["ls"] = _DASHES[number % len(_DASHES)]
        few = len(history) < 30
        axes.plot(history.epoch, history.loss, marker="o" if few else "", label=f"fold {fold}", **style)
        if "validation_loss" in history:
            axes.plot(history.epoch, history.validation_loss, **style | _VALIDATION)
        if fold in heldout:
            axes.plot(heldout[fold].epoch, heldout[fold].loss, **style | _HELD_OUT)
    if any("validation_loss" in history for history in histories.values()):
        axes.plot([], [], color=MUTED, label="validation", **_VALIDATION)
    if heldout:
        axes.plot([], [], color=MUTED, label="held-out (display only)", **_HELD_OUT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", ylabel=f"{'training loss' if len(axes.lines) == len(histories) else 'loss'} (nats)")
    axes.legend(fontsize=8, ncols=2)
    return figure


@in_style
def draw_along(
    places: np.ndarray, truth: np.ndarray, lines: Mapping[str, np.ndarray], ticks: Mapping[float, str]
) -> Figure:
    """Probabilities of one class along a study, over the whole width; positive slices are shaded.

    Args:
        places: (S,) position of each slice on the horizontal axis, 0 to 1.
        truth: (S,) bool.
        lines: name to (S,) probabilities: before, then after.
        ticks: position to tick label.
    """
    figure, axes = make_figure(WIDE, 1.95)
    figure.set_layout_engine("none")
    axes.set_position((0, 0.3, 1, 0.67))
    # Halfway to the neighbours; neighbours that are both positive make one bar.
    edges = np.concatenate([[0.0], (places[1:] + places[:-1]) / 2, [1.0]])
    turns = np.flatnonzero(np.diff(np.concatenate([[False], truth, [False]]).astype(int)))
    for start, end in turns.reshape(-1, 2):
        axes.axvspan(edges[start], edges[end], color=COLOURS[1], alpha=0.16, lw=0)
    styles: tuple[dict[str, Any], ...] = ({"color": MUTED, "ls": "--"}, {"color": COLOURS[0], "ls": "-"})
    for (name, values), style in zip(lines.items(), styles, strict=True):
        axes.plot(places, values, marker="o", ms=2.6, lw=1.7, label=name, **style)
    axes.set(xlim=(0, 1), ylim=(-0.04, 1.22), xlabel="slice, from the feet", ylabel="probability")
    axes.set_xticks(list(ticks), list(ticks.values()))
    # Labels are left of the figure, in the padding of the strip: the axis is as wide as the slices above.
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.yaxis.label.set_fontsize(8)
    axes.legend(loc="upper right", ncols=2, fontsize=8, borderaxespad=0, handlelength=2.4)
    return figure
