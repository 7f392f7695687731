"""Leakage-free inner splits: second-stage models are tuned on patients that their training part holds out.

The held patients of an inner split are those of other first-stage folds, wherever there are several. The network of
each fold has its own calibration and its own mistakes, and the fold to predict comes from a network that the training
part does not know. Inner patients dealt at random share their networks with those that were learnt from, so that
corrections of one network's habits looked like gains.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ichkit.core.seeding import make_generator
from ichkit.core.tasks import Task
from ichkit.stacking.calibration import Calibration, fit_calibration, no_calibration
from ichkit.stacking.choice import MIN_PATIENTS, choose_shares, count_support
from ichkit.stacking.rows import Rows
from ichkit.validation.folds import deal_patients
from ichkit.validation.scope import label_array

MAX_INNER_ROWS = 60_000
"""Maximum number of rows for choices; of more, patients are sampled.

Source: chosen here: at 60,000 slices a difference of 0.3 % in loss exceeds one standard error by patient, and the
search takes a fraction of the time of the final fit on all rows.
"""


@dataclass(frozen=True)
class Split:
    """One inner split of a training part.

    Attributes:
        fitting: (F,) ascending row numbers to fit on.
        held: (H,) ascending row numbers to predict, of other patients.
        calibration: of the base; fit and shares use `fitting` only.
    """

    fitting: np.ndarray
    held: np.ndarray
    calibration: Calibration


@dataclass(frozen=True)
class Training:
    """The training part of one second-stage model: rows of the other folds and their labels.

    Attributes:
        rows: n rows of whole studies.
        labels: (n, C) float64 of 0 and 1, NaN where unknown.
        numbers: (n,) int64, the positions of its rows among all rows of the stack.
        patients: (n,) int64, equal for rows of one patient.
        parts: (n,) int64, the inner part of each row; -1 for rows that are not used for choices.
        calibration: of the base, fitted on all n rows.
        inner_calibrations: for each inner part, fitted and shrunk on the other parts.
        support: (C,) int64, patients of the rarer label among the inner patients; classes below `MIN_PATIENTS` keep
            their base.
    """

    rows: Rows
    labels: np.ndarray
    numbers: np.ndarray
    patients: np.ndarray
    parts: np.ndarray
    calibration: Calibration
    inner_calibrations: tuple[Calibration, ...]
    support: np.ndarray

    @property
    def is_supported(self) -> np.ndarray:
        """(C,) bool: classes with enough inner patients; the others keep their base."""
        return self.support >= MIN_PATIENTS

    def splits(self) -> Iterator[Split]:
        """One split per inner part; their held rows together are `chosen_rows`, each once."""
        for part, calibration in enumerate(self.inner_calibrations):
            others = (self.parts >= 0) & (self.parts != part)
            yield Split(np.flatnonzero(others), np.flatnonzero(self.parts == part), calibration)

    def chosen_rows(self) -> np.ndarray:
        """Ascending row numbers of all inner parts: the rows that presets and blend weights are chosen on."""
        return np.flatnonzero(self.parts >= 0)

    def base_logits(self) -> np.ndarray:
        """(n, C) float64 calibrated base, in sample: the starting point of the final fit."""
        return self.calibration.apply(self.rows.combined_logits())

    def inner_base_logits(self) -> np.ndarray:
        """(n, C) float64 base, calibrated on the other inner parts; NaN for rows that are not used for choices."""
        mean = self.rows.combined_logits()
        logits = np.full(mean.shape, np.nan)
        for split in self.splits():
            logits[split.held] = split.calibration.apply(mean[split.held])
        return logits

    def calibrate(self, logits: np.ndarray) -> tuple[Calibration, np.ndarray]:
        """The calibration of a stacker, and its cross-fitted logits of inner patients.

        Args:
            logits: (R, C) of its inner models for `chosen_rows`.

        Returns:
            The calibration fitted on all these rows, shrunk by class by a cross-fit, and the (R, C) float64 logits with
            each inner part calibrated on the others.
        """
        rows, num_parts = self.chosen_rows(), len(self.inner_calibrations)
        parts = self.parts[rows]
        whole, *inner = _calibrate(logits, self.labels[rows], self.patients[rows], parts, num_parts)
        calibrated = np.empty(logits.shape, np.float64)
        for part, calibration in enumerate(inner):
            calibrated[parts == part] = calibration.apply(logits[parts == part])
        return whole, calibrated

    def without_embeddings(self) -> "Training":
        """The same training part without embeddings."""
        return replace(self, rows=self.rows.without_embeddings())

    def choose_shares(self, corrections: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
        """(C,) float64: the share per class of (n, C) inner corrections to `before`, default the base."""
        rows, base = self.chosen_rows(), self.inner_base_logits() if before is None else before
        return choose_shares(base[rows], corrections[rows], self.labels[rows], self.patients[rows])


def make_training_part(
    rows: Rows, slices: pd.DataFrame, task: Task, num_inner: int, seed: int, *, calibrate: bool = True
) -> Training:
    """The training part of these rows, with inner parts by patient and the base calibrated.

    Args:
        slices: (n rows, in the order of `rows`) patient_id, study_id, fold and the labels; no row of the fold to
            predict. Its index says where the rows stand among all.
        num_inner: most inner parts. The folds of the first stage are the parts, or are spread over them if they are
            more; of a single fold the patients are dealt, at least one to a part.
        calibrate: False leaves the base as it is.

    Raises:
        FoldError: fewer than two patients.
    """
    labels = label_array(slices, task)
    patients, names = pd.factorize(slices.patient_id, sort=True)
    chosen = _draw_patients(patients, len(names), seed)
    parts = np.full(len(rows), -1)
    taking_part = chosen[patients]
    parts[taking_part] = _deal_parts(slices[taking_part], num_inner, task, seed)
    num_inner = int(parts.max()) + 1
    calibrations = [no_calibration(task.num_classes)] * (num_inner + 1)
    if calibrate:
        calibrations = _calibrate(rows.combined_logits(), labels, patients, parts, num_inner)
    return Training(
        rows=rows,
        labels=labels,
        numbers=slices.index.to_numpy(np.int64),
        patients=patients.astype(np.int64),
        parts=parts,
        calibration=calibrations[0],
        inner_calibrations=tuple(calibrations[1:]),
        support=np.array([count_support(column[taking_part], patients[taking_part]) for column in labels.T]),
    )


def _deal_parts(slices: pd.DataFrame, num_inner: int, task: Task, seed: int) -> np.ndarray:
    """(n,) int64 inner part of every row: by first-stage fold, or by patient if there is only one fold."""
    folds, numbers = np.unique(slices.fold.to_numpy(np.int64), return_inverse=True)
    if len(folds) > 1:
        by_fold: np.ndarray = numbers % num_inner
        return by_fold
    num_parts = max(2, min(num_inner, slices.patient_id.nunique()))
    return deal_patients(slices, num_parts, task.classes, seed)


def _calibrate(
    logits: np.ndarray, labels: np.ndarray, patients: np.ndarray, parts: np.ndarray, num_inner: int
) -> list[Calibration]:
    """The calibration on all rows, then one per inner part, each shrunk by its gain on held-out patients.

    A calibrated base must not get worse by fitting noise, so classes whose calibration has no significant gain on
    held-out patients keep their logits. The shares are cross-fitted like the fit itself: those of an inner part are
    chosen on the other parts, by fits that leave them out in turn.
    """
    whole = fit_calibration(logits, labels).shrink(_choose_shares(logits, labels, patients, parts))
    calibrations = [whole]
    for part in range(num_inner):
        others = (parts >= 0) & (parts != part)
        # With two parts one remains, which is split once more.
        dealt = np.where(others, parts if num_inner > 2 else patients % 2, -1)
        fit = fit_calibration(logits[others], labels[others])
        calibrations.append(fit.shrink(_choose_shares(logits, labels, patients, dealt)))
    return calibrations


def _choose_shares(logits: np.ndarray, labels: np.ndarray, patients: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """(C,) shares of a calibration, chosen on held-out patients: each part calibrated by a fit on the others.

    Args:
        parts: (n,) int64; rows at -1 are not used.
    """
    corrections, chosen = np.zeros(logits.shape), parts >= 0
    for part in np.unique(parts[chosen]):
        held, fitting = parts == part, chosen & (parts != part)
        if fitting.any():
            fit = fit_calibration(logits[fitting], labels[fitting])
            corrections[held] = fit.apply(logits[held]) - logits[held]
    return choose_shares(logits[chosen], corrections[chosen], labels[chosen], patients[chosen])


def _draw_patients(patients: np.ndarray, num_patients: int, seed: int) -> np.ndarray:
    """(P,) bool: all patients, or a random sample of them with at most `MAX_INNER_ROWS` rows."""
    num_rows = np.bincount(patients, minlength=num_patients)
    order = make_generator(seed, "inner patients").permutation(num_patients)
    chosen = np.zeros(num_patients, bool)
    chosen[order[np.cumsum(num_rows[order]) <= MAX_INNER_ROWS]] = True
    chosen[order[:2]] = True
    return chosen
