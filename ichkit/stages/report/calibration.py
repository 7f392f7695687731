"""Report section: calibration: Brier score, intercept and slope, reliability curves, counts of the bins."""

import pandas as pd

from ichkit.show.blocks import Block, Chart, Charts, Prose, Section, Subsection
from ichkit.show.drawing import to_svg
from ichkit.show.table import NOTHING, Cell, Table, format_interval, format_number
from ichkit.stages.report.curves import draw_reliability
from ichkit.stages.report.report_data import ReportData, Scorable
from ichkit.stages.scores.book import SLICES
from ichkit.stages.scores.score_source import seed_of_rows
from ichkit.validation.recalibration import Estimate, measure_calibration
from ichkit.validation.scores import CALIBRATION_ERROR

_TEXT = (
    "Brier score: the mean squared difference between probability and label, 0 is best. Scaled: 1 is best, 0 is as "
    "good as giving every row the prevalence, below 0 worse. Intercept (slope fixed at 1, calibration in the large): 0 "
    "is best, below 0 probabilities are too high on average. Slope: 1 is best, below 1 they are too extreme, above 1 "
    "too moderate. ECE: expected calibration error. The probability of a study is the maximum over its slices, which "
    "is not a calibrated probability that one of them is positive. Intervals by patients: bootstrap for Brier score "
    "and ECE, cluster-robust variance for intercept and slope. Without a slope: the classes are separated, or one is "
    "missing."
)


def make_calibration(report: ReportData) -> Section:
    """Calibration of the best source, for every class and group of rows."""
    blocks: list[Block] = [Prose(f"{report.best.name}. {_TEXT}")]
    groups = sorted(report.groups, key=lambda group: group.group != SLICES)
    for group in groups:
        curves = _curves_of(report, group)
        inside: list[Block] = [_measures(report, group)]
        if len(curves):
            inside += [Prose(_caption(report, group)), Charts(_draw(report, group, curves), "small")]
            inside += [_bins(report, group, curves)]
        blocks.append(Subsection(f"Calibration of {group.name}", inside, is_open=group.group == SLICES))
    return Section("calibration", "Calibration", blocks)


def _curves_of(report: ReportData, group: Scorable) -> pd.DataFrame:
    """The reliability curves of the best source and of the first stage."""
    curves, place = report.scores.tables.reliability, group.group
    is_own = (curves.level == place.level) & (curves.split == place.split)
    return curves[is_own & (curves.dataset == place.dataset)] if place.dataset else curves[is_own]


def _measures(report: ReportData, group: Scorable) -> Table:
    settings, rows = report.config.evaluate, group.rows
    shown: list[list[Cell | str]] = []
    for c, name in enumerate(report.task.classes):
        found = measure_calibration(
            rows.probabilities[:, c],
            rows.labels[:, c],
            rows.members,
            num_draws=settings.num_draws,
            level=settings.level,
            seed=seed_of_rows(rows, report.config),
        )
        error = report.scores.find(report.best, CALIBRATION_ERROR, name, group.group)
        means = Cell(format_number(found.mean_probability, 4), f"observed {format_number(found.prevalence, 4)}")
        estimates = [_cell(found.brier, 4), _cell(found.scaled_brier, 3)]
        estimates += [_cell(found.intercept, 2, is_signed=True), _cell(found.slope, 2)]
        shown.append([name, *estimates, error.cell(4), means, group.positives(c)])
    columns = ("class", "Brier", "scaled\nBrier", "intercept", "slope", "ECE", "mean\nprobability", "positive")
    return Table(f"Calibration: {group.name}", columns, shown)


def _cell(estimate: Estimate, digits: int, *, is_signed: bool = False) -> Cell:
    value, low, high = estimate.value, estimate.low, estimate.high
    if pd.isna(value):
        return Cell(NOTHING)
    shown = f"{value:+z.{digits}f}" if is_signed else format_number(value, digits)
    if pd.isna(low):
        return Cell(shown)
    # A minus sign and the dash of an interval would run together.
    has_sign = is_signed or low < 0
    return Cell(shown, f"{low:+z.{digits}f} to {high:+z.{digits}f}" if has_sign else format_interval(low, high, digits))


def _caption(report: ReportData, group: Scorable) -> str:
    has_before = report.first is not None and report.first is not report.best
    hollow = f" Hollow marks: the run {report.first.name}, without second stage." if report.first and has_before else ""
    return (
        f"{group.title}, in {report.config.evaluate.num_bins} bins of equal width, observed frequencies with "
        f"confidence intervals by patients. Dotted line: perfect calibration.{hollow} Below: {group.unit} in each bin, "
        "positive ones in colour, on a logarithmic scale."
    )


def _draw(report: ReportData, group: Scorable, curves: pd.DataFrame) -> list[Chart]:
    best, first, place = report.best, report.first, group.group
    charts = []
    for name in report.task.classes:
        of_class = curves[curves["class"] == name]
        own = of_class[of_class.source == best.name]
        if not len(own):
            continue
        before = None if first is None or first is best else of_class[of_class.source == first.name]
        error = report.scores.find(best, CALIBRATION_ERROR, name, place)
        found = f"{format_number(error.value, 4)} ({format_interval(error.low, error.high, 4) or 'no interval'})"
        alt = (
            f"Reliability curve of {name}, {group.name}: {len(own)} non-empty bins; expected calibration error {found}."
        )
        svg = to_svg(draw_reliability(own, before, group.unit), f"reliability-{group.key}-{name}", alt)
        charts.append(Chart(svg, f"{name}: ECE {found}"))
    return charts


def _bins(report: ReportData, group: Scorable, curves: pd.DataFrame) -> Subsection:
    """The numbers of the curves: counts, mean probability and observed frequency of every bin."""
    own = curves[curves.source == report.best.name]
    rows: list[list[Cell | str]] = [
        [
            row["class"],
            f"{row['bin_low']:.3f}-{row['bin_high']:.3f}",
            f"{row['n']:,}",
            f"{row['n_positive']:,}",
            format_number(row["mean_probability"], 4),
            Cell(format_number(row["positive_share"], 4), format_interval(row["low"], row["high"], 4)),
        ]
        for row in own.to_dict("records")
    ]
    columns = ("class", "bin", group.unit, "positive", "mean\nprobability", "observed\nfrequency")
    table = Table(f"Bins: {group.name}", columns, rows, num_text=2)
    return Subsection(f"Counts of the bins: {group.name}", [table], is_open=False)
