"""The sequence networks, small and wide, on the slices of whole studies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ichkit.core.errors import ConfigError
from ichkit.core.logits import to_probabilities
from ichkit.core.seeding import derive_seed
from ichkit.core.stack_config import SequenceConfig, StackConfig, WideConfig
from ichkit.core.tasks import Task
from ichkit.models.recurrent import SequenceNetwork
from ichkit.stacking.inner import Training
from ichkit.stacking.neighbours import study_starts
from ichkit.stacking.networks import (
    CPU,
    Batch,
    CorrectingNetworks,
    NetworkInputs,
    fit_networks,
    seeded,
    standardisation,
)
from ichkit.stacking.rows import FACTS, Rows

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
        """The rows as input of these networks."""
        return _Studies(rows, self.center, self.scale, SequenceConfig(hidden=self.hidden))


@dataclass(frozen=True)
class WideModel(SequenceModel):
    """Wide networks on whole studies; their shares weigh them against the small networks, by class."""

    KIND = "wide"
    WEIGHTS = "wide.safetensors"

    def inputs_of(self, rows: Rows) -> NetworkInputs:
        """The rows as input of these networks."""
        return _Studies(rows, self.center, self.scale, SequenceConfig(), WideConfig(units=self.hidden))


@dataclass(frozen=True)
class WidenedModel:
    """Small sequence networks, and wide ones with the share that inner patients support."""

    small: SequenceModel
    wide: WideModel

    def predict(self, rows: Rows, base_logits: np.ndarray) -> np.ndarray:
        """(N, C) float64 logits: between those of the small and of the wide networks, class by class."""
        logits = self.small.predict(rows, base_logits)
        if not self.wide.shares.any() or not len(rows):
            return logits
        step = base_logits + self.wide.correction(rows, logits.shape[1]) - logits
        widened: np.ndarray = logits + self.wide.shares * step
        return widened

    def encode(self) -> dict[str, bytes]:
        """File names to bytes, as `load_sequence` reads them."""
        return self.small.encode() | self.wide.encode()


def load_sequence(folder: Path) -> SequenceModel | WidenedModel:
    """The networks that `fit_sequence` gave.

    Raises:
        ArtifactError: a file is missing or is not what was written.
    """
    small = SequenceModel.load(folder)
    if not (folder / f"{WideModel.KIND}.json").is_file():
        return small
    return WidenedModel(small, WideModel.load(folder))


def fit_sequence(
    training: Training, task: Task, config: StackConfig, seed: int
) -> tuple[SequenceModel | WidenedModel, np.ndarray]:
    """The sequence networks of a training part, and their logits for its own inner patients.

    Weight decay, number of epochs and share per class are chosen on inner patients, as in `fit_fusion`. Wide networks
    are chosen by the same rule, with the small ones in the place of the base: a class without a clear gain keeps them.

    Returns:
        The model, and (n, C) float64 logits of the inner networks; NaN for rows that are not used for choices.

    Raises:
        ConfigError: `wide.accelerator` is "cuda" and there is no GPU.
    """
    settings, wide, weights = config.sequence, config.sequence.wide, task.weight_array()
    center, scale = standardisation(_measured(training.rows))
    studies = _Studies(training.rows, center, scale, settings)
    fitted = fit_networks(training, studies, weights, settings, seed)
    small = SequenceModel(fitted.states, center, scale, fitted.shares, fitted.choice, settings.hidden)
    if not wide.units:
        return small, fitted.inner
    studies = _Studies(training.rows, center, scale, settings, wide)
    widened = fit_networks(training, studies, weights, wide, derive_seed(seed, "wide"), before=fitted.inner)
    model = WideModel(widened.states, center, scale, widened.shares, widened.choice, wide.units)
    return WidenedModel(small, model), widened.inner


def _measured(rows: Rows) -> np.ndarray:
    """(N, M * C + E) float32: logits of every run, then embeddings."""
    return np.concatenate([rows.logits.reshape(len(rows), -1), rows.embeddings], axis=1)


class _Studies:
    """Standardised slices, in batches of whole studies, for the small or the wide network."""

    def __init__(
        self,
        rows: Rows,
        center: np.ndarray,
        scale: np.ndarray,
        settings: SequenceConfig,
        wide: WideConfig | None = None,
    ) -> None:
        index, num_slices = rows.facts[:, FACTS.index("slice_index")], rows.facts[:, FACTS.index("num_slices")]
        position = index / np.maximum(num_slices - 1, 1) - 0.5
        parts = (
            (_measured(rows) - center) / scale,
            to_probabilities(rows.logits).reshape(len(rows), -1),
            position[:, None],
        )
        self.device = CPU if wide is None else _find_device(wide.accelerator)
        self.slices = torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float32)).to(self.device)  # (N, channels)
        self.starts = study_starts(rows.study_codes)
        self.lengths = np.diff(np.append(self.starts, len(rows)))
        self.num_classes, self.settings, self.wide = rows.logits.shape[2], settings, wide
        self.num_measured = len(center)

    def make_network(self, seed: int) -> SequenceNetwork:
        """A new network for these slices, the same for the same seed."""
        shape = (self.slices.shape[1], self.num_classes)
        with seeded(seed):
            if self.wide is None:
                return SequenceNetwork(*shape, self.settings.hidden)
            return SequenceNetwork(
                *shape, self.wide.units, num_differenced=self.num_measured, dropout=self.wide.dropout
            )

    def draw_batches(self, rows: np.ndarray, num_batches: int, generator: np.random.Generator) -> Iterator[Batch]:
        """One epoch: every study once, some in reverse order, some with every second slice omitted."""
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
        """Every study once, complete, from the feet to the head."""
        studies = self._studies_of(rows)
        for first in range(0, len(studies), _PREDICT_STUDIES):
            chosen = studies[first : first + _PREDICT_STUDIES]
            yield self._batch([np.arange(self.starts[i], self.starts[i] + self.lengths[i]) for i in chosen])

    def _studies_of(self, rows: np.ndarray) -> np.ndarray:
        """Ascending numbers of the studies of the rows."""
        return np.unique(np.searchsorted(self.starts, rows, side="right") - 1)

    def _batch(self, studies: Sequence[np.ndarray]) -> Batch:
        """The slices of studies, given as ordered row numbers, padded to the longest study."""
        lengths = np.array([len(own) for own in studies])
        padded = np.zeros((len(studies), lengths.max()), np.int64)
        for number, own in enumerate(studies):
            padded[number, : len(own)] = own
        places = torch.from_numpy(padded).to(self.device)
        return Batch(np.concatenate(studies), (self.slices[places], torch.from_numpy(lengths).to(self.device)))


def _find_device(accelerator: str) -> torch.device:
    """The device of the wide networks.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            'stack.sequence.wide.accelerator: "cuda", but torch finds no GPU. Use auto or cpu, or run `ichkit doctor`.'
        )
    return CPU if accelerator == "cpu" or not torch.cuda.is_available() else torch.device("cuda")
