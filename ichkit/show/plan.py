"""The plan of a command, for `--dry-run`: steps, outputs, disk space and time; nothing is written."""

import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from ichkit.core.progress import format_seconds
from ichkit.show.table import Table

NOT_KNOWN = "unknown before it starts"


@dataclass(frozen=True)
class Forecast:
    """What a command would do, and what it needs.

    Attributes:
        steps: one line each, in order.
        num_bytes: disk space of the outputs, an estimate or upper bound; None if unknown.
        seconds: estimated time; None without a measurement.
        basis: the basis of the estimated time, or why there is none.
        memory_bytes: estimated peak memory of the device that computes; None without a measurement.
        memory_free_bytes: what is free of it for each such task; None if unknown.
    """

    steps: tuple[str, ...]
    num_bytes: float | None = None
    seconds: float | None = None
    basis: str = NOT_KNOWN
    memory_bytes: float | None = None
    memory_free_bytes: float | None = None


class Plan(ABC):
    """The first half of a command, which checks its inputs; `run` is the second half.

    Each command has a subclass, a frozen dataclass of its checked inputs. `writes` and `forecast` are computed on
    request, because `run` needs neither.
    """

    @property
    @abstractmethod
    def writes(self) -> tuple[Path, ...]:
        """Files and folders that would be created or replaced; empty if everything is up to date."""

    @abstractmethod
    def forecast(self) -> Forecast:
        """Steps, disk space and time."""

    @property
    def is_idle(self) -> bool:
        """True if there is nothing to do."""
        return not self.writes


def render(plan: Plan, command: str) -> Table:
    """The plan as a table.

    Args:
        command: as typed, for the title.
    """
    forecast, writes = plan.forecast(), plan.writes
    lines = [("does", step) for step in forecast.steps]
    lines += [("writes", str(path)) for path in writes]
    if not plan.is_idle:
        lines += [("disk", _describe_disk(forecast.num_bytes, writes[0])), ("time", _describe_time(forecast))]
        if forecast.memory_bytes is not None:
            lines.append(("memory", _describe_memory(forecast.memory_bytes, forecast.memory_free_bytes)))
    labels = ["", *(label for label, _ in lines)]
    rows = [["" if label == before else label, text] for before, (label, text) in zip(labels, lines, strict=False)]
    note = "Nothing was written (--dry-run)."
    return Table(f"{command}: what it would do", ("", "plan"), rows, note=note, num_text=2)


def nearest_folder(path: Path) -> Path:
    """The folder or its nearest existing parent, which is on the disk that will be written to."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def format_bytes(num_bytes: float) -> str:
    """A size in GB, MB or kB.

    Example:
        >>> format_bytes(2_340_000)
        '2.3 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def _describe_disk(num_bytes: float | None, path: Path) -> str:
    free = shutil.disk_usage(nearest_folder(path)).free
    needed = NOT_KNOWN if num_bytes is None else f"about {format_bytes(num_bytes)}"
    short = "; NOT ENOUGH DISK SPACE" if num_bytes is not None and num_bytes > free else ""
    return f"{needed}; {format_bytes(free)} free{short}"


def _describe_time(forecast: Forecast) -> str:
    seconds = forecast.seconds
    if seconds is None:
        return forecast.basis
    known = "less than a second" if seconds < 1 else f"about {format_seconds(seconds)}"
    return f"{known}, {forecast.basis}"


def _describe_memory(needed: float, free: float | None) -> str:
    short = "" if free is None or needed <= free else f"; {format_bytes(free)} free for each; NOT ENOUGH MEMORY"
    return f"about {format_bytes(needed)} for weights and activations, per fold{short}"
