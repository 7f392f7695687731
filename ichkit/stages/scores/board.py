"""The rows of the leaderboard, and the loggers that they are sent to."""

from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.config import TrackingConfig
from ichkit.core.roles import STANDARD_EXTERNAL
from ichkit.stages.scores.book import ScoreBook, external_studies
from ichkit.tracking.session import Session
from ichkit.validation.catalog import Source
from ichkit.validation.notes import is_csv_unchanged, read_note
from ichkit.validation.scores import LOG_LOSS, MEAN_CLASS, ROC_AUC
from ichkit.work.folder import WorkFolder

LOSS_COLUMN = "cv_weighted_log_loss"
_FACTS = ("kind", "data", "folds", "config_digest")


def make_board(book: ScoreBook, work: WorkFolder, submissions: Path | None) -> pd.DataFrame:
    """The leaderboard of these scores; the columns of external sets besides the standard one come last.

    Args:
        submissions: the folder whose notes hold Kaggle scores; None leaves those columns empty.
    """
    board = pd.DataFrame([_board_row(source, book, work, submissions) for source in book.sources])
    # Only sources that were scored on the same rows and for every class are ranked together.
    is_ranked = np.array([source.scope.is_whole for source in book.sources])
    rank = board.groupby("folds", sort=False).cumcount() + 1
    board.insert(0, "rank", rank if is_ranked.all() else rank.astype("Int64").where(is_ranked))
    return board


def track(board: pd.DataFrame, tracking: TrackingConfig, work: WorkFolder) -> None:
    """Sends the numbers of every source to the loggers, each source as an experiment of its own, "NAME/scores"."""
    if not tracking.loggers:
        return
    for row in board.to_dict("records"):
        facts = {name: str(row[name]) for name in _FACTS}
        numbers = {str(name): value for name, value in row.items() if isinstance(value, int | float)}
        with Session(tracking, work, f"{row['name']}/scores", "scores", facts) as session:
            session.log_scores(numbers)
            session.finish()


def _board_row(source: Source, book: ScoreBook, work: WorkFolder, submissions: Path | None) -> dict[str, object]:
    """The row of one source, without its rank."""
    task, main = source.task, source.task.headline_class
    note = None if submissions is None else read_note(submissions, source.name)
    # A Kaggle score belongs to a CSV file; if the source changed since, the file is no longer its submission.
    is_present = (
        submissions is not None
        and note is not None
        and note["tables"] == source.digests_of(work, "test")
        and is_csv_unchanged(submissions, note)
    )
    further = [name for name in book.external_sets if name != STANDARD_EXTERNAL]
    return {
        "name": source.name,
        "kind": source.kind,
        "data": source.data,
        "source": source.path,
        LOSS_COLUMN: book.loss(source).value,
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
