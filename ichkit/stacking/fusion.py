"""Fits the axial fusion network: length of training, weight decay and share per class are chosen on inner patients."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from ichkit.core.artifacts import encode_json
from ichkit.core.config import FusionConfig, StackConfig
from ichkit.core.errors import ArtifactError
from ichkit.core.seeding import derive_seed, make_generator
from ichkit.core.tasks import Task
from ichkit.models.axial import AxialFusion
from ichkit.stacking.inner import Training
from ichkit.stacking.neighbours import neighbour_rows
from ichkit.stacking.rows import Rows, log_losses, to_probabilities

_NOTE = "fusion.json"
_WEIGHTS = "networks.safetensors"
_LENGTHS = (0.25, 0.5, 1.0)
_MIN_STEPS_PER_EPOCH = 4
_MIN_BATCH = 32
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
        choice: what was chosen, for people: weight decay and epochs.
    """

    states: tuple[dict[str, torch.Tensor], ...]
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
        with _one_thread():
            windows = _Windows(rows, self.center, self.scale, self.window)
            corrections = [windows.correct(self._network(state), np.arange(len(rows))) for state in self.states]
        return logits + self.shares * np.mean(corrections, axis=0, dtype=np.float64)

    def encode(self) -> dict[str, bytes]:
        """File names to bytes, as `load_fusion` reads them."""
        tensors = {f"seed{i}.{name}": value for i, state in enumerate(self.states) for name, value in state.items()}
        note = {
            "window": self.window,
            "widths": self.widths,
            "num_seeds": len(self.states),
            "shares": self.shares.tolist(),
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "choice": self.choice,
        }
        return {_WEIGHTS: safetensors.torch.save(tensors), _NOTE: encode_json(note)}

    def _network(self, state: dict[str, torch.Tensor]) -> AxialFusion:
        num_runs, num_classes = self.center.shape
        network = AxialFusion(2 * num_runs, num_classes, self.window, self.widths)
        network.load_state_dict(state)
        return network


