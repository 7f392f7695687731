"""Losses on logits; labels may be soft, as CutMix makes them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ichkit.core.rows import find_row

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """A row of `LOSSES`.

    Attributes:
        name: key in the table.
        constructor: (C,) class weights of the task and (C,) prevalence of the training part to a function of logits
            (n, C) and labels (n, C) in [0, 1], which gives a scalar: the mean over slices.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    constructor: Callable[[np.ndarray, np.ndarray], LossFunction]
    description: str
    source: str


def make_loss(name: str, weights: np.ndarray, prevalence: np.ndarray) -> LossFunction:
    """The loss of that name for a task.

    Args:
        weights: (C,) weights of the classes in the score, summing to 1.
        prevalence: (C,) share of positive slices among those trained on.

    Raises:
        ConfigError: no such loss.

    Example:
        >>> loss = make_loss("weighted-bce", np.array([0.5, 0.5]), np.array([0.1, 0.1]))
        >>> round(loss(torch.zeros(1, 2), torch.ones(1, 2)).item(), 4)
        0.6931
    """
    return find_row(LOSSES, name, "train.loss").constructor(weights, prevalence)


def _weighted_bce(weights: np.ndarray, _prevalence: np.ndarray) -> LossFunction:
    class_weights = torch.as_tensor(weights, dtype=torch.float32)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = functional.binary_cross_entropy_with_logits(_precise(logits), labels, reduction="none")  # (n, C)
        return (each * class_weights.to(each.device)).sum(1).mean()

    return loss


def _bce(weights: np.ndarray, _prevalence: np.ndarray) -> LossFunction:
    return _weighted_bce(np.full(len(weights), 1 / len(weights)), _prevalence)


def _ratio_bce(weights: np.ndarray, prevalence: np.ndarray) -> LossFunction:
    # A class with one positive in ten thousand would drown all others; 20 is what one in twenty gives.
    ratios = np.minimum((1 - prevalence) / np.maximum(prevalence, 1e-6), 20.0)
    class_weights = torch.as_tensor(weights, dtype=torch.float32)
    positive_weights = torch.as_tensor(ratios, dtype=torch.float32)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = functional.binary_cross_entropy_with_logits(
            _precise(logits), labels, pos_weight=positive_weights.to(logits.device), reduction="none"
        )
        return (each * class_weights.to(each.device)).sum(1).mean()

    return loss


def _focal(weights: np.ndarray, _prevalence: np.ndarray) -> LossFunction:
    class_weights = torch.as_tensor(weights, dtype=torch.float32)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = _precise(logits)
        each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        each = each * (labels - logits.sigmoid()).abs().square()
        return (each * class_weights.to(each.device)).sum(1).mean()

    return loss


def _precise(logits: torch.Tensor) -> torch.Tensor:
    """At least float32: half precision would round the loss."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


LOSSES = {
    "weighted-bce": Loss(
        name="weighted-bce",
        constructor=_weighted_bce,
        description="Binary cross-entropy with the classes weighted as in the score: the score itself.",
        source="RSNA 2019 Intracranial Hemorrhage Detection, evaluation page",
    ),
    "bce": Loss(
        name="bce",
        constructor=_bce,
        description="Binary cross-entropy, every class alike.",
        source="the usual loss of multi-label classification",
    ),
    "ratio-bce": Loss(
        name="ratio-bce",
        constructor=_ratio_bce,
        description="As weighted-bce, positives weighted by negatives per positive, at most 20; not calibrated.",
        source="pos_weight of torch.nn.BCEWithLogitsLoss",
    ),
    "focal": Loss(
        name="focal",
        constructor=_focal,
        description="As weighted-bce, each term times |label - probability| squared, which soft labels allow too.",
        source="Lin et al., ICCV 2017, gamma 2; the form for soft labels from Li et al., NeurIPS 2020",
    ),
}
