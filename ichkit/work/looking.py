"""The promise of `--dry-run`: while code only looks, nothing on disk is written, renamed or removed."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_LOOKS: ContextVar[bool] = ContextVar("looks only", default=False)


@contextlib.contextmanager
def look_only() -> Iterator[None]:
    """Inside the block artifacts are read and never touched: unfinished renames stay; a write is a fault of ours."""
    token = _LOOKS.set(True)
    try:
        yield
    finally:
        _LOOKS.reset(token)


def is_looking_only() -> bool:
    """True inside `look_only`."""
    return _LOOKS.get()
