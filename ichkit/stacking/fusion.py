"""The axial fusion network on windows of adjacent slices: fitted, kept, read back."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from ichkit.core.artifacts import encode_json
from ichkit.core.errors import ArtifactError
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import Task
from ichkit.models.axial import AxialFusion
from ichkit.stacking.inner import Training
from ichkit.stacking.neighbours import neighbour_rows
from ichkit.stacking.networks import (
    Batch,
    State,
    decode_states,
    encode_states,
    fit_networks,
    mean_correction,
    seeded,
    standardisation,
)
from ichkit.stacking.rows import Rows, to_probabilities

_NOTE = "fusion.json"
_WEIGHTS = "networks.safetensors"
_PREDICT_BATCH = 8192


@dataclass(frozen=True)
class FusionModel:
    """Fitted networks, averaged, and how much of their correction each class takes.

    Attributes:
        states: per seed, the weights of an `AxialFusion`.
        center, scale: (M, C) float32, what standardises logits.
        shares: (C,) float64 in [0, 1]; 0 leaves the calibrated base.
        window: slices in the window.
        widths: channels of the two convolutions.
        choice: what was chosen, for people: weight decay and passes over the rows.
    """

    states: tuple[State, ...]
    center: np.ndarray
    scale: np.ndarray
    shares: np.ndarray
    window: int
    widths: tuple[int, int]
    choice: dict[str, float]

    def predict(self, rows: Rows, base_logits: np.ndarray) -> np.ndarray:
        """(N, C) float64 logits: the calibrated base plus each class's share of the correction."""
        logits = np.array(base_logits, np.float64)
        if not self.shares.any() or not len(rows):
            return logits
        windows = _Windows(rows, self.center, self.scale, self.window, self.widths)
        return logits + self.shares * mean_correction(self.states, windows, *logits.shape)

    def encode(self) -> dict[str, bytes]:
        """File names to bytes, as `load_fusion` reads them."""
        note = {
            "window": self.window,
            "widths": self.widths,
            "num_seeds": len(self.states),
            "shares": self.shares.tolist(),
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "choice": self.choice,
        }
        return {_WEIGHTS: encode_states(self.states), _NOTE: encode_json(note)}


def load_fusion(folder: Path) -> FusionModel:
    """The networks that `FusionModel.encode` wrote.

    Raises:
        ArtifactError: a file is missing or is not what was written.
    """
    try:
        note = json.loads((folder / _NOTE).read_text())
        return FusionModel(
            states=decode_states((folder / _WEIGHTS).read_bytes(), note["num_seeds"]),
            center=np.array(note["center"], np.float32),
            scale=np.array(note["scale"], np.float32),
            shares=np.array(note["shares"], np.float64),
            window=int(note["window"]),
            widths=(int(note["widths"][0]), int(note["widths"][1])),
            choice=note["choice"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: no readable fusion network ({error}). Run `ichkit stack` again.") from error


def fit_fusion(training: Training, task: Task, config: StackConfig, seed: int) -> tuple[FusionModel, np.ndarray]:
    """The fusion networks of a training part, and their logits for its own inner patients.

    Weight decay and length of training are chosen by the weighted loss on inner patients; then each class takes the
    share of the correction that is best on them, none where the gain on the calibrated base is not clear.

    Returns:
        The model, and (n, C) float64 logits of the inner networks; NaN for rows that take no part in choices.
    """
    settings = config.fusion
    center, scale = standardisation(training.rows.logits)
    windows = _Windows(training.rows, center, scale, settings.window, settings.channels)
    fitted = fit_networks(training, windows, task.weight_array(), settings, seed)
    model = FusionModel(fitted.states, center, scale, fitted.shares, settings.window, settings.channels, fitted.choice)
    return model, fitted.inner


class _Windows:
    """Standardised descriptors of rows, gathered window by window as they are needed."""

    def __init__(self, rows: Rows, center: np.ndarray, scale: np.ndarray, window: int, widths: tuple[int, int]) -> None:
        logits = (rows.logits - center) / scale
        both = np.concatenate([logits, to_probabilities(rows.logits).astype(np.float32)], axis=1)
        self.descriptors = torch.from_numpy(both.reshape(len(rows), -1))  # (N, 2 * M * C)
        self.neighbours = torch.from_numpy(neighbour_rows(rows.study_codes, window))  # (N, window)
        self.num_classes, self.window, self.widths = rows.logits.shape[2], window, widths

    def make_network(self, seed: int) -> AxialFusion:
        """A new network for these descriptors, the same for the same seed."""
        with seeded(seed):
            return AxialFusion(self.descriptors.shape[1], self.num_classes, self.window, self.widths)

    def draw_batches(self, rows: np.ndarray, num_batches: int, generator: np.random.Generator) -> Iterator[Batch]:
        """One epoch: every row once, in another order."""
        for chosen in np.array_split(rows[generator.permutation(len(rows))], num_batches):
            yield Batch(chosen, (self._gather(chosen),))

    def plain_batches(self, rows: np.ndarray) -> Iterator[Batch]:
        """Every row once, in order."""
        for first in range(0, len(rows), _PREDICT_BATCH):
            chosen = rows[first : first + _PREDICT_BATCH]
            yield Batch(chosen, (self._gather(chosen),))

    def _gather(self, chosen: np.ndarray) -> torch.Tensor:
        """(B, 2 * M * C, window) float32 windows of the chosen rows."""
        return self.descriptors[self.neighbours[chosen]].transpose(1, 2)
