"""A BIDS tree of NIfTI files: every study has several sequences, which become one volume (`imaging.sequences`)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.csv_tables import read_csv
from ichkit.core.errors import ConfigError, DataError
from ichkit.core.roles import Role
from ichkit.core.tasks import Task
from ichkit.imaging.dicom import NO_PADDING
from ichkit.imaging.parts import part_id
from ichkit.imaging.sequences import SequenceSettings
from ichkit.sources.folder import hide_files, label_plan, salted
from ichkit.sources.plan import Found, SourcePlan, make_rejected
from ichkit.sources.sequence_files import MASK, name_parts, roles_to_use
from ichkit.work.schemas import SERIES_CHOICE

DATASET = "bids"
LABELS_FILE, READERS_FILE = "labels.csv", "readers.csv"
TABLES = r"^(?:labels|readers)\.csv$"
_AXIAL = {"row_x": 1.0, "row_y": 0.0, "row_z": 0.0, "column_x": 0.0, "column_y": 1.0, "column_z": 0.0}


def image_files(files: pd.DataFrame) -> pd.DataFrame:
    """The NIfTI files."""
    is_volume = files["relative"].str.contains(r"(?i)\.nii(?:\.gz)?$", regex=True)
    return files[is_volume].reset_index(drop=True)


def plan_bids(found: Found, dataset: str = DATASET, role: Role = Role.TRAINING) -> SourcePlan:
    """The studies with all their sequences, with the labels of the label file or of `labels.csv` in the root.

    A file `readers.csv` in the root holds what single readers said: study_id, reader, a column of 0 and 1 for each
    class that they were asked for, and side or part where they judged a part.

    Args:
        dataset: its name in every table.
        role: training data or an external set.

    Raises:
        ConfigError: `prepare.sequences.names` is empty.
        DataError: the label file is missing or invalid, or no scan has a label.
    """
    labels = found.labels or _in_root(found, LABELS_FILE)
    readable = found.index.loc[found.index["reason"] == "", "relative"]
    studies = readable.map(lambda relative: name_parts(relative)[1])
    scans = {"study_id": studies, "slice_id": studies}
    plan = label_plan(lambda: plan_sequences(found, dataset), replace(found, labels=labels), scans, dataset, role)
    readers = _in_root(found, READERS_FILE)
    return (
        plan if readers is None else replace(plan, tables={f"{dataset}_reads.csv": read_readers(readers, found.task)})
    )


def _in_root(found: Found, name: str) -> Path | None:
    rows = found.files.loc[(found.files["relative"] == name) & (found.files["zip_offset"] < 0), "container"]
    return Path(rows.iloc[0]) if len(rows) else None


def read_readers(path: Path, task: Task) -> pd.DataFrame:
    """study_id (of the part, where a part was judged), reader, and a nullable column for each class of the task.

    Raises:
        DataError: no study_id or reader, no class of the task, or a value that is not 0 or 1.
    """
    try:
        raw = read_csv(path, dtype={"study_id": "str", "side": "str", "part": "str"}, keep_default_na=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a CSV of reads, it cannot be read ({type(error).__name__}).") from error
    known = [name for name in task.classes if name in raw]
    if not {"study_id", "reader"} <= set(raw) or not known:
        raise DataError(
            f"{path}: expected study_id, reader and one or more of {', '.join(task.classes)} in the first row. "
            "Name the columns."
        )
    if not (raw[known].isin([0, 1]) | raw[known].isna()).all(axis=None):
        raise DataError(f"{path}: expected 0 or 1 in {', '.join(known)}, or empty cells. Correct the rows.")
    part = next((raw[name] for name in ("part", "side") if name in raw), None)
    ids = raw["study_id"] if part is None else [part_id(*ids) for ids in zip(raw["study_id"], part, strict=True)]
    table = pd.DataFrame({"study_id": ids, "reader": raw["reader"]})
    for name in task.classes:
        table[name] = (raw[name] if name in raw else pd.Series(pd.NA, raw.index)).astype("Int8")
    return table.sort_values(["study_id", "reader"], ignore_index=True)


def plan_sequences(found: Found, dataset: str = DATASET) -> SourcePlan:
    """The studies with all their sequences, without labels.

    A slice of the plan is one of the grid that all sequences are brought to; its files are those of the study, one row
    for each.

    Raises:
        ConfigError: `prepare.sequences.names` is empty.
    """
    settings = found.sequences
    if settings is None:
        raise ConfigError(
            "prepare.sequences: a BIDS tree needs the names of its sequences, found none. Name them, e.g. "
            "--set 'prepare.sequences.names=[dwi, b0, flair]'."
        )
    index = found.index.drop_duplicates("relative")
    parts = [name_parts(relative) for relative in index["relative"]]
    index = index.assign(
        dataset=dataset,
        split="external",
        subject=[subject for subject, _, _ in parts],
        study_id=[study for _, study, _ in parts],
        role=[role for *_, role in parts],
    )
    index["series_id"] = index["study_id"]
    index["slice_id"] = index["study_id"]
    index["position_mm"] = np.nan
    index["patient_id"] = [salted(found.salt, "patient", subject) if subject else "" for subject in index["subject"]]
    index = _judge(index, settings)
    good = index[index["reason"] == ""]
    refused = index[index["reason"] != ""]
    return SourcePlan(
        dataset=dataset,
        files=_spread(good, settings),
        rejected=hide_files(make_rejected(refused), found.salt),
        series_choice=_describe_choice(good, settings),
        facts={"num_files": len(index), "num_studies": int(good["study_id"].nunique())},
        salt=found.salt,
    )


def _judge(index: pd.DataFrame, settings: SequenceSettings) -> pd.DataFrame:
    """The index with a reason for every file that is not used."""
    reasons = index["reason"].to_numpy(object, copy=True)
    roles, studies = index["role"].to_numpy(), index["study_id"].to_numpy()
    for study in np.unique(studies):
        rows = [row for row in np.flatnonzero(studies == study) if reasons[row] == ""]
        if not study:
            reasons[rows] = "not a BIDS name such as sub-01_dwi.nii.gz"
            continue
        rows.sort(key=lambda row: str(index["relative"].iloc[row]))
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(str(roles[row]), int(row))
        used = roles_to_use(settings.names, set(first))
        for row in rows:
            if roles[row] not in (used or {*settings.names, MASK}):
                reasons[row] = f"not one of the sequences {', '.join(settings.names)}"
            elif first[str(roles[row])] != row:
                reasons[row] = f"another file of its study is its {roles[row]}"
            elif used is None:
                lacking = [name for name in settings.names if roles_to_use((name,), set(first)) is None]
                reasons[row] = f"its study has no {' and no '.join(lacking)}"
    return index.assign(reason=reasons.astype(str))


def _describe_choice(good: pd.DataFrame, settings: SequenceSettings) -> pd.DataFrame:
    """A row of `schemas.SERIES_CHOICE` for every study: all of its sequences are used."""
    table = pd.DataFrame({"study_id": sorted(good["study_id"].unique())})
    return table.assign(
        series_id=table["study_id"],
        series=", ".join(settings.names),
        num_slices=settings.shape[0],
        coverage_mm=settings.field_mm[0],
        gap_mm=settings.spacing_mm[0],
        chosen=True,
        reason="its sequences, brought to one grid",
    )[SERIES_CHOICE]


def _spread(good: pd.DataFrame, settings: SequenceSettings) -> pd.DataFrame:
    """A row of every file for every slice of the grid."""
    good = good.sort_values(["study_id", "role", "relative"], ignore_index=True)
    num_slices, rows, columns = settings.shape
    gap, row_mm, col_mm = (round(size, 6) for size in settings.spacing_mm)
    spread = good.loc[np.repeat(np.arange(len(good)), num_slices)].reset_index(drop=True)
    number = np.tile(np.arange(num_slices), len(good))
    stored: dict[str, float] = {"rows": rows, "columns": columns, "bits_stored": 16, "high_bit": 15}
    stored |= {"pixel_representation": 1, "padding_value": NO_PADDING, "padding_limit": NO_PADDING}
    stored |= {"slope": 1.0, "intercept": 0.0, "turn": 0}
    return spread.assign(
        **stored,
        **_AXIAL,
        spacing_row_mm=row_mm,
        spacing_col_mm=col_mm,
        frame=number,
        position_mm=np.round(number * gap, 6),
        tilt_degrees=0.0,
        slab=number,
        slice_id=spread["study_id"] + "." + pd.Series(number + 1).astype("str"),
        instance_number=good.groupby("study_id").cumcount().to_numpy()[np.repeat(np.arange(len(good)), num_slices)],
    ).drop(columns=["reason", "subject", "role"])
