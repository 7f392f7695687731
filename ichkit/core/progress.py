"""Progress output, and the flag that a stop signal sets."""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from ichkit.core.errors import Stopped

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger("ichkit")
PLAIN_INTERVAL_SECONDS = 10.0
_flags: "list[StopFlag]" = []
"""Of the blocks of `stop_on_signal` that run, the outermost first."""


def _start_bar(label: str, total: int) -> "tuple[Progress, TaskID]":
    # Only a terminal has a bar: without one, no command loads rich for it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    row = bar.add_task(label, total=total, figures="", left="", note="")
    bar.start()
    return bar, row


class Meter:
    """Counts finished items: a bar with rate and ETA on a terminal, a plain line every 10 s otherwise.

    Silent unless the `ichkit` logger is at INFO, as the command line sets it, so library calls print nothing.

    Args:
        unit: plural, e.g. "studies".
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = 0, ""
        self._skipped, self._waited, self._is_fed = 0, 0.0, False
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        if logger.isEnabledFor(logging.INFO) and sys.stderr.isatty():
            self._bar, self._row = _start_bar(label, total)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def skip(self, count: int) -> None:
        """Counts items that an earlier call finished: they count as done, but not for the rate."""
        self._skipped += count
        self.done += count

    def advance(self, count: int = 1, note: str = "", waited_seconds: float | None = None) -> None:
        """Counts `count` more finished items.

        Args:
            note: shown after the figures from now on, e.g. the epoch.
            waited_seconds: time spent waiting for these items; its share of the elapsed time is shown.
        """
        self.done, self.note = self.done + count, note or self.note
        if waited_seconds is not None:
            self._is_fed, self._waited = True, self._waited + waited_seconds
        now = time.monotonic()
        if self._bar is not None and self._row is not None:
            figures, left = self._measure(now)
            self._bar.update(self._row, completed=self.done, figures=figures, left=left, note=self.note)
        elif now - self._said >= PLAIN_INTERVAL_SECONDS:
            self._said = now
            told = [f"{self.done} of {self.total}", *self._measure(now), self.note]
            logger.info("%s: %s", self.label, ", ".join(text for text in told if text))

    def _measure(self, now: float) -> tuple[str, str]:
        """Rate with the share of waiting, and the time left at that rate."""
        spent = max(now - self._began, 1e-9)
        rate = (self.done - self._skipped) / spent
        figures = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{60 * rate:.1f} {self.unit}/min"
        if self._is_fed:
            figures += f", {100 * min(self._waited / spent, 1):.0f} % waiting for data"
        return figures, f"{format_seconds((self.total - self.done) / rate)} left" if rate else ""


class StopFlag:
    """True once a stop is requested; stages check it where everything is saved."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Requests a stop at the next safe point."""
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def check(self, saved: str) -> None:
        """Stops here if a stop is requested.

        Raises:
            Stopped: a stop is requested; `saved` says what is saved.
        """
        if self:
            raise Stopped.after(saved)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """While the block runs, SIGTERM and SIGINT set the flag; a second SIGINT interrupts at once.

    The flags of blocks around it are set too, so that a signal is not lost where one waits for a lock. Outside the main
    thread signals cannot be caught, and nothing sets the flag.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def raise_flag(number: int, _frame: FrameType | None) -> None:
        if flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        logger.info("stopping at the next safe point (signal %d)", number)
        for one in _flags:
            one.set()

    _flags.append(flag)
    before = {number: signal.signal(number, raise_flag) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _flags.remove(flag)


def format_count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, which is plural unless the number is 1.

    Example:
        >>> format_count(1, "file"), format_count(2, "study", "studies")
        ('1 file', '2 studies')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def format_seconds(seconds: float) -> str:
    """A duration as text.

    Example:
        >>> format_seconds(3700), format_seconds(7300)
        ('62 min', '2 h 02 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
