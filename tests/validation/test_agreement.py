"""Fleiss' kappa against a published example and its definition by pairs, and readers against the others."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from ichkit.validation.agreement import fleiss_kappa, judge_readers, measure_kappa, wilson_interval

# Fourteen raters, ten subjects, five categories: the worked example of "Fleiss' kappa" in Wikipedia, kappa 0.210.
EXAMPLE = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)
ASKED = {"num_draws": 500, "level": 0.95, "seed": 0}


def kappa_by_pairs(ratings):
    """1 minus the share of disagreeing pairs of raters over that of any two of all ratings, with replacement."""
    within = [a != b for row in ratings for a, b in itertools.permutations(row, 2)]
    flat = np.ravel(ratings)
    return 1 - np.mean(within) / np.mean(flat[:, None] != flat[None])


def test_the_published_example_has_its_kappa():
    assert fleiss_kappa(EXAMPLE) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize("num_raters", [2, 3, 6])
def test_kappa_is_its_definition_over_pairs_of_ratings(num_raters):
    ratings = np.random.default_rng(num_raters).integers(0, 3, (40, num_raters))
    ratings[:20] = ratings[:20, :1]
    counts = np.stack([(ratings == k).sum(1) for k in range(3)], 1)
    assert fleiss_kappa(counts) == pytest.approx(kappa_by_pairs(ratings), abs=1e-12)


def test_perfect_agreement_is_one_and_one_category_alone_undefined():
    assert fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1
    assert np.isnan(fleiss_kappa(np.array([[3, 0], [3, 0]])))


def test_the_interval_is_as_wide_as_kappas_of_new_studies_spread():
    rng = np.random.default_rng(1)

    def draw():
        truth = rng.random(150) < 0.3
        return (truth[:, None] ^ (rng.random((150, 3)) < 0.1)).astype(float)

    spread = np.quantile(
        [measure_kappa(draw(), num_draws=2, level=0.95, seed=0).value for _ in range(400)], [0.025, 0.975]
    )
    widths = [measure_kappa(draw(), **ASKED) for _ in range(20)]
    assert np.mean([one.high - one.low for one in widths]) == pytest.approx(np.diff(spread)[0], rel=0.15)


def test_a_study_without_a_read_is_left_out_and_positives_are_those_of_the_majority():
    votes = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [np.nan, 1, 1]])
    found = measure_kappa(votes, **ASKED)
    assert (found.n, found.n_positive) == (4, 2)
    assert found.value == pytest.approx(kappa_by_pairs(votes[:4]))


def test_a_reader_is_judged_by_the_others_where_they_agree():
    votes = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0]], float)
    first, second, third = judge_readers(votes, 0.95)
    assert (first.sensitivity.value, first.specificity.value) == (1 / 2, 2 / 3)
    assert (first.sensitivity.n, first.sensitivity.n_positive) == (5, 2)
    # The others of the second reader agree on the first, third of them differing on three studies.
    assert (second.sensitivity.n, second.sensitivity.n_positive) == (3, 1)
    assert third.reader == 3


def test_a_reader_who_decides_by_chance_stands_on_the_diagonal():
    rng = np.random.default_rng(2)
    truth = rng.random(4000) < 0.3
    votes = np.stack([rng.random(4000) < 0.4, truth, truth], 1).astype(float)
    first = next(judge_readers(votes, 0.95))
    assert first.sensitivity.value == pytest.approx(0.4, abs=0.04)
    assert 1 - first.specificity.value == pytest.approx(0.4, abs=0.03)
    assert first.sensitivity.low < first.sensitivity.value < first.sensitivity.high


@pytest.mark.parametrize(("hits", "num"), [(0, 5), (5, 5), (3, 17), (200, 201)])
def test_the_interval_of_a_share_is_that_of_scipy(hits, num):
    expected = binomtest(hits, num).proportion_ci(0.9, method="wilson")
    assert wilson_interval(hits, num, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert np.isnan(wilson_interval(0, 0, 0.9)).all()
