"""The plan of a source: the slice and study of every file, and the rejected files."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.imaging.dicom import ORIENTATION, POSITION, STORED_COLUMNS, StoredPixels
from ichkit.imaging.geometry import TRANSPOSE, slice_normals
from ichkit.imaging.parts import UNCUT, PartSettings
from ichkit.imaging.sequences import SequenceSettings
from ichkit.sources.files import file_refs
from ichkit.sources.study import MAX_VOLUME_BYTES, PixelSettings, StudyTask
from ichkit.work.schemas import REJECTED, SERIES_CHOICE

PLAN_COLUMNS = ["dataset", "split", "study_id", "patient_id", "series_id", "slice_id", "position_mm"]
PLAN_COLUMNS += ["tilt_degrees", "slab"]
TIES = ["instance_number", "acquisition_number", "frame", "slice_id"]
"""The order of slices at one position."""

_PARALLEL_DEGREES = 1.0
"""Headers round their directions; what differs by more was scanned with another tilt."""
_SHOWN_REASONS = 8
NO_UID = "no StudyInstanceUID or no SeriesInstanceUID"
NO_PATIENT = "no PatientID, which patient-wise folds need"


@dataclass(frozen=True)
class Found:
    """The input of a source's plan.

    Attributes:
        files: all files below its root, `FILE_COLUMNS`.
        images: those that may be images, with columns derived from their paths (`DataSource.find_images`).
        index: of the images, `INDEX_COLUMNS`.
        labels: the label file given by the user, for a source without its own.
        override: columns study_id and series: manually chosen series; or None.
        salt: secret bytes for digests of anything that may identify a person.
        judges_hu: of several series, pass over one whose values cannot be HU of a head.
        by_part: studies are cut into parts, for which the label file may have columns part, or side and region.
        subgroups: columns of the label file that make subgroups.
        sequences: of a study of several; None for one.
        parts: how studies are cut.
    """

    files: pd.DataFrame
    images: pd.DataFrame
    index: pd.DataFrame
    task: Task
    labels: Path | None = None
    override: pd.DataFrame | None = None
    salt: bytes = b""
    judges_hu: bool = False
    by_part: bool = False
    subgroups: tuple[str, ...] = ()
    sequences: SequenceSettings | None = None
    parts: PartSettings = UNCUT


@dataclass(frozen=True)
class SourcePlan:
    """The slices and labels of a source.

    Attributes:
        dataset: its name in every table.
        files: one row per file to use: `PLAN_COLUMNS`, `FILE_COLUMNS`, `HEADER_COLUMNS`; files with the same
            (study_id, slab) make one slice, with the id and position of the file named by `slice_id`. With a column
            `part`, the slices of one part of a study are ordered by position, across its series.
        rejected: `schemas.REJECTED`.
        series_choice: `schemas.SERIES_CHOICE`.
        labels: slice labels, column slice_id and one per class; or None. In place of slice_id study_id, to label all
            slices of a study.
        study_labels: study labels, column study_id and one per class; or None. Ids in both may be those of parts
            (`imaging.parts.part_id`).
        sample_ids: column ID; empty without a sample submission.
        facts: counts and names for the manifest.
        inputs: name to digest of label files and similar inputs.
        tables: more tables for the artifact, by file name.
        salt: the secret bytes of digests that replace file names, if these may identify people; else None.
        groups: study_id and a column of texts for each subgroup column of its label file; None without any.
    """

    dataset: str
    files: pd.DataFrame
    rejected: pd.DataFrame
    series_choice: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SERIES_CHOICE))
    labels: pd.DataFrame | None = None
    study_labels: pd.DataFrame | None = None
    sample_ids: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"ID": pd.Series(dtype="str")}))
    facts: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    groups: pd.DataFrame | None = None
    salt: bytes | None = None


def add_positions(index: pd.DataFrame, by: Sequence[str] = ("series_uid",)) -> pd.DataFrame:
    """The index with `position_mm` along the common normal of each series and `tilt_degrees` of that normal.

    Both are NaN without geometry. Where the slices of a series are not parallel (a gantry tilted for the skull base
    alone), the positions are those of their centres: their corners come in another order.

    Args:
        by: the columns that identify a series.
    """
    index = index.assign(position_mm=np.nan, tilt_degrees=np.nan)
    usable = (index[ORIENTATION + POSITION].notna().all(axis=1) & (index["rows"] > 0)).to_numpy()
    if not usable.any():
        return index
    orientations, where = index[ORIENTATION].to_numpy()[usable], index[POSITION].to_numpy()[usable]
    series = index[usable].groupby(list(by), sort=False).ngroup().to_numpy()
    counts = np.bincount(series)
    means = np.stack([np.bincount(series, axis) / counts for axis in slice_normals(orientations).T], axis=1)
    normals = (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12))[series]
    positions, tilts = np.full((2, len(index)), np.nan)
    along = (where * normals).sum(1)
    is_askew = (slice_normals(orientations) * normals).sum(1) < np.cos(np.radians(_PARALLEL_DEGREES))
    has_askew = np.bincount(series, is_askew)[series] > 0
    along[has_askew] += _to_centre(index[usable][has_askew], normals[has_askew])
    # Rounded far below the precision of any scanner, so that equal positions in the headers stay equal.
    positions[usable] = np.round(along, 6)
    tilts[usable] = np.degrees(np.arccos(np.clip(normals[:, 2], -1, 1)))
    return index.assign(position_mm=positions, tilt_degrees=tilts)


def _to_centre(slices: pd.DataFrame, normals: np.ndarray) -> np.ndarray:
    """(N,) mm along the normals from the first pixel of a slice, where ImagePositionPatient is, to its centre."""
    height = (slices["rows"] - 1).to_numpy() / 2 * slices["spacing_row_mm"].to_numpy()
    width = (slices["columns"] - 1).to_numpy() / 2 * slices["spacing_col_mm"].to_numpy()
    # Sizes are those of the turned slice, directions those of the stored one.
    is_transposed = (slices["turn"].to_numpy() & TRANSPOSE) > 0
    directions = slices[ORIENTATION].to_numpy()
    along_row, along_column = ((directions[:, part] * normals).sum(1) for part in (slice(0, 3), slice(3, 6)))
    far = np.where(is_transposed, height, width) * along_row
    offset: np.ndarray = far + np.where(is_transposed, width, height) * along_column
    return offset


def add_reason(index: pd.DataFrame, rows: pd.Series, reason: str) -> pd.DataFrame:
    """The index with a reason for these rows, if they have none yet."""
    return index.assign(reason=index["reason"].mask(rows & (index["reason"] == ""), reason))


def are_among(values: pd.Series, known: pd.Series) -> np.ndarray:
    """(N,) whether each value is one of the known unique values; for strings many times faster than `isin`."""
    are_known: np.ndarray = pd.Index(known).get_indexer(pd.Index(values)) >= 0
    return are_known


def make_rejected(index: pd.DataFrame, **columns: str | Sequence[str] | pd.Series) -> pd.DataFrame:
    """Rows of an index as a `rejected` table; keyword arguments set columns."""
    table = index.assign(file=index["relative"], **columns)
    return table.reindex(columns=REJECTED).reset_index(drop=True)


def count_reasons(rejected: pd.DataFrame) -> str:
    """The reasons of a `rejected` table with their counts, most frequent first, as part of a sentence."""
    counts = rejected["reason"].value_counts()
    shown = [f"{count} {reason}" for reason, count in counts.head(_SHOWN_REASONS).items()]
    more = [f"{len(counts) - _SHOWN_REASONS} more reasons"] if len(counts) > _SHOWN_REASONS else []
    return "; ".join([*shown, *more]) or "there is no file that may be an image"


def order_slices(plan: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The files and the slices of one dataset, both by study and from the feet to the head.

    Args:
        plan: `SourcePlan.files`, any order.

    Returns:
        files: the plan with `slice_index`, sorted by study_id, slice_index, position_mm.
        slices: one row per slice, that of its file (for a slab the middle file), with slice_index.

    Series of one study are ordered by series_id, parts by number; slices at one position by InstanceNumber,
    AcquisitionNumber, number of the frame and slice_id, in RSNA by slice_id only.
    """
    series = series_key(plan)
    files = plan.sort_values(["study_id", series, "slab", "position_mm", *TIES], ignore_index=True)
    group = files.groupby(["study_id", series, "slab"], sort=False).ngroup().to_numpy()
    counts = np.bincount(group, minlength=group.max(initial=-1) + 1)
    heads = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64) + counts // 2
    slices = files.iloc[heads[: len(counts)]].assign(group=np.arange(len(counts)))
    slices = slices.sort_values(["study_id", series, "position_mm", *TIES], ignore_index=True)
    slices["slice_index"] = slices.groupby("study_id", sort=False).cumcount()
    index_of_group = np.empty(len(counts), np.int64)
    index_of_group[slices["group"]] = slices["slice_index"]
    files["slice_index"] = index_of_group[group]
    files = files.sort_values(["study_id", "slice_index", "position_mm", *TIES], ignore_index=True)
    return files, slices.drop(columns="group")


