"""The tables that `ichkit evaluate` prints: leaderboard, one source in full, every row, a submission."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.show.table import Table, format_interval, format_number
from ichkit.stages.scores import protocol_tables, protocols, tables
from ichkit.stages.scores.book import SLICES, STUDIES, ScoreBook, external_slices, open_book
from ichkit.stages.scores.protocols import ProtocolsPlan
from ichkit.stages.scores.tables import BY_SLICE, BY_STUDY, DECISIONS
from ichkit.validation.catalog import Source, pick_source
from ichkit.validation.scores import POOLED
from ichkit.work.folder import WorkFolder


def render(work: WorkFolder, task: Task, name: str | None = None, *, is_whole: bool = False) -> Sequence[Table]:
    """The tables that `ichkit evaluate` prints: leaderboard and best source; one source in full; or every row.

    Args:
        name: the source to show in full.
        is_whole: every row of `scores.parquet`.

    Raises:
        ConfigError: no such source.
        ArtifactError: there are no scores, or they are not of the current sources.
    """
    book = open_book(work, task)
    source = book.sources[0] if name is None else pick_source(book.sources, name)
    scores = book.tables.scores
    if is_whole:
        return [render_rows(scores if name is None else scores[scores.source == name])]
    if name is not None:
        return render_source(book, source, is_whole=True)
    return [with_data_note(tables.board(book), book.data), *render_source(book, source)]


def render_protocols(plan: ProtocolsPlan, name: str | None = None, *, is_whole: bool = False) -> Sequence[Table]:
    """The external sets under every protocol, computed if that was not done; sources best first.

    Args:
        name: this source alone.
        is_whole: every row of `protocols.parquet`.

    Raises:
        ConfigError: no such source.
        ArtifactError: there are no scores, or they are not of the current sources.
    """
    book = open_book(plan.work, plan.prepared.task)
    sources = book.sources if name is None else [pick_source(book.sources, name)]
    table = protocols.run(plan)
    if is_whole:
        return [protocol_tables.render_rows(table[table.source.isin([source.name for source in sources])])]
    left_out, readers = protocols.read_left_out(plan.work), protocols.read_readers(plan.work)
    made = [
        protocol_tables.render(table, left_out, source.name, dataset, book.task, book.data)
        for source in sources
        for dataset in plan.scans
    ]
    for dataset in plan.scans:
        if (readers.dataset == dataset).any():
            made += protocol_tables.render_readers(readers, dataset, book.task)
    return made


def render_source(book: ScoreBook, source: Source, *, is_whole: bool = False) -> list[Table]:
    """One source by class: slices, studies, and the external sets beside published AUCs.

    Args:
        is_whole: also decisions, subgroups, slice-to-study aggregations and thresholds.
    """
    made = [tables.by_class(book, source, SLICES, BY_SLICE), tables.by_class(book, source, STUDIES, BY_STUDY)]
    made += [tables.external(book, source, dataset) for dataset in book.external_sets]
    with_slices = [dataset for dataset in book.external_sets if book.has_slices(source, dataset)]
    made += [tables.by_class(book, source, external_slices(dataset), BY_SLICE) for dataset in with_slices]
    if is_whole:
        made += [tables.by_class(book, source, group, DECISIONS) for group in (SLICES, STUDIES)]
        made += [tables.at_half(book, source, group) for group in (SLICES, STUDIES)]
        made.append(tables.subgroups(book, source))
        made += [tables.aggregations(book, source, dataset) for dataset in book.external_sets]
        made.append(tables.thresholds(book, source))
    return made


def render_rows(scores: pd.DataFrame) -> Table:
    """Every row of `scores.parquet`."""
    place = ("source", "dataset", "level", "aggregation", "subgroup", "fold", "metric", "class")
    rows = []
    for row in scores.to_dict("records"):
        row["fold"] = "all" if row["fold"] == POOLED else row["fold"]
        interval = format_interval(row["low"], row["high"], 4)
        counts = (str(row["n"]), str(row["n_positive"]))
        rows.append([*(str(row[name]) for name in place), format_number(row["value"], 5), interval, *counts])
    return Table("", (*place, "value", "interval", "n", "positive"), rows, num_text=len(place))


def render_submission(scores: pd.DataFrame) -> Table:
    """The scores of a submission file with 12 decimals, so that they can be compared with another program.

    Args:
        scores: from `evaluate.score_submission`.
    """
    rows = []
    for row in scores.to_dict("records"):
        value = f"{row['value']:.12f}" if np.isfinite(row["value"]) else "undefined"
        rows.append([row["metric"], row["class"], value, str(row["n"]), str(row["n_positive"])])
    return Table("", ("metric", "class", "value", "n", "positive"), rows, num_text=2)


def with_data_note(table: Table, data: str) -> Table:
    """The table with the note on its data added."""
    return replace(table, note=f"{table.note} {tables.data_note(data)}")
