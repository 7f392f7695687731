"""What a data source is used for, and the names of external sets."""

from collections.abc import Iterable
from enum import StrEnum


class Role(StrEnum):
    """What the scans of a source are used for: training with cross-validation, or external validation."""

    TRAINING = "training"
    EXTERNAL = "external"


OUT_OF_FOLD, TEST = "oof", "test"
"""The predictions tables besides those of external sets; also their file names."""

STANDARD_EXTERNAL = "cq500"
"""The external set of the paper: each run and stack has a table for it, which is empty if it is not prepared."""

LOCKED = "locked"
"""The set of the patients that `prepare --lock` takes out of training data; only `--prove` scores it."""

SCANS = "scans"
"""The fact of an external set that has the scans of another one by another series rule: the name of that other set."""

RESERVED_NAMES = frozenset({OUT_OF_FOLD, TEST, "train", "rsna", STANDARD_EXTERNAL, "folder", LOCKED})
"""Names that an external set cannot have, because other tables or sources use them."""


_TRANSDUCTIVE = " transductive"


def mark_transductive(data: str) -> str:
    """The `data` of results by networks that were trained on predictions of the scans they predict (pseudo-labels).

    Example:
        >>> mark_transductive("rsna")
        'rsna transductive'
    """
    return f"{unmark_transductive(data)}{_TRANSDUCTIVE}"


def unmark_transductive(data: str) -> str:
    """The `data` without the mark: rsna, phantom or folder."""
    return data.removesuffix(_TRANSDUCTIVE)


def is_transductive(data: str) -> bool:
    """Whether `data`, or any of several joined by +, has the mark."""
    return _TRANSDUCTIVE in data


def title_of(name: str) -> str:
    """An external set's name as text and headings show it: CQ500 in capitals, others unchanged."""
    return name.upper() if name == STANDARD_EXTERNAL else name


def order_external(names: Iterable[str]) -> tuple[str, ...]:
    """External sets in the order of tables and pages: always the standard one, then the others by name.

    Example:
        >>> order_external(["site", "hospital"])
        ('cq500', 'hospital', 'site')
    """
    return (STANDARD_EXTERNAL, *sorted(set(names) - {STANDARD_EXTERNAL}))
