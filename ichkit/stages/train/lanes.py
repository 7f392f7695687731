"""Trains folds in parallel: one lane per GPU, per share of the CPU cores, or per slot of a Ray cluster."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ichkit.core.errors import ArtifactError, Stopped
from ichkit.core.progress import StopFlag, logger, stop_on_signal
from ichkit.core.train_config import TrainConfig
from ichkit.engine.parallel import WorkerDied, count_cores, run_tasks
from ichkit.engine.stopping import RelayedStop, relay_stop
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask


@dataclass(frozen=True)
class _WorkerJob:
    """The folds of one worker, its log level, and the file that tells it to stop."""

    tasks: list[FoldTask]
    stop_path: Path
    log_level: int


def assign_lanes(tasks: list[FoldTask], settings: TrainConfig) -> list[list[FoldTask]]:
    """Distributes folds to lanes that run in parallel; each lane works through its folds in order.

    With several GPUs there is one lane per GPU; on a CPU one per `train.threads` cores; on a Ray cluster one per fold,
    scheduled by Ray.
    """
    num_gpus = 0
    if settings.backend == "ray":
        return [[task] for task in tasks]
    if settings.accelerator != "cpu":
        from ichkit.engine.devices import count_gpus

        num_gpus = count_gpus(settings.accelerator)
    if num_gpus > 1:
        lanes = [[replace(task, gpu=gpu) for task in tasks[gpu::num_gpus]] for gpu in range(num_gpus)]
        return [lane for lane in lanes if lane]
    if num_gpus == 1 or settings.threads is None or settings.accelerator not in ("auto", "cpu"):
        return [tasks]
    num_lanes = max(1, min(len(tasks), count_cores() // settings.threads))
    return [[task] for task in tasks] if num_lanes > 1 else [tasks]


def count_parallel(lanes: list[list[FoldTask]], settings: TrainConfig) -> int:
    """How many of the lanes run at the same time on this machine."""
    if lanes[0][0].gpu is not None:
        return len(lanes)
    return max(1, min(len(lanes), count_cores() // (settings.threads or 1)))


def count_at_once(tasks: list[FoldTask], settings: TrainConfig) -> int:
    """How many folds are trained at the same time."""
    return count_parallel(assign_lanes(tasks, settings), settings)


def spread(seconds: Sequence[float], num_parallel: int) -> float:
    """Time until the last of some jobs ends, if each starts on the first of the parallel lanes that is free.

    Example:
        >>> spread([3.0, 3.0, 2.0], 2)
        5.0
    """
    ends = [0.0] * num_parallel
    for job in seconds:
        ends[ends.index(min(ends))] += job
    return max(ends)


def do_folds(tasks: list[FoldTask], settings: TrainConfig) -> None:
    """Processes the folds one after another in this process, or in parallel in workers.

    Raises:
        Stopped: a stop was requested; every running fold is saved.
        ArtifactError: a worker died twice.
        ConfigError: Ray is not installed.
    """
    lanes = assign_lanes(tasks, settings)
    with stop_on_signal() as stop:
        if len(lanes) == 1 and settings.backend == "processes":
            for task in lanes[0]:
                stop.check("finished folds are kept")
                do_fold(task, stop)
            return
        workers = None if settings.backend == "ray" else count_parallel(lanes, settings)
        logger.info("training %d folds, %s in parallel", len(tasks), workers or "as many as the cluster allows")
        # In the folder of the run, where workers on other machines see it too.
        with relay_stop(stop, tasks[0].folder.parent) as path:
            level = logger.getEffectiveLevel()
            jobs = [_WorkerJob([replace(task, shows_meter=False) for task in lane], path, level) for lane in lanes]
            run = partial(run_tasks, backend=settings.backend, isolated=True, gpus_each=settings.ray_gpus)
            for position, outcome in run(_do_in_worker, jobs, workers=workers):
                if isinstance(outcome, WorkerDied):
                    folds = ", ".join(str(task.fold) for task in jobs[position].tasks)
                    raise ArtifactError(
                        f"fold {folds}: its worker died: {outcome.reason}. Memory may be short. Run the same "
                        "command again to resume, with a larger train.threads to train fewer folds at once."
                    )
                if outcome is not None:
                    stop.set()
        stop.check("every running fold is saved")


def _do_in_worker(job: _WorkerJob) -> str | None:
    """Processes folds in order; returns the message of `Stopped`, which would stop other workers if it were raised."""
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(job.log_level)
    with stop_on_signal() as own:
        stop: StopFlag = RelayedStop(own, job.stop_path)
        try:
            for task in job.tasks:
                stop.check("finished folds are kept")
                do_fold(task, stop)
        except Stopped as stopped:
            return str(stopped)
    return None
