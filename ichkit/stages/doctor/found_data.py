"""Where the data of each source are on this machine, or which paths were searched."""

import os
from dataclasses import dataclass
from pathlib import Path

from ichkit.core.errors import DataError
from ichkit.sources.table import DataSource, is_phantom, locate


@dataclass(frozen=True)
class DataState:
    """Where the data of a source are.

    Attributes:
        is_found: a file or folder exists there; its content is checked by `prepare`.
        where: the path, or the variable alone where a path may name people; empty where nothing was found.
        looked_at: every place that was looked at.
        is_named: a variable or the config names a place, which then is the only one that counts.
        is_phantom: `ichkit phantom` wrote them.
    """

    is_found: bool
    where: str
    looked_at: tuple[str, ...]
    is_named: bool
    is_phantom: bool


def find_data(source: DataSource, given: Path | None = None) -> DataState:
    """The location of the data of a source; unlike `locate`, missing data raise nothing.

    Args:
        given: the root that the config names.
    """
    named = os.environ.get(source.variable)
    looked_at: tuple[str, ...]
    if given is not None:
        looked_at = (f"{given} (prepare.{source.name})",)
    elif named:
        # A person's own folder may be named after a patient: the variable says enough.
        looked_at = (f"{named} ({source.variable})" if source.keeps_index else source.variable,)
    else:
        looked_at = tuple(map(str, source.folders))
    is_named = given is not None or bool(named)
    try:
        root = locate(source, given)
    except DataError:
        root = None
    if root is None:
        return DataState(False, "", looked_at, is_named, False)
    return DataState(True, looked_at[0] if is_named else str(root), looked_at, is_named, is_phantom(root))
