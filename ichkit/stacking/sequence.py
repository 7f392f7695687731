"""The sequence network on the slices of whole studies: fitted, kept, read back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ichkit.core.stack_config import SequenceConfig, StackConfig
from ichkit.core.tasks import Task
from ichkit.models.recurrent import SequenceNetwork
from ichkit.stacking.inner import Training
from ichkit.stacking.neighbours import study_starts
from ichkit.stacking.networks import Batch, CorrectingNetworks, NetworkInputs, fit_networks, seeded, standardisation
from ichkit.stacking.rows import FACTS, Rows, to_probabilities

_PREDICT_STUDIES = 256


@dataclass(frozen=True)
class SequenceModel(CorrectingNetworks):
    """Networks on whole studies; center and scale are (M * C + E,), of logits and embeddings.

    Attributes:
        hidden: width of each direction.
    """

    KIND = "sequence"

    hidden: int

    def inputs_of(self, rows: Rows) -> NetworkInputs:
        """The rows as these networks take them."""
        return _Studies(rows, self.center, self.scale, SequenceConfig(hidden=self.hidden))


def fit_sequence(training: Training, task: Task, config: StackConfig, seed: int) -> tuple[SequenceModel, np.ndarray]:
    """The sequence networks of a training part, and their logits for its own inner patients.

    Chosen as in `fit_fusion`: weight decay, length of training and share per class on inner patients.

    Returns:
        The model, and (n, C) float64 logits of the inner networks; NaN for rows that take no part in choices.
    """
    settings = config.sequence
    center, scale = standardisation(_measured(training.rows))
    studies = _Studies(training.rows, center, scale, settings)
    fitted = fit_networks(training, studies, task.weight_array(), settings, seed)
    return SequenceModel(fitted.states, center, scale, fitted.shares, fitted.choice, settings.hidden), fitted.inner


def _measured(rows: Rows) -> np.ndarray:
    """(N, M * C + E) float32: logits of every run, then embeddings."""
    return np.concatenate([rows.logits.reshape(len(rows), -1), rows.embeddings], axis=1)


class _Studies:
    """Standardised slices, handed out as whole studies."""

    def __init__(self, rows: Rows, center: np.ndarray, scale: np.ndarray, settings: SequenceConfig) -> None:
        index, num_slices = rows.facts[:, FACTS.index("slice_index")], rows.facts[:, FACTS.index("num_slices")]
        position = index / np.maximum(num_slices - 1, 1) - 0.5
        parts = (
            (_measured(rows) - center) / scale,
            to_probabilities(rows.logits).reshape(len(rows), -1),
            position[:, None],
        )
        self.slices = torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float32))  # (N, channels)
        self.starts = study_starts(rows.study_codes)
        self.lengths = np.diff(np.append(self.starts, len(rows)))
        self.num_classes, self.settings = rows.logits.shape[2], settings

    def make_network(self, seed: int) -> SequenceNetwork:
        """A new network for these slices, the same for the same seed."""
        with seeded(seed):
            return SequenceNetwork(self.slices.shape[1], self.num_classes, self.settings.hidden)

    def draw_batches(self, rows: np.ndarray, num_batches: int, generator: np.random.Generator) -> Iterator[Batch]:
        """One epoch: every study once, some of them read from the other end, some with every second slice left out."""
        studies = self._studies_of(rows)
        order = studies[generator.permutation(len(studies))]
        for chosen in np.array_split(order, min(num_batches, len(order))):
            is_reversed = generator.random(len(chosen)) < self.settings.reversal_probability
            is_thinned = generator.random(len(chosen)) < self.settings.thinning_probability
            offset = generator.integers(2, size=len(chosen))
            drawn = []
            for number, study in enumerate(chosen):
                own = np.arange(self.starts[study], self.starts[study] + self.lengths[study])
                if is_thinned[number] and len(own) > 1:
                    own = own[offset[number] :: 2]
                drawn.append(own[::-1] if is_reversed[number] else own)
            yield self._batch(drawn)

    def plain_batches(self, rows: np.ndarray) -> Iterator[Batch]:
        """Every study once, whole, feet first."""
        studies = self._studies_of(rows)
        for first in range(0, len(studies), _PREDICT_STUDIES):
            chosen = studies[first : first + _PREDICT_STUDIES]
            yield self._batch([np.arange(self.starts[i], self.starts[i] + self.lengths[i]) for i in chosen])

    def _studies_of(self, rows: np.ndarray) -> np.ndarray:
        """Ascending numbers of the studies that the rows make up."""
        return np.unique(np.searchsorted(self.starts, rows, side="right") - 1)

    def _batch(self, studies: Sequence[np.ndarray]) -> Batch:
        """The slices of studies, given as row numbers in the order they are read, padded to the longest."""
        lengths = np.array([len(own) for own in studies])
        padded = np.zeros((len(studies), lengths.max()), np.int64)
        for number, own in enumerate(studies):
            padded[number, : len(own)] = own
        return Batch(np.concatenate(studies), (self.slices[padded], torch.from_numpy(lengths)))
