"""Objectives of a search: each row against its formula worked out by hand, and what they refuse."""

import numpy as np
import pandas as pd
import pytest

from ichkit.core.errors import ContractError
from ichkit.validation.objectives import OBJECTIVES, OUT_OF_FOLD, VALIDATION, measure_history

# Of the first phase, whose scores must not count, and of the second.
HISTORY = pd.DataFrame(
    {
        "phase": [1, 1, 2, 2, 2, 2],
        "epoch": [1, 2, 3, 4, 5, 6],
        "validation_weighted_log_loss": [0.01, 0.02, 0.8, 0.2, 0.3, 0.5],
        "validation_mean_auc": [0.99, 0.99, 0.6, 0.7, 0.9, 0.8],
    }
)
BY_HAND = {
    "loss": 0.5,
    "best-loss": 0.2,
    "first-plus-mean": 0.5 * 0.8 + 0.5 * (0.8 + 0.2 + 0.3 + 0.5) / 4,
    "first-plus-minimum": 0.5 * 0.8 + 0.5 * 0.2,
    "auc": 0.8,
    "best-auc": 0.9,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_has_its_name_and_says_what_it_is(name):
    row = OBJECTIVES[name]
    assert row.name == name
    assert row.of in (VALIDATION, OUT_OF_FOLD)
    assert row.description.endswith(".")
    assert row.source
    assert row.turn(2.0) < row.turn(1.0) if row.is_higher_better else row.turn(1.0) < row.turn(2.0)


@pytest.mark.parametrize("name", [name for name, row in OBJECTIVES.items() if row.of == VALIDATION])
def test_a_value_is_that_of_the_formula_over_the_epochs_of_the_last_phase(name):
    assert measure_history(OBJECTIVES[name], HISTORY, kept_epoch=6) == pytest.approx(BY_HAND[name], abs=1e-15)


def test_the_kept_epoch_is_the_one_that_counts_where_one_does():
    values = [measure_history(OBJECTIVES["loss"], HISTORY, kept_epoch=epoch) for epoch in (3, 4, 5, 6)]
    assert values == [0.8, 0.2, 0.3, 0.5]


def test_an_undefined_score_gives_no_value():
    unknown = HISTORY.assign(validation_mean_auc=np.nan)
    assert np.isnan(measure_history(OBJECTIVES["best-auc"], unknown, kept_epoch=6))


def test_a_fold_without_validation_patients_is_refused_with_the_setting():
    without = HISTORY[["phase", "epoch"]]
    with pytest.raises(ContractError, match=r"objective loss: expected a column .* Set train\.validation\.share"):
        measure_history(OBJECTIVES["loss"], without, kept_epoch=6)
