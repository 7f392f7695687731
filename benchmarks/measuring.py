"""What every benchmark here needs: CPU seconds with those of child processes, memory of the process tree, one table."""

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ichkit.engine.parallel import count_cores
from ichkit.work.artifacts import package_versions

_SAMPLE_SECONDS = 0.05


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options all benchmarks share: --json and --data."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--data", type=Path, help="use this folder instead of a phantom")
    return parser


def report(figures: dict[str, Any], json_path: Path | None) -> None:
    """Prints the figures with the machine they were taken on, and writes them where asked."""
    figures = figures | {"device": device_name(), "cores": count_cores()}
    for name, value in figures.items():
        print(f"{name:42s} {value:.4g}" if isinstance(value, float) else f"{name:42s} {value}")
    if json_path is not None:
        write(figures, json_path)


def write(figures: dict[str, Any], json_path: Path) -> None:
    """Writes the figures with the machine they were taken on."""
    figures = figures | {"device": device_name(), "cores": count_cores(), "versions": package_versions()}
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(figures, indent=2) + "\n")


def device_name() -> str:
    """The GPU that torch would use, else the processor's model."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def cpu_seconds() -> float:
    """CPU time of this process and of every child that has ended and was waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def time_cpu(work: Callable[[], Any]) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of one call, in this process and in children that end within it."""
    began, cpu = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - began, cpu_seconds() - cpu


class Peak:
    """The most memory a process tree held while it was watched; `gb` is filled when the watching ends."""

    gb: float = 0.0


@contextmanager
def watch_memory(pid: int | None = None) -> Iterator[Peak]:
    """Samples the resident memory of a process and its descendants; shared pages count once a process.

    Args:
        pid: root of the tree; None for this process.
    """
    peak, over, root = Peak(), threading.Event(), pid or os.getpid()

    def sample() -> None:
        while not over.wait(_SAMPLE_SECONDS):
            peak.gb = max(peak.gb, tree_bytes(root) / 1e9)

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def tree_bytes(root: int) -> int:
    """Resident bytes of a process and of all its descendants, read from /proc."""
    parents, sizes = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(folder.name)] = int(after_name[1])
        sizes[int(folder.name)] = int(after_name[21]) * os.sysconf("SC_PAGE_SIZE")
    return sum(size for pid, size in sizes.items() if _descends(pid, root, parents))


def _descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid and pid != root:
        pid = parents.get(pid, 0)
    return pid == root
