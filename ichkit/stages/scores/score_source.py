"""All scores of one source: out-of-fold slices and studies, folds, subgroups, and studies of the external sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config, EvaluateConfig
from ichkit.core.errors import ContractError
from ichkit.core.roles import LOCKED, Role
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import Task
from ichkit.imaging.store import Prepared
from ichkit.stages.scores.stored import BASELINE_SUFFIX, FACTS_SUFFIX
from ichkit.validation.catalog import Source, load_out_of_fold, load_split
from ichkit.validation.coherence import make_table_coherent
from ichkit.validation.comparisons import DRAWS_DTYPES, StudyScores
from ichkit.validation.delong import delong_auc
from ichkit.validation.folds import deal_patients
from ichkit.validation.scope import Scope, label_array
from ichkit.validation.scores import (
    ACCURACY_HALF,
    AVERAGE_PRECISION,
    CALIBRATION_ERROR,
    CURVE_DTYPES,
    DELONG_AUC,
    F1_BEST,
    F1_HALF,
    LOG_LOSS,
    POOLED,
    PRECISION_HALF,
    RECALL_HALF,
    ROC_AUC,
    SCORE_DTYPES,
    SENSITIVITY,
    SPECIFICITY,
    THRESHOLD_OF,
    WEIGHTED_LOG_LOSS,
    score_rows,
)
from ichkit.validation.selection import LossSums
from ichkit.validation.studies import AGGREGATIONS, MAXIMUM
from ichkit.validation.subgroups import ALL, SLICE_PARTITIONS, STUDY_PARTITIONS, find_subgroups, own_partitions
from ichkit.validation.tallies import ScoredRows
from ichkit.validation.thresholds import HALF, HALF_AIM, choose_thresholds, decide
from ichkit.work.artifacts import read_table
from ichkit.work.schemas import check_rows

_LOSSES = (WEIGHTED_LOG_LOSS, LOG_LOSS)
_RANKS = (ROC_AUC, AVERAGE_PRECISION)
_DECISIONS = (F1_HALF, PRECISION_HALF, RECALL_HALF, ACCURACY_HALF, F1_BEST, SENSITIVITY, SPECIFICITY)
# No loss by study: study maxima are not submitted anywhere.
_BY_STUDY = (*_RANKS, *_DECISIONS, CALIBRATION_ERROR)
_COMPARED = (*_LOSSES, ROC_AUC, F1_HALF)


@dataclass(frozen=True)
class SourceScores:
    """Tables about one source.

    Attributes:
        scores, curves, draws: columns of `SCORE_DTYPES`, of `CURVE_DTYPES`, and of `DRAWS_DTYPES` and `draws`.
        losses: the out-of-fold losses of its patients; None for scores that were read from a file.
    """

    scores: pd.DataFrame
    curves: pd.DataFrame
    draws: pd.DataFrame
    losses: LossSums | None = None


class _Collector:
    """Scores the groups of rows of one source one by one and collects the results."""

    def __init__(self, source: Source, config: Config) -> None:
        self.source, self._config = source, config
        self._scores: list[dict[str, Any]] = []
        self._curves: list[dict[str, Any]] = []
        self._draws: list[dict[str, Any]] = []

    def add(self, rows: ScoredRows, metrics: tuple[str, ...], *, is_compared: bool = False) -> None:
        """Scores a group; if it `is_compared`, its bootstrap draws are kept for the paired comparisons."""
        settings = self._config.evaluate
        scored = score_rows(
            rows,
            self.source.task,
            metrics,
            num_draws=settings.num_draws,
            level=settings.level,
            num_bins=settings.num_bins,
            seed=seed_of_rows(rows, self._config),
        )
        self._scores += scored.rows
        self._curves += scored.curve
        if is_compared:
            both = zip(scored.rows, scored.draws, strict=True)
            self._draws += [{**row, "draws": draws} for row, draws in both if row["metric"] in _COMPARED]

    def add_thresholds(self, place: dict[str, Any], thresholds: np.ndarray, labels: np.ndarray) -> None:
        """Adds (C,) thresholds with the counts of the (N, C) labels they were chosen on."""
        counts = zip(thresholds, (~np.isnan(labels)).sum(0), (labels == 1).sum(0), strict=True)
        self._add_plain(place, [(value, np.nan, np.nan, n, n_positive) for value, n, n_positive in counts])

    def add_delong(self, rows: ScoredRows) -> None:
        """Adds the AUC of each class with DeLong's interval; the rows must be independent."""
        scores = []
        for p, y in zip(rows.probabilities.T, rows.labels.T, strict=True):
            known = ~np.isnan(y)
            found = delong_auc(y[known], p[known], self._config.evaluate.level)
            scores.append((found.auc, found.low, found.high, known.sum(), (y == 1).sum()))
        self._add_plain(rows.place | {"metric": DELONG_AUC}, scores)

    def _add_plain(self, place: dict[str, Any], scores: Sequence[tuple[float, ...]]) -> None:
        """Adds scores without bootstrap draws: value, low, high, n and n_positive of each class."""
        names = ("value", "low", "high", "n", "n_positive")
        for label, numbers in zip(self.source.task.classes, scores, strict=True):
            self._scores.append({**place, "class": label, **dict(zip(names, numbers, strict=True)), "num_left_out": 0})

    def finish(self, losses: LossSums) -> SourceScores:
        """The collected results as tables with their dtypes, and the out-of-fold losses."""
        draws = self._make_table(self._draws, DRAWS_DTYPES)
        draws["draws"] = pd.Series([row["draws"] for row in self._draws], dtype=object)
        scores, curves = self._make_table(self._scores, SCORE_DTYPES), self._make_table(self._curves, CURVE_DTYPES)
        return SourceScores(scores, curves, draws, losses)

    def _make_table(self, rows: list[dict[str, Any]], dtypes: dict[str, str]) -> pd.DataFrame:
        columns = {name: [row[name] for row in rows] for name in dtypes if name != "source"}
        return pd.DataFrame({"source": self.source.name, **columns})[list(dtypes)].astype(dtypes)


