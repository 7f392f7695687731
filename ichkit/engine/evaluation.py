"""Evaluation after each epoch: the scores of the inference weights on labelled slices, and what follows from them."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn

from ichkit.core.train_config import ValidationConfig
from ichkit.engine.blocks import VolumeReader
from ichkit.engine.inference import ModelCard, Predictor, spread_positions
from ichkit.models.descriptor import DescriptorNetwork
from ichkit.models.losses import LossFunction
from ichkit.validation.metrics import roc_auc_by_class, weighted_log_loss
from ichkit.work.schemas import PROBABILITY_CLIP

LOSS, WEIGHTED, AUC, MEAN_AUC = "loss", "weighted_log_loss", "auc", "mean_auc"
_WHOLE = 2**31  # beyond the last slice of any volume


class Evaluator:
    """Scores a network on labelled slices, predicted as after training: no augmentation, float32, test-time views.

    Args:
        slices: (N rows) volume, slice_index, position_mm and the classes; grouped by volume.
        reader: reads their HU.
        card: how a volume becomes images.
        classes: the classes that the network has.
        weights: (K,) of these classes, summing to 1.
        loss_function: that of training.
        scores_studies: score the pooled probabilities of each study against its labels, the maximum over its slices;
            for labels per study, which the slices only have as copies.
    """

    def __init__(
        self,
        slices: pd.DataFrame,
        reader: VolumeReader,
        card: ModelCard,
        classes: Sequence[str],
        weights: np.ndarray,
        loss_function: LossFunction,
        *,
        scores_studies: bool = False,
    ) -> None:
        self._reader, self._card, self._weights, self._loss = reader, card, weights, loss_function
        self.classes, self._scores_studies = tuple(classes), scores_studies
        self._rows = [
            (str(path), rows[["slice_index", "position_mm"]], rows[list(classes)].to_numpy(np.float64, na_value=np.nan))
            for path, rows in slices.groupby("volume", sort=False)
        ]

    @property
    def num_slices(self) -> int:
        """Number of slices."""
        return sum(len(rows) for _, rows, _ in self._rows)

    def evaluate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Loss, weighted log loss, mean AUC and the AUC of each class, of known labels; NaN where it is not defined.

        Args:
            network: the inference weights; a copy is used, so that it is not changed.
        """
        trial = copy.deepcopy(network)
        assert isinstance(trial, DescriptorNetwork)
        predictor = Predictor(self._card, trial, device)
        found = []
        for path, rows, _ in self._rows:
            volume = self._reader.read(path, 0, _WHOLE)
            read = predictor.read_study(volume, spread_positions(rows, len(volume)))
            if self._scores_studies:
                assert read.of_study is not None
                found.append(read.of_study[None])
            else:
                found.append(read.probabilities[rows.slice_index.to_numpy()])
        probabilities = np.clip(np.concatenate(found).astype(np.float64), *PROBABILITY_CLIP)
        labels = np.concatenate(
            [own.max(0, keepdims=True) if self._scores_studies else own for _, _, own in self._rows]
        )
        areas = roc_auc_by_class(probabilities, labels)
        known = areas[~np.isnan(areas)]
        logits = torch.logit(torch.from_numpy(probabilities))
        return {
            LOSS: float(self._loss(logits, torch.from_numpy(labels))),
            WEIGHTED: weighted_log_loss(probabilities, labels, self._weights),
            MEAN_AUC: float(known.mean()) if len(known) else math.nan,
            **{f"{AUC}_{name}": float(area) for name, area in zip(self.classes, areas, strict=True)},
        }


def describe_scores(scores: dict[str, float]) -> str:
    """One line for the terminal.

    Example:
        >>> describe_scores({"loss": 0.25, "weighted_log_loss": 0.125, "mean_auc": 0.9, "auc_any": 0.9})
        'loss 0.2500, weighted log loss 0.1250, AUC any .900'
    """
    areas = ", ".join(
        f"{name.removeprefix(f'{AUC}_')} {'-' if math.isnan(value) else f'{value:.3f}'.removeprefix('0')}"
        for name, value in scores.items()
        if name.startswith(f"{AUC}_")
    )
    return f"loss {scores[LOSS]:.4f}, weighted log loss {scores[WEIGHTED]:.4f}, AUC {areas}"


def to_value(score: float, metric: str) -> float:
    """The score of a metric, turned so that lower is better; infinity where it is not defined."""
    value = -score if metric == MEAN_AUC else score
    return value if math.isfinite(value) else math.inf


def find_best(values: Sequence[float]) -> int | None:
    """Index of the first lowest value; None if no value is finite."""
    finite = [index for index, value in enumerate(values) if math.isfinite(value)]
    return min(finite, key=lambda index: values[index]) if finite else None


def is_out_of_patience(values: Sequence[float], config: ValidationConfig) -> bool:
    """Whether the last `patience` epochs were no better than an earlier one.

    Example:
        >>> is_out_of_patience([0.3, 0.2, 0.25, 0.21], ValidationConfig(share=0.1, patience=2))
        True
    """
    best = find_best(values)
    return config.patience is not None and best is not None and len(values) - 1 - best >= config.patience
