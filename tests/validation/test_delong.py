"""DeLong's variance and test against their definition over all pairs, and how often they are right."""

import numpy as np
import pytest
import sklearn.metrics
from scipy.stats import norm

from ichkit.validation.delong import delong_auc, delong_covariance, delong_test


def read_scores(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.split()])


# Scores of our own making, searched for so that 41 positives and 72 negatives have the published AUCs and variances.
NUM_POSITIVE, NUM_NEGATIVE = 41, 72
LIKE_WFNS = read_scores(
    "5 6 7 9 10 10 13 13 13 13 14 17 17 18 18 18 18 18 18 18 18 19 19 19 19 20 21 23 23 24 25 25 25 25 25 "
    "27 27 27 27 27 28 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 2 3 4 "
    "7 7 8 8 9 9 11 11 11 11 11 11 11 13 17 18 19 19 19 19 20 20 20 22 22 22 22 23 27 28 29 "
)
LIKE_S100B = read_scores(
    "5 0 12 3 9 3 21 7 15 12 27 12 21 20 17 29 20 23 27 21 23 27 21 21 12 29 29 25 29 20 24 27 29 29 29 "
    "29 29 29 29 29 29 10 0 10 10 8 0 0 10 10 5 5 2 20 18 3 17 17 5 10 10 8 20 24 12 4 9 18 10 20 2 11 2 "
    "9 26 18 10 6 2 11 17 15 7 8 17 11 10 29 10 8 24 12 17 17 20 24 24 18 29 29 24 16 25 9 2 11 20 29 17 "
    "18 29 25 29 "
)
LIKE_NDKA = read_scores(
    "0 0 0 0 0 1 7 7 7 10 10 11 11 12 12 12 12 13 15 18 21 21 22 23 23 24 26 26 26 26 28 28 28 28 28 28 "
    "28 28 28 29 29 0 0 0 0 0 0 0 0 2 2 2 2 2 2 3 3 3 5 6 6 6 6 6 8 8 8 8 8 9 9 9 9 10 10 10 10 10 10 13 "
    "13 14 14 14 14 14 14 15 16 16 18 18 18 18 18 18 19 25 25 25 27 27 27 27 29 29 29 29 29 29 29 29 29 "
)


