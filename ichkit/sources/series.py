"""Which series of a study is the plain axial head CT: a rule on names, headers and geometry, with its reasons."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.schemas import SERIES_CHOICE
from ichkit.imaging.dicom import ORIENTATION
from ichkit.imaging.geometry import is_axial, slab_groups

WANTED_GAP_MM = 5.0
THIN_GAP_MM = 2.0
"""Below it a series is averaged to slabs: RSNA's own studies go down to 2 mm between slices."""


@dataclass(frozen=True)
class SeriesRule:
    """What a series must have to be chosen.

    Attributes:
        min_slices, min_coverage_mm: the minima.
        fall_back: where no series has the minima, take the axial one with the most coverage all the same.
    """

    min_slices: int
    min_coverage_mm: float
    fall_back: bool


CQ500_RULE = SeriesRule(min_slices=16, min_coverage_mm=100.0, fall_back=False)
FOLDER_RULE = SeriesRule(min_slices=16, min_coverage_mm=100.0, fall_back=True)

_NAME_RULES = (
    # Order matters: the first that matches is the reason given.
    ("localizer", r"\b(localizer|scout|topogram|surview|scano)\b"),
    ("not an image of one slice", r"\b(dose|report|screen save|protocol|secondary)\b"),
    ("bone or high-resolution kernel", r"\b(bone|hrct|hi ?res\w*|lung|edge|sharp|details?)\b"),
    ("not a plain head", r"\b(pns|head ?orbits?|orbits?|lt|rt|neck|spine|sinus\w*|face)\b"),
    ("contrast", r"\b(c|cect|mmc|oral|iv|angio\w*|cta|contrast agent)\b|(?<!pre )\bcontrast\b|\bcc sec\b|\d+cc\b"),
    ("three-dimensional or reformatted", r"\b(d?3d|mip|mpr|dmpr|vrt?|volume rendering|sagittal|coronal|sag|cor)\b"),
    ("derived", r"\bderived\b"),
)


def why_dropped_by_name(name: str) -> str:
    """The reason a series' name (or ImageType, description, kernel) rules it out; empty where it does not.

    Example:
        >>> why_dropped_by_name("CT PRE CONTRAST BONE"), why_dropped_by_name("CT 5mm")
        ('bone or high-resolution kernel', '')
    """
    # "-", "_", "|" and "\" separate words as spaces do; "1.25 MMC" and "1.25MMC" read alike.
    words = re.sub(r"[-_|\\/,;:()\s]+", " ", name.lower())
    words = re.sub(r"(?<=\d)(?=mmc\b)", " ", words).strip()
    return next((reason for reason, pattern in _NAME_RULES if re.search(pattern, words)), "")


def describe_series(index: pd.DataFrame, series_names: pd.Series) -> pd.DataFrame:
    """One row per (study_id, series_id): series, kind, num_slices, coverage_mm, gap_mm, axial.

    Args:
        index: study_id, series_id, position_mm, kind and orientation of each file.
        series_names: (N,) name of the series each file belongs to, aligned with the index.
    """
    rows = index[["study_id", "series_id", "position_mm", "kind"]].assign(
        series=series_names.to_numpy(), axial=is_axial(index[ORIENTATION].to_numpy())
    )
    rows = rows.sort_values(["study_id", "series_id", "position_mm"])
    rows["gap"] = rows.groupby(["study_id", "series_id"])["position_mm"].diff()
    # Repeated positions are no gap: the spacing is that between different places.
    rows["gap"] = rows["gap"].where(rows["gap"] > 1e-3)
    grouped = rows.groupby(["study_id", "series_id"], sort=True)
    table = grouped.agg(
        series=("series", "first"),
        kind=("kind", "first"),
        num_slices=("position_mm", "size"),
        low=("position_mm", "min"),
        high=("position_mm", "max"),
        gap_mm=("gap", "median"),
        axial=("axial", "mean"),
    ).reset_index()
    table["coverage_mm"] = (table.pop("high") - table.pop("low")).round(3)
    table["gap_mm"] = table["gap_mm"].round(3)
    table["axial"] = table["axial"] > 0.5
    return table


