"""The choice of the plain axial head CT series of a study, by names, headers and geometry, with reasons."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.csv_tables import read_csv
from ichkit.core.errors import DataError
from ichkit.core.progress import logger
from ichkit.imaging.dicom import ORIENTATION
from ichkit.imaging.geometry import is_axial, slab_groups, slice_normals
from ichkit.sources.acquisitions import OTHER_ORIENTATION, SERIES, split_repeats, split_strays
from ichkit.sources.plan import TIES, add_positions
from ichkit.sources.series_names import (
    CONTRAST,
    DYNAMIC,
    NEVER,
    NO_HU,
    OTHER_BODY_PART,
    SEVERITIES,
    says_no_contrast,
    why_dropped_by_name,
)
from ichkit.work.schemas import SERIES_CHOICE

WANTED_GAP_MM = 5.0
THIN_GAP_MM = 2.0
"""Series with smaller spacing are averaged to slabs: the smallest spacing in RSNA 2019 is 2 mm."""
COVERED = "the other half of the head covers the same positions"
_DYNAMIC_REPEATS = 2.5
"""A scan is repeated once if the patient moved; positions covered three times or more are a time series."""
_HEAD_MM = 200.0
"""More than the height of any head: two series that together are longer are not its two halves."""
_HALF_ADDS_MM = 15.0
_HALVES_OVERLAP_MM = 10.0
_HALVES_APART_MM = 12.0
_HALVES_DEGREES = 5.0
_INTERLEAVED_GAP_MM = 6.0
"""A series with smaller gaps is a whole head by itself."""
_INTERLEAVED_OFFSET = (0.3, 0.7)
_INTERLEAVED_OVERLAP = 0.8
_MANY_STRAYS = 0.1
_HOLE = 1.7
"""A missing slice doubles one gap; where the spacing changes along the head, one of the gaps beside is as wide."""
_MAX_WARNINGS = 10


@dataclass(frozen=True)
class SeriesRule:
    """The requirements on a series.

    Attributes:
        min_slices, min_coverage_mm: the minima.
        max_coverage_mm: what is longer holds more than a head; None where names have sorted that out.
        fall_back: where no series passes, use the axial one with the least severe reason (`SEVERITIES`).
        joins_halves: take base and vertex of one head together where they are two series, and every other slice.
        gap_range_mm: the spacing it must have, the lower end included; None for any.
        wanted_gap_mm: the nearest spacing is taken; 0 for the thinnest series.
        averages: a thin series is averaged to slabs.
    """

    min_slices: int
    min_coverage_mm: float
    max_coverage_mm: float | None
    fall_back: bool
    joins_halves: bool
    gap_range_mm: tuple[float, float] | None = None
    wanted_gap_mm: float = WANTED_GAP_MM
    averages: bool = True


CQ500_RULE = SeriesRule(min_slices=16, min_coverage_mm=100.0, max_coverage_mm=None, fall_back=False, joins_halves=False)
FOLDER_RULE = SeriesRule(min_slices=16, min_coverage_mm=100.0, max_coverage_mm=300.0, fall_back=True, joins_halves=True)
_THIN, _THICK = (0.0, THIN_GAP_MM), (THIN_GAP_MM, np.inf)
THIN_RULE = replace(CQ500_RULE, gap_range_mm=_THIN, wanted_gap_mm=0.0, averages=False)
THICK_RULE = replace(CQ500_RULE, gap_range_mm=_THICK)
SLABS_RULE = replace(CQ500_RULE, gap_range_mm=_THIN, wanted_gap_mm=0.0)


@dataclass(frozen=True)
class ChosenSeries:
    """The files to read of each study.

    Attributes:
        files: of the chosen series, one row per file, with `slab` (files that make one slice), `part` (0: one part
            per study, even with joined halves) and the slice_id of each slab's middle file.
        choice: `schemas.SERIES_CHOICE`.
        refused: with their reason, files of a chosen series outside its pass over the head, and every file of a study
            without a chosen series.
    """

    files: pd.DataFrame
    choice: pd.DataFrame
    refused: pd.DataFrame


def describe_series(index: pd.DataFrame, series_names: pd.Series) -> pd.DataFrame:
    """One row per (study_id, series_id): its name, the most frequent reason in its headers, its geometry.

    Args:
        index: study_id, series_id, position_mm, orientation, rows, columns, spacing, reference_uid, kind (why its
            header rules it out) of each file, one file for each place of a series, and how often its places were
            covered (`repeats`).
        series_names: (N,) name of the series each file belongs to, aligned with the index.
    """
    normals = slice_normals(index[ORIENTATION].to_numpy())
    names = ["position_mm", "kind", "repeats", "rows", "columns", "spacing_row_mm", "spacing_col_mm", "reference_uid"]
    rows = index[[*SERIES, *names]].assign(
        series=series_names.to_numpy(),
        axial=is_axial(index[ORIENTATION].to_numpy()),
        severity=index["kind"].map(SEVERITIES).fillna(-1).to_numpy(),
        **{f"normal_{name}": normals[:, axis] for axis, name in enumerate("xyz")},
    )
    # The most frequent reason; of equally frequent ones the least severe.
    kinds = rows.groupby([*SERIES, "kind", "severity"]).size().rename("count").reset_index()
    kinds = kinds.sort_values([*SERIES, "count", "severity"], ascending=[True, True, False, True])
    rows = rows.sort_values([*SERIES, "position_mm"])
    rows["gap"] = rows.groupby(SERIES)["position_mm"].diff()
    # Repeated positions are not gaps: the spacing is that between different positions.
    rows["gap"] = rows["gap"].where(rows["gap"] > 1e-3)
    gaps = rows.groupby(SERIES)["gap"]
    is_hole = rows["gap"] > _HOLE * np.fmax(gaps.shift(1), gaps.shift(-1))
    rows["hole"] = rows["gap"].where(is_hole, 0.0)
    table = rows.groupby(SERIES, sort=True).agg(
        series=("series", "first"),
        num_slices=("position_mm", "size"),
        low=("position_mm", "min"),
        high=("position_mm", "max"),
        gap_mm=("gap", "median"),
        hole_mm=("hole", "max"),
        axial=("axial", "mean"),
        reference_uid=("reference_uid", "first"),
        **{name: (name, "median") for name in ("repeats", "rows", "columns", "spacing_row_mm", "spacing_col_mm")},
        **{f"normal_{name}": (f"normal_{name}", "median") for name in "xyz"},
    )
    table["kind"] = kinds.drop_duplicates(SERIES).set_index(SERIES)["kind"].reindex(table.index)
    table = table.reset_index()
    table["coverage_mm"] = (table["high"] - table["low"]).round(3)
    table["gap_mm"] = table["gap_mm"].round(3)
    table["axial"] = table["axial"] > 0.5
    return table


def choose_series(candidates: pd.DataFrame, rule: SeriesRule, override: pd.DataFrame | None = None) -> pd.DataFrame:
    """`schemas.SERIES_CHOICE`: at most one chosen series per study (or two halves), and the reason of each series.

    Of the series that pass, the one whose spacing is nearest to the wanted one; ties by coverage, then by name.

    Args:
        candidates: from `describe_series`.
        override: columns study_id and series (its name or series_id): used regardless of the rule.

    Raises:
        DataError: the override names a series that does not exist in its study, or is ambiguous.
    """
    table = candidates.copy()
    judged = [_why_dropped(row, rule) for row in table.itertuples()]
    table["reason"] = pd.Series([reason for reason, _ in judged], table.index, dtype="object")
    table["severity"] = pd.Series([severity for _, severity in judged], table.index, dtype="int64")
    table["distance"] = (table["gap_mm"].fillna(np.inf) - rule.wanted_gap_mm).abs().round(2)
    why = table["reason"].copy()
    passed = table["reason"] == ""
    best = _first_of_each(table[passed], distance=True, coverage_mm=False, series=True)
    nearer, nearest = ("nearer 5 mm", "nearest 5 mm") if rule.wanted_gap_mm else ("thinner", "smallest")
    table.loc[passed, "reason"] = f"another series is {nearer}, covers more, or comes first by name"
    table.loc[best, "reason"] = f"plain axial series with spacing {nearest}"
    if rule.fall_back:
        left = table[table["axial"] & (table["severity"] < NEVER) & ~table["study_id"].isin(table["study_id"][best])]
        fallen = _first_of_each(left, severity=True, coverage_mm=False, num_slices=False, series=True)
        for row in fallen:
            table.loc[row, "reason"] = _say_fallen(row, table, why)
        best = best.append(fallen)
    if rule.joins_halves:
        best = _join_halves(table, best)
    if override is not None:
        mine = table["study_id"].isin(override["study_id"])
        wanted = override.set_index("study_id")["series"]
        named = [
            _find_series(study, str(name), wanted[name]) for name, study in table[mine].groupby("study_id", sort=False)
        ]
        table.loc[mine, "reason"] = "another series was chosen by the override file"
        table.loc[named, "reason"] = "chosen by the override file"
        best = best[~mine[best]].append(pd.Index(named))
    table["chosen"] = table.index.isin(best)
    is_flat = table["chosen"] & (table["coverage_mm"] == 0) & (table["num_slices"] > 1)
    table.loc[is_flat, "reason"] += "; all positions are the same, ordered by InstanceNumber"
    has_hole = table["chosen"] & (table["hole_mm"] > table["gap_mm"] + THIN_GAP_MM)
    for row in table.index[has_hole]:
        table.loc[row, "reason"] += f"{_HOLES} {table.loc[row, 'hole_mm']:.0f} mm"
    is_averaged = table["chosen"] & (table["gap_mm"] < THIN_GAP_MM) & rule.averages
    table.loc[is_averaged, "reason"] += "; thin, averaged to slabs of about 5 mm"
    refused = table["study_id"][(table["kind"] == NO_HU) & ~table["chosen"]]
    table.loc[table["chosen"] & table["study_id"].isin(refused), "reason"] += _NO_HU_BEFORE
    return table[SERIES_CHOICE]


def take_chosen_series(
    files: pd.DataFrame,
    series_names: pd.Series,
    rule: SeriesRule,
    override: pd.DataFrame | None = None,
    judge: Callable[[pd.DataFrame], str] | None = None,
) -> ChosenSeries:
    """The chosen series of every study: its one pass over the head, in slabs if it is thin.

    Args:
        files: study_id, series_id, slice_id, kind, geometry and numbers of each file.
        series_names: (N,) aligned with files.
        override: see `choose_series`.
        judge: says why the pixels of a series cannot be used; then the next best is taken, if there is one.
    """
    files = files.assign(series_name=series_names.to_numpy()).reset_index(drop=True)
    files, strays = split_strays(files)
    files = add_positions(files.reset_index(drop=True), by=SERIES)
    files, repeats = split_repeats(files)
    candidates = describe_series(files, files["series_name"])
    if judge is not None:
        candidates = _judge_values(candidates, files, rule, judge)
    choice = _say_left_out(choose_series(candidates, rule, override), strays, repeats)
    pairs = choice[choice["chosen"]][SERIES]
    kept = files.drop(columns=["series_name", "repeats"]).merge(pairs, on=SERIES)
    kept, covered = _cut_overlap(kept, choice["study_id"][choice["reason"].str.startswith(_INTERLEAVED)])
    kept = kept.sort_values(["study_id", "position_mm", *TIES], ignore_index=True)
    slabs = np.empty(len(kept), np.int64)
    for where in kept.groupby(SERIES, sort=False).indices.values():
        positions = kept["position_mm"].to_numpy()[where]
        slabs[where] = _slab_numbers(positions) if rule.averages else np.arange(len(positions))
    # The slabs of two halves are numbered consecutively, so that none has slices of both.
    number = kept.groupby("study_id", sort=False)["series_id"].rank(method="dense").to_numpy(np.int64)
    kept["slab"] = slabs + (number - 1) * (slabs.max(initial=0) + 1)
    kept["part"] = 0
    group = kept.groupby(["study_id", "slab"], sort=False).ngroup().to_numpy()
    order = np.argsort(group, kind="stable")
    first, sizes = np.unique(group[order], return_index=True, return_counts=True)[1:]
    kept["slice_id"] = kept["slice_id"].to_numpy()[order][(first + sizes // 2)[group]]
    lost = choice[~choice["study_id"].isin(pairs["study_id"])][[*SERIES, "reason"]]
    # Files of series that were not chosen are no rejected files, unless their whole study is lost.
    unused = files.drop(columns=["repeats", "reason"], errors="ignore").merge(lost, on=SERIES)
    own = [part.merge(both, on=SERIES) for part in (strays, repeats) for both in (pairs, lost[SERIES])]
    refused = pd.concat([*own, covered.merge(pairs, on=SERIES), unused], ignore_index=True)
    return ChosenSeries(kept, choice, refused.drop(columns="series_name", errors="ignore"))


def say_choice(choice: pd.DataFrame, source: str) -> None:
    """Warns about every study whose series choice is doubtful, with its number among all that were found, by id."""
    numbers = {name: number for number, name in enumerate(sorted(choice["study_id"].unique()), 1)}
    chosen = choice[choice["chosen"]].drop_duplicates("study_id")
    reasons = [(numbers[row.study_id], str(row.reason)) for row in chosen.itertuples() if is_doubtful(str(row.reason))]
    counts = choice["study_id"].value_counts()
    reasons += [
        (number, f"no axial series of slices; not used: {counts[name]}")
        for name, number in numbers.items()
        if name not in set(chosen["study_id"])
    ]
    groups: dict[str, list[int]] = {}
    for number, reason in reasons:
        groups.setdefault(reason, []).append(number)
    for reason, of_reason in list(groups.items())[:_MAX_WARNINGS]:
        # Not its row in a later table, which lacks studies that could not be read.
        one = f"study {of_reason[0]} of {len(numbers)} found"
        who = one if len(of_reason) == 1 else f"{len(of_reason)} studies, e.g. {one}"
        logger.warning("%s: %s: %s", source, who, reason)
    if len(groups) > _MAX_WARNINGS:
        logger.warning("%s: %d more such reasons; see series_choice.csv", source, len(groups) - _MAX_WARNINGS)


def is_doubtful(reason: str) -> bool:
    """Whether `say_choice` warns of a chosen series with this reason."""
    return any(mark in reason for mark in _DOUBTS)


def read_override(path: Path) -> pd.DataFrame:
    """Manually chosen series: study_id and series, one row per study.

    Raises:
        DataError: not a CSV with these columns, or a study has two rows.
    """
    try:
        table = read_csv(path, dtype="str", keep_default_na=False)[["study_id", "series"]]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: expected a CSV with columns study_id, series as in series_choice.csv: {error}"
        ) from error
    if table["study_id"].duplicated().any():
        twice = table["study_id"][table["study_id"].duplicated()].iloc[0]
        raise DataError(f"{path}: study {twice} has two rows; a study has one series.")
    return table


def check_override(override: pd.DataFrame | None, choices: list[pd.DataFrame]) -> None:
    """Checks that the studies of an override exist.

    Args:
        choices: `schemas.SERIES_CHOICE` of each source.

    Raises:
        DataError: some do not.
    """
    if override is None:
        return
    known = {study for choice in choices for study in choice["study_id"]}
    unknown = [study for study in override["study_id"] if study not in known]
    if unknown:
        raise DataError(
            f"series override: {len(unknown)} studies are not among the {len(known)} studies found, "
            f"e.g. {unknown[0]}. Use the ids of series_choice.csv."
        )


_FALLEN = "fallback: "
_HALF_LEFT = "; half of the head may be in another series, which is not used"
_JOINED = "one of two series with half of the head each"
_INTERLEAVED = "one of two interleaved series, each with every other slice of the head"
_NO_HU_BEFORE = f"; skipped: a series with {NO_HU}"
_HOLES = "; slices may be missing: two neighbours are apart by"
_STRAYS = "slices of another orientation are left out"
_SEVERAL = "one of several acquisitions of the same places"
_DOUBTS = (
    _FALLEN,
    _HALF_LEFT,
    _JOINED,
    _INTERLEAVED,
    _NO_HU_BEFORE,
    _STRAYS,
    _HOLES,
    "all positions are the same",
    _SEVERAL,
)


def _judge_values(
    candidates: pd.DataFrame, files: pd.DataFrame, rule: SeriesRule, judge: Callable[[pd.DataFrame], str]
) -> pd.DataFrame:
    """The candidates; one that would be chosen beside others, and whose pixels cannot be used, is of kind `NO_HU`."""
    candidates = candidates.copy()
    rows_of = files.groupby(SERIES, sort=False).indices
    is_judged = np.zeros(len(candidates), bool)
    while True:
        choice = choose_series(candidates, rule)
        has_others = candidates["study_id"].duplicated(keep=False).to_numpy()
        wanted = np.flatnonzero(choice["chosen"].to_numpy() & has_others & ~is_judged)
        is_judged[wanted] = True
        pairs = candidates[SERIES].to_numpy()
        failed = [row for row in wanted if judge(files.iloc[rows_of[tuple(pairs[row])]])]
        if not failed:
            return candidates
        candidates["kind"] = candidates["kind"].where(~np.isin(np.arange(len(candidates)), failed), NO_HU)


def _say_left_out(choice: pd.DataFrame, strays: pd.DataFrame, repeats: pd.DataFrame) -> pd.DataFrame:
    """The choice; the reason of a chosen series says where other passes, or many slices, of it are left out."""
    counts = strays[strays["reason"] == OTHER_ORIENTATION].groupby(SERIES).size().rename("count").reset_index()
    count = choice[SERIES].merge(counts, on=SERIES, how="left")["count"].fillna(0).astype(int).set_axis(choice.index)
    is_many = choice["chosen"] & (count > _MANY_STRAYS * choice["num_slices"])
    several = pd.MultiIndex.from_frame(choice[SERIES]).isin(pd.MultiIndex.from_frame(repeats[SERIES]))
    reason = choice["reason"].mask(choice["chosen"] & several, choice["reason"] + f"; {_SEVERAL}")
    return choice.assign(reason=reason.mask(is_many, reason + "; " + count.astype("str") + f" {_STRAYS}"))


def _first_of_each(candidates: pd.DataFrame, **ascending: bool) -> pd.Index:
    """The first row of each study in the order of these columns."""
    ordered = candidates.sort_values(list(ascending), ascending=list(ascending.values()))
    return ordered.index[~ordered["study_id"].duplicated()]


def _say_fallen(row: int, table: pd.DataFrame, why: pd.Series) -> str:
    """The reason why a series that did not pass is used, and those of the other series."""
    others = why[(table["study_id"] == table.loc[row, "study_id"]) & (table.index != row)]
    counts = others.value_counts()
    passed_over = ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items()))
    more = f"; not used: {passed_over}" if passed_over else ""
    return f"fallback: axial, although {why[row]}{more}"


def _join_halves(table: pd.DataFrame, best: pd.Index) -> pd.Index:
    """The chosen rows and, for each study, the series with the other half of its head.

    Reasons are written into the table. A half that does not fit into the same volume is not used, with a note.
    """
    halves = []
    plausible = table[table["axial"] & (table["severity"] <= 0)]
    plausible = plausible[plausible["study_id"].duplicated(keep=False)]
    for row in best.intersection(plausible.index, sort=False):
        chosen = table.loc[row]
        others = plausible[plausible["study_id"] == chosen["study_id"]]
        for other in others.drop(index=row).sort_values("coverage_mm", ascending=False).itertuples():
            is_interleaved = _is_interleaved(chosen, other)
            if not (is_interleaved or _is_other_half(chosen, other)):
                continue
            if _fits_together(chosen, other):
                halves.append(other.Index)
                table.loc[[row, other.Index], "reason"] = _INTERLEAVED if is_interleaved else _JOINED
            else:
                table.loc[row, "reason"] += _HALF_LEFT
            break
    return best.append(pd.Index(halves, dtype=best.dtype))


def _is_other_half(chosen: pd.Series, other: Any) -> bool:
    low, high = min(chosen["low"], other.low), max(chosen["high"], other.high)
    overlap = min(chosen["high"], other.high) - max(chosen["low"], other.low)
    adds = (high - low) - chosen["coverage_mm"]
    return bool(high - low <= _HEAD_MM and adds >= _HALF_ADDS_MM and -_HALVES_APART_MM <= overlap <= _HALVES_OVERLAP_MM)


def _is_interleaved(chosen: pd.Series, other: Any) -> bool:
    """True if the slices of one series lie in the middle of the gaps of the other, over the same head."""
    gap, length = chosen["gap_mm"], max(chosen["coverage_mm"], other.coverage_mm)
    overlap = min(chosen["high"], other.high) - max(chosen["low"], other.low)
    offset = ((other.low - chosen["low"]) / gap) % 1 if gap > 0 else 0.0
    return bool(
        gap >= _INTERLEAVED_GAP_MM
        and np.isclose(gap, other.gap_mm, rtol=0.05)
        and overlap >= _INTERLEAVED_OVERLAP * length
        and _INTERLEAVED_OFFSET[0] <= offset <= _INTERLEAVED_OFFSET[1]
    )


def _fits_together(chosen: pd.Series, other: Any) -> bool:
    """True where two series have the same matrix, pixels of the same size, the same tilt and frame of reference."""
    references = {chosen["reference_uid"], other.reference_uid} - {""}
    if len(references) > 1:
        return False
    ours = np.array([chosen[f"normal_{name}"] for name in "xyz"])
    theirs = np.array([getattr(other, f"normal_{name}") for name in "xyz"])
    is_parallel = ours @ theirs >= np.cos(np.radians(_HALVES_DEGREES))
    same_matrix = chosen["rows"] == other.rows and chosen["columns"] == other.columns
    spacings = ("spacing_row_mm", "spacing_col_mm")
    return bool(
        is_parallel and same_matrix and all(np.isclose(chosen[s], getattr(other, s), rtol=0.01) for s in spacings)
    )


def _cut_overlap(kept: pd.DataFrame, interleaved: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(files, those of one half that lie where the half with more slices has its own, with their reason).

    Args:
        interleaved: studies of two series that take turns along the head.
    """
    is_covered = np.zeros(len(kept), bool)
    studies = kept[SERIES].drop_duplicates()["study_id"]
    studies = studies[~studies.isin(interleaved)]
    for _, study in kept[kept["study_id"].isin(studies[studies.duplicated()])].groupby("study_id"):
        is_main = study["series_id"] == study["series_id"].value_counts().index[0]
        low, high = study["position_mm"][is_main].min(), study["position_mm"][is_main].max()
        inside = ~is_main & study["position_mm"].between(low, high)
        is_covered[kept.index.get_indexer(study.index[inside])] = True
    return kept[~is_covered].reset_index(drop=True), kept[is_covered].assign(reason=COVERED)


