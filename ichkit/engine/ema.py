"""The exponential moving average of a network's weights, which predicts in place of the last ones."""

import copy

import torch
from torch import nn


class AveragedWeights:
    """An average over the steps of training: parameters and buffers alike, so that batch statistics fit the weights.

    The decay rises with the number of steps t as min(decay, (1 + t) / (10 + t)): the first steps, far from the rest,
    leave nothing behind.

    Args:
        network: what is averaged; copied, never changed.
        decay: share of the average that a step keeps once warmed up, in [0, 1).

    Source: the warm-up is TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the weights after one more step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages, values = [], []
        for average, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value.to(average.dtype))
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)
