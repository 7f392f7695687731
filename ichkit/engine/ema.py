"""The exponential moving average of a network's weights, which predicts in place of the last ones."""

import copy

import torch
from torch import nn


class AveragedWeights:
    """An average over the steps of training: parameters and buffers alike, so that batch statistics fit the weights.

    The decay rises with the number of steps t as min(decay, (1 + t) / (10 + t)): the first steps, far from the rest,
    leave nothing behind.

    Args:
        network: what is averaged, on its device already; it is copied, watched and never changed.
        decay: share of the average that a step keeps once warmed up, in [0, 1).

    Source: the warm-up is TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # Tensors keep their place for as long as a network lives, so they are looked up once.
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        self._floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after one more step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages, values = zip(*self._floating, strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in self._counts:
            average.copy_(value)