def score_source(source: Source, prepared: Prepared, config: Config) -> SourceScores:
    """Every score of one source, with intervals, reliability curves and the draws for paired comparisons.

    Raises:
        ArtifactError: a table cannot be read.
        ContractError: a table does not contain exactly the expected slices, each with its own fold.
    """
    collector = _Collector(source, config)
    rows = read_out_of_fold(source, prepared, config)
    losses = LossSums.of(rows.slices)
    by_slice, by_study = _score_out_of_fold(collector, source, rows, prepared)
    del rows  # before the external sets: it is the largest table
    for dataset in scored_external_sets(prepared):
        table = load_external(source, prepared, dataset, config.evaluate)
        if has_slice_labels(prepared, dataset):
            slices = _slice_rows(table, prepared, dataset, source)
            _score_at_given(collector, slices, by_slice, (*_losses_of(source), *_BY_STUDY))
            for name, is_inside in slice_subgroups(prepared.split(dataset), prepared).items():
                collector.add(slices.take(is_inside, subgroup=name), (*_losses_of(source), ROC_AUC))
        _score_external(collector, table, dataset, by_study, prepared, config)
    return collector.finish(losses)


def seed_of_rows(rows: ScoredRows, config: Config) -> int:
    """The seed of the bootstrap of these rows: without the name of the source, so that sources share the draws."""
    return derive_seed(config.seed, "evaluate", rows.place["dataset"], rows.place["fold"])


def scored_external_sets(prepared: Prepared) -> list[str]:
    """The external sets that have slices; not the locked patients, which only `--prove` scores."""
    return [name for name in prepared.external_sets() if name != LOCKED and len(prepared.split(name))]


def load_external(source: Source, prepared: Prepared, dataset: str, settings: EvaluateConfig) -> pd.DataFrame:
    """The predictions of a source for the slices of an external set.

    Raises:
        ContractError: the slices differ from the prepared ones, or there is no table of that set.
    """
    slices = prepared.split(dataset)
    if not source.paths(dataset):
        raise ContractError(
            f"{source.path} ({dataset}): expected a table of the {len(slices)} prepared slices, found none. The set "
            f"was prepared later: run `{source.remedy}`."
        )
    table = load_split(source, dataset)
    _check_slices(table, slices, source, dataset)
    return _as_scored(table, source, settings)


