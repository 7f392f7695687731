"""The size of a network and the operations of one slice, counted without computing anything."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ichkit.core.config import ChannelsConfig
from ichkit.engine.inference import ModelCard
from ichkit.imaging.windows import make_rendering


@dataclass(frozen=True)
class NetworkCost:
    """Size and number of operations of a network.

    Attributes:
        num_parameters: all of them, trained or not.
        flops: floating-point operations of one slice at inference: two for each multiplication and addition of
            convolutions, matrix products and attention; the rest, below one per cent, is not counted.
        input_shape: (H, W, C) of one slice.
    """

    num_parameters: int
    flops: int
    input_shape: tuple[int, int, int]


def count_cost(card: ModelCard) -> NetworkCost:
    """The cost of the network of a card; no memory is taken, no weight is read.

    Raises:
        ConfigError: an unknown backbone, or arguments that it does not take.

    Source: `torch.utils.flop_counter`, on the meta device.
    """
    side, channels = card.image_size, make_rendering(ChannelsConfig(**card.channels)).num_channels
    with torch.device("meta"):
        network = card.build().eval()
        image = torch.zeros((1, 1, side, side, channels), dtype=torch.uint8)
        is_real = torch.ones((1, 1), dtype=torch.bool, device="cpu")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image, is_real, torch.zeros((1, 1)))
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    return NetworkCost(num_parameters, int(counter.get_total_flops()), (side, side, channels))
