"""What a data source is used for, and the external set that every work folder has tables of."""

from collections.abc import Iterable
from enum import StrEnum


class Role(StrEnum):
    """What the scans of a source are used for: folds and labels to learn from, or an external test."""

    TRAINING = "training"
    EXTERNAL = "external"


OUT_OF_FOLD, TEST = "oof", "test"
"""What predictions tables are of, besides external sets, and the names of their files."""

STANDARD_EXTERNAL = "cq500"
"""The external set of the paper: each run and stack has a table of it, an empty one where it is not prepared."""

RESERVED_NAMES = frozenset({OUT_OF_FOLD, TEST, "train", "rsna", STANDARD_EXTERNAL, "folder"})
"""Names that an external set cannot have, because tables or sources of another kind have them."""


_TITLES = {STANDARD_EXTERNAL: "CQ500"}


def title_of(name: str) -> str:
    """An external set as prose and headings write it: its own name, and CQ500 in capitals."""
    return _TITLES.get(name, name)


def order_external(names: Iterable[str]) -> tuple[str, ...]:
    """External sets in the order of every table and page: the standard one, always, then the others by name.

    Example:
        >>> order_external(["site", "hospital"])
        ('cq500', 'hospital', 'site')
    """
    return (STANDARD_EXTERNAL, *sorted(set(names) - {STANDARD_EXTERNAL}))
