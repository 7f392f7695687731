"""CQ500: one folder or zip a study, several series in each, three readers."""

import io
import re

import pandas as pd

from ichkit.core.artifacts import digest_table
from ichkit.core.errors import DataError
from ichkit.core.tasks import Task
from ichkit.sources.files import FileRef, find_one
from ichkit.sources.plan import SourcePlan, add_positions, make_rejected, split_duplicates
from ichkit.sources.series import CQ500_RULE, take_chosen_series

DATASET = "cq500"
_STUDY = r"CQ500-?CT-?(\d+)"
_READER_COLUMNS = {
    "any": "ICH",
    "intraparenchymal": "IPH",
    "intraventricular": "IVH",
    "subarachnoid": "SAH",
    "subdural": "SDH",
    "epidural": "EDH",
}
_NUM_READERS = 3
_LAYOUT_HINT = (
    "Expected reads.csv and CQ500-CT-0.zip ... CQ500-CT-490.zip, packed or unpacked, from "
    "http://headctstudy.qure.ai/dataset; `ichkit phantom OUT` writes the same layout under OUT/cq500."
)


def image_files(files: pd.DataFrame) -> pd.DataFrame:
    """The files of any study, with columns study_id (`CQ500-CT-n`) and series (the folder's name).

    Raises:
        DataError: none.
    """
    number = files["relative"].str.extract(_STUDY, flags=re.IGNORECASE)[0]
    found = files.assign(study_id="CQ500-CT-" + number).dropna(subset=["study_id"])
    found = found[~found["relative"].str.lower().str.endswith((".csv", ".json", ".txt", ".zip"))]
    if found.empty:
        raise DataError(f"cq500: no study among {len(files)} files. {_LAYOUT_HINT}")
    folder = found["relative"].str.extract(r"([^/]*)/[^/]*$")[0].fillna("")
    return found.assign(series=folder, split="external").reset_index(drop=True)


def plan_cq500(files: pd.DataFrame, images: pd.DataFrame, index: pd.DataFrame, task: Task) -> SourcePlan:
    """The chosen series of every study, with the readers' majority.

    Args:
        files: everything under the root.
        images: from `image_files`.
        index: of `images`.

    Raises:
        DataError: reads.csv is missing or not as expected.
    """
    reads = find_one(files, r"(?:^|/)reads\.csv$")
    if reads is None:
        raise DataError(f"cq500: no reads.csv among {len(files)} files. {_LAYOUT_HINT}")
    study_labels = read_majority(reads, task)
    index = index.merge(images[["relative", "split", "study_id", "series"]], on="relative", validate="one_to_one")
    index = add_positions(index).assign(dataset=DATASET)
    # A series is a UID inside a study; folders of the same name in another zip stay apart.
    index["series_id"], index["slice_id"] = index["series_uid"], index["slice_uid"]
    good, copies = split_duplicates(index[index["reason"] == ""], ["study_id", "slice_id"])
    unlabelled = good[~good["study_id"].isin(study_labels["study_id"])]
    good = good.drop(unlabelled.index)
    kept, choice = take_chosen_series(good, good["series"], CQ500_RULE)
    refused = [index[index["reason"] != ""], copies, unlabelled.assign(reason="no row in reads.csv")]
    missing = study_labels[~study_labels["study_id"].isin(kept["study_id"])]["study_id"]
    return SourcePlan(
        files=kept.drop(columns=["reason", "series"]).assign(patient_id=kept["study_id"]),
        rejected=make_rejected(pd.concat(refused)),
        series_choice=choice,
        study_labels=study_labels,
        facts={"missing_studies": sorted(missing, key=study_number), "num_reads": len(study_labels)},
        inputs={"reads": digest_table(study_labels)},
    )


def read_majority(ref: FileRef, task: Task) -> pd.DataFrame:
    """study_id and one 0/1 column per class: what at least 2 of 3 readers saw, sorted by study number.

    `any` is read from the ICH columns: a study may be a hemorrhage by majority without a majority for a subtype.

    Raises:
        DataError: a column is missing, a read is not 0 or 1, or a study stands twice.
    """
    raw = pd.read_csv(io.BytesIO(ref.read()), dtype={"name": "str"})
    wanted = {name: [f"R{r}:{_READER_COLUMNS[name]}" for r in range(1, _NUM_READERS + 1)] for name in task.classes}
    missing = [column for columns in wanted.values() for column in columns if column not in raw]
    if "name" not in raw or missing:
        raise DataError(f"{ref.relative}: expected columns name and R1:ICH ... R3:SAH, missing {missing or ['name']}.")
    reads = raw[[column for columns in wanted.values() for column in columns]]
    if not reads.isin([0, 1]).all(axis=None):
        raise DataError(f"{ref.relative}: expected reads of 0 or 1 in every R column.")
    if raw["name"].duplicated().any():
        raise DataError(f"{ref.relative}: study {raw.name[raw.name.duplicated()].iloc[0]} stands twice.")
    table = pd.DataFrame({"study_id": raw["name"].str.strip()})
    for name, columns in wanted.items():
        table[name] = (raw[columns].sum(axis=1) * 2 > _NUM_READERS).astype("int8")
    return table.sort_values("study_id", key=lambda ids: ids.map(study_number), ignore_index=True)


def study_number(study_id: str) -> int:
    """The n of `CQ500-CT-n`; -1 for another name."""
    match = re.search(r"(\d+)$", study_id)
    return int(match.group(1)) if match else -1