def choose_series(candidates: pd.DataFrame, rule: SeriesRule) -> pd.DataFrame:
    """`schemas.SERIES_CHOICE`: at most one chosen series per study, and the reason for each candidate.

    Among the series that pass, the one whose spacing is nearest 5 mm; ties by coverage, then by name.

    Args:
        candidates: from `describe_series`.
    """
    table = candidates.copy()
    table["reason"] = [_why_dropped(row, rule) for row in table.itertuples()]
    table["distance"] = (table["gap_mm"].fillna(np.inf) - WANTED_GAP_MM).abs().round(2)
    table["chosen"] = False
    for _, study in table.groupby("study_id", sort=False):
        passed = study[study["reason"] == ""]
        if len(passed):
            best = passed.sort_values(["distance", "coverage_mm", "series"], ascending=[True, False, True]).index[0]
            table.loc[passed.index, "reason"] = "another series is nearer 5 mm, covers more, or comes first by name"
            table.loc[best, "reason"] = "plain axial series with spacing nearest 5 mm"
        elif rule.fall_back and study["axial"].any():
            axial = study[study["axial"]]
            best = axial.sort_values(["coverage_mm", "num_slices", "series"], ascending=[False, False, True]).index[0]
            was = table.loc[best, "reason"]
            table.loc[best, "reason"] = f"no better series: axial with the most coverage, although {was}"
        else:
            continue
        table.loc[best, "chosen"] = True
        if table.loc[best, "gap_mm"] < THIN_GAP_MM:
            table.loc[best, "reason"] += "; thin, averaged to slabs of about 5 mm"
    return table[SERIES_CHOICE]


def take_chosen_series(
    files: pd.DataFrame, series_names: pd.Series, rule: SeriesRule
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The files of the chosen series, with column slab and the slice_id of each slab's middle file; and the choice.

    Args:
        files: study_id, series_id, slice_id, position_mm, kind and orientation.
        series_names: (N,) aligned with files.
    """
    choice = choose_series(describe_series(files, series_names), rule)
    pairs = choice[choice["chosen"]][["study_id", "series_id"]]
    kept = files.merge(pairs, on=["study_id", "series_id"])
    kept = kept.sort_values(["study_id", "position_mm", "slice_id"], ignore_index=True)
    slabs = np.empty(len(kept), np.int64)
    for where in kept.groupby("study_id", sort=False).indices.values():
        slabs[where] = _slab_numbers(kept["position_mm"].to_numpy()[where])
    kept["slab"] = slabs
    kept["slice_id"] = kept.groupby(["study_id", "slab"])["slice_id"].transform(lambda ids: ids.iloc[len(ids) // 2])
    return kept, choice


def _slab_numbers(positions_mm: np.ndarray) -> np.ndarray:
    """(N,) slab of each slice of one series, ascending: one slice a slab, or about 5 mm where the series is thin."""
    gaps = np.diff(positions_mm)
    gaps = gaps[gaps > 1e-3]
    if not len(gaps) or np.median(gaps) >= THIN_GAP_MM:
        return np.arange(len(positions_mm))
    return slab_groups(positions_mm, WANTED_GAP_MM)


def _why_dropped(row, rule: SeriesRule) -> str:
    by_name = why_dropped_by_name(row.series) or why_dropped_by_name(row.kind)
    if by_name:
        return by_name
    if not row.axial:
        return "not axial"
    if row.num_slices < rule.min_slices:
        return f"fewer than {rule.min_slices} slices"
    if row.coverage_mm < rule.min_coverage_mm:
        return f"covers less than {rule.min_coverage_mm:.0f} mm"
    return ""
