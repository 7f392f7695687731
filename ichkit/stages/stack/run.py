"""Stage 2: descriptors of one or more runs to final probabilities, every model fitted without the fold it predicts.

What ordinary stacking keeps: the model for fold k learns from descriptors of the other folds, and the networks behind
those saw fold k. Its own labels never enter: flipping them all leaves its predictions as they are, byte for byte.
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
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.progress import Meter, StopFlag, logger, stop_on_signal
from ichkit.core.seeding import derive_seed
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import Task, find_task
from ichkit.engine.parallel import WorkerDied, run_tasks
from ichkit.stacking.blend import fit_blend
from ichkit.stacking.calibration import no_calibration
from ichkit.stacking.chain import BLEND_FILE, Chain, Chains, predict_chains, projection_path
from ichkit.stacking.inner import Training, make_training_part
from ichkit.stacking.inputs import ChainPlan, Inputs, check_name, plan_chains, read_inputs
from ichkit.stacking.rows import Rows, make_rows, to_probabilities
from ichkit.stacking.table import BASE, find_stacker
from ichkit.stages.stack.facts import ChainLogits, describe_stack, write_importance
from ichkit.work.artifacts import (
    ArtifactWriter,
    FileDigest,
    Manifest,
    digest_file,
    digest_of,
    encode_json,
    has_artifact,
    partial_of,
    read_manifest,
)
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import make_predictions

KIND = "stack"
MADE_BY = "ichkit stack"
_PLAN_FILE = "plan.json"
_INNER_FILE, _IN_SAMPLE_FILE = "inner.npy", "in_sample.npy"
# From here on what boosters leave behind in a worker is worth a new one.
_MANY_ROWS = 100_000
# The same stacker without embeddings: fitted to show what they gain, then thrown away.
_REFERENCE = "without_embeddings"


@dataclass(frozen=True)
class FitTask:
    """One stacker of one chain, as it travels to a worker: its training part and nothing of the rows it predicts."""

    stacker: str
    chain: str
    training: Training
    task: Task
    config: StackConfig
    seed: int
    is_reference: bool = False

    @property
    def folder(self) -> str:
        """Where the model's files go, relative to the artifact."""
        return f"{_REFERENCE}/{self.stacker}/{self.chain}" if self.is_reference else f"{self.stacker}/{self.chain}"


def run(config: Config, work: WorkFolder, *, runs: list[str] | None = None, name: str | None = None) -> Manifest:
    """Makes the stack of some runs, unless it is there already, and returns its manifest.

    Args:
        runs: names of runs; None takes all complete ones (see `choose_runs`).
        name: of the stack; None joins the runs by `+`.

    Raises:
        ArtifactError: nothing was trained, or a run, fold or table is missing or damaged.
        ContractError: a table breaks the out-of-fold contract.
        ConfigError: an unknown stacker, strength or group of features, a name that cannot name a folder, or embeddings
            that no stacker looks at.
        Stopped: a stop was asked for; finished fits are kept.

    Example:
        >>> run(load_config("demo"), WorkFolder(Path("work"))).facts["name"]
        'demo'
    """
    began, task = time.monotonic(), find_task(config.task)
    stackers = choose_stackers(config.stack)
    inputs = read_inputs(work, task, runs, config.stack.embeddings)
    final = place_of(work, inputs, name)
    settings = settings_of(config, inputs)
    standing = find_standing(final, settings, inputs)
    if standing is not None:
        return standing
    tables = [inputs.out_of_fold(run) for run in inputs.runs]
    rows = make_rows(tables, inputs.train, task, inputs.out_of_fold_embeddings())
    plans = plan_chains(inputs, task, config.stack.num_parts, config.seed)
    trainings = {plan.name: _make_training(plan, rows, inputs.train, task, config) for plan in plans}
    fits = _list_fits(stackers, trainings, task, config)
    writer = _open_writer(final, {"settings": settings, "inputs": dict(inputs.digests)})
    with stop_on_signal() as flag:
        _fit_all(writer, fits, flag)
    chains = tuple(_make_chain(writer.folder, plan, trainings[plan.name], stackers, config.stack) for plan in plans)
    stack = Chains(task, inputs.runs, inputs.has_brain_shares, config.stack.embeddings.enabled, chains)
    results = [
        _predict_held(writer.folder, plan, chain, trainings[plan.name], rows, stackers)
        for plan, chain in zip(plans, chains, strict=True)
    ]
    _write_stack(writer, stack, results, inputs)
    _discard_notes(writer, fits)
    logger.info("stack %s: %d chains of %s on %d slices", final.name, len(plans), ", ".join(stackers), len(rows))
    facts = {
        "name": final.name,
        "runs": list(inputs.runs),
        "folds": list(inputs.folds),
        "kinds": list(stack.kinds),
        "chains": [plan.name for plan in plans],
        "data": inputs.data,
        "num_slices": len(inputs.train),
        "task": task.name,
        "seconds": round(time.monotonic() - began, 1),
        **describe_stack(stack, results, inputs.train[list(task.classes)].to_numpy(np.float64)),
    }
    return writer.commit(settings=settings, inputs=dict(inputs.digests), facts=facts)


