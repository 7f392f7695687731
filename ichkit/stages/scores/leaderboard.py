"""`ichkit leaderboard`: every source with its scores in one table, rebuilt from the artifacts by each call."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError, shorten
from ichkit.core.roles import STANDARD_EXTERNAL
from ichkit.core.tasks import Task
from ichkit.show.latex import to_latex
from ichkit.show.markdown import to_markdown
from ichkit.show.plan import Forecast
from ichkit.show.spreadsheet import to_csv
from ichkit.show.table import Table
from ichkit.stages.scores import evaluate, tables
from ichkit.stages.scores.book import ScoreBook, external_studies, open_book
from ichkit.stages.scores.summary import with_data_note
from ichkit.validation.catalog import Source
from ichkit.validation.notes import is_csv_unchanged, note_path, read_note, read_present, record_scores
from ichkit.validation.scores import LOG_LOSS, MEAN_CLASS, ROC_AUC
from ichkit.work.artifacts import encode_table, write_bytes_atomically
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import holding

BOARD_NAME = "leaderboard.csv"
_FIRST_COLUMNS = b"rank,name,kind,"
PRINTERS: dict[str, Callable[[Table], bytes]] = {
    ".csv": to_csv,
    ".md": lambda table: to_markdown(table).encode(),
    ".tex": lambda table: to_latex(table, "tab:leaderboard").encode(),
}
"""Suffix of an exported leaderboard to what prints it."""


@dataclass(frozen=True)
class LeaderboardOptions:
    """Options of `leaderboard`.

    Attributes:
        record: the submission whose Kaggle scores are recorded; None records nothing.
        public_score, private_score: those scores.
        submissions: the folder of leaderboard.csv.
        export: also write the printed table to this file, in the format of its suffix (`PRINTERS`).

    Raises:
        ConfigError: scores without a submission, or a suffix without a printer.
    """

    record: str | None = None
    public_score: float | None = None
    private_score: float | None = None
    submissions: Path = Path("submissions")
    export: Path | None = None

    def __post_init__(self) -> None:
        if self.record is None and (self.public_score is not None or self.private_score is not None):
            raise ConfigError("leaderboard: --public and --private need a submission: name it with --record NAME.")
        if self.export is not None and self.export.suffix not in PRINTERS:
            raise ConfigError(
                f"leaderboard --export: expected a file name that ends in {', '.join(PRINTERS)}, "
                f"found {shorten(self.export.name)}."
            )


@dataclass(frozen=True)
class LeaderboardPlan(evaluate.ScoredPlan):
    """The plan of `leaderboard`."""

    options: LeaderboardOptions

    @property
    def own_writes(self) -> tuple[Path, ...]:
        """The note of the submission whose scores are recorded, leaderboard.csv, and the exported table."""
        folder, record = self.options.submissions, self.options.record
        exported = () if self.options.export is None else (self.options.export,)
        return (*(() if record is None else (note_path(folder, record),)), folder / BOARD_NAME, *exported)

    def forecast(self) -> Forecast:
        """The leaderboard, after the missing scores."""
        return self.after_scoring(("rebuilds the leaderboard from the artifacts",))


def plan(config: Config, work: WorkFolder, options: LeaderboardOptions | None = None) -> LeaderboardPlan:
    """The plan of the leaderboard, with the missing scores; writes nothing.

    Raises:
        ConfigError: no such submission.
        ArtifactError: nothing is prepared or trained, or an artifact is damaged.
    """
    options = options or LeaderboardOptions()
    if options.record is not None:
        read_present(options.submissions, options.record)
    return LeaderboardPlan(evaluate.plan_scores(config, work), options)


@holding(lambda given: given["plan"].options.submissions)
def run(plan: LeaderboardPlan) -> pd.DataFrame:
    """Records the given Kaggle scores, writes `leaderboard.csv` and returns the leaderboard.

    Raises:
        ConfigError: no score is given for the submission, or leaderboard.csv is not one of ichkit.
        ArtifactError: the CSV is not the one described by `<name>.json`, or an artifact is damaged.
    """
    options, scoring = plan.options, plan.scoring
    refuse_foreign(options.submissions)
    if options.record is not None:
        record_scores(options.submissions, options.record, options.public_score, options.private_score)
    evaluate.make_current(scoring)
    book = open_book(scoring.work, scoring.prepared.task)
    board = make_board(book, scoring.work, options.submissions)
    write(board, options.submissions)
    if options.export is not None:
        write_bytes_atomically(options.export, PRINTERS[options.export.suffix](_print(book, board)))
    return board


def build(work: WorkFolder, submissions: Path, task: Task) -> pd.DataFrame:
    """One row per source, columns of `leaderboard.csv`, sorted by folds (most slices first), then by rank.

    Raises:
        ArtifactError: the scores are missing or older than a source, or a note is damaged.
    """
    return make_board(open_book(work, task), work, submissions)


def make_board(book: ScoreBook, work: WorkFolder, submissions: Path) -> pd.DataFrame:
    """The leaderboard of these scores; the columns of external sets besides the standard one come last."""
    board = pd.DataFrame([_board_row(source, book, work, submissions) for source in book.sources])
    # Only sources that were scored on the same rows and for every class are ranked together.
    is_ranked = np.array([source.scope.is_whole for source in book.sources])
    rank = board.groupby("folds", sort=False).cumcount() + 1
    board.insert(0, "rank", rank if is_ranked.all() else rank.astype("Int64").where(is_ranked))
    return board


@holding(lambda given: given["submissions"])
def write(board: pd.DataFrame, submissions: Path) -> Path:
    """Writes `leaderboard.csv` atomically; the same table gives the same bytes.

    Raises:
        ConfigError: a file of that name is no leaderboard of ichkit.
    """
    path = refuse_foreign(submissions)
    write_bytes_atomically(path, encode_table(board, path.suffix))
    return path


def refuse_foreign(submissions: Path) -> Path:
    """The path of the leaderboard, where there is no file yet or one that begins with its columns.

    Raises:
        ConfigError: there is another file of that name.
    """
    path = submissions / BOARD_NAME
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(_FIRST_COLUMNS)):
        raise ConfigError(
            f"{path}: expected no file or the leaderboard of ichkit, found another file, which is left unchanged. "
            "Move it away, or choose another folder with --submissions."
        )
    return path


def render(work: WorkFolder, board: pd.DataFrame, task: Task) -> Table:
    """The leaderboard as a table for the terminal.

    Args:
        board: from `build`.
    """
    return _print(open_book(work, task), board)


def _print(book: ScoreBook, board: pd.DataFrame) -> Table:
    return with_data_note(tables.board(book, read_sites(board)), book.data)


def read_sites(board: pd.DataFrame) -> dict[str, tuple[float | None, float | None]]:
    """Source to its public and private Kaggle score, NaN or None if none was recorded."""
    return dict(zip(board.name, zip(board.public_score, board.private_score, strict=True), strict=True))


def _board_row(source: Source, book: ScoreBook, work: WorkFolder, submissions: Path) -> dict[str, object]:
    """The row of one source, without its rank."""
    task, main = source.task, source.task.headline_class
    note = read_note(submissions, source.name)
    # A Kaggle score belongs to a CSV file; if the source changed since, the file is no longer its submission.
    is_present = (
        note is not None and note["tables"] == source.digests_of(work, "test") and is_csv_unchanged(submissions, note)
    )
    further = [name for name in book.external_sets if name != STANDARD_EXTERNAL]
    return {
        "name": source.name,
        "kind": source.kind,
        "data": source.data,
        "source": source.path,
        "cv_weighted_log_loss": book.loss(source).value,
        **{f"cv_{name}": book.find(source, LOG_LOSS, name).value for name in task.classes},
        f"cv_auc_{main}": book.find(source, ROC_AUC, main).value,
        **_external_columns(source, book, STANDARD_EXTERNAL),
        "folds": source.folds_label,
        "num_slices": book.loss(source).n or book.num_slices(source),
        "config_digest": source.config_digest,
        "git_commit": source.git_commit,
        "created_utc": source.created_utc,
        "public_score": note["public_score"] if note is not None and is_present else None,
        "private_score": note["private_score"] if note is not None and is_present else None,
        "submission": note["csv"] if note is not None and is_present else None,
        **{column: value for name in further for column, value in _external_columns(source, book, name).items()},
        **({"gain_kept": book.kept.get(source.name)} if book.kept else {}),
    }


def _external_columns(source: Source, book: ScoreBook, dataset: str) -> dict[str, float]:
    """The AUC of every class on an external set, the headline class first and with its interval last."""
    task, main, group = source.task, source.task.headline_class, external_studies(dataset)
    names = (main, *(name for name in task.classes if name != main), MEAN_CLASS)
    aucs = {name: book.find(source, ROC_AUC, name, group) for name in names}
    interval = {f"{dataset}_low_{main}": aucs[main].low, f"{dataset}_high_{main}": aucs[main].high}
    return {f"{dataset}_auc_{name}": auc.value for name, auc in aucs.items()} | interval
