"""The fold models of a stack: from descriptors (out-of-fold predictions) to final probabilities."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError, ConfigError, ContractError
from ichkit.core.logits import to_probabilities
from ichkit.core.tasks import Task, find_task
from ichkit.stacking.blend import Blend
from ichkit.stacking.calibration import Calibration
from ichkit.stacking.combine import MEAN_LOGIT, Ensemble
from ichkit.stacking.embeddings import Projection
from ichkit.stacking.rows import Rows, make_rows
from ichkit.stacking.table import BASE, BLEND, find_stacker
from ichkit.validation.coherence import make_coherent, make_logits_coherent
from ichkit.validation.scope import Scope
from ichkit.work.artifacts import encode_json
from ichkit.work.folder import is_name
from ichkit.work.schemas import BRAIN_SHARE, KEY, make_predictions

BLEND_FILE = "blend.json"
AVERAGED = -1
_MAX_FOLD_MODELS = 1000


@dataclass(frozen=True)
class FoldModel:
    """One fold model of a stack: the second stage that follows the first-stage models of one fold.

    Attributes:
        name: its folder below that of each stacker.
        fold: the first-stage fold whose descriptors it reads.
        calibration: of the base.
        calibrations: of each stacker, by name.
        blend: of the calibrated base and the calibrated stackers.
        scope: the classes that the runs predict together.
    """

    name: str
    fold: int
    calibration: Calibration
    calibrations: Mapping[str, Calibration]
    blend: Blend
    scope: Scope

    def predict_members(self, stack_folder: Path, rows: Rows) -> dict[str, np.ndarray]:
        """Name to (N, C) float64 logits: the calibrated base, and every stacker before its calibration."""
        base = self.calibration.apply(rows.combined_logits())
        logits = {BASE: base}
        for name in self.calibrations:
            logits[name] = find_stacker(name).load(stack_folder / name / self.name).predict(rows, base)
        return logits

    def predict(self, stack_folder: Path, rows: Rows) -> dict[str, np.ndarray]:
        """Kind to (N, C) float64 logits: every stacker and the blend; without stackers the base."""
        return self.combine(self.predict_members(stack_folder, rows))

    def combine(self, members: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Kind to (N, C) float64 coherent logits: every stacker calibrated, and the blend; from `predict_members`.

        NaN for classes that no run predicts. Without stackers there is one kind, the calibrated base.
        """
        calibrated = {name: calibration.apply(members[name]) for name, calibration in self.calibrations.items()}
        parts = [members[BASE] if name == BASE else calibrated[name] for name in self.blend.members]
        kinds = calibrated | {BLEND if calibrated else BASE: self.blend.apply(np.stack(parts))}
        known = {kind: np.where(self.scope.knows, logits, np.nan) for kind, logits in kinds.items()}
        return {kind: make_logits_coherent(logits, self.scope.task) for kind, logits in known.items()}


