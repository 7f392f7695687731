"""Losses on logits; labels may be soft, as with CutMix."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from ichkit.core.rows import find_row

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (n, C) and labels (n, C) to a scalar, or for the losses of a row to (n, C)."""


@dataclass(frozen=True)
class Loss:
    """A row of `LOSSES`.

    Attributes:
        name: key in the table.
        constructor: (C,) share of positives in the training part to a function of logits (n, C) and labels (n, C) in
            [0, 1], which gives the (n, C) losses of each class. Unknown labels never reach it.
        description: one sentence.
        source: where it was proposed.
        has_equal_weights: all classes have the same weight, not those of the task.
    """

    name: str
    constructor: Callable[[np.ndarray], LossFunction]
    description: str
    source: str
    has_equal_weights: bool = False


def make_loss(name: str, weights: np.ndarray, prevalence: np.ndarray) -> LossFunction:
    """The loss of that name for a task: the mean over the labelled slices of the losses of the classes, weighted.

    A label may be unknown (NaN): it has no part in the loss, and its logit gets no gradient. A slice without any known
    label does not count in the mean, as if it were left out.

    Args:
        weights: (C,) weights of the classes in the score, summing to 1.
        prevalence: (C,) share of positive training slices.

    Returns:
        A function of logits (n, C) and labels (n, C), which gives a scalar, at least float32; 0 without known labels.

    Raises:
        ConfigError: no such loss.

    Example:
        >>> loss = make_loss("weighted-bce", np.array([0.5, 0.5]), np.array([0.1, 0.1]))
        >>> round(loss(torch.zeros(1, 2), torch.ones(1, 2)).item(), 4)
        0.6931
        >>> round(loss(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [torch.nan, torch.nan]])).item(), 4)
        0.6931
    """
    row = find_row(LOSSES, name, "train.loss")
    elementwise = row.constructor(prevalence)
    given = np.full(len(weights), 1 / len(weights)) if row.has_equal_weights else weights
    class_weights = torch.as_tensor(given, dtype=torch.float32)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        known = ~labels.isnan()
        each = elementwise(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.nan_to_num(0.0))
        each = torch.where(known, each * class_weights.to(each.device), 0.0)
        return each.sum(1).sum() / known.any(1).sum().clamp(min=1)

    return loss


def _bce(_prevalence: np.ndarray) -> LossFunction:
    return partial(functional.binary_cross_entropy_with_logits, reduction="none")


def _ratio_bce(prevalence: np.ndarray) -> LossFunction:
    # Limited to 20, the ratio of one positive in 21: the rarest class would dominate all others.
    ratios = torch.as_tensor(np.minimum((1 - prevalence) / np.maximum(prevalence, 1e-6), 20.0), dtype=torch.float32)

    def elementwise(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=ratios.to(logits.device), reduction="none"
        )

    return elementwise


def _pos_weight_bce(prevalence: np.ndarray) -> LossFunction:
    ratios = torch.as_tensor((1 - prevalence) / np.maximum(prevalence, 1e-12), dtype=torch.float32)
    # A class without positives has no term that its ratio would multiply.
    ratios[torch.as_tensor(prevalence <= 0)] = 1.0
    return lambda logits, labels: functional.binary_cross_entropy_with_logits(
        logits, labels, pos_weight=ratios.to(logits.device), reduction="none"
    )


def _odds_bce(prevalence: np.ndarray) -> LossFunction:
    odds = torch.as_tensor(prevalence / np.maximum(1 - prevalence, 1e-12), dtype=torch.float32)
    return lambda logits, labels: (
        functional.binary_cross_entropy_with_logits(logits, labels, reduction="none") * odds.to(logits.device)
    )


def _focal(_prevalence: np.ndarray) -> LossFunction:
    def elementwise(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return each * (labels - logits.sigmoid()).abs().square()

    return elementwise


LOSSES = {
    "weighted-bce": Loss(
        name="weighted-bce",
        constructor=_bce,
        description="Binary cross-entropy with the classes weighted as in the score: the score itself.",
        source="RSNA 2019 Intracranial Hemorrhage Detection, evaluation page",
    ),
    "bce": Loss(
        name="bce",
        constructor=_bce,
        description="Binary cross-entropy with equal class weights.",
        source="the usual loss of multi-label classification",
        has_equal_weights=True,
    ),
    "ratio-bce": Loss(
        name="ratio-bce",
        constructor=_ratio_bce,
        description="As weighted-bce, with positives weighted by negatives per positive, at most 20; not calibrated.",
        source="pos_weight of torch.nn.BCEWithLogitsLoss",
    ),
    "pos-weight-bce": Loss(
        name="pos-weight-bce",
        constructor=_pos_weight_bce,
        description="Mean over the classes, positives weighted by negatives per positive, unlimited; not calibrated.",
        source="Huang and Chen, DLMI 2021, section 2.2, as its text means it; pos_weight of BCEWithLogitsLoss",
        has_equal_weights=True,
    ),
    "odds-bce": Loss(
        name="odds-bce",
        constructor=_odds_bce,
        description="Mean over the classes, each multiplied by its positives per negative: rare classes count least.",
        source="Huang and Chen, DLMI 2021, section 2.2, as its formula W = p / n is printed; for comparison",
        has_equal_weights=True,
    ),
    "focal": Loss(
        name="focal",
        constructor=_focal,
        description="As weighted-bce, with each term multiplied by |label - probability|^2; soft labels are allowed.",
        source="Lin et al., ICCV 2017, gamma 2; the form for soft labels from Li et al., NeurIPS 2020",
    ),
}
