"""Pooling: from the logits of the slices of a study to those of the study, and the weight of each slice in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ichkit.core.rows import find_row
from ichkit.core.train_config import NONE, PoolConfig

_TINY = torch.finfo(torch.float32).tiny


class Pooled(NamedTuple):
    """Logits of B studies.

    Attributes:
        logits: (B, K).
        weights: (B, P, K), at least 0, 0 at padded positions; the weights of a study sum to 1 for each class.
    """

    logits: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Pool:
    """A row of `POOLS`.

    Attributes:
        name: key in the table.
        constructor: number of features of a slice, number of classes and settings to a module that maps features
            (B, P, F), logits (B, P, K) and is_real (B, P) bool to `Pooled`. None for no pooling.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    constructor: Callable[[int, int, PoolConfig], nn.Module] | None
    description: str
    source: str


def make_pool(num_features: int, num_classes: int, config: PoolConfig) -> nn.Module | None:
    """The module of `train.pool`, or None.

    Raises:
        ConfigError: no such row.

    Example:
        >>> pool = make_pool(64, 6, PoolConfig(kind="max"))
        >>> pooled = pool(torch.zeros(2, 30, 64), torch.zeros(2, 30, 6), torch.ones(2, 30, dtype=torch.bool))
        >>> pooled.logits.shape, pooled.weights.shape
        (torch.Size([2, 6]), torch.Size([2, 30, 6]))
    """
    constructor = find_row(POOLS, config.kind, "train.pool").constructor
    return None if constructor is None else constructor(num_features, num_classes, config)


class MeanPool(nn.Module):
    """The mean of the logits of all slices."""

    def forward(self, features: torch.Tensor, logits: torch.Tensor, is_real: torch.Tensor) -> Pooled:
        """See `Pool.constructor`."""
        real = is_real.to(logits.device, logits.dtype, non_blocking=True)[:, :, None]
        return _weigh(logits, (real / real.sum(1, keepdim=True)).expand_as(logits))


class TopMeanPool(nn.Module):
    """The mean of the highest logits of each class; with a top of 1 their maximum."""

    def __init__(self, top: int) -> None:
        super().__init__()
        self.top = top

    def forward(self, features: torch.Tensor, logits: torch.Tensor, is_real: torch.Tensor) -> Pooled:
        """See `Pool.constructor`; of a study with fewer slices the mean of all."""
        real = is_real.to(logits.device, non_blocking=True)[:, :, None]
        ranked = torch.argsort(logits.masked_fill(~real, -torch.inf), dim=1, descending=True, stable=True)  # (B, P, K)
        places = torch.arange(logits.shape[1], device=logits.device)[None, :, None]
        counts = real.sum(1, keepdim=True).clamp(max=self.top)  # (B, 1, 1)
        shares = ((places < counts) / counts).to(logits.dtype).expand_as(logits)
        return _weigh(logits, torch.zeros_like(logits).scatter(1, ranked, shares))


class NoisyOrPool(nn.Module):
    """The probability that at least one slice is positive, if slices were independent."""

    def forward(self, features: torch.Tensor, logits: torch.Tensor, is_real: torch.Tensor) -> Pooled:
        """See `Pool.constructor`; the weights are the slices' shares of -log(1 - p)."""
        real = is_real.to(logits.device, non_blocking=True)[:, :, None]
        evidence = functional.softplus(logits.float()) * real  # -log(1 - p) of each slice
        total = evidence.sum(1).clamp(min=_TINY)  # (B, K)
        # log(p / (1 - p)) with 1 - p = exp(-total), without overflow for long studies.
        pooled = total + torch.log(-torch.expm1(-total))
        return Pooled(pooled, evidence / total[:, None])


class AttentionPool(nn.Module):
    """A weighted mean with weights computed from the features, one set for each class.

    A linear head on the weighted mean of features is the weighted mean of the logits, so that the slices have logits
    of their own.
    """

    def __init__(self, num_features: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.values, self.gates = nn.Linear(num_features, width), nn.Linear(num_features, width)
        self.score = nn.Linear(width, num_classes)

    def forward(self, features: torch.Tensor, logits: torch.Tensor, is_real: torch.Tensor) -> Pooled:
        """See `Pool.constructor`."""
        scores = self.score(torch.tanh(self.values(features)) * torch.sigmoid(self.gates(features)))  # (B, P, K)
        real = is_real.to(logits.device, non_blocking=True)[:, :, None]
        weights = scores.float().masked_fill(~real, -torch.inf).softmax(1)
        return _weigh(logits, weights.to(logits.dtype))


class SliceWeightsPool(nn.Module):
    """A weighted mean with one trainable weight for each relative position between the first and the last slice."""

    def __init__(self, num_positions: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_positions))

    def forward(self, features: torch.Tensor, logits: torch.Tensor, is_real: torch.Tensor) -> Pooled:
        """See `Pool.constructor`; between two positions the weights are interpolated."""
        real = is_real.to(logits.device, non_blocking=True)
        order = (real.cumsum(1) - 1).clamp(min=0).to(self.scores.dtype)  # (B, P): number of the slice in its study
        last = (real.sum(1, keepdim=True) - 1).clamp(min=1)
        place = order / last * (len(self.scores) - 1)
        low = place.floor().long().clamp(max=len(self.scores) - 2)
        share = place - low
        scores = self.scores[low] * (1 - share) + self.scores[low + 1] * share
        weights = scores.masked_fill(~real, -torch.inf).softmax(1)[:, :, None]  # (B, P, 1)
        return _weigh(logits, weights.to(logits.dtype).expand_as(logits))


def _weigh(logits: torch.Tensor, weights: torch.Tensor) -> Pooled:
    return Pooled((logits * weights).sum(1), weights)


POOLS = {
    NONE: Pool(
        name=NONE,
        constructor=None,
        description="No logits of a study; labels of a study are copied to its slices.",
        source="the usual way with weak labels",
    ),
    "mean": Pool(
        name="mean",
        constructor=lambda _features, _classes, _config: MeanPool(),
        description="The mean logit of all slices, which is global average pooling before a linear head.",
        source="Lin et al., ICLR 2014 (global average pooling)",
    ),
    "max": Pool(
        name="max",
        constructor=lambda _features, _classes, _config: TopMeanPool(1),
        description="The most suspicious slice of each class.",
        source="paper section 3.1, for a study of CQ500",
    ),
    "top-mean": Pool(
        name="top-mean",
        constructor=lambda _features, _classes, config: TopMeanPool(config.top),
        description="The mean logit of the `top` most suspicious slices of each class.",
        source="Zhu et al., MICCAI 2017 (top instances)",
    ),
    "noisy-or": Pool(
        name="noisy-or",
        constructor=lambda _features, _classes, _config: NoisyOrPool(),
        description="The probability that any slice is positive, if slices were independent.",
        source="Maron and Lozano-Perez, NeurIPS 1997",
    ),
    "attention": Pool(
        name="attention",
        constructor=lambda features, classes, config: AttentionPool(features, classes, config.width),
        description="A weighted mean; the weights of each class come from the features by a gated network.",
        source="Ilse et al., ICML 2018, section 2.4; one set of weights for each class: Lu et al., 2021 (CLAM)",
    ),
    "slice-weights": Pool(
        name="slice-weights",
        constructor=lambda _features, _classes, config: SliceWeightsPool(config.positions),
        description="A weighted mean with one trainable weight for each relative position in the study.",
        source="chosen here, for scans with a standard coverage",
    ),
}
