"""External sets of a user: a tree of DICOM with a label file, to test on and never to learn from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ichkit.core.errors import ConfigError
from ichkit.core.roles import RESERVED_NAMES, Role
from ichkit.sources.folder import plan_labelled_folder
from ichkit.sources.table import SOURCES, DataSource

_OPTION, _FOLDER = "--external", "folder"


@dataclass(frozen=True)
class ExternalSet:
    """One external set of a call of `prepare`.

    Attributes:
        name: its `dataset` in every table; it names tables and columns.
        root: a folder or a zip of DICOM.
        labels: its label file, with slice_id or study_id; None for a source that brings its own.
    """

    name: str
    root: Path
    labels: Path | None = None


def find_external_source(name: str) -> DataSource:
    """The row of `SOURCES` for an external set: one of the same name, else any tree of DICOM under that name.

    Raises:
        ConfigError: the name cannot name tables, or a source of training data has it.

    Example:
        >>> find_external_source("site").role
        <Role.EXTERNAL: 'external'>
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", name):
        raise ConfigError(
            f'{_OPTION}: expected a name of at most 64 letters, digits, "_" and "-", found {name[:64]!r}. '
            "It names tables and columns; give another."
        )
    if name in RESERVED_NAMES:
        raise ConfigError(
            f'{_OPTION}: the name "{name}" is taken ({", ".join(sorted(RESERVED_NAMES))} are). Give another name.'
        )
    row = SOURCES.get(name)
    if row is None:
        plan = partial(plan_labelled_folder, dataset=name, role=Role.EXTERNAL)
        return replace(SOURCES[_FOLDER], name=name, plan=plan, role=Role.EXTERNAL, variable="", folders=())
    if row.role is not Role.EXTERNAL:
        raise ConfigError(f'{_OPTION}: "{name}" is a source of training data. Give the external set another name.')
    return row


def pair_labels(
    external: Sequence[str], labels: Sequence[str], *, has_folder: bool
) -> tuple[tuple[ExternalSet, ...], Path | None]:
    """External sets with their label files, and the label file of the training folder.

    Args:
        external: each NAME=PATH.
        labels: each NAME=CSV, where NAME is an external set or "folder", or CSV alone: the only set that still lacks
            one has it, or the sets in their order.
        has_folder: own scans are to be learnt from, and need a label file too.

    Raises:
        ConfigError: a word that is not NAME=PATH, a name twice, or label files whose set is not clear.

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
            raise ConfigError(f'{_OPTION}: "{name}" is given twice. Give each set a name of its own.')
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
    waiting = [name for name in (*roots, *([_FOLDER] if has_folder or not roots else [])) if name not in named]
    if len(unnamed) > len(waiting) or (unnamed and len(unnamed) < len(waiting)):
        raise ConfigError(
            f"--labels: found {len(unnamed)} label files without a name for {', '.join(waiting) or 'no set'}. "
            "Say whose each is: --labels NAME=CSV."
        )
    named |= dict(zip(waiting, unnamed, strict=False))
    return tuple(ExternalSet(name, root, named.get(name)) for name, root in roots.items()), named.get(_FOLDER)