def study_scores(
    table: pd.DataFrame,
    prepared: Prepared,
    dataset: str,
    aggregation: str,
    num_top: int,
    scope: Scope | None = None,
) -> StudyScores:
    """The studies of an external set's predictions table, with their labels, by study_id.

    Args:
        aggregation: a key of `AGGREGATIONS`.
        num_top: number of slices of an aggregation over the top slices.
        scope: of the source; labels outside it count as unknown.
    """
    task = prepared.task
    scores = AGGREGATIONS[aggregation].score(table, task, num_top).set_index("study_id")
    is_own = (prepared.studies.dataset == dataset) & (prepared.studies.split == Role.EXTERNAL)
    studies = (scope or Scope.of(task)).mask(prepared.studies[is_own].set_index("study_id"))
    place = {"dataset": dataset, "split": Role.EXTERNAL.value, "level": "study", "aggregation": aggregation}
    labels = studies.reindex(scores.index)[list(task.classes)].astype("Float64").astype("float64")
    return StudyScores(place, scores[task.probability_columns].astype("float64"), labels)


def missing_studies(prepared: Prepared, dataset: str) -> list[str]:
    """The sorted study_ids of an external set with labels but no slices."""
    is_own = (prepared.studies.dataset == dataset) & (prepared.studies.split == Role.EXTERNAL)
    without_series = prepared.manifest.facts.get(dataset, {}).get("missing_studies", [])
    return sorted({*prepared.studies.study_id[is_own], *without_series} - set(prepared.split(dataset).study_id))


def read_baseline(prepared: Prepared, dataset: str) -> StudyScores | None:
    """The published baseline's probabilities of the studies of an external set; None if it has none.

    Raises:
        ContractError: a column is missing, or a study has two rows.
    """
    file = f"{dataset}{BASELINE_SUFFIX}"
    if file not in prepared.manifest.files:
        return None
    path, columns = prepared.folder / file, prepared.task.probability_columns
    table = read_table(path)
    missing = [name for name in ("study_id", *columns) if name not in table]
    if missing or table.study_id.duplicated().any():
        raise ContractError(
            f"{path}: expected one row for each study with study_id and {', '.join(columns)}, found "
            f"{f'no column {missing[0]}' if missing else 'a study twice'}. Run `ichkit prepare --fresh` with its -c."
        )
    probabilities = table.set_index("study_id")[columns].dropna()
    return StudyScores({}, probabilities, pd.DataFrame(index=probabilities.index))


def _as_scored(table: pd.DataFrame, source: Source, settings: EvaluateConfig) -> pd.DataFrame:
    """The table that is scored: made coherent if `coherent_base` is set, else unchanged."""
    return make_table_coherent(table, source.task) if settings.coherent_base else table


@dataclass(frozen=True)
class OutOfFold:
    """The labelled rows that a source is scored on.

    Attributes:
        facts: the rows of `slices.parquet`, in the order of `slices`.
        slices, studies: labels that the source is not asked count as unknown; a study by the maximum over its slices.
        part: (N,) the part of each slice, whose thresholds are chosen on the others: its fold, or of a single fold one
            of several parts.
        part_of_study: (S,) the same of each study.
        first_of_study: (S,) the row of the first slice of each study.
    """

    facts: pd.DataFrame
    slices: ScoredRows
    studies: ScoredRows
    part: np.ndarray
    part_of_study: np.ndarray
    first_of_study: np.ndarray


def read_out_of_fold(source: Source, prepared: Prepared, config: Config) -> OutOfFold:
    """The out-of-fold rows of a source, by study_id and slice_index.

    Raises:
        ArtifactError: a table cannot be read.
        ContractError: the table does not contain exactly the expected slices, each with its own fold.
    """
    task = prepared.task
    train = prepared.split("train")
    is_own = train.fold.isin(source.folds)
    if not is_own.all():  # else it is no further copy of the table
        train = train[is_own].reset_index(drop=True)
    table = _as_scored(load_out_of_fold(source), source, config.evaluate)
    _check_slices(table, train, source, "oof")
    check_rows(table, source.path, train)
    part = _parts_of(source, train, config)
    place: dict[str, str | int] = {
        "dataset": "+".join(sorted(train.dataset.unique())),
        "split": "train",
        "subgroup": ALL,
        "fold": POOLED,
    }
    patient, _ = pd.factorize(train.patient_id, sort=True)
    slices = ScoredRows(
        place | {"level": "slice", "aggregation": "none"},
        table[task.probability_columns].to_numpy(np.float64),
        label_array(source.scope.mask(train), task),
        patient,
    )
    first = np.flatnonzero(table.study_id.ne(table.study_id.shift()))
    studies = ScoredRows(
        place | {"level": "study", "aggregation": MAXIMUM},
        np.maximum.reduceat(slices.probabilities, first),
        label_array(source.scope.mask(find_study_labels(train, task)), task),
        patient[first],
    )
    return OutOfFold(train, slices, studies, part, part[first], first)


