"""EMA weights: the exponential moving average of a network's weights, used for inference."""

import copy

import torch
from torch import nn


class AveragedWeights:
    """The moving average of parameters and buffers over training steps, so that batch statistics fit the weights.

    The decay rises with the number of steps t as min(decay, (1 + t) / (10 + t)), so that the first steps have no
    lasting weight.

    Args:
        network: the network to average, already on its device; it is copied and not changed.
        decay: share of the average that a step keeps after warm-up, in [0, 1).

    Source: the warm-up is TensorFlow's ExponentialMovingAverage(num_updates). timm's ModelEmaV3 has it too, rounded
        otherwise, but collects both state dicts at every step, which is slow for small networks.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # A network keeps its tensors, so they are looked up once.
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        self._floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Adds the weights after a step to the average."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages, values = zip(*self._floating, strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in self._counts:
            average.copy_(value)
