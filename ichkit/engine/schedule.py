"""The learning rate schedule, a function of the step alone, so that a checkpoint need not save its state."""

import math


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """The factor on the configured learning rate at a step: linear warm-up, then cosine annealing to zero.

    Args:
        step: 0 at the first step.
        total_steps: number of steps of the phase; the factor would reach 0 at the step after the last.
        warmup_steps: steps over which the factor rises from 1 / warmup_steps to 1.

    Source: Loshchilov and Hutter, ICLR 2017, equation 5, one cycle, annealed per step.

    Example:
        >>> [round(learning_rate_factor(step, 4), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * progress))