def read_external_studies(source: Source, prepared: Prepared, dataset: str, config: Config) -> ScoredRows:
    """The studies of an external set by the maximum over their slices, by study_id; raises as `load_external`."""
    settings = config.evaluate
    table = load_external(source, prepared, dataset, settings)
    return study_rows(study_scores(table, prepared, dataset, MAXIMUM, settings.num_top, source.scope), prepared)


def has_slice_labels(prepared: Prepared, dataset: str) -> bool:
    """Whether slices of an external set have labels of their own."""
    return bool(prepared.split(dataset)[list(prepared.task.classes)].notna().any(axis=None))


def read_external_slices(source: Source, prepared: Prepared, dataset: str, config: Config) -> ScoredRows:
    """The slices of an external set, by study_id and slice_index; raises as `load_external`."""
    return _slice_rows(load_external(source, prepared, dataset, config.evaluate), prepared, dataset, source)


def _slice_rows(table: pd.DataFrame, prepared: Prepared, dataset: str, source: Source) -> ScoredRows:
    """The slices of an external set; the bootstrap resamples their patients."""
    slices, task = prepared.split(dataset), prepared.task
    place: dict[str, str | int] = {"dataset": dataset, "split": Role.EXTERNAL.value, "level": "slice"}
    place |= {"aggregation": "none", "subgroup": ALL, "fold": POOLED}
    probabilities = table[task.probability_columns].to_numpy(np.float64)
    return ScoredRows(place, probabilities, label_array(source.scope.mask(slices), task), slices.patient_id.to_numpy())


def study_rows(scored: StudyScores, prepared: Prepared) -> ScoredRows:
    """The studies of an external set; the bootstrap resamples their patients."""
    place: dict[str, str | int] = {**scored.place, "subgroup": ALL, "fold": POOLED}
    slices = prepared.split(scored.place["dataset"])
    patients = slices.groupby("study_id").patient_id.first().reindex(scored.probabilities.index)
    return ScoredRows(place, scored.probabilities.to_numpy(), scored.labels.to_numpy(), patients.to_numpy())


def _losses_of(source: Source) -> tuple[str, ...]:
    """The losses of a source: the weighted loss of some classes, or of some slices, compares with no other."""
    return _LOSSES if source.scope.is_whole else (LOG_LOSS,)


