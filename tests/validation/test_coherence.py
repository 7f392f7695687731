"""Coherent probabilities: against a general optimiser, and the laws of a projection."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from support.coherent import count_incoherent
from support.simulated import TASK

from ichkit.core.logits import to_logits, to_probabilities
from ichkit.core.tasks import Task
from ichkit.validation.coherence import make_coherent, make_logits_coherent
from ichkit.validation.metrics import weighted_log_loss
from ichkit.work.schemas import make_predictions

WEIGHTS = TASK.weight_array()
ANY, SUBTYPES = TASK.headline_index, [TASK.classes.index(name) for name in TASK.subtypes]


def divergence(r, p, weights=WEIGHTS):
    """Weighted Kullback-Leibler divergence of Bernoulli probabilities r from p."""
    return weights @ (r * np.log(r / p) + (1 - r) * np.log((1 - r) / (1 - p)))


def project_slowly(p, weights=WEIGHTS, order=tuple((ANY, c) for c in SUBTYPES)):
    """The least divergence where the first column of each pair is at least the second, by a general optimiser."""
    found = minimize(
        lambda r: divergence(r, p, weights),
        np.full(len(p), 0.5),
        jac=lambda r: weights * (to_logits(r) - to_logits(p)),
        method="SLSQP",
        bounds=[(1e-9, 1 - 1e-9)] * len(p),
        constraints=[
            {
                "type": "ineq",
                "fun": lambda r, pair=pair: r[pair[0]] - r[pair[1]],
                "jac": lambda _, pair=pair: slope(pair),
            }
            for pair in order
        ],
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert found.success, found.message
    return found.x


def slope(pair):
    gradient = np.zeros(TASK.num_classes)
    gradient[pair[0]], gradient[pair[1]] = 1.0, -1.0
    return gradient


def draw(num_rows, seed=0, spread=2.0):
    return to_probabilities(np.random.default_rng(seed).normal(size=(num_rows, TASK.num_classes)) * spread - 1)


def test_three_values_worked_out_by_hand():
    third = to_probabilities((2 * to_logits(0.2) + to_logits(0.6)) / 3)
    rows = np.array(
        [
            [0.1, 0.1, 0.1, 0.1, 0.6, 0.7],  # coherent
            [0.01, 0.01, 0.01, 0.01, 0.6, 0.2],  # one violator, weights 1 and 2
            [0.5, 0.5, 0.5, 0.5, 0.5, 0.2],  # all of them: 5 to 2
        ]
    )
    found = make_coherent(rows, TASK)
    np.testing.assert_array_equal(found[0], rows[0])
    np.testing.assert_allclose(found[1], [0.01, 0.01, 0.01, 0.01, third, third], rtol=1e-12)
    np.testing.assert_allclose(found[2], to_probabilities(2 * to_logits(0.2) / 7), rtol=1e-12)


@pytest.mark.parametrize("weights", [TASK.weights, (0.3, 0.05, 0.05, 0.2, 0.1, 0.3)])
def test_the_projection_is_the_least_divergence_that_a_general_optimiser_finds(weights):
    task = dataclasses.replace(TASK, weights=weights)
    for row in draw(60):
        expected = project_slowly(row, np.array(weights))
        found = make_coherent(row[None], task)[0]
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert divergence(found, row, np.array(weights)) <= divergence(expected, row, np.array(weights)) + 1e-9


NESTED = Task(
    name="nested",
    classes=("a", "b", "c", "d", "outer", "any"),
    weights=(0.1, 0.1, 0.2, 0.1, 0.2, 0.3),
    any_class="any",
    description="A class that covers two of those that the headline class covers.",
    source="the test",
    covers={"outer": ("a", "b"), "c": ("a",)},
)


def test_classes_that_cover_each_other_are_projected_on_together():
    order = [(5, c) for c in range(5)] + [(4, 0), (4, 1), (2, 0)]
    rows = draw(25, seed=3)
    found, weights = make_coherent(rows, NESTED), NESTED.weight_array()
    for whole, part in order:
        assert (found[:, whole] >= found[:, part]).all()
    for row, projected in zip(rows, found, strict=True):
        expected = project_slowly(row, weights, order)
        np.testing.assert_allclose(projected, expected, atol=2e-5)
    np.testing.assert_allclose(make_coherent(found, NESTED), found, atol=1e-12)


def test_a_task_in_which_no_class_covers_another_is_left_alone():
    task = Task("side", ("left", "right"), (0.5, 0.5), None, "Which side.", "the test")
    p = draw(50)[:, :2]
    np.testing.assert_array_equal(make_coherent(p, task), p)
    np.testing.assert_array_equal(make_logits_coherent(to_logits(p), task), to_logits(p))
    assert count_incoherent(p, task) == 0


def test_for_any_coherent_truth_the_expected_loss_falls_by_at_least_the_divergence():
    given = draw(2000, seed=1)
    found = make_coherent(given, TASK)
    for seed in range(5):
        truth = make_coherent(draw(2000, seed=10 + seed, spread=4.0), TASK)
        expected = [-(truth * np.log(p) + (1 - truth) * np.log1p(-p)) @ WEIGHTS for p in (given, found)]
        gained = np.array([divergence(r, p) for r, p in zip(found, given, strict=True)])
        assert (expected[0] - expected[1] >= gained - 1e-12).all()


def test_projecting_twice_is_projecting_once_to_the_last_bit():
    once = make_coherent(draw(500), TASK)
    np.testing.assert_array_equal(make_coherent(once, TASK), once)
    assert count_incoherent(once, TASK) == 0
    assert count_incoherent(draw(500), TASK) > 100


def test_logits_are_projected_as_their_probabilities_are():
    p = draw(500)
    np.testing.assert_allclose(make_logits_coherent(to_logits(p), TASK), to_logits(make_coherent(p, TASK)), atol=1e-9)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0, 30.0])
def test_a_table_is_coherent_exactly_after_clipping_and_rounding_to_float32(scale):
    p = to_probabilities(np.random.default_rng(2).normal(size=(20000, TASK.num_classes)) * scale)
    slices = pd.DataFrame({"slice_id": [f"s{i:05d}" for i in range(len(p))], "study_id": "a"})
    slices["slice_index"] = np.arange(len(p))
    table = make_predictions(slices, make_coherent(p, TASK), TASK, -1)
    values = table[TASK.probability_columns].to_numpy()
    assert values.dtype == np.float32
    assert (values[:, SUBTYPES] <= values[:, [ANY]]).all()


def test_certain_and_impossible_are_pooled_as_the_table_would_clip_them():
    row = np.array([[0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    found = make_coherent(row, TASK)
    clipped = to_probabilities((2 * to_logits(1e-6) + to_logits(1 - 1e-6)) / 3)
    np.testing.assert_allclose(found[0, [4, 5]], clipped)
    assert np.isfinite(weighted_log_loss(found, np.array([[0, 0, 0, 0, 1, 1]]), WEIGHTS))


def test_rows_do_not_depend_on_each_other():
    p = draw(300)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(make_coherent(p[order], TASK), make_coherent(p, TASK)[order])
