"""What `predict` made: its tables, the same as JSON, and what of it is shown in the terminal."""

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ichkit.core.tasks import Task
from ichkit.show.table import Table
from ichkit.stages.predict.model import RESEARCH_NOTE, Model
from ichkit.work.artifacts import package_versions

JSON_NAME = "predictions.json"
NUM_KEY_SLICES = 3
_PLACE = ("slice_id", "slice_index", "position_mm")


@dataclass(frozen=True)
class Prediction:
    """What `predict` made: the tables of its output folder, and what they came from.

    Attributes:
        slices, studies, rejected, series_choice: the CSV files.
        model: what predicted.
    """

    slices: pd.DataFrame
    studies: pd.DataFrame
    rejected: pd.DataFrame
    series_choice: pd.DataFrame
    model: Model


def find_key_slices(slices: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The rows of the most probable slices of every study, at most `NUM_KEY_SLICES`, by study_id, most probable first.

    Args:
        slices: from `Prediction`.
    """
    column = f"p_{task.any_class}"
    ordered = slices.sort_values(["study_id", column, "slice_index"], ascending=[True, False, True])
    return ordered.groupby("study_id", sort=False).head(NUM_KEY_SLICES)


def describe_prediction(prediction: Prediction, task: Task) -> dict[str, Any]:
    """The content of predictions.json: what predicted, and for every study its classes, its series and key slices."""
    slices = dict(list(find_key_slices(prediction.slices, task).groupby("study_id")))
    choice = dict(list(prediction.series_choice.groupby("study_id")))
    studies = []
    for number, row in enumerate(prediction.studies.to_dict("records"), 1):
        key_slices = slices[row["study_id"]]
        studies.append(
            {
                "number": number,
                "study_id": row["study_id"],
                "num_slices": row["num_slices"],
                "probabilities": _by_class(row, task),
                "series": _plain(choice[row["study_id"]].drop(columns="study_id")),
                "key_slices": [
                    {**{name: one[name] for name in _PLACE}, "probabilities": _by_class(one, task)}
                    for one in _plain(key_slices)
                ],
            }
        )
    return {
        "note": RESEARCH_NOTE,
        "model": {"name": prediction.model.name, "learnt_from": prediction.model.data},
        "studies": studies,
        "rejected": {reason: int(count) for reason, count in prediction.rejected["reason"].value_counts().items()},
        "versions": package_versions(),
    }


def render(prediction: Prediction, task: Task) -> Table:
    """One row per study in the order of studies.csv; studies are told apart by number."""
    title = "Probability of each class, maximum over the slices"
    rows = []
    for number, row in enumerate(prediction.studies.itertuples(index=False), 1):
        values = [getattr(row, column) for column in task.probability_columns]
        rows.append([str(number), str(row.num_slices), *(f"{value:.3f}" for value in values)])
    return Table(title, ("#", "slices", *task.classes), rows, note=RESEARCH_NOTE)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; what is missing becomes null."""
    return json.loads(frame.to_json(orient="records", double_precision=6))


def _by_class(row: dict[str, Any], task: Task) -> dict[str, float]:
    return {name: round(float(row[f"p_{name}"]), 6) for name in task.classes}
