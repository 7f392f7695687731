"""The fields that the rows of all tables share, and the look-up of a row by name."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from ichkit.core.errors import ConfigError, nearest
from ichkit.core.plugins import load_plugins


class Row(Protocol):
    """A row of a table such as `TASKS` or `LOSSES`."""

    @property
    def name(self) -> str:
        """Its key in the table."""

    @property
    def description(self) -> str:
        """One sentence."""

    @property
    def source(self) -> str:
        """Its origin: a paper, a standard, a page, or "chosen here, because ..."."""


RowType = TypeVar("RowType", bound=Row)


def find_row(table: Mapping[str, RowType], name: str, where: str) -> RowType:
    """The row of that name, including rows of plug-ins.

    Args:
        where: the setting to name in the message, e.g. "train.loss".

    Raises:
        ConfigError: no such row; the message lists the choices and the nearest spelling.
    """
    load_plugins()
    if name not in table:
        raise ConfigError(f'{where}: unknown "{name}". {nearest(name, table)}')
    return table[name]
