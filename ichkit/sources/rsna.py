"""RSNA 2019 Intracranial Hemorrhage Detection: image folders, label file, sample submission."""

import io
import re

import pandas as pd

from ichkit.core.errors import DataError
from ichkit.core.tasks import Task
from ichkit.sources.copies import COPY
from ichkit.sources.files import FileRef, find_one
from ichkit.sources.folder import hide_files, salted
from ichkit.sources.plan import (
    NO_PATIENT,
    NO_UID,
    Found,
    SourcePlan,
    add_positions,
    add_reason,
    are_among,
    make_rejected,
)
from ichkit.sources.series import describe_series
from ichkit.work.artifacts import digest_table
from ichkit.work.schemas import SERIES_CHOICE

DATASET = "rsna"
_IMAGE_FOLDER = r"(?:^|/)stage_([12])_(train|test)(?:_images)?/[^/]+$"
TABLES = r"(?:^|/)stage_[12]_(?:train|sample_submission)\.csv$"
_LAYOUT_HINT = (
    "Expected stage_2_train.csv, stage_2_sample_submission.csv and the folders stage_2_train/ and stage_2_test/ of "
    "https://www.kaggle.com/c/rsna-intracranial-hemorrhage-detection/data, unpacked or in its zip; "
    "`ichkit phantom OUT` writes the same layout under OUT/rsna."
)


def image_files(files: pd.DataFrame) -> pd.DataFrame:
    """The files in the image folders of the newest stage, with columns split and slice_id.

    Raises:
        DataError: there is no such folder.
    """
    parts = files["relative"].str.extract(_IMAGE_FOLDER)
    parts.columns = pd.Index(["stage", "split"])
    found = files.assign(split=parts["split"], stage=parts["stage"]).dropna(subset=["split"])
    # Label files are next to these folders, never in them; every file inside is an image or is rejected.
    if found.empty:
        raise DataError(f"rsna: no image folder among {len(files)} files. {_LAYOUT_HINT}")
    found = found[found["stage"] == found["stage"].max()]
    named: pd.DataFrame = found.drop(columns="stage").assign(slice_id=_name_slices(found["relative"]))
    return named.reset_index(drop=True)


def _name_slices(relative: pd.Series) -> pd.Series:
    """The slice of each path: the name of the file without its suffix."""
    return relative.str.replace(r"^.*/", "", regex=True).str.replace(r"\.[^.]*$", "", regex=True)


def plan_rsna(found: Found) -> SourcePlan:
    """Every readable slice of every series of the competition, with its labels.

    Raises:
        DataError: the label file or the sample submission is missing, or labels contradict each other.
    """
    files, images, task = found.files, found.images, found.task
    match = re.search(_IMAGE_FOLDER, images["relative"].iloc[0])
    assert match is not None  # `image_files` keeps no other path
    stage = match.group(1)
    labels, num_rows = read_labels(_need(files, rf"(?:^|/)stage_{stage}_train\.csv$", "label file"), task)
    sample = read_sample(_need(files, rf"(?:^|/)stage_{stage}_sample_submission\.csv$", "sample submission"))
    index = found.index.merge(images[["relative", "split", "slice_id"]], on="relative", validate="many_to_one")
    index = _place(index)
    index = add_reason(index, (index["split"] == "train") & (index["patient_id"] == ""), NO_PATIENT)
    good, copies = _split_copies(index)
    unlabelled = good[(good["split"] == "train") & ~are_among(good["slice_id"], labels["slice_id"])]
    good = good.drop(unlabelled.index)
    refused = [index[index["reason"] != ""], copies, unlabelled.assign(reason="no label in the label file")]
    seen = index["slice_id"][index["split"] == "train"].drop_duplicates()
    facts: dict[str, object] = {
        "stage": int(stage),
        "num_files": len(images),
        "labels_without_image": int((~are_among(labels["slice_id"], seen)).sum()),
        "label_rows_merged": num_rows - len(labels) * task.num_classes,
    }
    return SourcePlan(
        dataset=DATASET,
        files=_number(good),
        rejected=make_rejected(pd.concat(refused)),
        labels=labels,
        sample_ids=sample,
        facts=facts,
        inputs={"labels": digest_table(labels), "sample": digest_table(sample)},
    )


