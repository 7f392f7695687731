"""`predict --labels`: the statistics of predictions against a label file, as `evaluate` has them for external sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import DataError
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import Task
from ichkit.imaging.parts import whole_id
from ichkit.show.table import NOTHING, Cell, Table, format_interval, format_number
from ichkit.sources.labels import check_matches
from ichkit.stages.predict.errors import list_errors
from ichkit.stages.predict.thresholds import SLICE, STUDY, Thresholds, as_array
from ichkit.stages.scores.tables import SMALL_GROUP, subgroup_cell
from ichkit.validation.intervals import interval_of
from ichkit.validation.operating import (
    OPERATING_POINTS,
    PointCounts,
    choose_operating_points,
    count_at_given,
)
from ichkit.validation.recalibration import Calibration, Estimate, measure_calibration
from ichkit.validation.scope import label_array
from ichkit.validation.scores import (
    ALL_CLASSES,
    AVERAGE_PRECISION,
    CALIBRATION_ERROR,
    CURVE_DTYPES,
    LOG_LOSS,
    POOLED,
    ROC_AUC,
    SCORE_DTYPES,
    WEIGHTED_LOG_LOSS,
    score_rows,
)
from ichkit.validation.subgroups import ALL, find_subgroups, own_partitions
from ichkit.validation.tallies import ScoredRows
from ichkit.validation.thresholds import (
    FALSE_POSITIVE,
    NEGATIVE,
    POSITIVE,
    RATES,
    TRUE_POSITIVE,
)

TRAINING, HERE = "training", "these scans"
_DATASET = "predicted"
_Found = dict[tuple[str, str, str], Mapping[Any, Any]]
_BY_LEVEL = {
    SLICE: (WEIGHTED_LOG_LOSS, LOG_LOSS, ROC_AUC, AVERAGE_PRECISION, CALIBRATION_ERROR),
    STUDY: (LOG_LOSS, ROC_AUC, AVERAGE_PRECISION, CALIBRATION_ERROR),
}
_SHOWN = {"log loss": (LOG_LOSS, 4), "AUC": (ROC_AUC, 3), "AP": (AVERAGE_PRECISION, 3), "ECE": (CALIBRATION_ERROR, 4)}
_POINT_COLUMNS = ["level", "class", "point", "chosen_on", "threshold", "tp", "fp", "fn", "tn"]
_SCORES_NOTE = "Intervals resample patients. A study has the probability of `studies.csv`."
_POINTS_NOTE = (
    "Thresholds chosen on the training data (out of fold) are the model's; those chosen on these scans are optimistic, "
    "because they were chosen and judged on the same rows. Intervals resample patients, thresholds fixed."
)
_CALIBRATION_NOTE = (
    "Slope below 1: probabilities are too extreme. Intercept below 0: they are too high. A model is calibrated for the "
    "prevalence of its training data."
)


@dataclass(frozen=True)
class LabelFile:
    """The labels of `predict --labels`.

    Attributes:
        path: for messages.
        labels: the id column and a column per class.
        key: "slice_id" or "study_id".
        groups: the id column and the subgroup columns; None without any.
    """

    path: Path
    labels: pd.DataFrame
    key: str
    groups: pd.DataFrame | None = None


@dataclass(frozen=True)
class Judged:
    """Predictions against labels.

    Attributes:
        scores: columns of `SCORE_DTYPES` without source and fold.
        reliability: columns of `CURVE_DTYPES` without source.
        operating: a row for each level, class, operating point and the rows its threshold was chosen on.
        calibration: level to class to its calibration.
        errors: every false negative and false positive, columns of `ERROR_DTYPES`.
    """

    scores: pd.DataFrame
    reliability: pd.DataFrame
    operating: pd.DataFrame
    calibration: dict[str, dict[str, Calibration]]
    errors: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """What is written, by name."""
        tables = {"scores": self.scores, "reliability": self.reliability, "operating": self.operating}
        return tables | {"errors": self.errors}


def check_labels(file: LabelFile, files: pd.DataFrame, index: pd.DataFrame) -> None:
    """Checks before anything is predicted that the labels are of these scans.

    Args:
        files: the slices that are predicted, with slice_id and study_id.
        index: all readable slices found, with slice_uid and study_uid.

    Raises:
        DataError: more than half of the labels have no scan, or no predicted one has a label.
    """
    uids, taken = index["slice_uid" if file.key == "slice_id" else "study_uid"], files[file.key]
    labels = file.labels.assign(**{file.key: file.labels[file.key].map(whole_id)})
    check_matches(file.path, labels, file.key, pd.concat([uids, taken]), taken)  # a NIfTI file has its name as UID
    if not taken.isin(labels[file.key]).any():
        raise DataError(
            f"{file.path}: none of its ids is in a series that was chosen. Choose the series with --series-override."
        )


def judge(
    slices: pd.DataFrame,
    studies: pd.DataFrame,
    patients: Mapping[str, str],
    file: LabelFile,
    task: Task,
    config: Config,
    thresholds: Thresholds,
) -> Judged:
    """The statistics of predictions against labels, by slice where the labels are, and by study.

    Args:
        slices, studies: the tables of `predict`.
        patients: study_id to patient, whose rows are resampled together.
        thresholds: of the model; empty without any.
    """
    scores, curves, points, errors = [], [], [], []
    calibration: dict[str, dict[str, Calibration]] = {}
    settings, seed = config.evaluate, derive_seed(config.seed, "predict labels")
    for rows, ids in _rows_of(slices, studies, patients, file, task):
        level = str(rows.place["level"])
        groups = {ALL: np.ones(len(rows.labels), bool), **_groups_of(file, ids)}
        for name, is_inside in groups.items():
            scored = score_rows(
                rows.take(is_inside, subgroup=name),
                task,
                _BY_LEVEL[level] if name == ALL else (LOG_LOSS, ROC_AUC),
                num_draws=settings.num_draws,
                level=settings.level,
                num_bins=settings.num_bins,
                seed=seed,
            )
            scores += scored.rows
            curves += scored.curve
        own = choose_operating_points(rows, np.zeros(len(rows.labels), np.int64), [POOLED])[POOLED]
        given = {name: as_array(thresholds.get(level, {}).get(name, {}), task) for name in OPERATING_POINTS}
        for chosen_on, of in ((TRAINING, given), (HERE, own)):
            if chosen_on == TRAINING and not thresholds:
                continue
            counts = count_at_given(rows, of, num_draws=settings.num_draws, seed=seed)
            points += [
                _describe_point(level, label, name, chosen_on, float(of[name][c]), counts[name], c, settings.level)
                for name in OPERATING_POINTS
                for c, label in enumerate(task.classes)
            ]
        errors.append(list_errors(rows, ids, task, thresholds))
        calibration[level] = {
            label: measure_calibration(
                rows.probabilities[:, c],
                rows.labels[:, c],
                rows.members,
                num_draws=settings.num_draws,
                level=settings.level,
                seed=seed,
            )
            for c, label in enumerate(task.classes)
        }
    left_out = ("source", "fold")
    score_columns = [name for name in SCORE_DTYPES if name not in left_out]
    curve_columns = [name for name in CURVE_DTYPES if name not in left_out]
    rates = [f"{name.lower()}{end}" for name in RATES for end in ("", "_low", "_high")]
    return Judged(
        pd.DataFrame(scores, columns=score_columns),
        pd.DataFrame(curves, columns=curve_columns),
        pd.DataFrame(points, columns=[*_POINT_COLUMNS, *rates]),
        calibration,
        pd.concat(errors, ignore_index=True),
    )


def render(judged: Judged, task: Task) -> list[Table]:
    """The tables of the terminal and the page: scores, operating points of the headline class, calibration."""
    made = []
    for level, of_classes in judged.calibration.items():
        rows = [row for row in judged.scores.to_dict("records") if row["level"] == level]
        found: _Found = {(row["subgroup"], row["metric"], row["class"]): row for row in rows}
        made.append(_scores_table(found, level, task))
        if len({row["subgroup"] for row in rows}) > 1:
            made.append(_groups_table(found, level, task))
        made.append(_points_table(judged.operating, level, task))
        made.append(_calibration_table(of_classes, level))
    return made


def _rows_of(
    slices: pd.DataFrame, studies: pd.DataFrame, patients: Mapping[str, str], file: LabelFile, task: Task
) -> list[tuple[ScoredRows, pd.DataFrame]]:
    """The rows of each level with their ids: slices where the labels are per slice, then studies."""
    made = []
    of_studies = file.labels
    if file.key == "slice_id":
        both = slices.merge(file.labels, on="slice_id", how="inner")
        made.append((_make_rows(both, SLICE, patients, task), both[["slice_id", "study_id"]]))
        of_studies = _highest(both, task)
    both = studies.merge(of_studies, on="study_id", how="inner")
    made.append((_make_rows(both, STUDY, patients, task), both[["study_id"]]))
    return made


def _make_rows(table: pd.DataFrame, level: str, patients: Mapping[str, str], task: Task) -> ScoredRows:
    place: dict[str, str | int] = {"dataset": _DATASET, "split": "external", "level": level}
    place |= {"aggregation": "none" if level == SLICE else "as predicted", "subgroup": ALL, "fold": POOLED}
    members = table["study_id"].map(lambda name: patients.get(whole_id(name), name)).to_numpy()
    probabilities = table[task.probability_columns].to_numpy(np.float64)
    labels = np.where(np.isnan(probabilities), np.nan, label_array(table, task))  # of classes that are predicted
    return ScoredRows(place, probabilities, labels, members)


def _highest(both: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The label of each study: 1 if a slice is positive, else missing if one is unknown, else 0."""
    names = list(task.classes)
    numbers = both[["study_id"]].assign(**{name: both[name].astype("Float64") for name in names})
    grouped = numbers.groupby("study_id", sort=True)
    highest, is_whole = grouped[names].max(), grouped[names].count().eq(grouped.size(), axis=0)
    return highest.where(is_whole | (highest == 1).fillna(False)).reset_index()


