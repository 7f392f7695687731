"""The results of `predict`: tables, predictions.json, and the terminal summary."""

import contextlib
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
from ichkit.stages.predict.gate import GATE_NAME, Gated, gate_table, score_table
from ichkit.stages.predict.judge import Judged
from ichkit.stages.predict.model import RESEARCH_NOTE, Model
from ichkit.work.artifacts import digest_file, encode_json, package_versions, write_bytes_atomically

JSON_NAME, PAGE_NAME = "predictions.json", "predictions.html"
TABLES = ("slices", "studies", "rejected", "series_choice")
JUDGED_TABLES = ("scores", "reliability", "operating", "errors")
"""Written with labels alone."""
REGION_SCORES_NAME = "region_scores.csv"
_STEP_TABLES = (GATE_NAME, REGION_SCORES_NAME)
_OUTPUTS = (*(f"{name}.csv" for name in (*TABLES, *JUDGED_TABLES)), *_STEP_TABLES, JSON_NAME, PAGE_NAME)
DICOM_FOLDER = "dicom"
_SHOWN = 5
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
        judged: the predictions against a label file, or None.
        truth: slice_id and a column per class, of a file with labels per slice; None without one.
        gated: what a first model says of every study, or None.
        region_scores: `imaging.region_scores.SCORE_COLUMNS` of studies that are cut into regions, or None.
        region_threshold: from this probability on a region has the finding.
    """

    slices: pd.DataFrame
    studies: pd.DataFrame
    rejected: pd.DataFrame
    series_choice: pd.DataFrame
    model: Model
    is_pooled: bool = False
    judged: Judged | None = None
    truth: pd.DataFrame | None = None
    gated: Gated | None = None
    region_scores: pd.DataFrame | None = None
    region_threshold: float = 0.5


def refuse_foreign_files(out: Path) -> None:
    """Refuses to replace files that an earlier `predict` did not write or that changed since.

    Raises:
        ConfigError: names the files.
    """
    if (out / _UNFINISHED).is_file():
        return
    own = _files_of(out)
    if own:
        own = {**own, JSON_NAME: digest_file(out / JSON_NAME)}
    present = [name for name in _OUTPUTS if (out / name).exists()]
    present += [path.relative_to(out).as_posix() for path in sorted((out / DICOM_FOLDER).rglob("*")) if path.is_file()]
    foreign = [name for name in present if not (out / name).is_file() or digest_file(out / name) != own.get(name)]
    if foreign:
        raise ConfigError(
            f"predict: expected no files at {out} but those of an earlier `ichkit predict`, as it wrote them; found "
            f"{', '.join(foreign[:_SHOWN])}. Move them away, or choose another folder with --out."
        )


def _files_of(out: Path) -> dict[str, str]:
    """The files that an earlier call wrote, with their digests; empty without a readable predictions.json."""
    try:
        own = json.loads((out / JSON_NAME).read_text(encoding="utf-8"))["files"]
        return {str(name): str(digest) for name, digest in own.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_finished(out: Path) -> bool:
    """True if an output folder holds the whole result of an earlier call."""
    return (out / JSON_NAME).is_file() and not (out / _UNFINISHED).is_file()


def begin_output(out: Path) -> None:
    """Marks an output folder as unfinished, and removes what an earlier call wrote and this one may not."""
    write_bytes_atomically(out / _UNFINISHED, b"")
    earlier = _files_of(out)
    for name in (JSON_NAME, PAGE_NAME, *_STEP_TABLES, *(f"{name}.csv" for name in JUDGED_TABLES)):
        (out / name).unlink(missing_ok=True)
    for name in earlier:
        path = out / name
        if name.startswith(f"{DICOM_FOLDER}/") and path.resolve().is_relative_to((out / DICOM_FOLDER).resolve()):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()


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
        **_describe_steps(prediction),
        "studies": studies,
        "rejected": {reason: int(count) for reason, count in prediction.rejected["reason"].value_counts().items()},
        "versions": package_versions(),
    }


def _describe_steps(prediction: Prediction) -> dict[str, Any]:
    """What the first model says and the scores of regions; empty without them."""
    found: dict[str, Any] = {}
    if prediction.gated is not None:
        gate = prediction.gated.gate
        found["gate"] = {
            "name": gate.model.name,
            "task": gate.task.name,
            "learnt_from": gate.model.data,
            "threshold": round(gate.threshold, 6),
            "studies": _plain(prediction.gated.studies),
        }
    if prediction.region_scores is not None:
        found["region_scores"] = _plain(prediction.region_scores)
    return found


def render_steps(prediction: Prediction) -> list[Table]:
    """What the first model says and the scores of regions, by number without ids; empty without them."""
    tables = []
    if prediction.gated is not None:
        tables.append(gate_table(prediction.gated))
    if prediction.region_scores is not None:
        tables.append(score_table(prediction.region_scores))
    return tables


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
