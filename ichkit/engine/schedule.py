"""Learning rate schedules: the factor on the learning rate as a function of the step, so that no state is saved."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ichkit.core.rows import find_row
from ichkit.core.train_config import ScheduleConfig

_RISE_SHARE = 0.3  # pct_start of torch's OneCycleLR
_RISE_FROM = 1 / 25  # div_factor of torch's OneCycleLR
_THRESHOLD = 1e-4  # relative, as in torch's ReduceLROnPlateau


@dataclass(frozen=True)
class Span:
    """The steps of one phase.

    Attributes:
        total_steps: number of steps of the phase.
        warmup_steps: number of steps over which the factor rises from 1 / warmup_steps to 1.
    """

    total_steps: int
    warmup_steps: int = 0


FactorFunction = Callable[[int, Span, ScheduleConfig, Sequence[float]], float]


@dataclass(frozen=True)
class Schedule:
    """A row of `SCHEDULES`.

    Attributes:
        name: key in the table.
        factor: step after warm-up counted from 0, the steps after warm-up as a `Span`, the settings, and the validation
            values of the finished epochs of the phase (lower is better) to a factor in [0, 1].
        has_own_warmup: True if `factor` includes the warm-up and is called with the whole phase.
        needs_validation: True if it depends on the validation values.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    factor: FactorFunction
    has_own_warmup: bool
    needs_validation: bool
    description: str
    source: str


def learning_rate_factor(step: int, span: Span, config: ScheduleConfig, values: Sequence[float] = ()) -> float:
    """The factor on the configured learning rate at a step: linear warm-up, then the schedule.

    Args:
        step: 0 at the first step of the phase.
        config: `kind` is a row of `SCHEDULES`.
        values: validation values of the finished epochs of the phase, lower is better; only plateau reads them.

    Raises:
        ConfigError: no such schedule.

    Example:
        >>> [round(learning_rate_factor(step, Span(4), ScheduleConfig()), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    row = find_schedule(config)
    if row.has_own_warmup:
        return row.factor(step, span, config, values)
    if step < span.warmup_steps:
        return (step + 1) / span.warmup_steps
    return row.factor(step - span.warmup_steps, Span(span.total_steps - span.warmup_steps), config, values)


def find_schedule(config: ScheduleConfig) -> Schedule:
    """The row of a schedule.

    Raises:
        ConfigError: no such schedule.
    """
    return find_row(SCHEDULES, config.kind, "train.schedule.kind")


def _anneal(progress: float, lowest: float) -> float:
    """Half a cosine from 1 at progress 0 to `lowest` at progress 1."""
    return lowest + (1 - lowest) * (0.5 * (1 + math.cos(math.pi * progress)))


def _cosine(step: int, span: Span, config: ScheduleConfig, _values: Sequence[float]) -> float:
    return _anneal(step / max(span.total_steps, 1), config.lowest)


def _constant(_step: int, _span: Span, _config: ScheduleConfig, _values: Sequence[float]) -> float:
    return 1.0


def _step(step: int, span: Span, config: ScheduleConfig, _values: Sequence[float]) -> float:
    passed = sum(step >= round(share * span.total_steps) for share in config.milestones)
    return max(config.drop_factor**passed, config.lowest)


def _plateau(_step: int, _span: Span, config: ScheduleConfig, values: Sequence[float]) -> float:
    factor, best, waited = 1.0, math.inf, 0
    for value in values:
        if value < (best - abs(best) * _THRESHOLD if math.isfinite(best) else best):
            best, waited = value, 0
        else:
            waited += 1
        if waited > config.patience:
            factor, waited = max(factor * config.drop_factor, config.lowest), 0
    return factor


def _one_cycle(step: int, span: Span, config: ScheduleConfig, _values: Sequence[float]) -> float:
    # As in torch: the top at step `rise`, the lowest factor at the last step.
    rise = (span.warmup_steps or _RISE_SHARE * span.total_steps) - 1
    if step <= rise:
        return 1 - (1 - _RISE_FROM) * _anneal(step / rise, 0.0) if rise > 0 else 1.0
    return _anneal((step - rise) / max(span.total_steps - 1 - rise, 1), config.lowest)


SCHEDULES = {
    "cosine": Schedule(
        name="cosine",
        factor=_cosine,
        has_own_warmup=False,
        needs_validation=False,
        description="Half a cosine from 1 to `lowest`, which it would reach at the step after the last.",
        source="Loshchilov and Hutter, ICLR 2017, equation 5, one cycle, annealed per step; paper section 2.1",
    ),
    "constant": Schedule(
        name="constant",
        factor=_constant,
        has_own_warmup=False,
        needs_validation=False,
        description="Always 1; EMA weights take the place of annealing.",
        source="the plain form, as the start of comparisons",
    ),
    "step": Schedule(
        name="step",
        factor=_step,
        has_own_warmup=False,
        needs_validation=False,
        description="Multiplied by `drop_factor` at each of `milestones`, which are shares of the steps after warm-up.",
        source="He et al., CVPR 2016, section 3.4; MultiStepLR of torch",
    ),
    "plateau": Schedule(
        name="plateau",
        factor=_plateau,
        has_own_warmup=False,
        needs_validation=True,
        description="Multiplied by `drop_factor` after more than `patience` epochs without a better validation value.",
        source="ReduceLROnPlateau of torch; needs train.validation.share",
    ),
    "one-cycle": Schedule(
        name="one-cycle",
        factor=_one_cycle,
        has_own_warmup=True,
        needs_validation=False,
        description="Cosine from 1/25 up to 1 during warm-up (if 0, 30 % of the steps), then down to `lowest`.",
        source="Smith and Topin, 2018; OneCycleLR of torch, without its cycle of momentum",
    ),
}
