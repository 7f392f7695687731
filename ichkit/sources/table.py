"""The table of data sources, and the search for their data on this machine."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from ichkit.core.errors import DataError
from ichkit.core.roles import STANDARD_EXTERNAL, Role
from ichkit.sources import aisd, bids, cq500, folder, rsna
from ichkit.sources.index import CT, MR
from ichkit.sources.plan import Found, SourcePlan
from ichkit.sources.series import SLABS_RULE, THICK_RULE, THIN_RULE, SeriesRule

PHANTOM_FILE = "phantom.json"
PHANTOM = "is_phantom"
"""The fact of a data set that says whether `ichkit phantom` wrote it."""
_KAGGLE_INPUT = Path("/kaggle/input")


@dataclass(frozen=True)
class DataSource:
    """A data source of `prepare`.

    Attributes:
        name: its `dataset` in every table, and its option.
        find_images: selects the images among the files below the root.
        plan: makes a `SourcePlan` of the files found.
        repair: whether broken intercepts are repaired.
        keeps_index: whether headers may be cached for the next call; not if ids and paths may identify people.
        is_required: whether missing data are an error.
        role: training data, selected with `--source`; or an external set, prepared if its data are found.
        variable: environment variable for its root.
        folders: default folders, searched if the variable is not set.
        description: one sentence.
        source: the origin of its layout.
        tables: patterns of the relative paths of the tables that `plan` reads; their content decides whether the store
            is up to date, and no other table below the root is opened.
        makes: further tables of the store that its plan always makes; a store of an earlier version that lacks one is
            updated.
        licence: the terms of the data; empty if only their owner knows.
        reference: who labelled them, with the publication; empty if only their owner knows.
        rule: when a slice or study is positive.
        annotation_tool: what they were labelled with, as published; empty if only their owner knows.
        has_public_ids: its ids were published with the data, so that pages may show them in full.
        modality: "CT", in Hounsfield units, or "MR", several sequences without a unit.
        takes_folder: its root and its label file are given by --folder and --labels.
        plan_scans: makes the plan of scans without labels by the rules of `plan` from an index and a salt, for
            `predict --source`; None where scans are read as those of any folder.
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
    makes: tuple[str, ...] = ()
    licence: str = ""
    reference: str = ""
    rule: str = ""
    annotation_tool: str = ""
    has_public_ids: bool = False
    modality: str = CT
    takes_folder: bool = False
    plan_scans: Callable[[pd.DataFrame, bytes], SourcePlan] | None = None


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
        licence="for non-commercial research, by the rules of the competition",
        reference="Every slice was labelled by volunteer neuroradiologists, more than 60 in all, of RSNA and the "
        "American Society of Neuroradiology (Flanders et al., Radiology: Artificial Intelligence 2, 2020, e190211).",
        rule="A slice has a label per class; a study is positive for a class if one of its slices is.",
        annotation_tool="the web platform of MD.ai",
        has_public_ids=True,
        plan_scans=rsna.plan_scans,
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
        description="CQ500: studies read by three radiologists, for external validation.",
        source="Chilamkurthy et al., Lancet 2018; http://headctstudy.qure.ai/dataset",
        tables=(cq500.TABLES,),
        makes=(cq500.READS_FILE,),
        licence="CC BY-NC-SA 4.0",
        reference="Three radiologists with 8, 12 and 20 years of experience read every study independently "
        "(Chilamkurthy et al., Lancet 392, 2018).",
        rule="A study is positive for a class if at least 2 of the 3 readers say so; slices have no labels.",
        has_public_ids=True,
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
        description="Any folder of DICOM with a label file: your own scans, labelled per slice or per study.",
        source="chosen here",
        tables=(),
        rule="A slice or a study is positive as the label file says.",
        takes_folder=True,
    ),
    "bids": DataSource(
        name=bids.DATASET,
        find_images=bids.image_files,
        plan=bids.plan_bids,
        repair=False,
        keeps_index=False,
        is_required=True,
        role=Role.TRAINING,
        variable="ICHKIT_BIDS",
        folders=(Path("data/bids"),),
        description="A BIDS tree of NIfTI files: several sequences of MR per study, labelled per study or part of one.",
        source="Gorgolewski et al., Scientific Data 3, 2016; https://bids.neuroimaging.io",
        tables=(bids.TABLES,),
        rule="A study or a part of one is positive as the label file says.",
        modality=MR,
        takes_folder=True,
    ),
}


