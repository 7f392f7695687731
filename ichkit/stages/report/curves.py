"""Figures: ROC and reliability curves, training loss by epoch, probabilities along a study."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ichkit.show.drawing import COLOURS, GRID, MUTED, in_style, make_figure

_NUM_POINTS = 160
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


@in_style
def draw_roc(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """ROC curves by name in the legend; each from `roc_points`."""
    figure, axes = make_figure(3.8, 3.7)
    axes.plot([0, 1], [0, 1], color=GRID, lw=1.2)
    for number, (name, (false_positive_rate, sensitivity)) in enumerate(curves.items()):
        # Evenly spaced along the curve, so that its steep part keeps its shape.
        length = np.cumsum(np.append(0, np.diff(false_positive_rate) + np.diff(sensitivity)))
        keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], _NUM_POINTS)).clip(max=len(length) - 1))
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "ls": _DASHES[number % len(_DASHES)],
            "lw": 1.6,
        }
        axes.plot(false_positive_rate[keep], sensitivity[keep], label=name, **style)
    axes.set(xlabel="false positive rate", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_aspect("equal")
    axes.legend(loc="lower right", fontsize=7.5, handlelength=2.2, borderaxespad=0.2, labelspacing=0.3)
    return figure


@in_style
def draw_reliability(curve: pd.DataFrame, before: pd.DataFrame | None) -> Figure:
    """The observed frequency against the mean predicted probability of each bin of one class, with intervals.

    Args:
        curve: rows of `reliability.parquet`.
        before: those of the first stage, drawn as hollow marks; None draws none.
    """
    figure, axes = make_figure(2.6, 2.5)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=":")
    if before is not None:
        axes.plot(before.mean_probability, before.positive_share, "o", ms=3, mfc="none", mec=MUTED, alpha=0.8)
    axes.vlines(curve.mean_probability, curve.low, curve.high, color=COLOURS[0], lw=1.6, alpha=0.5)
    axes.plot(curve.mean_probability, curve.positive_share, "-o", ms=3.6, lw=1.2, color=COLOURS[0])
    axes.set(xlabel="predicted probability", ylabel="observed frequency", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])
    axes.set_aspect("equal")
    return figure


_VALIDATION: dict[str, Any] = {"marker": "s", "mfc": "none", "lw": 0.9, "ms": 5}
_HELD_OUT: dict[str, Any] = {"marker": "x", "lw": 0.9, "ms": 5}


@in_style
def draw_training(histories: Mapping[int, pd.DataFrame], heldout: Mapping[int, pd.DataFrame]) -> Figure:
    """The training and validation loss of each fold by epoch.

    Args:
        histories: fold to `history.csv`.
        heldout: fold to the scores of the held-out fold, which are for display only; may be empty.
    """
    figure, axes = make_figure(4.6, 2.7)
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="training loss" if len(axes.lines) == len(histories) else "loss")
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
    figure, axes = make_figure(9.2, 1.75)
    figure.set_layout_engine("none")
    axes.set_position((0, 0.17, 1, 0.8))
    # Halfway to the neighbours; neighbours that are both positive make one bar.
    edges = np.concatenate([[0.0], (places[1:] + places[:-1]) / 2, [1.0]])
    turns = np.flatnonzero(np.diff(np.concatenate([[False], truth, [False]]).astype(int)))
    for start, end in turns.reshape(-1, 2):
        axes.axvspan(edges[start], edges[end], color=COLOURS[1], alpha=0.16, lw=0)
    styles: tuple[dict[str, Any], ...] = ({"color": MUTED, "ls": "--"}, {"color": COLOURS[0], "ls": "-"})
    for (name, values), style in zip(lines.items(), styles, strict=True):
        axes.plot(places, values, marker="o", ms=2.6, lw=1.7, label=name, **style)
    axes.set(xlim=(0, 1), ylim=(-0.04, 1.06))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_yticks([0, 0.5, 1], ["", "", ""])
    for height in (0.5, 1):
        axes.text(0.003, height, f"{height:g}", va="center", fontsize=8, color=MUTED)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    return figure
