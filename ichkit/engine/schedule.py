"""The learning rate as a function of the step alone, so that nothing about it has to be saved or resumed."""

import math


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """What the configured learning rate is multiplied by at a step: linear warm-up, then half a cosine down to zero.

    Args:
        step: 0 at the first step.
        total_steps: all steps of the run; the factor would be 0 at this one, which never comes.
        warmup_steps: steps over which the factor rises; the first has 1 / warmup_steps.

    Source: Loshchilov and Hutter, ICLR 2017, equation 5, one cycle; annealed per step.

    Example:
        >>> [round(learning_rate_factor(step, 4), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * progress))
