"""Thresholds against a search over every candidate, and that a fold's own labels never choose its threshold."""

import itertools

import numpy as np
import pytest
import sklearn.metrics

from ichkit.validation import thresholds
from ichkit.validation.thresholds import (
    F1_AIM,
    YOUDEN_AIM,
    choose_thresholds,
    decide,
    f1_score,
    sensitivity,
    specificity,
)

EVERYBODY = -1


def draw(num_rows: int, digits: int, unknown: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 2) probabilities and labels and the part (0, 1 or 2) of each row."""
    rng = np.random.default_rng(seed)
    y = (rng.random((num_rows, 2)) < [0.1, 0.5]).astype(float)
    p = np.round(np.clip(0.35 * y + 0.6 * rng.random(y.shape), 0, 1), digits)
    y[rng.random(y.shape) < unknown] = np.nan
    return p, y, rng.integers(0, 3, num_rows)


def choose(p: np.ndarray, y: np.ndarray, part: np.ndarray, parts: list[int]) -> dict[int, dict[str, np.ndarray]]:
    order = np.argsort(-p, axis=0, kind="stable").T
    return choose_thresholds(p, y, order, part, parts)


def search(p: np.ndarray, y: np.ndarray, worth) -> float:
    """The highest of the candidates that are worth most, every one tried."""
    known = ~np.isnan(y)
    p, y = p[known], y[known]
    candidates = np.unique(p)[::-1]
    values = [round(worth(y, p >= candidate), 12) for candidate in candidates]
    return candidates[int(np.argmax(values))]


def f1(y: np.ndarray, yes: np.ndarray) -> float:
    return 2 * (y * yes).sum() / (y.sum() + yes.sum())


def youden(y: np.ndarray, yes: np.ndarray) -> float:
    return y[yes].sum() / y.sum() - (1 - y)[yes].sum() / (1 - y).sum()


def test_the_thresholds_of_every_order_of_ten_labels_are_those_of_a_full_search():
    p = np.linspace(0.95, 0.05, 10)[:, None].repeat(2, axis=1)
    everybody = np.zeros(10, int)
    for labels in itertools.product((0.0, 1.0), repeat=10):
        y = np.array(labels)[:, None].repeat(2, axis=1)
        if 0 < y[:, 0].sum() < 10:
            chosen = choose(p, y, everybody, [EVERYBODY])[EVERYBODY]
            for aim, worth in ((F1_AIM, f1), (YOUDEN_AIM, youden)):
                assert chosen[aim][0] == search(p[:, 0], y[:, 0], worth), (aim, labels)


@pytest.mark.parametrize("digits", [1, 2, 12])
@pytest.mark.parametrize("unknown", [0.0, 0.2], ids=["labelled", "partly labelled"])
def test_each_part_gets_the_thresholds_a_full_search_finds_on_the_others(digits, unknown):
    p, y, part = draw(120, digits, unknown)
    chosen = choose(p, y, part, [0, 1, 2, EVERYBODY])
    for number in (0, 1, 2, EVERYBODY):
        others = part != number
        for c in range(2):
            assert chosen[number][F1_AIM][c] == search(p[others, c], y[others, c], f1)
            assert chosen[number][YOUDEN_AIM][c] == search(p[others, c], y[others, c], youden)


def test_turning_every_label_of_a_part_round_leaves_its_thresholds_and_changes_those_of_the_others():
    p, y, part = draw(300, 6)
    before = choose(p, y, part, [0, 1, 2])
    turned = np.where((part == 1)[:, None], 1 - y, y)
    after = choose(p, turned, part, [0, 1, 2])
    for aim in (F1_AIM, YOUDEN_AIM):
        np.testing.assert_array_equal(after[1][aim], before[1][aim])
        assert not np.array_equal(after[0][aim], before[0][aim])


def test_thresholds_without_positives_or_negatives_elsewhere_are_nan_and_decide_nothing():
    p, y, part = draw(60, 6)
    y[part != 2, 0] = 0
    chosen = choose(p, y, part, [0, 1, 2])
    assert np.isnan(chosen[2][F1_AIM][0])
    assert np.isnan(chosen[2][YOUDEN_AIM][0])
    assert np.isfinite([chosen[k][F1_AIM][1] for k in range(3)]).all()
    decisions = decide(p, {number: of[F1_AIM] for number, of in chosen.items()}, part)
    assert decisions.is_defined.tolist() == [False, True]


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_thresholds_need_both_labels_elsewhere(label):
    p, y, part = draw(60, 6)
    y[part != 2] = label
    chosen = choose(p, y, part, [2])[2]
    assert np.isnan([chosen[F1_AIM], chosen[YOUDEN_AIM]]).all()


def test_a_row_is_a_yes_at_the_threshold_of_its_own_part():
    p = np.array([[0.3], [0.3], [0.7], [0.7]])
    decisions = decide(p, {0: np.array([0.3]), 1: np.array([0.5])}, np.array([0, 1, 0, 1]))
    assert decisions.is_yes[:, 0].tolist() == [True, False, True, True]


def test_rates_are_those_of_scikit_learn_and_nan_without_what_they_count():
    rng = np.random.default_rng(0)
    y, yes = rng.random(200) < 0.3, rng.random(200) < 0.4
    counts = np.array([(yes & y).sum(), (yes & ~y).sum(), y.sum(), (~y).sum()], float)
    assert f1_score(counts) == pytest.approx(sklearn.metrics.f1_score(y, yes), abs=1e-12)
    assert sensitivity(counts) == pytest.approx(sklearn.metrics.recall_score(y, yes), abs=1e-12)
    assert specificity(counts) == pytest.approx(sklearn.metrics.recall_score(~y, ~yes), abs=1e-12)
    nobody = np.array([[0, 3, 0, 9], [2, 0, 4, 0.0], [np.nan] * 4])
    assert np.isnan(f1_score(nobody)).tolist() == [True, False, True]
    assert np.isnan(sensitivity(nobody)).tolist() == [True, False, True]
    assert np.isnan(specificity(nobody)).tolist() == [False, True, True]


def test_one_positive_or_one_negative_is_enough_for_its_share_and_none_is_not():
    one = np.zeros(4)
    one[[thresholds.POSITIVE, thresholds.NEGATIVE, thresholds.TRUE_POSITIVE]] = 1
    assert (thresholds.sensitivity(one), thresholds.specificity(one)) == (1, 1)
    assert np.isnan([thresholds.sensitivity(np.zeros(4)), thresholds.specificity(np.zeros(4))]).all()
