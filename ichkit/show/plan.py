"""What a command would do, for `--dry-run`: steps, places, disk and time, found out without writing a byte."""

import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from ichkit.core.progress import format_seconds
from ichkit.show.table import Table

NOT_KNOWN = "not known before it has begun"


class Plan(ABC):
    """The first half of a command: what was found, and what would be done with it; `run` is the second half.

    Each command has a subclass, a frozen dataclass of what was found. The answers below are worked out when they are
    asked for: a run needs none of them.
    """

    @property
    @abstractmethod
    def steps(self) -> tuple[str, ...]:
        """One line each, in order."""

    @property
    @abstractmethod
    def writes(self) -> tuple[Path, ...]:
        """Files and folders that would be made or replaced; none where everything is up to date."""

    @property
    def num_bytes(self) -> float | None:
        """Of disk they take, at most or about; None where it cannot be known."""
        return None

    @property
    def seconds(self) -> float | None:
        """About how long it takes; None where there is no measurement to go by."""
        return None

    @property
    def basis(self) -> str:
        """What the time goes by, or why there is none."""
        return NOT_KNOWN

    @property
    def is_idle(self) -> bool:
        """True where there is nothing to do."""
        return not self.writes


def render(plan: Plan, command: str) -> Table:
    """The plan as a table.

    Args:
        command: as typed, for the title.
    """
    lines = [("does", step) for step in plan.steps]
    lines += [("writes", str(path)) for path in plan.writes]
    if not plan.is_idle:
        lines += [("disk", _describe_disk(plan)), ("time", _describe_time(plan))]
    labels = ["", *(label for label, _ in lines)]
    rows = [["" if label == before else label, text] for before, (label, text) in zip(labels, lines, strict=False)]
    note = "Nothing was written (--dry-run)."
    return Table(f"{command}: what it would do", ("", "plan"), rows, note=note, num_text=2)


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there: the one whose disk will be written to."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def format_bytes(num_bytes: float) -> str:
    """A size for people.

    Example:
        >>> format_bytes(2_340_000)
        '2.3 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def _describe_disk(plan: Plan) -> str:
    free = shutil.disk_usage(nearest_folder(plan.writes[0])).free
    needed = NOT_KNOWN if plan.num_bytes is None else f"about {format_bytes(plan.num_bytes)}"
    short = "; THE DISK IS TOO SMALL" if plan.num_bytes is not None and plan.num_bytes > free else ""
    return f"{needed}; {format_bytes(free)} free{short}"


def _describe_time(plan: Plan) -> str:
    return plan.basis if plan.seconds is None else f"about {format_seconds(plan.seconds)}, {plan.basis}"
