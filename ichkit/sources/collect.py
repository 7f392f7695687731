"""The tables of the prepared folder, from source plans and study records."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.roles import LOCKED
from ichkit.core.tasks import Task
from ichkit.imaging.dicom import UnreadableError
from ichkit.imaging.header_facts import FACT_BYTES, HEADER_FACTS, read_facts
from ichkit.imaging.hounsfield import has_broken_intercept, pixel_format
from ichkit.imaging.parts import part_id, whole_id
from ichkit.sources.files import file_refs
from ichkit.sources.plan import SourcePlan, StudyTasks, make_rejected, series_key
from ichkit.sources.study import StudyRecord
from ichkit.work.schemas import (
    BRAIN_SHARE,
    CROPS,
    MIRRORED,
    PART,
    REJECTED,
    TILT,
    conform,
    slices_dtypes,
    studies_dtypes,
)

_FORMAT = ["bits_stored", "pixel_representation", "intercept"]


@dataclass(frozen=True)
class PlannedSource:
    """A source's plan, sorted: its decoding tasks, and one row per slice.

    The slice_index is that before any file fails.

    Attributes:
        slices: from `order_slices`.
        num_images: image files found, each frame of a multi-frame file on its own.
        num_beyond_limit: of these, those of studies that `--limit-studies` leaves out.
    """

    plan: SourcePlan
    tasks: StudyTasks
    slices: pd.DataFrame
    repair: bool
    num_images: int = 0
    num_beyond_limit: int = 0


def collect_slices(planned: PlannedSource, records: Mapping[str, StudyRecord], task: Task) -> pd.DataFrame:
    """The rows of `slices.parquet` of one source, without folds, with `brain_share` and `tilt_degrees`.

    Slices whose files all failed are omitted.

    Args:
        records: by key, one for each of `planned.tasks`.
    """
    table = _kept_slices(planned, records)
    study = table.groupby("study_id", sort=False)
    table["slice_index"] = study.cumcount()
    table["num_slices"] = study["slice_index"].transform("size")
    series = table.groupby(["study_id", series_key(table)], sort=False)["position_mm"]
    table["gap_mm"] = (series.shift(-1) - table["position_mm"]).round(6)
    formats = table[_FORMAT].drop_duplicates()
    rows = list(formats.itertuples(index=False))
    formats["pixel_format"] = pd.array([pixel_format(*row) for row in rows], dtype="str")
    formats["hu_repaired"] = np.array([planned.repair and has_broken_intercept(*row) for row in rows], bool)
    table = table.merge(formats, on=_FORMAT, how="left")
    has_parts = planned.tasks.pixels.has_parts
    table = _with_labels(table, planned.plan.labels, task)
    table["fold"] = pd.array([pd.NA] * len(table), dtype="Int16")
    dtypes = {**slices_dtypes(task), BRAIN_SHARE: "float32", TILT: "float32"}
    return conform(table, {**dtypes, PART: "str"} if has_parts else dtypes)


def collect_studies(slices: pd.DataFrame, plans: Sequence[SourcePlan], task: Task) -> pd.DataFrame:
    """`studies.parquet`: RSNA's labels are the maximum over slices, CQ500's the readers' majority.

    The maximum is unknown where no slice is known to be positive and one is unknown.
    """
    grouped = slices.groupby(["dataset", "study_id"], sort=True)
    table = grouped.agg(
        split=("split", "first"),
        patient_id=("patient_id", "first"),
        num_slices=("slice_id", "size"),
        **{name: (name, "max") for name in task.classes},
    ).reset_index()
    lowest = slices[list(task.classes)].notna().groupby([slices["dataset"], slices["study_id"]], sort=True).all()
    for name in task.classes:
        table[name] = table[name].where((table[name] == 1).fillna(False).astype(bool) | lowest[name].to_numpy())
    for plan in plans:
        if plan.study_labels is not None:
            known = plan.study_labels.set_index("study_id").astype("Int8")
            ids = table["study_id"]
            if PART in slices:
                # The labels of a study are those of its parts, unless a part has its own.
                ids = ids.where(ids.isin(known.index), ids.map(whole_id))
            ours = ids.isin(known.index) & (table["dataset"] == plan.dataset)
            table.loc[ours, list(task.classes)] = known.loc[ids[ours]].to_numpy()
    return conform(table, studies_dtypes(task))


def collect_failures(planned: PlannedSource, records: Mapping[str, StudyRecord]) -> pd.DataFrame:
    """`schemas.REJECTED` rows of the files with a valid header whose pixels could not be read."""
    parts = []
    for position, key in enumerate(planned.tasks.keys):
        failures = records[key].failures
        if failures:
            rows = planned.tasks.rows(position)
            starts = np.flatnonzero(np.diff(rows["slice_index"].to_numpy(), prepend=-1))
            failed = rows.iloc[[int(starts[at]) + inside for at, inside, _ in failures]]
            parts.append(make_rejected(failed, reason=[reason for *_, reason in failures]))
    return pd.concat(parts) if parts else pd.DataFrame(columns=REJECTED)


def count_images(planned: PlannedSource, records: Mapping[str, StudyRecord], num_refused: int) -> dict[str, Any]:
    """The flow of a source for the manifest: images found, beyond the limit of studies, and read, the last by split.

    Args:
        num_refused: zip members rejected unread; they count as found.
    """
    failed = collect_failures(planned, records)["split"].value_counts()
    read = planned.plan.files["split"].value_counts().sub(failed, fill_value=0)
    return {
        "found": planned.num_images + num_refused,
        "beyond_limit": planned.num_beyond_limit,
        "read": {str(split): int(count) for split, count in read.sort_index().items()},
    }


def collect_header_facts(planned: Sequence[PlannedSource], slices: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """`header_facts.parquet`: dataset, study_id and these facts of each stored study, from the header of one slice.

    Args:
        slices: `slices.parquet`.
        names: rows of `imaging.header_facts.HEADER_FACTS`.
    """
    found = {}
    for item in planned:
        for position, study_id in enumerate(item.tasks.study_ids):
            (ref,) = file_refs(item.tasks.rows(position).iloc[:1])
            try:
                found[study_id] = read_facts(ref.read(0, FACT_BYTES), names)
            except UnreadableError:  # its slices are in rejected.csv, the others may be read
                continue
    table = slices[["dataset", "study_id"]].drop_duplicates(ignore_index=True)
    kept = [found.get(whole_id(study_id), {}) for study_id in table["study_id"]]
    for name in names:
        dtype = "float64" if HEADER_FACTS[name].is_number else "str"
        table[name] = pd.Series([one.get(name) for one in kept], dtype=dtype)
    return table


def collect_groups(planned: Sequence[PlannedSource], slices: pd.DataFrame) -> pd.DataFrame | None:
    """`subgroups.parquet`: dataset, study_id and the subgroup columns of the label files; None without any.

    Args:
        planned: the training data first.
        slices: `slices.parquet`.
    """
    found = [item.plan.groups.assign(dataset=item.plan.dataset) for item in planned if item.plan.groups is not None]
    if not found:
        return None
    table = slices[["dataset", "study_id"]].drop_duplicates(ignore_index=True)
    # Locked patients and parts have the values of their study.
    origin = table["dataset"].mask(table["dataset"] == LOCKED, planned[0].plan.dataset)
    keys = pd.DataFrame({"dataset": origin, "study_id": table["study_id"].map(whole_id)})
    values = keys.merge(pd.concat(found, ignore_index=True), on=["dataset", "study_id"], how="left")
    for name in sorted(str(column) for column in values.columns.drop(["dataset", "study_id"])):
        table[name] = values[name].astype("str")
    return table


def collect_crops(planned: PlannedSource, records: Mapping[str, StudyRecord]) -> pd.DataFrame:
    """`schemas.CROPS` rows of the studies of a source that have a volume, where its settings have steps."""
    studies = zip(planned.tasks.study_ids, (records[key] for key in planned.tasks.keys), strict=True)
    rows = [
        {
            "dataset": planned.plan.dataset,
            "study_id": part_id(study_id, piece.name),
            "volume": piece.volume,
            **piece.origin,
        }
        for study_id, record in studies
        for piece in record.pieces()
        if piece.origin
    ]
    columns = {**CROPS, MIRRORED: "bool"} if planned.tasks.pixels.has_parts else CROPS
    table = pd.DataFrame(rows, columns=list(columns))
    if MIRRORED in columns:
        table[MIRRORED] = table[MIRRORED].eq(True)
    return conform(table, columns)


def _kept_slices(planned: PlannedSource, records: Mapping[str, StudyRecord]) -> pd.DataFrame:
    """The planned slices that were read, once for each part, in order, with volume, padded and brain_share."""
    done = [(number, piece) for number, key in enumerate(planned.tasks.keys) for piece in records[key].pieces()]
    counts = np.fromiter((len(piece.kept) for _, piece in done), np.int64, len(done))
    total = int(counts.sum())

    def flat(name: str, dtype: type) -> np.ndarray:
        return np.fromiter(itertools.chain.from_iterable(getattr(piece, name) for _, piece in done), dtype, total)

    # `planned.slices` and the tasks are sorted by KEY: the row of a slice follows from the first row of its study.
    starts = np.flatnonzero(planned.slices["slice_index"].to_numpy() == 0)[[number for number, _ in done]]
    table: pd.DataFrame = planned.slices.iloc[np.repeat(starts, counts) + flat("kept", np.int64)].reset_index(drop=True)
    table["volume"] = np.repeat(np.array([piece.volume for _, piece in done], object), counts)
    table["padded"] = flat("padded", bool)
    table[BRAIN_SHARE] = flat(BRAIN_SHARE, float)
    if planned.tasks.pixels.has_parts:
        table[PART] = np.repeat(np.array([piece.name for _, piece in done], object), counts)
        for name in ("study_id", "slice_id"):
            table[name] = [part_id(*ids) for ids in zip(table[name], table[PART], strict=True)]
    return table


def _with_labels(table: pd.DataFrame, labels: pd.DataFrame | None, task: Task) -> pd.DataFrame:
    """The table with a nullable column per class, filled with known labels, but never in the test split."""
    names = list(task.classes)
    values = np.full((len(table), len(names)), np.nan)
    if labels is not None:
        key = "slice_id" if "slice_id" in labels else "study_id"
        where = pd.Index(labels[key]).get_indexer(pd.Index(table[key]))
        if PART in table:
            of_whole = pd.Index(labels[key]).get_indexer(pd.Index(table[key].map(whole_id)))
            where = np.where(where >= 0, where, of_whole)
            if labels[key].map(whole_id).ne(labels[key]).any():
                # Labels are per part: of a training study only the parts that the label file lists are kept.
                is_listed = (where >= 0) | (table["split"] != "train").to_numpy()
                table, values, where = table[is_listed].reset_index(drop=True), values[is_listed], where[is_listed]
        rows = np.flatnonzero((where >= 0) & (table["split"] != "test").to_numpy())
        values[rows] = labels[names].to_numpy(np.float64, na_value=np.nan)[where[rows]]
    filled = pd.DataFrame(values, table.index, names).astype("Int8")
    labelled: pd.DataFrame = pd.concat([table.drop(columns=names, errors="ignore"), filled], axis=1)
    return labelled
