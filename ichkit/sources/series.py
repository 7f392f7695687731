"""Which series of a study is the plain axial head CT: a rule on names, headers and geometry, with its reasons."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.errors import DataError
from ichkit.imaging.dicom import ORIENTATION
from ichkit.imaging.geometry import is_axial, slab_groups
from ichkit.sources.series_names import why_dropped_by_name
from ichkit.work.schemas import SERIES_CHOICE

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


def describe_series(index: pd.DataFrame, series_names: pd.Series) -> pd.DataFrame:
    """One row per (study_id, series_id): series, kind, num_slices, coverage_mm, gap_mm, axial.

    Args:
        index: study_id, series_id, position_mm, orientation and kind (why its header rules it out) of each file.
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


def choose_series(candidates: pd.DataFrame, rule: SeriesRule, override: pd.DataFrame | None = None) -> pd.DataFrame:
    """`schemas.SERIES_CHOICE`: at most one chosen series per study, and the reason for each candidate.

    Among the series that pass, the one whose spacing is nearest 5 mm; ties by coverage, then by name.

    Args:
        candidates: from `describe_series`.
        override: columns study_id and series (its name or its series_id): taken whatever the rule says.

    Raises:
        DataError: the override names a series that its study does not have, or two of the same name.
    """
    table = candidates.copy()
    table["reason"] = [_why_dropped(row, rule) for row in table.itertuples()]
    table["distance"] = (table["gap_mm"].fillna(np.inf) - WANTED_GAP_MM).abs().round(2)
    passed = table["reason"] == ""
    best = _first_of_each(table[passed], distance=True, coverage_mm=False, series=True)
    table.loc[passed, "reason"] = "another series is nearer 5 mm, covers more, or comes first by name"
    table.loc[best, "reason"] = "plain axial series with spacing nearest 5 mm"
    if rule.fall_back:
        left = table[table["axial"] & ~table["study_id"].isin(table["study_id"][best])]
        fallen = _first_of_each(left, coverage_mm=False, num_slices=False, series=True)
        table.loc[fallen, "reason"] = (
            "no better series: axial with the most coverage, although " + table["reason"][fallen]
        )
        best = best.append(fallen)
    if override is not None:
        mine = table["study_id"].isin(override["study_id"])
        wanted = override.set_index("study_id")["series"]
        named = [_find_series(study, name, wanted[name]) for name, study in table[mine].groupby("study_id", sort=False)]
        table.loc[mine, "reason"] = "another series was chosen by the override file"
        table.loc[named, "reason"] = "chosen by the override file"
        best = best[~mine[best]].append(pd.Index(named))
    table["chosen"] = table.index.isin(best)
    table.loc[table["chosen"] & (table["gap_mm"] < THIN_GAP_MM), "reason"] += "; thin, averaged to slabs of about 5 mm"
    return table[SERIES_CHOICE]


def take_chosen_series(
    files: pd.DataFrame, series_names: pd.Series, rule: SeriesRule, override: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The files of the chosen series, with column slab and the slice_id of each slab's middle file; and the choice.

    Args:
        files: study_id, series_id, slice_id, position_mm, kind and orientation.
        series_names: (N,) aligned with files.
        override: see `choose_series`.
    """
    choice = choose_series(describe_series(files, series_names), rule, override)
    pairs = choice[choice["chosen"]][["study_id", "series_id"]]
    kept = files.merge(pairs, on=["study_id", "series_id"])
    kept = kept.sort_values(["study_id", "position_mm", "slice_id"], ignore_index=True)
    slabs = np.empty(len(kept), np.int64)
    for where in kept.groupby("study_id", sort=False).indices.values():
        slabs[where] = _slab_numbers(kept["position_mm"].to_numpy()[where])
    kept["slab"] = slabs
    group = kept.groupby(["study_id", "slab"], sort=False).ngroup().to_numpy()
    first, sizes = np.unique(group, return_index=True, return_counts=True)[1:]
    kept["slice_id"] = kept["slice_id"].to_numpy()[(first + sizes // 2)[group]]
    return kept, choice


def read_override(path: Path) -> pd.DataFrame:
    """Series chosen by hand: study_id and series, one row a study.

    Raises:
        DataError: not a CSV with these columns, or a study stands twice.
    """
    try:
        table = pd.read_csv(path, dtype="str", keep_default_na=False)[["study_id", "series"]]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: expected a CSV with columns study_id, series as series_choice.csv has them: {error}"
        ) from error
    if table["study_id"].duplicated().any():
        twice = table["study_id"][table["study_id"].duplicated()].iloc[0]
        raise DataError(f"{path}: study {twice} stands twice; a study has one series.")
    return table


def _first_of_each(candidates: pd.DataFrame, **ascending: bool) -> pd.Index:
    """The row of each study that comes first by these columns."""
    ordered = candidates.sort_values(list(ascending), ascending=list(ascending.values()))
    return ordered.index[~ordered["study_id"].duplicated()]


def _find_series(study: pd.DataFrame, study_id: str, wanted: str) -> int:
    """The row of a study's candidate with that name or series_id."""
    found = study.index[(study["series"] == wanted) | (study["series_id"] == wanted)]
    if len(found) != 1:
        names = ", ".join(sorted(study["series"]))
        count = "no series" if not len(found) else f"{len(found)} series, name one by its series_id,"
        raise DataError(f'series override: study {study_id} has {count} "{wanted}". It has: {names}.')
    return found[0]


def _slab_numbers(positions_mm: np.ndarray) -> np.ndarray:
    """(N,) slab of each slice of one series, ascending: one slice a slab, or about 5 mm where the series is thin."""
    gaps = np.diff(positions_mm)
    gaps = gaps[gaps > 1e-3]
    if not len(gaps) or np.median(gaps) >= THIN_GAP_MM:
        return np.arange(len(positions_mm))
    return slab_groups(positions_mm, WANTED_GAP_MM)


def _why_dropped(row, rule: SeriesRule) -> str:
    by_name = why_dropped_by_name(row.series) or row.kind
    if by_name:
        return by_name
    if not row.axial:
        return "not axial"
    if row.num_slices < rule.min_slices:
        return f"fewer than {rule.min_slices} slices"
    if row.coverage_mm < rule.min_coverage_mm:
        return f"covers less than {rule.min_coverage_mm:.0f} mm"
    return ""