def _groups_of(file: LabelFile, ids: pd.DataFrame) -> dict[str, np.ndarray]:
    if file.groups is None:
        return {}
    key = file.key
    groups = file.groups
    if key not in ids:  # labels per slice, rows are studies: no group of a slice is that of a study
        return {}
    groups = groups.rename(columns={key: "study_id"}).assign(dataset=_DATASET)
    table = pd.DataFrame({"dataset": _DATASET, "study_id": ids[key].map(whole_id).to_numpy()})
    return find_subgroups(table, own_partitions(groups.drop_duplicates("study_id")))


def _describe_point(
    level: str, label: str, name: str, chosen_on: str, threshold: float, counted: PointCounts, c: int, confidence: float
) -> dict[str, object]:
    counts = counted.counts[c]
    described: dict[str, object] = {"level": level, "class": label, "point": name, "chosen_on": chosen_on}
    described |= {"threshold": threshold, "tp": counts[TRUE_POSITIVE], "fp": counts[FALSE_POSITIVE]}
    described |= {"fn": counts[POSITIVE] - counts[TRUE_POSITIVE], "tn": counts[NEGATIVE] - counts[FALSE_POSITIVE]}
    for rate, measure in RATES.items():
        value, ends = float(measure(counts)), interval_of(measure(counted.draws[:, c]), confidence)
        described |= {rate.lower(): value, f"{rate.lower()}_low": ends.low, f"{rate.lower()}_high": ends.high}
    return described


