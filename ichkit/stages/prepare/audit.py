"""The data audit of `work/prepared/`, to read before training: counts, anomalies and pictures."""

from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.roles import Role, order_external
from ichkit.core.tasks import Task, find_task
from ichkit.stages.prepare.audit_page import draw_contact_sheet, render_page
from ichkit.work.artifacts import ArtifactWriter
from ichkit.work.schemas import BRAIN_SHARE, TILT

AUDIT_JSON, AUDIT_PAGE = "audit.json", "audit.html"
BLANK_SHARE = 0.01
"""A slice with a smaller share of pixels in the brain window is near-blank; 1.2 % of the slices of RSNA 2019 are."""
GAP_EDGES_MM = (0.0, 2.0, 3.5, 4.5, 5.5)
_TILT_EDGES = (0.0, 1.0, 5.0, 10.0, 15.0, 20.0, 30.0)
_LENGTH_EDGES = (1, 2, 10, 20, 25, 30, 35, 40, 50, 60)
_NUM_PLACES = 20

EXPECTED_OF_RSNA_2019: dict[str, int] = {
    "training slices": 752_803 - 1,
    "training studies": 21_744,
    "training patients": 18_938,
    "test slices": 121_232,
    "slices with a repaired intercept": 123,
    "merged duplicate label rows": 24,
    "training slices at a repeated position": 6_232,
}
"""Of the stage-2 data; one training file, ID_6431af929, is unreadable."""


def write_audit(
    writer: ArtifactWriter,
    slices: pd.DataFrame,
    studies: pd.DataFrame,
    rejected: pd.DataFrame,
    facts: dict[str, Any],
    config: Config,
    crop_sheet: str = "",
) -> None:
    """Writes audit.json and audit.html, deterministically.

    Args:
        slices: `slices.parquet`, with brain_share and tilt_degrees.
        facts: the facts of the manifest.
        crop_sheet: from `draw_crops`.
    """
    task = find_task(config.task)
    audit = make_audit(slices, studies, rejected, facts, task)
    writer.write_json(AUDIT_JSON, audit)
    sheet = draw_contact_sheet(writer.folder, slices, studies, task)
    writer.write_bytes(AUDIT_PAGE, render_page(audit, sheet, task, crop_sheet).encode())


def make_audit(
    slices: pd.DataFrame, studies: pd.DataFrame, rejected: pd.DataFrame, facts: dict[str, Any], task: Task
) -> dict[str, Any]:
    """The content of audit.json: JSON values, shares in [0, 1], `None` for unknown values."""
    train = slices[slices["split"] == "train"]
    return {
        "data": facts["data"],
        "counts": _counts(slices, facts),
        "splits": _splits(slices, studies, task),
        "rejected": {str(reason): int(count) for reason, count in rejected["reason"].value_counts().items()},
        "repaired": sorted(slices["slice_id"][slices["hu_repaired"]]),
        "pixel_formats": _table_of(slices, "pixel_format"),
        "padding": _padding(train, task),
        "geometry": _geometry(slices),
        "labels": _labels(train, facts, task),
        "folds": _folds(train, task),
        "positive_studies": _positive_studies(studies, task),
        "slices_per_study": _histogram(studies["num_slices"].to_numpy(), _LENGTH_EDGES),
        "positives_by_position": _positives_by_position(train, task),
        "external": _external(slices, facts),
        **({"crop": facts["crop"]} if "crop" in facts else {}),
    }


