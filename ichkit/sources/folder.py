"""Any tree of DICOM: studies and series are found by their headers; nothing that names a patient is kept."""

import hashlib

import pandas as pd

from ichkit.sources.plan import SourcePlan, add_positions, make_rejected, split_duplicates
from ichkit.sources.series import FOLDER_RULE, take_chosen_series

DATASET = "folder"
_COMPANIONS = r"(?i)(?:^|/)(?:(?:license|licence|copying|notice|readme)(?:\.[^/]*)?|dicomdir|thumbs\.db|\.[^/]*)$"


def image_files(files: pd.DataFrame) -> pd.DataFrame:
    """The files that may be images: all but the companions of data sets (licence, read-me, directory, hidden files)."""
    return files[~files["relative"].str.contains(_COMPANIONS, regex=True)].reset_index(drop=True)


def plan_folder(index: pd.DataFrame, salt: bytes) -> SourcePlan:
    """The best axial series of every study.

    Args:
        index: of every file below the root.
        salt: secret bytes; patients and file names appear only as digests with it.
    """
    index = add_positions(index).assign(dataset=DATASET, split="external")
    index["study_id"], index["series_id"] = index["study_uid"], index["series_uid"]
    index["patient_id"] = [salted(salt, "patient", name) for name in index["patient_id"]]
    unnamed = index["slice_uid"] == ""
    index["slice_id"] = index["slice_uid"].mask(unnamed, [salted(salt, "slice", name) for name in index["relative"]])
    good, copies = split_duplicates(index[index["reason"] == ""], ["study_id", "slice_id"])
    number = good.groupby("study_id")["series_id"].rank(method="dense").astype(int)
    # A series description is free text and may hold a name: series are told apart by number.
    kept, choice = take_chosen_series(good, "series " + number.astype(str), FOLDER_RULE)
    refused = pd.concat([index[index["reason"] != ""], copies])
    digests = [salted(salt, "file", name) for name in refused["relative"]]
    rejected = make_rejected(refused).assign(file=digests)
    return SourcePlan(files=kept.drop(columns="reason"), rejected=rejected, series_choice=choice)


def salted(salt: bytes, purpose: str, text: str) -> str:
    """16 hex digits that stand for a text and cannot be turned back without the salt."""
    return hashlib.blake2b(f"{purpose}\x1f{text}".encode(), key=salt, digest_size=8).hexdigest()
