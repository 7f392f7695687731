"""Any tree of DICOM: studies and series are found by their headers; nothing that names a patient is kept."""

import hashlib
from dataclasses import replace

import pandas as pd

from ichkit.core.errors import DataError
from ichkit.core.progress import logger
from ichkit.core.roles import Role
from ichkit.imaging.dicom import ORIENTATION
from ichkit.sources.copies import split_copies
from ichkit.sources.labels import check_matches, read_folder_labels
from ichkit.sources.plan import NO_PATIENT, Found, SourcePlan, add_positions, add_reason, make_rejected
from ichkit.sources.series import FOLDER_RULE, say_choice, take_chosen_series
from ichkit.sources.values import warn_of_tissue_padding, why_unusable
from ichkit.work.artifacts import digest_table

DATASET = "folder"
_NO_STUDY = "no StudyInstanceUID and no PatientID: studies cannot be told apart"
_MANY_SERIES = 8
"""Fewer series of one file may be scouts, screens or slices that watch a bolus arrive."""
_COMPANIONS = r"(?i)(?:^|/)(?:(?:license|licence|copying|notice|readme)(?:\.[^/]*)?|dicomdir|thumbs\.db|\.[^/]*)$"


def image_files(files: pd.DataFrame) -> pd.DataFrame:
    """The files that may be images: all but the companions of data sets (licence, read-me, directory, hidden files)."""
    return files[~files["relative"].str.contains(_COMPANIONS, regex=True)].reset_index(drop=True)


def plan_folder(
    index: pd.DataFrame,
    salt: bytes,
    override: pd.DataFrame | None = None,
    *,
    needs_patients: bool = False,
    judges_hu: bool = False,
    dataset: str = DATASET,
) -> SourcePlan:
    """The best axial series of every study, without labels.

    Args:
        index: of every file below the root.
        salt: secret bytes; patients and file names appear only as digests with it.
        override: series chosen by hand.
        judges_hu: of several series, pass over one whose values cannot be HU of a head.
        needs_patients: a file without PatientID is refused, because folds go by patient.
        dataset: its name in every table.
    """
    index = add_positions(index).assign(dataset=dataset, split="external")
    if needs_patients:
        index = add_reason(index, index["patient_id"] == "", NO_PATIENT)
    index = _add_ids(index, salt)
    good, copies = split_copies(index[index["reason"] == ""])
    number = good.groupby("study_id")["series_id"].rank(method="dense").astype(int)
    # A series description is free text and may hold a name: series are told apart by number.
    names = "series " + number.astype(str)
    taken = take_chosen_series(good, names, FOLDER_RULE, override, why_unusable if judges_hu else None)
    warn_of_tissue_padding(taken.files, dataset)
    say_choice(taken.choice, dataset)
    refused = pd.concat([index[index["reason"] != ""], copies, taken.refused])
    return SourcePlan(
        dataset=dataset,
        files=taken.files.drop(columns="reason"),
        rejected=hide_files(make_rejected(refused), salt),
        series_choice=taken.choice,
        facts={"num_files": len(index)},
        salt=salt,
    )


def _add_ids(index: pd.DataFrame, salt: bytes) -> pd.DataFrame:
    """The index with study_id, series_id, slice_id and a digest as patient_id.

    Where an anonymiser emptied the UIDs, a study is what one patient has in one folder, and a series what in it has the
    same geometry and header; without a patient such files cannot be told apart and are refused.
    """
    patient, study = index["patient_id"], index["study_uid"]
    folder = index["relative"].str.replace(r"/?[^/]*$", "", regex=True)
    index = add_reason(index, (study == "") & (patient == ""), _NO_STUDY)
    study_id = study.mask((study == "") & (patient != ""), _digests(salt, "study", patient, folder))
    study_id = _split_shared_studies(study_id, patient)
    geometry = (
        index[[*ORIENTATION, "spacing_row_mm", "spacing_col_mm", "rows", "columns"]].fillna(0).round(3).astype("str")
    )
    series_texts = [study_id, folder, index["kind"], *(geometry[name] for name in geometry)]
    is_unnamed = (index["series_uid"] == "") & (study_id != "")
    series_id = index["series_uid"].mask(is_unnamed, _digests(salt, "series", *series_texts))
    series_id = _join_single_slices(index, study_id, series_id, salt)
    slice_id = index["slice_uid"].mask(index["slice_uid"] == "", _digests(salt, "slice", index["relative"]))
    # Patients without an id are not one patient: each of their studies stands for itself.
    patient_id = _digests(salt, "patient", patient.mask(patient == "", "\x1e" + study_id))
    return index.assign(study_id=study_id, series_id=series_id, slice_id=slice_id, patient_id=patient_id)