def _cell(row: Mapping[Any, Any], digits: int) -> Cell:
    return Cell(format_number(row["value"], digits), format_interval(row["low"], row["high"], digits))


def _scores_table(found: _Found, level: str, task: Task) -> Table:
    rows: list[list[Cell | str]] = []
    for label in task.classes:
        counts = found[ALL, ROC_AUC, label]
        cells = [_cell(found[ALL, metric, label], digits) for metric, digits in _SHOWN.values()]
        rows.append([label, *cells, Cell(f"{counts['n_positive']:,}", f"/ {counts['n']:,}")])
    note = _SCORES_NOTE
    if loss := found.get((ALL, WEIGHTED_LOG_LOSS, ALL_CLASSES)):
        interval = format_interval(loss["low"], loss["high"], 5)
        note = f"Weighted log loss {format_number(loss['value'], 5)} ({interval or 'no interval'}). {note}"
    return Table(f"Against the labels, by {level}", ("class", *_SHOWN, "positive"), rows, note=note)


def _groups_table(found: _Found, level: str, task: Task) -> Table:
    main = task.headline_class
    rows: list[list[Cell | str]] = []
    for name in dict.fromkeys(group for group, *_ in found if group != ALL):
        counts = found[name, ROC_AUC, main]
        shown = subgroup_cell(name, counts["n"], counts["n_positive"])
        cells = [_cell(found[name, LOG_LOSS, main], 4), _cell(counts, 3)]
        rows.append([shown, *cells, Cell(f"{counts['n_positive']:,}", f"/ {counts['n']:,}")])
    columns = ("subgroup", f"log loss {main}", f"AUC {main}", "positive")
    return Table(f"Subgroups, by {level}", columns, rows, note=SMALL_GROUP)


def _points_table(operating: pd.DataFrame, level: str, task: Task) -> Table:
    own = operating[(operating["level"] == level) & (operating["class"] == task.headline_class)]
    rows: list[list[Cell | str]] = []
    for row in own.to_dict("records"):
        counts = [format_number(row[name], 0) for name in ("tp", "fp", "fn", "tn")]
        rates = [
            Cell(
                format_number(row[name], 3),
                "" if np.isnan(row[name]) else format_interval(row[f"{name}_low"], row[f"{name}_high"], 3),
            )
            for name in map(str.lower, RATES)
        ]
        title = OPERATING_POINTS[row["point"]].title
        rows.append([title, row["chosen_on"], format_number(row["threshold"], 4), *counts, *rates])
    columns = ("threshold chosen by", "on", "threshold", "TP", "FP", "FN", "TN", *RATES)
    title = f"Decisions on {task.headline_class}, by {level}"
    return Table(title, columns, rows, note=f"{_POINTS_NOTE} All classes: operating.csv.", num_text=2)


def _calibration_table(of_classes: dict[str, Calibration], level: str) -> Table:
    rows: list[list[Cell | str]] = []
    for label, found in of_classes.items():
        estimates = ((found.brier, 4), (found.intercept, 2), (found.slope, 2))
        cells = [_estimate(one, digits) for one, digits in estimates]
        means = Cell(format_number(found.mean_probability, 4), f"observed {format_number(found.prevalence, 4)}")
        rows.append([label, *cells, means])
    columns = ("class", "Brier", "intercept", "slope", "mean probability")
    return Table(f"Calibration, by {level}", columns, rows, note=f"{_CALIBRATION_NOTE} Bins: reliability.csv.")


def _estimate(one: Estimate, digits: int) -> Cell:
    if np.isnan(one.value):
        return Cell(NOTHING)
    ends = "" if np.isnan(one.low) else f"{one.low:.{digits}f} to {one.high:.{digits}f}"
    return Cell(f"{one.value:.{digits}f}", ends)
