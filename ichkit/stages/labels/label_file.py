"""The label file that `labels` writes, as `prepare --labels` and `predict --labels` read it."""

from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.errors import ConfigError
from ichkit.core.progress import format_count, logger
from ichkit.core.tasks import Task
from ichkit.show.table import Table
from ichkit.validation.scope import label_array
from ichkit.work.artifacts import encode_table, write_bytes_atomically

SLICE, STUDY = "slice", "study"
LEVELS = (SLICE, STUDY)


def refuse_existing(out: Path) -> None:
    """Refuses to replace a file, which may be labels made by hand.

    Raises:
        ConfigError: the file exists.
    """
    if out.exists():
        raise ConfigError(f"labels: expected no file at {out}, found one. Move it away, or choose another with --out.")


def merge_slices(slices: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The label of each study: 1 if a slice is positive, else missing if one is unknown, else 0.

    Args:
        slices: study_id and a column per class.
    """
    ordered = slices.sort_values("study_id", kind="stable", ignore_index=True)
    labels = label_array(ordered, task)
    first = np.flatnonzero(ordered["study_id"].ne(ordered["study_id"].shift()))
    highest = np.where(np.maximum.reduceat(labels == 1, first), 1.0, np.maximum.reduceat(labels, first))
    table = pd.DataFrame(highest, columns=list(task.classes)).astype("Int8")
    table.insert(0, "study_id", ordered["study_id"].to_numpy()[first])
    return table


def write_labels(out: Path, table: pd.DataFrame, task: Task, level: str) -> None:
    """Writes the label file; unknown labels are empty cells."""
    write_bytes_atomically(out, encode_table(table[[f"{level}_id", *task.classes]], ".csv"))
    logger.info("labels: %s in %s", format_count(len(table), level, "studies" if level == STUDY else "slices"), out)


def render(table: pd.DataFrame, task: Task, level: str) -> Table:
    """The number of rows of each label, by class."""
    rows = []
    for name in task.classes:
        column = table[name]
        counts = (int((column == 1).sum()), int((column == 0).sum()), int(column.isna().sum()))
        rows.append([name, *(f"{count:,}" for count in counts)])
    return Table(f"Labels by {level}", ("class", "positive", "negative", "unknown"), rows)
