"""Suspected label errors: against the definition written out, by laws, and on errors that were planted."""

import numpy as np
import pandas as pd
import pytest
from support.simulated import TASK, make_work

from ichkit.core.seeding import make_generator
from ichkit.validation.label_errors import find_label_errors
from ichkit.work.artifacts import read_table
from ichkit.work.schemas import KEY


def slow_label_errors(p, labels):
    """(row, class) in order of suspicion, one label at a time, after Northcutt, Jiang and Chuang 2021."""
    found = []
    for column in range(p.shape[1]):
        one = p[:, column]
        positive, negative = one[labels[:, column] == 1], 1 - one[labels[:, column] == 0]
        if not len(positive) or not len(negative):
            continue
        for row in range(len(p)):
            if labels[row, column] == 0 and one[row] >= positive.mean() and one[row] > 0.5:
                found.append((1 - one[row], row, column))
            if labels[row, column] == 1 and 1 - one[row] >= negative.mean() and one[row] < 0.5:
                found.append((one[row], row, column))
    return [(row, column) for _, row, column in sorted(found)]


def draw(num_rows=400, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.random((num_rows, num_classes)) ** 2
    return p, (rng.random(p.shape) < p).astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_suspects_are_those_of_the_definition_in_its_order(seed):
    p, labels = draw(seed=seed)
    found = find_label_errors(p, labels)
    assert list(zip(found.rows.tolist(), found.columns.tolist(), strict=True)) == slow_label_errors(p, labels)
    assert 10 < len(found.rows) < p.size / 2


def test_unknown_labels_are_never_suspected_and_change_no_threshold():
    p, labels = draw()
    holed = labels.copy()
    holed[::4, 1] = np.nan
    found, kept = find_label_errors(p, holed), np.arange(len(p)) % 4 > 0
    alone = find_label_errors(p[kept], labels[kept])
    assert not (found.rows[found.columns == 1] % 4 == 0).any()
    np.testing.assert_allclose(found.thresholds[:, 1], alone.thresholds[:, 1])
    np.testing.assert_array_equal(np.flatnonzero(kept)[alone.rows[alone.columns == 1]], found.rows[found.columns == 1])


def test_a_class_with_one_label_only_has_no_suspects():
    p, labels = draw()
    labels[:, 0], labels[:, 2] = 0, 1
    found = find_label_errors(p, labels)
    assert set(found.columns) == {1}
    assert np.isnan(found.thresholds[:, [0, 2]]).all()


@pytest.mark.parametrize("mistakes", [0.0, 0.3])
def test_planted_errors_lead_the_list(tmp_path, mistakes):
    work = make_work(
        tmp_path / "work", num_patients=80, slices_per_study=(20, 26), noise=0.7, contrast=6.0, mistakes=mistakes
    )
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.split == "train"].sort_values(KEY, ignore_index=True)
    table = pd.concat([read_table(work.fold("base", fold) / "oof.parquet") for fold in range(5)])
    p = table.sort_values(KEY)[TASK.probability_columns].to_numpy(float)
    truth = slices[list(TASK.classes)].to_numpy(float)
    rng = make_generator(0, "planted")
    is_planted = rng.random(truth.shape) < 0.02
    found = find_label_errors(p, np.where(is_planted, 1 - truth, truth))
    first = slice(0, int(is_planted.sum()) // 2)
    precision = is_planted[found.rows[first], found.columns[first]].mean()
    assert precision > 0.8, precision  # of labels taken at random, 0.02 are errors
