"""Report sections by class: losses of every stage, ROC curves, calibration."""

import numpy as np

from ichkit.show.blocks import Chart, Charts, Section
from ichkit.show.drawing import COLOURS, chart_intervals, to_svg
from ichkit.show.table import Cell, Table, format_number
from ichkit.stages.report.curves import draw_recall, draw_roc, recall_points, roc_points
from ichkit.stages.report.report_data import ReportData, Scorable, make_series
from ichkit.stages.scores import tables
from ichkit.stages.scores.book import SLICES, STUDIES
from ichkit.validation.scores import (
    AVERAGE_PRECISION,
    CALIBRATION_ERROR,
    F1_BEST,
    LOG_LOSS,
    ROC_AUC,
    SENSITIVITY,
    SPECIFICITY,
)

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
    alt = f"Log loss of {len(task.classes)} classes for {', '.join(one.name for one in series)}; numbers in the table."
    first = f" Shown: the best {len(series)} of {len(stages)} stages." if len(series) < len(stages) else ""
    text = f"Out-of-fold log loss per class and stage, with confidence intervals.{first}"
    chart = chart_intervals("class-loss", alt, text, task.classes, series, "log loss (nats), lower is better")
    rows: list[list[Cell | str]] = []
    for name in task.classes:
        rows.append([name, *(report.scores.find(source, LOG_LOSS, name).cell(4) for source in stages)])
    whole = [report.scores.loss(source).cell(5, 4) for source in stages]
    rows.append(["weighted mean", *whole])
    losses = Table("Log loss per class and stage, out of fold", ("class", *(source.name for source in stages)), rows)
    return Section("classes", "Loss per class", [Charts([chart]), losses, *_by_class(report)])


def make_roc(report: ReportData) -> Section:
    """ROC and precision-recall curves of the best source: slices and studies out of fold, studies of external sets."""
    charts = [chart for group in report.groups for chart in _draw_curves(report, group)]
    return Section("roc", "ROC and precision-recall curves", [Charts(charts)])


def _by_class(report: ReportData) -> list[Table]:
    of_studies = {column: metric for column, metric in _METRICS.items() if metric != LOG_LOSS}
    shown = {SLICES: _METRICS, STUDIES: of_studies}
    made = [tables.by_class(report.scores, report.best, group, metrics) for group, metrics in shown.items()]
    return [*made, *(tables.at_half(report.scores, report.best, group) for group in shown)]


def _draw_curves(report: ReportData, group: Scorable) -> list[Chart]:
    """The ROC and the precision-recall curves of a group; none where no class has both positives and negatives."""
    rows, roc, recall, prevalences = group.rows, {}, {}, []
    for c, name in enumerate(report.task.classes):
        known = ~np.isnan(rows.labels[:, c])
        truth, p = rows.labels[known, c], rows.probabilities[known, c]
        if not 0 < truth.sum() < len(truth):
            continue
        area, average = (
            report.scores.find(report.best, metric, name, group.group) for metric in (ROC_AUC, AVERAGE_PRECISION)
        )
        roc[f"{name} {format_number(area.value, 3)} ({area.n_positive:,})"] = roc_points(truth, p)
        recall[f"{name} {format_number(average.value, 3)} ({truth.mean():.3f})"] = recall_points(truth, p)
        prevalences.append(float(truth.mean()))
    if not roc:
        return []
    of = group.key
    title = f"{group.name}, maximum over the slices" if group.unit == "studies" else group.name
    start = f"{report.best.name}: {title}."
    areas = Chart(
        to_svg(draw_roc(roc), f"roc-{of}", f"ROC curves, {title}: AUC (positives) {'; '.join(roc)}."),
        f"{start} Legend: AUC (number of positives).",
    )
    alt = f"Precision-recall curves, {title}: average precision (prevalence) {'; '.join(recall)}."
    averages = Chart(
        to_svg(draw_recall(recall, prevalences), f"recall-{of}", alt),
        f"{start} Legend: average precision (prevalence). Dotted: the prevalence (precision of random predictions).",
    )
    return [areas, averages]
