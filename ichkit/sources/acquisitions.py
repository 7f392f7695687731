"""Slices of a series outside its one pass over the head: localizers, other planes, repeated acquisitions."""

from collections import Counter

import numpy as np
import pandas as pd

from ichkit.imaging.dicom import ORIENTATION
from ichkit.imaging.geometry import slice_normals
from ichkit.sources.series_names import NEVER, SEVERITIES

SERIES = ["study_id", "series_id"]
REPEATED = "another acquisition of its series covers the same positions"
OTHER_ORIENTATION = "another orientation than the rest of its series"
_SAME_PLACE_MM = 0.05
"""Tables return to a position within a few hundredths of a millimetre; the thinnest slices are 0.2 mm apart."""
_SAME_ORIENTATION_DEGREES = 35.0
"""The gantry may be tilted by up to 30 degrees for the skull base alone; a reformat in another plane is at 90."""
_MIN_PASS_SLICES = 4
_MIN_SHARED = 0.5
_NEAR_GAPS = 0.75
"""A slice between two neighbours of a pass is within half a gap of one of them; in a hole of the pass it is not."""
_REGULAR = 0.1
_WIDEST_GAP_MM = 10.0
"""No head is scanned with wider gaps: a pass with fewer slices than that does not cover its range."""
_PICTURE = ["kind", "thickness_mm"]
_SCAN = [*_PICTURE, "acquisition_number"]
_Pass = tuple[str, float, int, int]
"""Kind, thickness, acquisition number, and how many slices of these come before at the same position."""


