"""`tune.html`: the trials of a search as a table and in figures, on one self-contained page."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ichkit.core.progress import format_count
from ichkit.show.blocks import Block, Chart, Charts, KeyFigure, KeyFigures, Listing, Prose, Section
from ichkit.show.drawing import COLOURS, MUTED, in_style, make_figure, to_svg
from ichkit.show.page import render
from ichkit.show.table import Table, format_number
from ichkit.show.words import start_sentence
from ichkit.stages.tune.choose import Choice
from ichkit.stages.tune.plan import TunePlan, describe_params
from ichkit.stages.tune.space import Dimension, Range
from ichkit.stages.tune.trials import COMPLETE, Trial

CURVES_PREFIX = "validation_"
NOTICE = "Research use only, not a medical device."
_ROOM, _TEMPLATE = "ichkit.stages.tune", "tune.html.j2"
_SIZE, _DIGITS = (4.6, 3.1), 5
_LONGEST_LABEL, _MOST_LEVEL_LABELS = 18, 4


def render_page(
    plan: TunePlan,
    trials: Sequence[Trial],
    choice: Choice,
    table: Table,
    said: str,
    epochs: pd.DataFrame | None,
) -> str:
    """The page as HTML.

    Args:
        table: of the trials.
        said: what was chosen.
        epochs: validation scores of every epoch; None without validation patients.
    """
    best, objective = trials[choice.best], plan.objective
    figures = [
        KeyFigure("best trial", best.run, describe_params(best.params)),
        KeyFigure(objective.name, format_number(best.value, _DIGITS), f"of {format_count(len(trials), 'trial')}"),
    ]
    if choice.selection is not None:
        corrected = choice.selection.value + choice.selection.optimism
        figures.append(
            KeyFigure("corrected for the choice", format_number(corrected, _DIGITS), "expected on new patients")
        )
    sections = [
        Section("first", "Result", [KeyFigures(figures), Prose(said)]),
        Section("figures", "Figures", [Charts(_draw(plan, trials, choice, epochs))]),
        Section("trials", "Trials", [table, *_failures(trials)]),
    ]
    data = str(plan.prepared.manifest.facts["data"])
    made = f"{format_count(len(trials), 'trial')} by {plan.sampler.name}, data: {data}."
    return render(_ROOM, _TEMPLATE, sections=sections, made=made, name=plan.options.name, notice=NOTICE)


def _failures(trials: Sequence[Trial]) -> list[Block]:
    reasons = [f"{trial.run}: {trial.reason}" for trial in trials if trial.reason]
    return [Listing("Failed trials", "\n".join(reasons))] if reasons else []


def _draw(plan: TunePlan, trials: Sequence[Trial], choice: Choice, epochs: pd.DataFrame | None) -> list[Chart]:
    """The value of every trial, then against every setting, then the curves."""
    name = plan.objective.name
    caption = "Each trial, its folds as small dots; filled: the best trial. "
    caption += "Bars: 95 % intervals by resampling patients." if choice.intervals else ""
    charts = [Chart(to_svg(_draw_trials(plan, trials, choice), "trials", f"{name} of each trial"), caption.strip())]
    for number, dimension in enumerate(plan.space.dimensions):
        figure = _draw_dimension(plan, trials, choice, dimension)
        alt = f"{name} against {dimension.name}"
        charts.append(
            Chart(to_svg(figure, f"by{number}", alt), f"{start_sentence(alt)}: every trial, other settings as drawn.")
        )
    if epochs is not None:
        alt = f"{_epoch_label(plan)} after each epoch"
        figure = _draw_epochs(plan, choice, epochs)
        charts.append(
            Chart(to_svg(figure, "epochs", alt), f"{start_sentence(alt)}, mean over folds; thick: the best trial.")
        )
    return charts


def _epoch_label(plan: TunePlan) -> str:
    return plan.objective.column.replace("_", " ")


@in_style
def _draw_trials(plan: TunePlan, trials: Sequence[Trial], choice: Choice) -> Figure:
    figure, axes = make_figure(*_SIZE)
    for trial in trials:
        axes.plot([trial.number] * len(trial.values), list(trial.values.values()), ".", ms=3, color=MUTED)
        interval = choice.intervals.get(trial.number)
        if interval is not None:
            axes.vlines(trial.number, interval.low, interval.high, color=COLOURS[0], lw=1.4, alpha=0.55)
    _mark(axes, [trial.number for trial in trials], trials, choice)
    axes.set(xlabel="trial", ylabel=plan.objective.name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


@in_style
def _draw_dimension(plan: TunePlan, trials: Sequence[Trial], choice: Choice, dimension: Dimension) -> Figure:
    figure, axes = make_figure(*_SIZE)
    if isinstance(dimension, Range):
        _mark(axes, [float(trial.params[dimension.name]) for trial in trials], trials, choice)
        if dimension.is_log:
            axes.set_xscale("log")
    else:
        labels = list(dimension.options)
        _mark(axes, [labels.index(str(trial.params[dimension.name])) for trial in trials], trials, choice)
        shown = [text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…" for text in labels]
        axes.set_xticks(range(len(labels)), shown)
        if len(labels) > _MOST_LEVEL_LABELS or max(map(len, shown)) * len(labels) > 4 * _LONGEST_LABEL:
            axes.tick_params(axis="x", labelrotation=40)
    axes.set(xlabel=dimension.name, ylabel=plan.objective.name)
    return figure


@in_style
def _draw_epochs(plan: TunePlan, choice: Choice, epochs: pd.DataFrame) -> Figure:
    figure, axes = make_figure(*_SIZE)
    for number, rows in epochs.groupby("trial"):
        curve = rows.groupby("epoch")[plan.objective.column].mean()
        is_best = number == choice.best
        axes.plot(curve.index, curve, color=COLOURS[0] if is_best else MUTED, lw=2 if is_best else 0.9)
        if len(curve) == 1:
            axes.plot(curve.index, curve, "o", ms=4, color=COLOURS[0] if is_best else MUTED)
    axes.set(xlabel="epoch", ylabel=_epoch_label(plan))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _mark(axes: Axes, at: Sequence[float], trials: Sequence[Trial], choice: Choice) -> None:
    for place, trial in zip(at, trials, strict=True):
        if np.isfinite(trial.value):
            is_best = trial.number == choice.best
            alpha = 1.0 if trial.state == COMPLETE else 0.4
            face = COLOURS[0] if is_best else "none"
            axes.plot(place, trial.value, "o", ms=6, mec=COLOURS[0], mfc=face, alpha=alpha)
