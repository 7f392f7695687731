"""Report section: Table 1, the patients and scans of every partition and of every fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.roles import LOCKED, Role, title_of
from ichkit.core.tasks import Task
from ichkit.imaging.store import Prepared
from ichkit.show.blocks import Block, Section
from ichkit.show.table import NOTHING, Cell, Table, format_number
from ichkit.stages.report.commands import missing_of_store
from ichkit.stages.report.report_data import ReportData
from ichkit.validation.differences import standardized_mean_difference, standardized_share_difference

_MEASURES = {
    "slices per study": ("num_slices", 0),
    "slice gap, mm": ("gap_mm", 2),
    "pixel spacing, mm": ("spacing_mm", 3),
    "coverage, mm": ("coverage_mm", 0),
}
"""Row of the table to the column of `describe_studies` and its digits."""
_FACTS = {
    "manufacturer": "manufacturer",
    "kernel": "kernel",
    "kvp": "tube voltage, kV",
    "thickness": "nominal thickness, mm",
    "age": "age, years",
    "sex": "sex",
}
"""Facts of headers, if they were kept, to how the table names them."""
_SHOWN_VALUES = 8
_NOTE = (
    "Studies are described by their median, with the quartiles below. Shares are of the studies with a known label. "
    "d: standardized difference to the training data (difference in units of the pooled standard deviation)."
)


@dataclass(frozen=True)
class Partition:
    """One column of Table 1.

    Attributes:
        name: its heading.
        studies: rows of `describe_studies`.
        slices: its rows of `slices.parquet`.
    """

    name: str
    studies: pd.DataFrame
    slices: pd.DataFrame


def make_population(report: ReportData) -> Section:
    """Table 1 by partition, and the training data by fold."""
    prepared, task = report.prepared, report.task
    studies = describe_studies(prepared)
    partitions = list_partitions(prepared, studies)
    blocks: list[Block] = [_table("Table 1: patients and scans by partition", partitions, task, _NOTE)]
    if not set(_FACTS) & set(studies):
        what = "Manufacturer, kernel, tube voltage, thickness, age and sex are kept of headers on request alone."
        wanted = "prepare.header_facts=[manufacturer,kernel,age,sex]"
        blocks.append(missing_of_store(report, what, "--fresh", "--set", wanted))
    folds = list_folds(prepared, studies)
    if folds:
        blocks.append(_table("Training data by fold", folds, task, "Folds are by patient."))
    return Section("population", "Patients and scans", blocks)


def describe_studies(prepared: Prepared) -> pd.DataFrame:
    """One row per stored study: patient, labels, number of slices, and the geometry of its scan.

    Returns:
        `studies.parquet` of the studies with slices, with fold, gap_mm (median over slices), spacing_mm (mean of rows
        and columns), coverage_mm (from the first to the last slice), padded (any slice is), and
        the facts of headers that were kept.
    """
    slices = prepared.slices
    spacing = (slices.spacing_row_mm + slices.spacing_col_mm) / 2
    grouped = slices.assign(spacing_mm=spacing).groupby(["dataset", "study_id"])
    geometry = grouped.agg(
        gap_mm=("gap_mm", "median"),
        spacing_mm=("spacing_mm", "median"),
        low=("position_mm", "min"),
        high=("position_mm", "max"),
        padded=("padded", "any"),
        fold=("fold", "first"),
    ).reset_index()
    geometry["coverage_mm"] = geometry.pop("high") - geometry.pop("low")
    studies: pd.DataFrame = prepared.studies.merge(geometry, on=["dataset", "study_id"])
    return studies.merge(prepared.header_facts(), on=["dataset", "study_id"], how="left")


def list_partitions(prepared: Prepared, studies: pd.DataFrame) -> list[Partition]:
    """Training data, test split, external sets and locked patients, those that hold studies."""
    places = [("training", "train", ""), ("test", "test", "")]
    places += [(title_of(name), Role.EXTERNAL.value, name) for name in prepared.external_sets() if name != LOCKED]
    places.append(("locked", Role.EXTERNAL.value, LOCKED))
    found = []
    for title, split, dataset in places:
        of_studies, of_slices = (
            table[(table.split == split) & ((table.dataset == dataset) if dataset else True)]
            for table in (studies, prepared.slices)
        )
        if len(of_studies):
            found.append(Partition(title, of_studies, of_slices))
    return found


def list_folds(prepared: Prepared, studies: pd.DataFrame) -> list[Partition]:
    """The training data by fold."""
    train = prepared.slices[prepared.slices.split == "train"]
    own = studies[studies.split == "train"]
    return [Partition(f"fold {k}", own[own.fold == k], train[train.fold == k]) for k in prepared.fold_numbers]


def _table(title: str, partitions: Sequence[Partition], task: Task, note: str) -> Table:
    """One column per partition; differences are to the first if it is the training data."""
    reference = partitions[0] if partitions and partitions[0].name == "training" else None
    counts = {
        "patients": [f"{one.studies.patient_id.nunique():,}" for one in partitions],
        "studies": [f"{len(one.studies):,}" for one in partitions],
        "slices": [f"{len(one.slices):,}" for one in partitions],
    }
    rows: list[list[Cell | str]] = [[name, *values] for name, values in counts.items()]
    for name in task.classes:
        rows.append([f"{name}, studies", *(_share_cell(one, reference, name) for one in partitions)])
    if any(one.slices[list(task.classes)].notna().any(axis=None) for one in partitions):
        main = task.headline_class
        rows.append([f"{main}, slices", *(_positive_slices(one.slices[main]) for one in partitions)])
    for name, (column, digits) in _MEASURES.items():
        rows.append([name, *(_median_cell(one, reference, column, digits) for one in partitions)])
    rows.append(["padded outside the scan circle, studies", *(_padded_cell(one, reference) for one in partitions)])
    for name in _FACTS:
        if partitions and name in partitions[0].studies:
            rows += _fact_rows(name, partitions, reference)
    return Table(title, ("", *(one.name for one in partitions)), rows, note=note)


def _fact_rows(name: str, partitions: Sequence[Partition], reference: Partition | None) -> list[list[Cell | str]]:
    """A median of numbers, or a row for each of the most frequent words; studies without the tag are unknown."""
    if all(pd.api.types.is_numeric_dtype(one.studies[name]) for one in partitions):
        return [[_FACTS[name], *(_median_cell(one, reference, name, 1) for one in partitions)]]
    counts = pd.concat([one.studies[name] for one in partitions]).value_counts()
    shown = counts.index[:_SHOWN_VALUES].tolist()
    shown = sorted(shown, key=_order_ages) if name == "age" else shown
    rows: list[list[Cell | str]] = [
        [f"{_FACTS[name]}: {value}", *(_value_cell(one.studies[name] == value) for one in partitions)]
        for value in shown
    ]
    if len(counts) > len(shown):
        others = [one.studies[name].notna() & ~one.studies[name].isin(shown) for one in partitions]
        rows.append([f"{_FACTS[name]}: others", *map(_value_cell, others)])
    unknown = [one.studies[name].isna() for one in partitions]
    if any(is_unknown.any() for is_unknown in unknown):
        rows.append([f"{_FACTS[name]}: unknown", *map(_value_cell, unknown)])
    return rows


def _order_ages(value: object) -> int:
    """The first year of an age group."""
    return int(str(value).replace(" ", "-").split("-")[0])


def _value_cell(is_in: pd.Series) -> Cell:
    return Cell(f"{int(is_in.sum()):,}", f"{is_in.astype(float).mean():.1%}")


def _share_cell(one: Partition, reference: Partition | None, name: str) -> Cell:
    """Positive studies, their share of those with a known label, and the number of unknown labels."""
    known = one.studies[name].dropna().astype(float)
    if not len(known):
        return Cell(NOTHING, "unknown")
    unknown = len(one.studies) - len(known)
    small = [f"{known.mean():.1%}", *([f"{unknown:,} unknown"] if unknown else [])]
    if reference is not None and one is not reference:
        of_reference = reference.studies[name].dropna().astype(float)
        small += _difference(standardized_share_difference(known.mean(), of_reference.mean()))
    return Cell(f"{int(known.sum()):,}", ", ".join(small))


def _padded_cell(one: Partition, reference: Partition | None) -> Cell:
    share = one.studies.padded.mean()
    small = [f"{share:.1%}"]
    if reference is not None and one is not reference:
        small += _difference(standardized_share_difference(share, reference.studies.padded.mean()))
    return Cell(f"{int(one.studies.padded.sum()):,}", ", ".join(small))


def _positive_slices(labels: pd.Series) -> Cell:
    known = labels.dropna().astype(float)
    return Cell(f"{int(known.sum()):,}", f"{known.mean():.1%}") if len(known) else Cell(NOTHING)


def _median_cell(one: Partition, reference: Partition | None, column: str, digits: int) -> Cell:
    """The median above the quartiles and the standardized difference."""
    values = one.studies[column].dropna().to_numpy(np.float64)
    if not len(values):
        return Cell(NOTHING)
    low, middle, high = (format_number(value, digits) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    small = [f"{low} to {high}"]
    if reference is not None and one is not reference:
        others = reference.studies[column].dropna().to_numpy(np.float64)
        small += _difference(standardized_mean_difference(values, others))
    return Cell(middle, ", ".join(small))


def _difference(value: float) -> list[str]:
    return [] if np.isnan(value) else [f"d {value:+.2f}"]
