"""Independent tasks in worker processes of this machine or of a Ray cluster; the only module that uses joblib."""

import contextlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ichkit.core.errors import ConfigError
from ichkit.core.progress import StopFlag

Backend = Literal["processes", "ray"]
RunTasks = Callable[..., Iterator[tuple[int, Any]]]
"""`run_tasks`, or a partial of it with fixed workers."""
SHARED_MEMORY = Path("/dev/shm")
"""Where torch's data loading processes put their batches."""
CGROUP = Path("/sys/fs/cgroup")
# Limit and use of memory, in version 2 and in version 1.
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_NO_LIMIT_BYTES = 2**62  # version 1 reports a huge number if there is no limit
_TASKS_PER_ROUND = 8
_STOP_SECONDS = 0.2


@dataclass(frozen=True)
class WorkerDied:
    """Replaces the result of a task whose worker process died twice, the second time with this task alone."""

    reason: str


class MemoryLimit(NamedTuple):
    """Memory limit of a cgroup and its current use, in bytes."""

    num_bytes: int
    used: int


def count_cores() -> int:
    """Number of cores this process may use, by its affinity and the quota of its container."""
    return int(joblib.cpu_count())


def count_workers(asked: int | None, bytes_each: int) -> int:
    """Number of processes to start: `asked`, else one per core, or fewer if memory is short.

    Args:
        bytes_each: peak memory of one process.
    """
    if asked is not None:
        return asked
    return max(1, min(count_cores(), free_memory_bytes() // max(bytes_each, 1)))


def free_memory_bytes() -> int:
    """Memory available to this process: what the machine has free, within the limit of the cgroup."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return 2**62
    limit = memory_limit()
    return free if limit is None else min(free, limit.num_bytes - limit.used)


def memory_limit() -> MemoryLimit | None:
    """Memory limit of this process's cgroup, version 2 or 1; None if there is none."""
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
    stop: StopFlag | None = None,
) -> Iterator[tuple[int, Any]]:
    """(position, result) of each task as it finishes, in any order.

    If a worker dies (out of memory, a crash in a decoder), every unfinished task is run again alone; a task whose
    process dies again gives a `WorkerDied`.

    Args:
        function: a module-level function of one picklable argument; its exceptions are raised here.
        workers: number of processes; None for one per core of this machine or of the cluster; 1 runs in this process.
        backend: "processes" of this machine, or "ray", the cluster of `RAY_ADDRESS` (else a local one), where every
            machine needs this package and the same paths.
        isolated: never run in this process, not even a single task.
        fresh: isolated, in new processes; otherwise workers are reused by the next call.
        gpus_each: GPUs that the Ray cluster reserves for each process; the task sees no others.
        stop: once it is set, worker processes of this machine are ended and unfinished tasks have no result: check it
            after the last one.

    Raises:
        ConfigError: Ray is not installed, or the cluster has no GPU for a task.
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
    with _end_workers_on(stop):
        yield from _on_processes(function, tasks, max(workers, 2), stop)


def _on_processes(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, stop: StopFlag | None
) -> Iterator[tuple[int, Any]]:
    done: set[int] = set()
    try:
        for position, result in _pooled(function, enumerate(tasks), workers):
            done.add(position)
            yield position, result
    except TerminatedWorkerError:
        pass
    except RuntimeError:  # joblib's, where the workers were ended
        if not stop:
            raise
    else:
        return
    for position, task in enumerate(tasks):
        if position in done:
            continue
        # A signal to the process group, as `timeout` and schedulers send it, ends the workers as well.
        if stop:
            return
        try:
            yield from _pooled(function, [(position, task)], 2)
        except (TerminatedWorkerError, RuntimeError) as error:
            if stop:
                return
            if not isinstance(error, TerminatedWorkerError):
                raise
            yield position, _died(error)


@contextlib.contextmanager
def _end_workers_on(stop: StopFlag | None) -> Iterator[None]:
    """Ends all worker processes if the flag is set while the block runs."""
    if stop is None:
        yield
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_STOP_SECONDS):
            if stop:
                get_reusable_executor(reuse=True).shutdown(wait=False, kill_workers=True)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def _pooled(
    function: Callable[[Any], Any], numbered: Iterable[tuple[int, Any]], workers: int
) -> Iterator[tuple[int, Any]]:
    # With one job joblib would run the task in this process. batch_size 1: tasks are long.
    pool = joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered", batch_size=1)
    here = Path.cwd()
    yield from pool(joblib.delayed(_numbered)(function, position, task, here) for position, task in numbered)


def _on_ray(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int | None, gpus_each: int
) -> Iterator[tuple[int, Any]]:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("backend ray: Ray is not installed. Run `pip install 'ichkit[ray]'` on every machine.")
    # Health data: no usage statistics unless the user enables them.
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
        # Ray would wait forever for a worker that gets no GPU.
        room, most = {"num_gpus": gpus_each}, min(most, int(resources.get("GPU", 0)) // gpus_each)
        if most == 0:
            raise ConfigError(
                f"backend ray: expected {gpus_each} or more GPUs in the cluster, found {resources.get('GPU', 0):g}. "
                "Use --set train.ray_gpus=0 or a cluster with GPUs."
            )
    workers = min(workers or most, most)
    start = 0
    if workers == 1:  # joblib would run the tasks in this process, not in the cluster
        start = len(tasks)
        for position, task in enumerate(tasks):
            yield from _alone_on_ray(room, function, position, task, here)
    while start < len(tasks):
        # joblib's Ray backend returns a list, not a generator: tasks run in rounds, so that results arrive early.
        # Inside `with` the rounds share their workers; if one dies, all do.
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
    return WorkerDied(f"its worker process died twice ({(str(error).splitlines() or ['killed'])[0]})")


def _numbered(function: Callable[[Any], Any], position: int, task: Any, here: Path) -> tuple[int, Any]:
    # A reused worker may have another working directory; relative paths are the caller's.
    if Path.cwd() != here:
        os.chdir(here)
    return position, function(task)
