"""The columns of every table, and checks of the tables that a stage reads."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ichkit.core.errors import ContractError
from ichkit.core.tasks import Task

KEY = ["study_id", "slice_index"]
FOLDS = ["patient_id", "fold"]
LOCKS = ["patient_id", "is_locked"]
REJECTED = ["dataset", "split", "slice_id", "study_id", "series_id", "position_mm", "file", "reason"]
SERIES_CHOICE = ["study_id", "series_id", "series", "num_slices", "coverage_mm", "gap_mm", "chosen", "reason"]
CROPS = {
    "dataset": "str",
    "study_id": "str",
    "volume": "str",
    "rows": "int64",
    "columns": "int64",
    "spacing_row_mm": "float64",
    "spacing_col_mm": "float64",
    "top": "int64",
    "left": "int64",
    "height": "int64",
    "width": "int64",
    "is_found": "bool",
}
"""Column to dtype of `crops.parquet`, in order."""
MIRRORED, PART = "is_mirrored", "study_part"
"""Further columns of `crops.parquet`, and of `slices.parquet`, in a store of parts."""
BRAIN_SHARE, TILT = "brain_share", "tilt_degrees"
"""Columns of `slice_facts.parquet` beside slice_id and dataset."""
_SLICE_FACTS = {
    "slice_id": "str",
    "dataset": "str",
    "split": "str",
    "study_id": "str",
    "series_id": "str",
    "patient_id": "str",
    "slice_index": "int64",
    "num_slices": "int64",
    "position_mm": "float64",
    "gap_mm": "float64",
    "rows": "int64",
    "columns": "int64",
    "spacing_row_mm": "float64",
    "spacing_col_mm": "float64",
    "pixel_format": "str",
    "hu_repaired": "bool",
    "padded": "bool",
    "volume": "str",
}
_STUDY_FACTS = {"study_id": "str", "dataset": "str", "split": "str", "patient_id": "str", "num_slices": "int64"}
PROBABILITY_CLIP = (1e-6, 1 - 1e-6)


def slices_dtypes(task: Task) -> dict[str, str]:
    """Column to dtype of `slices.parquet`, in order; labels and fold are nullable integers."""
    return {**_SLICE_FACTS, **dict.fromkeys(task.classes, "Int8"), "fold": "Int16"}


def studies_dtypes(task: Task) -> dict[str, str]:
    """Column to dtype of `studies.parquet`, in order."""
    return {**_STUDY_FACTS, **dict.fromkeys(task.classes, "Int8")}


def predictions_columns(task: Task) -> list[str]:
    """Columns of every predictions table, in order."""
    return ["slice_id", "study_id", "slice_index", "fold", *task.probability_columns]


def conform(frame: pd.DataFrame, dtypes: dict[str, str]) -> pd.DataFrame:
    """The table with exactly these columns, in this order, with these dtypes.

    Raises:
        ContractError: a column is missing.
    """
    missing = [name for name in dtypes if name not in frame]
    if missing:
        raise ContractError(f"table: expected columns {list(dtypes)}, missing {missing}.")
    return frame[list(dtypes)].astype(dtypes).reset_index(drop=True)


def make_predictions(
    slices: pd.DataFrame, probabilities: np.ndarray, task: Task, fold: int | None = None
) -> pd.DataFrame:
    """A predictions table, sorted by study_id and slice_index, clipped and float32.

    Args:
        slices: (N rows) with slice_id, study_id, slice_index, and fold if `fold` is None.
        probabilities: (N, C) float in [0, 1]; NaN in every row of a class that is not predicted.
        fold: the fold of every row (k for a run's test tables, -1 for averages); None takes the column of `slices`.

    Raises:
        ContractError: a probability of a predicted class is not finite.
    """
    assert probabilities.shape == (len(slices), task.num_classes)
    is_wrong = ~(np.isfinite(probabilities) | np.isnan(probabilities).all(0))
    if is_wrong.any():
        row = int(np.flatnonzero(is_wrong.any(1))[0])
        raise ContractError(f"predictions: {slices.slice_id.iloc[row]} has a probability that is not finite.")
    table = slices[["slice_id", "study_id", "slice_index"]].reset_index(drop=True)
    table["fold"] = (slices["fold"].to_numpy() if fold is None else np.full(len(slices), fold)).astype("int64")
    # float32 cannot hold 1 - 1e-6 exactly; its nearest value inside the interval is used.
    low, high = np.float32(PROBABILITY_CLIP[0]), np.nextafter(np.float32(PROBABILITY_CLIP[1]), np.float32(0))
    table[task.probability_columns] = np.clip(probabilities.astype(np.float32), np.nextafter(low, np.float32(1)), high)
    return sort_rows(table)


def check_predictions(table: pd.DataFrame, task: Task, where: str, slices: pd.DataFrame | None = None) -> None:
    """Checks a predictions table against the contract; a class that is not predicted is NaN in every row.

    Args:
        where: the table, for the message.
        slices: the expected rows, with slice_id and, for an out-of-fold table, fold.

    Raises:
        ContractError: a column is missing, a slice repeats, the order is wrong, a probability is not inside (0, 1),
            a slice is missing or unexpected, or a row has another fold.
    """
    missing = [name for name in predictions_columns(task) if name not in table]
    if missing:
        raise ContractError(f"{where}: expected columns {predictions_columns(task)}, missing {missing}.")
    if table.slice_id.duplicated().any():
        raise ContractError(f"{where}: slice {table.slice_id[table.slice_id.duplicated()].iloc[0]} has two rows.")
    p = table[task.probability_columns].to_numpy(np.float64)
    p = p[:, ~np.isnan(p).all(0)]
    if not (p.size or table.empty):
        raise ContractError(f"{where}: expected the probabilities of one or more classes, found none.")
    if not (np.isfinite(p).all() and (p > 0).all() and (p < 1).all()):
        raise ContractError(f"{where}: expected probabilities inside (0, 1).")
    if not is_sorted(table):
        raise ContractError(f"{where}: expected rows sorted by study_id, then slice_index.")
    if slices is not None:
        check_rows(table, where, slices)


def check_rows(table: pd.DataFrame, where: str, slices: pd.DataFrame) -> None:
    """Checks that a predictions table has exactly the expected slices, each with its own fold.

    Args:
        where: the table, for the message.
        slices: the expected rows, with slice_id and, for an out-of-fold table, fold.

    Raises:
        ContractError: a slice is missing or unexpected, or a row has another fold.
    """
    is_same = table.slice_id.reset_index(drop=True).equals(slices.slice_id.reset_index(drop=True))
    foreign = set() if is_same else set(table.slice_id) ^ set(slices.slice_id)
    if foreign:
        raise ContractError(
            f"{where}: expected exactly the {len(slices)} prepared slices, found {len(table)} rows; "
            f"{len(foreign)} differ, e.g. {min(foreign)}. Run `ichkit train` again to update the tables."
        )
    if "fold" in slices:
        own = (slices.fold if is_same else slices.set_index("slice_id").fold.reindex(table.slice_id)).to_numpy()
        wrong = np.flatnonzero(table.fold.to_numpy() != own)
        if len(wrong):
            row = table.iloc[wrong[0]]
            raise ContractError(
                f"{where}: slice {row.slice_id} has fold {row.fold}, expected {own[wrong[0]]}: it may be predicted by "
                "a model that was trained on its label. Train the fold again: `ichkit train --fresh` with the -c and "
                "--run it was trained with."
            )


def is_sorted(table: pd.DataFrame, by: Sequence[str] = KEY) -> bool:
    """True if the rows are sorted by the columns, ascending; False if a key is missing."""
    is_open = np.ones(max(len(table) - 1, 0), bool)  # rows that equal the next one in the columns before
    for name in by:
        key = table[name].reset_index(drop=True)
        row, following = key.iloc[:-1], key.iloc[1:].reset_index(drop=True)
        if (is_open & ~(row <= following).to_numpy(bool, na_value=False)).any():
            return False
        is_open &= (row == following).to_numpy(bool, na_value=False)
    return True


def sort_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by study_id and slice_index, with a fresh index; a sorted table is not sorted again."""
    return table.reset_index(drop=True) if is_sorted(table) else table.sort_values(KEY, ignore_index=True)
