"""Any tree of DICOM: studies and series are found by their headers; nothing that names a patient is kept."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ichkit.core.errors import DataError
from ichkit.core.progress import logger
from ichkit.core.tasks import Task
from ichkit.sources.plan import Found, SourcePlan, add_positions, make_rejected, split_duplicates
from ichkit.sources.series import FOLDER_RULE, take_chosen_series
from ichkit.work.artifacts import digest_table

DATASET = "folder"
_COMPANIONS = r"(?i)(?:^|/)(?:(?:license|licence|copying|notice|readme)(?:\.[^/]*)?|dicomdir|thumbs\.db|\.[^/]*)$"


def image_files(files: pd.DataFrame) -> pd.DataFrame:
    """The files that may be images: all but the companions of data sets (licence, read-me, directory, hidden files)."""
    return files[~files["relative"].str.contains(_COMPANIONS, regex=True)].reset_index(drop=True)


def plan_folder(index: pd.DataFrame, salt: bytes, override: pd.DataFrame | None = None) -> SourcePlan:
    """The best axial series of every study, without labels.

    Args:
        index: of every file below the root.
        salt: secret bytes; patients and file names appear only as digests with it.
        override: series chosen by hand.
    """
    index = add_positions(index).assign(dataset=DATASET, split="external")
    index["study_id"], index["series_id"] = index["study_uid"], index["series_uid"]
    index["patient_id"] = [salted(salt, "patient", name) for name in index["patient_id"]]
    unnamed = index["slice_uid"] == ""
    index["slice_id"] = index["slice_uid"].mask(unnamed, [salted(salt, "slice", name) for name in index["relative"]])
    good, copies = split_duplicates(index[index["reason"] == ""], ["study_id", "slice_id"])
    number = good.groupby("study_id")["series_id"].rank(method="dense").astype(int)
    # A series description is free text and may hold a name: series are told apart by number.
    kept, choice = take_chosen_series(good, "series " + number.astype(str), FOLDER_RULE, override)
    refused = pd.concat([index[index["reason"] != ""], copies])
    return SourcePlan(
        dataset=DATASET,
        files=kept.drop(columns="reason"),
        rejected=hide_files(make_rejected(refused), salt),
        series_choice=choice,
        facts={"num_files": len(index)},
        salt=salt,
    )


def plan_labelled_folder(found: Found) -> SourcePlan:
    """The best axial series of every study that the label file knows, for training.

    Raises:
        DataError: there is no label file, or it is not as expected, or no scan has a label.
    """
    if found.labels is None:
        raise DataError(
            "folder: expected a label file, found none. Name it with --labels CSV: a column slice_id "
            f"(SOPInstanceUID) or study_id (StudyInstanceUID), and {', '.join(found.task.classes)} of 0 and 1. "
            "For scans without labels there is `ichkit predict`."
        )
    labels, key = read_folder_labels(found.labels, found.task)
    plan = plan_folder(found.index, found.salt, found.override)
    files = plan.files.assign(split="train")
    is_known = files[key].isin(labels[key])
    if not is_known.any():
        raise DataError(
            f"{found.labels}: none of its {len(labels)} ids in column {key} is among the {files[key].nunique()} found. "
            "They must be the UIDs in the DICOM headers."
        )
    unlabelled = files[~is_known].assign(reason="no label in the label file")
    rejected = [plan.rejected, hide_files(make_rejected(unlabelled), found.salt)]
    # A slab is named by its middle slice and has that slice's label: its files go or stay together.
    files = files[is_known]
    facts = {**plan.facts, "labels": "slice" if key == "slice_id" else "study"}
    if key == "study_id":
        logger.warning("folder: labels are per study; every slice is given its study's, which is only roughly right")
        names = files[["study_id", "slice_id"]].drop_duplicates()
        slices, studies = names.merge(labels, on="study_id").drop(columns="study_id"), labels
    else:
        slices, studies = labels, None
    return replace(
        plan,
        files=files,
        rejected=pd.concat([table for table in rejected if len(table)] or rejected[:1], ignore_index=True),
        labels=slices,
        study_labels=studies,
        facts=facts,
        inputs={"labels": digest_table(labels)},
    )


def read_folder_labels(path: Path, task: Task) -> tuple[pd.DataFrame, str]:
    """The id column and one 0/1 column per class, sorted by id; and which it is, slice_id or study_id.

    The class that is positive where any other is may be missing: it is their maximum.

    Raises:
        DataError: missing, no id, no or contradicting labels.
    """
    try:
        raw = pd.read_csv(path, dtype={"slice_id": "str", "study_id": "str"})
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a CSV of labels: {error}") from error
    key = next((name for name in ("slice_id", "study_id") if name in raw), None)
    subtypes = list(task.subtypes)
    missing = [name for name in subtypes if name not in raw]
    if key is None or missing:
        raise DataError(
            f"{path}: expected a column slice_id or study_id, and {', '.join(task.classes)}; "
            f"found {', '.join(map(str, raw.columns))}."
        )
    if task.any_class not in raw:
        raw[task.any_class] = raw[subtypes].max(axis=1)
    table = raw[[key, *task.classes]].drop_duplicates()
    if not table[list(task.classes)].isin([0, 1]).all(axis=None):
        raise DataError(f"{path}: expected labels 0 or 1 in every class column of every row.")
    if table[key].duplicated().any() or table[key].isna().any():
        raise DataError(f"{path}: a {key} is empty, or stands in two rows with different labels.")
    return table.astype(dict.fromkeys(task.classes, "int8")).sort_values(key, ignore_index=True), key


def hide_files(rejected: pd.DataFrame, salt: bytes) -> pd.DataFrame:
    """A `rejected` table with digests in place of file names."""
    return rejected.assign(file=[salted(salt, "file", name) for name in rejected["file"]])


def salted(salt: bytes, purpose: str, text: str) -> str:
    """16 hex digits that stand for a text and cannot be turned back without the salt."""
    return hashlib.blake2b(f"{purpose}\x1f{text}".encode(), key=salt, digest_size=8).hexdigest()
