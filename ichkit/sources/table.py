"""Where data may come from: one row a source, and how each is found on this machine."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ichkit.core.errors import DataError
from ichkit.core.roles import STANDARD_EXTERNAL, Role
from ichkit.sources import cq500, folder, rsna
from ichkit.sources.plan import Found, SourcePlan

PHANTOM_FILE = "phantom.json"
_KAGGLE_INPUT = Path("/kaggle/input")


@dataclass(frozen=True)
class DataSource:
    """A data source of `prepare`.

    Attributes:
        name: its `dataset` in every table, and its option.
        find_images: files below the root to the images among them.
        plan: what was found to a `SourcePlan`.
        repair: whether broken intercepts are mended.
        keeps_index: whether headers may be kept for the next call; not where ids and paths may name people.
        is_required: whether `prepare` cannot do without it.
        role: training data, one of which `--source` names; or an external set, prepared wherever it is found.
        variable: environment variable that names its root.
        folders: where it is looked for after that.
        description: one sentence.
        source: where its layout comes from.
        tables: patterns of the relative paths of the tables that `plan` reads; their content tells whether there is
            anything new, and no other table below the root is opened.
    """

    name: str
    find_images: Callable[[pd.DataFrame], pd.DataFrame]
    plan: Callable[[Found], SourcePlan]
    repair: bool
    keeps_index: bool
    is_required: bool
    role: Role
    variable: str
    folders: tuple[Path, ...]
    description: str
    source: str
    tables: tuple[str, ...] = (r"(?i)\.csv$",)


_OWN_OPTIONS = (rsna.DATASET, STANDARD_EXTERNAL, folder.DATASET)

SOURCES = {
    "rsna": DataSource(
        name=rsna.DATASET,
        find_images=rsna.image_files,
        plan=rsna.plan_rsna,
        repair=True,
        keeps_index=True,
        is_required=True,
        role=Role.TRAINING,
        variable="ICHKIT_RSNA",
        folders=(
            Path("data/rsna"),
            _KAGGLE_INPUT / "rsna",
            _KAGGLE_INPUT / "rsna-intracranial-hemorrhage-detection",
        ),
        description="RSNA 2019: slices labelled with six classes, a test split and a sample submission.",
        source="https://www.kaggle.com/c/rsna-intracranial-hemorrhage-detection/data",
        tables=(rsna.TABLES,),
    ),
    "cq500": DataSource(
        name=cq500.DATASET,
        find_images=cq500.image_files,
        plan=cq500.plan_cq500,
        repair=False,
        keeps_index=True,
        is_required=False,
        role=Role.EXTERNAL,
        variable="ICHKIT_CQ500",
        folders=(Path("data/cq500"), _KAGGLE_INPUT / "cq500"),
        description="CQ500: studies read by three radiologists, the external test.",
        source="Chilamkurthy et al., Lancet 2018; http://headctstudy.qure.ai/dataset",
        tables=(cq500.TABLES,),
    ),
    "folder": DataSource(
        name=folder.DATASET,
        find_images=folder.image_files,
        plan=folder.plan_labelled_folder,
        repair=False,
        keeps_index=False,
        is_required=True,
        role=Role.TRAINING,
        variable="ICHKIT_FOLDER",
        folders=(Path("data/folder"),),
        description="Any tree of DICOM with a label file: your own scans, labelled per slice or per study.",
        source="chosen here",
        tables=(),
    ),
}


def training_sources() -> list[str]:
    """Names of the sources that bring training data, the usual one first."""
    return [name for name, source in SOURCES.items() if source.role is Role.TRAINING]


def external_sources() -> list[str]:
    """Names of the sources that are external sets."""
    return [name for name, source in SOURCES.items() if source.role is Role.EXTERNAL]


def locate(source: DataSource, given: Path | None) -> Path | None:
    """The root of a source: the one given, else its environment variable, else the first of its folders that is there.

    Raises:
        DataError: a root that was named is not there, or a required source is nowhere.
    """
    named = given or (Path(os.environ[source.variable]) if os.environ.get(source.variable) else None)
    if named is not None:
        if not named.exists():
            option = f"--{source.name}" if source.name in _OWN_OPTIONS else f"--external {source.name}=PATH"
            origin = option if given else source.variable
            raise DataError(
                f"{source.name}: {origin} says {named}, and nothing is there. Expected a folder or a zip; "
                "check the path."
            )
        return named
    found = next((folder for folder in source.folders if folder.exists()), None)
    if found is None and source.is_required:
        places = ", ".join(map(str, source.folders))
        raise DataError(
            f"{source.name}: no data at {places}. Download it from {source.source} and name it with "
            f"--{source.name} PATH or {source.variable}; or try `ichkit phantom phantom` and "
            f"`ichkit prepare --{source.name} phantom/{source.name}`."
        )
    return found


def is_phantom(root: Path) -> bool:
    """True where `ichkit phantom` wrote the data."""
    return (root / PHANTOM_FILE).is_file()
