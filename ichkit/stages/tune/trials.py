"""The trials of a search: their settings and outcome in one file, their values read from the runs they trained."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError, ContractError
from ichkit.imaging.store import Prepared
from ichkit.validation.objectives import OUT_OF_FOLD, Objective, measure_history
from ichkit.validation.scope import Scope, label_array
from ichkit.validation.selection import LossSums
from ichkit.validation.tallies import ScoredRows
from ichkit.work.artifacts import Manifest, digest_table, encode_json, has_artifact, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.places import partial_of
from ichkit.work.schemas import check_predictions

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
TRIALS_NAME = "trials.json"
"""In the folder of a search: its settings, and the trials so far."""
_KEPT_EPOCH = "kept_epoch"


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0.
        params: dimension to value, see `space.Params`.
        run: the run that it trained; that of an earlier trial with the same settings.
        state: COMPLETE, PRUNED (ended after some of the folds) or FAILED.
        reason: why it failed.
        values: fold to the objective on it, of the finished folds.
        value: the objective of the trial: the mean over its folds; out of fold, of all rows together. NaN if it failed.
        sums: log losses by patient; only for an objective out of fold.
        seconds: time of training and predicting its run.
    """

    number: int
    params: dict[str, str | int | float]
    run: str
    state: str = COMPLETE
    reason: str = ""
    values: dict[int, float] = field(default_factory=dict)
    value: float = float("nan")
    sums: LossSums | None = None
    seconds: float = 0.0

    @property
    def folds(self) -> tuple[int, ...]:
        """The finished folds, in the order they were trained."""
        return tuple(self.values)

    def is_whole(self, folds: Sequence[int]) -> bool:
        """Whether it has ended: pruned, failed, or with every fold trained."""
        return self.state != COMPLETE or self.folds == tuple(folds)

    def record(self) -> dict[str, Any]:
        """What the file of trials keeps."""
        kept = {"number": self.number, "params": self.params, "run": self.run, "state": self.state}
        return kept | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class Saved:
    """The file of trials.

    Attributes:
        settings: of the search.
        data: digest of the data that the runs were trained on.
        trials: without their values.
    """

    settings: dict[str, Any]
    data: str
    trials: Sequence[Trial]

    def encode(self) -> bytes:
        """The bytes of the file."""
        trials = [trial.record() for trial in self.trials]
        return encode_json({"settings": self.settings, "data": self.data, "trials": trials})


def read_trials(folder: Path) -> Saved | None:
    """The file of a search that is begun or finished; None if there is none.

    Raises:
        ArtifactError: the file cannot be read.
    """
    found = [path for path in (partial_of(folder) / TRIALS_NAME, folder / TRIALS_NAME) if path.is_file()]
    if not found:
        return None
    try:
        tree = json.loads(found[0].read_text(encoding="utf-8"))
        return Saved(tree["settings"], tree["data"], [Trial(**record) for record in tree["trials"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{found[0]}: cannot be read ({type(error).__name__}: {error}). Start the search over with --fresh."
        ) from error


@dataclass(frozen=True)
class Measure:
    """How the values of trials are read.

    Attributes:
        folds: of the search, in the order they are trained.
    """

    work: WorkFolder
    prepared: Prepared
    objective: Objective
    folds: tuple[int, ...]

    def trial(self, trial: Trial, scope: Scope) -> Trial:
        """The trial with the values of its finished folds; those after an unfinished one do not count.

        Args:
            scope: what its run predicts.

        Raises:
            ArtifactError, ContractError: a table of its run is damaged or of other slices.
        """
        values, seconds, sums = {}, 0.0, []
        for fold in self.folds:
            folder = self.work.fold(trial.run, fold)
            if not has_artifact(folder):
                break
            manifest = read_manifest(folder)
            seconds += float(manifest.facts["seconds"])
            if self.objective.of == OUT_OF_FOLD:
                sums.append(self._sum_losses(folder, manifest, scope, fold))
                values[fold] = sums[-1].loss(scope.task.weight_array())
            else:
                values[fold] = measure_history(
                    self.objective, read_history(folder, manifest), int(manifest.facts[_KEPT_EPOCH])
                )
        whole = LossSums.join(sums) if sums else None
        value = float(np.mean(list(values.values()))) if values else float("nan")
        if whole is not None:
            value = whole.loss(scope.task.weight_array())
        measured = replace(trial, values=values, value=value, sums=whole, seconds=seconds)
        if trial.state != FAILED and values and not np.isfinite(value):
            return replace(measured, state=FAILED, reason=f"{self.objective.name} is not defined on these patients")
        return measured

    def digests(self, trial: Trial) -> dict[str, str]:
        """Digests of what its values are read from, by path in `runs/`: the times of a history do not count."""
        found = {}
        for fold in self.folds:
            folder = self.work.fold(trial.run, fold)
            if not has_artifact(folder):
                break
            manifest = read_manifest(folder)
            if self.objective.of == OUT_OF_FOLD:
                found[f"{trial.run}/fold{fold}/oof.parquet"] = manifest.sha256_of("oof.parquet")
            else:
                scores = read_history(folder, manifest)[["phase", "epoch", self.objective.column]]
                found[f"{trial.run}/fold{fold}/history.csv"] = digest_table(scores)
        return found

    def _sum_losses(self, folder: Path, manifest: Manifest, scope: Scope, fold: int) -> LossSums:
        """The log losses of the held-out patients of a fold, which may have none with a known label."""
        rows = self.prepared.split("train")
        rows = scope.mask(rows[rows["fold"] == fold].reset_index(drop=True))
        table = read_table(folder / "oof.parquet", manifest.sha256_of("oof.parquet"))
        check_predictions(table, scope.task, str(folder / "oof.parquet"), rows)
        rows = rows.set_index("slice_id").loc[table["slice_id"]].reset_index()
        probabilities = table[scope.task.probability_columns].to_numpy(np.float64)
        labels = np.where(np.isnan(probabilities), np.nan, label_array(rows, scope.task))
        return LossSums.of(ScoredRows({}, probabilities, labels, rows["patient_id"].to_numpy()))


def read_history(folder: Path, manifest: Manifest) -> pd.DataFrame:
    """The history of a finished fold.

    Raises:
        ArtifactError: it cannot be read.
        ContractError: it has no epoch.
    """
    history = read_table(folder / "history.csv", manifest.sha256_of("history.csv"))
    if history.empty:
        raise ContractError(f"{folder / 'history.csv'}: expected one row per epoch, found none. Train the fold again.")
    return history
