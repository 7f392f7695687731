"""Independent tasks on worker processes, of this machine or of a Ray cluster; the one module that knows joblib."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ichkit.core.errors import ConfigError

Backend = Literal["processes", "ray"]
RunTasks = Callable[..., Iterator[tuple[int, Any]]]
"""`run_tasks`, or a partial of it that has chosen its workers."""
SHARED_MEMORY = Path("/dev/shm")
"""Where torch's workers leave their batches."""
CGROUP = Path("/sys/fs/cgroup")
# Limit and use of memory, in version 2 and in version 1.
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_NO_LIMIT_BYTES = 2**62  # version 1 has no word for none, and says as much as fits
_TASKS_PER_ROUND = 8


@dataclass(frozen=True)
class WorkerDied:
    """In place of a result: the process that did this task died twice, the second time alone with it."""

    reason: str


class MemoryLimit(NamedTuple):
    """Bytes that a cgroup may hold, and those it holds."""

    num_bytes: int
    used: int


def count_cores() -> int:
    """Cores this process may use, by its affinity and by the quota of its container."""
    return int(joblib.cpu_count())


def count_workers(asked: int | None, bytes_each: int) -> int:
    """How many processes to start: as many as asked for, else one a core, and fewer where memory is short of them.

    Args:
        bytes_each: the most that one of them holds.
    """
    if asked is not None:
        return asked
    return max(1, min(count_cores(), free_memory_bytes() // max(bytes_each, 1)))


def free_memory_bytes() -> int:
    """Memory that new work may take: what the machine has available, within the limit of this process's cgroup."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return 2**62
    limit = memory_limit()
    return free if limit is None else min(free, limit.num_bytes - limit.used)


def memory_limit() -> MemoryLimit | None:
    """What this process's cgroup grants, in version 2 or 1; None where it has no limit."""
    for files in _CGROUP_FILES:
        try:
            limit = MemoryLimit(*(int((CGROUP / name).read_text()) for name in files))
        except (OSError, ValueError):  # no such cgroup, or its limit is "max"
            continue
        if limit.num_bytes < _NO_LIMIT_BYTES:
            return limit
    return None


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    workers: int | None = None,
    backend: Backend = "processes",
    isolated: bool = False,
    fresh: bool = False,
    gpus_each: int = 0,
) -> Iterator[tuple[int, Any]]:
    """(position, result) of each task as it finishes, in any order.

    Args:
        function: a module-level function of one picklable argument; what it raises is raised here.
        workers: processes; None for one a core, of this machine or of the cluster; 1 runs in this process.
        backend: "processes" of this machine, or those of the Ray cluster that `RAY_ADDRESS` names (else a local one);
            there, every machine needs this package and the same paths.
        isolated: never in this process, not even a single task.
        fresh: isolated, in processes that have done nothing yet; workers are otherwise kept for the next call.
        gpus_each: GPUs that the Ray cluster gives each process; the task sees no others.

    A worker that dies (out of memory, a crash in a decoder) takes its task with it: every task unfinished then is done
    again alone, and one whose process dies again gives a `WorkerDied`.

    Raises:
        ConfigError: Ray is asked for and not installed, or the cluster has no GPU for a task.
    """
    if backend == "ray":
        yield from _on_ray(function, tasks, workers, gpus_each)
        return
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
            yield position, _died(error)


def _pooled(
    function: Callable[[Any], Any], numbered: Iterable[tuple[int, Any]], workers: int
) -> Iterator[tuple[int, Any]]:
    # With one job joblib would run the task in this process. batch_size 1: a task is long enough to travel alone.
    pool = joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered", batch_size=1)
    here = Path.cwd()
    yield from pool(joblib.delayed(_numbered)(function, position, task, here) for position, task in numbered)


def _on_ray(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int | None, gpus_each: int
) -> Iterator[tuple[int, Any]]:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("backend ray: Ray is not installed. Run `pip install 'ichkit[ray]'` on every machine.")
    # Health data: nothing about a run is sent anywhere unless somebody asks for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    here, resources = Path.cwd(), ray.cluster_resources()
    room: dict[str, float] = {}
    most = int(resources.get("CPU", 1))
    if gpus_each:
        # One worker more than there are GPUs for would be waited for without end.
        room, most = {"num_gpus": gpus_each}, min(most, int(resources.get("GPU", 0)) // gpus_each)
        if most == 0:
            raise ConfigError(f"backend ray: expected a cluster with {gpus_each} GPU(s) for each task, found none.")
    workers = min(workers or most, most)
    start = 0
    if workers == 1:  # joblib would run it in this process, where nothing of the cluster is used
        start = len(tasks)
        for position, task in enumerate(tasks):
            yield from _alone_on_ray(room, function, position, task, here)
    while start < len(tasks):
        # joblib's Ray backend gives a list, not a generator: a round at a time, so that what is finished is not held
        # back. Inside `with` the rounds share their workers; one that dies takes the others with it.
        with joblib.Parallel(n_jobs=workers, backend="ray", batch_size=1, ray_remote_args=room) as pool:
            while start < len(tasks):
                stop = min(start + _TASKS_PER_ROUND * workers, len(tasks))
                try:
                    yield from pool(joblib.delayed(_numbered)(function, i, tasks[i], here) for i in range(start, stop))
                except ray.exceptions.RayActorError:
                    break
                start = stop
        if start < len(tasks):
            for i in range(start, stop):
                yield from _alone_on_ray(room, function, i, tasks[i], here)
            start = stop


def _alone_on_ray(
    room: dict[str, Any], function: Callable[[Any], Any], position: int, task: Any, here: Path
) -> Iterator[tuple[int, Any]]:
    import ray

    try:
        yield ray.get(ray.remote(_numbered).options(max_retries=0, **room).remote(function, position, task, here))
    except ray.exceptions.WorkerCrashedError as error:
        yield position, _died(error)


def _died(error: Exception) -> WorkerDied:
    return WorkerDied(f"its worker died twice ({(str(error).splitlines() or ['killed'])[0]})")


def _numbered(function: Callable[[Any], Any], position: int, task: Any, here: Path) -> tuple[int, Any]:
    # A kept worker may have been started elsewhere; relative paths mean what they mean to the caller.
    if Path.cwd() != here:
        os.chdir(here)
    return position, function(task)
