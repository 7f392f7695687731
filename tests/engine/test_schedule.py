import math

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim import SGD
from torch.optim import lr_scheduler as oracle

from ichkit.core.errors import ConfigError
from ichkit.core.train_config import ScheduleConfig
from ichkit.engine.schedule import SCHEDULES, Span, learning_rate_factor


def factors(config, span, values=()):
    return [learning_rate_factor(step, span, config, values) for step in range(span.total_steps)]


def rates(make, num_steps):
    """The rates that a scheduler of torch sets for an optimizer with learning rate 1."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warmed(optimizer, warmup, then):
    rise = oracle.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    return oracle.SequentialLR(optimizer, [rise, then(optimizer)], milestones=[warmup])


def test_the_default_is_half_a_cosine_after_a_linear_rise_to_the_last_bit():
    found = factors(ScheduleConfig(), Span(110, 10))
    assert found[:10] == [(step + 1) / 10 for step in range(10)]
    assert found[10:] == [0.5 * (1 + math.cos(math.pi * (step / 100))) for step in range(100)]
    assert learning_rate_factor(0, Span(1), ScheduleConfig()) == 1.0


@pytest.mark.parametrize("lowest", [0.0, 0.05])
def test_cosine_is_that_of_timm_and_of_torch(lowest):
    config = ScheduleConfig(kind="cosine", lowest=lowest)
    expected = rates(lambda o: oracle.CosineAnnealingLR(o, T_max=60, eta_min=lowest), 60)
    assert factors(config, Span(60)) == pytest.approx(expected)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = CosineLRScheduler(optimizer, t_initial=60, lr_min=lowest, t_in_epochs=False), []
    for step in range(60):
        scheduler.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    assert factors(config, Span(60)) == pytest.approx(found)


def test_warm_up_comes_before_the_schedule():
    expected = rates(lambda o: warmed(o, 7, lambda o: oracle.CosineAnnealingLR(o, T_max=53)), 60)
    assert factors(ScheduleConfig(kind="cosine"), Span(60, 7)) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 5])
def test_step_is_that_of_torch(warmup):
    def decay(optimizer):
        return oracle.MultiStepLR(optimizer, [round(0.5 * (40 - warmup)), round(0.8 * (40 - warmup))], gamma=0.2)

    expected = rates(lambda o: warmed(o, warmup, decay) if warmup else decay(o), 40)
    config = ScheduleConfig(kind="step", milestones=(0.5, 0.8), drop_factor=0.2)
    assert factors(config, Span(40, warmup)) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 15])
def test_one_cycle_is_that_of_torch(warmup):
    share = warmup / 50 if warmup else 0.3
    lowest = 1e-3
    expected = rates(lambda o: oracle.OneCycleLR(o, 1.0, 50, pct_start=share, final_div_factor=1 / 25 / lowest), 49)
    config = ScheduleConfig(kind="one-cycle", lowest=lowest)
    assert factors(config, Span(50, warmup))[:49] == pytest.approx(expected)
    assert factors(config, Span(50, warmup))[-1] == pytest.approx(lowest)


@pytest.mark.parametrize("patience", [0, 2])
def test_plateau_is_that_of_torch(patience):
    generator = np.random.default_rng(0)
    compare_plateaus(patience, (np.exp(-np.arange(40) / 6) + generator.normal(0, 0.05, 40)).round(3).tolist())


@pytest.mark.parametrize("gain", [0.9e-4, 1.1e-4])
def test_what_counts_as_an_improvement_is_that_of_torch(gain):
    compare_plateaus(0, [0.5 * (1 - gain) ** epoch for epoch in range(12)] + [0.4] * 8)


def compare_plateaus(patience, values):
    config = ScheduleConfig(kind="plateau", patience=patience, drop_factor=0.5, lowest=0.01)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = oracle.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, min_lr=0.01)
    expected, found = [], []
    for epoch, value in enumerate(values):
        found.append(learning_rate_factor(epoch, Span(len(values)), config, values[:epoch]))
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step(value)
    assert found == pytest.approx(expected)
    assert len(set(found)) > 3


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_within_the_configured_rate_and_warms_up(name):
    row, config = SCHEDULES[name], ScheduleConfig(kind=name)
    for span in (Span(1), Span(2), Span(3, 3), Span(100, 20)):
        found = factors(config, span, [0.5] * 9)
        assert all(0 <= factor <= 1 for factor in found), span
        assert sum(found) > 0, span
    rise = found[:20]
    assert rise == sorted(rise)
    assert rise[0] <= 0.05
    # Without validation values only plateau has nothing to wait for.
    differs = learning_rate_factor(50, Span(100), config) != learning_rate_factor(50, Span(100), config, [0.5] * 9)
    assert differs == row.needs_validation


def test_an_unknown_schedule_gets_the_nearest_spelling():
    with pytest.raises(ConfigError, match=r'train\.schedule\.kind: unknown "cosin"\. Did you mean "cosine"'):
        learning_rate_factor(0, Span(2), ScheduleConfig(kind="cosin"))


def test_a_drop_by_0_412_after_50_of_100_epochs_is_step_lr_of_torch_and_acts_once():
    """DLMI 2021, section 3.2: x 0.412 every 50 epochs of 100; the drop after the last epoch never comes."""
    steps_per_epoch = 3
    config = ScheduleConfig(kind="step", milestones=(0.5,), drop_factor=0.412)
    expected = rates(lambda o: oracle.StepLR(o, step_size=50 * steps_per_epoch, gamma=0.412), 100 * steps_per_epoch)
    found = factors(config, Span(100 * steps_per_epoch))
    assert found == pytest.approx(expected)
    of_epoch = [found[epoch * steps_per_epoch] for epoch in (49, 50, 51, 99)]
    assert of_epoch == [1.0, 0.412, 0.412, 0.412]
