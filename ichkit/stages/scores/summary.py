"""Scores for a terminal: one line per source, one source in full, every row, or a submission."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from ichkit.core.tasks import Task
from ichkit.show.terminal import NOTHING, format_interval, format_number, make_table
from ichkit.stages.scores.evaluate import ScoreTables, read_tables
from ichkit.validation.catalog import Source, find_sources, pick_source
from ichkit.validation.comparisons import BASELINE
from ichkit.validation.published import PUBLISHED, published_auc
from ichkit.validation.scores import (
    ALL_CLASSES,
    AVERAGE_PRECISION,
    CALIBRATION_ERROR,
    DELONG_AUC,
    F1_BEST,
    F1_HALF,
    LOG_LOSS,
    MEAN_CLASS,
    POOLED,
    ROC_AUC,
    SENSITIVITY,
    SPECIFICITY,
    THRESHOLD_OF,
    WEIGHTED_LOG_LOSS,
    headlines,
)
from ichkit.validation.studies import MAXIMUM
from ichkit.validation.subgroups import ALL
from ichkit.work.folder import WorkFolder

NOT_A_DEVICE = "Research use only, not a medical device."
_PHANTOMS = "Made from phantoms: the numbers show that the chain works, not how well it would do on patients."
_CHOSEN = "Thresholds: the best on the other folds for F1, and for Youden's J (sensitivity, specificity)."
_RAISED = "ECE: chance alone raises it; its interval allows for that."
# Column to metric of the tables by class; four fit a terminal of 80 columns with their intervals.
_BY_SLICE = {"log loss": LOG_LOSS, "AUC": ROC_AUC, "AP": AVERAGE_PRECISION, "ECE": CALIBRATION_ERROR}
_BY_STUDY = {"AUC": ROC_AUC, "AP": AVERAGE_PRECISION, "ECE": CALIBRATION_ERROR}
_DECISIONS = {"F1 at 0.5": F1_HALF, "F1 at best": F1_BEST, "sensitivity": SENSITIVITY, "specificity": SPECIFICITY}


def data_note(data: str) -> str:
    """What must stand below every table of numbers made from these data."""
    return f"{_PHANTOMS} {NOT_A_DEVICE}" if "phantom" in data else NOT_A_DEVICE


def render(work: WorkFolder, task: Task, name: str | None = None, *, is_whole: bool = False) -> list[Table]:
    """What `ichkit evaluate` shows: all sources and the best by class; one source in full; or every row.

    Args:
        name: the source to show in full.
        is_whole: every row of `scores.parquet`.

    Raises:
        ConfigError: no such source.
        ArtifactError: there are no scores of the sources that are there now.
    """
    sources = find_sources(work, task)
    tables = read_tables(work, sources)
    if name is not None:
        source = pick_source(sources, name)
        own = tables.scores[tables.scores.source == name]
        return [render_rows(own)] if is_whole else render_source(tables, source, is_whole=True)
    if is_whole:
        return [render_rows(tables.scores)]
    return [render_sources(tables, sources), *render_source(tables, best_source(tables, sources))]


def best_source(tables: ScoreTables, sources: Sequence[Source]) -> Source:
    """The source with the lowest loss among those scored on the most slices, by name where they are equal."""
    return _in_order(tables, sources)[0]


def render_sources(tables: ScoreTables, sources: Sequence[Source]) -> Table:
    """One line per source, best first among equal folds: what ranks, and what else `any` says, with intervals."""
    task, data = sources[0].task, "+".join(sorted({source.data for source in sources}))
    name = task.any_class
    columns = ["source", "log loss", f"AUC {name}", f"AP {name}", f"ECE {name}", "slices"]
    table = make_table(f"Out of fold, by slice (data: {data})", columns, caption=data_note(data))
    main = headlines(tables.scores)
    for source in _in_order(tables, sources):
        scores = _Scores(main[(main.source == source.name) & (main.dataset != "cq500") & (main.fold == POOLED)])
        loss = scores.find(WEIGHTED_LOG_LOSS, ALL_CLASSES)
        counts = f"{loss['n']}\n[dim]{loss['n_positive']} positive[/]"
        cells = [scores.stacked(metric, name, 3) for metric in (ROC_AUC, AVERAGE_PRECISION, CALIBRATION_ERROR)]
        whole = scores.stacked(WEIGHTED_LOG_LOSS, ALL_CLASSES, 5, 4)
        table.add_row(f"{escape(source.name)}\n[dim]folds {source.folds_label}[/]", whole, *cells, counts)
    return table


def render_source(tables: ScoreTables, source: Source, *, is_whole: bool = False) -> list[Table]:
    """One source by class: its slices, its studies, and CQ500 beside the published numbers.

    Args:
        is_whole: also its subgroups, the other ways to score a study, and its thresholds.
    """
    scores = tables.scores[tables.scores.source == source.name]
    pooled = scores[(scores.fold == POOLED) & (scores.subgroup == ALL)]
    own, outside = pooled[pooled.dataset != "cq500"], pooled[pooled.dataset == "cq500"]
    slices, studies = own[own.level == "slice"], own[own.level == "study"]
    of_slices = f"{source.name}, out of fold, by slice"
    of_studies = f"{source.name}, out of fold, highest slice of a study"
    made = [_by_class(slices, source, _BY_SLICE, of_slices), _by_class(studies, source, _BY_STUDY, of_studies)]
    if len(outside):
        made.append(_cq500(outside, tables, source))
    if is_whole:
        made += [_by_class(slices, source, _DECISIONS, of_slices), _by_class(studies, source, _DECISIONS, of_studies)]
        made.append(_subgroups(scores[(scores.subgroup != ALL) & (scores.fold == POOLED)], source))
        if len(outside):
            made.append(_aggregations(outside, source))
        made.append(_thresholds(scores[scores.metric.isin(THRESHOLD_OF.values())], source))
    return made


def render_rows(scores: pd.DataFrame) -> Table:
    """Every row of `scores.parquet`, as it stands there."""
    place = ["source", "dataset", "level", "aggregation", "subgroup", "fold", "metric", "class"]
    table = make_table("", [*place, "value", "interval", "n", "positive"], text=len(place))
    for row in scores.to_dict("records"):
        row["fold"] = "all" if row["fold"] == POOLED else row["fold"]
        where = [escape(str(row[name])) for name in place]
        interval = format_interval(row["low"], row["high"], 4)
        table.add_row(*where, format_number(row["value"], 5), interval, str(row["n"]), str(row["n_positive"]))
    return table


def render_submission(scores: pd.DataFrame) -> Table:
    """The scores of one file against another, to the last digit that means anything: another program may be compared.

    Args:
        scores: from `evaluate.score_submission`.
    """
    table = make_table("", ["metric", "class", "value", "n", "positive"], text=2)
    for row in scores.to_dict("records"):
        value = f"{row['value']:.12f}" if np.isfinite(row["value"]) else "undefined"
        table.add_row(row["metric"], row["class"], value, str(row["n"]), str(row["n_positive"]))
    return table


class _Scores:
    """Scores of one source and one group of rows, by metric and class."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self._rows = {(row["metric"], row["class"]): row for row in rows.to_dict("records")}

    def find(self, metric: str, name: str) -> dict[str, float]:
        """value, low, high, n and n_positive; NaN and 0 where it was not scored."""
        unknown = {"value": np.nan, "low": np.nan, "high": np.nan, "n": 0, "n_positive": 0}
        return self._rows.get((metric, name), unknown)

    def stacked(self, metric: str, name: str, digits: int, interval_digits: int | None = None) -> str:
        """The value above its interval."""
        row = self.find(metric, name)
        interval = format_interval(row["low"], row["high"], interval_digits or digits)
        return f"{format_number(row['value'], digits)}\n[dim]{interval}[/]"

    def counts(self, metric: str, name: str) -> str:
        """Rows and, of them, positive ones."""
        row = self.find(metric, name)
        return f"{row['n_positive']}/{row['n']}"


