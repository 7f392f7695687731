"""Adversarial validation: how well a classifier tells two data sets apart, by patients that it was not fitted on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ichkit.core.seeding import derive_seed, make_generator
from ichkit.validation.intervals import interval_of
from ichkit.validation.metrics import roc_auc
from ichkit.validation.resampling import Ranking, resample, score_once

FEWEST_PATIENTS = 10
"""Patients that each of two sets needs; with fewer, nothing is measured."""
_NUM_ROUNDS = 30
_ENOUGH = 5  # permutations that reach the AUC, after which no more are tried
_BOOSTING: dict[str, object] = {
    "objective": "binary",
    "num_leaves": 4,
    "learning_rate": 0.1,
    "min_data_in_leaf": 5,
    "min_data_in_bin": 1,
    "min_data_per_group": 5,
    "max_cat_to_onehot": 64,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}


@dataclass(frozen=True)
class Sets:
    """The studies of two data sets.

    Attributes:
        values: (N, F) float64 features, NaN where unknown; a category is its number.
        is_other: (N,) bool, true for the second set.
        patients: (N,) ids; the studies of a patient are in one fold, whichever set they are in.
        categories: the columns of `values` that are categories.
    """

    values: np.ndarray
    is_other: np.ndarray
    patients: np.ndarray
    categories: tuple[int, ...] = ()

    @property
    def num_patients(self) -> tuple[int, int]:
        """Patients of the first set and of the second."""
        first, other = (len(np.unique(self.patients[self.is_other == side])) for side in (False, True))
        return first, other

    def column(self, number: int) -> "Sets":
        """The same studies with one feature."""
        own = (0,) if number in self.categories else ()
        return Sets(self.values[:, [number]], self.is_other, self.patients, own)


@dataclass(frozen=True)
class Difference:
    """How well two sets are told apart.

    Attributes:
        value, low, high: AUC of the held-out studies, 0.5 if they are not told apart, with its interval; NaN if a set
            has fewer than `FEWEST_PATIENTS` patients.
        p_value: the share of permutations with the same AUC or a higher one, at least 1 / (permutations + 1).
        num_left_out: bootstrap samples without both sets.
        ranks: (N,) rank of the score of each study, in (0, 1); near 1 is most like the second set.
    """

    value: float
    low: float
    high: float
    p_value: float
    num_left_out: int
    ranks: np.ndarray


Fit = Callable[[Sets, np.ndarray, np.ndarray, int], np.ndarray]
"""(sets, (N,) bool of the rows to fit, (M,) numbers of the rows to score, seed) to (M,) scores."""


def boost(sets: Sets, is_fitted: np.ndarray, held: np.ndarray, seed: int) -> np.ndarray:
    """(M,) scores by LightGBM with trees of four leaves: limits, categories and unknown values, in any unit.

    Both sets have the same weight, so that their sizes change nothing.
    """
    import lightgbm

    labels = sets.is_other[is_fitted]
    data = lightgbm.Dataset(
        sets.values[is_fitted],
        label=labels.astype(np.float64),
        weight=np.where(labels, 0.5 / max(labels.mean(), 1e-9), 0.5 / max(1 - labels.mean(), 1e-9)),
        categorical_feature=list(sets.categories),
    )
    booster = lightgbm.train({**_BOOSTING, "seed": seed}, data, _NUM_ROUNDS)
    # Without a split the score is the mean logit, 0 but for float32 weights, whose rounding would order the folds.
    return np.round(np.asarray(booster.predict(sets.values[held], raw_score=True), np.float64), 6)


def regress(sets: Sets, is_fitted: np.ndarray, held: np.ndarray, seed: int) -> np.ndarray:
    """(M,) scores by logistic regression with a strong L2 penalty, for many columns that shift together."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=1e-2, class_weight="balanced", max_iter=1000, random_state=seed % 2**32)
    model = make_pipeline(StandardScaler(), regression).fit(sets.values[is_fitted], sets.is_other[is_fitted])
    return np.asarray(model.decision_function(sets.values[held]), np.float64)


