"""The axial fusion network on windows of adjacent slices."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ichkit.core.logits import to_probabilities
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import Task
from ichkit.models.axial import AxialFusion
from ichkit.stacking.inner import Training
from ichkit.stacking.neighbours import neighbour_rows
from ichkit.stacking.networks import (
    CPU,
    Batch,
    CorrectingNetworks,
    NetworkInputs,
    fit_networks,
    seeded,
    standardisation,
)
from ichkit.stacking.rows import Rows

_PREDICT_BATCH = 8192


@dataclass(frozen=True)
class FusionModel(CorrectingNetworks):
    """Networks on windows of adjacent slices; center and scale are (M, C), of logits.

    Attributes:
        window: slices in the window.
        widths: channels of the two convolutions.
    """

    KIND = "fusion"

    window: int
    widths: tuple[int, int]

    def inputs_of(self, rows: Rows) -> NetworkInputs:
        """The rows as input of these networks."""
        return _Windows(rows, self.center, self.scale, self.window, self.widths)


def fit_fusion(training: Training, task: Task, config: StackConfig, seed: int) -> tuple[FusionModel, np.ndarray]:
    """The fusion networks of a training part, and their logits for its own inner patients.

    Weight decay and number of epochs are chosen by the weighted loss on inner patients; then the correction of each
    class is shrunk by the significance of its gain over the calibrated base on these patients.

    Returns:
        The model, and (n, C) float64 logits of the inner networks; NaN for rows that are not used for choices.
    """
    settings = config.fusion
    center, scale = standardisation(training.rows.logits)
    windows = _Windows(training.rows, center, scale, settings.window, settings.channels)
    fitted = fit_networks(training, windows, task.weight_array(), settings, seed)
    shape = (settings.window, settings.channels)
    return FusionModel(fitted.states, center, scale, fitted.shares, fitted.choice, *shape), fitted.inner


class _Windows:
    """Standardised descriptors of rows; windows are gathered on demand."""

    device = CPU

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
        """One epoch: every row once, in random order."""
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
