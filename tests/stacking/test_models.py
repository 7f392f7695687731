"""The parts of a second stage, each against a plain twin or a law: trees, calibration, choice, blend."""

import lightgbm
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from ichkit.core.errors import ArtifactError
from ichkit.core.logits import to_logits, to_probabilities
from ichkit.stacking.blend import fit_blend
from ichkit.stacking.calibration import MIN_SLOPE, Calibration, fit_calibration
from ichkit.stacking.choice import MIN_PATIENTS, choose_share, count_support, standard_error_of_sum, trust
from ichkit.stacking.rows import log_losses_of_logits
from ichkit.stacking.trees import read_trees


def grow_booster(num_rows=600, num_features=12, num_rounds=40, missing=0.2, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_rows, num_features)).astype(np.float32)
    features[:, ::2][rng.random(features[:, ::2].shape) < missing] = np.nan
    labels = (np.nan_to_num(features[:, 0]) + features[:, 1] * features[:, 3] > 0.3).astype(float)
    settings = {"objective": "binary", "num_leaves": 9, "min_data_in_leaf": 5, "verbosity": -1, "num_threads": 1}
    dataset = lightgbm.Dataset(features, labels, init_score=rng.normal(size=num_rows))
    return lightgbm.train(settings, dataset, num_rounds), features


def test_trees_read_from_text_sum_to_what_lightgbm_predicts():
    booster, features = grow_booster()
    trees = read_trees(booster.model_to_string(), "here")
    assert trees.num_trees == 40
    np.testing.assert_allclose(trees.predict(features), booster.predict(features, raw_score=True), rtol=0, atol=1e-12)
    few = booster.predict(features, raw_score=True, num_iteration=7)
    np.testing.assert_allclose(trees.predict(features, 7), few, rtol=0, atol=1e-12)


def test_missing_values_where_training_had_none_go_where_lightgbm_sends_them():
    booster, features = grow_booster(missing=0.0)
    holed = features.copy()
    holed[::3, 0], holed[::5, 1] = np.nan, np.nan
    trees = read_trees(booster.model_to_string(), "here")
    np.testing.assert_allclose(trees.predict(holed), booster.predict(holed, raw_score=True), rtol=0, atol=1e-12)


def test_a_booster_that_found_no_split_adds_nothing():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 4)).astype(np.float32)
    dataset = lightgbm.Dataset(features, (rng.random(30) < 0.5).astype(float), init_score=np.zeros(30))
    settings = {"objective": "binary", "min_data_in_leaf": 1000, "verbosity": -1, "num_threads": 1}
    stump = lightgbm.train(settings, dataset, 3)
    assert not read_trees(stump.model_to_string(), "here").predict(features).any()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "with its end"),
        (lambda text: text.replace("version=v4", "version=v9"), 'found version "v9"'),
        (lambda text: text.replace("decision_type=", "decision_type=1 ", 1), "numeric splits"),
    ],
)
def test_text_that_is_not_a_whole_numeric_booster_is_refused(spoil, words):
    booster, _ = grow_booster(num_rounds=2)
    with pytest.raises(ArtifactError, match=words):
        read_trees(spoil(booster.model_to_string()), "here")


def miscalibrated(num_rows=4000, slope=0.5, intercept=-1.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_rows, 1)) * 3
    labels = (rng.random((num_rows, 1)) < to_probabilities(slope * logits + intercept)).astype(float)
    return logits, labels


def test_calibration_finds_slope_and_intercept_as_a_plain_logistic_regression_does():
    logits, labels = miscalibrated()
    found = fit_calibration(logits, labels)
    plain = LogisticRegression(C=1e9, tol=1e-10).fit(logits, labels[:, 0])
    assert found.slope[0] == pytest.approx(plain.coef_[0, 0], abs=0.01)
    assert found.intercept[0] == pytest.approx(plain.intercept_[0], abs=0.01)


