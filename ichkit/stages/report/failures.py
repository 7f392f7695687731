"""Report section: errors by subgroup, the most confident errors in a table, and galleries of slices."""

import numpy as np

from ichkit.imaging.parts import whole_id
from ichkit.show.blocks import Block, Prose, Section, Subsection
from ichkit.show.table import Cell, Table, format_interval, format_number
from ichkit.stages.report.gallery import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    Judged,
    decision_thresholds,
    find_viewers,
    judge,
    make_galleries,
)
from ichkit.stages.report.report_data import ReportData, shorten
from ichkit.stages.report.viewers import StudyViewers
from ichkit.stages.scores.score_source import seed_of_rows, slice_subgroups
from ichkit.stages.scores.tables import subgroup_name
from ichkit.validation.intervals import interval_of
from ichkit.validation.operating import count_decisions
from ichkit.validation.subgroups import ALL
from ichkit.validation.tallies import ScoredRows
from ichkit.validation.thresholds import (
    F1_AIM,
    NEGATIVE,
    POSITIVE,
    TRUE_POSITIVE,
    Decisions,
    sensitivity,
    specificity,
)
from ichkit.validation.thresholds import (
    FALSE_POSITIVE as FALSE_POSITIVES,
)


def make_failures(report: ReportData) -> Section:
    """The errors of the best source: how often and in which subgroups, the most confident ones, and images."""
    judged = judge(report)
    viewers = find_viewers(report, judged)
    blocks: list[Block] = [Prose(_text(report)), *_by_subgroup(report)]
    first, *others = [_most_confident(report, c, judged, viewers) for c in report.task_order]
    blocks.append(first)
    if others:
        blocks.append(Subsection("Most confident errors of the other classes", [*others], is_open=False))
    return Section("failures", "Errors and examples", [*blocks, *make_galleries(report, judged)])


def _text(report: ReportData) -> str:
    return (
        f"Out-of-fold slices of {report.best.name}; positive at or above the threshold with the best F1 on the other "
        "folds. False negatives are positive slices below it, false positives are negative slices at or above it. A "
        "label may be wrong too: `ichkit report --label-errors` lists suspected ones. A click on a place in a study "
        "shows the slice."
    )


def _by_subgroup(report: ReportData) -> list[Block]:
    """Counts of errors by subgroup, the headline class first."""
    rows, num_classes = report.scored.slices, report.task.num_classes
    limits = np.stack([decision_thresholds(report, c) for c in range(num_classes)], axis=1)
    is_yes, is_defined = rows.probabilities >= limits, np.isfinite(limits).all(0)
    groups = {ALL: np.ones(len(limits), bool), **slice_subgroups(report.scored.facts, report.prepared)}
    counted = {}
    for name, is_inside in groups.items():
        taken, decisions = rows.take(is_inside), Decisions(is_yes[is_inside], is_defined)
        counted[name] = _cells(report, taken, decisions)
    first, *others = [_table_of(report, c, counted) for c in report.task_order]
    return [
        first,
        *([Subsection("Errors of the other classes by subgroup", [*others], is_open=False)] if others else []),
    ]


def _cells(report: ReportData, rows: ScoredRows, decisions: Decisions) -> list[list[Cell | str]]:
    """For each class: false negatives, their share, false positives, their share."""
    settings = report.config.evaluate
    seed = seed_of_rows(rows, report.config)
    found = count_decisions(rows, {F1_AIM: decisions}, num_draws=settings.num_draws, seed=seed)[F1_AIM]
    is_single = len(np.unique(rows.members)) < 2  # all bootstrap samples of one patient are equal
    cells: list[list[Cell | str]] = []
    for c, counts in enumerate(found.counts):
        of_class: list[Cell | str] = []
        missed = counts[POSITIVE] - counts[TRUE_POSITIVE]
        for number, total, measure in (
            (missed, counts[POSITIVE], sensitivity),
            (counts[FALSE_POSITIVES], counts[NEGATIVE], specificity),
        ):
            share, ends = 1 - measure(counts), interval_of(1 - measure(found.draws[:, c]), settings.level)
            of_class.append(Cell(format_number(number, 0), f"of {format_number(total, 0)}"))
            between = "" if is_single else format_interval(ends.low, ends.high, 3)
            of_class.append(Cell(format_number(float(share), 3), between))
        cells.append(of_class)
    return cells


def _table_of(report: ReportData, c: int, counted: dict[str, list[list[Cell | str]]]) -> Table:
    label = report.task.classes[c]
    rows = [[subgroup_name(name) if name != ALL else "all slices", *cells[c]] for name, cells in counted.items()]
    columns = ("subgroup", "false\nnegatives", "share of\npositives", "false\npositives", "share of\nnegatives")
    note = "Shares with intervals by resampling patients. Subgroups overlap."
    return Table(f"Errors on {label} by subgroup", columns, rows, note=note)


def _most_confident(report: ReportData, c: int, judged: list[Judged], viewers: StudyViewers) -> Table:
    """The false negatives of the lowest and the false positives of the highest probability, one for each study."""
    has_parts = any(whole_id(name) != name for name in report.scored.facts.study_id.unique())
    rows: list[list[Cell | str]] = []
    for verdict in (FALSE_NEGATIVE, FALSE_POSITIVE):
        for one in judged:
            if (one.class_index, one.verdict) == (c, verdict):
                places = _place(report, one, viewers.find(one.row))
                rows.append([verdict, *_describe(report, one.row, has_parts=has_parts), *places])
    names = ["error", "true labels", "slice", "study", *(["part"] if has_parts else [])]
    columns = (*names, "probability", "slice from\nthe feet", "fold")
    note = "" if rows else "There is none."
    return Table(f"Most confident errors on {report.task.classes[c]}", columns, rows, note=note, num_text=len(names))


def _describe(report: ReportData, number: int, *, has_parts: bool) -> list[Cell | str]:
    """The true labels of a slice, its name, that of its study, and where studies have parts its part."""
    row, labels = report.scored.facts.iloc[number], report.scored.slices.labels[number]
    truth = [name for name, value in zip(report.task.classes, labels, strict=True) if value == 1]
    study = whole_id(row.study_id)
    part = [row.study_id.removeprefix(study).lstrip(":")] if has_parts else []
    full = report.full_id(number, "study_id")
    slice_cell = Cell(shorten(row.slice_id), full=report.full_id(number, "slice_id"))
    return [", ".join(truth) or "none", slice_cell, Cell(shorten(study), full=full and study), *part]


def _place(report: ReportData, one: Judged, viewer: str) -> list[Cell | str]:
    """The probability of a slice above its threshold, its place in the study, its fold."""
    row, p = report.scored.facts.iloc[one.row], float(report.scored.slices.probabilities[one.row, one.class_index])
    text, position = f"{row.slice_index + 1} of {row.num_slices}", f"{format_number(row.position_mm, 0)} mm"
    place = Cell(text, position, link=viewer, slice_index=int(row.slice_index) if viewer else None)
    return [Cell(format_number(p, 4), f"threshold {format_number(one.threshold, 4)}"), place, str(row.fold)]
