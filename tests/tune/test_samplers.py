"""Samplers and pruners: each row proposes values of the space, the same ones after a restart."""

import numpy as np
import pytest

from ichkit.stages.tune.samplers import PRUNERS, SAMPLERS, is_hopeless, suggest
from ichkit.stages.tune.space import read_space
from ichkit.stages.tune.trials import FAILED, PRUNED, Trial

GRID = read_space(["train.learning_rate=1e-4,3e-4", "train.epochs=1..6"], None)
WIDE = read_space(["train.learning_rate=1e-5..1e-2:log", "train.epochs=1..30", "train.backbone=a,b,c"], None)


def search(sampler, space, number, value_of, seed=0, higher=False):
    """The settings of the trials of a search, each proposed from nothing but the trials before it."""
    trials = []
    for i in range(number):
        params = dict(suggest(space, SAMPLERS[sampler], trials, seed, is_higher_better=higher))
        value = value_of(params)
        trials.append(Trial(i, params, f"t-{i}", values={0: value}, value=value))
    return trials


def loss_of(params):
    return abs(np.log10(params["train.learning_rate"]) + 3) + 0.01 * params["train.epochs"]


def params_of(trials):
    return [trial.params for trial in trials]


@pytest.mark.parametrize("table", [SAMPLERS, PRUNERS], ids=["samplers", "pruners"])
def test_a_row_has_its_name_and_says_what_it_is(table):
    for name, row in table.items():
        assert row.name == name
        assert row.description.endswith(".")
        assert row.source


def test_a_grid_is_every_combination_in_the_order_written():
    trials = search("grid", GRID, 12, lambda _: 0.0)
    assert params_of(trials) == list(GRID.grid())
    assert trials[1].params == {"train.learning_rate": "1e-4", "train.epochs": 2}


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "grid"])
def test_a_sampler_proposes_values_of_the_space_and_the_same_again(name):
    trials = search(name, WIDE, 13, loss_of)
    for trial in trials:
        assert 1e-5 <= trial.params["train.learning_rate"] <= 1e-2
        assert trial.params["train.epochs"] in range(1, 31)
        assert trial.params["train.backbone"] in "abc"
    assert params_of(trials) == params_of(search(name, WIDE, 13, loss_of))
    assert params_of(trials) != params_of(search(name, WIDE, 13, loss_of, seed=1))
    assert len({repr(trial.params) for trial in trials}) == 13


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "grid"])
def test_only_an_adaptive_sampler_looks_at_values(name):
    ups, downs = search(name, WIDE, 13, loss_of), search(name, WIDE, 13, lambda params: -loss_of(params))
    assert (params_of(ups) != params_of(downs)) == SAMPLERS[name].is_adaptive


@pytest.mark.parametrize("name", [name for name, row in SAMPLERS.items() if row.is_adaptive])
def test_an_adaptive_sampler_finds_lower_values_than_it_began_with_in_either_direction(name):
    low = [trial.value for trial in search(name, WIDE, 30, loss_of)]
    high = [trial.value for trial in search(name, WIDE, 30, lambda params: -loss_of(params), higher=True)]
    assert np.median(low[-10:]) < np.median(low[:10])
    assert np.median(high[-10:]) > np.median(high[:10])


def test_a_failed_or_pruned_trial_is_no_obstacle():
    trials = search("tpe", WIDE, 12, loss_of)
    trials[3] = Trial(3, trials[3].params, "t-3", state=FAILED)
    trials[4] = Trial(4, trials[4].params, "t-4", state=PRUNED, values={0: 1.0}, value=1.0)
    assert suggest(WIDE, SAMPLERS["tpe"], trials, 0, is_higher_better=False)


def with_folds(number, values):
    return Trial(number, {}, f"t-{number}", values=dict(enumerate(values)), value=float(np.mean(values)))


@pytest.mark.parametrize("name", [name for name in PRUNERS if name != "none"])
def test_a_pruner_ends_a_trial_that_is_far_behind_and_not_one_that_is_ahead(name):
    rng = np.random.default_rng(0)
    earlier = [with_folds(i, 0.5 + 0.02 * rng.standard_normal(8)) for i in range(7)]
    bad, good = [0.9] * 6, [0.1] * 6
    assert is_hopeless(PRUNERS[name], earlier, bad, is_higher_better=False)
    assert not is_hopeless(PRUNERS[name], earlier, good, is_higher_better=False)
    assert is_hopeless(PRUNERS[name], earlier, good, is_higher_better=True)
    assert not is_hopeless(PRUNERS[name], [], bad, is_higher_better=False)


def test_without_a_pruner_no_trial_is_ended():
    earlier = [with_folds(i, [0.1] * 8) for i in range(9)]
    assert not is_hopeless(PRUNERS["none"], earlier, [99.0] * 5, is_higher_better=False)
