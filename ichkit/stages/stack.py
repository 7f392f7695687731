"""Stage 2: descriptors of one or more runs to final probabilities, every model fitted without the fold it predicts.

What ordinary stacking keeps: the model for fold k learns from descriptors of the other folds, and the networks behind
those saw fold k. Its own labels never enter: flipping them all leaves its predictions as they are, byte for byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.artifacts import (
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
from ichkit.core.config import Config, StackConfig
from ichkit.core.errors import ArtifactError
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import Meter, StopFlag, logger, stop_on_signal
from ichkit.core.schemas import KEY, make_predictions
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import Task, find_task
from ichkit.engine.parallel import WorkerDied, run_tasks
from ichkit.stacking.blend import fit_blend
from ichkit.stacking.chain import BLEND_FILE, Chain, Chains, predict_chains
from ichkit.stacking.inner import Training, make_training
from ichkit.stacking.inputs import ChainPlan, Inputs, check_name, plan_chains, read_inputs
from ichkit.stacking.rows import Rows, make_rows, to_probabilities
from ichkit.stacking.table import BASE, find_stacker

KIND = "stack"
MADE_BY = "ichkit stack"
_PLAN_FILE = "plan.json"
_INNER_FILE = "inner.npy"


@dataclass(frozen=True)
class FitTask:
    """One stacker of one chain, as it travels to a worker: its training part and nothing of the rows it predicts."""

    stacker: str
    chain: str
    training: Training
    task: Task
    config: StackConfig
    seed: int

    @property
    def folder(self) -> str:
        """Where the model's files go, relative to the artifact."""
        return f"{self.stacker}/{self.chain}"


def run(config: Config, work: WorkFolder, *, runs: list[str] | None = None, name: str | None = None) -> Manifest:
    """Makes the stack of some runs, unless it is there already, and returns its manifest.

    Args:
        runs: names of runs; None takes all complete ones (see `choose_runs`).
        name: of the stack; None joins the runs by `+`.

    Raises:
        ArtifactError: nothing was trained, or a run, fold or table is missing or damaged.
        ContractError: a table breaks the out-of-fold contract.
        ConfigError: an unknown stacker or strength, or a name that cannot name a folder.
        Stopped: a stop was asked for; finished fits are kept.

    Example:
        >>> run(load_config("demo"), WorkFolder(Path("work"))).facts["name"]
        'demo'
    """
    task = find_task(config.task)
    stackers = tuple(find_stacker(stacker).name for stacker in dict.fromkeys(config.stack.stackers))
    inputs = read_inputs(work, task, runs)
    final = work.stacks / (check_name(name) if name else "+".join(inputs.runs))
    settings = {
        "task": task.name,
        "seed": config.seed,
        "runs": list(inputs.runs),
        "stack": config.stack.settings(),
    }
    standing = _find_standing(final, settings, inputs)
    if standing is not None:
        return standing
    rows = make_rows([inputs.out_of_fold(run) for run in inputs.runs], inputs.train, task)
    plans = plan_chains(inputs, task, config.stack.num_parts, config.seed)
    trainings = {plan.name: _make_training(plan, rows, inputs.train, task, config) for plan in plans}
    tasks = [
        FitTask(stacker, chain, training, task, config.stack, derive_seed(config.seed, "stack", chain, stacker))
        for stacker in stackers
        for chain, training in trainings.items()
    ]
    writer = _open_writer(final, {"settings": settings, "inputs": dict(inputs.digests)})
    with stop_on_signal() as flag:
        _fit_all(writer, tasks, flag)
    chains = tuple(_make_chain(writer.folder, plan, trainings[plan.name], stackers, config.stack) for plan in plans)
    stack = Chains(task, inputs.runs, chains)
    writer.write_bytes(BLEND_FILE, stack.encode())
    _write_tables(writer, stack, plans, rows, inputs)
    for note in (_PLAN_FILE, *(f"{fit.folder}/{_INNER_FILE}" for fit in tasks)):
        writer.discard(note)
    facts = {
        "name": final.name,
        "runs": list(inputs.runs),
        "folds": list(inputs.folds),
        "kinds": list(stack.kinds),
        "chains": [plan.name for plan in plans],
        "data": inputs.data,
        "num_slices": len(inputs.train),
        "task": task.name,
    }
    logger.info("stack %s: %d chains of %s on %d slices", final.name, len(plans), ", ".join(stackers), len(rows))
    return writer.commit(settings=settings, inputs=dict(inputs.digests), facts=facts)


def fit_member(fit: FitTask) -> tuple[dict[str, bytes], np.ndarray]:
    """Fits one stacker of one chain; runs in a worker.

    Returns:
        The model's files, and the (rows of inner parts, C) float64 logits of its inner models.
    """
    model, inner = find_stacker(fit.stacker).fit(fit.training, fit.task, fit.config, fit.seed)
    return model.encode(), inner[fit.training.chosen_rows()]


def _find_standing(final: Path, settings: dict[str, Any], inputs: Inputs) -> Manifest | None:
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
    return make_training(rows.take(others), train[others], task, config.stack.num_inner, seed)


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
        meter.advance(len(tasks) - len(pending))
        for bears_torch in (False, True):
            group = [fit for fit in pending if find_stacker(fit.stacker).bears_torch == bears_torch]
            for position, result in run_tasks(fit_member, group, isolated=True, fresh=not bears_torch):
                fit = group[position]
                if isinstance(result, WorkerDied):
                    raise ArtifactError(
                        f"stack: the fit of {fit.folder} did not end: {result.reason}. Memory is the usual reason: "
                        f"free some and run `{MADE_BY}` again; finished fits are kept."
                    )
                files, inner = result
                for file_name, data in files.items():
                    writer.write_bytes(f"{fit.folder}/{file_name}", data)
                writer.write_array(f"{fit.folder}/{_INNER_FILE}", inner)
                meter.advance()
                flag.check(f"{meter.done} of {meter.total} fits are kept")


def _make_chain(
    folder: Path, plan: ChainPlan, training: Training, stackers: Sequence[str], config: StackConfig
) -> Chain:
    """The calibration of a chain and its blend, fitted on the inner patients of its training part."""
    rows = training.chosen_rows()
    inner = [np.load(folder / stacker / plan.name / _INNER_FILE, allow_pickle=False) for stacker in stackers]
    logits = np.stack([training.inner_base_logits()[rows], *inner])
    blend = fit_blend(logits, training.labels[rows], (BASE, *stackers), config.blend.tolerance)
    return Chain(plan.name, plan.fold, training.calibration, blend)


def _write_tables(
    writer: ArtifactWriter, stack: Chains, plans: Sequence[ChainPlan], rows: Rows, inputs: Inputs
) -> None:
    """Out-of-fold, test and CQ500 tables of every kind, all through the files just written."""
    parts: dict[str, list[pd.DataFrame]] = {kind: [] for kind in stack.kinds}
    for plan, chain in zip(plans, stack.chains, strict=True):
        slices = inputs.train[plan.held]
        for kind, logits in chain.predict(writer.folder, rows.take(plan.held)).items():
            parts[kind].append(make_predictions(slices, to_probabilities(logits), stack.task))
    for kind, tables in parts.items():
        writer.write_table(f"{kind}_oof.parquet", pd.concat(tables).sort_values(KEY, ignore_index=True))
    for split, slices in (("test", inputs.test), ("cq500", inputs.cq500)):
        for kind, table in predict_chains(writer.folder, inputs.tables[split], slices).items():
            writer.write_table(f"{kind}_{split}.parquet", table)
