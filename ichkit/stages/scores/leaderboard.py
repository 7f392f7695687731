"""`ichkit leaderboard`: every source and its scores in one table, rebuilt from the artifacts each time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError
from ichkit.core.tasks import Task
from ichkit.show.terminal import NOTHING, format_interval, format_number, make_table
from ichkit.stages.scores import evaluate
from ichkit.stages.scores.summary import data_note
from ichkit.validation.catalog import Source, find_sources
from ichkit.validation.notes import is_csv_unchanged, note_path, read_note, read_present, record_scores
from ichkit.validation.scores import ALL_CLASSES, LOG_LOSS, MEAN_CLASS, POOLED, ROC_AUC, WEIGHTED_LOG_LOSS, headlines
from ichkit.work.artifacts import encode_table, write_bytes_atomically
from ichkit.work.folder import WorkFolder

BOARD_NAME = "leaderboard.csv"


@dataclass(frozen=True)
class LeaderboardOptions:
    """What one call of `leaderboard` may ask for.

    Attributes:
        record: a submission whose scores came back from the site; None records nothing.
        public_score, private_score: those scores.
        submissions: the folder of the board.

    Raises:
        ConfigError: scores without the submission they belong to.
    """

    record: str | None = None
    public_score: float | None = None
    private_score: float | None = None
    submissions: Path = Path("submissions")

    def __post_init__(self) -> None:
        if self.record is None and (self.public_score is not None or self.private_score is not None):
            raise ConfigError("leaderboard: --public and --private belong to a submission: name it with --record NAME.")


@dataclass(frozen=True)
class LeaderboardPlan(evaluate.ScoredPlan):
    """What one call of `leaderboard` starts from."""

    options: LeaderboardOptions

    @property
    def own_steps(self) -> tuple[str, ...]:
        """The board."""
        return ("rebuilds the board from the artifacts",)

    @property
    def own_writes(self) -> tuple[Path, ...]:
        """The note of the submission whose scores are recorded, and the board."""
        folder, record = self.options.submissions, self.options.record
        return (*(() if record is None else (note_path(folder, record),)), folder / BOARD_NAME)


def plan(config: Config, work: WorkFolder, options: LeaderboardOptions | None = None) -> LeaderboardPlan:
    """What there is to score before the board can be built; writes nothing.

    Raises:
        ConfigError: no such submission.
        ArtifactError: nothing is prepared or trained, or an artifact is damaged.
    """
    options = options or LeaderboardOptions()
    if options.record is not None:
        read_present(options.submissions, options.record)
    return LeaderboardPlan(evaluate.plan_scores(config, work), options)


def run(plan: LeaderboardPlan) -> pd.DataFrame:
    """The board, rewritten to `leaderboard.csv`, after noting what the site said about a submission.

    Raises:
        ConfigError: no score is given for the submission.
        ArtifactError: the CSV is not the one that `<name>.json` describes, or an artifact is damaged.
    """
    options, scoring = plan.options, plan.scoring
    if options.record is not None:
        record_scores(options.submissions, options.record, options.public_score, options.private_score)
    evaluate.make_current(scoring)
    board = build(scoring.work, options.submissions, scoring.prepared.task)
    write(board, options.submissions)
    return board


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


def render(work: WorkFolder, board: pd.DataFrame, task: Task) -> Table:
    """The board for a terminal, values above their intervals, so that it stays readable where that is narrow.

    The difference to the best of the same folds comes with the interval of the same draws of patients: green where it
    could be none, red where it is real. Scores of the competition site stand beside the rank and never move it.

    Args:
        work: where its scores and comparisons are.
        board: from `build`.
    """
    data = "+".join(sorted(board.data.unique()))
    tables = evaluate.read_tables(work, find_sources(work, task))
    main = headlines(tables.scores)
    main = main[main.fold == POOLED]
    best = dict(board.loc[board["rank"] == 1, ["folds", "name"]].itertuples(index=False))
    rows = []
    for row in board.to_dict("records"):
        own = main[main.source == row["name"]]
        loss = _pick(own[own.dataset != "cq500"], WEIGHTED_LOG_LOSS, ALL_CLASSES)
        outside = _pick(own[own.dataset == "cq500"], ROC_AUC, task.any_class)
        rows.append(
            {
                "#": str(row["rank"]),
                "name": _name(row, len(best) > 1),
                "loss": _stack(loss, 5, 4),
                "to the best": _difference(tables.comparisons, row["name"], best[row["folds"]]),
                f"AUC {task.any_class}": format_number(row[f"cv_auc_{task.any_class}"], 4),
                f"CQ500 {task.any_class}": _stack(outside, 3, 2),
                "mean": format_number(row["cq500_auc_mean"], 3),
                "public\nprivate": _site(row),
            }
        )
    shown = [name for name in rows[0] if any(row[name] != NOTHING for row in rows)]
    table = make_table(f"Leaderboard (data: {data})", shown, text=2, caption=_caption(data))
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def _caption(data: str) -> str:
    return (
        "Out-of-fold weighted log loss with its interval by resampling patients; as in ordinary stacking, a second "
        "stage learns from descriptors of networks that saw the fold it is scored on. To the best: of the same folds, "
        "on the same patients; * where the interval excludes 0, without correction for several comparisons. "
        f"CQ500: AUC of the study maximum, and the mean of all classes. {data_note(data)}"
    )


def _name(row: dict[str, Any], with_folds: bool) -> str:
    """The name, bold for the best of its folds; below it these folds, where there are several groups."""
    name = f"[bold]{escape(row['name'])}[/]" if row["rank"] == 1 else escape(row["name"])
    return f"{name}\n[dim]folds {row['folds']}[/]" if with_folds else name


def _site(row: dict[str, Any]) -> str:
    """The public score above the private one; a dash where neither was recorded."""
    scores = [format_number(row[name], 5) for name in ("public_score", "private_score")]
    return NOTHING if scores == [NOTHING, NOTHING] else "\n".join(scores)


def _stack(score: dict[str, float], digits: int, interval_digits: int) -> str:
    """A value above its interval."""
    if pd.isna(score["value"]):
        return NOTHING
    interval = format_interval(score["low"], score["high"], interval_digits)
    return f"{format_number(score['value'], digits)}\n[dim]{interval}[/]"


def _difference(comparisons: pd.DataFrame, name: str, best: str) -> str:
    """The loss less that of the best above its interval; a dash for the best itself."""
    is_asked = (comparisons.source == name) & (comparisons.other == best) & (comparisons.metric == WEIGHTED_LOG_LOSS)
    found = comparisons[is_asked]
    if not len(found):
        return NOTHING
    row = found.iloc[0]
    is_real = row.low > 0 or row.high < 0
    star, colour = ("*", "red") if is_real else ("", "green")
    return f"[{colour}]{row.difference:+.5f}{star}[/]\n[dim]{row.low:+.4f} {row.high:+.4f}[/]"


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
