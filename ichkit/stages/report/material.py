"""What a report is made from: the store, every source in the order of the board, and each score by its place."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.tasks import Task
from ichkit.imaging.store import Prepared
from ichkit.show.blocks import Cell
from ichkit.show.terminal import format_interval, format_number
from ichkit.stages.scores.evaluate import ScoreTables
from ichkit.validation.catalog import Source, load_out_of_fold
from ichkit.validation.scores import LOG_LOSS, POOLED
from ichkit.validation.studies import MAXIMUM
from ichkit.validation.subgroups import ALL
from ichkit.work.folder import WorkFolder

# Where a score was taken: out of fold by slice and by study, and on the studies of CQ500.
SLICES, STUDIES, CQ500 = "slices", "studies", "cq500"
_SHOWN_CHARACTERS = 6


@dataclass(frozen=True)
class Score:
    """One row of `scores.parquet`; NaN and 0 where it was not taken."""

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
    def counts(self) -> str:
        """Positive rows of all, e.g. "147/5,102"."""
        return f"{self.n_positive:,}/{self.n:,}"


class ScoreBook:
    """Every score by source, place, metric and class."""

    def __init__(self, scores: pd.DataFrame) -> None:
        is_cq500, aggregation = scores.dataset == "cq500", scores.aggregation
        place = pd.Series(np.where(scores.level == "slice", SLICES, STUDIES), index=scores.index)
        place = place.mask(is_cq500, CQ500).mask(is_cq500 & (aggregation != MAXIMUM), CQ500 + " " + aggregation)
        keys = zip(scores.source, place, scores.subgroup, scores.fold, scores.metric, scores["class"], strict=True)
        names = ["value", "low", "high", "n", "n_positive"]
        rows = scores[names].itertuples(index=False, name=None)
        self._scores = {key: Score(*row) for key, row in zip(keys, rows, strict=True)}

    def find(
        self, source: str, metric: str, name: str, place: str = SLICES, subgroup: str = ALL, fold: int = POOLED
    ) -> Score:
        """One score; an empty one where it was not taken.

        Args:
            name: the class, or what `validation.scores` calls all classes and their mean.
            place: SLICES, STUDIES, CQ500, or "cq500 " and another aggregation than the maximum.
        """
        return self._scores.get((source, place, subgroup, fold, metric, name), Score())

    def subgroups(self, source: str, place: str) -> list[str]:
        """The subgroups of a source in the order of the table."""
        own = (key[2] for key in self._scores if key[:2] == (source, place) and key[2] != ALL)
        return list(dict.fromkeys(own))

    def aggregations(self, source: str) -> list[str]:
        """The places in which the CQ500 studies of a source were scored, the maximum first."""
        return list(dict.fromkeys(key[1] for key in self._scores if key[0] == source and key[1].startswith(CQ500)))


@dataclass(frozen=True)
class Material:
    """Everything that is known when the page is written.

    Attributes:
        data: where the scans came from: "rsna", "phantom", "folder".
        sources: in the order of the board, best first; none where nothing is trained.
        tables: None without sources.
        board: from `leaderboard.build`; None without sources.
    """

    config: Config
    work: WorkFolder
    prepared: Prepared
    data: str
    sources: list[Source]
    tables: ScoreTables | None
    board: pd.DataFrame | None

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.prepared.task

    @property
    def best(self) -> Source:
        """What stands first on the board; only to be asked for where there are sources."""
        return self.sources[0]

    @cached_property
    def peers(self) -> list[Source]:
        """The sources of the same folds as the best one, best first: only they can be compared."""
        return [source for source in self.sources if source.folds == self.best.folds]

    @cached_property
    def stages(self) -> list[Source]:
        """The best source with all that it was made from and beside: the kinds of its stack, and its runs, best first.

        The peers where it is a run itself.
        """
        if self.best.kind == "base":
            return self.peers
        stack = PurePosixPath(self.best.path).parent
        return [
            source
            for source in self.peers
            if (source.name in self.best.runs if source.kind == "base" else PurePosixPath(source.path).parent == stack)
        ]

    @cached_property
    def second(self) -> Source | None:
        """The best second stage among the peers; None where nothing is stacked."""
        return next((source for source in self.peers if source.kind != "base"), None)

    @cached_property
    def first(self) -> Source | None:
        """The best run behind the second stage, or the best run where there is none; its networks are explained.

        None where a stack has outlived its runs, or some of their folds.
        """
        runs = self.second.runs if self.second is not None else self.best.runs
        return next((source for source in self.peers if source.kind == "base" and source.name in runs), None)

    @cached_property
    def book(self) -> ScoreBook:
        """The scores of all sources; only to be asked for where there are sources."""
        assert self.tables is not None
        return ScoreBook(self.tables.scores)

    @property
    def has_cq500(self) -> bool:
        """True where CQ500 was prepared."""
        return len(self.prepared.split("cq500")) > 0

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The slices of `slices.parquet` that the peers were scored on, in the order of their tables."""
        train = self.prepared.split("train")
        return train[train.fold.isin(self.best.folds)].reset_index(drop=True)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N, C) float64 of 0 and 1, NaN where unknown, of `rows`."""
        return self.rows[list(self.task.classes)].to_numpy(np.float64, na_value=np.nan)

    def probabilities(self, source: Source) -> np.ndarray:
        """(N, C) float64 out-of-fold probabilities of `rows` by one of the peers."""
        return load_out_of_fold(source)[self.task.probability_columns].to_numpy(np.float64)

    def class_loss(self, source: Source, name: str) -> Score:
        """The out-of-fold log loss of one class."""
        return self.book.find(source.name, LOG_LOSS, name)


def shorten(name: str) -> str:
    """The end of an id: enough to find its row again, too little to be an id.

    Example:
        >>> shorten("ID_89d2a1959")
        '…2a1959'
    """
    return "…" + name[-_SHOWN_CHARACTERS:]
