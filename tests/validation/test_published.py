"""The published results: each is an AUC, and those that are listed twice agree."""

import numpy as np
import pytest

from ichkit.validation.published import PUBLISHED, REPORTED
from ichkit.validation.scores import MEAN_CLASS


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=lambda row: row.name)
def test_the_published_mean_is_that_of_the_classes(row):
    values = [value for name, value in row.roc_auc.items() if name != MEAN_CLASS]
    assert row.roc_auc[MEAN_CLASS] == pytest.approx(np.mean(values), abs=5e-4)  # the source has three digits
    assert all(0.5 < value < 1 for value in values)


def test_reported_results_are_in_order_and_those_of_the_tables_of_all_classes():
    values = [row.roc_auc for row in REPORTED.values()]
    assert values == sorted(values, reverse=True)
    assert all(0.5 < value < 1 for value in values)
    assert REPORTED["MIDL 2020"].roc_auc == PUBLISHED["paper"].roc_auc["any"]
    assert REPORTED["Chilamkurthy 2018"].roc_auc == PUBLISHED["baseline"].roc_auc["any"]
