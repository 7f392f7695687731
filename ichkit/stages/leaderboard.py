"""`ichkit leaderboard`: every source and its scores in one table, rebuilt from the artifacts each time."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from ichkit.core.artifacts import encode_table, write_bytes_atomically
from ichkit.core.config import Config
from ichkit.core.layout import WorkFolder
from ichkit.core.tasks import Task, find_task
from ichkit.stages import evaluate
from ichkit.validation.catalog import Source, find_sources
from ichkit.validation.notes import is_csv_unchanged, read_note, record_scores
from ichkit.validation.scores import ALL_CLASSES, LOG_LOSS, MEAN_CLASS, POOLED, ROC_AUC, WEIGHTED_LOG_LOSS

BOARD_NAME = "leaderboard.csv"
_NOTHING = "-"
_CAPTION = (
    "Out-of-fold weighted log loss and AUC; as in ordinary stacking, a second stage learns from descriptors of "
    "networks that saw the fold it is scored on. CQ500: AUC of the study maximum with its interval, and the mean of "
    "all classes. Research use only, not a medical device."
)


def run(config: Config, work: WorkFolder, submissions: Path) -> pd.DataFrame:
    """The board, rewritten to `submissions/leaderboard.csv`; scores that are missing are computed.

    Raises:
        ArtifactError: nothing is prepared or trained, or an artifact is damaged.
    """
    evaluate.run(config, work)
    board = build(work, submissions, find_task(config.task))
    write(board, submissions)
    return board


def record(
    config: Config, work: WorkFolder, submissions: Path, name: str, public: float | None, private: float | None
) -> pd.DataFrame:
    """The board, after noting what the competition site said about a submission.

    Raises:
        ConfigError: no such submission, or no score.
        ArtifactError: the CSV is not the one that `<name>.json` describes.
    """
    record_scores(submissions, name, public, private)
    return run(config, work, submissions)


def build(work: WorkFolder, submissions: Path, task: Task) -> pd.DataFrame:
    """One row per source, columns of `board_columns`: groups of equal folds, most rows first, each by rank.

    Raises:
        ArtifactError: the scores are missing or older than a source, or a note is damaged.
    """
    sources = find_sources(work, task)
    scores = evaluate.read_scores(work, sources)
    rows = [_board_row(source, scores[scores.source == source.name], work, submissions) for source in sources]
    board = pd.DataFrame(rows, columns=board_columns(task))
    board = board.sort_values(
        ["num_slices", "folds", "cv_weighted_log_loss", "name"], ascending=[False, True, True, True], ignore_index=True
    )
    # Only sources that were scored on the same rows are ranked together.
    board["rank"] = board.groupby("folds", sort=False).cumcount() + 1
    return board


def write(board: pd.DataFrame, submissions: Path) -> Path:
    """Writes `leaderboard.csv`, whole or not at all; the same board gives the same bytes."""
    path = submissions / BOARD_NAME
    write_bytes_atomically(path, encode_table(board, path.suffix))
    return path


def board_columns(task: Task) -> list[str]:
    """The columns of `leaderboard.csv`, in order."""
    return [
        *("rank", "name", "kind", "data", "source", "cv_weighted_log_loss"),
        *(f"cv_{name}" for name in task.classes),
        *(f"cv_auc_{task.any_class}", f"cq500_auc_{task.any_class}"),
        *(f"cq500_auc_{name}" for name in task.subtypes),
        *("cq500_auc_mean", f"cq500_low_{task.any_class}", f"cq500_high_{task.any_class}"),
        *("folds", "num_slices", "config_digest", "git_commit", "created_utc"),
        *("public_score", "private_score", "submission"),
    ]


def render(board: pd.DataFrame, task: Task) -> Table:
    """The board for a terminal: the columns that decide, the CQ500 interval, and what the numbers are made from."""
    data = "+".join(sorted(board.data.unique()))
    table = Table(title=f"Leaderboard (data: {data})", caption=_CAPTION, box=SIMPLE, padding=0)
    number, low, high = (f"cq500_{what}_{task.any_class}" for what in ("auc", "low", "high"))
    columns = {
        "#": [str(rank) for rank in board["rank"]],
        "name": list(board["name"]),
        "folds": list(board["folds"]),
        "loss": [_number(value, 5) for value in board["cv_weighted_log_loss"]],
        f"AUC {task.any_class}": [_number(value, 4) for value in board[f"cv_auc_{task.any_class}"]],
        f"CQ500 {task.any_class}": [
            f"{_number(value, 3)} ({_number(below, 2)}-{_number(above, 2)})"
            for value, below, above in zip(board[number], board[low], board[high], strict=True)
        ],
        "mean": [_number(value, 3) for value in board["cq500_auc_mean"]],
        "public": [_number(value, 5) for value in board["public_score"]],
        "private": [_number(value, 5) for value in board["private_score"]],
    }
    shown = {name: cells for name, cells in columns.items() if any(cell != _NOTHING for cell in cells)}
    for name in shown:
        # A long name is folded; numbers never are.
        is_text = name in ("name", "folds")
        table.add_column(
            name, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold", min_width=len(name)
        )
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    return table


def _board_row(source: Source, scores: pd.DataFrame, work: WorkFolder, submissions: Path) -> dict[str, object]:
    """One source's row; its rank comes later."""
    task = source.task
    pooled = scores[scores.fold == POOLED]
    own, outside = pooled[pooled.dataset != "cq500"], pooled[pooled.dataset == "cq500"]
    outside_any = _pick(outside, ROC_AUC, task.any_class)
    note = read_note(submissions, source.name)
    # A score belongs to a CSV; once the source's tables are others, the CSV is no longer its own.
    is_present = (
        note is not None and note["tables"] == source.digests_of(work, "test") and is_csv_unchanged(submissions, note)
    )
    return {
        "rank": 0,
        "name": source.name,
        "kind": source.kind,
        "data": source.data,
        "source": source.path,
        "cv_weighted_log_loss": _pick(own, WEIGHTED_LOG_LOSS, ALL_CLASSES)["value"],
        **{f"cv_{name}": _pick(own, LOG_LOSS, name)["value"] for name in task.classes},
        f"cv_auc_{task.any_class}": _pick(own, ROC_AUC, task.any_class)["value"],
        **{f"cq500_auc_{name}": _pick(outside, ROC_AUC, name)["value"] for name in task.classes},
        "cq500_auc_mean": _pick(outside, ROC_AUC, MEAN_CLASS)["value"],
        f"cq500_low_{task.any_class}": outside_any["low"],
        f"cq500_high_{task.any_class}": outside_any["high"],
        "folds": source.folds_label,
        "num_slices": _pick(own, WEIGHTED_LOG_LOSS, ALL_CLASSES)["n"],
        "config_digest": source.config_digest,
        "git_commit": source.git_commit,
        "created_utc": source.created_utc,
        "public_score": note["public_score"] if is_present else None,
        "private_score": note["private_score"] if is_present else None,
        "submission": note["csv"] if is_present else None,
    }


def _pick(scores: pd.DataFrame, metric: str, name: str) -> dict[str, float]:
    """value, low, high and n of one score; NaN where the data set was not prepared."""
    found = scores[(scores.metric == metric) & (scores["class"] == name)]
    if not len(found):
        return dict.fromkeys(("value", "low", "high", "n"), np.nan)
    return found.iloc[0][["value", "low", "high", "n"]].to_dict()


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None or pd.isna(value) else f"{value:.{digits}f}"
