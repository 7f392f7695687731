"""Report section: the external test under every protocol, beside what papers report."""

import numpy as np
import pandas as pd

from ichkit.core.roles import title_of
from ichkit.show.blocks import Block, Chart, Charts, Missing, Section
from ichkit.show.drawing import Series, chart_intervals, to_svg
from ichkit.stages.report.curves import draw_roc_with_points, roc_points
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.scores import protocol_tables, protocols
from ichkit.stages.scores.score_source import read_external_studies
from ichkit.validation.published import find_reported

_TITLE = "External test by protocol"


def make_protocols(report: ReportData) -> Section:
    """A picture and a table of the best source on each external set."""
    found = protocols.group_by_scans(report.prepared)
    if not found:
        missing = Missing("No external set is prepared.", "ichkit prepare --cq500 PATH")
        return Section("protocols", _TITLE, [missing])
    table = protocols.read_protocols(report.work, report.prepared, report.sources)
    if table is None:
        missing = Missing("The external sets were not scored by protocol.", protocols.MADE_BY)
        return Section("protocols", _TITLE, [missing])
    left_out, best, readers = protocols.read_left_out(report.work), report.best, protocols.read_readers(report.work)
    blocks: list[Block] = []
    for dataset in found:
        blocks.append(Charts([_draw(report, table, dataset)]))
        blocks.append(protocol_tables.render(table, left_out, best.name, dataset, report.task, report.data))
        if (readers.dataset == dataset).any():
            blocks += protocol_tables.render_readers(readers, dataset, report.task)
            blocks.append(Charts(_draw_readers(report, readers[readers.dataset == dataset], dataset), "thirds"))
    return Section("protocols", _TITLE, blocks)


def _draw_readers(report: ReportData, readers: pd.DataFrame, dataset: str) -> list[Chart]:
    """The ROC curve of the best source with each reader as a point, for every class with positives and negatives."""
    rows = read_external_studies(report.best, report.prepared, dataset, report.config)
    own = readers.set_index(["class", "measure", "reader"]).value
    numbers = sorted(readers.reader[readers.measure == protocols.SENSITIVITY].unique())
    charts = []
    for c, name in enumerate(report.task.classes):
        known = ~np.isnan(rows.labels[:, c])
        truth, p = rows.labels[known, c], rows.probabilities[known, c]
        if not 0 < truth.sum() < len(truth):
            continue
        points = {
            f"reader {number}": (
                1 - own[(name, protocols.SPECIFICITY, number)],
                own[(name, protocols.SENSITIVITY, number)],
            )
            for number in numbers
        }
        said = "; ".join(f"{who} {hit:.3f} at {alarm:.3f}" for who, (alarm, hit) in points.items())
        alt = f"ROC curve of {report.best.name}, {name}, with sensitivity at false positive rate of {said}."
        figure = draw_roc_with_points({report.best.name: roc_points(truth, p)}, points)
        caption = (
            f"{name}: {report.best.name} against the majority, each reader against the two others where they agree."
        )
        charts.append(Chart(to_svg(figure, f"readers-{dataset}-{name}", alt), caption))
    return charts


def _draw(report: ReportData, table: pd.DataFrame, dataset: str) -> Chart:
    """The AUC of the headline class of the best source by protocol, with what papers report below."""
    main, best = report.task.headline_class, report.best.name
    shown = protocol_tables.select(table, best, dataset)
    rows = [of_class.loc[main] for of_class in shown.values()]
    reported = find_reported(dataset, report.task)
    own = [
        np.array([*(row[name] for row in rows), *[np.nan] * len(reported)], float) for name in ("value", "low", "high")
    ]
    theirs = np.array([*[np.nan] * len(rows), *(one.roc_auc for one in reported)])
    names = [protocol_tables.describe(protocol, dataset) for protocol in shown]
    names += [f"{one.name}, {one.num_studies} studies" if one.num_studies else one.name for one in reported]
    series = [Series(best, *own), *([Series("as reported", theirs)] if reported else [])]
    alt = f"AUC of {main} of {best} by protocol with intervals, and {len(reported)} reported values; see the table."
    caption = f"{title_of(dataset)}: AUC of {main} by protocol."
    if reported:
        caption += " Reported: " + "; ".join(f"{one.roc_auc:.3f} {one.source}" for one in reported) + "."
    return chart_intervals(f"protocols-{dataset}", alt, caption, names, series, f"AUC {main}")