def place_of(work: WorkFolder, inputs: Inputs, name: str | None) -> Path:
    """Where a stack stands: its name, or its runs joined by `+`.

    Raises:
        ConfigError: a name that cannot name a folder.
    """
    return work.stacks / (check_name(name) if name else "+".join(inputs.runs))


def settings_of(config: Config, inputs: Inputs) -> dict[str, Any]:
    """What decides a stack besides its inputs."""
    runs, stack = list(inputs.runs), config.stack.settings()
    return {"task": find_task(config.task).name, "seed": config.seed, "runs": runs, "stack": stack}


def fit_member(fit: FitTask) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """Fits one stacker of one chain; runs in a worker.

    Returns:
        The model's files; the (rows of inner parts, C) float64 logits of its inner models; and those that the model
        itself gives the same rows, which it learnt from.
    """
    training = fit.training
    model, inner = find_stacker(fit.stacker).fit(training, fit.task, fit.config, fit.seed)
    chosen = training.chosen_rows()
    in_sample = model.predict(training.rows.take(chosen), training.base_logits()[chosen])
    return model.encode(), inner[chosen], in_sample


def choose_stackers(config: StackConfig) -> tuple[str, ...]:
    """The configured stackers, each once.

    Raises:
        ConfigError: one does not exist, or embeddings are asked for and none of them looks at any.
    """
    stackers = tuple(find_stacker(stacker).name for stacker in dict.fromkeys(config.stackers))
    if config.embeddings.enabled and not any(find_stacker(stacker).takes_embeddings for stacker in stackers):
        raise ConfigError(
            f"config: stack.embeddings.enabled, but none of stack.stackers ({', '.join(stackers)}) looks at "
            'embeddings. Add "sequence".'
        )
    return stackers


def _list_fits(stackers: Sequence[str], trainings: Mapping[str, Training], task: Task, config: Config) -> list[FitTask]:
    """Every stacker of every chain and, for those that look at embeddings, the same without."""
    fits = []
    for stacker in stackers:
        for chain, training in trainings.items():
            seed = derive_seed(config.seed, "stack", chain, stacker)
            bare = training.without_embeddings()
            if config.stack.embeddings.enabled and find_stacker(stacker).takes_embeddings:
                fits.append(FitTask(stacker, chain, training, task, config.stack, seed))
                fits.append(FitTask(stacker, chain, bare, task, config.stack, seed, is_reference=True))
            else:
                fits.append(FitTask(stacker, chain, bare, task, config.stack, seed))
    return fits


def find_standing(final: Path, settings: dict[str, Any], inputs: Inputs) -> Manifest | None:
    """The manifest of the stack that stands there, if it was made from the same settings and inputs; says which not."""
    if not has_artifact(final):
        return None
    manifest = read_manifest(final, made_by=MADE_BY)
    before, now = {**manifest.settings, **manifest.inputs}, {**settings, **inputs.digests}
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if not changed:
        logger.info("stack %s: up to date", final.name)
        return manifest
    logger.info("stack %s: made again, because %s changed", final.name, ", ".join(changed))
    return None


def _make_training(plan: ChainPlan, rows: Rows, train: pd.DataFrame, task: Task, config: Config) -> Training:
    """The training part of a chain: every row but those it predicts."""
    others = ~plan.held
    seed = derive_seed(config.seed, "stack inner", plan.name)
    return make_training_part(rows.take(others), train[others], task, config.stack.num_inner, seed)


def _open_writer(final: Path, plan: dict[str, Any]) -> ArtifactWriter:
    """A writer that keeps the finished fits of an interrupted run of the same plan, and starts empty otherwise."""
    note = {"digest": digest_of(plan)}
    plan_path = partial_of(final) / _PLAN_FILE
    goes_on = plan_path.is_file() and plan_path.read_bytes() == encode_json(note)
    writer = ArtifactWriter(final, KIND, resume=goes_on)
    for path in sorted(path for path in writer.folder.rglob("*") if path.is_file()):
        writer.record(path.relative_to(writer.folder).as_posix(), FileDigest(digest_file(path), path.stat().st_size))
    writer.write_json(_PLAN_FILE, note)
    return writer


