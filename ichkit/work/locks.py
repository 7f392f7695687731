"""One writer at a time: a lock file next to a folder names the writing process, its host and its start time.

The lock is held by the kernel (`flock`, which NFS forwards to its server), not by the existence of the file: if the
process dies, the lock is released and the next writer reuses the file. Readers never lock.
"""

import contextlib
import errno
import fcntl
import functools
import inspect
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from ichkit.core.errors import ArtifactError
from ichkit.core.progress import logger, stop_on_signal
from ichkit.work.places import MANIFEST_NAME, disk_full, settle

_SECONDS_BETWEEN_TRIES = 0.1
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[tuple[int, Path]] = set()
Look = tuple[int, int] | None
"""Identifies one version of an artifact; None if there is none."""
_P = ParamSpec("_P")
_T = TypeVar("_T")


def lock_path(target: Path) -> Path:
    """The lock file of a file or folder."""
    return target.with_name(f".{target.name}.ichkit-lock")


def look_at(folder: Path) -> Look:
    """The current version of an artifact."""
    try:
        found = (folder / MANIFEST_NAME).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextlib.contextmanager
def hold(target: Path, *, waits: bool = True) -> Iterator[bool]:
    """Inside the block only this process writes `target`, a file or folder; it cleans up after a killed writer.

    Yields True if it had to wait for another writer.

    A process that holds the lock may enter again. A read-only folder is not locked.

    Args:
        waits: wait for another writer and log which; otherwise raise.

    Raises:
        ArtifactError: another process is writing and `waits` is off, or the lock file belongs to another user.
        Stopped: a stop signal arrived while waiting.
    """
    target = target.parent.resolve() / target.name
    key = os.getpid(), target
    if key in _held:
        yield False
        return
    path = lock_path(target)
    try:
        descriptor, made, has_waited = _acquire(target, path, waits=waits)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise disk_full(path, error) from error
        if path.exists() and os.access(path.parent, os.W_OK):
            raise ArtifactError(
                f"{path}: expected a lock file of this user, found one of another user. Wait until that command has "
                "ended, or remove the file if none is running."
            ) from error
        yield False
        return
    _held.add(key)
    try:
        settle(target)
        yield has_waited
    finally:
        _held.discard(key)
        # Removed while it is held: a process that waits with the old file open sees that it is gone, and tries again.
        with contextlib.suppress(OSError):
            path.unlink()
        # Worker processes may have inherited the descriptor: unlocking releases it for them too, closing does not.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
        for folder in made:
            with contextlib.suppress(OSError):  # it is no longer empty
                folder.rmdir()


def holding(place: Callable[[Mapping[str, Any]], Path | None]) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorates a function that writes, so that it holds the lock of a file or folder during the call.

    Args:
        place: takes the arguments by name and returns the file or folder to lock; None locks nothing.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def locked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            target = place(signature.bind(*args, **kwargs).arguments)
            with contextlib.nullcontext() if target is None else hold(target):
                return function(*args, **kwargs)

        return locked

    return decorate


class Planned(Protocol):
    """The plan of a command that writes one artifact."""

    @property
    def seen(self) -> Look:
        """The version of the artifact when the plan was made."""


_PlanT = TypeVar("_PlanT", bound=Planned)


def alone(
    place: Callable[[_PlanT], Path], again: Callable[[_PlanT], _PlanT]
) -> Callable[[Callable[[_PlanT], _T]], Callable[[_PlanT], _T]]:
    """Decorates a function that executes a plan, so that it holds the lock of `place(plan)`.

    The plan was made without the lock: if another process has written there since, it is made again.

    Args:
        again: makes the plan again.
    """

    def decorate(function: Callable[[_PlanT], _T]) -> Callable[[_PlanT], _T]:
        @functools.wraps(function)
        def locked(plan: _PlanT) -> _T:
            with hold(place(plan)) as has_waited:
                is_old = has_waited or look_at(place(plan)) != plan.seen
                return function(again(plan) if is_old else plan)

        return locked

    return decorate


def describe_writer(target: Path) -> str:
    """The process that writes a file or folder, according to its lock file."""
    try:
        found = json.loads(lock_path(target).read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['host']}, since {found['since_utc']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _acquire(target: Path, path: Path, *, waits: bool) -> tuple[int, list[Path], bool]:
    """The locked descriptor, the folders created for it, deepest first, and whether it had to wait."""
    has_waited = False
    with stop_on_signal() as stop:
        while True:
            made = _make_folders(path.parent)
            try:
                # Opened for writing: NFS requires it for an exclusive lock.
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:  # another process has just removed a folder that it had created
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(descriptor)
                    raise
                logger.warning("%s: no locks on this disk; do not run two commands on it at the same time", path.parent)
                return descriptor, made, has_waited
            else:
                if _is_at(descriptor, path):
                    _sign(descriptor)
                    return descriptor, made, has_waited
                os.close(descriptor)
                continue
            if not waits:
                raise ArtifactError(
                    f"{target}: {describe_writer(target)}, is writing it. Run the command again when it has ended."
                )
            if not has_waited:
                logger.info("waiting for %s, which is writing %s", describe_writer(target), target)
                has_waited = True
            stop.check("nothing was started")
            time.sleep(_SECONDS_BETWEEN_TRIES)


def _make_folders(folder: Path) -> list[Path]:
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _sign(descriptor: int) -> None:
    """Writes the owner into the lock file; on a full disk the file stays empty and the lock is still valid."""
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since_utc": since}
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode() + b"\n", 0)