def plan_scans(index: pd.DataFrame, salt: bytes) -> SourcePlan:
    """Every readable slice of every series, as `plan_rsna` takes them, of scans without labels.

    Args:
        index: of every file below the root.
        salt: secret bytes; patients and file names appear only as digests with it.
    """
    index = _place(index.assign(split="external", slice_id=_name_slices(index["relative"])))
    good, copies = _split_copies(index)
    files = _number(good.assign(patient_id=[salted(salt, "patient", name) for name in good["patient_id"]]))
    names = "series " + files.groupby("study_id")["series_id"].rank(method="dense").astype(int).astype("str")
    choice = describe_series(files.assign(repeats=1), names).assign(chosen=True, reason="every series is read")
    return SourcePlan(
        dataset=DATASET,
        files=files,
        rejected=hide_files(make_rejected(pd.concat([index[index["reason"] != ""], copies])), salt),
        series_choice=choice[SERIES_CHOICE],
        facts={"num_files": len(index)},
        salt=salt,
    )


def _place(index: pd.DataFrame) -> pd.DataFrame:
    """The index with positions and ids; slices at the same position are ordered by slice_id, not by their headers."""
    index = add_positions(index).assign(dataset=DATASET, slab=0, instance_number=0, acquisition_number=0)
    index["study_id"], index["series_id"] = index.pop("study_uid"), index.pop("series_uid")
    return add_reason(index, (index["study_id"] == "") | (index["series_id"] == ""), NO_UID)


def _split_copies(index: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(usable files with a slice_id each, copies with their reason)."""
    good = index[index["reason"] == ""]
    is_copy = good.duplicated(["split", "slice_id"])
    return good[~is_copy], good[is_copy].assign(reason=COPY)


def _number(good: pd.DataFrame) -> pd.DataFrame:
    """`SourcePlan.files`: every file is a slice."""
    good = good.assign(slab=good.groupby(["study_id", "series_id"]).cumcount())
    return good.drop(columns="reason").assign(study_uid=good["study_id"], series_uid=good["series_id"])


def read_labels(ref: FileRef, task: Task) -> tuple[pd.DataFrame, int]:
    """slice_id and one 0/1 column per class, sorted by slice_id; and their number of rows before duplicates are merged.

    Raises:
        DataError: unexpected columns or labels, contradicting rows, or missing classes.
    """
    where = ref.relative
    raw = _read_csv(ref, ["ID", "Label"])
    if not raw["Label"].isin([0, 1]).all():
        row = int(raw.index[~raw["Label"].isin([0, 1])][0])
        raise DataError(f"{where}: expected labels 0 or 1, found {raw.Label[row]} in row {row + 2}.")
    columns, num_rows = {}, 0
    for name in task.classes:
        rows = raw[raw["ID"].str.endswith(f"_{name}")]
        rows = pd.DataFrame({"slice_id": rows["ID"].str.slice(stop=-len(name) - 1), name: rows["Label"]})
        num_rows += len(rows)
        rows = rows.drop_duplicates()
        twice = rows["slice_id"][rows["slice_id"].duplicated()]
        if len(twice):
            raise DataError(
                f"{where}: {len(twice)} images have two different labels for {name}, e.g. {twice.iloc[0]}. "
                "Keep the correct row of each and run again."
            )
        columns[name] = rows.set_index("slice_id")[name]
    table = pd.concat(columns, axis=1).sort_index()
    if table.isna().any(axis=None):
        missing = table.index[table.isna().any(axis=1)]
        raise DataError(
            f"{where}: expected {task.num_classes} classes for every image; {len(missing)} images lack one, "
            f"e.g. {missing[0]} lacks {', '.join(table.columns[table.loc[missing[0]].isna()])}."
        )
    return table.astype("int8").rename_axis("slice_id").reset_index(), num_rows


def read_sample(ref: FileRef) -> pd.DataFrame:
    """Column ID of the sample submission, in its order.

    Raises:
        DataError: no column ID, or an id has two rows.
    """
    sample = _read_csv(ref, ["ID"])
    if sample["ID"].duplicated().any():
        raise DataError(f"{ref.relative}: {sample.ID[sample.ID.duplicated()].iloc[0]} has two rows.")
    return sample


def _read_csv(ref: FileRef, columns: list[str]) -> pd.DataFrame:
    try:
        return pd.read_csv(io.BytesIO(ref.read()), usecols=columns, dtype={"ID": "str"})[columns]
    except ValueError as error:
        raise DataError(f"{ref.relative}: expected a CSV with columns {', '.join(columns)}: {error}") from error


def _need(files: pd.DataFrame, pattern: str, what: str) -> FileRef:
    ref = find_one(files, pattern)
    if ref is None:
        raise DataError(f"rsna: no {what} among {len(files)} files. {_LAYOUT_HINT}")
    return ref
