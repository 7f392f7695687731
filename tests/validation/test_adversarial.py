"""Adversarial validation: halves of one set are not told apart, a shifted set is, and no patient is on both sides."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ichkit.validation.adversarial import (
    FEWEST_PATIENTS,
    Sets,
    boost,
    deal_folds,
    measure_alone,
    regress,
    shuffle_sets,
    tell_apart,
)

ASKED = {"num_folds": 5, "num_draws": 256, "num_permutations": 0, "level": 0.95, "seed": 3}


def make_sets(shift, *, num=60, seed=0):
    """Two studies a patient; feature 2 of the second set is higher by `shift` deviations."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(4 * num, 5)) + np.repeat(rng.normal(size=(2 * num, 5)), 2, axis=0)
    is_other = np.arange(4 * num) >= 2 * num
    values[is_other, 2] += shift
    return Sets(values, is_other, np.repeat(np.arange(2 * num).astype(str), 2))


@pytest.mark.parametrize("fit", [boost, regress])
def test_halves_of_one_set_are_not_told_apart_and_a_shifted_half_is(fit):
    asked = {**ASKED, "num_permutations": 19}
    same = tell_apart(make_sets(0), fit, **asked)
    assert same.low < 0.5 < same.high
    assert same.p_value > 0.1
    other = tell_apart(make_sets(6), fit, **asked)
    assert other.low > 0.9
    assert other.p_value == 1 / 20


def test_the_shifted_feature_is_the_one_that_tells_the_sets_apart_alone():
    values = measure_alone(make_sets(6), num_folds=5, seed=0)
    assert values.argmax() == 2
    assert values[2] > 0.9
    assert np.abs(np.delete(values, 2) - 0.5).max() < 0.2


def test_other_spread_unordered_categories_and_unknown_values_are_found_too():
    rng = np.random.default_rng(1)
    is_other = np.arange(200) >= 100
    spread = rng.normal(size=200) * np.where(is_other, 6, 1)
    category = np.where(is_other, rng.choice([1, 4, 6], 200), rng.choice([0, 3, 5, 7], 200)).astype(float)
    known = np.where(is_other & (rng.random(200) < 0.9), np.nan, 1.0)
    values = np.column_stack([spread, category, known, rng.normal(size=200)])
    found = measure_alone(Sets(values, is_other, np.arange(200), (1,)), num_folds=5, seed=0)
    assert (found[:3] > 0.8).all()
    assert found[3] < 0.65


def test_no_patient_is_in_two_folds_not_even_one_that_is_in_both_sets():
    sets = make_sets(0)
    both = Sets(sets.values, np.arange(240) % 2 == 1, sets.patients)  # one study of each patient in each set
    for one in (sets, both):
        folds = deal_folds(one, 5, seed=0)
        assert set(folds) == set(range(5))
        assert max(len(set(folds[one.patients == patient])) for patient in set(one.patients)) == 1
        shares = [one.is_other[folds == fold].mean() for fold in range(5)]
        assert np.ptp(shares) < 0.1


def test_a_classifier_that_knows_the_patients_tells_halves_of_one_set_apart_only_if_folds_ignore_patients():
    """The canary of the test above: features that identify patients are no use on patients that are held out."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(120), 4)
    values = np.repeat(rng.normal(size=(120, 8)), 4, axis=0)
    is_other = np.repeat(rng.permutation(120) < 60, 4)
    honest = tell_apart(Sets(values, is_other, patients), boost, **ASKED)
    leaky = tell_apart(Sets(values, is_other, np.arange(480)), boost, **ASKED)
    assert honest.low < 0.5 < honest.high
    assert leaky.low > 0.6


def test_the_same_call_gives_the_same_numbers_and_the_auc_is_that_of_the_ranks():
    sets = make_sets(1)
    first, again = (tell_apart(sets, boost, **ASKED) for _ in range(2))
    assert (first.value, first.low, first.high) == (again.value, again.low, again.high)
    np.testing.assert_array_equal(first.ranks, again.ranks)
    assert first.value == pytest.approx(roc_auc_score(sets.is_other, first.ranks))
    assert first.low < first.value < first.high
    assert tell_apart(sets, boost, **{**ASKED, "seed": 4}).value != first.value


def test_sets_of_few_patients_are_not_compared_and_constant_features_tell_nothing():
    few = make_sets(6, num=FEWEST_PATIENTS - 1)
    found = tell_apart(few, boost, **ASKED)
    assert np.isnan([found.value, found.low, found.high, found.p_value, *found.ranks]).all()
    assert np.isnan(measure_alone(few, num_folds=5, seed=0)).all()
    sets = make_sets(0, num=FEWEST_PATIENTS)
    flat = Sets(np.ones((len(sets.values), 1)), sets.is_other, sets.patients)
    assert tell_apart(flat, boost, **ASKED).value == 0.5
    uneven = Sets(np.ones((61, 1)), np.arange(61) >= 43, np.arange(61))
    assert tell_apart(uneven, boost, **ASKED).value == 0.5


def test_sets_of_other_sizes_are_not_told_apart_by_their_sizes():
    kept = np.r_[0:120, 120:150]
    values = []
    for seed in range(12):
        sets = make_sets(0, seed=seed)
        uneven = Sets(sets.values[kept], sets.is_other[kept], sets.patients[kept])
        assert uneven.num_patients == (60, 15)
        values.append(tell_apart(uneven, boost, **{**ASKED, "num_draws": 1}).value)
    # A single one may be far off, on either side; an error that grows with the difference in size would move the mean.
    assert np.mean(values) == pytest.approx(0.5, abs=0.07)


def centre(sets, is_fitted, held, _seed):
    """A classifier that takes no time: along the line through the centres of both sets."""
    values, labels = sets.values[is_fitted], sets.is_other[is_fitted]
    return sets.values[held] @ (values[labels].mean(0) - values[~labels].mean(0))


def test_the_p_value_of_equal_sets_is_small_as_rarely_as_it_says():
    values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sets = Sets(rng.normal(size=(60, 4)), np.arange(60) >= 35, np.arange(60))
        values.append(tell_apart(sets, centre, **{**ASKED, "num_permutations": 19, "num_draws": 1}).p_value)
    assert (np.array(values) <= 0.1).sum() <= 9  # of 40 expected 4; 10 or more happen once in 200 such tests
    assert max(values) > 0.5


def test_shuffled_sets_keep_patients_together_and_both_sizes():
    sets = make_sets(0)
    both = sets.is_other.copy()
    both[:4] = [True, False, False, True]
    for one in (sets, Sets(sets.values, both, sets.patients)):
        shuffled = shuffle_sets(one, np.random.default_rng(0))
        assert shuffled.is_other.sum() == one.is_other.sum()
        assert 60 < (shuffled.is_other != one.is_other).sum() < 180
        for patient in np.unique(one.patients):
            own = one.patients == patient
            assert len(set(shuffled.is_other[own])) == len(set(one.is_other[own]))