def load_fusion(folder: Path) -> FusionModel:
    """The networks that `FusionModel.encode` wrote.

    Raises:
        ArtifactError: a file is missing or is not what was written.
    """
    try:
        note = json.loads((folder / _NOTE).read_text())
        tensors = safetensors.torch.load((folder / _WEIGHTS).read_bytes())
        states = [
            {name.removeprefix(f"seed{i}."): value for name, value in tensors.items() if name.startswith(f"seed{i}.")}
            for i in range(note["num_seeds"])
        ]
        return FusionModel(
            states=tuple(states),
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
    with _one_thread():
        center, scale = _standardisation(training.rows)
        windows = _Windows(training.rows, center, scale, settings.window)
        weights = task.weight_array()
        decay, num_epochs, corrections = _choose_length(training, windows, weights, settings, seed)
        inner = training.inner_base_logits()
        shares = training.choose_shares(corrections)
        base = torch.from_numpy(training.base_logits().astype(np.float32))
        labels = torch.from_numpy(training.labels.astype(np.float32))
        everything = np.arange(len(training.rows))
        states = []
        for number in range(settings.num_seeds if shares.any() else 0):
            fit = _Fit(windows, base, labels, weights, settings, decay, derive_seed(seed, "fusion", number))
            *_, network = fit.run(everything, (num_epochs,))
            states.append({name: value.clone() for name, value in network.state_dict().items()})
    choice = {"weight_decay": decay, "epochs": num_epochs}
    model = FusionModel(tuple(states), center, scale, shares, settings.window, settings.channels, choice)
    return model, inner + shares * corrections


def _choose_length(
    training: Training, windows: "_Windows", weights: np.ndarray, settings: FusionConfig, seed: int
) -> tuple[float, int, np.ndarray]:
    """Weight decay, epochs, and the (n, C) corrections of the inner networks trained with them."""
    lengths = sorted({max(1, round(settings.epochs * length)) for length in _LENGTHS})
    rows = training.chosen_rows()
    labels = torch.from_numpy(training.labels.astype(np.float32))
    mean, inner = training.rows.mean_logits(), training.inner_base_logits()
    best: tuple[float, float, int, np.ndarray] | None = None
    for decay in settings.weight_decay:
        found = {length: np.zeros(inner.shape) for length in lengths}
        for part, split in enumerate(training.splits()):
            base = torch.from_numpy(split.calibration.apply(mean).astype(np.float32))
            fit = _Fit(windows, base, labels, weights, settings, decay, derive_seed(seed, "fusion inner", part))
            for length, network in zip(lengths, fit.run(split.fitting, lengths), strict=True):
                found[length][split.held] = windows.correct(network, split.held)
        for length, corrections in found.items():
            losses = log_losses((inner + corrections)[rows], training.labels[rows])
            loss = float(losses.mean(axis=0) @ weights)
            if best is None or loss < best[0]:
                best = (loss, decay, length, corrections)
    assert best is not None
    return best[1:]


@dataclass(frozen=True)
class _Fit:
    """One training of one network; the same arguments give the same weights, bit by bit, on one thread."""

    windows: "_Windows"
    base: torch.Tensor
    labels: torch.Tensor
    class_weights: np.ndarray
    settings: FusionConfig
    weight_decay: float
    seed: int

    def run(self, rows: np.ndarray, lengths: Sequence[int]) -> Iterator[AxialFusion]:
        """The network after each of the ascending numbers of epochs, always the same object, trained on."""
        batch = min(self.settings.batch_size, max(_MIN_BATCH, len(rows) // _MIN_STEPS_PER_EPOCH))
        num_batches = -(-len(rows) // batch)
        network = self.windows.make_network(self.settings.channels, self.seed)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.settings.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.settings.epochs * num_batches)
        weights = torch.from_numpy(self.class_weights.astype(np.float32))
        for epoch in range(max(lengths)):
            order = rows[make_generator(self.seed, "epoch", epoch).permutation(len(rows))]
            for chosen in np.array_split(order, num_batches):
                logits = network(self.windows.gather(chosen), self.base[chosen])
                losses = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, self.labels[chosen], reduction="none"
                )
                optimizer.zero_grad()
                (losses.mean(dim=0) @ weights).backward()
                optimizer.step()
                schedule.step()
            if epoch + 1 in lengths:
                yield network


class _Windows:
    """Standardised descriptors of rows, gathered window by window as they are needed."""

    def __init__(self, rows: Rows, center: np.ndarray, scale: np.ndarray, window: int) -> None:
        logits = (rows.logits - center) / scale
        both = np.concatenate([logits, to_probabilities(rows.logits).astype(np.float32)], axis=1)
        self.descriptors = torch.from_numpy(both)  # (N, 2 * M, C)
        self.neighbours = torch.from_numpy(neighbour_rows(rows.study_codes, window))  # (N, window)
        self.window = window

    def make_network(self, widths: tuple[int, int], seed: int) -> AxialFusion:
        """A new network for these descriptors; the global generator is left as it was."""
        _, num_channels, num_classes = self.descriptors.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AxialFusion(num_channels, num_classes, self.window, widths)

    def gather(self, chosen: np.ndarray) -> torch.Tensor:
        """(B, 2 * M, window, C) float32 windows of the chosen rows."""
        return self.descriptors[self.neighbours[chosen]].transpose(1, 2)

    def correct(self, network: AxialFusion, chosen: np.ndarray) -> np.ndarray:
        """(B, C) float32: what the network adds to the base's logits in the chosen rows."""
        nothing = torch.zeros(1, self.descriptors.shape[2])
        with torch.inference_mode():
            parts = [
                network(self.gather(chosen[start : start + _PREDICT_BATCH]), nothing)
                for start in range(0, len(chosen), _PREDICT_BATCH)
            ]
        return torch.cat(parts).numpy()


def _standardisation(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(M, C) float32 mean and standard deviation of the logits; a constant class is left unscaled."""
    center, scale = rows.logits.mean(axis=0, dtype=np.float64), rows.logits.std(axis=0, dtype=np.float64)
    return center.astype(np.float32), np.where(scale > 1e-3, scale, 1.0).astype(np.float32)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread for as long as the block runs: sums in another order would be other bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
