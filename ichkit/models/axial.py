"""The axial fusion network: two convolutions and one linear layer over the descriptors of adjacent slices."""

import torch
from torch import nn


class AxialFusion(nn.Module):
    """Corrects the base logits of the centre slice by the descriptors of its neighbours.

    Both convolutions run along the slice axis with kernels of three slices; classes, runs and scales are channels.

    Args:
        num_channels: inputs per slice: classes times scales (logits and probabilities) times runs.
        num_classes: number of outputs.
        window: slices in the window, odd.
        widths: channels after each convolution.

    Source: paper section 2.2 (7 x 6 x 1, two convolutions, one fully connected layer). Not specified there and chosen
        here: kernels span all classes, because the order of classes is arbitrary; the output is added to the base
        logits and initialised to zero, so that an untrained network returns the base, and weight decay pulls to it.
    """

    def __init__(self, num_channels: int, num_classes: int, window: int, widths: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv1d(num_channels, widths[0], kernel_size=3, padding=1)
        self.second = nn.Conv1d(widths[0], widths[1], kernel_size=3, padding=1)
        self.last = nn.Linear(widths[1] * window, num_classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, descriptors: torch.Tensor, base_logits: torch.Tensor) -> torch.Tensor:
        """Logits of the centre slice.

        Args:
            descriptors: (B, channels, window) float32, logits standardised.
            base_logits: (B, C) float32.

        Returns:
            (B, C) float32.

        Example:
            >>> net = AxialFusion(num_channels=12, num_classes=6, window=7, widths=(32, 64))
            >>> net(torch.zeros(4, 12, 7), torch.zeros(4, 6)).shape
            torch.Size([4, 6])
        """
        hidden = torch.relu(self.first(descriptors))  # (B, widths[0], window)
        hidden = torch.relu(self.second(hidden))  # (B, widths[1], window)
        correction: torch.Tensor = self.last(hidden.flatten(1))
        return base_logits + correction