def _by_rule(name: str, rule: SeriesRule, description: str) -> DataSource:
    """CQ500 by another series rule."""
    plan = partial(cq500.plan_cq500, dataset=name, rule=rule)
    return replace(
        SOURCES["cq500"],
        name=name,
        plan=plan,
        variable="",
        folders=(),
        makes=(f"{name}_reads.csv",),
        description=description,
    )


OTHER_SERIES = {
    "aisd": DataSource(
        name=aisd.DATASET,
        find_images=aisd.image_files,
        plan=aisd.plan_aisd,
        repair=False,
        keeps_index=False,
        is_required=False,
        role=Role.EXTERNAL,
        variable="",
        folders=(),
        description="AISD: 397 plain CT of acute ischemic stroke; labels of slices or regions from its masks.",
        source="Liang et al., MICCAI 2021; https://github.com/GriffinLiang/AISD",
        tables=(),
        licence="for non-commercial purposes, by its README",
        reference="One doctor drew the infarcts on the CT with diffusion MR of the next 24 hours at hand, and a senior "
        "doctor reviewed them (README).",
        rule="A slice is positive from 40 mm2 of mask on, a region where the mask covers 40 % of it in a slice.",
    ),
} | {
    row.name: row
    for row in (
        _by_rule("cq500-thin", THIN_RULE, "CQ500: the thinnest plain series of each study, slice by slice."),
        _by_rule("cq500-thick", THICK_RULE, "CQ500: the plain series of 2 mm or more that is nearest 5 mm."),
        _by_rule("cq500-slabs", SLABS_RULE, "CQ500: the thinnest plain series, averaged to slabs of about 5 mm."),
    )
}
"""External sets with labels of their own that are prepared only where they are named: `--external NAME=PATH`."""


def takes_folder(name: str) -> bool:
    """True if `--folder` gives the root of that source; False for an unknown one."""
    return name in SOURCES and SOURCES[name].takes_folder


def training_sources() -> list[str]:
    """Names of the sources of training data, the default first."""
    return [name for name, source in SOURCES.items() if source.role is Role.TRAINING]


def external_sources() -> list[str]:
    """Names of the sources that are external sets."""
    return [name for name, source in SOURCES.items() if source.role is Role.EXTERNAL]


def locate(source: DataSource, given: Path | None) -> Path | None:
    """The root of a source: the one given, else from its environment variable, else its first existing default folder.

    Raises:
        DataError: a given root does not exist, or a required source is not found.
    """
    named = given or (Path(os.environ[source.variable]) if os.environ.get(source.variable) else None)
    if named is not None:
        if not named.exists():
            own = f"--{source.name}" if source.name in _OWN_OPTIONS else f"--external {source.name}=PATH"
            option = "--folder" if source.takes_folder and source.role is Role.TRAINING else own
            origin = option if given else source.variable
            raise DataError(
                f"{source.name}: expected a folder or a zip file at {named} ({origin}), found nothing. Check the path."
            )
        return named
    found = next((folder for folder in source.folders if folder.exists()), None)
    if found is None and source.is_required:
        places = ", ".join(map(str, source.folders))
        raise DataError(
            f"{source.name}: no data at {places}. Download them from {source.source} and give their path with "
            f"--{source.name} PATH or {source.variable}; or try `ichkit phantom phantom` and "
            f"`ichkit prepare --{source.name} phantom/{source.name}`."
        )
    return found


def is_phantom(root: Path) -> bool:
    """True if `ichkit phantom` wrote the data."""
    return (root / PHANTOM_FILE).is_file()
