"""The sequence network: two recurrent layers over the slices of a whole study, one in each direction."""

import torch
from torch import nn


class SequenceNetwork(nn.Module):
    """Corrects the base logits of every slice by the other slices of its study.

    Args:
        num_channels: inputs per slice.
        num_classes: number of outputs.
        hidden: width of each direction.
        num_differenced: of so many first channels the differences to the slice before and to the slice after are
            inputs too, 0 at the ends of a study.
        dropout: probability with which an input of the recurrent layers is dropped in training.

    Source: RSNA 2019, second-stage recurrent networks of the first places; the differences are those of the second
        place. The widths are chosen here; as in `AxialFusion`, the output is initialised to zero and added to the base
        logits.
    """

    def __init__(
        self, num_channels: int, num_classes: int, hidden: int, *, num_differenced: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_differenced = num_differenced
        self.entry = nn.Linear(num_channels + 2 * num_differenced, hidden)
        self.dropout = nn.Dropout(dropout)
        # Two layers rather than a bidirectional one: each starts at a real slice, so that padding comes last in both
        # directions, and packing, which is slower on a CPU, is not needed.
        self.upward = nn.GRU(hidden, hidden, batch_first=True)
        self.downward = nn.GRU(hidden, hidden, batch_first=True)
        self.last = nn.Linear(3 * hidden, num_classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, slices: torch.Tensor, lengths: torch.Tensor, base_logits: torch.Tensor) -> torch.Tensor:
        """Logits of every slice of every study of a batch.

        Args:
            slices: (B, S, channels) float32, studies padded to the longest; padding has no influence.
            lengths: (B,) int64, slices of each study, at least 1.
            base_logits: (sum of lengths, C) float32, concatenated studies.

        Returns:
            (sum of lengths, C) float32.

        Example:
            >>> net = SequenceNetwork(num_channels=13, num_classes=6, hidden=32)
            >>> net(torch.zeros(2, 30, 13), torch.tensor([30, 24]), torch.zeros(54, 6)).shape
            torch.Size([54, 6])
        """
        place = torch.arange(slices.shape[1], device=slices.device)[None, :]
        is_real = place < lengths[:, None]  # (B, S)
        # Reverses each study without its padding; applying it twice is the identity.
        turned = torch.where(is_real, lengths[:, None] - 1 - place, place)[:, :, None]  # (B, S, 1)
        if self.num_differenced:
            slices = torch.cat([slices, *self._differences(slices, is_real)], dim=2)
        entered = self.dropout(torch.relu(self.entry(slices)))  # (B, S, hidden)
        upward, _ = self.upward(entered)
        downward, _ = self.downward(torch.take_along_dim(entered, turned, dim=1))
        downward = torch.take_along_dim(downward, turned, dim=1)
        correction: torch.Tensor = self.last(torch.cat([entered, upward, downward], dim=2)[is_real])
        return base_logits + correction

    def _differences(self, slices: torch.Tensor, is_real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each slice minus the slice before it, and minus the slice after it: (B, S, num_differenced) each."""
        values = slices[:, :, : self.num_differenced]
        rises = torch.where(is_real[:, 1:, None], values[:, 1:] - values[:, :-1], 0.0)
        return nn.functional.pad(rises, (0, 0, 1, 0)), nn.functional.pad(-rises, (0, 0, 0, 1))
