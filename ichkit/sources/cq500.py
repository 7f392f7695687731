"""CQ500: one folder or zip file per study, several series in each, three readers."""

import io
import re

import numpy as np
import pandas as pd

from ichkit.core.errors import DataError
from ichkit.core.roles import SCANS
from ichkit.core.tasks import Task
from ichkit.sources.copies import split_copies
from ichkit.sources.files import FileRef, find_one
from ichkit.sources.plan import Found, SourcePlan, add_positions, add_reason, make_rejected
from ichkit.sources.series import CQ500_RULE, SeriesRule, take_chosen_series
from ichkit.work.artifacts import digest_table

DATASET = "cq500"
READS_FILE = f"{DATASET}_reads.csv"
_BASELINE = "prediction_probabilities.csv"
TABLES = rf"(?:^|/)(?:reads\.csv|{re.escape(_BASELINE)})$"
_STUDY = r"CQ500-?CT-?(\d+)"
_READER_COLUMNS = {
    "any": "ICH",
    "intraparenchymal": "IPH",
    "intraventricular": "IVH",
    "subarachnoid": "SAH",
    "subdural": "SDH",
    "epidural": "EDH",
}
_READERS = (1, 2, 3)
_NO_UID = "no SeriesInstanceUID or no SOPInstanceUID"
_LAYOUT_HINT = (
    "Expected reads.csv and CQ500-CT-0.zip ... CQ500-CT-490.zip, packed or unpacked, from "
    "http://headctstudy.qure.ai/dataset; `ichkit phantom OUT` writes the same layout under OUT/cq500."
)


def image_files(files: pd.DataFrame) -> pd.DataFrame:
    """The image files of all studies, with columns study_id (`CQ500-CT-n`) and series (the folder's name).

    Raises:
        DataError: there is no study.
    """
    number = files["relative"].str.extract(_STUDY, flags=re.IGNORECASE)[0]
    found = files.assign(study_id="CQ500-CT-" + number).dropna(subset=["study_id"])
    found = found[~found["relative"].str.lower().str.endswith((".csv", ".json", ".txt", ".zip"))]
    if found.empty:
        raise DataError(f"cq500: no study among {len(files)} files. {_LAYOUT_HINT}")
    folder = found["relative"].str.extract(r"([^/]*)/[^/]*$")[0].fillna("")
    return found.assign(series=folder, split="external").reset_index(drop=True)


def plan_cq500(found: Found, dataset: str = DATASET, rule: SeriesRule = CQ500_RULE) -> SourcePlan:
    """The chosen series of every study, with the majority vote of the readers.

    Args:
        dataset: its name; another one for the same scans by another rule. Only the standard set follows an override.

    Raises:
        DataError: reads.csv is missing or not as expected.
    """
    reads = find_one(found.files, r"(?:^|/)reads\.csv$")
    if reads is None:
        raise DataError(f"cq500: no reads.csv among {len(found.files)} files. {_LAYOUT_HINT}")
    study_labels, batches = read_majority(reads, found.task)
    votes = read_votes(reads, found.task)
    images = found.images[["relative", "split", "study_id", "series"]]
    index = add_positions(found.index.merge(images, on="relative", validate="many_to_one")).assign(dataset=dataset)
    # A series is identified by study and UID: folders of the same name in other zip files are other series.
    index["series_id"], index["slice_id"] = index["series_uid"], index["slice_uid"]
    index = add_reason(index, (index["slice_id"] == "") | (index["series_id"] == ""), _NO_UID)
    good, copies = split_copies(index[index["reason"] == ""])
    unlabelled = good[~good["study_id"].isin(study_labels["study_id"])]
    good = good.drop(unlabelled.index)
    is_standard = dataset == DATASET
    taken = take_chosen_series(good, good["series"], rule, found.override if is_standard else None)
    kept, choice = taken.files, taken.choice
    refused = [index[index["reason"] != ""], copies, unlabelled.assign(reason="no row in reads.csv"), taken.refused]
    missing = study_labels[~study_labels["study_id"].isin(kept["study_id"])]["study_id"]
    tables = {f"{dataset}_reads.csv": votes}
    tables |= {} if batches is None else {f"{dataset}_facts.csv": batches}
    # `series_choice.csv` has one choice for each study.
    tables |= {} if is_standard else {f"{dataset}_series_choice.csv": choice}
    baseline = find_one(found.files, rf"(?:^|/){re.escape(_BASELINE)}$")
    if baseline is not None:
        tables[f"{dataset}_baseline.csv"] = read_baseline(baseline, found.task)
    return SourcePlan(
        dataset=dataset,
        files=kept.drop(columns=["reason", "series"]).assign(patient_id=kept["study_id"]),
        rejected=make_rejected(pd.concat(refused)),
        series_choice=choice if is_standard else choice[:0],
        study_labels=study_labels,
        facts={
            "missing_studies": sorted(missing, key=study_number),
            "num_reads": len(study_labels),
            "num_files": len(images),
            **({} if is_standard else {SCANS: DATASET}),
        },
        inputs={"reads": digest_table(study_labels), **{name: digest_table(table) for name, table in tables.items()}},
        tables=tables,
    )


