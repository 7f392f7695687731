"""From a test table to the rows of the sample submission: unreadable slices are imputed and listed."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.errors import ContractError
from ichkit.core.tasks import Task
from ichkit.validation.submissions import split_ids
from ichkit.work.schemas import PROBABILITY_CLIP


@dataclass(frozen=True)
class Imputed:
    """A slice of the sample submission whose file could not be read, and how its probabilities were imputed.

    Attributes:
        method: "neighbours" (the nearest predicted slices of its series on either side) or "prevalence" (of each
            class among the training slices).
        neighbours: their slice ids; empty for "prevalence".
    """

    slice_id: str
    method: str
    neighbours: tuple[str, ...]


@dataclass(frozen=True)
class KnownSlices:
    """The predictions and facts of the test split.

    Attributes:
        predictions: a predictions table (N rows).
        slices: rows of `slices.parquet`, at least those of `predictions`: slice_id, study_id, series_id, position_mm.
        rejected: rows of `rejected.csv` of the test split: slice_id, study_id, series_id, position_mm.
        prevalence: (C,) share of positive training slices of each class.
    """

    predictions: pd.DataFrame
    slices: pd.DataFrame
    rejected: pd.DataFrame
    prevalence: np.ndarray


def fill_sample(sample: pd.DataFrame, known: KnownSlices, task: Task, where: str) -> tuple[pd.DataFrame, list[Imputed]]:
    """The submission, ID and Label (float32) in the order of the sample, and the imputed slices.

    Args:
        sample: one column ID of `<slice_id>_<class>`.
        where: the source of the predictions, for the message.

    Raises:
        ContractError: a slice of the sample is neither predicted nor among the rejected files.
    """
    wanted = split_ids(sample.ID, task, "sample_ids.csv")
    slice_ids = pd.Index(wanted.slice_id.unique())
    absent = slice_ids.difference(known.predictions.slice_id, sort=False)
    unexplained = absent.difference(known.rejected.slice_id, sort=False)
    if len(unexplained):
        raise ContractError(
            f"{where}: expected predictions for the {len(slice_ids)} slices of the sample submission, "
            f"{len(unexplained)} are missing although their files were not rejected, e.g. {unexplained[0]}. "
            "Run `ichkit prepare` on the whole test folder, then `ichkit train`."
        )
    predictions = known.predictions.set_index("slice_id")[task.probability_columns]
    placed = known.slices[known.slices.slice_id.isin(predictions.index)]
    filled, values = [], []
    for slice_id in absent:
        neighbours = _nearest_neighbours(slice_id, known.rejected, placed)
        filled.append(Imputed(slice_id, "neighbours" if neighbours else "prevalence", tuple(neighbours)))
        rows = predictions.loc[neighbours].to_numpy(np.float64)
        values.append(rows.mean(0) if neighbours else np.clip(known.prevalence, *PROBABILITY_CLIP))
    extra = pd.DataFrame(np.reshape(values, (-1, task.num_classes)), index=absent, columns=predictions.columns)
    table = pd.concat([predictions, extra.astype(np.float32)]) if filled else predictions
    row = table.index.get_indexer(pd.Index(wanted.slice_id))
    column = pd.Categorical(wanted["class"], categories=list(task.classes)).codes
    labels = table.to_numpy(np.float32)[row, column]
    return pd.DataFrame({"ID": sample.ID, "Label": labels}), filled


def _nearest_neighbours(slice_id: str, rejected: pd.DataFrame, placed: pd.DataFrame) -> list[str]:
    """The nearest predicted slices below and above a rejected one; empty if its position is unknown.

    They are of its series or, if that has no predicted slice, of its study.
    """
    places = rejected[rejected.slice_id.eq(slice_id) & rejected.position_mm.notna() & rejected.study_id.notna()]
    if not len(places):
        return []
    place = places.iloc[0]
    study = placed[placed.study_id == place.study_id]
    series = study[study.series_id == place.series_id]
    stack = (series if len(series) else study).sort_values(["position_mm", "slice_id"])
    below, above = stack[stack.position_mm <= place.position_mm], stack[stack.position_mm > place.position_mm]
    return [*below.slice_id.iloc[-1:], *above.slice_id.iloc[:1]]