def _score_out_of_fold(
    collector: _Collector, source: Source, rows: OutOfFold, prepared: Prepared
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores the out-of-fold rows; returns the thresholds of all slices, and of all studies, by aim, (C,) each."""
    slices, fold = rows.slices, rows.facts.fold.to_numpy(np.int64)
    losses = _losses_of(source)
    of_slices = _score_with_thresholds(collector, slices, rows.part, source, (*losses, *_BY_STUDY))
    chosen = _score_with_thresholds(collector, rows.studies, rows.part_of_study, source, _BY_STUDY)
    for k in source.folds:
        collector.add(slices.take(fold == k, fold=k), (*losses, ROC_AUC))
    for name, is_inside in slice_subgroups(rows.facts, prepared).items():
        collector.add(slices.take(is_inside, subgroup=name), (*losses, ROC_AUC))
    return of_slices, chosen


def slice_subgroups(slices: pd.DataFrame, prepared: Prepared) -> dict[str, np.ndarray]:
    """The subgroups of slices: those of every store, and those of the facts that were kept of their studies."""
    return find_subgroups(slices, {**SLICE_PARTITIONS, **own_partitions(prepared.study_groups())})


def find_study_labels(slices: pd.DataFrame, task: Task) -> pd.DataFrame:
    """(S rows) a column per class, by study: 1 if a slice is positive, else missing if one is unknown, else 0.

    Args:
        slices: study_id and a column per class, with the rows of a study together.
    """
    labels = label_array(slices, task)
    first = np.flatnonzero(slices.study_id.ne(slices.study_id.shift()))
    is_positive = np.maximum.reduceat(labels == 1, first)
    highest = np.where(is_positive, 1.0, np.maximum.reduceat(labels, first))
    return pd.DataFrame(highest, columns=list(task.classes))


def _parts_of(source: Source, train: pd.DataFrame, config: Config) -> np.ndarray:
    """(N,) parts, each with thresholds chosen on the others: the folds, or parts of a single fold."""
    num_parts = min(config.evaluate.num_parts, train.patient_id.nunique())
    if len(source.folds) > 1 or num_parts < 2:
        return train.fold.to_numpy(np.int64)
    return deal_patients(train, num_parts, source.task.classes, derive_seed(config.seed, "evaluate parts"))


def _score_with_thresholds(
    collector: _Collector, rows: ScoredRows, part: np.ndarray, source: Source, metrics: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Scores rows at thresholds chosen on the other parts; returns those chosen on all rows, by aim."""
    parts = [int(number) for number in np.unique(part)]
    chosen = choose_thresholds(rows.probabilities, rows.labels, rows.order, part, [*parts, POOLED])
    half = dict.fromkeys(parts, np.full(source.task.num_classes, HALF))
    decisions = {HALF_AIM: decide(rows.probabilities, half, part)}
    for aim in THRESHOLD_OF:
        decisions[aim] = decide(rows.probabilities, {number: chosen[number][aim] for number in parts}, part)
    collector.add(rows.with_decisions(decisions), metrics, is_compared=True)
    # Parts of a single fold are not in the table.
    for number in [*(source.folds if len(source.folds) > 1 else ()), POOLED]:
        labels = rows.labels[part != number]
        for aim, name in THRESHOLD_OF.items():
            collector.add_thresholds(rows.place | {"fold": number, "metric": name}, chosen[number][aim], labels)
    return chosen[POOLED]


def _score_external(
    collector: _Collector,
    table: pd.DataFrame,
    dataset: str,
    chosen: dict[str, np.ndarray],
    prepared: Prepared,
    config: Config,
) -> None:
    """Scores the studies of an external set; decisions are made with thresholds chosen on the out-of-fold studies."""
    settings = config.evaluate
    for aggregation in AGGREGATIONS:
        scored = study_scores(table, prepared, dataset, aggregation, settings.num_top, collector.source.scope)
        rows = study_rows(scored, prepared)
        if aggregation != MAXIMUM:
            collector.add(rows, _RANKS)
            continue
        _score_at_given(collector, rows, chosen, _BY_STUDY)
        collector.add_delong(rows)
        facts = _study_facts(scored.probabilities.index, prepared, dataset)
        partitions = {**STUDY_PARTITIONS, **own_partitions(prepared.study_groups())}
        for name, is_inside in find_subgroups(facts, partitions).items():
            collector.add(rows.take(is_inside, subgroup=name), (ROC_AUC,))


def _score_at_given(
    collector: _Collector, rows: ScoredRows, chosen: dict[str, np.ndarray], metrics: tuple[str, ...]
) -> None:
    """Scores rows at thresholds that other rows gave, by aim, (C,) each."""
    anywhere = np.zeros(len(rows.labels), np.int64)
    thresholds = {HALF_AIM: np.full(rows.labels.shape[1], HALF), **chosen}
    decisions = {aim: decide(rows.probabilities, {0: of_class}, anywhere) for aim, of_class in thresholds.items()}
    collector.add(rows.with_decisions(decisions), metrics, is_compared=True)


def _study_facts(study_ids: pd.Index, prepared: Prepared, dataset: str) -> pd.DataFrame:
    """The batch and gap_mm (median over its slices) of each study, by study_id; missing if unknown."""
    gap_mm = prepared.split(dataset).groupby("study_id").gap_mm.median().reindex(study_ids)
    batch = pd.Series(pd.NA, index=study_ids, dtype="str")
    name = f"{dataset}{FACTS_SUFFIX}"
    if name in prepared.manifest.files:
        facts = prepared.read_table(name)
        batch = facts.set_index("study_id").batch.reindex(study_ids)
    facts = pd.DataFrame({"gap_mm": gap_mm, "batch": batch})
    return facts.assign(dataset=dataset, study_id=study_ids.to_numpy())


def _check_slices(table: pd.DataFrame, slices: pd.DataFrame, source: Source, split: str) -> None:
    """Raises ContractError unless the table has exactly these slices in this order."""
    if table.slice_id.equals(slices.slice_id):
        return
    num_differ = len(set(table.slice_id) ^ set(slices.slice_id))
    raise ContractError(
        f"{source.path} ({split}): expected exactly the {len(slices)} prepared slices in their order, found "
        f"{len(table)} rows, {num_differ} of other slices. The scans were prepared again since: run `{source.remedy}`."
    )
