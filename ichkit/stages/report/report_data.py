"""The input of a report: the prepared data, every source, best first, and their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.roles import title_of
from ichkit.core.tasks import Task
from ichkit.imaging.store import Prepared
from ichkit.show.drawing import Series
from ichkit.show.table import Cell
from ichkit.sources.table import PHANTOM, SOURCES
from ichkit.stacking.table import BASE
from ichkit.stages.scores.book import SLICES, STUDIES, Group, Score, ScoreBook, external_slices, external_studies
from ichkit.stages.scores.score_source import OutOfFold, read_external_slices, read_external_studies, read_out_of_fold
from ichkit.validation.catalog import HAND, Source, load_out_of_fold
from ichkit.validation.tallies import ScoredRows
from ichkit.work.artifacts import Manifest, has_artifact, read_manifest
from ichkit.work.folder import WorkFolder, is_name

_SHOWN_CHARACTERS = 6


@dataclass(frozen=True)
class Scorable:
    """Rows that the best source is judged on.

    Attributes:
        name: unique in the page, e.g. "studies, out of fold".
        group: their place in the scores.
        unit: what a row is: "slices" or "studies".
    """

    name: str
    group: Group
    rows: ScoredRows
    unit: str

    @property
    def key(self) -> str:
        """Unique in the page, for ids."""
        place = self.group
        return f"{place.dataset}-slice" if place.dataset and place.level == "slice" else place.dataset or place.level

    @property
    def title(self) -> str:
        """The name with a capital."""
        return self.name[0].upper() + self.name[1:]

    def positives(self, c: int) -> Cell:
        """Positive rows of a class above all rows of known label."""
        labels = self.rows.labels[:, c]
        return Cell(f"{int((labels == 1).sum()):,}", f"/ {int((~np.isnan(labels)).sum()):,}")


@dataclass(frozen=True)
class ReportData:
    """Everything that the sections of the page are built from.

    Attributes:
        data: origin of the scans: "rsna", "phantom", "folder".
        book: every score; None if nothing is trained.
        sites: source to the public and private score of the competition site.
    """

    config: Config
    work: WorkFolder
    prepared: Prepared
    data: str
    book: ScoreBook | None
    sites: Mapping[str, tuple[float | None, float | None]]

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.prepared.task

    def is_phantom(self, dataset: str) -> bool:
        """Whether a data set is synthetic; of stores of earlier versions, whether any of theirs is."""
        facts = self.prepared.manifest.facts
        return bool(facts.get(dataset, {}).get(PHANTOM, facts.get("data") == "phantom"))

    def name_set(self, dataset: str) -> str:
        """The name of an external set as headings show it, with what a reader must not overlook."""
        return f"{title_of(dataset)} (phantom)" if self.is_phantom(dataset) else title_of(dataset)

    @property
    def pixel_unit(self) -> str:
        """What the windows count: HU of CT, or the intensities of MR after its steps."""
        return "stored intensities" if self.prepared.manifest.settings.get("sequences") else "HU"

    @property
    def task_order(self) -> list[int]:
        """The classes by number, the headline class first."""
        main = self.task.headline_index
        return [main, *(c for c in range(self.task.num_classes) if c != main)]

    @property
    def scores(self) -> ScoreBook:
        """Every score; must not be called if nothing is trained."""
        assert self.book is not None
        return self.book

    @property
    def sources(self) -> list[Source]:
        """Every source, best first; empty if nothing is trained."""
        return [] if self.book is None else self.book.sources

    @property
    def best(self) -> Source:
        """The first source of the leaderboard; must not be called if nothing is trained."""
        return self.sources[0]

    @cached_property
    def searches(self) -> dict[str, Manifest]:
        """Name to manifest of every finished search over settings."""
        folders = sorted(self.work.searches.iterdir()) if self.work.searches.is_dir() else []
        return {one.name: read_manifest(one) for one in folders if is_name(one.name) and has_artifact(one)}

    @cached_property
    def trials(self) -> frozenset[str]:
        """The runs of the trials of these searches."""
        inputs = (path for search in self.searches.values() for path in search.inputs if path.count("/") > 1)
        return frozenset(path.split("/")[0] for path in inputs)

    @cached_property
    def left_out(self) -> frozenset[str]:
        """Trials that only the whole leaderboard shows: none is the best of its search, or of a stack or blend."""
        used = {run for source in self.sources if not source.is_run for run in source.runs}
        best = {str(search.facts["best"]) for search in self.searches.values()}
        return self.trials - used - best - {source.name for source in self.sources[:1]}

    @cached_property
    def shown(self) -> list[Source]:
        """The sources that the sections show, best first: all but the trials that are left out."""
        return [source for source in self.sources if source.name not in self.left_out]

    @cached_property
    def peers(self) -> list[Source]:
        """The shown sources with the same folds as the best one, best first: only these are comparable."""
        return [source for source in self.shown if source.folds == self.best.folds]

    @cached_property
    def stages(self) -> list[Source]:
        """The sources of the best stack and its runs, best first; all peers if the best source is a run.

        A blend by hand has the stacks of its members.
        """
        if self.best.is_run:
            return self.peers
        own = [source for source in self.peers if source is self.best or source.name in self.best.members]
        stacks = {PurePosixPath(source.path).parent for source in own if not source.is_run}
        return [
            source
            for source in self.peers
            if (source.name in self.best.runs if source.is_run else PurePosixPath(source.path).parent in stacks)
        ]

    @cached_property
    def second(self) -> Source | None:
        """The best second stage among the peers; None if nothing is stacked."""
        stacks = (source for source in self.peers if not source.is_run)
        return next((source for source in stacks if source.kind not in (BASE, HAND)), None)

    @cached_property
    def first(self) -> Source | None:
        """The best run of the second stage, or without one the best run; heat maps are drawn from its networks.

        None if the runs of the stack, or some of their folds, no longer exist.
        """
        runs = self.second.runs if self.second is not None else self.best.runs
        return next((source for source in self.peers if source.is_run and source.name in runs), None)

    def drawer_of(self, name: str) -> Source | None:
        """The run whose networks draw the heat maps of a class: the best one of the stack that predicts it."""
        runs = self.second.runs if self.second is not None else self.best.runs
        own = (source for source in self.peers if source.is_run and source.name in runs)
        return next((source for source in own if name in source.scope.classes), None)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows of `slices.parquet` that the peers were scored on, in the order of their tables."""
        train = self.prepared.split("train")
        return train[train.fold.isin(self.best.folds)].reset_index(drop=True)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N, C) float64 labels of `rows`: 0, 1, or NaN if unknown."""
        return self.rows[list(self.task.classes)].to_numpy(np.float64, na_value=np.nan)

    @cached_property
    def scored(self) -> OutOfFold:
        """The out-of-fold rows of the best source, as they were scored."""
        return read_out_of_fold(self.best, self.prepared, self.config)

    def external_studies(self, dataset: str) -> ScoredRows:
        """The studies of an external set with the probabilities of the best source, by study_id."""
        return read_external_studies(self.best, self.prepared, dataset, self.config)

    @cached_property
    def groups(self) -> list[Scorable]:
        """The rows that the best source is judged on: studies and slices out of fold, studies of external sets."""
        own = [
            Scorable("studies, out of fold", STUDIES, self.scored.studies, "studies"),
            Scorable("slices, out of fold", SLICES, self.scored.slices, "slices"),
        ]
        outside = self.scores.external_sets
        for name in outside:
            shown = title_of(name)
            own.append(Scorable(f"studies of {shown}", external_studies(name), self.external_studies(name), "studies"))
            if self.scores.has_slices(self.best, name):
                rows = read_external_slices(self.best, self.prepared, name, self.config)
                own.append(Scorable(f"slices of {shown}", external_slices(name), rows, "slices"))
        return own

    def full_id(self, row: int, column: str) -> str:
        """The id of a row of `rows` for a click on its end; empty unless the ids of its data set are public.

        Args:
            column: "slice_id" or "study_id".
        """
        source = SOURCES.get(str(self.rows.dataset.iloc[row]))
        return str(self.rows[column].iloc[row]) if source is not None and source.has_public_ids else ""

    def probabilities(self, source: Source) -> np.ndarray:
        """(N, C) float64 out-of-fold probabilities of `rows` by one of the peers."""
        return load_out_of_fold(source)[self.task.probability_columns].to_numpy(np.float64)


def make_series(name: str, scores: Sequence[Score]) -> Series:
    """Scores with their intervals, as a series to draw."""
    ends = [[getattr(score, end) for score in scores] for end in ("value", "low", "high")]
    return Series(name, *(np.array(values, np.float64) for values in ends))


def shorten(name: str) -> str:
    """The last characters of an ID: enough to find its row, too few to identify it.

    Example:
        >>> shorten("ID_89d2a1959")
        '…2a1959'
    """
    return "…" + name[-_SHOWN_CHARACTERS:]