def split_strays(files: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(files, strays with their reason): localizers, captures and other orientations, unless most slices are.

    Args:
        files: study_id, series_id, kind and orientation.
    """
    never = files["kind"].map(SEVERITIES).ge(NEVER).to_numpy()
    normals = slice_normals(files[ORIENTATION].to_numpy())
    reasons = np.full(len(files), "", object)
    for rows in files.groupby(SERIES, sort=False).indices.values():
        if never[rows].mean() <= 0.5:
            reasons[rows[never[rows]]] = files["kind"].to_numpy()[rows[never[rows]]]
        left = rows[reasons[rows] == ""]
        common = normals[left] @ _common_normal(normals[left])
        reasons[left[common < np.cos(np.radians(_SAME_ORIENTATION_DEGREES))]] = OTHER_ORIENTATION
    is_stray = reasons != ""
    return files[~is_stray], files[is_stray].assign(reason=reasons[is_stray])


def split_repeats(files: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(files with one slice for each position of a series, those of other passes with their reason).

    Of the passes along at least half of the series, that with the least reason against it is used, then that with most
    slices, then the last, because a scan is repeated if the first one failed. Slices of another thickness at other
    positions of the same range are another pass, as for ITK, which separates series by thickness. A series whose slices
    all have one position has no geometry to separate passes and is kept whole. The kept files have a column `repeats`:
    how often the positions of their series were scanned.

    Args:
        files: study_id, series_id, position_mm (along one normal for a series), kind, acquisition_number,
            thickness_mm, instance_number, frame, slice_id.
    """
    keep, repeats = np.ones(len(files), bool), np.ones(len(files))
    positions = files["position_mm"].to_numpy()
    scans, pictures = (files.groupby([*SERIES, *names], sort=False).ngroup().to_numpy() for names in (_SCAN, _PICTURE))
    for rows in files.groupby(SERIES, sort=False).indices.values():
        place = _places(positions[rows])
        num_places = place.max(initial=0) + 1
        # Without repeated positions, one scan of one kind is one pass, and so are scans that alternate regularly.
        is_one = is_distinct(positions[rows]) and ((scans[rows] == scans[rows[0]]).all() or is_regular(positions[rows]))
        if num_places == 1 or is_one:
            continue
        is_kept = _is_main_pass(files.iloc[rows], place)
        keep[rows] = is_kept
        # Another reconstruction of the same scan is no further scan.
        repeats[rows] = np.isin(pictures[rows], pictures[rows][is_kept]).sum() / is_kept.sum()
    files = files.assign(repeats=repeats)
    return files[keep], files[~keep].drop(columns="repeats").assign(reason=REPEATED)


def is_distinct(positions_mm: np.ndarray) -> bool:
    """True if no place has two slices.

    Example:
        >>> is_distinct(np.array([5.0, 0.0, 0.01]))
        False
    """
    return bool((np.diff(np.sort(positions_mm)) > _SAME_PLACE_MM).all())


def is_regular(positions_mm: np.ndarray) -> bool:
    """True if the slices, in any order, are equally spaced, and no place has two.

    Example:
        >>> is_regular(np.array([10.0, 0.0, 5.0]))
        True
    """
    gaps = np.diff(np.sort(positions_mm))
    return is_distinct(positions_mm) and bool((np.abs(gaps - np.median(gaps)) <= _REGULAR * np.median(gaps)).all())


def _common_normal(normals: np.ndarray) -> np.ndarray:
    """(3,) the most frequent normal, rounded to a hundredth."""
    values, counts = np.unique(normals.round(2), axis=0, return_counts=True)
    return values[counts.argmax()] / np.linalg.norm(values[counts.argmax()]) if len(values) else np.zeros(3)


def _places(positions_mm: np.ndarray) -> np.ndarray:
    """(N,) number of the position of each slice, from the feet to the head."""
    order = np.argsort(positions_mm, kind="stable")
    steps = np.diff(positions_mm[order], prepend=positions_mm[order[:1]]) > _SAME_PLACE_MM
    places = np.empty(len(positions_mm), np.int64)
    places[order] = np.cumsum(steps)
    return places


def _is_main_pass(series: pd.DataFrame, place: np.ndarray) -> np.ndarray:
    """(N,) True for one slice at each position, of the main pass if it has one there."""
    columns = (*_SCAN, "instance_number", "frame", "slice_id")
    kinds, thicknesses, acquisitions, *order = (series[name].to_list() for name in columns)
    turn = list(zip(*order, strict=True))
    places, positions = place.tolist(), series["position_mm"].to_numpy()
    # Without acquisition numbers, the second slice at a position, by instance number, belongs to the second pass.
    passes: dict[_Pass, list[int]] = {}
    turns: Counter[tuple[str, float, int, int]] = Counter()
    for row in sorted(range(len(places)), key=lambda row: (places[row], turn[row])):
        scan = (kinds[row], thicknesses[row], acquisitions[row])
        passes.setdefault((*scan, turns[*scan, places[row]]), []).append(row)
        turns[*scan, places[row]] += 1

    def is_whole(rows: list[int]) -> bool:
        covered = np.minimum(np.diff(positions[rows]), _WIDEST_GAP_MM).sum()
        return bool(covered >= np.ptp(positions) / 2)

    def preference(name: _Pass) -> tuple[object, ...]:
        (kind, thickness, acquisition, turn), rows = name, passes[name]
        return (not is_whole(rows), SEVERITIES.get(kind, -1), -len(rows), -acquisition, -turn, kind, thickness)

    is_kept = np.zeros(len(places), bool)
    taken: set[int] = set()
    (main, rows_of_main), *_ = ordered = [(name, passes[name]) for name in sorted(passes, key=preference)]
    main_mm = positions[rows_of_main]
    near_mm = _NEAR_GAPS * np.median(np.diff(main_mm)) if len(main_mm) > 1 else 0.0
    for name, rows in ordered:
        distances = np.abs(positions[rows, None] - main_mm).min(axis=1)
        # A slightly shifted pass shares no position with the main one, but still covers the same head.
        is_shifted = (distances <= near_mm).mean() >= _MIN_SHARED
        # Two reconstructions of one scan may share a series; a few slices with another header belong to their pass.
        is_other = name[1:] != main[1:] or (name[0] != main[0] and is_whole(rows) and is_whole(rows_of_main))
        if is_other and is_shifted and min(len(rows), len(rows_of_main)) >= _MIN_PASS_SLICES:
            continue
        new = [row for row in rows if places[row] not in taken]
        is_kept[new] = True
        taken.update(places[row] for row in new)
    return is_kept
