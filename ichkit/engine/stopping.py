"""Passes a stop request from one process to its workers, by a file that they check for."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ichkit.core.progress import StopFlag

_LOOK_SECONDS = 0.2


class RelayedStop(StopFlag):
    """True once a stop is requested here or in the process that started this one.

    Args:
        own: the flag of this process.
        path: the file that the other process creates on a stop.
    """

    def __init__(self, own: StopFlag, path: Path) -> None:
        super().__init__()
        self._own, self._path = own, path

    def set(self) -> None:
        """Requests a stop here."""
        self._own.set()

    def __bool__(self) -> bool:
        return bool(self._own) or self._path.exists()


@contextmanager
def relay_stop(stop: StopFlag, beside: Path | None = None) -> Iterator[Path]:
    """While the block runs, yields the path of a file that is created on a stop; for `RelayedStop` in workers.

    Args:
        beside: a folder that every worker can read; None for a temporary one of this machine.
    """
    finished = threading.Event()
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ichkit-", dir=beside) as folder:
        path = Path(folder) / "stop"

        def watch() -> None:
            while not finished.wait(_LOOK_SECONDS):
                if stop:
                    path.touch()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield path
        finally:
            finished.set()
            watcher.join()