def read_majority(ref: FileRef, task: Task) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """study_id and one 0/1 column per class: the vote of at least 2 of 3 readers, sorted by study number.

    The second table has study_id and batch (B1 or B2), or is None if the file has no column Category.

    `any` is read from the ICH columns: a study may have a majority for hemorrhage, but for no subtype.

    Raises:
        DataError: a column is missing, a read is not 0 or 1, or a study has two rows.
    """
    raw = _read_raw(ref, task)
    table = pd.DataFrame({"study_id": raw["name"].str.strip()})
    for name in task.classes:
        columns = [_column_of(reader, name) for reader in _READERS]
        table[name] = (raw[columns].sum(axis=1) * 2 > len(_READERS)).astype("int8")
    batches = pd.DataFrame({"study_id": table["study_id"], "batch": raw["Category"]}) if "Category" in raw else None
    return _by_number(table), None if batches is None else _by_number(batches)


def read_votes(ref: FileRef, task: Task) -> pd.DataFrame:
    """study_id, reader (1 to 3) and one 0/1 column per class: what each reader saw, by study number, then reader.

    Raises:
        DataError: as `read_majority`.
    """
    raw = _read_raw(ref, task)
    parts = []
    for reader in _READERS:
        columns = {name: raw[_column_of(reader, name)].astype("int8") for name in task.classes}
        parts.append(pd.DataFrame({"study_id": raw["name"].str.strip(), "reader": reader, **columns}))
    table = pd.concat(parts, ignore_index=True)
    order = table["study_id"].map(study_number)
    return table.iloc[np.lexsort((table["reader"], order))].reset_index(drop=True)


def _read_raw(ref: FileRef, task: Task) -> pd.DataFrame:
    """The label file with the columns of all readers checked."""
    raw = _read_csv(ref)
    wanted = [_column_of(reader, name) for name in task.classes for reader in _READERS]
    missing = [column for column in wanted if column not in raw]
    if "name" not in raw or missing:
        raise DataError(f"{ref.relative}: expected columns name and R1:ICH ... R3:SAH, missing {missing or ['name']}.")
    if not raw[wanted].isin([0, 1]).all(axis=None):
        raise DataError(f"{ref.relative}: expected reads of 0 or 1 in every R column.")
    if raw["name"].duplicated().any():
        raise DataError(f"{ref.relative}: study {raw.name[raw.name.duplicated()].iloc[0]} has two rows.")
    return raw


def _read_csv(ref: FileRef) -> pd.DataFrame:
    try:
        raw = pd.read_csv(io.BytesIO(ref.read()), dtype={"name": "str"})
    except ValueError as error:
        raise DataError(f"{ref.relative}: expected a CSV in UTF-8, it cannot be read ({error}).") from error
    if "name" in raw and raw["name"].isna().any():
        row = int(np.flatnonzero(raw["name"].isna())[0])
        raise DataError(f"{ref.relative}: expected a name in every row, found none in row {row + 2}.")
    return raw


def _column_of(reader: int, name: str) -> str:
    return f"R{reader}:{_READER_COLUMNS[name]}"


def read_baseline(ref: FileRef, task: Task) -> pd.DataFrame:
    """study_id and p_<class>: the predictions that the authors of the data set publish with it, by study number.

    Raises:
        DataError: no column "name", not exactly one column for a class (its abbreviation, as in reads.csv), or a
            prediction that is not a number.
    """
    raw = _read_csv(ref)
    table = pd.DataFrame({"study_id": raw.get("name", pd.Series(dtype="str")).str.strip()})
    for name in task.classes:
        word = _READER_COLUMNS[name]
        found = [column for column in raw if word in re.split(r"[^A-Za-z]+", str(column))]
        if len(found) != 1 or "name" not in raw:
            raise DataError(
                f"{ref.relative}: expected columns name and one for {word}, found {', '.join(raw.columns)}. "
                "Rename the columns, or move the file away: it is only needed for the comparison with the baseline."
            )
        table[f"p_{name}"] = pd.to_numeric(raw[found[0]], errors="coerce").astype("float64")
        if (table[f"p_{name}"].isna() & raw[found[0]].notna()).any():
            raise DataError(f"{ref.relative}: expected numbers in column {found[0]}, found something else.")
    return _by_number(table)


def _by_number(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("study_id", key=lambda ids: ids.map(study_number), ignore_index=True)


def study_number(study_id: str) -> int:
    """The n of `CQ500-CT-n`; -1 for another name."""
    match = re.search(r"(\d+)$", study_id)
    return int(match.group(1)) if match else -1