def _fit_all(writer: ArtifactWriter, tasks: Sequence[FitTask], flag: StopFlag) -> None:
    """Fits what is not fitted yet, stackers that shun torch first, in workers that have not loaded it."""
    pending = [fit for fit in tasks if not (writer.folder / fit.folder / _INNER_FILE).is_file()]
    with Meter("stack", len(tasks), "fits") as meter:
        meter.skip(len(tasks) - len(pending))
        for bears_torch in (False, True):
            group = [fit for fit in pending if find_stacker(fit.stacker).bears_torch == bears_torch]
            is_large = any(len(fit.training.rows) > _MANY_ROWS for fit in group)
            fresh = not bears_torch or is_large
            for position, result in run_tasks(fit_member, group, isolated=True, fresh=fresh):
                fit = group[position]
                if isinstance(result, WorkerDied):
                    raise ArtifactError(
                        f"stack: the fit of {fit.folder} did not end: {result.reason}. Memory is the usual reason: "
                        f"free some and run `{MADE_BY}` again; finished fits are kept."
                    )
                files, inner, in_sample = result
                for file_name, data in files.items():
                    writer.write_bytes(f"{fit.folder}/{file_name}", data)
                writer.write_array(f"{fit.folder}/{_IN_SAMPLE_FILE}", in_sample)
                writer.write_array(f"{fit.folder}/{_INNER_FILE}", inner)
                meter.advance()
                flag.check(f"{meter.done} of {meter.total} fits are kept")


def _make_chain(
    folder: Path, plan: ChainPlan, training: Training, stackers: Sequence[str], config: StackConfig
) -> Chain:
    """The calibrations of a chain and its blend, fitted on the inner patients of its training part."""
    rows = training.chosen_rows()
    members, calibrations = [training.inner_base_logits()[rows]], {}
    for stacker in stackers:
        inner = np.load(folder / stacker / plan.name / _INNER_FILE, allow_pickle=False)
        calibrations[stacker] = no_calibration(inner.shape[1])
        if config.calibrate:
            calibrations[stacker], inner = training.calibrate(inner)
        members.append(inner)
    blend = fit_blend(np.stack(members), training.labels[rows], (BASE, *stackers), config.blend.tolerance)
    return Chain(plan.name, plan.fold, training.calibration, calibrations, blend)


def _predict_held(
    folder: Path, plan: ChainPlan, chain: Chain, training: Training, rows: Rows, stackers: Sequence[str]
) -> ChainLogits:
    """What a chain says of the rows it never saw and, for comparison, of those it learnt from."""
    held, chosen = rows.take(plan.held), training.chosen_rows()
    seen = {BASE: training.base_logits()[chosen]}
    references = {}
    for stacker in stackers:
        seen[stacker] = np.load(folder / stacker / plan.name / _IN_SAMPLE_FILE, allow_pickle=False)
        reference = folder / _REFERENCE / stacker / plan.name
        if reference.is_dir():
            base = chain.calibration.apply(held.mean_logits())
            references[stacker] = find_stacker(stacker).load(reference).predict(held.without_embeddings(), base)
    members = chain.predict_members(folder, held)
    return ChainLogits(
        held=np.flatnonzero(plan.held),
        members=members,
        kinds=chain.combine(members),
        references=references,
        seen=training.numbers[chosen],
        seen_members=seen,
        seen_kinds=chain.combine(seen),
    )


def _write_stack(writer: ArtifactWriter, stack: Chains, results: Sequence[ChainLogits], inputs: Inputs) -> None:
    """What predicts beside the models; through those files the tables of every kind: out-of-fold, test, external."""
    writer.write_bytes(BLEND_FILE, stack.encode())
    for run, anchored in inputs.embeddings.items():
        for fold, projection in anchored.projections.items():
            writer.write_array(projection_path(Path(), run, fold).as_posix(), projection.as_array())
    write_importance(writer, stack)
    for kind in stack.kinds:
        logits = np.empty((len(inputs.train), stack.task.num_classes))
        for result in results:
            logits[result.held] = result.kinds[kind]
        writer.write_table(f"{kind}_oof.parquet", make_predictions(inputs.train, to_probabilities(logits), stack.task))
    for split, slices in inputs.unseen.items():
        features = {run: anchored.features[split] for run, anchored in inputs.embeddings.items()}
        for kind, table in predict_chains(writer.folder, inputs.tables[split], slices, features).items():
            writer.write_table(f"{kind}_{split}.parquet", table)


def _discard_notes(writer: ArtifactWriter, fits: Sequence[FitTask]) -> None:
    """Removes what was only needed on the way: the plan, the logits of fits, and models that were only compared to."""
    names = [_PLAN_FILE, *(f"{fit.folder}/{name}" for fit in fits for name in (_INNER_FILE, _IN_SAMPLE_FILE))]
    names += [name for name in writer.files if name.startswith(f"{_REFERENCE}/")]
    for name in dict.fromkeys(names):
        writer.discard(name)
    shutil.rmtree(writer.folder / _REFERENCE, ignore_errors=True)
