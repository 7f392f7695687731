"""Settings adapted to the number of training steps and studies; the values of the config are for a long run."""

import math
from dataclasses import dataclass

from ichkit.core.train_config import PhaseConfig, TrainConfig
from ichkit.engine.sampling import count_blocks

MIN_STEPS = 1000
"""Batches are made smaller until a run has as many steps, because a network learns little from few large ones."""

MIN_BLOCKS = 4
"""Blocks in the smallest batch: 28 slices, enough for batch statistics."""

CUTMIX_STEPS = 5000
"""Shorter runs learn nothing from mixed images that they would not learn faster without."""

FEW_STUDIES = 100
"""With fewer training studies a network is too sure of itself without dropout and mixup."""

FEW_DROP_RATE, FEW_MIXUP = 0.5, 1.0
"""`drop_rate` and `mixup.probability` there."""

AVERAGED_SHARE = 0.05
"""Share of the steps that EMA weights average over."""


@dataclass(frozen=True)
class Adapted:
    """The settings of one fold.

    Attributes:
        config: with the values that fit the number of steps.
        num_steps: steps of all phases, in one process.
        changes: dotted name of each changed setting to its value.
    """

    config: TrainConfig
    num_steps: int
    changes: dict[str, float]

    def describe(self) -> str:
        """The changed values in brackets, for plan and log; empty if nothing changed."""
        values = ", ".join(f"{name} {value:g}" for name, value in self.changes.items())
        return f" (adapted to their number: {values})" if values else ""


def adapt_to_length(config: TrainConfig, num_slices: int, num_studies: int, world: int = 1) -> Adapted:
    """The settings for a training part of that size; the same ones unless `train.adapts_to_length`.

    The values of the config are upper limits: a short run has smaller batches (and so more steps), no CutMix, and EMA
    weights over fewer steps. On few studies it also has dropout and mixup, where the config has none.

    Args:
        world: number of processes; each needs a block of every batch.

    Example:
        >>> adapt_to_length(TrainConfig(adapts_to_length=True, ema_decay=0.999), 3400, 104).changes
        {'batch_blocks': 11, 'cutmix.probability': 0.0, 'ema_decay': 0.9811}
    """
    blocks = count_blocks(config, num_slices, num_studies)

    phases = config.phases or (PhaseConfig(),)

    def count_steps(batch_blocks: int, most: int | None = None) -> int:
        return sum(
            (phase.epochs or config.epochs)
            * math.ceil(blocks / min(phase.batch_blocks or batch_blocks, most or blocks))
            for phase in phases
        )

    if not config.adapts_to_length:
        return Adapted(config, count_steps(config.batch_blocks), {})
    least = 1 if config.sampling == "studies" else MIN_BLOCKS  # one study has as many slices
    most = max(config.total_epochs * blocks // MIN_STEPS, least, world)
    batch_blocks = min(config.batch_blocks, most)
    num_steps = count_steps(batch_blocks, most)
    changes: dict[str, float] = {}
    if batch_blocks != config.batch_blocks:
        changes["batch_blocks"] = batch_blocks
    cutmix = config.cutmix
    if num_steps < CUTMIX_STEPS and cutmix.probability > 0:
        changes["cutmix.probability"] = 0.0
        cutmix = cutmix.model_copy(update={"probability": 0.0})
    drop_rate, mixup = config.drop_rate, config.mixup
    if num_studies < FEW_STUDIES and not drop_rate and not mixup.probability:
        changes |= {"drop_rate": FEW_DROP_RATE, "mixup.probability": FEW_MIXUP}
        drop_rate, mixup = FEW_DROP_RATE, mixup.model_copy(update={"probability": FEW_MIXUP})
    decay = config.ema_decay
    if decay is not None and decay > (longest := round(1 - 1 / max(AVERAGED_SHARE * num_steps, 2), 4)):
        changes["ema_decay"] = decay = longest
    shorter = tuple(
        phase.model_copy(update={"batch_blocks": min(phase.batch_blocks, most)}) if phase.batch_blocks else phase
        for phase in config.phases
    )
    update = {"batch_blocks": batch_blocks, "cutmix": cutmix, "ema_decay": decay, "phases": shorter}
    update |= {"drop_rate": drop_rate, "mixup": mixup}
    return Adapted(config.model_copy(update=update), num_steps, changes)