def _join_single_slices(index: pd.DataFrame, study_id: pd.Series, series_id: pd.Series, salt: bytes) -> pd.Series:
    """The series; many of a single file each, of one study and one geometry, become one.

    Some programs that anonymise make a new SeriesInstanceUID for every file.
    """
    names = ["study_id", "kind", "rows", "columns", *ORIENTATION]
    good = index.assign(study_id=study_id, series_id=series_id)[(index["reason"] == "") & (study_id != "")]
    single = good[~good.duplicated(["study_id", "series_id"], keep=False)]
    single = single.assign(**{name: single[name].round(3) for name in ORIENTATION})
    many = single[single.groupby(names)["series_id"].transform("size") >= _MANY_SERIES]
    if many.empty:
        return series_id
    logger.warning(
        "%d files have each a SeriesInstanceUID of their own: those of one study and one geometry are one series",
        len(many),
    )
    texts = [many[name].astype("str") for name in names]
    return series_id.where(~series_id.index.isin(many.index), pd.Series(_digests(salt, "series", *texts), many.index))


def _split_shared_studies(study_id: pd.Series, patient: pd.Series) -> pd.Series:
    """The studies; those under whose UID lie several patients have a number behind it for each patient.

    Copied and anonymised files share UIDs; of two heads in one study, one would disappear behind the other.
    """
    of_patient = pd.DataFrame({"study": study_id, "patient": patient})
    known = of_patient[(study_id != "") & (patient != "")].drop_duplicates().sort_values(["study", "patient"])
    shared = known[known["study"].duplicated(keep=False)]
    if shared.empty:
        return study_id
    logger.warning(
        "%d StudyInstanceUIDs stand for several PatientIDs: the files of each patient are a study of their own, with a "
        "number behind the id; labels by study cannot name them",
        shared["study"].nunique(),
    )
    number = shared.groupby("study").cumcount() + 1
    names = shared.assign(name=shared["study"] + "#" + number.astype("str"))
    found = of_patient.merge(names, on=["study", "patient"], how="left")["name"]
    return study_id.mask(found.notna().to_numpy(), found.to_numpy())


def _digests(salt: bytes, purpose: str, *texts: pd.Series) -> list[str]:
    """A digest for each row of these columns."""
    made: dict[tuple[str, ...], str] = {}
    rows = list(zip(*(text.to_list() for text in texts), strict=True))
    for row in rows:
        if row not in made:
            made[row] = salted(salt, purpose, "\x1f".join(row))
    return [made[row] for row in rows]


def plan_labelled_folder(found: Found, dataset: str = DATASET, role: Role = Role.TRAINING) -> SourcePlan:
    """The best axial series of every study that the label file knows.

    Labels per study become those of every slice for training alone; an external set keeps them as the study's.

    Args:
        dataset: its name in every table.
        role: to learn from, or an external set.

    Raises:
        DataError: there is no label file, or it is not as expected, or no scan has a label.
    """
    if found.labels is None:
        raise DataError(
            f"{dataset}: expected a label file, found none. Name it with --labels CSV: a column slice_id "
            f"(SOPInstanceUID) or study_id (StudyInstanceUID), and {', '.join(found.task.classes)} of 0 and 1. "
            "For scans without labels there is `ichkit predict`."
        )
    labels, key = read_folder_labels(found.labels, found.task)
    is_training = role is Role.TRAINING
    plan = plan_folder(
        found.index, found.salt, found.override, needs_patients=is_training, judges_hu=found.judges_hu, dataset=dataset
    )
    files = plan.files.assign(split="train") if is_training else plan.files
    # A slice of a series that was not chosen has a scan, too.
    readable = found.index[found.index["reason"] == ""]
    scans = readable["slice_uid" if key == "slice_id" else "study_uid"]
    if len(files):
        check_matches(found.labels, labels, key, scans, files[key])
    is_known = files[key].isin(labels[key])
    unlabelled = files[~is_known].assign(reason="no label in the label file")
    rejected = [plan.rejected, hide_files(make_rejected(unlabelled), found.salt)]
    # A slab is named by its middle slice and has that slice's label: its files go or stay together.
    files = files[is_known]
    facts = {**plan.facts, "labels": "slice" if key == "slice_id" else "study"}
    slices, studies = (labels, None) if key == "slice_id" else (None, labels)
    if key == "study_id" and is_training:
        logger.warning("folder: labels are per study; every slice is given its study's, which is only roughly right")
        names = files[["study_id", "slice_id"]].drop_duplicates()
        slices = names.merge(labels, on="study_id").drop(columns="study_id")
    return replace(
        plan,
        files=files,
        rejected=pd.concat([table for table in rejected if len(table)] or rejected[:1], ignore_index=True),
        labels=slices,
        study_labels=studies,
        facts=facts,
        inputs={"labels" if dataset == DATASET else f"{dataset}_labels": digest_table(labels)},
    )


def hide_files(rejected: pd.DataFrame, salt: bytes) -> pd.DataFrame:
    """A `rejected` table with digests in place of file names."""
    return rejected.assign(file=[salted(salt, "file", name) for name in rejected["file"]])


def salted(salt: bytes, purpose: str, text: str) -> str:
    """16 hex digits that stand for a text and cannot be turned back without the salt."""
    return hashlib.blake2b(f"{purpose}\x1f{text}".encode(), key=salt, digest_size=8).hexdigest()
