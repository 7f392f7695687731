"""Context modules: combine the features of a slice with those of the other slices of its block."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ichkit.core.rows import find_row
from ichkit.core.train_config import NONE, ContextConfig

NOMINAL_GAP_MM = 5.0
"""The usual distance of slices of a head CT, taken where positions are missing."""
_WAVELENGTHS_MM = (10.0, 1000.0)


@dataclass(frozen=True)
class Context:
    """A row of `CONTEXTS`.

    Attributes:
        name: key in the table.
        constructor: number of features of a slice and settings to a module that maps features (B, P, F), is_real (B, P)
            bool and positions_mm (B, P) to (B, P, width); what stands at padded positions has no influence on the
            others. None for no context.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    constructor: Callable[[int, ContextConfig], nn.Module] | None
    description: str
    source: str


def make_context(num_features: int, config: ContextConfig) -> nn.Module | None:
    """The module of `train.context`, or None.

    Raises:
        ConfigError: no such row.

    Example:
        >>> module = make_context(64, ContextConfig(kind="transformer", width=32))
        >>> module(torch.zeros(2, 30, 64), torch.ones(2, 30, dtype=torch.bool), torch.zeros(2, 30)).shape
        torch.Size([2, 30, 32])
    """
    constructor = find_row(CONTEXTS, config.kind, "train.context").constructor
    return None if constructor is None else constructor(num_features, config)


def centre_positions(positions_mm: np.ndarray) -> np.ndarray:
    """(S,) float32 distance of each slice of a study from the middle between its first and last slice.

    If a position is missing, or the positions do not ascend (several series in one study), they are taken to be 5 mm
    apart.

    Args:
        positions_mm: (S,) along the slice normal, by slice_index.

    Example:
        >>> centre_positions(np.array([100.0, 102.5, 110.0])).tolist()
        [-5.0, -2.5, 5.0]
        >>> centre_positions(np.array([100.0, np.nan, 90.0])).tolist()
        [-5.0, 0.0, 5.0]
    """
    positions: np.ndarray = np.asarray(positions_mm, np.float64)
    if not np.isfinite(positions).all() or (np.diff(positions) < 0).any() or np.ptp(positions) == 0:
        positions = np.arange(len(positions)) * NOMINAL_GAP_MM
    centred: np.ndarray = (positions - (positions[0] + positions[-1]) / 2).astype(np.float32)
    return centred


class _Entry(nn.Module):
    """Features of a slice to `width`, and its position added as sines and cosines.

    Source: Vaswani et al., NeurIPS 2017, section 3.5, with the position in mm instead of an index, so that the distance
        of slices is known.
    """

    frequencies: torch.Tensor

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(num_features, width)
        wavelengths = np.geomspace(*_WAVELENGTHS_MM, width // 2)
        frequencies = torch.tensor(2 * np.pi / wavelengths, dtype=torch.float32)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, features: torch.Tensor, positions_mm: torch.Tensor) -> torch.Tensor:
        """(B, P, F) and (B, P) to (B, P, width)."""
        angles = positions_mm[..., None] * self.frequencies  # (B, P, width / 2)
        projected: torch.Tensor = self.project(features)
        return projected + torch.cat([angles.sin(), angles.cos()], 2).to(projected.dtype)


class _AttentionLayer(nn.Module):
    """Pre-norm self-attention over the real slices, and a feed-forward part, both residual.

    torch's own layer has a fast path at inference that takes other kernels; this one computes the same in both modes.
    """

    def __init__(self, config: ContextConfig) -> None:
        super().__init__()
        width, self.heads, self.dropout = config.width, config.heads, config.dropout
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * width, width)
        )
        self.drop = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """(B, P, width) and allowed keys (B, 1, 1, P) to (B, P, width)."""
        parts = self.project(self.norm(hidden)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts  # each (B, heads, P, width / heads)
        share = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, dropout_p=share)
        hidden = hidden + self.drop(self.merge(seen.transpose(1, 2).flatten(2)))
        fed: torch.Tensor = self.drop(self.feed(self.second_norm(hidden)))
        return hidden + fed


