"""Plans and records to the tables of the prepared folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.schemas import KEY, REJECTED, conform, slices_dtypes, studies_dtypes
from ichkit.core.tasks import Task
from ichkit.imaging.dicom import has_broken_intercept, pixel_format
from ichkit.sources.plan import SourcePlan, StudyTasks, make_rejected
from ichkit.sources.study import StudyRecord


@dataclass(frozen=True)
class PlannedSource:
    """A source's plan in order: its tasks, and one row per slice with slice_index before any file failed.

    Attributes:
        slices: from `order_slices`.
    """

    plan: SourcePlan
    tasks: StudyTasks
    slices: pd.DataFrame
    repair: bool


def collect_slices(planned: PlannedSource, records: Mapping[str, StudyRecord], task: Task) -> pd.DataFrame:
    """The rows of `slices.parquet` of one source, without folds: slices whose files all failed are gone.

    Args:
        records: by key, one for each of `planned.tasks`.
    """
    facts = []
    for position, study_id in enumerate(planned.tasks.study_ids):
        record = records[planned.tasks.key(position)]
        rows = {"study_id": study_id, "slice_index": record.kept, "padded": record.padded, "volume": record.volume}
        facts.append(pd.DataFrame(rows))
    table = planned.slices.merge(pd.concat(facts), on=KEY) if facts else planned.slices.assign(padded=False, volume="")
    table = table.sort_values(KEY, ignore_index=True)
    study = table.groupby("study_id", sort=False)
    table["slice_index"] = study.cumcount()
    table["num_slices"] = study["slice_index"].transform("size")
    series = table.groupby(["study_id", "series_id"], sort=False)["position_mm"]
    table["gap_mm"] = (series.shift(-1) - table["position_mm"]).round(6)
    formats = table[["bits_stored", "pixel_representation", "intercept"]].drop_duplicates()
    formats["pixel_format"] = [pixel_format(*row) for row in formats.itertuples(index=False)]
    formats["hu_repaired"] = [
        planned.repair and has_broken_intercept(*row[:3]) for row in formats.itertuples(index=False)
    ]
    table = table.merge(formats, on=["bits_stored", "pixel_representation", "intercept"], how="left")
    if planned.plan.labels is not None:
        labels = planned.plan.labels.astype(dict.fromkeys(task.classes, "Int8"))
        table = table.merge(labels, on="slice_id", how="left")
        is_train = table["split"] == "train"
        table[list(task.classes)] = table[list(task.classes)].where(is_train, pd.NA)
    else:
        table = table.assign(**dict.fromkeys(task.classes, pd.array([pd.NA] * len(table), dtype="Int8")))
    return conform(table.assign(fold=pd.array([pd.NA] * len(table), dtype="Int16")), slices_dtypes(task))


def collect_studies(slices: pd.DataFrame, plans: Sequence[SourcePlan], task: Task) -> pd.DataFrame:
    """`studies.parquet`: RSNA's labels are the maximum over slices, CQ500's the readers' majority."""
    grouped = slices.groupby(["dataset", "study_id"], sort=True)
    table = grouped.agg(
        split=("split", "first"),
        patient_id=("patient_id", "first"),
        num_slices=("slice_id", "size"),
        **{name: (name, "max") for name in task.classes},
    ).reset_index()
    for plan in plans:
        if plan.study_labels is not None:
            known = plan.study_labels.set_index("study_id").astype("Int8")
            ours = table["study_id"].isin(known.index) & (table["split"] == "external")
            table.loc[ours, list(task.classes)] = known.loc[table["study_id"][ours]].to_numpy()
    return conform(table, studies_dtypes(task))


def collect_failures(planned: PlannedSource, records: Mapping[str, StudyRecord]) -> pd.DataFrame:
    """`schemas.REJECTED` rows of the files whose pixels failed, although their header was good."""
    parts = []
    for position in range(len(planned.tasks)):
        failures = records[planned.tasks.key(position)].failures
        if failures:
            rows = planned.tasks.rows(position)
            starts = np.flatnonzero(np.diff(rows["slice_index"].to_numpy(), prepend=-1))
            failed = rows.iloc[[int(starts[at]) + inside for at, inside, _ in failures]]
            parts.append(make_rejected(failed, reason=[reason for *_, reason in failures]))
    return pd.concat(parts) if parts else pd.DataFrame(columns=REJECTED)
