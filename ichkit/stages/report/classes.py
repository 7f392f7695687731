"""Report sections by class: losses of every stage, ROC curves, calibration."""

import numpy as np

from ichkit.core.roles import title_of
from ichkit.show.blocks import Chart, Charts, Prose, Section
from ichkit.show.drawing import COLOURS, draw_intervals, to_svg
from ichkit.show.table import Cell, Table, format_interval, format_number
from ichkit.stages.report.curves import draw_reliability, draw_roc, roc_points
from ichkit.stages.report.report_data import ReportData, make_series
from ichkit.stages.scores import tables
from ichkit.stages.scores.book import SLICES, STUDIES, Group, external_studies
from ichkit.stages.scores.score_source import load_external, study_scores
from ichkit.validation.scores import (
    AVERAGE_PRECISION,
    CALIBRATION_ERROR,
    F1_BEST,
    LOG_LOSS,
    ROC_AUC,
    SENSITIVITY,
    SPECIFICITY,
)
from ichkit.validation.studies import MAXIMUM

_METRICS = {
    "log loss": LOG_LOSS,
    "AUC": ROC_AUC,
    "AP": AVERAGE_PRECISION,
    "F1": F1_BEST,
    "sensitivity": SENSITIVITY,
    "specificity": SPECIFICITY,
    "ECE": CALIBRATION_ERROR,
}


def make_losses(report: ReportData) -> Section:
    """The log loss of each class at every stage of the best source, and all metrics of that source."""
    task, stages = report.task, report.stages
    series = []
    for source in stages[: len(COLOURS)]:
        scores = [report.scores.find(source, LOG_LOSS, name) for name in task.classes]
        series.append(make_series(source.name, scores))
    figure = draw_intervals(task.classes, series, "log loss (nats), lower is better")
    alt = f"Log loss of {len(task.classes)} classes for {', '.join(one.name for one in series)}; numbers in the table."
    first = f" Shown: the best {len(series)} of {len(stages)} stages." if len(series) < len(stages) else ""
    text = f"Out-of-fold log loss per class and stage, with confidence intervals.{first}"
    chart = Chart(to_svg(figure, "class-loss", alt), text)
    rows: list[list[Cell | str]] = []
    for name in task.classes:
        rows.append([name, *(report.scores.find(source, LOG_LOSS, name).cell(4) for source in stages)])
    whole = [report.scores.loss(source).cell(5, 4) for source in stages]
    rows.append(["weighted mean", *whole])
    losses = Table("Log loss per class and stage, out of fold", ("class", *(source.name for source in stages)), rows)
    return Section("classes", "Loss per class", [Charts([chart]), losses, *_by_class(report)])


def make_roc(report: ReportData) -> Section:
    """ROC curves of the best source: out-of-fold slices and studies, and the studies of each external set."""
    best, p = report.best, report.probabilities(report.best)
    first = np.flatnonzero(report.rows.study_id.ne(report.rows.study_id.shift()))
    groups = {
        SLICES: ("slices, out of fold", report.labels, p),
        STUDIES: (
            "studies, out of fold, maximum over the slices",
            np.maximum.reduceat(report.labels, first),
            np.maximum.reduceat(p, first),
        ),
    }
    settings = report.config.evaluate
    for name in report.scores.external_sets:
        table = load_external(best, report.prepared, name, settings)
        studies = study_scores(table, report.prepared, name, MAXIMUM, settings.num_top)
        title = f"{title_of(name)} studies, maximum over the slices"
        groups[external_studies(name)] = (title, studies.labels.to_numpy(), studies.probabilities.to_numpy())
    charts = [_draw_roc(report, group, *what) for group, what in groups.items()]
    return Section("roc", "ROC curves", [Charts([chart for chart in charts if chart is not None], "thirds")])


def make_reliability(report: ReportData) -> Section:
    """A reliability curve of the best source for each class, with that of the first stage for comparison."""
    curves = report.scores.tables.reliability
    curves = curves[(curves.level == SLICES.level) & (curves.split == SLICES.split)]
    best, first = report.best, report.first
    charts = []
    for name in report.task.classes:
        of_class = curves[curves["class"] == name]
        own = of_class[of_class.source == best.name]
        before = None if first in (None, best) else of_class[of_class.source == first.name]
        error = report.scores.find(best, CALIBRATION_ERROR, name)
        found = f"{format_number(error.value, 4)} ({format_interval(error.low, error.high, 4) or 'no interval'})"
        figure = draw_reliability(own, before)
        alt = f"Reliability curve of {name}: {len(own)} non-empty bins; expected calibration error {found}."
        charts.append(Chart(to_svg(figure, f"reliability-{name}", alt), f"{name}: ECE {found}"))
    hollow = "" if first in (None, best) else f" Hollow marks: {first.name}, before the second stage."
    num_bins = report.config.evaluate.num_bins
    text = Prose(
        f"{best.name}, out-of-fold slices in {num_bins} bins, observed frequencies with confidence intervals. Dotted "
        f"line: perfect calibration.{hollow} ECE: expected calibration error."
    )
    return Section("reliability", "Calibration", [text, Charts(charts, "small")])


def _by_class(report: ReportData) -> list[Table]:
    of_studies = {column: metric for column, metric in _METRICS.items() if metric != LOG_LOSS}
    shown = {SLICES: _METRICS, STUDIES: of_studies}
    made = [tables.by_class(report.scores, report.best, group, metrics) for group, metrics in shown.items()]
    return [*made, *(tables.at_half(report.scores, report.best, group) for group in shown)]


def _draw_roc(report: ReportData, group: Group, title: str, labels: np.ndarray, p: np.ndarray) -> Chart | None:
    """None where no class has both positives and negatives."""
    curves = {}
    for c, name in enumerate(report.task.classes):
        known = ~np.isnan(labels[:, c])
        truth = labels[known, c]
        if 0 < truth.sum() < len(truth):
            score = report.scores.find(report.best, ROC_AUC, name, group)
            curves[f"{name} {format_number(score.value, 3)} ({score.n_positive:,})"] = roc_points(truth, p[known, c])
    if not curves:
        return None
    caption = f"{report.best.name}: {title}. Legend: AUC (number of positives)."
    alt = f"ROC curves, {title}: AUC (positives) {'; '.join(curves)}."
    return Chart(to_svg(draw_roc(curves), f"roc-{group.dataset or group.level}", alt), caption)