class TransformerContext(nn.Module):
    """Self-attention over all slices of a block."""

    def __init__(self, num_features: int, config: ContextConfig) -> None:
        super().__init__()
        self.entry = _Entry(num_features, config.width)
        self.layers = nn.ModuleList(_AttentionLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features: torch.Tensor, is_real: torch.Tensor, positions_mm: torch.Tensor) -> torch.Tensor:
        """See `Context.constructor`."""
        allowed = is_real.to(features.device, non_blocking=True)[:, None, None, :]
        hidden = self.entry(features, positions_mm)
        for layer in self.layers:
            hidden = layer(hidden, allowed)
        normed: torch.Tensor = self.norm(hidden)
        return normed


class GruContext(nn.Module):
    """A bidirectional recurrent network along the slices; padded positions are left out of the sequence."""

    def __init__(self, num_features: int, config: ContextConfig) -> None:
        super().__init__()
        self.entry = _Entry(num_features, config.width)
        dropout = config.dropout if config.layers > 1 else 0.0
        self.recurrent = nn.GRU(
            config.width, config.width // 2, config.layers, batch_first=True, dropout=dropout, bidirectional=True
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features: torch.Tensor, is_real: torch.Tensor, positions_mm: torch.Tensor) -> torch.Tensor:
        """See `Context.constructor`."""
        entered = self.entry(features, positions_mm)
        # Real slices first, wherever the padding is; lengths must be in host memory.
        order = torch.argsort(~is_real, dim=1, stable=True).to(features.device)[:, :, None]  # (B, P, 1)
        lengths = is_real.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            torch.take_along_dim(entered, order, 1), lengths, batch_first=True, enforce_sorted=False
        )
        found, _ = self.recurrent(packed)
        sequence, _ = nn.utils.rnn.pad_packed_sequence(found, batch_first=True, total_length=features.shape[1])
        sequence = torch.zeros_like(sequence).scatter(1, order.expand_as(sequence), sequence)
        normed: torch.Tensor = self.norm(entered + sequence)
        return normed


class _ConvLayer(nn.Module):
    """Two convolutions over three neighbouring slices, residual; padded positions count as zero."""

    def __init__(self, config: ContextConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.first = nn.Conv1d(config.width, config.width, kernel_size=3, padding=1)
        self.second = nn.Conv1d(config.width, config.width, kernel_size=3, padding=1)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """(B, P, width) and real (B, P, 1), 1 or 0, to (B, P, width)."""
        inside = (self.norm(hidden) * real).transpose(1, 2)  # (B, width, P)
        inside = functional.gelu(self.first(inside)) * real.transpose(1, 2)
        added: torch.Tensor = self.drop(self.second(inside).transpose(1, 2))
        return hidden + added


class ConvContext(nn.Module):
    """Residual convolutions along the slices; L layers see 2 L slices to each side."""

    def __init__(self, num_features: int, config: ContextConfig) -> None:
        super().__init__()
        self.entry = _Entry(num_features, config.width)
        self.layers = nn.ModuleList(_ConvLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features: torch.Tensor, is_real: torch.Tensor, positions_mm: torch.Tensor) -> torch.Tensor:
        """See `Context.constructor`."""
        hidden = self.entry(features, positions_mm)
        real = is_real.to(features.device, non_blocking=True)[:, :, None].to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, real)
        normed: torch.Tensor = self.norm(hidden)
        return normed


CONTEXTS = {
    NONE: Context(
        name=NONE,
        constructor=None,
        description="Every slice on its own: the paper's network.",
        source="paper section 2.1",
    ),
    "transformer": Context(
        name="transformer",
        constructor=TransformerContext,
        description="Self-attention over all slices of the block, with their positions in mm.",
        source="Vaswani et al., NeurIPS 2017; for slices of a head CT: Shang, 2022 (RSNA 2019 data)",
    ),
    "gru": Context(
        name="gru",
        constructor=GruContext,
        description="A recurrent network along the slices, in both directions.",
        source="Cho et al., EMNLP 2014; RSNA 2019, first place's sequence models",
    ),
    "conv": Context(
        name="conv",
        constructor=ConvContext,
        description="Residual convolutions along the slices: neighbours only, few parameters.",
        source="chosen here, as the trainable counterpart of the paper's axial fusion (section 2.2)",
    ),
}