def _in_order(tables: ScoreTables, sources: Sequence[Source]) -> list[Source]:
    main = headlines(tables.scores)
    loss = main[(main.metric == WEIGHTED_LOG_LOSS) & (main.fold == POOLED)].set_index("source")
    return sorted(sources, key=lambda one: (-loss.n[one.name], one.folds_label, loss.value[one.name], one.name))


def _by_class(rows: pd.DataFrame, source: Source, metrics: dict[str, str], title: str) -> Table:
    """Some metrics of every class, values above intervals; `metrics` is column to metric."""
    scores = _Scores(rows)
    table = make_table(title, ["class", *metrics, "positive"], caption=_CHOSEN if metrics is _DECISIONS else _RAISED)
    for name in source.task.classes:
        cells = [scores.stacked(metric, name, 3) for metric in metrics.values()]
        table.add_row(name, *cells, scores.counts(ROC_AUC, name))
    return table


def _cq500(rows: pd.DataFrame, tables: ScoreTables, source: Source) -> Table:
    """CQ500 beside the published numbers, and the baseline's own on the same studies where they are there."""
    scores = _Scores(rows[rows.aggregation == MAXIMUM])
    paired = tables.comparisons
    paired = paired[(paired.source == source.name) & (paired.other == BASELINE)].set_index("class")
    columns = ["class", "AUC", "DeLong", *PUBLISHED, "positive", *(("its own", "p") if len(paired) else ())]
    table = make_table(f"{source.name}, CQ500, highest slice of a study", columns)
    for name in (*source.task.classes, MEAN_CLASS):
        delong = scores.find(DELONG_AUC, name)
        cells = [format_interval(delong["low"], delong["high"], 3) or NOTHING]
        cells += [format_number(published_auc(other, name, source.task), 4) for other in PUBLISHED]
        cells.append(scores.counts(ROC_AUC, name))
        if len(paired):
            own = paired.loc[name] if name in paired.index else {"other_value": None, "p_value": None}
            cells += [format_number(own["other_value"], 3), format_number(own["p_value"], 3)]
        table.add_row(name, scores.stacked(ROC_AUC, name, 3), *cells)
    num_studies = scores.find(ROC_AUC, MEAN_CLASS)["n"]
    notes = [
        f"{num_studies} studies, {len(tables.cq500_missing)} missing. AUC with the interval by resampling studies."
    ]
    notes.append("Published: " + "; ".join(f"{name}, {row.source}" for name, row in PUBLISHED.items()) + ".")
    if len(paired):
        notes.append(f"Its own: the baseline's probabilities, DeLong's paired test on {paired.n.max()} studies.")
    if "phantom" in source.data:
        notes.append("Ours are phantoms, theirs patients: the published numbers stand here for the form alone.")
    table.caption = " ".join(notes)
    return table


