"""Look-up of the scores of a work folder, for the tables of the terminal and of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.show.table import NOTHING, Cell, format_interval, format_number
from ichkit.stages.scores.stored import ScoreTables, read_tables
from ichkit.validation.catalog import Source, find_sources
from ichkit.validation.comparisons import BASELINE, BOOTSTRAP, DELONG
from ichkit.validation.scores import ALL_CLASSES, LOG_LOSS, POOLED, ROC_AUC, WEIGHTED_LOG_LOSS
from ichkit.validation.studies import MAXIMUM
from ichkit.validation.subgroups import ALL
from ichkit.work.artifacts import has_artifact, read_manifest, read_table
from ichkit.work.folder import WorkFolder

PROOF_NAME = "proof.parquet"
"""In `work/proof`; written by `stages.scores.prove`."""
_TRAIN, _EXTERNAL = "train", "external"


@dataclass(frozen=True)
class Group:
    """The rows that a score is computed on.

    Attributes:
        split: "train", scored out of fold, or "external".
        level: "slice" or "study".
        aggregation: slice-to-study aggregation; "none" for slices.
        dataset: name of the external set; empty out of fold, because all training sets are pooled.
    """

    split: str
    level: str
    aggregation: str
    dataset: str = ""


SLICES = Group(_TRAIN, "slice", "none")
STUDIES = Group(_TRAIN, "study", MAXIMUM)


def external_studies(dataset: str, aggregation: str = MAXIMUM) -> Group:
    """The studies of an external set."""
    return Group(_EXTERNAL, "study", aggregation, dataset)


def external_slices(dataset: str) -> Group:
    """The slices of an external set whose label file is per slice."""
    return Group(_EXTERNAL, "slice", "none", dataset)


@dataclass(frozen=True)
class Score:
    """One row of `scores.parquet`; NaN and 0 if it was not computed."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    n_positive: int = 0

    def cell(self, digits: int, small_digits: int | None = None) -> Cell:
        """The value above its interval."""
        interval = format_interval(self.low, self.high, small_digits or digits)
        return Cell(format_number(self.value, digits), interval)

    @property
    def counts(self) -> Cell:
        """Positive rows above all rows."""
        return Cell(f"{self.n_positive:,}", f"/ {self.n:,}")

    @property
    def has_both(self) -> bool:
        """True where positive and negative rows were scored."""
        return 0 < self.n_positive < self.n


@dataclass(frozen=True)
class Choice:
    """The choice of a source as the best of several by its loss.

    Attributes:
        num_sources: sources of the same folds, itself included.
        optimism: how much higher its loss is expected to be on new patients, for having been chosen.
        corrected: its loss with that added.
        share: of the bootstrap samples in which it was chosen.
    """

    num_sources: int
    optimism: float
    corrected: float
    share: float