def _find_series(study: pd.DataFrame, study_id: str, wanted: str) -> int:
    """The row of the candidate with that name or series_id."""
    found = study.index[(study["series"] == wanted) | (study["series_id"] == wanted)]
    if len(found) != 1:
        names = ", ".join(sorted(study["series"]))
        count = "no series" if not len(found) else f"{len(found)} series, name one by its series_id,"
        raise DataError(f'series override: study {study_id} has {count} "{wanted}". It has: {names}.')
    return int(found[0])


def _slab_numbers(positions_mm: np.ndarray) -> np.ndarray:
    """(N,) slab of each slice of one series, ascending: one slice each, or about 5 mm if the series is thin."""
    gaps = np.diff(positions_mm)
    gaps = gaps[gaps > 1e-3]
    if not len(gaps) or np.median(gaps) >= THIN_GAP_MM:
        return np.arange(len(positions_mm))
    return slab_groups(positions_mm, WANTED_GAP_MM)


def _why_dropped(row: Any, rule: SeriesRule) -> tuple[str, int]:
    """(reason, its severity); an empty reason if the series passes."""
    kind = row.kind
    if kind == CONTRAST and says_no_contrast(row.series):
        # Scanners write the contrast agent of a study into its plain series too.
        kind = ""
    reasons = [reason for reason in (why_dropped_by_name(row.series), kind) if reason]
    if reasons:
        reason = max(reasons, key=SEVERITIES.__getitem__)
        return reason, SEVERITIES[reason]
    if not row.axial:
        return "not axial", NEVER
    if row.repeats >= _DYNAMIC_REPEATS:
        return f"{DYNAMIC}: every place was scanned about {round(row.repeats)} times", SEVERITIES[DYNAMIC]
    if rule.max_coverage_mm is not None and row.coverage_mm > rule.max_coverage_mm:
        return f"covers more than {rule.max_coverage_mm:.0f} mm", SEVERITIES[OTHER_BODY_PART]
    if row.num_slices < rule.min_slices:
        return f"fewer than {rule.min_slices} slices", 0
    if row.coverage_mm < rule.min_coverage_mm:
        return f"covers less than {rule.min_coverage_mm:.0f} mm", 0
    if rule.gap_range_mm is not None and not rule.gap_range_mm[0] <= row.gap_mm < rule.gap_range_mm[1]:
        return f"spacing {'below' if row.gap_mm < rule.gap_range_mm[0] else 'not below'} {THIN_GAP_MM:g} mm", 0
    return "", -1