def test_calibration_is_the_minimum_of_the_penalised_loss():
    logits, labels = miscalibrated(num_rows=60, seed=3)

    def penalised(theta):
        losses = log_losses_of_logits(theta[0] * logits + theta[1], labels)
        return losses.sum() + ((theta[0] - 1) / 0.5) ** 2 / 2 + theta[1] ** 2 / 2

    slow = minimize(penalised, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    found = fit_calibration(logits, labels)
    np.testing.assert_allclose([found.slope[0], found.intercept[0]], slow, atol=1e-5)


@pytest.mark.parametrize("positives", [0, 1, 2])
def test_calibration_stays_near_the_base_where_positives_are_few(positives):
    logits = np.random.default_rng(1).normal(size=(300, 1)) - 4
    labels = np.zeros((300, 1))
    labels[np.argsort(logits[:, 0])[:positives]] = 1.0  # at the lowest logits: the data alone would turn the slope
    found = fit_calibration(logits, labels)
    assert MIN_SLOPE <= found.slope[0] < 2
    assert abs(found.intercept[0]) < 4


def test_a_base_that_orders_the_wrong_way_is_flattened_and_not_turned_round():
    logits = np.linspace(-3, 3, 2000)[:, None]
    found = fit_calibration(logits, (logits < 0).astype(float))
    assert found.slope[0] == MIN_SLOPE


def test_a_calibration_shrunk_to_nothing_leaves_the_logits_as_they_are():
    calibration = Calibration(np.array([2.0, 0.5]), np.array([1.0, -1.0]))
    logits = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_array_equal(calibration.shrink(np.zeros(2)).apply(logits), logits)
    np.testing.assert_array_equal(calibration.shrink(np.ones(2)).apply(logits), calibration.apply(logits))


def test_logits_and_probabilities_are_inverse_at_both_ends():
    p = np.array([1e-6, 0.3, 1 - 1e-6])
    np.testing.assert_allclose(to_probabilities(to_logits(p)), p, rtol=1e-12)
    assert to_probabilities(np.array([-800.0, 800.0])).tolist() == [0.0, 1.0]


def test_the_error_of_a_sum_counts_patients_not_slices():
    values, patients = np.random.default_rng(0).normal(size=50), np.arange(50)
    by_slice = standard_error_of_sum(values, patients)
    assert standard_error_of_sum(np.repeat(values, 9), np.repeat(patients, 9)) == pytest.approx(9 * by_slice)
    draws = np.random.default_rng(1).choice(values, (20000, 50)).sum(axis=1)
    assert by_slice == pytest.approx(draws.std(), rel=0.03)


def test_the_error_of_a_sum_knows_the_patients_there_are_and_nothing_of_one_alone():
    # Totals 2 and 8: variance 18, two patients.
    assert standard_error_of_sum(np.array([1.0, 1.0, 8.0]), np.array([0, 0, 1])) == pytest.approx(6)
    assert standard_error_of_sum(np.array([1.0, 1.0, 8.0]), np.array([3, 3, 7])) == pytest.approx(6)
    assert standard_error_of_sum(np.array([1.0, 8.0]), np.array([4, 4])) == np.inf
    assert trust(np.array([1.0, 8.0]), np.array([4, 4]), 5) == 0.0


def test_trust_is_nothing_within_one_error_and_grows_with_the_gain():
    noise, patients = np.random.default_rng(0).normal(size=100), np.arange(100)
    noise -= noise.mean()
    levels = [trust(noise + gain, patients, 50) for gain in (-1.0, 0.0, 0.05, 0.2, 1.0)]
    assert levels[:3] == [0.0, 0.0, 0.0]
    assert 0 < levels[3] < levels[4] < 1


def test_trust_is_worked_out_by_hand_and_falls_with_the_patients_of_the_rarer_label():
    # Totals 0, 2, 0, 2, ...: mean 1, variance 64 / 63; the sum of 64 is 64 with an error of sqrt(64 * 64 / 63).
    gains, patients = np.tile([0.0, 2.0], 32), np.arange(64)
    error = 64 / np.sqrt(63)
    for support, quantile in ((2, 6.313752), (6, 2.015048), (31, 1.697261)):
        assert trust(gains, patients, support) == pytest.approx(1 - (quantile * error / 64) ** 2, abs=1e-6)
    # Four patients: a sum of 4 with an error of sqrt(16 / 3) is 1.73 errors: clear of 1.697 and not of 2.015.
    assert trust(gains[:4], patients[:4], 31) == pytest.approx(1 - (1.697261**2 * 16 / 3) / 16, abs=1e-6)
    assert trust(gains[:4], patients[:4], 6) == 0.0


def test_support_counts_patients_of_the_rarer_label_and_not_their_slices():
    patients = np.repeat(np.arange(10), 5)
    labels = (np.arange(50) % 5 == 0) & (patients < 3)
    assert count_support(labels.astype(float), patients) == 3
    assert count_support(1.0 - labels, patients) == 3
    assert count_support(np.zeros(50), patients) == 0


def test_a_class_keeps_its_base_where_too_few_patients_speak_for_it():
    patients = np.arange(200) // 5
    for num_positive, expected in ((MIN_PATIENTS - 1, 0.0), (MIN_PATIENTS, 1.0)):
        labels = (patients < num_positive).astype(float)
        share = choose_share(np.zeros(200), 8 * labels - 4, labels, patients)
        assert share == expected


def test_a_correction_of_noise_is_left_out_and_a_true_one_kept():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=2000)
    labels = (rng.random(2000) < to_probabilities(truth)).astype(float)
    patients = np.arange(2000) // 20
    base = truth + rng.normal(size=2000) * 2
    assert choose_share(base, truth - base, labels, patients) > 0.9
    assert choose_share(truth, base - truth, labels, patients) == 0.0


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_of_quarters_of_a_correction_the_one_of_least_loss_is_taken(share):
    # Three of four labels are those of the sign, so the logit of least loss is log 3; each patient gains the same.
    signs = np.tile([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0], 20)
    labels, patients = np.tile([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], 20), np.repeat(np.arange(20), 8)
    correction = signs * np.log(3) / share
    assert choose_share(np.zeros(160), correction, labels, patients) == pytest.approx(share, abs=1e-12)


