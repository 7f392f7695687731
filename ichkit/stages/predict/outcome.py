"""The results of `predict`: tables, predictions.json, and the terminal summary."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.errors import ConfigError
from ichkit.core.tasks import Task
from ichkit.imaging.parts import whole_id
from ichkit.show.table import NOTHING, Table
from ichkit.stages.predict.model import RESEARCH_NOTE, Model
from ichkit.work.artifacts import digest_file, encode_json, package_versions, write_bytes_atomically

JSON_NAME, PAGE_NAME = "predictions.json", "predictions.html"
TABLES = ("slices", "studies", "rejected", "series_choice")
_OUTPUTS = (*(f"{name}.csv" for name in TABLES), JSON_NAME, PAGE_NAME)
_UNFINISHED = ".ichkit-unfinished-predictions"
"""A file that marks an output folder while its files are written."""
NUM_KEY_SLICES = 3
_POSITION_COLUMNS = ("slice_id", "slice_index", "position_mm")


@dataclass(frozen=True)
class Prediction:
    """The results of `predict`.

    Attributes:
        slices, studies, rejected, series_choice: the tables of the CSV files.
        model: the model.
        is_pooled: the probabilities of the studies are those of a pool, not the maximum over the slices.
    """

    slices: pd.DataFrame
    studies: pd.DataFrame
    rejected: pd.DataFrame
    series_choice: pd.DataFrame
    model: Model
    is_pooled: bool = False


def refuse_foreign_files(out: Path) -> None:
    """Refuses to replace files that an earlier `predict` did not write or that changed since.

    Raises:
        ConfigError: names the files.
    """
    if (out / _UNFINISHED).is_file():
        return
    try:
        own = json.loads((out / JSON_NAME).read_text(encoding="utf-8"))["files"]
        own = {**own, JSON_NAME: digest_file(out / JSON_NAME)}
    except (OSError, ValueError, KeyError, TypeError):
        own = {}
    present = [name for name in _OUTPUTS if (out / name).exists()]
    foreign = [name for name in present if not (out / name).is_file() or digest_file(out / name) != own.get(name)]
    if foreign:
        raise ConfigError(
            f"predict: expected no files at {out} but those of an earlier `ichkit predict`, as it wrote them; found "
            f"{', '.join(foreign)}. Move them away, or choose another folder with --out."
        )


def begin_output(out: Path) -> None:
    """Marks an output folder as unfinished, and removes the JSON file and the page of an earlier call."""
    write_bytes_atomically(out / _UNFINISHED, b"")
    for name in (JSON_NAME, PAGE_NAME):
        (out / name).unlink(missing_ok=True)


def finish_output(out: Path, described: dict[str, Any]) -> None:
    """Writes predictions.json and removes the mark of unfinished output."""
    write_bytes_atomically(out / JSON_NAME, encode_json(described))
    (out / _UNFINISHED).unlink()


def find_key_slices(slices: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The `NUM_KEY_SLICES` most probable slices of every study, by study_id, most probable first.

    Args:
        slices: see `Prediction`.
    """
    column = f"p_{find_headline(slices, task)}"
    ordered = slices.sort_values(["study_id", column, "slice_index"], ascending=[True, False, True])
    return ordered.groupby("study_id", sort=False).head(NUM_KEY_SLICES)


def describe_pooling(prediction: Prediction) -> str:
    """How the probabilities of the studies were made."""
    return "pooled over the study" if prediction.is_pooled else "maximum over the slices"


def find_headline(table: pd.DataFrame, task: Task) -> str:
    """The class that tables of probabilities are sorted by: that of the task, or the first one that is predicted."""
    known = [name for name in task.classes if table[f"p_{name}"].notna().any()]
    return task.headline_class if task.headline_class in known or not known else known[0]


def find_series(prediction: Prediction) -> dict[str, pd.DataFrame]:
    """The series of each study, chosen or not; a part of a study has those of the study."""
    known = dict(list(prediction.series_choice.groupby("study_id")))
    return {name: known[name if name in known else whole_id(name)] for name in prediction.studies["study_id"]}


def describe_prediction(prediction: Prediction, task: Task) -> dict[str, Any]:
    """The content of predictions.json: the model; probabilities, series and key slices of every study."""
    slices = dict(list(find_key_slices(prediction.slices, task).groupby("study_id")))
    choice = find_series(prediction)
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
                    {**{name: one[name] for name in _POSITION_COLUMNS}, "probabilities": _by_class(one, task)}
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
    """One row per study in the order of studies.csv, by number without ids."""
    title = f"Probability of each class, {describe_pooling(prediction)}"
    rows = []
    for number, row in enumerate(prediction.studies.itertuples(index=False), 1):
        values = [getattr(row, column) for column in task.probability_columns]
        rows.append(
            [str(number), str(row.num_slices), *(NOTHING if np.isnan(value) else f"{value:.3f}" for value in values)]
        )
    return Table(title, ("#", "slices", *task.classes), rows, note=RESEARCH_NOTE)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; missing values become null."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=6))
    return rows


def _by_class(row: Mapping[Any, Any], task: Task) -> dict[str, float | None]:
    """The probabilities by class; None for classes that the model does not predict."""
    values = {name: row[f"p_{name}"] for name in task.classes}
    return {name: None if pd.isna(value) else round(float(value), 6) for name, value in values.items()}
