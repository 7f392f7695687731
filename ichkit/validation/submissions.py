"""Files of `ID,Label` rows, one per slice and class; an error gives the first invalid row."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ichkit.core.csv_tables import read_csv
from ichkit.core.errors import ContractError, DataError, nearest
from ichkit.core.tasks import Task

ID_COLUMNS = ["ID", "Label"]


def read_submission(path: Path, task: Task) -> pd.DataFrame:
    """Probabilities: one row per slice and one float64 column per class, slices in the order of the file.

    Raises:
        DataError: the file is missing or not CSV.
        ContractError: other columns, an unknown class, a Label that is not a number in [0, 1], an ID with two
            different labels, or a slice that lacks a class.
    """
    return _to_table(_read_rows(path, task), path, task)


def read_truth(path: Path, task: Task) -> pd.DataFrame:
    """Labels, shaped like `read_submission`; each is 0 or 1.

    Raises:
        DataError: the file is missing or not CSV.
        ContractError: as `read_submission`, or a Label that is neither 0 nor 1.
    """
    rows = _read_rows(path, task)
    wrong = ~rows.value.isin([0.0, 1.0])
    if wrong.any():
        raise ContractError(
            f"{path}: row {_row_number(wrong)}: expected the Label 0 or 1, found {rows.Label[wrong].iloc[0]}. "
            "Give the labels with --truth and the probabilities with --submission."
        )
    return _to_table(rows, path, task)


def split_ids(ids: pd.Series, task: Task, where: str) -> pd.DataFrame:
    """slice_id and class of each `<slice_id>_<class>`, split at the last underscore, with the same index.

    Raises:
        ContractError: an ID that does not end in a class of the task.
    """
    # Arrow splits a million ids in 0.2 s, Python strings take 3 s.
    parts = pc.split_pattern(pa.array(ids.astype("str")), "_", max_splits=1, reverse=True)
    wrong = pd.Series(pc.not_equal(pc.list_value_length(parts), 2).to_numpy(zero_copy_only=False), index=ids.index)
    if not wrong.any():
        columns = {"slice_id": pc.list_element(parts, 0), "class": pc.list_element(parts, 1)}
        frame = pd.DataFrame({name: pd.Series(part, index=ids.index, dtype="str") for name, part in columns.items()})
        wrong = ~frame["class"].isin(task.classes) | (frame.slice_id == "")
        if not wrong.any():
            return frame
    found = str(ids[wrong].iloc[0])
    raise ContractError(
        f'{where}: row {_row_number(wrong)}: expected an ID such as "<slice>_{task.classes[0]}", found "{found}". '
        f"{nearest(found.rpartition('_')[2], task.classes)}"
    )


def _read_rows(path: Path, task: Task) -> pd.DataFrame:
    """ID, Label (text), value (float64), slice_id and class of every row of the file."""
    try:
        rows = read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a file of ID,Label rows, found none. Check the path.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a CSV file of ID,Label rows, it cannot be read ({error}).") from error
    if any(name not in rows for name in ID_COLUMNS):
        raise ContractError(f"{path}: expected the columns ID and Label, found {', '.join(map(str, rows.columns))}.")
    if not len(rows):
        raise ContractError(f"{path}: expected a row for each slice and class, found none.")
    rows = rows[ID_COLUMNS]
    rows["value"] = _to_numbers(rows, path)
    wrong = ~rows.value.between(0, 1)
    if wrong.any():
        raise ContractError(
            f"{path}: row {_row_number(wrong)} ({rows.ID[wrong].iloc[0]}): expected a Label in [0, 1], found "
            f"{rows.Label[wrong].iloc[0]}. Give probabilities, not logits or percentages."
        )
    return rows.join(split_ids(rows.ID, task, str(path)))


def _to_numbers(rows: pd.DataFrame, path: Path) -> np.ndarray:
    """(rows,) float64 of the column Label.

    Python's float is exact to the last digit, pandas' parser is not, which matters near 1 - 1e-12. But it accepts "1_0"
    and "nan" and does not report the row of an error: pandas is used for that.
    """
    try:
        values = rows.Label.to_numpy(object).astype(np.float64)
    except ValueError:
        values = np.full(len(rows), np.nan)
    if np.isnan(values).any() or rows.Label.str.contains("_", regex=False).any():
        wrong = pd.to_numeric(rows.Label, errors="coerce").isna()
        raise ContractError(
            f"{path}: row {_row_number(wrong)} ({rows.ID[wrong].iloc[0]}): expected a Label in [0, 1], found "
            f'"{rows.Label[wrong].iloc[0]}", which is not a number.'
        )
    return values


def _to_table(rows: pd.DataFrame, path: Path, task: Task) -> pd.DataFrame:
    """(slices, classes) of the values; identical duplicate rows are merged."""
    number, slice_ids = pd.factorize(rows.slice_id)
    column = pd.Categorical(rows["class"], categories=list(task.classes)).codes
    values = np.full((len(slice_ids), task.num_classes), np.nan)
    values[number, column] = rows.value
    # Of two rows for one cell the later is kept: if they differ, the earlier row differs from its cell.
    differ = values[number, column] != rows.value.to_numpy()
    if differ.any():
        once = rows.drop_duplicates(["ID", "value"])
        twice = once[once.ID.duplicated(keep=False)]
        first = twice.ID.iloc[0]
        found = twice.Label[twice.ID.eq(first)].tolist()
        raise ContractError(
            f"{path}: {first} has the labels {' and '.join(found)}; an ID has one. "
            f"{twice.ID.nunique()} IDs have contradicting rows; keep one row of each."
        )
    gaps = np.argwhere(np.isnan(values))
    if len(gaps):
        missing = f"{slice_ids[gaps[0, 0]]}_{task.classes[gaps[0, 1]]}"
        raise ContractError(
            f"{path}: expected {task.num_classes} rows for each of {len(slice_ids)} slices, {len(gaps)} are missing, "
            f"e.g. {missing}. A score needs every class of every slice."
        )
    return pd.DataFrame(values, index=pd.Index(slice_ids, name="slice_id"), columns=list(task.classes))


def _row_number(wrong: pd.Series) -> int:
    """The line of the file of the first True; line 1 is the header."""
    return int(np.flatnonzero(wrong.to_numpy())[0]) + 2
