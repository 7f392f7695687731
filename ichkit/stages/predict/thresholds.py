"""Thresholds of a model, chosen on its out-of-fold rows and carried in its export."""

import json
from collections.abc import Mapping

import numpy as np

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, IchkitError
from ichkit.core.tasks import Task
from ichkit.imaging.store import Prepared
from ichkit.stages.predict.foreign import refuse_failures
from ichkit.stages.predict.model import Model, model_of
from ichkit.stages.scores.score_source import read_out_of_fold
from ichkit.validation.catalog import find_sources
from ichkit.validation.operating import choose_operating_points
from ichkit.validation.scores import POOLED
from ichkit.validation.thresholds import F1_AIM, choose_thresholds
from ichkit.work.folder import WorkFolder

THRESHOLDS_NAME = "thresholds.json"
SLICE, STUDY = "slice", "study"
Thresholds = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Level (slice, study) to operating point (and the best F1) to class to threshold; undefined ones are left out."""


def measure_thresholds(work: WorkFolder, model: Model, task: Task, config: Config) -> Thresholds:
    """The thresholds of a model of the work folder, chosen on all its out-of-fold rows; empty without its store."""
    try:
        prepared = Prepared.open(work.prepared, task)
        sources = find_sources(work, task)
    except ArtifactError:  # a model folder that was copied without its data
        return {}
    runs = _folders(model)
    source = next((one for one in sources if one.name == model.name and _folders(model_of(work, one)) == runs), None)
    if source is None:
        return {}
    try:
        rows = read_out_of_fold(source, prepared, config)
    except IchkitError:  # other scans were prepared since: its rows are not those of the store
        return {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for level, of_level, part in ((SLICE, rows.slices, rows.part), (STUDY, rows.studies, rows.part_of_study)):
        points = dict(choose_operating_points(of_level, part, [POOLED])[POOLED])
        best = choose_thresholds(of_level.probabilities, of_level.labels, of_level.order, part, [POOLED])
        points[F1_AIM] = best[POOLED][F1_AIM]
        found[level] = {
            name: {label: float(value) for label, value in zip(task.classes, values, strict=True) if np.isfinite(value)}
            for name, values in points.items()
        }
    return found


def read_thresholds(model: Model, task: Task) -> Thresholds:
    """The thresholds in an export; empty for one of an earlier version.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = next(iter(next(iter(model.runs.values())).values())).parents[2] / THRESHOLDS_NAME
    if not path.is_file():
        return {}
    with refuse_failures(path.parent):
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            level: {
                str(name): {label: float(of[label]) for label in task.classes if label in of}
                for name, of in found[level].items()
            }
            for level in (SLICE, STUDY)
        }


def as_array(of_point: Mapping[str, float], task: Task) -> np.ndarray:
    """(C,) thresholds, NaN where undefined."""
    return np.array([of_point.get(name, np.nan) for name in task.classes])


def _folders(model: Model) -> list[str]:
    """The folders of its networks and its stack."""
    folds = [folder for of_run in model.runs.values() for folder in of_run.values()]
    return sorted(str(folder.resolve()) for folder in (*folds, *([] if model.stack is None else [model.stack])))
