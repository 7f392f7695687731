"""`ichkit stack`: cross-fitted stacking of the out-of-fold predictions (descriptors) of one or more runs.

The model for fold k is fitted on the other folds only, so flipping all labels of fold k leaves its predictions
byte-identical. As in all stacking, the networks that made the descriptors of the other folds were trained on fold k.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError
from ichkit.core.logits import to_probabilities
from ichkit.core.progress import Meter, StopFlag, logger, stop_on_signal
from ichkit.core.seeding import derive_seed
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import Task
from ichkit.engine.parallel import WorkerDied, run_tasks
from ichkit.stacking.blend import fit_blend
from ichkit.stacking.calibration import no_calibration
from ichkit.stacking.choice import MIN_PATIENTS
from ichkit.stacking.fold_models import BLEND_FILE, FoldModel, FoldModels, predict_fold_models, projection_path
from ichkit.stacking.inner import Training, make_training_part
from ichkit.stacking.inputs import FoldModelPlan, Inputs
from ichkit.stacking.rows import Rows, make_rows
from ichkit.stacking.table import BASE, find_stacker
from ichkit.stages.stack.facts import FoldModelLogits, describe_stack, write_importance
from ichkit.stages.stack.plan import MADE_BY, StackOptions, StackPlan, plan
from ichkit.validation.coherence import make_coherent
from ichkit.validation.scope import label_array
from ichkit.work.artifacts import ArtifactWriter, FileDigest, Manifest, digest_file, digest_of, encode_json
from ichkit.work.locks import alone
from ichkit.work.places import MARK, partial_of
from ichkit.work.schemas import make_predictions

__all__ = ["StackOptions", "StackPlan", "plan", "run"]

KIND = "stack"
_PLAN_FILE = "plan.json"
_INNER_FILE, _IN_SAMPLE_FILE = "inner.npy", "in_sample.npy"
# With more rows, the memory that boosters leave allocated in a worker is worth a new process.
_MANY_ROWS = 100_000
# The same stacker without embeddings, fitted for comparison and then discarded.
_REFERENCE = "without_embeddings"


@dataclass(frozen=True)
class FitTask:
    """One stacker of one fold model, as sent to a worker: with its training part, without the rows it predicts."""

    stacker: str
    fold_model: str
    training: Training
    task: Task
    config: StackConfig
    seed: int
    is_reference: bool = False

    @property
    def folder(self) -> str:
        """The folder of the model, relative to the artifact."""
        return (
            f"{_REFERENCE}/{self.stacker}/{self.fold_model}"
            if self.is_reference
            else f"{self.stacker}/{self.fold_model}"
        )


@alone(lambda plan: plan.final, lambda old: plan(old.config, old.work, old.options))
def run(plan: StackPlan) -> Manifest:
    """Fits the stack unless it is up to date, and returns its manifest.

    Raises:
        ArtifactError: a table is damaged, or a worker died.
        ContractError: a table breaks the out-of-fold contract.
        ConfigError: an unknown preset or feature group.
        Stopped: a stop was requested; finished fits are kept.
    """
    if plan.current is not None:
        return plan.current
    began = time.monotonic()
    config, inputs, task, stackers, model_plans = plan.config, plan.inputs, plan.task, plan.stackers, plan.fold_models
    tables = [inputs.out_of_fold(run) for run in inputs.runs]
    rows = make_rows(tables, inputs.train, task, inputs.out_of_fold_embeddings(), inputs.ensemble)
    trainings = {
        fold_model.name: _make_training(fold_model, rows, inputs.train, task, config) for fold_model in model_plans
    }
    _log_support(trainings, task)
    fits = _list_fits(stackers, trainings, task, config)
    writer = _open_writer(plan.final, {"settings": plan.settings, "inputs": dict(inputs.digests)})
    with stop_on_signal() as flag:
        _fit_all(writer, fits, flag)
    fold_models = tuple(
        _make_fold_model(writer.folder, fold_model, trainings[fold_model.name], stackers, config.stack)
        for fold_model in model_plans
    )
    stack = FoldModels(
        task, inputs.runs, inputs.has_brain_shares, config.stack.embeddings.enabled, fold_models, inputs.ensemble
    )
    results = [
        _predict_held(writer.folder, model_plan, fold_model, trainings[model_plan.name], rows, stackers)
        for model_plan, fold_model in zip(model_plans, fold_models, strict=True)
    ]
    pace = _write_stack(writer, stack, results, inputs)
    _discard_intermediates(writer, fits)
    name = plan.final.name
    fitted = ", ".join(stackers) or "the base"
    logger.info("stack %s: %d fold models of %s on %d slices", name, len(fold_models), fitted, len(rows))
    facts = {
        "name": name,
        "runs": list(inputs.runs),
        "folds": list(inputs.folds),
        "kinds": list(stack.kinds),
        "chains": [fold_model.name for fold_model in model_plans],
        "support": {name: training.support.tolist() for name, training in trainings.items()},
        "min_support": MIN_PATIENTS,
        "data": inputs.data,
        "num_slices": len(inputs.train),
        "task": task.name,
        **inputs.ensemble.scope.facts(),
        "seconds": round(time.monotonic() - began, 1),
        "seconds_per_study": pace,
        **describe_stack(stack, results, label_array(inputs.train, task)),
    }
    return writer.commit(settings=plan.settings, inputs=dict(inputs.digests), facts=facts)


def fit_member(fit: FitTask) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """Fits one stacker of one fold model; runs in a worker.

    Returns:
        The files of the model; the cross-fitted (inner rows, C) float64 logits; and the in-sample logits of the model
        for the same rows.
    """
    training = fit.training
    model, inner = find_stacker(fit.stacker).fit(training, fit.task, fit.config, fit.seed)
    chosen = training.chosen_rows()
    in_sample = model.predict(training.rows.take(chosen), training.base_logits()[chosen])
    return model.encode(), inner[chosen], in_sample


def _list_fits(stackers: Sequence[str], trainings: Mapping[str, Training], task: Task, config: Config) -> list[FitTask]:
    """Every stacker of every fold model and, for those that use embeddings, the same without."""
    fits = []
    for stacker in stackers:
        for fold_model, training in trainings.items():
            seed = derive_seed(config.seed, "stack", fold_model, stacker)
            bare = training.without_embeddings()
            if config.stack.embeddings.enabled and find_stacker(stacker).takes_embeddings:
                fits.append(FitTask(stacker, fold_model, training, task, config.stack, seed))
                fits.append(FitTask(stacker, fold_model, bare, task, config.stack, seed, is_reference=True))
            else:
                fits.append(FitTask(stacker, fold_model, bare, task, config.stack, seed))
    return fits


def _make_training(plan: FoldModelPlan, rows: Rows, train: pd.DataFrame, task: Task, config: Config) -> Training:
    """The training part of a fold model: all rows except those it predicts."""
    others = ~plan.held
    seed = derive_seed(config.seed, "stack inner", plan.name)
    settings = config.stack
    return make_training_part(
        rows.take(others), train[others], task, settings.num_inner, seed, calibrate=settings.calibrate
    )


def _log_support(trainings: Mapping[str, Training], task: Task) -> None:
    """Warns about classes with too few patients, whose base predictions are returned."""
    fewest = np.min([training.support for training in trainings.values()], axis=0)
    few = [f"{name} ({count})" for name, count in zip(task.classes, fewest, strict=True) if count < MIN_PATIENTS]
    if few:
        logger.warning(
            "stack: stackers, calibration and blend are fitted for classes with at least %d positive and %d negative "
            "patients in the training part; for others the base is returned. Too few: %s",
            MIN_PATIENTS,
            MIN_PATIENTS,
            ", ".join(few),
        )


def _open_writer(final: Path, plan: dict[str, Any]) -> ArtifactWriter:
    """A writer that keeps the finished fits of an interrupted call of the same plan, and otherwise starts empty."""
    note = {"digest": digest_of(plan)}
    plan_path = partial_of(final) / _PLAN_FILE
    goes_on = plan_path.is_file() and plan_path.read_bytes() == encode_json(note)
    writer = ArtifactWriter(final, KIND, resume=goes_on)
    for path in sorted(path for path in writer.folder.rglob("*") if path.is_file()):
        if path.name == MARK:
            continue
        if path.name.startswith("."):  # partial file of a killed process
            path.unlink()
            continue
        writer.record(path.relative_to(writer.folder).as_posix(), FileDigest(digest_file(path), path.stat().st_size))
    writer.write_json(_PLAN_FILE, note)
    return writer


def _fit_all(writer: ArtifactWriter, tasks: Sequence[FitTask], flag: StopFlag) -> None:
    """Fits all unfinished tasks; stackers that must not share a process with torch come first."""
    pending = [fit for fit in tasks if not (writer.folder / fit.folder / _INNER_FILE).is_file()]
    with Meter("stack", len(tasks), "fits") as meter:
        meter.skip(len(tasks) - len(pending))
        for needs_torch in (False, True):
            group = [fit for fit in pending if find_stacker(fit.stacker).needs_torch == needs_torch]
            is_large = any(len(fit.training.rows) > _MANY_ROWS for fit in group)
            fresh = not needs_torch or is_large
            for position, result in run_tasks(fit_member, group, isolated=True, fresh=fresh, stop=flag):
                fit = group[position]
                if isinstance(result, WorkerDied):
                    raise ArtifactError(
                        f"stack: the worker that fitted {fit.folder} died: {result.reason}. Memory is the usual "
                        f"reason: free some and run `{MADE_BY}` again; finished fits are kept."
                    )
                files, inner, in_sample = result
                for file_name, data in files.items():
                    writer.write_bytes(f"{fit.folder}/{file_name}", data)
                writer.write_array(f"{fit.folder}/{_IN_SAMPLE_FILE}", in_sample)
                writer.write_array(f"{fit.folder}/{_INNER_FILE}", inner)
                meter.advance()
                flag.check(f"{meter.done} of {meter.total} fits are kept")
            flag.check(f"{meter.done} of {meter.total} fits are kept")


def _make_fold_model(
    folder: Path, plan: FoldModelPlan, training: Training, stackers: Sequence[str], config: StackConfig
) -> FoldModel:
    """The calibrations and the blend of a fold model, fitted on the inner patients of its training part."""
    rows = training.chosen_rows()
    members, calibrations = [training.inner_base_logits()[rows]], {}
    for stacker in stackers:
        inner = np.load(folder / stacker / plan.name / _INNER_FILE, allow_pickle=False)
        calibrations[stacker] = no_calibration(inner.shape[1])
        if config.calibrate:
            calibrations[stacker], inner = training.calibrate(inner)
        members.append(inner)
    blend = fit_blend(np.stack(members), training.labels[rows], (BASE, *stackers), config.blend.tolerance)
    scope = training.rows.ensemble.scope
    return FoldModel(plan.name, plan.fold, training.calibration, calibrations, blend, scope)


def _predict_held(
    folder: Path, plan: FoldModelPlan, fold_model: FoldModel, training: Training, rows: Rows, stackers: Sequence[str]
) -> FoldModelLogits:
    """The held-out predictions of a fold model and, for comparison, its in-sample predictions."""
    held, chosen = rows.take(plan.held), training.chosen_rows()
    seen = {BASE: training.base_logits()[chosen]}
    references = {}
    for stacker in stackers:
        seen[stacker] = np.load(folder / stacker / plan.name / _IN_SAMPLE_FILE, allow_pickle=False)
        reference = folder / _REFERENCE / stacker / plan.name
        if reference.is_dir():
            base = fold_model.calibration.apply(held.combined_logits())
            references[stacker] = find_stacker(stacker).load(reference).predict(held.without_embeddings(), base)
    members = fold_model.predict_members(folder, held)
    return FoldModelLogits(
        held=np.flatnonzero(plan.held),
        members=members,
        kinds=fold_model.combine(members),
        references=references,
        seen=training.numbers[chosen],
        seen_members=seen,
        seen_kinds=fold_model.combine(seen),
    )


def _write_stack(
    writer: ArtifactWriter, stack: FoldModels, results: Sequence[FoldModelLogits], inputs: Inputs
) -> float | None:
    """Writes blend and projections, then the tables of every kind: out of fold, test and external sets.

    Returns:
        Seconds that all fold models take to predict a study of a new set; None without one.
    """
    seconds, num_read = 0.0, 0
    writer.write_bytes(BLEND_FILE, stack.encode())
    for run, anchored in inputs.embeddings.items():
        for fold, projection in anchored.projections.items():
            writer.write_array(projection_path(Path(), run, fold).as_posix(), projection.as_array())
    write_importance(writer, stack)
    for kind in stack.kinds:
        logits = np.empty((len(inputs.train), stack.task.num_classes))
        for result in results:
            logits[result.held] = result.kinds[kind]
        p = make_coherent(to_probabilities(logits), stack.task)
        writer.write_table(f"{kind}_oof.parquet", make_predictions(inputs.train, p, stack.task))
    for split, slices in inputs.unseen.items():
        features = {run: anchored.features[split] for run, anchored in inputs.embeddings.items()}
        began = time.monotonic()
        predicted = predict_fold_models(writer.folder, inputs.tables[split], slices, features)
        seconds, num_read = seconds + time.monotonic() - began, num_read + slices["study_id"].nunique()
        for kind, table in predicted.items():
            writer.write_table(f"{kind}_{split}.parquet", table)
    return round(seconds / num_read, 5) if num_read else None


def _discard_intermediates(writer: ArtifactWriter, fits: Sequence[FitTask]) -> None:
    """Removes intermediate files: the plan, the logits of fits, and the models without embeddings."""
    names = [_PLAN_FILE, *(f"{fit.folder}/{name}" for fit in fits for name in (_INNER_FILE, _IN_SAMPLE_FILE))]
    names += [name for name in writer.files if name.startswith(f"{_REFERENCE}/")]
    for name in dict.fromkeys(names):
        writer.discard(name)
    shutil.rmtree(writer.folder / _REFERENCE, ignore_errors=True)
