"""Report section: number of patients and positives, and the precision that they allow."""

from collections.abc import Iterator

import pandas as pd

from ichkit.core.roles import LOCKED, title_of
from ichkit.show.blocks import Block, Prose, Section
from ichkit.show.table import NOTHING, Cell, Table, format_number
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.report.sentences.counts import say_count
from ichkit.stages.scores.book import STUDIES, Group, Score, external_studies
from ichkit.validation.sample_size import auc_half_width, positives_needed
from ichkit.validation.scores import ROC_AUC

STATED_AUC = 0.9
"""The AUC that a width is expected at before anything is scored."""
WANTED_HALF_WIDTH = 0.05
_FORMULA = (
    "Expected: z times the standard error of an AUC A with p positive and n negative independent studies, the square "
    "root of (A (1 - A) + (p - 1)(A / (2 - A) - A^2) + (n - 1)(2 A^2 / (1 + A) - A^2)) / (p n) (Hanley & McNeil, "
    "Radiology 143, 1982). Obtained: half of the interval of this page, from resampled patients. Needed: positives "
    f"for a half-width of {WANTED_HALF_WIDTH:g} at the AUC found (before scoring: at {STATED_AUC:g}) and the share of "
    "positives found."
)


def make_sample_size(report: ReportData) -> Section:
    """The sample, its expected and obtained precision per class, and positives in the training part of each fold."""
    train = report.prepared.split("train")
    counts = {"patients": train.patient_id.nunique(), "studies": train.study_id.nunique(), "slices": len(train)}
    found = ", ".join(say_count(number, unit) for unit, number in counts.items())
    text = (
        f"Training data: {found}. All usable scans of the data sources were used; no sample size was calculated "
        "beforehand by this tool. The tables say what precision the sample allows."
    )
    blocks: list[Block] = [Prose(text)]
    blocks += [_precision(report, title, group) for title, group in _groups(report)]
    blocks.append(_events(report, train))
    return Section("sample-size", "Sample size and precision", blocks)


def count_studies(report: ReportData, group: Group, name: str) -> tuple[int, int]:
    """Positive studies and studies with a known label of a class: those scored, else those stored."""
    if report.sources:
        score = _score(report, group, name)
        return score.n_positive, score.n
    studies = report.prepared.studies
    is_own = (studies.split == group.split) & ((studies.dataset == group.dataset) if group.dataset else True)
    known = studies[is_own & (studies.num_slices > 0)][name].dropna()
    return int(known.sum()), len(known)


def _groups(report: ReportData) -> Iterator[tuple[str, Group]]:
    """Out-of-fold studies, and the studies of each external set that has some."""
    yield "out of fold", STUDIES
    studies = report.prepared.studies
    with_slices = set(studies[studies.num_slices > 0].dataset)
    for dataset in report.prepared.external_sets():
        if dataset in with_slices and dataset != LOCKED:
            yield title_of(dataset), external_studies(dataset)


def _score(report: ReportData, group: Group, name: str) -> Score:
    return report.scores.find(report.best, ROC_AUC, name, group)


def _precision(report: ReportData, title: str, group: Group) -> Table:
    """One row per class: positives, the expected half-width, and the one obtained."""
    level, rows = report.config.evaluate.level, []
    for name in report.task.classes:
        positive, known = count_studies(report, group, name)
        score = _score(report, group, name) if report.sources else Score()
        stated = auc_half_width(STATED_AUC, positive, known - positive, level)
        expected = auc_half_width(score.value, positive, known - positive, level)
        auc = score.value if report.sources else STATED_AUC
        needed = positives_needed(auc, positive / known, WANTED_HALF_WIDTH, level) if known else None
        cells: list[Cell | str] = [
            name,
            Cell(f"{positive:,}", f"/ {known:,}"),
            _plus_minus(stated),
            format_number(score.value, 3),
            _plus_minus(expected),
            _plus_minus((score.high - score.low) / 2),
            NOTHING if needed is None else f"{needed:,}",
        ]
        rows.append(cells)
    columns = ("class", "positive", f"expected\nat {STATED_AUC:g}", "AUC", "expected\nat it", "obtained", "needed")
    return Table(f"Half-width of the {level:.0%} interval of the AUC, studies {title}", columns, rows, note=_FORMULA)


def _plus_minus(value: float) -> str:
    return NOTHING if pd.isna(value) else f"±{value:.3f}"


def _events(report: ReportData, train: pd.DataFrame) -> Table:
    """Positives of each class in the training part of a fold, the fold with the fewest and the one with the most."""
    rows: list[list[Cell | str]] = []
    for name in report.task.classes:
        positive = train[train[name] == 1]
        parts = [positive[positive.fold != k] for k in report.prepared.fold_numbers]
        units = ("patient_id", "study_id", "slice_id")
        rows.append([name, *(_range([part[unit].nunique() for part in parts]) for unit in units)])
    columns = ("class", "patients", "studies", "slices")
    return Table("Positives in the training part of a fold, fewest to most", columns, rows)


def _range(counts: list[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
