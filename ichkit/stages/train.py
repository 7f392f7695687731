"""`ichkit train`: stage 1 for each fold, every fold skipped, resumed, refused or trained on its own merits."""

import logging
import shutil
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from ichkit.core.artifacts import Manifest, has_artifact, list_differences, partial_of, read_manifest
from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, FoldError, Stopped
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import StopFlag, logger, stop_on_signal
from ichkit.core.tasks import find_task
from ichkit.engine.parallel import WorkerDied, count_cores, run_tasks
from ichkit.engine.stopping import RelayedStop, relay_stop
from ichkit.imaging.store import Prepared
from ichkit.stages.fold import MADE_BY, FoldTask, Identity, do_fold, has_embeddings, identify, read_started
from ichkit.validation.folds import check_folds


class _State(Enum):
    """What a fold needs."""

    DONE = "done"
    PREDICT = "predict"
    TRAIN = "train"


@dataclass(frozen=True)
class _WorkerTask:
    """A fold for a worker, with what the worker needs to be heard and to be stopped."""

    task: FoldTask
    stop_path: Path
    log_level: int


def run(
    config: Config, work: WorkFolder, *, run_name: str, folds: list[int] | None = None, fresh: bool = False
) -> list[Manifest]:
    """Trains the folds that are not finished yet and writes their descriptors; returns the manifests of all asked for.

    Args:
        run_name: folder below `work/runs`.
        folds: None for every fold of `folds.csv`.
        fresh: start the folds over, whatever was there.

    Raises:
        ArtifactError: nothing prepared, or a fold was made from other settings or other training slices.
        FoldError: a fold that does not exist, or folds that split a patient.
        ConfigError: a backbone, loss, optimizer or device that is not to be had.
        Stopped: a stop signal; the next call goes on from the same step.
    """
    prepared = Prepared.open(work.prepared, find_task(config.task))
    check_folds(prepared.slices)
    asked = choose_folds(folds, prepared)
    if fresh:
        for fold in asked:
            for folder in (work.fold(run_name, fold), partial_of(work.fold(run_name, fold))):
                shutil.rmtree(folder, ignore_errors=True)
    tasks = list_tasks(config, work, prepared, run_name, asked)
    if tasks:
        _run_all(tasks, _folds_at_once(config, len(tasks)))
    return [read_manifest(work.fold(run_name, fold), made_by=MADE_BY) for fold in asked]


def list_tasks(config: Config, work: WorkFolder, prepared: Prepared, run_name: str, asked: list[int]) -> list[FoldTask]:
    """What is left to do for these folds, ascending; says what is not, and writes nothing.

    Raises:
        ArtifactError: a fold was made from other settings or other training slices.
    """
    states = {fold: _judge(config, prepared, work.fold(run_name, fold), fold) for fold in asked}
    tasks = []
    for fold, state in states.items():
        if state is _State.DONE:
            logger.info("fold %d: finished already", fold)
            continue
        if state is _State.PREDICT:
            logger.info(
                "fold %d: slices to predict have changed, or embeddings are new; its weights predict anew", fold
            )
        tasks.append(FoldTask(config, work, run_name, fold, trains=state is _State.TRAIN))
    return tasks


def choose_folds(folds: list[int] | None, prepared: Prepared) -> list[int]:
    """The folds that were asked for, ascending; None asks for all of `folds.csv`.

    Raises:
        FoldError: one that does not exist.
    """
    known = prepared.fold_numbers
    if folds is None:
        return known
    unknown = sorted(set(folds) - set(known))
    if unknown:
        raise FoldError(
            f"train: expected folds of {prepared.folder / 'folds.csv'}, which are {', '.join(map(str, known))}; "
            f"found {', '.join(map(str, unknown))}. Choose with `--fold`, or make other folds with "
            "`ichkit prepare --new-folds`."
        )
    return sorted(set(folds))


def _judge(config: Config, prepared: Prepared, folder: Path, fold: int) -> _State:
    """What a fold needs.

    Raises:
        ArtifactError: it was made from other settings or other training slices.
    """
    wanted, started = identify(config, prepared, fold), read_started(folder)
    if started is not None:
        _refuse_others(partial_of(folder), started, wanted)
        return _State.TRAIN
    if not has_artifact(folder):
        return _State.TRAIN
    manifest = read_manifest(folder, made_by=MADE_BY)
    _refuse_others(folder, Identity(manifest.settings, manifest.inputs), wanted)
    lacks_embeddings = config.train.embeddings and not has_embeddings(folder)
    return _State.DONE if manifest.inputs == wanted.inputs and not lacks_embeddings else _State.PREDICT


def _refuse_others(folder: Path, found: Identity, wanted: Identity) -> None:
    differences = list_differences(found.settings, wanted.settings)
    if found.inputs.get("train_slices") != wanted.inputs["train_slices"]:
        differences.append("the slices or labels of its training part")
    if differences:
        raise ArtifactError(
            f"{folder}: made from other settings than asked for now ({'; '.join(differences)}). Use the same settings, "
            "another --run, or start this run over with `ichkit train --fresh`."
        )


def _folds_at_once(config: Config, num_folds: int) -> int:
    """Folds that train beside each other: on a CPU as many as its cores hold with `train.threads` each, else one."""
    settings = config.train
    if settings.threads is None or settings.accelerator not in ("auto", "cpu") or num_folds == 1:
        return 1
    if settings.accelerator == "auto":
        import torch

        if torch.cuda.is_available():
            return 1
    return max(1, min(num_folds, count_cores() // settings.threads))


def _run_all(tasks: list[FoldTask], at_once: int) -> None:
    """Works on the folds one after another here, or several at once in workers."""
    with stop_on_signal() as stop:
        if at_once == 1:
            for task in tasks:
                stop.check("finished folds are kept")
                do_fold(task, stop)
            return
        logger.info(
            "training %d folds, %d at once with %s thread(s) each", len(tasks), at_once, tasks[0].config.train.threads
        )
        with relay_stop(stop) as path:
            level = logger.getEffectiveLevel()
            jobs = [_WorkerTask(replace(task, shows_meter=False), path, level) for task in tasks]
            for position, outcome in run_tasks(_do_in_worker, jobs, workers=at_once):
                if isinstance(outcome, WorkerDied):
                    raise ArtifactError(
                        f"fold {tasks[position].fold}: expected it to finish, {outcome.reason}; memory may be short. "
                        "Run the same command again to go on, with a larger train.threads to do fewer folds at once."
                    )
                if outcome is not None:
                    stop.set()
        stop.check("every fold at work is saved")


def _do_in_worker(job: _WorkerTask) -> str | None:
    """Works on one fold; None when it is finished, else what is saved: raised here, `Stopped` would kill the others."""
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(job.log_level)
    with stop_on_signal() as own:
        stop: StopFlag = RelayedStop(own, job.stop_path)
        try:
            stop.check("nothing was begun")
            do_fold(job.task, stop)
        except Stopped as stopped:
            return str(stopped)
    return None
