"""What every source makes of its index: which file is which slice of which study, and what was refused."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd

from ichkit.core.schemas import REJECTED, SERIES_CHOICE
from ichkit.imaging.dicom import ORIENTATION, POSITION, Header
from ichkit.imaging.geometry import slice_normals
from ichkit.sources.files import file_refs
from ichkit.sources.study import PixelSettings, StudyTask

PLAN_COLUMNS = ["dataset", "split", "study_id", "patient_id", "series_id", "slice_id", "position_mm", "slab"]


@dataclass(frozen=True)
class SourcePlan:
    """What a source offers.

    Attributes:
        files: one row per file to be used: `PLAN_COLUMNS`, `FILE_COLUMNS`, `HEADER_COLUMNS`; files with the same
            (study_id, slab) make one slice, whose id and place are those of the file named by `slice_id`.
        rejected: `schemas.REJECTED`.
        series_choice: `schemas.SERIES_CHOICE`.
        labels: slice labels, column slice_id and one per class; or None.
        study_labels: study labels, column study_id and one per class; or None.
        sample_ids: column ID; empty where there is no sample.
        facts: counts and names for the manifest.
        inputs: name to digest of label files and the like.
    """

    files: pd.DataFrame
    rejected: pd.DataFrame
    series_choice: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SERIES_CHOICE))
    labels: pd.DataFrame | None = None
    study_labels: pd.DataFrame | None = None
    sample_ids: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"ID": pd.Series(dtype="str")}))
    facts: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)


def add_positions(index: pd.DataFrame) -> pd.DataFrame:
    """The index with `position_mm` along the common normal of each series; NaN where there is no geometry."""
    index = index.copy()
    index["position_mm"] = np.nan
    usable = index[ORIENTATION + POSITION].notna().all(axis=1) & (index["rows"] > 0)
    if not usable.any():
        return index
    known = index[usable]
    normals = pd.DataFrame(slice_normals(known[ORIENTATION].to_numpy()), index=known.index)
    normals = normals.groupby(known["series_uid"]).transform("mean").to_numpy()
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    # Rounded far below any scanner's precision, so that ties in the header stay ties.
    index.loc[usable, "position_mm"] = np.round((known[POSITION].to_numpy() * normals).sum(1), 6)
    return index


def split_duplicates(index: pd.DataFrame, by: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(first of each, the others with their reason), in the order of the relative path."""
    is_copy = index.duplicated(by)
    return index[~is_copy], index[is_copy].assign(reason="duplicate of another file")


def make_rejected(index: pd.DataFrame, **columns: object) -> pd.DataFrame:
    """Rows of an index as a `rejected` table; keyword arguments fill or replace columns."""
    table = index.assign(file=index["relative"], **columns)
    return table.reindex(columns=REJECTED).reset_index(drop=True)


def order_slices(plan: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The files and the slices of one dataset, both by study and from the feet to the head.

    Args:
        plan: `SourcePlan.files`, any order.

    Returns:
        files: the plan with `slice_index`, sorted by study_id, slice_index, position_mm.
        slices: one row per slice, the row of the file that names it (a slab's: its middle file), with slice_index.

    Series of one study follow each other by series_id; ties in position go by slice_id.
    """
    files = plan.sort_values(["study_id", "series_id", "slab", "position_mm", "slice_id"], ignore_index=True)
    group = files.groupby(["study_id", "series_id", "slab"], sort=False).ngroup().to_numpy()
    counts = np.bincount(group, minlength=group.max(initial=-1) + 1)
    heads = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64) + counts // 2
    slices = files.iloc[heads[: len(counts)]].assign(group=np.arange(len(counts)))
    slices = slices.sort_values(["study_id", "series_id", "position_mm", "slice_id"], ignore_index=True)
    slices["slice_index"] = slices.groupby("study_id", sort=False).cumcount()
    index_of_group = np.empty(len(counts), np.int64)
    index_of_group[slices["group"]] = slices["slice_index"]
    files["slice_index"] = index_of_group[group]
    files = files.sort_values(["study_id", "slice_index", "position_mm", "slice_id"], ignore_index=True)
    return files, slices.drop(columns="group")


class StudyTasks(Sequence[StudyTask]):
    """The tasks of one dataset, one per study, each built when it is asked for.

    Args:
        files: from `order_slices`.
    """

    def __init__(self, files: pd.DataFrame, pixels: PixelSettings) -> None:
        self._files, self._pixels = files, pixels
        starts = np.flatnonzero(files["study_id"].ne(files["study_id"].shift()).to_numpy())
        self._bounds = np.append(starts, len(files))
        self.study_ids = files["study_id"].iloc[starts].to_list()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, position: int) -> StudyTask:  # type: ignore[override]
        rows = self.rows(position)
        refs, headers, where = file_refs(rows), headers_of(rows), rows["slice_index"].to_numpy()
        edges = [*np.flatnonzero(np.diff(where, prepend=-1)).tolist(), len(rows)]
        pairs = list(zip(refs, headers, strict=True))
        slices = tuple(tuple(pairs[a:b]) for a, b in itertools.pairwise(edges))
        return StudyTask(self.key(position), slices, self._pixels)

    def rows(self, position: int) -> pd.DataFrame:
        """The files of one study."""
        return self._files.iloc[self._bounds[position] : self._bounds[position + 1]]

    def key(self, position: int) -> str:
        """A digest of the study's name, its files and how pixels are treated: names on disk are digests, never ids."""
        rows = self.rows(position)
        sha = hashlib.sha256(repr((rows["dataset"].iloc[0], rows["study_id"].iloc[0], self._pixels)).encode())
        for relative, num_bytes, index in zip(rows["relative"], rows["num_bytes"], rows["slice_index"], strict=True):
            sha.update(f"{relative}\x1f{num_bytes}\x1f{index}\x1e".encode())
        return sha.hexdigest()[:32]


def headers_of(rows: pd.DataFrame) -> list[Header]:
    """A header for each row with `HEADER_COLUMNS`."""
    columns = [rows[item.name].astype(item.type).to_list() for item in fields(Header)]
    return [Header(*values) for values in zip(*columns, strict=True)]