def _subgroups(rows: pd.DataFrame, source: Source) -> Table:
    """The loss and the AUC of `any` in every subgroup, with intervals and counts."""
    name = source.task.any_class
    table = make_table(f"{source.name}, subgroups", ["subgroup", "log loss", f"AUC {name}", "positive"])
    for (dataset, subgroup), part in rows.groupby(["dataset", "subgroup"], sort=False):
        scores = _Scores(part)
        cells = [scores.stacked(WEIGHTED_LOG_LOSS, ALL_CLASSES, 4), scores.stacked(ROC_AUC, name, 3)]
        table.add_row(f"{dataset} {subgroup}", *cells, scores.counts(ROC_AUC, name))
    return table


def _aggregations(rows: pd.DataFrame, source: Source) -> Table:
    """The CQ500 AUC of every class by each way to score a study."""
    names = list(dict.fromkeys(rows.aggregation))
    table = make_table(f"{source.name}, CQ500 by how slices make a study", ["class", *names, "positive"])
    scores = {name: _Scores(rows[rows.aggregation == name]) for name in names}
    for label in (*source.task.classes, MEAN_CLASS):
        cells = [scores[name].stacked(ROC_AUC, label, 3) for name in names]
        table.add_row(label, *cells, scores[MAXIMUM].counts(ROC_AUC, label))
    return table


def _thresholds(rows: pd.DataFrame, source: Source) -> Table:
    """The thresholds of every class chosen on all folds, above the range of those that each fold was scored at."""
    groups = list(rows.groupby(["level", "metric"], sort=False))
    columns = [f"{level}\n{metric.removeprefix('threshold_')}" for (level, metric), _ in groups]
    caption = "Chosen on all rows, for new scans; below, what the folds were scored at, each chosen on the others."
    table = make_table(f"{source.name}, thresholds", ["class", *columns], caption=caption)
    for name in source.task.classes:
        cells = []
        for _, part in groups:
            own = part[part["class"] == name]
            others = own.value[own.fold != POOLED]
            for_new = format_number(own.value[own.fold == POOLED].iloc[0], 4)
            cells.append(f"{for_new}\n[dim]{format_interval(others.min(), others.max(), 4)}[/]")
        table.add_row(name, *cells)
    return table
