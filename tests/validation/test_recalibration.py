"""Calibration against scikit-learn, by hand, and its intervals against a bootstrap that fits every sample again."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from ichkit.validation.recalibration import brier_scores, clustered_covariance, fit_logistic, measure_calibration

SETTINGS = {"num_draws": 300, "level": 0.95, "seed": 0}


def draw(num_patients=150, per_patient=6, shift=0.0, stretch=1.0, seed=0):
    """Rows whose true logit is `shift + stretch * logit(p)` plus an effect of the patient, shared by its rows."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), per_patient)
    x = rng.normal(-1, 1.5, len(patient))
    effect = rng.normal(0, 1.2, num_patients)[patient]
    y = (rng.random(len(x)) < expit(shift + stretch * x + effect)).astype(float)
    return expit(x), y, patient


def test_intercept_and_slope_are_those_of_scikit_learn_and_of_a_search():
    p, y, patient = draw(shift=0.6, stretch=0.7)
    found = measure_calibration(p, y, patient, **SETTINGS)
    other = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(p)[:, None], y)
    assert found.slope.value == pytest.approx(other.coef_[0, 0], abs=1e-5)
    # With the slope fixed at 1 the intercept is where the mean probability is the prevalence.
    assert expit(logit(p) + found.intercept.value).mean() == pytest.approx(y.mean(), abs=1e-9)
    assert found.brier.value == pytest.approx(brier_score_loss(y, p))
    assert found.scaled_brier.value == pytest.approx(1 - brier_score_loss(y, p) / y.var())
    assert (found.n, found.n_positive, found.prevalence) == (len(y), y.sum(), pytest.approx(y.mean()))


def test_intervals_follow_patients_as_a_bootstrap_that_fits_every_sample_again():
    p, y, patient = draw()
    x = logit(p)
    design = np.stack([np.ones(len(x)), x], 1)
    fit = fit_logistic(design, y, np.zeros(len(x)))
    by_patient = np.sqrt(np.diag(clustered_covariance(fit, patient)))
    rng = np.random.default_rng(1)
    again = []
    for _ in range(300):
        rows = (rng.integers(0, 150, 150)[:, None] * 6 + np.arange(6)).ravel()
        again.append(fit_logistic(design[rows], y[rows], np.zeros(len(rows))).coefficients)
    np.testing.assert_allclose(by_patient, np.std(again, axis=0), rtol=0.2)
    as_if_independent = np.sqrt(np.diag(np.linalg.inv(fit.information)))
    assert by_patient[0] > 1.2 * as_if_independent[0]


@pytest.mark.parametrize("num_patients", [2, 5])
def test_the_covariance_of_few_patients_is_the_sandwich_of_their_summed_scores(num_patients):
    """With the factor G / (G - 1) of Liang & Zeger's estimator as Stata and R's sandwich have it."""
    p, y, patient = draw(num_patients, per_patient=40, seed=4)
    design = np.stack([np.ones(len(p)), logit(p)], 1)
    fit = fit_logistic(design, y, np.zeros(len(p)))
    scores = (y - expit(design @ fit.coefficients))[:, None] * design
    of_patients = [scores[patient == number].sum(0) for number in range(num_patients)]
    bread = np.linalg.inv((design.T * (expit(design @ fit.coefficients) * expit(-design @ fit.coefficients))) @ design)
    meat = sum(np.outer(score, score) for score in of_patients) * num_patients / (num_patients - 1)
    np.testing.assert_allclose(clustered_covariance(fit, patient), bread @ meat @ bread, rtol=1e-5)


def test_one_patient_has_no_covariance():
    p, y, patient = draw(1, per_patient=40, seed=4)
    fit = fit_logistic(np.stack([np.ones(len(p)), logit(p)], 1), y, np.zeros(len(p)))
    assert np.isnan(clustered_covariance(fit, patient)).all()


def test_true_probabilities_lie_inside_the_intervals_and_distorted_ones_outside():
    p, y, patient = draw(num_patients=600, seed=2)
    y = (np.random.default_rng(3).random(len(p)) < p).astype(float)
    true = measure_calibration(p, y, patient, **SETTINGS)
    assert true.intercept.low < 0 < true.intercept.high
    assert true.slope.low < 1 < true.slope.high
    extreme = measure_calibration(expit(2 * logit(p)), y, patient, **SETTINGS)
    assert extreme.slope.value == pytest.approx(true.slope.value / 2, rel=1e-6)
    assert extreme.slope.high < 1
    raised = measure_calibration(expit(logit(p) + 1), y, patient, **SETTINGS)
    assert raised.intercept.value == pytest.approx(true.intercept.value - 1, abs=1e-6)
    assert raised.intercept.high < 0
    assert raised.brier.value > true.brier.value


def test_the_prevalence_for_everyone_has_a_scaled_brier_score_of_0_and_unknown_labels_do_not_count():
    y = np.array([0.0, 1, 0, 0, 1, np.nan])
    found = measure_calibration(np.array([0.4] * 5 + [0.9]), y, np.arange(6), **SETTINGS)
    assert found.scaled_brier.value == pytest.approx(0, abs=1e-12)
    assert found.brier.value == pytest.approx(0.24)
    assert found.n == 5
    brier, scaled = brier_scores(np.array([[1.0, 0, 4], [0, 0, 0]]))
    assert brier.tolist()[0] == 0.25
    assert np.isnan([brier[1], *scaled]).all()


@pytest.mark.parametrize("y", [[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], ids=["separated", "one class", "reversed"])
def test_separated_classes_have_no_slope(y):
    p = np.array([0.1, 0.2, 0.8, 0.9])
    found = measure_calibration(p, np.array(y, float), np.arange(4), **SETTINGS)
    assert np.isnan([found.slope.value, found.slope.low, found.slope.high]).all()
    assert np.isfinite(found.brier.value)


def test_one_patient_has_values_and_no_intervals_and_no_rows_have_neither():
    p, y, _ = draw()
    found = measure_calibration(p, y, np.zeros(len(p)), **SETTINGS)
    assert np.isfinite([found.slope.value, found.brier.value]).all()
    assert np.isnan([found.slope.low, found.brier.low]).all()
    assert np.isnan(measure_calibration(p, np.full(len(p), np.nan), p, **SETTINGS).brier.value)
