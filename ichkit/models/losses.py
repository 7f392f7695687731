"""Losses on logits; labels may be soft, as with CutMix."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
        prevalence: (C,) share of positive training slices.

    Raises:
        ConfigError: no such loss.

    Example:
        >>> loss = make_loss("weighted-bce", np.array([0.5, 0.5]), np.array([0.1, 0.1]))
        >>> round(loss(torch.zeros(1, 2), torch.ones(1, 2)).item(), 4)
        0.6931
    """
    return find_row(LOSSES, name, "train.loss").constructor(weights, prevalence)


def _weighted_mean(weights: np.ndarray, elementwise: LossFunction) -> LossFunction:
    """The mean over slices of a loss (n, C), weighted by class; logits are at least float32, as half would round it."""
    class_weights = torch.as_tensor(weights, dtype=torch.float32)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = elementwise(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
        return (each * class_weights.to(each.device)).sum(1).mean()

    return loss


def _weighted_bce(weights: np.ndarray, _prevalence: np.ndarray) -> LossFunction:
    return _weighted_mean(weights, partial(functional.binary_cross_entropy_with_logits, reduction="none"))


def _bce(weights: np.ndarray, _prevalence: np.ndarray) -> LossFunction:
    return _weighted_bce(np.full(len(weights), 1 / len(weights)), _prevalence)


def _ratio_bce(weights: np.ndarray, prevalence: np.ndarray) -> LossFunction:
    # Limited to 20, the ratio of one positive in 21: the rarest class would dominate all others.
    ratios = torch.as_tensor(np.minimum((1 - prevalence) / np.maximum(prevalence, 1e-6), 20.0), dtype=torch.float32)

    def elementwise(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=ratios.to(logits.device), reduction="none"
        )

    return _weighted_mean(weights, elementwise)


def _focal(weights: np.ndarray, _prevalence: np.ndarray) -> LossFunction:
    def elementwise(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return each * (labels - logits.sigmoid()).abs().square()

    return _weighted_mean(weights, elementwise)


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
        description="Binary cross-entropy with equal class weights.",
        source="the usual loss of multi-label classification",
    ),
    "ratio-bce": Loss(
        name="ratio-bce",
        constructor=_ratio_bce,
        description="As weighted-bce, with positives weighted by negatives per positive, at most 20; not calibrated.",
        source="pos_weight of torch.nn.BCEWithLogitsLoss",
    ),
    "focal": Loss(
        name="focal",
        constructor=_focal,
        description="As weighted-bce, with each term multiplied by |label - probability|^2; soft labels are allowed.",
        source="Lin et al., ICCV 2017, gamma 2; the form for soft labels from Li et al., NeurIPS 2020",
    ),
}