def tell_apart(
    sets: Sets, fit: Fit, *, num_folds: int, num_draws: int, num_permutations: int, level: float, seed: int
) -> Difference:
    """The cross-validated AUC of a classifier that tells the second set from the first.

    Every study is scored by the model of its fold, which weighs both sets alike, so that scores are comparable.
    The interval resamples patients with the models as they are: of equal sets, the AUC varies half as much again from
    sample to sample, because the models vary too. The p-value counts that: the patients are dealt to the two sets at
    random and everything is fitted again. It stops early once it is far from small (Besag & Clifford, Biometrika 78,
    1991).

    Args:
        fit: `boost` or `regress`.
        num_draws: number of bootstrap samples.
        num_permutations: at most; 0 gives no p-value.
        level: confidence level, e.g. 0.95.

    Source: adversarial validation as used in competitions; Lopez-Paz & Oquab, "Revisiting Classifier Two-Sample
        Tests", ICLR 2017.
    """
    if min(sets.num_patients) < FEWEST_PATIENTS:
        return Difference(*(np.nan,) * 4, 0, np.full(len(sets.values), np.nan))
    ranks = _rank(_cross_fit(sets, fit, num_folds, seed))
    _, owner = np.unique(sets.patients, return_inverse=True)
    ranking = Ranking.of(ranks, sets.is_other.astype(np.float64), owner, np.argsort(-ranks, kind="stable"))
    nothing = np.zeros((owner.max() + 1, 0))
    value = float(score_once(nothing, [ranking]).roc_auc[0, 0])
    drawn = resample(nothing, [ranking], num_draws=num_draws, seed=derive_seed(seed, "adversarial bootstrap"))
    interval = interval_of(drawn.roc_auc[:, 0], level)
    p_value = _permute(sets, fit, num_folds, value, num_permutations, seed)
    return Difference(value, interval.low, interval.high, p_value, interval.num_left_out, ranks)


def shuffle_sets(sets: Sets, rng: np.random.Generator) -> Sets:
    """The studies with patients dealt to the sets at random: as many to each; one who is in both may change sides."""
    names, owner = np.unique(sets.patients, return_inverse=True)
    in_other = np.bincount(owner, sets.is_other, len(names)) / np.bincount(owner, minlength=len(names))
    is_swapped = rng.random(len(names)) < 0.5
    is_single = (in_other == 0) | (in_other == 1)
    dealt = in_other.copy()
    dealt[is_single] = rng.permutation(in_other[is_single])
    is_other = np.where(is_single[owner], dealt[owner] == 1, sets.is_other ^ is_swapped[owner])
    return Sets(sets.values, is_other, sets.patients, sets.categories)


def reduce_columns(values: np.ndarray, num_columns: int) -> np.ndarray:
    """(N, E) first principal components of (N, F) values, of both sets together, without knowing which is which."""
    left, sizes, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    reduced: np.ndarray = left[:, :num_columns] * sizes[:num_columns]
    return reduced


def deal_folds(sets: Sets, num_folds: int, seed: int) -> np.ndarray:
    """(N,) int64 folds: the studies of a patient share one, and each has nearly as many patients of each set.

    Args:
        num_folds: at most as many as the smaller set has patients.

    Source: chosen here in place of scikit-learn's StratifiedGroupKFold, which tries every fold for every patient and
        would take longer than the models of all permutations.
    """
    names, owner = np.unique(sets.patients, return_inverse=True)
    in_other = np.bincount(owner, sets.is_other, len(names)) / np.bincount(owner, minlength=len(names))
    order = make_generator(seed, "deal").permutation(len(names))
    order = order[np.argsort(in_other[order], kind="stable")]  # those of the first set, of both, of the second
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % min(num_folds, *sets.num_patients)
    return fold[owner]


def measure_alone(sets: Sets, *, num_folds: int, seed: int) -> np.ndarray:
    """(F,) AUC of each feature alone, cross-validated like the whole; NaN with too few patients.

    Each alone and not by permutation, because features that differ together (slice gap and number of slices) would
    replace each other, and none would be named.
    """
    columns = [sets.column(number) for number in range(sets.values.shape[1])]
    asked = {"num_folds": num_folds, "num_draws": 1, "num_permutations": 0, "seed": seed}
    return np.array([tell_apart(one, boost, level=0.95, **asked).value for one in columns])


def _cross_fit(sets: Sets, fit: Fit, num_folds: int, seed: int) -> np.ndarray:
    """(N,) score of each study by the model of its fold."""
    scores = np.zeros(len(sets.values))
    folds = deal_folds(sets, num_folds, derive_seed(seed, "adversarial folds"))
    for fold in np.unique(folds):
        held = np.flatnonzero(folds == fold)
        scores[held] = fit(sets, folds != fold, held, derive_seed(seed, "adversarial", int(fold)) % 2**31)
    return scores


def _permute(sets: Sets, fit: Fit, num_folds: int, value: float, num_permutations: int, seed: int) -> float:
    """The p-value of an AUC; NaN without permutations."""
    num_reached = 0
    for number in range(1, num_permutations + 1):
        own = derive_seed(seed, "adversarial permutation", number)
        shuffled = shuffle_sets(sets, make_generator(own, "sets"))
        num_reached += roc_auc(shuffled.is_other, _cross_fit(shuffled, fit, num_folds, own)) >= value
        if num_reached == _ENOUGH:
            return num_reached / number
    return (num_reached + 1) / (num_permutations + 1) if num_permutations else np.nan


def _rank(scores: np.ndarray) -> np.ndarray:
    """(N,) ranks in (0, 1), equal for equal scores."""
    from scipy.stats import rankdata

    ranks: np.ndarray = (rankdata(scores) - 0.5) / max(len(scores), 1)
    return ranks
