"""`ichkit leaderboard`: every source with its scores in one table, rebuilt from the artifacts by each call."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError, shorten
from ichkit.core.tasks import Task
from ichkit.show.latex import to_latex
from ichkit.show.markdown import to_markdown
from ichkit.show.plan import Forecast
from ichkit.show.table import Table
from ichkit.stages.scores import evaluate, tables
from ichkit.stages.scores.board import LOSS_COLUMN, make_board, track
from ichkit.stages.scores.book import ScoreBook, open_book
from ichkit.stages.scores.costs import choose_pareto, measure_costs
from ichkit.stages.scores.summary import with_data_note
from ichkit.validation.notes import note_path, read_present, record_scores
from ichkit.work.artifacts import encode_table, write_bytes_atomically
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import holding

BOARD_NAME = "leaderboard.csv"
_FIRST_COLUMNS = b"rank,name,kind,"
_LONGEST_HEADER = 2**16
PRINTERS: dict[str, Callable[[Table], bytes]] = {
    ".md": lambda table: to_markdown(table).encode(),
    ".tex": lambda table: to_latex(table, "tab:leaderboard").encode(),
}
"""Suffix of an exported leaderboard to what prints it as a table; a CSV has its numbers in full."""
_SUFFIXES = (".csv", *PRINTERS)


@dataclass(frozen=True)
class LeaderboardOptions:
    """Options of `leaderboard`.

    Attributes:
        record: the submission whose Kaggle scores are recorded; None records nothing.
        public_score, private_score: those scores.
        submissions: the folder of leaderboard.csv.
        pareto: show only sources that no other beats in both loss and prediction time; leaderboard.csv has all.
        export: also write the shown sources to this file: CSV with every column and the costs, or a table (`PRINTERS`).

    Raises:
        ConfigError: scores without a submission, or a suffix without a printer.
    """

    record: str | None = None
    public_score: float | None = None
    private_score: float | None = None
    submissions: Path = Path("submissions")
    pareto: bool = False
    export: Path | None = None

    def __post_init__(self) -> None:
        if self.record is None and (self.public_score is not None or self.private_score is not None):
            raise ConfigError("leaderboard: --public and --private need a submission: name it with --record NAME.")
        if self.export is not None and self.export.suffix not in _SUFFIXES:
            raise ConfigError(
                f"leaderboard --export: expected a file name that ends in {', '.join(_SUFFIXES)}, "
                f"found {shorten(self.export.name)}."
            )


@dataclass(frozen=True)
class LeaderboardPlan(evaluate.ScoredPlan):
    """The plan of `leaderboard`."""

    options: LeaderboardOptions

    @property
    def own_writes(self) -> tuple[Path, ...]:
        """The note of the submission whose scores are recorded, leaderboard.csv, and the exported table."""
        folder, record, task = self.options.submissions, self.options.record, self.scoring.prepared.task
        exported = () if self.options.export is None else (self.options.export,)
        return (*(() if record is None else (note_path(folder, record),)), board_path(folder, task), *exported)

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
    refuse_foreign(options.submissions, scoring.prepared.task)
    if options.record is not None:
        record_scores(options.submissions, options.record, options.public_score, options.private_score)
    evaluate.make_current(scoring)
    book = open_book(scoring.work, scoring.prepared.task)
    board = make_board(book, scoring.work, options.submissions)
    write(board, options.submissions, scoring.prepared.task)
    track(board, scoring.config.tracking, scoring.work)
    if options.export is not None:
        if options.export.suffix == ".csv":
            data = encode_table(_with_costs(book, board, scoring.work, is_pareto=options.pareto), ".csv")
        else:
            table = _print(book, board, scoring.work, is_pareto=options.pareto)
            data = PRINTERS[options.export.suffix](table)
        write_bytes_atomically(options.export, data)
    return board


def build(work: WorkFolder, submissions: Path, task: Task) -> pd.DataFrame:
    """One row per source, columns of `leaderboard.csv`, sorted by folds (most slices first), then by rank.

    Raises:
        ArtifactError: the scores are missing or older than a source, or a note is damaged.
    """
    return make_board(open_book(work, task), work, submissions)


@holding(lambda given: given["submissions"])
def write(board: pd.DataFrame, submissions: Path, task: Task) -> Path:
    """Writes the leaderboard atomically (`board_path`); the same table gives the same bytes.

    Raises:
        ConfigError: a file of that name is no leaderboard of ichkit.
    """
    path = refuse_foreign(submissions, task)
    write_bytes_atomically(path, encode_table(board, path.suffix))
    return path


def board_path(submissions: Path, task: Task) -> Path:
    """`leaderboard.csv`; `leaderboard-TASK.csv` where that is the leaderboard of another task, which stays as it is."""
    path = submissions / BOARD_NAME
    own = [LOSS_COLUMN, *(f"cv_{name}" for name in task.classes), f"cv_auc_{task.headline_class},"]
    try:
        with path.open("rb") as file:
            header = file.readline(_LONGEST_HEADER)
    except OSError:
        return path
    is_board = header.startswith(_FIRST_COLUMNS) and LOSS_COLUMN.encode() in header
    is_other = is_board and ",".join(own).encode() not in header
    return path.with_stem(f"{path.stem}-{task.name}") if is_other else path


def refuse_foreign(submissions: Path, task: Task) -> Path:
    """The path of the leaderboard, where there is no file yet or one that begins with its columns.

    Raises:
        ConfigError: there is another file of that name.
    """
    path = board_path(submissions, task)
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(_FIRST_COLUMNS)):
        raise ConfigError(
            f"{path}: expected no file or the leaderboard of ichkit, found another file, which is left unchanged. "
            "Move it away, or choose another folder with --submissions."
        )
    return path


def render(work: WorkFolder, board: pd.DataFrame, task: Task, *, is_pareto: bool = False) -> Table:
    """The leaderboard as a table for the terminal, with the cost of every source.

    Args:
        board: from `build`.
        is_pareto: show only sources that no other beats in both loss and prediction time.
    """
    return _print(open_book(work, task), board, work, is_pareto=is_pareto)


def _print(book: ScoreBook, board: pd.DataFrame, work: WorkFolder, *, is_pareto: bool) -> Table:
    costs = measure_costs(work, book.sources)
    chosen = choose_pareto(book, costs) if is_pareto else None
    return with_data_note(tables.board(book, read_sites(board), costs, chosen), book.data)


def _with_costs(book: ScoreBook, board: pd.DataFrame, work: WorkFolder, *, is_pareto: bool) -> pd.DataFrame:
    """The leaderboard with the cost of every source in the last columns (`Cost`)."""
    costs = measure_costs(work, book.sources)
    table = board.merge(pd.DataFrame({"name": name, **asdict(cost)} for name, cost in costs.items()), on="name")
    return table[table["name"].isin(choose_pareto(book, costs))] if is_pareto else table


def read_sites(board: pd.DataFrame) -> dict[str, tuple[float | None, float | None]]:
    """Source to its public and private Kaggle score, NaN or None if none was recorded."""
    return dict(zip(board.name, zip(board.public_score, board.private_score, strict=True), strict=True))
