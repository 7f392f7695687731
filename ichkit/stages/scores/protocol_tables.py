"""The protocols of an external test as tables, for terminal and report."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from ichkit.core.roles import title_of
from ichkit.core.tasks import Task
from ichkit.show.table import Cell, Table, format_interval, format_number
from ichkit.stages.scores.protocols import KAPPA, SENSITIVITY, SPECIFICITY
from ichkit.stages.scores.tables import data_note, why_no_interval
from ichkit.validation.protocols import LABELS, SCANNED, Protocol, paper_protocol
from ichkit.validation.scores import MEAN_CLASS

_AXES = ["studies", "aggregation", "series", "reference"]
_SHOWN_STUDIES = 10
_NOTE = (
    "First row: the protocol of the paper (every study with scans, maximum over the slices, {labels}); "
    "each other row differs from it in one choice. AUC by study with bootstrap intervals over patients."
)
_VOTED, _GIVEN = "majority of the readers", "labels of the set"
_BASELINE = "Baseline: AUC of its own published probabilities of the same studies, with the p-value of DeLong's test."

_KAPPA = (
    "All studies with reads, those without scans included; positive by the majority. Intervals by resampling studies."
)
_READERS = (
    "On the studies on which the two others agree, and by their reading: not against a majority that the reader's own "
    "reading is part of. Wilson's intervals."
)


def select(table: pd.DataFrame, source: str, dataset: str) -> dict[Protocol, pd.DataFrame]:
    """The protocols that differ from the paper's in at most one thing, the paper's first, to their rows by class.

    Another series is shown on its own studies, and once more on those that every series rule has.

    Args:
        table: from `protocols.run`.
    """
    base = paper_protocol(dataset)
    own = table[(table.source == source) & (table.dataset == dataset)]
    found = {Protocol(*map(str, values)): rows.set_index("class") for values, rows in own.groupby(_AXES, sort=False)}
    near = [one for one in found if len(one.changes(base)) <= 1 or one.changes(base) == ("studies", "series")]
    order = sorted(near, key=lambda one: (one != base, *(_AXES.index(name) for name in one.changes(base))))
    return {one: found[one] for one in order}


def describe(protocol: Protocol, dataset: str) -> str:
    """What a protocol changes, or that it is the paper's.

    Example:
        >>> describe(Protocol("scanned", "top_mean", "cq500", "labels"), "cq500")
        'aggregation: top mean'
    """
    changed = protocol.changes(paper_protocol(dataset))
    words = (f"{name}: {str(getattr(protocol, name)).replace('_', ' ')}" for name in changed)
    return ", ".join(words) or "as in the paper"


def render(table: pd.DataFrame, left_out: pd.DataFrame, source: str, dataset: str, task: Task, data: str) -> Table:
    """The protocols of one source on one external set.

    Args:
        table, left_out: from `protocols.run` and `protocols.read_left_out`.
        data: origin of the scans.
    """
    main, shown = task.headline_class, select(table, source, dataset)
    names = (main, MEAN_CLASS, *(name for name in task.classes if name != main))
    own = table[(table.source == source) & (table.dataset == dataset)]
    has_baseline, has_readers = own.baseline.notna().any(), (own.reference != LABELS).any()
    rows: list[list[Cell | str]] = []
    for protocol, of_class in shown.items():
        row = _row_of(of_class, main)
        cells: list[Cell | str] = [_auc(of_class, name) for name in names]
        cells.insert(1, Cell(f"{row['n_positive']:,}", f"/ {row['n']:,}"))
        if has_baseline:
            cells.insert(2, Cell(format_number(row["baseline"], 3), f"p {format_number(row['p_value'], 3)}"))
        rows.append([describe(protocol, dataset), *cells])
    heads = [f"AUC {main}", "positive", *(["baseline"] if has_baseline else []), *names[1:]]
    notes = [
        _NOTE.format(labels=_VOTED if has_readers else _GIVEN),
        *([_BASELINE] if has_baseline else []),
        _say_range(table, source, dataset, main),
    ]
    ends = [(row["value"], row["low"]) for of_class in shown.values() for row in of_class.to_dict("records")]
    notes += [*why_no_interval(ends), _say_left_out(left_out, dataset), data_note(data)]
    return Table(
        f"{source} on {title_of(dataset)} under every protocol",
        ("protocol", *heads),
        rows,
        note=" ".join(note for note in notes if note),
        optional=names[2:],
    )


def render_readers(readers: pd.DataFrame, dataset: str, task: Task) -> list[Table]:
    """The agreement of the readers of an external set, by class, and each reader against the others.

    Args:
        readers: from `protocols.read_readers`.
    """
    records = readers[readers.dataset == dataset].to_dict("records")
    own = {(row["class"], row["measure"], row["reader"]): row for row in records}
    agreement: list[list[Cell | str]] = []
    each: list[list[Cell | str]] = []
    for name in task.classes:
        kappa = own[name, KAPPA, 0]
        agreement.append([name, _measured(kappa), _counts(kappa)])
        for number in sorted({reader for _, measure, reader in own if measure == SENSITIVITY}):
            rates = [own[name, measure, number] for measure in (SENSITIVITY, SPECIFICITY)]
            each.append([name, f"reader {number}", *map(_measured, rates), _counts(rates[0])])
    shown = title_of(dataset)
    heads = ("class", "reader", "sensitivity", "specificity", "positive")
    return [
        Table(f"Agreement of the readers of {shown}", ("class", "Fleiss' kappa", "positive"), agreement, note=_KAPPA),
        Table(f"Each reader of {shown} against the others", heads, each, note=_READERS, num_text=2),
    ]


def render_rows(table: pd.DataFrame) -> Table:
    """Every row of `protocols.parquet`."""
    names = ("source", "dataset", *_AXES, "class")
    rows = []
    for row in table.to_dict("records"):
        interval = format_interval(row["low"], row["high"], 4)
        numbers = [format_number(row["value"], 5), interval, str(row["n"]), str(row["n_positive"])]
        numbers += [format_number(row[name], digits) for name, digits in (("baseline", 5), ("p_value", 4))]
        rows.append([*(str(row[name]) for name in names), *numbers])
    columns = (*names, "AUC", "interval", "n", "positive", "baseline", "p")
    return Table("", columns, rows, num_text=len(names))


def _measured(row: Mapping[Hashable, Any]) -> Cell:
    return Cell(format_number(row["value"], 3), format_interval(row["low"], row["high"], 3))


def _counts(row: Mapping[Hashable, Any]) -> Cell:
    return Cell(f"{row['n_positive']:,}", f"/ {row['n']:,}")


def _auc(of_class: pd.DataFrame, name: str) -> Cell:
    row = _row_of(of_class, name)
    return Cell(format_number(row["value"], 3), format_interval(row["low"], row["high"], 3))


def _row_of(of_class: pd.DataFrame, name: str) -> dict[str, Any]:
    """The row of one class."""
    return {str(key): value for key, value in of_class.loc[name].items()}


def _say_range(table: pd.DataFrame, source: str, dataset: str, main: str) -> str:
    """The lowest and the highest AUC of all combinations."""
    own = table[(table.source == source) & (table.dataset == dataset) & (table["class"] == main)].value.dropna()
    if own.empty:
        return ""
    return f"Over all {len(own)} combinations the AUC of {main} goes from {own.min():.3f} to {own.max():.3f}."


def _say_left_out(left_out: pd.DataFrame, dataset: str) -> str:
    """The studies without a usable series, by name."""
    own = left_out[(left_out.dataset == dataset) & (left_out.studies == SCANNED)]
    if own.empty:
        return "No study is missing."
    said = []
    for series, of_series in own.groupby("series", sort=False):
        names = of_series.study_id
        shown = ", ".join(names[:_SHOWN_STUDIES]) + (", ..." if len(names) > _SHOWN_STUDIES else "")
        said.append(f"{title_of(str(series))} {len(names)} ({shown})")
    return f"Without a usable series, not scored: {'; '.join(said)}. `work/protocols/left_out.csv` has every name."
