"""Report section: decisions at named thresholds, and predictive values at stated prevalences."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ichkit.show.blocks import Block, Prose, Section, Subsection
from ichkit.show.table import Cell, Table, format_interval, format_number
from ichkit.stages.report.report_data import ReportData, Scorable
from ichkit.stages.scores.book import SLICES, STUDIES
from ichkit.stages.scores.score_source import seed_of_rows
from ichkit.validation.intervals import interval_of
from ichkit.validation.operating import (
    OPERATING_POINTS,
    PointCounts,
    choose_operating_points,
    count_at_given,
    count_at_points,
    negative_predictive_value,
    positive_predictive_value,
)
from ichkit.validation.scores import POOLED
from ichkit.validation.thresholds import (
    FALSE_POSITIVE,
    NEGATIVE,
    POSITIVE,
    RATES,
    TRUE_POSITIVE,
    Measure,
    sensitivity,
    specificity,
)

_PREDICTIVE = {"PPV": positive_predictive_value, "NPV": negative_predictive_value}
_FOLLOWED = {"sensitivity": "specificity", "specificity": "sensitivity"}
_INTERVALS = (
    "Intervals resample patients with the thresholds held fixed. An interval without width, as of 1.000, means that "
    "all samples agree, not that the rate is certain."
)


@dataclass(frozen=True)
class Decided:
    """One group of rows with its decisions at every operating point.

    Attributes:
        thresholds: operating point to (C,), for new scans or carried over.
        ranges: operating point to (K, C) thresholds of the folds; empty where they are carried over.
        counts: operating point to its decisions.
    """

    of: Scorable
    thresholds: dict[str, np.ndarray]
    ranges: dict[str, np.ndarray]
    counts: dict[str, PointCounts]

    @property
    def name(self) -> str:
        """Unique in the page."""
        return self.of.name


def make_operating(report: ReportData) -> Section:
    """Decisions of the best source at named thresholds: studies and slices out of fold, studies of external sets."""
    blocks: list[Block] = [Prose(_text(report))]
    for group in _decide_groups(report):
        blocks.append(_summary(report, group))
        for c in report.task_order:
            title = f"{group.of.title}: {report.task.classes[c]}"
            blocks.append(Subsection(title, _tables(report, group, c), is_open=c == report.task.headline_index))
    return Section("operating", "Decisions at named thresholds", blocks)


def _text(report: ReportData) -> str:
    named = [point for point in OPERATING_POINTS.values() if not point.name.startswith(tuple(_FOLLOWED))]
    points = "; ".join(f"{point.title}: {point.description[0].lower()}{point.description[1:-1]}" for point in named)
    return (
        f"{report.best.name}. A slice, or a study by the maximum over its slices, is positive at or above the "
        f"threshold. Thresholds: {points}; sensitivity or specificity 90, 95, 98 %: the threshold that reaches at "
        "least that share where it was chosen. Out of fold, each fold is decided at thresholds chosen on the other "
        "folds, so the share aimed at is reached only approximately. An external set is decided at the thresholds of "
        f"the out-of-fold studies (its slices at those of the slices), carried over unchanged. {_INTERVALS}"
    )


def _decide_groups(report: ReportData) -> list[Decided]:
    """Every group; an external set at the thresholds of the out-of-fold studies and slices, which come first."""
    parts = {STUDIES: report.scored.part_of_study, SLICES: report.scored.part}
    decided: list[Decided] = []
    for group in report.groups:
        asked = {"num_draws": report.config.evaluate.num_draws, "seed": seed_of_rows(group.rows, report.config)}
        if group.group in parts:
            part = parts[group.group]
            numbers = [int(number) for number in np.unique(part)]
            chosen = choose_operating_points(group.rows, part, [*numbers, POOLED])
            for_all = chosen.pop(POOLED)
            ranges = {name: np.stack([of_part[name] for of_part in chosen.values()]) for name in OPERATING_POINTS}
            decided.append(Decided(group, for_all, ranges, count_at_points(group.rows, chosen, part, **asked)))
        else:
            carried = decided[1 if group.unit == "slices" else 0].thresholds
            decided.append(Decided(group, carried, {}, count_at_given(group.rows, carried, **asked)))
    return decided


def _summary(report: ReportData, group: Decided) -> Table:
    """Sensitivity of every class at fixed specificity, and the other way round."""
    columns = {}
    for name, point in OPERATING_POINTS.items():
        aim = point.name.partition("_")[0]
        if aim in _FOLLOWED:
            columns[f"{_FOLLOWED[aim]}\nat {aim}\n{point.title.removeprefix(aim).strip()}"] = (
                name,
                RATES[_FOLLOWED[aim]],
            )
    by_aim = dict(sorted(columns.items(), key=lambda item: item[0].startswith("specificity")))
    rows: list[list[Cell | str]] = []
    for c, label in enumerate(report.task.classes):
        cells = [_rate(group.counts[name], c, measure, report) for name, measure in by_aim.values()]
        rows.append([label, *cells, group.of.positives(c)])
    title = f"Sensitivity at fixed specificity, and the reverse: {group.name}"
    note = "The specificity, or sensitivity, that was reached is in the tables by class below."
    return Table(title, ("class", *by_aim, "positive"), rows, note=note)


def _tables(report: ReportData, group: Decided, c: int) -> list[Block]:
    """The decisions of one class, and its predictive values at stated prevalences."""
    return [_decisions(report, group, c), _predictive(report, group, c)]


def _decisions(report: ReportData, group: Decided, c: int) -> Table:
    rows: list[list[Cell | str]] = []
    for name, point in OPERATING_POINTS.items():
        counted = group.counts[name]
        rates = [_rate(counted, c, measure, report) for measure in RATES.values()]
        rows.append([point.title, _threshold(group, name, c), *_confusion(counted.counts[c]), *rates])
    label = report.task.classes[c]
    columns = ("threshold chosen by", "threshold", "TP", "FP", "FN", "TN", *RATES)
    where = "the range over the folds" if group.ranges else "chosen on the out-of-fold studies"
    prevalence = format_number(_prevalence(group, c), 4)
    note = (
        f"Threshold: for new scans; below, {where}. PPV and NPV at the observed prevalence of {prevalence}."
        if group.ranges
        else f"Thresholds {where}. PPV and NPV at the observed prevalence of {prevalence}."
    )
    return Table(f"Decisions on {label}: {group.name}", columns, rows, note=note)


def _predictive(report: ReportData, group: Decided, c: int) -> Table:
    prevalences = report.config.report.prevalences
    columns = [f"{value}\nat {100 * share:g} %" for share in prevalences for value in _PREDICTIVE]
    rows: list[list[Cell | str]] = []
    for name, point in OPERATING_POINTS.items():
        counted = group.counts[name]
        cells = [
            _rate(counted, c, _at_prevalence(of, share), report) for share in prevalences for of in _PREDICTIVE.values()
        ]
        rows.append([point.title, *cells])
    note = (
        "By Bayes' theorem from sensitivity and specificity, which are assumed to be the same at every prevalence; "
        "they rarely are where the spectrum of disease differs."
    )
    title = f"Predictive values of {report.task.classes[c]} by prevalence: {group.name}"
    return Table(title, ("threshold chosen by", *columns), rows, note=note)


def _at_prevalence(of: Callable[[np.ndarray, np.ndarray, float], np.ndarray], prevalence: float) -> Measure:
    """A predictive value at a prevalence, as a function of counts."""
    return lambda counts: of(sensitivity(counts), specificity(counts), prevalence)


def _rate(counted: PointCounts, c: int, measure: Measure, report: ReportData) -> Cell:
    """A rate of one class above its interval."""
    value = float(measure(counted.counts[c]))
    interval = interval_of(measure(counted.draws[:, c]), report.config.evaluate.level)
    low, high = (interval.low, interval.high) if np.isfinite(value) else (np.nan, np.nan)
    return Cell(format_number(value, 3), format_interval(low, high, 3))


def _threshold(group: Decided, name: str, c: int) -> Cell:
    """The threshold for new scans above the range of those of the folds."""
    of_folds = group.ranges[name][:, c] if name in group.ranges else np.empty(0)
    known = of_folds[np.isfinite(of_folds)]
    between = format_interval(known.min(), known.max(), 4) if len(known) and np.ptp(known) else ""
    return Cell(format_number(group.thresholds[name][c], 4), between)


def _confusion(counts: np.ndarray) -> list[str]:
    """True positives, false positives, false negatives and true negatives; dashes without a threshold."""
    missed, kept = counts[POSITIVE] - counts[TRUE_POSITIVE], counts[NEGATIVE] - counts[FALSE_POSITIVE]
    numbers = (counts[TRUE_POSITIVE], counts[FALSE_POSITIVE], missed, kept)
    return [format_number(None, 0) if np.isnan(number) else f"{int(number):,}" for number in numbers]


def _prevalence(group: Decided, c: int) -> float:
    labels = group.of.rows.labels[:, c]
    known = labels[~np.isnan(labels)]
    return float(known.mean()) if len(known) else float("nan")