def series_key(plan: pd.DataFrame) -> str:
    """The column that orders slices within a study before their position: `part` if it exists, else the series."""
    return "part" if "part" in plan else "series_id"


class StudyTasks(Sequence[StudyTask]):
    """The decoding tasks of one data set, one per study, each built on access.

    Args:
        files: from `order_slices`.

    Attributes:
        study_ids, keys: one per study. A key is a digest of the study's id, its files and the pixel settings; no
            file name in the store contains an id.
        largest_bytes: size of the largest volume before compression, according to the headers.
    """

    def __init__(self, files: pd.DataFrame, pixels: PixelSettings) -> None:
        self._files, self._pixels = files, pixels
        studies = files["study_id"].to_numpy()
        starts = np.flatnonzero(studies[1:] != studies[:-1]) + 1 if len(studies) else np.empty(0, np.int64)
        self._bounds = np.concatenate([[0] if len(studies) else [], starts, [len(files)]]).astype(np.int64)
        self.study_ids = studies[self._bounds[:-1]].tolist()
        self.keys = self._make_keys()
        self.largest_bytes = self._measure_largest()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, position: int) -> StudyTask:  # type: ignore[override]
        rows = self.rows(position)
        edges = [*np.flatnonzero(np.diff(rows["slice_index"].to_numpy(), prepend=-1)).tolist(), len(rows)]
        stored = zip(*(rows[name].to_list() for name in STORED_COLUMNS), strict=True)
        pairs = [(ref, StoredPixels(*values)) for ref, values in zip(file_refs(rows), stored, strict=True)]
        slices = tuple(tuple(pairs[a:b]) for a, b in itertools.pairwise(edges))
        heads = [group[len(group) // 2] for group in (list(range(a, b)) for a, b in itertools.pairwise(edges))]
        positions = tuple(rows["position_mm"].to_numpy(float)[heads].tolist())
        return StudyTask(self.keys[position], slices, self._pixels, positions if self._pixels.has_parts else ())

    @property
    def pixels(self) -> PixelSettings:
        """How the pixels of its studies are treated."""
        return self._pixels

    def rows(self, position: int) -> pd.DataFrame:
        """The files of one study."""
        return self._files.iloc[self._bounds[position] : self._bounds[position + 1]]

    def _make_keys(self) -> list[str]:
        columns = [self._files[name].to_list() for name in ("relative", "num_bytes", "slice_index")]
        lines = [f"{relative}\x1f{size}\x1f{index}\x1e" for relative, size, index in zip(*columns, strict=True)]
        dataset = self._files["dataset"].iloc[0] if len(self._files) else ""
        pixels = self._pixels
        treatment = f"PixelSettings(repair={pixels.repair}, hull_hu={pixels.hull_hu}, size={pixels.size})"
        if not (pixels.repair or pixels.judges_hu):
            # Only the exception (--accept-raw) is added: studies rejected without it must be decoded again.
            treatment += ", accepts any values"
        if pixels.steps:
            treatment += f", steps {pixels.steps}"
        if pixels.has_parts:
            treatment += f", parts {pixels.parts.to_json()}"
        if pixels.sequences is not None:
            treatment += f", sequences {pixels.sequences.to_json()}"
        keys = []
        for study_id, (start, end) in zip(self.study_ids, itertools.pairwise(self._bounds), strict=True):
            sha = hashlib.sha256(f"({dataset!r}, {study_id!r}, {treatment})".encode())
            sha.update("".join(lines[start:end]).encode())
            keys.append(sha.hexdigest()[:32])
        return keys

    def _measure_largest(self) -> int:
        if self._pixels.fits_each:
            side = np.full(len(self._files), self._pixels.size)
            rows, columns = side, side
        else:
            rows, columns = self._files["rows"].to_numpy(), self._files["columns"].to_numpy()
        if not len(self):
            return 0
        last = self._files["slice_index"].to_numpy()
        rows, columns, last = (np.maximum.reduceat(values, self._bounds[:-1]) for values in (rows, columns, last))
        return min(int((2 * rows * columns * (last + 1)).max()), MAX_VOLUME_BYTES)
