"""External sets of a user: DICOM with a label file, for external validation only."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ichkit.core.errors import ConfigError
from ichkit.core.roles import RESERVED_NAMES, Role
from ichkit.sources.bids import plan_bids
from ichkit.sources.folder import plan_labelled_folder
from ichkit.sources.index import CT, MR
from ichkit.sources.table import OTHER_SERIES, SOURCES, DataSource

_OPTION, _FOLDER = "--external", "folder"


@dataclass(frozen=True)
class ExternalSet:
    """One external set given to `prepare`.

    Attributes:
        name: its `dataset` in every table, and part of the names of tables and columns.
        root: a folder or a zip of DICOM.
        labels: its label file, with slice_id or study_id; None for a source with its own.
    """

    name: str
    root: Path
    labels: Path | None = None


def find_external_source(name: str, modality: str = CT) -> DataSource:
    """The row of `SOURCES` or `OTHER_SERIES` of that name, else one for any folder of that modality, with that name.

    Raises:
        ConfigError: the name is invalid, reserved, or that of a source of training data.

    Example:
        >>> find_external_source("site").role
        <Role.EXTERNAL: 'external'>
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", name):
        raise ConfigError(
            f'{_OPTION}: expected a name of at most 64 letters, digits, "_" and "-", found {name[:64]!r}. '
            "It becomes part of table and column names; choose another."
        )
    if name in RESERVED_NAMES:
        raise ConfigError(
            f'{_OPTION}: the name "{name}" is reserved, as are {", ".join(sorted(RESERVED_NAMES))}. Choose another.'
        )
    row = SOURCES.get(name, OTHER_SERIES.get(name))
    if row is None:
        plan_any, base = (plan_bids, SOURCES["bids"]) if modality == MR else (plan_labelled_folder, SOURCES[_FOLDER])
        plan = partial(plan_any, dataset=name, role=Role.EXTERNAL)
        return replace(base, name=name, plan=plan, role=Role.EXTERNAL, variable="", folders=())
    if row.role is not Role.EXTERNAL:
        raise ConfigError(f'{_OPTION}: "{name}" is a source of training data. Choose another name.')
    return row


def pair_labels(
    external: Sequence[str], labels: Sequence[str], *, has_folder: bool
) -> tuple[tuple[ExternalSet, ...], Path | None]:
    """External sets with their label files, and the label file of the training folder.

    Args:
        external: each NAME=PATH.
        labels: each NAME=CSV, where NAME is an external set or "folder"; or CSV alone, for the only set without labels,
            or for all sets in their order.
        has_folder: the training data are a folder, which needs a label file too.

    Raises:
        ConfigError: not of the form NAME=PATH, a name given twice, or label files whose set is ambiguous.

    Example:
        >>> pair_labels(["site=scans"], ["labels.csv"], has_folder=False)[0][0].labels.name
        'labels.csv'
    """
    roots: dict[str, Path] = {}
    for text in external:
        name, sign, path = text.partition("=")
        if not (name and sign and path):
            raise ConfigError(f'{_OPTION}: expected NAME=PATH, e.g. site=scans/, found "{text}".')
        if name in roots:
            raise ConfigError(f'{_OPTION}: "{name}" is given twice. Give each set its own name.')
        roots[name] = Path(path)
    named: dict[str, Path] = {}
    unnamed = []
    for text in labels:
        name, sign, path = text.partition("=")
        if sign and name in {*roots, _FOLDER}:
            if name in named:
                raise ConfigError(f'--labels: "{name}" has two label files. Give one.')
            named[name] = Path(path)
        else:
            unnamed.append(Path(text))
    # Without external sets a label file belongs to the source of training data, whichever it is.
    with_folder = (*roots, *([_FOLDER] if has_folder or not roots else []))
    waiting = [name for name in with_folder if name not in named and name not in OTHER_SERIES]
    if len(unnamed) > len(waiting) or (unnamed and len(unnamed) < len(waiting)):
        raise ConfigError(
            f"--labels: found {len(unnamed)} label files without a name for {', '.join(waiting) or 'no set'}. "
            "Name the set of each: --labels NAME=CSV."
        )
    named |= dict(zip(waiting, unnamed, strict=False))
    return tuple(ExternalSet(name, root, named.get(name)) for name, root in roots.items()), named.get(_FOLDER)
