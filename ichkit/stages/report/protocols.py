"""Report section: the external test under every protocol, beside what papers report."""

import numpy as np
import pandas as pd

from ichkit.core.roles import title_of
from ichkit.show.blocks import Block, Chart, Charts, Missing, Section
from ichkit.show.drawing import Series, draw_intervals, to_svg
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.scores import protocol_tables, protocols
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
    left_out, best = protocols.read_left_out(report.work), report.best
    blocks: list[Block] = []
    for dataset in found:
        blocks.append(Charts([_draw(report, table, dataset)]))
        blocks.append(protocol_tables.render(table, left_out, best.name, dataset, report.task, report.data))
    return Section("protocols", _TITLE, blocks)


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
    names += [f"{one.name}, {one.num_studies or '?'} studies" for one in reported]
    series = [Series(best, *own), *([Series("as reported", theirs)] if reported else [])]
    alt = f"AUC of {main} of {best} by protocol with intervals, and {len(reported)} reported values; see the table."
    caption = f"{title_of(dataset)}: AUC of {main} by protocol."
    if reported:
        caption += " Reported: " + "; ".join(f"{one.roc_auc:.3f} {one.source}" for one in reported) + "."
    figure = draw_intervals(names, series, f"AUC {main}")
    return Chart(to_svg(figure, f"protocols-{dataset}", alt), caption)
