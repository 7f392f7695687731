"""Report section: the external test sets, each beside published results on it."""

import numpy as np

from ichkit.show.blocks import Chart, Charts, Missing, Section
from ichkit.show.drawing import Series, chart_intervals
from ichkit.stages.report.report_data import ReportData, make_series
from ichkit.stages.scores import tables
from ichkit.stages.scores.book import external_slices, external_studies
from ichkit.validation.published import find_published
from ichkit.validation.scores import MEAN_CLASS, ROC_AUC


def make_external(report: ReportData) -> Section:
    """The study-level AUC of every class, beside published values, and by each slice-to-study aggregation."""
    book, best = report.scores, report.best
    sets = book.external_sets
    if not sets:
        missing = Missing("No external set is prepared.", "ichkit prepare --cq500 PATH")
        return Section("external", "External test", [missing])
    title = "External test: " + ", ".join(map(report.name_set, sets))
    section = Section("external", title)
    for dataset in sets:
        both = [tables.external(book, best, dataset), tables.aggregations(book, best, dataset)]
        if book.has_slices(best, dataset):
            both.append(tables.by_class(book, best, external_slices(dataset), tables.BY_SLICE))
        section.blocks.extend([Charts([_draw(report, dataset)]), *both])
    return section


def _draw(report: ReportData, dataset: str) -> Chart:
    best, names = report.best, (*report.task.classes, MEAN_CLASS)
    scores = [report.scores.find(best, ROC_AUC, name, external_studies(dataset)) for name in names]
    series = [make_series(best.name, scores)]
    published = find_published(dataset, report.task)
    for key, row in published.items():
        series.append(Series(key, np.array([row.roc_auc.get(name, np.nan) for name in names])))
    others, beside = (" and the published values", ", beside the published values") if published else ("", "")
    if published and report.is_phantom(dataset):
        beside += ", which are of patients: they are not comparable"
    name = report.name_set(dataset)
    alt = f"AUC of {best.name} on {name} by class with intervals{others}; numbers in the table."
    caption = f"{best.name} on {name}, with bootstrap intervals over patients{beside}."
    return chart_intervals(f"{dataset}-auc", alt, caption, names, series, "AUC per study, higher is better")