@dataclass(frozen=True)
class FoldModels:
    """All fold models of a stack.

    Attributes:
        runs: the runs whose descriptors are read, in this order.
        has_brain_shares: whether they were fitted with the brain share of slices, and need it for predictions.
        has_embeddings: whether they use embeddings; the projections are then in the folder of the stack.
        ensemble: how the runs are combined.
    """

    task: Task
    runs: tuple[str, ...]
    has_brain_shares: bool
    has_embeddings: bool
    fold_models: tuple[FoldModel, ...]
    ensemble: Ensemble

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its predictions: its stackers, then the blend; without stackers the base alone."""
        stackers = tuple(self.fold_models[0].calibrations)
        return (*stackers, BLEND) if stackers else (BASE,)

    def encode(self) -> bytes:
        """The bytes of `blend.json`."""
        return encode_json(
            {
                "task": self.task.name,
                "classes": self.task.classes,
                "runs": self.runs,
                "combine": self.ensemble.combiner.name,
                "scopes": [scope.facts() for scope in self.ensemble.scopes],
                "has_brain_shares": self.has_brain_shares,
                "has_embeddings": self.has_embeddings,
                "members": self.fold_models[0].blend.members,
                "chains": [
                    {
                        "name": one.name,
                        "fold": one.fold,
                        "calibrations": {
                            name: {"slope": calibration.slope.tolist(), "intercept": calibration.intercept.tolist()}
                            for name, calibration in ({BASE: one.calibration} | dict(one.calibrations)).items()
                        },
                        "weights": one.blend.weights.tolist(),
                    }
                    for one in self.fold_models
                ],
            }
        )


def read_fold_models(stack_folder: Path) -> FoldModels:
    """The fold models of a stack.

    Raises:
        ArtifactError: `blend.json` is missing or damaged.
    """
    path = stack_folder / BLEND_FILE
    try:
        note = json.loads(path.read_text())
        members, task = tuple(note["members"]), find_task(note["task"])
        if not 1 <= len(note["chains"]) <= _MAX_FOLD_MODELS:
            raise ValueError(f"expected 1 to {_MAX_FOLD_MODELS} fold models")
        runs = tuple(note["runs"])
        scopes = [Scope.of_facts(task, facts, str(path)) for facts in note.get("scopes", [{}] * len(runs))]
        ensemble = Ensemble.of(note.get("combine", MEAN_LOGIT), dict(zip(runs, scopes, strict=True)))
        return FoldModels(
            task=task,
            runs=runs,
            has_brain_shares=bool(note["has_brain_shares"]),
            has_embeddings=bool(note["has_embeddings"]),
            fold_models=tuple(_read_fold_model(fold_model, members, ensemble.scope) for fold_model in note["chains"]),
            ensemble=ensemble,
        )
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise ArtifactError(f"{path}: not readable ({error}). Run `ichkit stack` again.") from error


def _read_fold_model(note: Mapping[str, Any], members: tuple[str, ...], scope: Scope) -> FoldModel:
    size = scope.task.num_classes
    calibrations = {
        name: Calibration(_read_numbers(fit["slope"], (size,)), _read_numbers(fit["intercept"], (size,)))
        for name, fit in note["calibrations"].items()
    }
    if not is_name(note["name"]):
        raise ValueError("the name of a fold model is not a folder name")
    return FoldModel(
        name=note["name"],
        fold=int(note["fold"]),
        calibration=calibrations.pop(BASE),
        calibrations=calibrations,
        blend=Blend(members, _read_numbers(note["weights"], (len(members), size))),
        scope=scope,
    )


def _read_numbers(note: object, shape: tuple[int, ...]) -> np.ndarray:
    """The float64 array of a list.

    Raises:
        ValueError: another shape, or not finite.
    """
    numbers = np.array(note, np.float64)
    if numbers.shape != shape or not np.isfinite(numbers).all():
        raise ValueError(f"expected {shape} finite numbers, found {numbers.shape}")
    return numbers


def predict_fold_models(
    stack_folder: Path,
    descriptors: Mapping[str, Mapping[int, pd.DataFrame]],
    slices: pd.DataFrame,
    embeddings: Mapping[str, Mapping[int, np.ndarray]] | None = None,
) -> dict[str, pd.DataFrame]:
    """Predictions of every kind, averaged over the fold models: each first-stage fold followed by its second stage.

    Args:
        descriptors: run, then fold, to the predictions table of that first-stage model; others are ignored.
        slices: slice_id, study_id, slice_index, num_slices, position_mm, gap_mm, padded, one row per slice; brain_share
            if the stack was fitted with it.
        embeddings: run, then fold, to (N, F) features with rows as in that table, if the stack was fitted with them.

    Returns:
        Kind ("fusion", "lightgbm", "blend", as configured) to a predictions table with fold -1, sorted by study_id
        and slice_index: the arithmetic mean of the coherent probabilities of the fold models.

    Raises:
        ContractError: descriptors of a needed run and fold are not given, or have other slices; or the brain shares or
            embeddings that the stack was fitted with are not given.
        ArtifactError: a file of the stack is missing or damaged.

    Source: chosen here: these are the same fold models whose out-of-fold scores are reported.
    """
    stack, slices = read_fold_models(stack_folder), slices.sort_values(KEY, ignore_index=True)
    totals = {kind: np.zeros((len(slices), stack.task.num_classes)) for kind in stack.kinds}
    for _, kinds in predict_each_fold_model(stack_folder, descriptors, slices, embeddings):
        for kind, logits in kinds.items():
            totals[kind] += to_probabilities(logits)
    return {
        # Made coherent again, because rounding of sums and sigmoids may change the last bit.
        kind: make_predictions(slices, make_coherent(total / len(stack.fold_models), stack.task), stack.task, AVERAGED)
        for kind, total in totals.items()
    }


def predict_each_fold_model(
    stack_folder: Path,
    descriptors: Mapping[str, Mapping[int, pd.DataFrame]],
    slices: pd.DataFrame,
    embeddings: Mapping[str, Mapping[int, np.ndarray]] | None = None,
) -> Iterator[tuple[Rows, dict[str, np.ndarray]]]:
    """The descriptors that each fold model reads, and its (N, C) float64 logits by kind, one fold model at a time.

    Arguments and errors as for `predict_fold_models`; rows are sorted by study_id and slice_index.
    """
    stack = read_fold_models(stack_folder)
    if stack.has_brain_shares and BRAIN_SHARE not in slices:
        raise ContractError(
            f"stack: expected the column {BRAIN_SHARE} of every slice, because {stack_folder.name} was fitted with it; "
            "found none."
        )
    slices = slices.sort_values(KEY, ignore_index=True)
    for fold_model in stack.fold_models:
        tables = _tables_of(descriptors, stack.runs, fold_model.fold)
        projected = _project(stack_folder, stack, fold_model.fold, tables, embeddings)
        rows = make_rows(tables, slices, stack.task, projected, stack.ensemble)
        yield rows, fold_model.predict(stack_folder, rows)


def _tables_of(
    descriptors: Mapping[str, Mapping[int, pd.DataFrame]], runs: Sequence[str], fold: int
) -> list[pd.DataFrame]:
    for run in runs:
        if fold not in descriptors.get(run, {}):
            found = {name: sorted(tables) for name, tables in descriptors.items()}
            raise ContractError(
                f"stack: expected descriptors of run {run}, fold {fold}, found {found}. "
                "Give the tables of every run and fold of the stack."
            )
    return [descriptors[run][fold] for run in runs]


def projection_path(stack_folder: Path, run: str, fold: int) -> Path:
    """The file with the projection of one network's features to the shared space."""
    return stack_folder / "projections" / run / f"fold{fold}.npy"


def _project(
    stack_folder: Path,
    stack: FoldModels,
    fold: int,
    tables: Sequence[pd.DataFrame],
    embeddings: Mapping[str, Mapping[int, np.ndarray]] | None,
) -> np.ndarray | None:
    """(N, E) float32 embeddings of all runs, rows sorted by study_id and slice_index; None if they are not used."""
    if not stack.has_embeddings:
        return None
    parts = []
    for run, table in zip(stack.runs, tables, strict=True):
        if embeddings is None or fold not in embeddings.get(run, {}):
            raise ContractError(
                f"stack: expected embeddings of run {run}, fold {fold}, because {stack_folder.name} was fitted with "
                "them; found none."
            )
        path = projection_path(stack_folder, run, fold)
        try:
            projection = Projection.of_array(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not readable ({error}). Run `ichkit stack` again.") from error
        order = table.reset_index(drop=True).sort_values(KEY).index
        parts.append(projection.apply(embeddings[run][fold])[order])
    return np.concatenate(parts, axis=1)
