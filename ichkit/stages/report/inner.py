"""Report section: decisions of each run at the thresholds of its validation patients, and those of readers beside."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ichkit.show.blocks import Block, Prose, Section
from ichkit.show.table import NOTHING, Cell, Table, format_interval, format_number
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.scores.book import STUDIES
from ichkit.stages.scores.protocols import read_reads, votes_of
from ichkit.stages.scores.score_source import OutOfFold, read_out_of_fold, seed_of_rows
from ichkit.validation.catalog import Source
from ichkit.validation.intervals import interval_of
from ichkit.validation.operating import PointCounts, count_decisions
from ichkit.validation.scores import ROC_AUC
from ichkit.validation.tallies import ScoredRows
from ichkit.validation.thresholds import YOUDEN_AIM, Decisions, accuracy, decide, sensitivity, specificity
from ichkit.work.artifacts import read_manifest, read_table
from ichkit.work.folder import THRESHOLDS_NAME

_RATES = {"sensitivity": sensitivity, "specificity": specificity, "accuracy": accuracy}
_COLUMNS = ("class", "threshold", *_RATES, "AUC", "positive")
_TEXT = (
    "Out-of-fold studies of every run that held out validation patients from its training part (train.validation). "
    "Each fold is decided at its own threshold, the best Youden's J (sensitivity + specificity - 1) of its validation "
    "patients, whom the network did not train on; no label of the held-out fold has a part in it. Intervals resample "
    "patients with the thresholds held fixed."
)
_READERS = (
    "Readers against the same labels, on the studies that they read. At least half of the readers of a study make the "
    "majority. Not the same studies as above where some were not read."
)
_MAJORITY = "majority of readers"


def make_inner(report: ReportData) -> Section | None:
    """The section; None if no run has thresholds of its own."""
    found = [(source, read_inner_thresholds(source)) for source in report.shown]
    tables: list[Block] = [_of_run(report, source, thresholds) for source, thresholds in found if thresholds]
    if not tables:
        return None
    readers = _of_readers(report)
    return Section("inner", "Decisions at thresholds of validation patients", [Prose(_TEXT), *tables, *readers])


def read_inner_thresholds(source: Source) -> dict[int, np.ndarray]:
    """The thresholds of each fold of a run, (C,) with NaN for classes without one; empty if a fold has none.

    Raises:
        ArtifactError: a file is damaged.
    """
    found: dict[int, np.ndarray] = {}
    if not source.is_run:
        return found
    for fold, path in zip(source.folds, source.paths("oof"), strict=True):
        folder = path.parent
        manifest = read_manifest(folder)
        if THRESHOLDS_NAME not in manifest.files:
            return {}
        table = read_table(folder / THRESHOLDS_NAME, manifest.sha256_of(THRESHOLDS_NAME)).set_index("class")
        found[fold] = table.threshold.reindex(list(source.task.classes)).to_numpy(np.float64)
    return found


def _of_run(report: ReportData, source: Source, thresholds: dict[int, np.ndarray]) -> Table:
    """The decisions of a run by class."""
    scored = read_out_of_fold(source, report.prepared, report.config)
    fold = scored.facts.fold.to_numpy(np.int64)[scored.first_of_study]
    counted = _count(report, scored.studies, decide(scored.studies.probabilities, thresholds, fold))
    rows: list[list[Cell | str]] = []
    for name in source.scope.classes:
        c = source.task.classes.index(name)
        area = report.scores.find(source, ROC_AUC, name, STUDIES)
        of_folds = np.array([values[c] for values in thresholds.values()])
        between = format_interval(of_folds.min(), of_folds.max(), 3)
        chosen = Cell(format_number(float(np.median(of_folds)), 3), between)
        rows.append([name, chosen, *_rates(report, counted, c), area.cell(4, 3), area.counts])
    note = "Threshold: the median over the folds; below, their range."
    return Table(f"{source.name}, studies out of fold", _COLUMNS, rows, note=note)


def _of_readers(report: ReportData) -> Iterator[Table]:
    """Sensitivity, specificity and accuracy of every reader and of their majority, for classes that were read."""
    scored = report.scored
    for dataset in report.rows.dataset.unique():
        reads = read_reads(report.prepared, str(dataset))
        if reads is None:
            continue
        rows = [line for c in report.task_order for line in _lines_of_class(report, scored, reads, c)]
        if rows:
            columns = ("class", "reader", *_RATES, "positive")
            yield Table(f"Readers of {dataset}", columns, rows, note=_READERS, num_text=2)


def _lines_of_class(report: ReportData, scored: OutOfFold, reads: pd.DataFrame, c: int) -> Iterator[list[Cell | str]]:
    """A row for each reader of a class, and one for their majority."""
    ids = pd.Index(scored.facts.study_id.to_numpy()[scored.first_of_study])
    name = report.task.classes[c]
    votes = votes_of(reads, ids, [name])[:, :, 0]  # (S, R)
    num_votes = (~np.isnan(votes)).sum(1)
    majority = np.where(num_votes > 0, 2 * np.nansum(votes, 1) >= num_votes, np.nan)
    each = {f"reader {number + 1}": votes[:, number] for number in range(votes.shape[1])}
    for reader, read in {**each, _MAJORITY: majority}.items():
        is_read = ~np.isnan(read)
        labels = np.full_like(scored.studies.labels, np.nan)
        labels[is_read, c] = scored.studies.labels[is_read, c]
        known = ~np.isnan(labels[:, c])
        if not known.any():
            continue
        is_yes = np.zeros(labels.shape, bool)
        is_yes[:, c] = read == 1
        own = ScoredRows(scored.studies.place, scored.studies.probabilities, labels, scored.studies.members)
        counted = _count(report, own, Decisions(is_yes, np.ones(labels.shape[1], bool)))
        positives = Cell(f"{int((labels[:, c] == 1).sum()):,}", f"/ {int(known.sum()):,}")
        yield [name, reader, *_rates(report, counted, c), positives]


def _count(report: ReportData, rows: ScoredRows, decisions: Decisions) -> PointCounts:
    settings = report.config.evaluate
    seed = seed_of_rows(rows, report.config)
    return count_decisions(rows, {YOUDEN_AIM: decisions}, num_draws=settings.num_draws, seed=seed)[YOUDEN_AIM]


def _rates(report: ReportData, counted: PointCounts, c: int) -> list[Cell]:
    """Each rate of a class above its interval; a dash where a fold has no threshold."""
    cells = []
    for measure in _RATES.values():
        value = float(measure(counted.counts[c]))
        if np.isnan(value):
            cells.append(Cell(NOTHING))
            continue
        interval = interval_of(measure(counted.draws[:, c]), report.config.evaluate.level)
        cells.append(Cell(format_number(value, 4), format_interval(interval.low, interval.high, 3)))
    return cells