def make_members(seed=0, num_rows=3000):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=num_rows) * 2
    labels = (rng.random(num_rows) < to_probabilities(truth)).astype(float)[:, None]
    members = np.stack([truth + rng.normal(size=num_rows) * noise for noise in (1.0, 1.2, 3.0)])[:, :, None]
    return members, labels


def test_blend_weights_are_convex_and_the_best_on_a_fine_grid():
    members, labels = make_members()
    blend = fit_blend(members, labels, ("a", "b", "c"))
    assert blend.weights.min() >= 0
    assert blend.weights.sum(axis=0) == pytest.approx(1, abs=1e-12)
    grid = [(i / 50, j / 50, 1 - (i + j) / 50) for i in range(51) for j in range(51 - i)]
    best = min(log_losses_of_logits(np.array(weights) @ members[:, :, 0], labels[:, 0]).mean() for weights in grid)
    assert log_losses_of_logits(blend.apply(members), labels).mean() <= best + 1e-9


def test_a_blend_takes_its_best_member_where_mixing_gains_too_little():
    members, labels = make_members()
    assert (fit_blend(members, labels, ("a", "b", "c"), tolerance=0.0).weights[:, 0] > 0).sum() > 1
    assert fit_blend(members, labels, ("a", "b", "c"), tolerance=0.9).weights[:, 0].tolist() == [1, 0, 0]


def test_equal_members_blend_to_the_first_of_them():
    members, labels = make_members()
    same = np.stack([members[0]] * 3)
    assert fit_blend(same, labels, ("base", "a", "b")).weights[:, 0].tolist() == [1, 0, 0]
