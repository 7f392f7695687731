"""Independent tasks on worker processes; the one module that knows joblib."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError


@dataclass(frozen=True)
class WorkerDied:
    """In place of a result: the process that did this task died twice, the second time alone with it."""

    reason: str


def count_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    workers: int | None = None,
    isolated: bool = False,
    fresh: bool = False,
) -> Iterator[tuple[int, Any]]:
    """(position, result) of each task as it finishes, in any order.

    Args:
        function: a module-level function of one picklable argument; what it raises is raised here.
        workers: processes; None for one a core; 1 runs in this process.
        isolated: never in this process, not even a single task.
        fresh: isolated, in processes that have done nothing yet; workers are otherwise kept for the next call.

    A worker that dies (out of memory, a crash in a decoder) takes its task with it: every task unfinished then is done
    again alone, and one whose process dies again gives a `WorkerDied`.
    """
    workers = min(workers or count_cores(), max(len(tasks), 1))
    if fresh and len(tasks):
        get_reusable_executor().shutdown(wait=True)
    if workers == 1 and not (isolated or fresh):
        for position, task in enumerate(tasks):
            yield position, function(task)
        return
    done: set[int] = set()
    try:
        for position, result in _pooled(function, enumerate(tasks), max(workers, 2)):
            done.add(position)
            yield position, result
    except TerminatedWorkerError:
        pass
    else:
        return
    for position, task in enumerate(tasks):
        if position in done:
            continue
        try:
            yield from _pooled(function, [(position, task)], 2)
        except TerminatedWorkerError as error:
            yield position, WorkerDied(f"its worker died twice ({str(error).splitlines()[0]})")


def _pooled(
    function: Callable[[Any], Any], numbered: Iterable[tuple[int, Any]], workers: int
) -> Iterator[tuple[int, Any]]:
    # With one job joblib would run the task in this process. batch_size 1: a task is long enough to travel alone.
    pool = joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered", batch_size=1)
    here = Path.cwd()
    yield from pool(joblib.delayed(_numbered)(function, position, task, here) for position, task in numbered)


def _numbered(function: Callable[[Any], Any], position: int, task: Any, here: Path) -> tuple[int, Any]:
    # A kept worker may have been started elsewhere; relative paths mean what they mean to the caller.
    if Path.cwd() != here:
        os.chdir(here)
    return position, function(task)
