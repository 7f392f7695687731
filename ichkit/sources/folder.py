"""Any folder of DICOM: studies and series are identified by headers; nothing that identifies a patient is kept."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ichkit.core.errors import DataError
from ichkit.core.progress import logger
from ichkit.core.roles import Role
from ichkit.imaging.dicom import ORIENTATION
from ichkit.imaging.parts import whole_id
from ichkit.sources.acquisitions import is_distinct, is_regular
from ichkit.sources.copies import split_copies
from ichkit.sources.labels import check_matches, read_folder_labels, read_subgroups
from ichkit.sources.plan import NO_PATIENT, Found, SourcePlan, add_positions, add_reason, make_rejected
from ichkit.sources.series import FOLDER_RULE, say_choice, take_chosen_series
from ichkit.sources.values import warn_of_tissue_padding, why_unusable
from ichkit.work.artifacts import digest_table

DATASET = "folder"
_SEVERAL = "several"
NO_STUDY = "no StudyInstanceUID and no PatientID: studies cannot be told apart"
_MANY_FILES = 8
"""Fewer series or studies of one file may be scouts, screens or slices that watch a bolus arrive."""
_SAME_PATIENT_AND_PICTURE = ["patient_id", "kind", "rows", "columns", *ORIENTATION]
# What files of one head share, in the order of trust, and what their positions must be.
_ONE_HEAD = {"series_uid": is_distinct, "reference_uid": is_distinct, "folder": is_regular}
_COMPANIONS = (
    r"(?i)(?:^|/)(?:(?:license|licence|copying|notice|readme)(?:\.[^/]*)?|phantom\.json|regions\.csv|dicomdir"
    r"|thumbs\.db|\.[^/]*)$"
)


def image_files(files: pd.DataFrame) -> pd.DataFrame:
    """The files that may be images: no licences, read-me files, DICOM directories, hidden files, tables of phantoms."""
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
    # A series description is free text and may contain a name: series are numbered.
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


def group_studies(index: pd.DataFrame, salt: bytes) -> pd.Series:
    """What the files of a study have in common, for each row of an index; empty where the study is not known.

    The StudyInstanceUID, or a digest where `plan_folder` would use one. Patients who share a UID are not told apart:
    `plan_folder` does that with the files of a group.
    """
    named = index.assign(study_id=_name_studies(index, salt), folder=_folders(index))
    return _join_single_studies(add_positions(named), salt)


def _name_studies(index: pd.DataFrame, salt: bytes) -> pd.Series:
    """The StudyInstanceUID of each row; without one a digest of the patient and the folder, without both empty."""
    patient, study = index["patient_id"], index["study_uid"]
    return study.mask((study == "") & (patient != ""), _digests(salt, "study", patient, _folders(index)))


def _folders(index: pd.DataFrame) -> pd.Series:
    return index["relative"].str.replace(r"/?[^/]*$", "", regex=True)


def _add_ids(index: pd.DataFrame, salt: bytes) -> pd.DataFrame:
    """The index with study_id, series_id, slice_id and a digest as patient_id.

    If an anonymiser emptied the UIDs, the files of one patient in one folder are a study, and those with the same
    geometry and header a series; without a patient such files are rejected.
    """
    patient, study = index["patient_id"], index["study_uid"]
    folder = _folders(index)
    index = add_reason(index, (study == "") & (patient == ""), NO_STUDY)
    study_id = _split_shared_studies(_name_studies(index, salt), patient)
    joined = _join_single_studies(index.assign(study_id=study_id, folder=folder), salt)
    if num_joined := int((joined != study_id).sum()):
        logger.warning(
            "%d files each have their own StudyInstanceUID: those of one patient that make one head are one "
            "study; labels per study cannot refer to it",
            num_joined,
        )
    study_id = joined
    geometry = (
        index[[*ORIENTATION, "spacing_row_mm", "spacing_col_mm", "rows", "columns"]].fillna(0).round(3).astype("str")
    )
    series_texts = [study_id, folder, index["kind"], *(geometry[name] for name in geometry)]
    is_unnamed = (index["series_uid"] == "") & (study_id != "")
    series_id = index["series_uid"].mask(is_unnamed, _digests(salt, "series", *series_texts))
    series_id = _join_single_slices(index, study_id, series_id, salt)
    slice_id = index["slice_uid"].mask(index["slice_uid"] == "", _digests(salt, "slice", index["relative"]))
    # Files without a PatientID are not of one patient: each of their studies counts as a patient.
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
    many = single[single.groupby(names)["series_id"].transform("size") >= _MANY_FILES]
    if many.empty:
        return series_id
    logger.warning(
        "%d files each have their own SeriesInstanceUID: those of one study and one geometry are one series",
        len(many),
    )
    texts = [many[name].astype("str") for name in names]
    return series_id.where(~series_id.index.isin(many.index), pd.Series(_digests(salt, "series", *texts), many.index))


def _join_single_studies(index: pd.DataFrame, salt: bytes) -> pd.Series:
    """The study of each row; many of a single file each, of one patient and one head, become one.

    Some programs that anonymise make a new StudyInstanceUID for every file. Files are of one head if they have one
    series or frame of reference and no position twice, or lie in one folder, equally spaced.

    Args:
        index: with study_id and folder.
    """
    study_id = index["study_id"]
    good = index[(index["reason"] == "") & (study_id != "") & index["position_mm"].notna()]
    single = good[~good["study_id"].duplicated(keep=False)]
    single = single.assign(**{name: single[name].round(3) for name in ORIENTATION})
    joined = study_id.copy()
    for name, is_head in _ONE_HEAD.items():
        free = single[single["study_id"].isin(joined) & (single[name] != "")]
        for of_head, rows in free.groupby([name, *_SAME_PATIENT_AND_PICTURE], sort=False):
            if len(rows) >= _MANY_FILES and is_head(rows["position_mm"].to_numpy()):
                joined[rows.index] = salted(salt, "study", "\x1f".join(map(str, of_head)))
    return joined


def _split_shared_studies(study_id: pd.Series, patient: pd.Series) -> pd.Series:
    """The study of each row; if several patients share a study UID, a number is appended for each patient.

    Copied and anonymised files may share UIDs; without this, two heads would be merged into one study.
    """
    of_patient = pd.DataFrame({"study": study_id, "patient": patient})
    known = of_patient[(study_id != "") & (patient != "")].drop_duplicates().sort_values(["study", "patient"])
    shared = known[known["study"].duplicated(keep=False)]
    if shared.empty:
        return study_id
    logger.warning(
        "%d StudyInstanceUIDs are shared by several PatientIDs: the files of each patient are treated as a study with "
        "a number appended to the id; labels per study cannot refer to them",
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
    """The best axial series of every study in the label file.

    For training, study-level labels are copied to all slices (weak labels); an external set keeps them per study.

    Args:
        dataset: its name in every table.
        role: training data or an external set.

    Raises:
        DataError: the label file is missing or invalid, or no scan has a label.
    """
    readable = found.index[found.index["reason"] == ""]
    scans = {"slice_id": readable["slice_uid"], "study_id": readable["study_uid"]}

    def make_plan() -> SourcePlan:
        needs_patients = role is Role.TRAINING
        return plan_folder(
            found.index,
            found.salt,
            found.override,
            needs_patients=needs_patients,
            judges_hu=found.judges_hu,
            dataset=dataset,
        )

    return label_plan(make_plan, found, scans, dataset, role)


def label_plan(
    make_plan: Callable[[], SourcePlan], found: Found, scans: Mapping[str, pd.Series], dataset: str, role: Role
) -> SourcePlan:
    """A plan without labels with those of the label file; studies without any are left out.

    Args:
        make_plan: makes the plan, after the label file was read.
        scans: the ids of all readable files, of series that were not chosen too, by slice_id and study_id.

    Raises:
        DataError: the label file is missing or invalid, or no scan has a label.
    """
    if found.labels is None:
        raise DataError(
            f"{dataset}: expected a label file, found none. Name it with --labels CSV: a column slice_id "
            f"(SOPInstanceUID) or study_id (StudyInstanceUID), and {', '.join(found.task.classes)} of 0 and 1. "
            "For scans without labels use `ichkit predict`."
        )
    labels, key = read_folder_labels(found.labels, found.task, by_part=found.by_part, subgroups=found.subgroups)
    ids = labels.assign(**{key: labels[key].map(whole_id)}) if found.by_part else labels
    is_training = role is Role.TRAINING
    plan = make_plan()
    files = plan.files.assign(split="train") if is_training else plan.files
    if len(files):
        check_matches(found.labels, ids, key, scans[key], files[key])
    is_known = files[key].isin(ids[key])
    unlabelled = files[~is_known].assign(reason="no label in the label file")
    rejected = [plan.rejected, hide_files(make_rejected(unlabelled), found.salt)]
    # A slab has the id and the label of its middle slice: its files are kept or dropped together.
    files = files[is_known]
    facts = {**plan.facts, "labels": "slice" if key == "slice_id" else "study"}
    refused = set(plan.rejected["study_id"][plan.rejected[key].isin(ids[key])]) - set(files["study_id"])
    if refused and not is_training:
        facts["missing_studies"] = sorted(map(str, refused))
    slices, studies = (labels, None) if key == "slice_id" else (None, labels)
    if key == "study_id" and is_training:
        logger.warning("%s: labels are per study and are copied to all slices of the study (weak labels)", dataset)
        names = files[["study_id", "slice_id"]].drop_duplicates()
        slices = labels if found.by_part else names.merge(labels, on="study_id").drop(columns="study_id")
    return replace(
        plan,
        files=files,
        rejected=pd.concat([table for table in rejected if len(table)] or rejected[:1], ignore_index=True),
        labels=slices,
        study_labels=studies,
        groups=_group_studies(found.labels, found.subgroups, files) if found.subgroups else None,
        facts=facts,
        inputs={"labels" if dataset == DATASET else f"{dataset}_labels": digest_table(labels)},
    )


def _group_studies(path: Path, columns: Sequence[str], files: pd.DataFrame) -> pd.DataFrame:
    """study_id and these columns of a label file; "several" for a study whose slices have different values."""
    table, key = read_subgroups(path, columns)
    if key == "slice_id":
        table = table.merge(files[["slice_id", "study_id"]].drop_duplicates(), on="slice_id").drop(columns="slice_id")
    of_studies = table.groupby("study_id", sort=True)
    counts = of_studies.nunique()
    return of_studies.first().mask(counts > 1, _SEVERAL).reset_index()


def hide_files(rejected: pd.DataFrame, salt: bytes) -> pd.DataFrame:
    """A `rejected` table with file names replaced by digests."""
    return rejected.assign(file=[salted(salt, "file", name) for name in rejected["file"]])


def salted(salt: bytes, purpose: str, text: str) -> str:
    """16 hex digits of a keyed hash of a text; without the salt it cannot be looked up."""
    return hashlib.blake2b(f"{purpose}\x1f{text}".encode(), key=salt, digest_size=8).hexdigest()
