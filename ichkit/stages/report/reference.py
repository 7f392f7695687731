"""Report section: the reference standard of every data set, and what is known and unknown of it."""

import pandas as pd

from ichkit.core.roles import LOCKED, title_of
from ichkit.show.blocks import Prose, Section
from ichkit.show.table import BLANK, NOTHING, Cell, Table
from ichkit.stages.report.design import find_source
from ichkit.stages.report.report_data import ReportData

_PHANTOM = {
    "labelled by": "no reader: the phantom writes the labels of what it draws; readers of CQ500 are simulated",
    "rationale": "labels are known, because they come before the image; at difficulty real, a few are wrong on purpose",
    "annotation tool": "no annotation tool was needed",
    "blinding": "not applicable: nobody read these images",
}
_BLANK = Cell(BLANK, tone="warn")
_UNKNOWN = (
    "A label is 1 (positive), 0 or unknown. An unknown label has no part in a loss, a score or the second stage. "
    "There are no indeterminate results: every slice that was read has a probability of every class that is "
    "predicted. Labels belong to the same images that the networks read, so no time passes between test and "
    "reference standard."
)


def make_reference(report: ReportData) -> Section:
    """Who labelled each data set and how, and the number of known and unknown labels."""
    names = [str(name) for name in report.prepared.studies.dataset.drop_duplicates() if name != LOCKED]
    tables = [_standard(report, name) for name in names]
    return Section("reference", "Reference standard", [Prose(_UNKNOWN), *tables, _labels(report)])


def _standard(report: ReportData, name: str) -> Table:
    """The reference standard of one data set; what only its owner knows is left open."""
    source, facts = find_source(name), report.prepared.manifest.facts
    rule = source.rule if source is not None else ""
    if facts.get(name, {}).get("labels") == "study" and (report.prepared.studies.dataset == name).any():
        rule = f"{rule} Labels are per study; those of training studies are copied to all slices (weak labels)."
    known = {"labelled by": source.reference, "annotation tool": source.annotation_tool} if source is not None else {}
    filled = _PHANTOM if report.is_phantom(name) else known
    rows: list[list[Cell | str]] = [["positive if", rule.strip() or _BLANK]]
    rows += [[topic, filled.get(topic) or _BLANK] for topic in _PHANTOM]
    return Table(f"Reference standard of {title_of(name)}", ("", ""), rows, num_text=2, is_wrapped=True)


def _labels(report: ReportData) -> Table:
    """Known and unknown labels of studies and slices by data set, split and class."""
    rows: list[list[Cell | str]] = []
    prepared = report.prepared
    for level, table in (("studies", prepared.studies[prepared.studies.num_slices > 0]), ("slices", prepared.slices)):
        for (dataset, split), own in table.groupby(["dataset", "split"], sort=False):
            cells = [_count(own[name]) for name in report.task.classes]
            rows.append([f"{title_of(str(dataset))} {split}, {level}", f"{len(own):,}", *cells])
    columns = ("part", "all", *report.task.classes)
    return Table("Positive labels, and unknown ones", columns, rows, note="Below: number of unknown labels, if any.")


def _count(labels: pd.Series) -> Cell:
    """Positive labels above the number of unknown ones."""
    unknown = int(labels.isna().sum())
    if unknown == len(labels):
        return Cell(NOTHING, "unknown")
    return Cell(f"{int(labels.sum()):,}", f"{unknown:,} unknown" if unknown else "")
