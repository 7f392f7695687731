"""Report sections: performance by subgroup, and paired comparisons of sources."""

from ichkit.show.blocks import Charts, Missing, Section
from ichkit.show.drawing import chart_intervals
from ichkit.stages.report.report_data import ReportData, make_series
from ichkit.stages.scores import tables
from ichkit.stages.scores.book import SLICES
from ichkit.stages.scores.tables import subgroup_name
from ichkit.validation.scores import ALL_CLASSES, WEIGHTED_LOG_LOSS


def make_subgroups(report: ReportData) -> Section:
    """The loss and AUC of the best source in every subgroup of the out-of-fold slices and the external sets."""
    book, best = report.scores, report.best
    own = book.subgroups(best, SLICES)
    losses = [book.find(best, WEIGHTED_LOG_LOSS, ALL_CLASSES, SLICES, name) for name in own]
    series = make_series(best.name, losses)
    alt = f"Weighted log loss of {best.name} in {len(own)} subgroups with intervals; numbers in the table."
    caption = "Out-of-fold weighted log loss by subgroup; prevalence differs too, which alone changes the loss."
    names = [subgroup_name(name) for name in own]
    chart = chart_intervals("subgroup-loss", alt, caption, names, [series], "weighted log loss (nats)")
    return Section("subgroups", "Performance by subgroup", [Charts([chart]), tables.subgroups(book, best)])


def make_pairs(report: ReportData) -> Section:
    """The paired difference of every two sources that were scored on the same folds."""
    title = "Paired comparisons"
    if len(report.peers) < 2:
        missing = Missing("There is only one source on these folds, so there is no comparison.", "ichkit stack")
        return Section("pairs", title, [missing])
    return Section("pairs", title, [tables.pairs(report.scores, report.peers)])
