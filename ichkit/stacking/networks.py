"""Second-stage networks: choices on inner patients, final fit, averaging, storage."""

import contextlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from ichkit.core.errors import ArtifactError
from ichkit.core.seeding import derive_seed, make_generator
from ichkit.core.stack_config import NetworkConfig
from ichkit.stacking.inner import Training
from ichkit.stacking.rows import Rows, log_losses_of_logits, mean_by_class
from ichkit.work.artifacts import encode_json

State = Mapping[str, torch.Tensor]

CPU = torch.device("cpu")
MAX_SIZE = 4096
"""Of windows, widths and numbers of networks in a file: far more than anybody trains."""
_LENGTHS = (0.25, 0.5, 1.0)
_MIN_STEPS_PER_EPOCH = 4
_MIN_BATCH = 32
# Training parts larger than this try the last weight decay alone: at 600,000 rows .001 and .1 were a tenth of a percent
# of the loss apart.
_MANY_ROWS = 30_000


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass.

    Attributes:
        rows: (n,) row numbers of its logits, in this order.
        inputs: the arguments of the network except the last, the logits of the base.
    """

    rows: np.ndarray
    inputs: tuple[torch.Tensor, ...]


class NetworkInputs(Protocol):
    """The rows of a training part, or rows to predict, as a kind of network takes them.

    Attributes:
        device: where the networks run; batches lie there.
    """

    device: torch.device

    def make_network(self, seed: int) -> nn.Module:
        """A new network for these inputs, the same for the same seed."""
        ...

    def draw_batches(self, rows: np.ndarray, num_batches: int, generator: np.random.Generator) -> Iterator[Batch]:
        """One epoch over the ascending rows, shuffled and augmented."""
        ...

    def plain_batches(self, rows: np.ndarray) -> Iterator[Batch]:
        """Every one of the ascending rows once, without augmentation."""
        ...


@dataclass(frozen=True)
class Fitted:
    """Networks of one training part.

    Attributes:
        states: per seed, the weights; empty if all shares are 0.
        shares: (C,) float64 in [0, 1], the share of the correction for each class.
        choice: the chosen weight decay and number of epochs, for information.
        inner: (n, C) float64 logits of the inner networks; NaN for rows that are not used for choices.
    """

    states: tuple[State, ...]
    shares: np.ndarray
    choice: dict[str, float]
    inner: np.ndarray


@dataclass(frozen=True)
class CorrectingNetworks(ABC):
    """Fitted networks, averaged, and the share of their correction for each class; each kind adds its own shape.

    Attributes:
        states: per seed, the weights of a network.
        center, scale: float32, for the standardisation of the inputs.
        shares: (C,) float64 in [0, 1]; 0 leaves the calibrated base.
        choice: the chosen weight decay and number of epochs, for information.
    """

    KIND: ClassVar[str]
    WEIGHTS: ClassVar[str] = "networks.safetensors"

    states: tuple[State, ...]
    center: np.ndarray
    scale: np.ndarray
    shares: np.ndarray
    choice: dict[str, float]

    @abstractmethod
    def inputs_of(self, rows: Rows) -> NetworkInputs:
        """The rows as input of these networks."""

    def predict(self, rows: Rows, base_logits: np.ndarray) -> np.ndarray:
        """(N, C) float64 logits: the calibrated base plus each class's share of the correction."""
        logits = np.array(base_logits, np.float64)
        if not self.shares.any() or not len(rows):
            return logits
        corrected: np.ndarray = logits + self.shares * self.correction(rows, logits.shape[1])
        return corrected

    def correction(self, rows: Rows, num_classes: int) -> np.ndarray:
        """(N, C) float64: the mean correction by the networks, before the shares."""
        return mean_correction(self.states, self.inputs_of(rows), len(rows), num_classes)

    def encode(self) -> dict[str, bytes]:
        """File names to bytes, as `load` reads them; the same networks give the same bytes."""
        note = {
            **{name: getattr(self, name) for name in self._shape()},
            "num_seeds": len(self.states),
            "shares": self.shares.tolist(),
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "choice": self.choice,
        }
        tensors = {f"seed{i}.{name}": value for i, state in enumerate(self.states) for name, value in state.items()}
        return {self.WEIGHTS: safetensors.torch.save(tensors), f"{self.KIND}.json": encode_json(note)}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The networks that `encode` wrote.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        try:
            note = json.loads((folder / f"{cls.KIND}.json").read_text())
            tensors = safetensors.torch.load((folder / cls.WEIGHTS).read_bytes())
            shape = {name: tuple(note[name]) if isinstance(note[name], list) else note[name] for name in cls._shape()}
            sizes = [size for value in shape.values() for size in (value if isinstance(value, tuple) else (value,))]
            if not (0 <= note["num_seeds"] <= MAX_SIZE and all(1 <= size <= MAX_SIZE for size in sizes)):
                raise ValueError(f"sizes must be 1 to {MAX_SIZE}")
            prefixes = [f"seed{i}." for i in range(note["num_seeds"])]
            return cls(
                states=tuple(
                    {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
                    for prefix in prefixes
                ),
                center=np.array(note["center"], np.float32),
                scale=np.array(note["scale"], np.float32),
                shares=np.array(note["shares"], np.float64),
                choice=note["choice"],
                **shape,
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            text = f"{folder}: no readable {cls.KIND} network ({error}). Run `ichkit stack` again."
            raise ArtifactError(text) from error

    @classmethod
    def _shape(cls) -> list[str]:
        """The attributes that a kind adds."""
        shared = {field.name for field in fields(CorrectingNetworks)}
        return [field.name for field in fields(cls) if field.name not in shared]


def fit_networks(
    training: Training,
    inputs: NetworkInputs,
    weights: np.ndarray,
    settings: NetworkConfig,
    seed: int,
    before: np.ndarray | None = None,
) -> Fitted:
    """Networks whose weight decay, number of epochs and share per class are chosen on inner patients.

    Args:
        inputs: of the training part's rows.
        weights: (C,) of the classes in the loss.
        before: (n, C) inner logits of a smaller model. The share then says how far to go from that model's logits to
            these networks', and `inner` are the logits after it. None: from the calibrated base.
    """
    start = training.inner_base_logits() if before is None else before
    if not training.is_supported.any():
        nothing = np.zeros(training.labels.shape[1])
        choice = {"weight_decay": settings.weight_decay[-1], "passes": 0}
        return Fitted((), nothing, choice, start)
    with one_thread():
        decay, passes, corrections = _choose_passes(training, inputs, weights, settings, seed)
        steps = corrections if before is None else training.inner_base_logits() + corrections - before
        shares = training.choose_shares(steps, before)
        fit = _Fit(inputs, training.base_logits(), training.labels, weights, settings, decay)
        everything = np.arange(len(training.rows))
        states = []
        for number in range(settings.num_seeds if shares.any() else 0):
            *_, network = fit.run(everything, (passes,), derive_seed(seed, "network", number))
            states.append({name: value.cpu().clone() for name, value in network.state_dict().items()})
    choice = {"weight_decay": decay, "passes": passes}
    return Fitted(tuple(states), shares, choice, start + shares * steps)


def correct(network: nn.Module, inputs: NetworkInputs, rows: np.ndarray, num_classes: int) -> np.ndarray:
    """(n, C) float32: the correction by a network to the logits of the base, in the ascending rows."""
    corrections = np.empty((len(rows), num_classes), np.float32)
    network.eval()
    with torch.inference_mode():
        for batch in inputs.plain_batches(rows):
            nothing = torch.zeros(len(batch.rows), num_classes, device=inputs.device)
            corrections[np.searchsorted(rows, batch.rows)] = network(*batch.inputs, nothing).cpu().numpy()
    return corrections


def mean_correction(states: Sequence[State], inputs: NetworkInputs, num_rows: int, num_classes: int) -> np.ndarray:
    """(N, C) float64: the mean correction by the networks of all seeds."""
    total = np.zeros((num_rows, num_classes))
    with one_thread():
        for state in states:
            network = inputs.make_network(0).to(inputs.device)
            network.load_state_dict(state)
            total += correct(network, inputs, np.arange(num_rows), num_classes)
    return total / len(states)


def _choose_passes(
    training: Training, inputs: NetworkInputs, weights: np.ndarray, settings: NetworkConfig, seed: int
) -> tuple[float, int, np.ndarray]:
    """Weight decay, number of epochs, and the (n, C) corrections of the inner networks with them.

    The number is also valid for the final fit with more rows, because every row is seen equally often.
    """
    rows, inner, mean = training.chosen_rows(), training.inner_base_logits(), training.rows.combined_logits()
    decays = settings.weight_decay[-1:] if len(training.rows) > _MANY_ROWS else settings.weight_decay
    ends = sorted({max(1, round(settings.epochs * share)) for share in _LENGTHS})
    best: tuple[float, float, int, np.ndarray] | None = None
    for decay in decays:
        found = {passes: np.zeros(inner.shape) for passes in ends}
        for part, split in enumerate(training.splits()):
            fit = _Fit(inputs, split.calibration.apply(mean), training.labels, weights, settings, decay)
            networks = fit.run(split.fitting, ends, derive_seed(seed, "inner network", part))
            for passes, network in zip(ends, networks, strict=True):
                found[passes][split.held] = correct(network, inputs, split.held, inner.shape[1])
        for passes, corrections in found.items():
            losses = log_losses_of_logits((inner + corrections)[rows], training.labels[rows])
            loss = float(mean_by_class(losses) @ weights)
            if best is None or loss < best[0]:
                best = (loss, decay, passes, corrections)
    assert best is not None
    return best[1:]


@dataclass(frozen=True)
class _Fit:
    """The training of networks; the same rows and seed give the same bytes on one thread."""

    inputs: NetworkInputs
    base: np.ndarray
    labels: np.ndarray
    class_weights: np.ndarray
    settings: NetworkConfig
    weight_decay: float

    def run(self, rows: np.ndarray, ends: Sequence[int], seed: int) -> Iterator[nn.Module]:
        """The network after each of the ascending numbers of epochs, the same object each time.

        It has the mean weights of its last epochs. Many rows get fewer passes, so that their visits stay within
        `max_visits`; the learning rate falls to zero over all that the rows may have, not over those asked for.
        """
        settings, device = self.settings, self.inputs.device
        base, labels, weights = (
            torch.from_numpy(values.astype(np.float32)).to(device)
            for values in (self.base, self.labels, self.class_weights)
        )
        batch = min(settings.batch_size, max(_MIN_BATCH, len(rows) // _MIN_STEPS_PER_EPOCH))
        num_batches = -(-len(rows) // batch)
        num_epochs = max(1, min(settings.epochs, settings.max_visits // len(rows)))
        ends = [min(end, num_epochs) for end in ends]
        network = self.inputs.make_network(seed).to(device)
        mean = network if settings.averaged_epochs == 1 else self.inputs.make_network(seed).to(device)
        recent: deque[State] = deque(maxlen=settings.averaged_epochs)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_epochs * num_batches)
        for epoch in range(max(ends)):
            network.train()
            batches = self.inputs.draw_batches(rows, num_batches, make_generator(seed, "epoch", epoch))
            with seeded(derive_seed(seed, "dropout", epoch), device):
                for drawn in batches:
                    own = torch.from_numpy(drawn.rows).to(device)
                    logits = network(*drawn.inputs, base[own])
                    known = ~labels[own].isnan()
                    truth = labels[own].nan_to_num(0.0)
                    losses = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
                    means = torch.where(known, losses, 0.0).sum(dim=0) / known.sum(dim=0).clamp(min=1)
                    optimizer.zero_grad()
                    (means @ weights).backward()
                    optimizer.step()
                    schedule.step()
            if mean is not network:
                recent.append({name: value.clone() for name, value in network.state_dict().items()})
            for _ in range(ends.count(epoch + 1)):
                if mean is not network:
                    mean.load_state_dict(
                        {name: torch.stack([state[name] for state in recent]).mean(dim=0) for name in recent[0]}
                    )
                yield mean


def standardisation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the first axis, float32; a constant column is left unscaled."""
    center, scale = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    return center.astype(np.float32), np.where(scale > 1e-3, scale, 1.0).astype(np.float32)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside the block: sums in another order give other bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Torch's generators with that seed inside the block; their states are restored afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