@dataclass(frozen=True)
class Difference:
    """The score of one source minus that of another, by paired bootstrap over patients or by DeLong's paired test."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan
    is_lower_better: bool = False

    def cell(self, digits: int, small_digits: int | None = None, *, is_sure: bool | None = None) -> Cell:
        """The difference above its interval; with a star and a good or bad tone if the interval excludes 0.

        Args:
            is_sure: decides on star and tone in place of the interval, e.g. by a corrected p-value.
        """
        if pd.isna(self.value):
            return Cell(NOTHING)
        small = small_digits or digits
        interval = "" if pd.isna(self.low) else f"{self.low:+z.{small}f} to {self.high:+z.{small}f}"
        is_better, is_worse = self.low > 0, self.high < 0
        if is_sure is not None:
            is_better, is_worse = is_sure and self.value > 0, is_sure and self.value < 0
        if self.is_lower_better:
            is_better, is_worse = is_worse, is_better
        star = "*" if is_better or is_worse else ""
        return Cell(f"{self.value:+z.{digits}f}{star}", interval, "good" if is_better else "bad" if is_worse else "")


class ScoreBook:
    """Every score and every comparison of the sources of a work folder.

    Attributes:
        sources: sorted by number of slices (descending), folds, loss, name.
        tables: the tables that the scores are read from.
        external_sets: names of the external sets that were scored.
        kept: source to the share of its out-of-fold gain that locked patients confirmed, where that was measured.

    Args:
        tables: from `stored.read_tables`.
        sources: the scored sources, at least one.
    """

    def __init__(self, tables: ScoreTables, sources: Sequence[Source], kept: Mapping[str, float] | None = None) -> None:
        self.tables, self.kept = tables, kept or {}
        scores = tables.scores
        dataset = scores.dataset.where(scores.split == _EXTERNAL, "")
        groups = zip(scores.split, scores.level, scores.aggregation, dataset, strict=True)
        keys = zip(scores.source, groups, scores.subgroup, scores.fold, scores.metric, scores["class"], strict=True)
        rows = scores[["value", "low", "high", "n", "n_positive"]].itertuples(index=False, name=None)
        self._scores = {
            (source, Group(*group), *rest): Score(*row) for (source, group, *rest), row in zip(keys, rows, strict=True)
        }
        self.external_sets = tuple(dict.fromkeys(dataset[dataset != ""]))
        self.sources = sorted(sources, key=self._rank)

    @property
    def task(self) -> Task:
        """The task that all sources predict."""
        return self.sources[0].task

    @property
    def data(self) -> str:
        """Origin of the scans of the sources, e.g. "phantom"."""
        return "+".join(sorted({source.data for source in self.sources}))

    def find(
        self, source: Source, metric: str, name: str, group: Group = SLICES, subgroup: str = ALL, fold: int = POOLED
    ) -> Score:
        """One score; an empty one if it was not computed.

        Args:
            name: the class, or the name in `validation.scores` of all classes or of their mean.
        """
        return self._scores.get((source.name, group, subgroup, fold, metric, name), Score())

    def loss(self, source: Source) -> Score:
        """The out-of-fold weighted log loss, by which sources are ranked."""
        return self.find(source, WEIGHTED_LOG_LOSS, ALL_CLASSES)

    def num_slices(self, source: Source) -> int:
        """Out-of-fold slices with a known label that the source was scored on."""
        return max(self.find(source, LOG_LOSS, name).n for name in source.task.classes)

    def subgroups(self, source: Source, group: Group) -> list[str]:
        """The subgroups of a source in the order of the table."""
        own = (key[2] for key in self._scores if key[:2] == (source.name, group) and key[2] != ALL)
        return list(dict.fromkeys(own))

    def aggregations(self, source: Source, dataset: str) -> list[str]:
        """The slice-to-study aggregations of an external set, the maximum first."""
        groups = (key[1] for key in self._scores if key[0] == source.name and key[1].dataset == dataset)
        return list(dict.fromkeys(group.aggregation for group in groups if group.level == "study"))

    def has_slices(self, source: Source, dataset: str) -> bool:
        """Whether slices of an external set were scored."""
        return bool(self.find(source, LOG_LOSS, self.task.headline_class, external_slices(dataset)).n)

    def thresholds(self, source: Source, group: Group, metric: str, name: str) -> tuple[float, list[float]]:
        """The threshold of a class chosen on all folds, and those chosen for each fold on the others."""
        of_folds = [self.find(source, metric, name, group, fold=fold).value for fold in source.folds]
        return self.find(source, metric, name, group).value, of_folds

    def unscored_classes(self, source: Source) -> list[str]:
        """The classes without both positives and negatives among the out-of-fold rows."""
        return [name for name in self.task.classes if not self.find(source, LOG_LOSS, name).has_both]

    def best_of_folds(self, source: Source) -> Source:
        """The best source that was scored on the same folds; only such sources are comparable."""
        same = [other for other in self.sources if (other.folds, other.scope) == (source.folds, source.scope)]
        return same[0]

    def choice(self, source: Source) -> Choice | None:
        """The choice that made a source the best of those of its folds; None for another source."""
        table = self.tables.selection
        found = table[(table.folds == source.folds_label) & (table.source == source.name)]
        if not len(found):
            return None
        row = found.iloc[0]
        return Choice(int(row.num_sources), float(row.optimism), float(row.corrected), float(row.share_chosen))

    def difference(self, source: Source, other: Source, metric: str, name: str, group: Group = SLICES) -> Difference:
        """The score of `source` minus that of `other`; an empty one if they were not compared."""
        pairs = self.tables.comparisons
        asked = (pairs.source == source.name) & (pairs.other == other.name) & _is_in(pairs, group)
        method = DELONG if group.split == _EXTERNAL else BOOTSTRAP
        found = pairs[asked & (pairs.metric == metric) & (pairs["class"] == name) & (pairs.method == method)]
        is_lower_better = metric in (WEIGHTED_LOG_LOSS, LOG_LOSS)
        if not len(found):
            return Difference(is_lower_better=is_lower_better)
        row = found.iloc[0]
        return Difference(row.difference, row.low, row.high, row.p_value, is_lower_better)

    def baseline(self, source: Source, dataset: str) -> pd.DataFrame:
        """The AUCs of the published baseline's own probabilities of an external set, and their paired tests, by class.

        Returns:
            Columns of `comparisons.parquet`, indexed by class; no row if the set has no such probabilities.
        """
        pairs = self.tables.comparisons
        is_asked = (pairs.source == source.name) & (pairs.other == BASELINE) & (pairs.dataset == dataset)
        return pairs[is_asked & (pairs.metric == ROC_AUC)].set_index("class")

    def _rank(self, source: Source) -> tuple[int, str, float, str]:
        loss = self.loss(source)
        value = np.inf if np.isnan(loss.value) else loss.value  # of a source that predicts only some of the classes
        return -self.num_slices(source), source.folds_label, value, source.name


def open_book(work: WorkFolder, task: Task) -> ScoreBook:
    """The scores of every source that exists now.

    Raises:
        ArtifactError: there are no scores, or they are of other tables or labels.
    """
    sources = find_sources(work, task)
    proof = read_proof(work, sources)
    kept = {} if proof is None else dict(zip(proof.source, proof.gain_kept.astype(float), strict=True))
    return ScoreBook(read_tables(work, sources), sources, kept)


def read_proof(work: WorkFolder, sources: Sequence[Source]) -> pd.DataFrame | None:
    """The rows of `prove.run` that are of the current tables of these sources; None if there is none.

    Raises:
        ArtifactError: the proof is damaged.
    """
    if not has_artifact(work.proof):
        return None
    manifest = read_manifest(work.proof)
    current = [
        source.name
        for source in sources
        if all(manifest.inputs.get(f"{source.name}:{name}") == digest for name, digest in source.digests.items())
    ]
    table = read_table(work.proof / PROOF_NAME, manifest.sha256_of(PROOF_NAME))
    table = table[table.source.isin(current)].reset_index(drop=True)
    return table if len(table) else None


def _is_in(table: pd.DataFrame, group: Group) -> pd.Series:
    """Mask of the rows of `comparisons.parquet` in that group."""
    is_in = (table.split == group.split) & (table.level == group.level) & (table.aggregation == group.aggregation)
    return is_in & (table.dataset == group.dataset) if group.dataset else is_in
