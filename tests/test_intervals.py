"""The bootstrap against a plain one that repeats rows, and what an interval must keep to."""

import numpy as np
import pytest

from ichkit.core.seeding import make_generator
from ichkit.validation.intervals import draw_scores, interval_of
from ichkit.validation.metrics import log_loss_by_class, roc_auc_by_class


def draw_rows(num_groups: int, per_group: int, digits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 3) probabilities and labels, and the group of each row; groups bleed or not as a whole, mostly."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(num_groups), per_group)
    tendency = rng.random((num_groups, 3))[group] * np.array([0.2, 0.5, 1.0])
    y = (rng.random((len(group), 3)) < tendency).astype(float)
    p = np.round(np.clip(0.4 * y + 0.5 * rng.random(y.shape), 0.01, 0.99), digits)
    order = rng.permutation(len(group))
    return p[order], y[order], group[order]


def plain_draws(p, y, group, num_draws, seed):
    """The definition: draw groups with replacement, put their rows one below the other, score the pile."""
    rng = make_generator(seed, "bootstrap")
    names = np.unique(group)
    losses, aucs = [], []
    for _ in range(num_draws):
        rows = np.concatenate([np.flatnonzero(group == names[g]) for g in rng.integers(len(names), size=len(names))])
        losses.append(log_loss_by_class(p[rows], y[rows]))
        aucs.append(roc_auc_by_class(p[rows], y[rows]))
    return np.array(losses), np.array(aucs)


@pytest.mark.parametrize("digits", [1, 12], ids=["ties", "no ties"])
@pytest.mark.parametrize("unknown", [0.0, 0.3], ids=["labelled", "partly labelled"])
def test_every_draw_scores_like_the_rows_of_its_groups_piled_up(digits, unknown):
    p, y, group = draw_rows(12, 5, digits)
    y[np.random.default_rng(9).random(y.shape) < unknown] = np.nan
    draws = draw_scores(p, y, group, num_draws=70, seed=4)
    losses, aucs = plain_draws(p, y, group, 70, 4)
    np.testing.assert_allclose(draws.log_loss, losses, atol=1e-12)
    np.testing.assert_allclose(draws.roc_auc, aucs, atol=1e-12)


def test_the_same_seed_gives_the_same_bytes_and_the_order_of_the_rows_changes_no_auc():
    p, y, group = draw_rows(20, 4, 2)
    first, again = (draw_scores(p, y, group, num_draws=50, seed=0) for _ in range(2))
    assert first.roc_auc.tobytes() == again.roc_auc.tobytes()
    assert first.log_loss.tobytes() == again.log_loss.tobytes()
    turned = draw_scores(p[::-1], y[::-1], group[::-1], num_draws=50, seed=0)
    np.testing.assert_array_equal(turned.roc_auc, first.roc_auc)
    assert not np.array_equal(draw_scores(p, y, group, num_draws=50, seed=1).roc_auc, first.roc_auc)


def test_more_draws_begin_with_the_fewer():
    p, y, group = draw_rows(10, 4, 2)
    few, many = (draw_scores(p, y, group, num_draws=count, seed=0).roc_auc for count in (33, 100))
    np.testing.assert_array_equal(many[:33], few)


def test_rows_of_one_patient_that_say_the_same_do_not_narrow_the_interval():
    """Twenty copies of each row are no more patients: resampling rows would shrink the interval by 4.5."""
    p, y, group = draw_rows(60, 1, 6)
    copied = draw_scores(np.repeat(p, 20, 0), np.repeat(y, 20, 0), np.repeat(group, 20), num_draws=400, seed=0)
    once = draw_scores(p, y, group, num_draws=400, seed=0)
    np.testing.assert_allclose(copied.roc_auc, once.roc_auc, atol=1e-12)
    np.testing.assert_allclose(copied.log_loss, once.log_loss, atol=1e-12)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    truth, hits = -np.log(0.8) * 0.8 - np.log(0.2) * 0.2, 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        y = np.repeat(rng.random((80, 1)) < 0.8, 3, 0).astype(float)
        draws = draw_scores(np.full(y.shape, 0.8), y, np.repeat(np.arange(80), 3), num_draws=200, seed=trial)
        interval = interval_of(draws.log_loss[:, 0], 0.95)
        hits += interval.low <= truth <= interval.high
    assert 0.89 <= hits / 200 <= 0.99


def test_draws_without_both_classes_are_counted_and_over_five_percent_of_them_undo_the_interval():
    values = np.linspace(0, 1, 1000)
    few, many = values.copy(), values.copy()
    few[:50], many[:51] = np.nan, np.nan
    assert interval_of(few, 0.95).num_left_out == 50
    assert np.isfinite([interval_of(few, 0.95).low, interval_of(few, 0.95).high]).all()
    assert interval_of(many, 0.95).num_left_out == 51
    assert np.isnan([interval_of(many, 0.95).low, interval_of(many, 0.95).high]).all()


def test_a_class_with_one_positive_patient_has_no_interval():
    p, y, group = draw_rows(30, 3, 6)
    y[:, 0] = group == 7
    draws = draw_scores(p, y, group, num_draws=400, seed=0)
    interval = interval_of(draws.roc_auc[:, 0], 0.95)
    assert np.isnan(interval.low)
    # A draw of 30 patients misses one of them with probability (29/30)^30 = 0.36.
    assert 0.28 < interval.num_left_out / 400 < 0.45


def test_a_wider_level_gives_a_wider_interval_around_the_same_draws():
    p, y, group = draw_rows(40, 3, 6)
    draws = draw_scores(p, y, group, num_draws=400, seed=0).roc_auc[:, 2]
    narrow, wide = interval_of(draws, 0.5), interval_of(draws, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert interval_of(draws, 0.95).low == np.quantile(draws, 0.025)
