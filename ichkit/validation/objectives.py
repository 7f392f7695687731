"""What a search over settings optimises: a value of the validation scores of each epoch, or the out-of-fold score."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.errors import ContractError

VALIDATION, OUT_OF_FOLD = "validation", "out-of-fold"
_PREFIX = "validation_"
_LOSS, _AUC = "weighted_log_loss", "mean_auc"
_FIRST = _REST = 0.5
"""Weights w1 and w2 of `first-plus-mean` and `first-plus-minimum`; the paper gives none."""


@dataclass(frozen=True)
class Objective:
    """A row of `OBJECTIVES`.

    Attributes:
        name: key in the table.
        of: VALIDATION, the scores of the validation patients after each epoch (`train.validation`), which belong to the
            training part of each fold; or OUT_OF_FOLD, the score of the held-out patients.
        metric: the score: "weighted_log_loss" or "mean_auc".
        reduce: the scores of E epochs, (E,) float64, and the index of the epoch whose weights are kept, to one value;
            not called for OUT_OF_FOLD, which has one score.
        is_higher_better: the highest value is the best.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    of: str
    metric: str
    reduce: Callable[[np.ndarray, int], float]
    is_higher_better: bool
    description: str
    source: str

    @property
    def column(self) -> str:
        """The column of `history.csv` that it reads."""
        return f"{_PREFIX}{self.metric}"

    def turn(self, value: float) -> float:
        """The value so that lower is better."""
        return -value if self.is_higher_better else value


def measure_history(objective: Objective, history: pd.DataFrame, kept_epoch: int) -> float:
    """The value of an objective for one trained fold; NaN if a score that it needs is not defined.

    Only the epochs of the last phase count: earlier phases have their own labels and weights.

    Args:
        objective: of VALIDATION.
        history: the rows of `history.csv`: phase, epoch (from 1) and `validation_...`.
        kept_epoch: the epoch whose weights are used for inference.

    Raises:
        ContractError: the fold was trained without validation patients.

    Example:
        >>> history = pd.DataFrame({"phase": 1, "epoch": [1, 2, 3], "validation_weighted_log_loss": [0.6, 0.2, 0.4]})
        >>> measure_history(OBJECTIVES["first-plus-mean"], history, kept_epoch=3)
        0.5
    """
    if objective.column not in history:
        raise ContractError(
            f"objective {objective.name}: expected a column {objective.column} in history.csv, found none: the fold "
            "was trained without validation patients. Set train.validation.share, e.g. to 0.15."
        )
    own = history[history["phase"] == history["phase"].max()]
    scores = own[objective.column].to_numpy(np.float64)
    return float(objective.reduce(scores, int(np.flatnonzero(own["epoch"] == kept_epoch)[0])))


def _kept(scores: np.ndarray, kept: int) -> float:
    return float(scores[kept])


def _lowest(scores: np.ndarray, _kept: int) -> float:
    return float(scores.min())


def _highest(scores: np.ndarray, _kept: int) -> float:
    return float(scores.max())


def _first_plus_mean(scores: np.ndarray, _kept: int) -> float:
    return float(_FIRST * scores[0] + _REST * scores.mean())


def _first_plus_minimum(scores: np.ndarray, _kept: int) -> float:
    return float(_FIRST * scores[0] + _REST * scores.min())


OBJECTIVES = {
    "loss": Objective(
        name="loss",
        of=VALIDATION,
        metric=_LOSS,
        reduce=_kept,
        is_higher_better=False,
        description="Weighted log loss of the validation patients by the weights that are kept.",
        source="chosen here: it is the score of the competition, and the same for every training loss",
    ),
    "best-loss": Objective(
        name="best-loss",
        of=VALIDATION,
        metric=_LOSS,
        reduce=_lowest,
        is_higher_better=False,
        description="The lowest weighted log loss of the validation patients of any epoch.",
        source="the usual choice with early stopping; use it with train.validation.keep: best",
    ),
    "first-plus-mean": Objective(
        name="first-plus-mean",
        of=VALIDATION,
        metric=_LOSS,
        reduce=_first_plus_mean,
        is_higher_better=False,
        description="Half the validation loss after the first epoch plus half its mean over all epochs.",
        source="Jung and Whangbo 2020, equation 2; its weights are not given, equal ones are chosen here",
    ),
    "first-plus-minimum": Objective(
        name="first-plus-minimum",
        of=VALIDATION,
        metric=_LOSS,
        reduce=_first_plus_minimum,
        is_higher_better=False,
        description="Half the validation loss after the first epoch plus half its minimum over all epochs.",
        source="Jung and Whangbo 2020, the text beside equation 2, which differs from it",
    ),
    "auc": Objective(
        name="auc",
        of=VALIDATION,
        metric=_AUC,
        reduce=_kept,
        is_higher_better=True,
        description="Mean AUC of the classes on the validation patients by the weights that are kept.",
        source="chosen here",
    ),
    "best-auc": Objective(
        name="best-auc",
        of=VALIDATION,
        metric=_AUC,
        reduce=_highest,
        is_higher_better=True,
        description="The highest mean AUC of the classes on the validation patients of any epoch.",
        source="Zhang et al. 2021: training stops early on the validation AUC",
    ),
    "oof-loss": Objective(
        name="oof-loss",
        of=OUT_OF_FOLD,
        metric=_LOSS,
        reduce=_kept,
        is_higher_better=False,
        description="Weighted log loss of the held-out patients; the score of the chosen trial is then optimistic.",
        source="what a leaderboard shows; the optimism of the choice is measured as in ichkit evaluate",
    ),
}
