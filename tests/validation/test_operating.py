"""Operating points against a search over every candidate, counts against scikit-learn, predictive values by hand."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from support.simulated import TASK

from ichkit.validation.operating import (
    OPERATING_POINTS,
    choose_operating_points,
    count_at_given,
    count_at_points,
    negative_predictive_value,
    positive_predictive_value,
)
from ichkit.validation.tallies import ScoredRows
from ichkit.validation.thresholds import negative_precision, precision, sensitivity, specificity

POOLED = -1
AIMED = [name for name in OPERATING_POINTS if name.startswith(("sensitivity", "specificity"))]


def draw(num_rows=300, digits=2, unknown=0.1, seed=0):
    """Rows of all classes, and the part (0, 1 or 2) of each; three rows for each patient."""
    rng = np.random.default_rng(seed)
    y = (rng.random((num_rows, TASK.num_classes)) < 0.3).astype(float)
    p = np.round(np.clip(0.35 * y + 0.65 * rng.random(y.shape), 0, 1), digits)
    y[rng.random(y.shape) < unknown] = np.nan
    patient = np.arange(num_rows) // 3
    return ScoredRows({"dataset": "d", "fold": POOLED}, p, y, patient), patient % 3


def rates(p, y, threshold):
    yes = p >= threshold
    return yes[y == 1].mean(), (~yes[y == 0]).mean()


@pytest.mark.parametrize("digits", [1, 2, 12])
@pytest.mark.parametrize("name", AIMED)
def test_a_threshold_reaches_its_share_and_no_candidate_that_does_costs_less(name, digits):
    rows, part = draw(digits=digits)
    chosen = choose_operating_points(rows, part, [0, 1, 2, POOLED])
    aim, target = name.partition("_")[0], int(name.partition("_")[2]) / 100
    for number, of_point in chosen.items():
        for c in range(TASK.num_classes):
            used = (part != number) & ~np.isnan(rows.labels[:, c])
            p, y = rows.probabilities[used, c], rows.labels[used, c]
            # Beyond the highest probability nothing is positive: the last resort of a specificity.
            candidates = np.append(np.unique(p), np.nextafter(p.max(), 2))
            reached = [t for t in candidates if rates(p, y, t)[aim == "specificity"] >= target - 1e-9]
            assert of_point[name][c] == (max(reached) if aim == "sensitivity" else min(reached))


def test_turning_every_label_of_a_part_leaves_its_thresholds_and_changes_those_of_the_others():
    rows, part = draw(digits=6)
    turned = ScoredRows(
        rows.place, rows.probabilities, np.where((part == 1)[:, None], 1 - rows.labels, rows.labels), part
    )
    before, after = (choose_operating_points(one, part, [0, 1, 2]) for one in (rows, turned))
    for name in (*AIMED, "youden"):
        np.testing.assert_array_equal(after[1][name], before[1][name])
        assert not np.array_equal(after[0][name], before[0][name])


def test_the_counts_are_the_confusion_table_of_scikit_learn_and_the_draws_those_of_drawn_patients():
    rows, part = draw()
    chosen = choose_operating_points(rows, part, [0, 1, 2])
    counted = count_at_points(rows, chosen, part, num_draws=400, seed=0)
    for name, found in counted.items():
        for c in range(TASK.num_classes):
            known = ~np.isnan(rows.labels[:, c])
            y, limits = rows.labels[known, c], np.array([chosen[k][name][c] for k in part[known]])
            (tn, fp), (fn, tp) = confusion_matrix(y, rows.probabilities[known, c] >= limits)
            assert found.counts[c].tolist() == [tp, fp, tp + fn, fp + tn]
            assert sensitivity(found.counts[c]) == pytest.approx(tp / (tp + fn))
            assert specificity(found.counts[c]) == pytest.approx(tn / (tn + fp))
            assert precision(found.counts[c]) == pytest.approx(tp / (tp + fp))
            assert negative_precision(found.counts[c]) == pytest.approx(tn / (tn + fn))
    drawn = counted["half"].draws
    assert len(drawn) == 400
    # A patient's three rows are drawn together: a third of the variance of 300 independent rows would be too small.
    y = rows.labels[:, 0] == 1
    of_patients = y.reshape(-1, 3).sum(1)
    assert drawn[:, 0, 2].std() == pytest.approx(of_patients.std() * np.sqrt(len(of_patients)), rel=0.15)


def test_decisions_at_given_thresholds_choose_nothing_on_these_rows():
    rows, _ = draw()
    given = {name: np.full(TASK.num_classes, 0.4) for name in OPERATING_POINTS}
    counted = count_at_given(rows, given, num_draws=10, seed=0)
    hits = ((rows.probabilities >= 0.4) & (rows.labels == 1)).sum(0)
    assert all((found.counts[:, 0] == hits).all() for found in counted.values())


def test_without_positives_or_negatives_elsewhere_there_is_no_threshold_and_no_count():
    rows, part = draw(unknown=0)
    rows.labels[part != 2, 0] = 0
    rows.labels[part != 2, 1] = 1
    chosen = choose_operating_points(rows, part, [0, 1, 2])
    assert np.isnan([chosen[2]["sensitivity_90"][0], chosen[2]["specificity_90"][1], chosen[2]["youden"][0]]).all()
    counted = count_at_points(rows, chosen, part, num_draws=10, seed=0)
    assert np.isnan(counted["sensitivity_90"].counts[0]).all()
    assert np.isfinite(counted["half"].counts).all()


def test_predictive_values_follow_bayes_and_at_the_observed_prevalence_are_the_observed_ones():
    # Of 1000 people 20 are ill: 18 found, 2 missed; of 980 others 49 are called ill.
    assert positive_predictive_value(np.array(0.9), np.array(0.95), 0.02) == pytest.approx(18 / (18 + 49))
    assert negative_predictive_value(np.array(0.9), np.array(0.95), 0.02) == pytest.approx(931 / (931 + 2))
    counts = np.array([30.0, 20, 40, 160])
    of = (sensitivity(counts), specificity(counts), 0.2)
    assert positive_predictive_value(*of) == pytest.approx(precision(counts))
    assert negative_predictive_value(*of) == pytest.approx(negative_precision(counts))
    assert np.isnan(positive_predictive_value(np.array(0.0), np.array(1.0), 0.1))
    assert np.isnan(negative_predictive_value(np.array(1.0), np.array(0.0), 0.1))