def _counts(slices: pd.DataFrame, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Counts and, for RSNA 2019, their expected values."""
    train, test = (slices[slices["split"] == split] for split in ("train", "test"))
    found = {
        "training slices": len(train),
        "training studies": train["study_id"].nunique(),
        "training patients": train["patient_id"].nunique(),
        "test slices": len(test),
        "slices with a repaired intercept": int(slices["hu_repaired"].sum()),
        "merged duplicate label rows": facts.get("rsna", {}).get("label_rows_merged", 0),
        "training slices at a repeated position": int(_is_tied(train).sum()),
    }
    expected = EXPECTED_OF_RSNA_2019 if facts["data"] == "rsna" else {}
    return [{"what": name, "found": int(value), "expected": expected.get(name)} for name, value in found.items()]


def _splits(slices: pd.DataFrame, studies: pd.DataFrame, task: Task) -> list[dict[str, Any]]:
    rows = []
    for (dataset, split), part in slices.groupby(["dataset", "split"], sort=True):
        own = studies[(studies["dataset"] == dataset) & (studies["split"] == split)]
        positive = own[task.headline_class]
        rows.append(
            {
                "dataset": dataset,
                "split": split,
                "slices": len(part),
                "studies": len(own),
                "patients": int(part["patient_id"].nunique()),
                "positive_studies": int(positive.sum()) if positive.notna().any() else None,
                "padded": float(part["padded"].mean()),
                "blank": float((part[BRAIN_SHARE] < BLANK_SHARE).mean()),
            }
        )
    return rows


def _table_of(slices: pd.DataFrame, column: str) -> list[dict[str, Any]]:
    """Frequency of each value of a column by split, most frequent first."""
    counts = pd.crosstab(slices[column], slices["split"])
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    return [{"value": str(value), **{str(k): int(v) for k, v in row.items()}} for value, row in counts.iterrows()]


def _padding(train: pd.DataFrame, task: Task) -> dict[str, Any]:
    """Share of slices padded outside the scan circle (a group of scanners), and the positive rates with and without."""
    rates = train.groupby("padded")[task.headline_class].mean()
    return {
        "share": float(train["padded"].mean()),
        "positive_rate_with": _number(rates.get(True)),
        "positive_rate_without": _number(rates.get(False)),
    }


def _is_tied(slices: pd.DataFrame) -> pd.Series:
    return slices.duplicated(["dataset", "study_id", "series_id", "position_mm"], keep=False)


def _geometry(slices: pd.DataFrame) -> dict[str, Any]:
    gaps = slices["gap_mm"].to_numpy()
    known = gaps[np.isfinite(gaps)]
    per_study = slices.groupby(["dataset", "study_id"], sort=False)
    spread = per_study["gap_mm"].max() - per_study["gap_mm"].min()
    matrices = slices["rows"].astype(str) + " x " + slices["columns"].astype(str)
    is_square = (slices["rows"] == slices["columns"]) & np.isclose(
        slices["spacing_row_mm"], slices["spacing_col_mm"], rtol=1e-4
    )
    mixed = slices.groupby(["dataset", "study_id"])[["rows", "columns"]].nunique().max(axis=1)
    return {
        "gap_mm": _histogram(known, GAP_EDGES_MM),
        "largest_gap_mm": _number(known.max() if len(known) else None),
        "studies_of_uneven_gaps": int((spread > 0.5).sum()),
        "tied_slices": int(_is_tied(slices).sum()),
        "series_per_study": _counts_of(slices.groupby(["dataset", "study_id"])["series_id"].nunique()),
        "tilt_degrees": _histogram(slices[TILT].dropna().to_numpy(), _TILT_EDGES),
        "not_square": int((~is_square).sum()),
        "matrices": _counts_of(matrices, by_value=False),
        "studies_of_mixed_matrices": int((mixed > 1).sum()),
    }


def _labels(train: pd.DataFrame, facts: dict[str, Any], task: Task) -> dict[str, Any]:
    differs = pd.Series(False, index=train.index)
    for name, covered in task.covers.items():
        parts = train[list(covered)]
        highest = parts.max(axis=1)
        is_known = train[name].notna() & ((highest == 1) | parts.notna().all(axis=1))
        differs |= is_known & (train[name] != highest).fillna(False).astype(bool)
    disagree = train["slice_id"][differs]
    rsna = facts.get("rsna", {})
    return {
        "merged_rows": rsna.get("label_rows_merged", 0),
        "without_image": rsna.get("labels_without_image", 0),
        "any_differs_from_subtypes": sorted(disagree),
        "given_per": facts.get("folder", {}).get("labels", "slice"),
    }


def _folds(train: pd.DataFrame, task: Task) -> list[dict[str, Any]]:
    rows = []
    for fold in sorted(train["fold"].unique()):
        part = train[train["fold"] == fold]
        prevalence = {name: _number(part[name].mean()) for name in task.classes}
        sizes = {"slices": len(part), "studies": part["study_id"].nunique(), "patients": part["patient_id"].nunique()}
        rows.append({"fold": int(fold), **{name: int(size) for name, size in sizes.items()}, "prevalence": prevalence})
    return rows


def _positive_studies(studies: pd.DataFrame, task: Task) -> dict[str, int | None]:
    """Positive training studies of each class; None if all labels are unknown."""
    train = studies[studies["split"] == "train"]
    return {name: int(train[name].sum()) if train[name].notna().any() else None for name in task.classes}


def _positives_by_position(train: pd.DataFrame, task: Task) -> dict[str, Any]:
    """Prevalence of each class by relative slice position, in 20 bins from the first slice of a study to the last."""
    position = train["slice_index"] / (train["num_slices"] - 1).clip(lower=1)
    part = np.minimum((position * _NUM_PLACES).astype(int), _NUM_PLACES - 1)
    means = train.groupby(part)[list(task.classes)].mean().reindex(range(_NUM_PLACES))
    ends = train[(train["slice_index"] == 0) | (train["slice_index"] == train["num_slices"] - 1)]
    return {
        "places": [(i + 0.5) / _NUM_PLACES for i in range(_NUM_PLACES)],
        "prevalence": {name: [_number(value) for value in means[name]] for name in task.classes},
        "first_and_last": _number(ends[task.headline_class].mean()),
    }


def _external(slices: pd.DataFrame, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The studies of each external set, by name; the number of labelled ones is None if unknown."""
    external, found = slices[slices["split"] == Role.EXTERNAL], {}
    for name in order_external(external["dataset"]):
        if name in facts:
            studies = external[external["dataset"] == name].groupby("study_id")["gap_mm"]
            found[name] = {
                "labelled": facts[name].get("num_reads"),
                "prepared": studies.ngroups,
                "missing": facts[name].get("missing_studies", []),
                "gap_mm": _histogram(studies.median().dropna().to_numpy(), GAP_EDGES_MM),
            }
    return found


def _histogram(values: np.ndarray, edges: tuple[float, ...]) -> list[dict[str, Any]]:
    """Counts by bin, the last one open-ended; e.g. {"from": 2.0, "to": 3.5, "count": 7}."""
    counts = np.histogram(values, [*edges, np.inf])[0] if len(values) else np.zeros(len(edges), int)
    ends = [*edges[1:], None]
    return [{"from": a, "to": b, "count": int(n)} for a, b, n in zip(edges, ends, counts, strict=True)]


def _counts_of(values: pd.Series, by_value: bool = True) -> dict[str, int]:
    counts = values.value_counts()
    counts = counts.sort_index() if by_value else counts.sort_values(ascending=False, kind="stable")
    return {str(value): int(count) for value, count in counts.items()}


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