def plain_covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition of DeLong 1988: every pair of a positive and a negative looked at, O(P M) for each score."""
    of_positives, of_negatives = [], []
    for row in scores:
        pairs = row[labels == 1][:, None] - row[labels == 0][None, :]
        won = np.where(pairs > 0, 1.0, np.where(pairs == 0, 0.5, 0.0))
        of_positives.append(won.mean(1))
        of_negatives.append(won.mean(0))
    auc = np.array([part.mean() for part in of_positives])
    num_scores = len(scores)
    covariance = np.empty((num_scores, num_scores))
    for i in range(num_scores):
        for j in range(num_scores):
            total = 0.0
            for parts in (of_positives, of_negatives):
                products = [(a - auc[i]) * (b - auc[j]) for a, b in zip(parts[i], parts[j], strict=True)]
                total += sum(products) / (len(products) - 1) / len(products)
            covariance[i, j] = total
    return auc, covariance


def draw(num_rows: int, digits: int, seed: int = 0, gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(num_rows) < 0.3).astype(float)
    shared = rng.standard_normal(num_rows)
    scores = [gain * y + shared + 0.5 * rng.standard_normal(num_rows) for _ in range(2)]
    return y, np.round(np.stack([*scores, rng.standard_normal(num_rows)]), digits)


@pytest.mark.parametrize("digits", [0, 1, 12], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("num_rows", [12, 150])
def test_aucs_and_their_covariance_are_the_definition_over_all_pairs(digits, num_rows):
    y, scores = draw(num_rows, digits)
    auc, covariance = delong_covariance(y, scores)
    expected_auc, expected = plain_covariance(y, scores)
    np.testing.assert_allclose(auc, expected_auc, rtol=0, atol=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(auc, [sklearn.metrics.roc_auc_score(y, row) for row in scores], atol=1e-9)


def test_interval_and_test_follow_from_the_plain_covariance():
    y, scores = draw(150, 1)
    auc, covariance = plain_covariance(y, scores)
    one = delong_auc(y, scores[0], 0.95)
    half = norm.ppf(0.975) * np.sqrt(covariance[0, 0])
    assert (one.auc, one.variance) == pytest.approx((auc[0], covariance[0, 0]), abs=1e-12)
    assert (one.low, one.high) == pytest.approx((auc[0] - half, auc[0] + half), abs=1e-9)
    test = delong_test(y, scores[0], scores[2], 0.95)
    variance = covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2]
    assert (test.auc, test.other_auc) == pytest.approx((auc[0], auc[2]), abs=1e-12)
    assert (test.difference, test.variance) == pytest.approx((auc[0] - auc[2], variance), abs=1e-12)
    z = (auc[0] - auc[2]) / np.sqrt(variance)
    assert test.p_value == pytest.approx(2 * norm.cdf(-abs(z)), abs=1e-9)
    half = norm.ppf(0.975) * np.sqrt(variance)
    assert (test.low, test.high) == pytest.approx((test.difference - half, test.difference + half), abs=1e-9)
    assert delong_test(y, scores[2], scores[0], 0.95).difference == -test.difference
    assert delong_test(y, np.exp(scores[0]), 3 * scores[2] - 1, 0.95) == test


def test_variances_statistic_and_p_value_are_those_that_proc_publishes():
    # pROC's documentation, aSAH: var(wfns), var(s100b), var(ndka) by DeLong; roc.test of wfns and s100b.
    labels = np.repeat([1.0, 0.0], [NUM_POSITIVE, NUM_NEGATIVE])
    for scores, auc, variance in (
        (LIKE_WFNS, 0.8236789, 0.00146991470882363),
        (LIKE_S100B, 0.7313686, 0.00266868245717244),
        (LIKE_NDKA, 0.6119580, 0.0031908105493913),
    ):
        found = delong_auc(labels, scores, 0.95)
        assert found.auc == pytest.approx(auc, abs=5e-8)
        assert found.variance == pytest.approx(variance, rel=1e-13)
    test = delong_test(labels, LIKE_WFNS, LIKE_S100B, 0.95)
    assert test.difference / np.sqrt(test.variance) == pytest.approx(2.20898359144091, rel=1e-13)
    assert test.p_value == pytest.approx(0.0271757822291882, rel=1e-13)


def test_scores_that_order_rows_alike_do_not_differ():
    y, scores = draw(80, 12)
    test = delong_test(y, scores[0], np.exp(scores[0]), 0.95)
    assert (test.difference, test.variance, test.low, test.high, test.p_value) == (0, 0, 0, 0, 1)
    assert test.auc == test.other_auc == pytest.approx(sklearn.metrics.roc_auc_score(y, scores[0]), abs=1e-12)


@pytest.mark.parametrize(("num_positive", "num_negative"), [(0, 5), (5, 0), (1, 5), (5, 1)])
def test_too_few_rows_of_a_kind_have_no_variance(num_positive, num_negative):
    y = np.append(np.ones(num_positive), np.zeros(num_negative))
    scores = np.linspace(0, 1, len(y))
    one = delong_auc(y, scores, 0.95)
    assert np.isnan([one.variance, one.low, one.high]).all()
    assert np.isnan(one.auc) == (not num_positive or not num_negative)
    assert np.isnan(delong_test(y, scores, -scores, 0.95).p_value)


def test_an_auc_of_one_has_no_interval_that_would_call_it_certain():
    y = np.array([0, 0, 0, 1, 1, 1.0])
    one = delong_auc(y, np.arange(6.0), 0.95)
    assert (one.auc, one.variance) == (1.0, 0.0)
    assert np.isnan([one.low, one.high]).all()
    test = delong_test(y, np.arange(6.0), np.zeros(6), 0.95)
    assert test.difference == 0.5
    assert np.isnan([test.low, test.p_value]).all()


def test_an_interval_never_leaves_zero_to_one():
    y, scores = draw(40, 12, seed=3, gain=2.5)
    one = delong_auc(y, scores[0], 0.999)
    assert 0.9 < one.auc < one.high == 1.0


def test_of_equal_sources_the_test_calls_about_one_in_twenty_different():
    rejected = sum(
        delong_test(y, *scores[:2], 0.95).p_value < 0.05 for y, scores in (draw(200, 12, s) for s in range(400))
    )
    assert 8 <= rejected <= 34
