"""Inference with the model of one fold: from volumes in Hounsfield units to the probabilities of every slice."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from ichkit.core.config import ChannelsConfig, Config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.rows import find_row
from ichkit.core.tasks import Task, find_task
from ichkit.core.train_config import OF_STUDY, ContextConfig, PoolConfig, check_backbone_args
from ichkit.imaging.parts import UNCUT, PartSettings
from ichkit.imaging.sequences import SequenceSettings
from ichkit.imaging.steps import find_step
from ichkit.imaging.views import TTA_SETS, View
from ichkit.imaging.windows import make_rendering, pad_to_square, resize_volume
from ichkit.models.context import centre_positions
from ichkit.models.descriptor import DescriptorNetwork, build_network
from ichkit.validation.scope import Scope
from ichkit.work.artifacts import check_digests, read_manifest
from ichkit.work.folder import CARD_NAME, WEIGHTS_NAME

_MAX_SIDE = 4096
_MAX_STEPS = 10
_MAX_BATCH_PIXELS = 2**27
"""Eight times the default batch of 64 images of 512 x 512."""
_MAX_WINDOW = 1000


@dataclass(frozen=True)
class ModelCard:
    """Everything needed to rebuild a network and its input; `model.json` beside the weights.

    Attributes:
        task: name of the task.
        backbone: name of the backbone.
        channels: the channels section of the config.
        image_size: height and width of the images in pixels.
        prepare_size: `prepare.size` of the training store; slices of a new study are resized to it first.
        hull_hu: HU range of that store; slices of a new study are clipped to it.
        tta: test-time augmentation, a row of `imaging.views.TTA_SETS`.
        batch_size: images per forward pass; recorded because it changes the last bits of a probability.
        tta_average: what is averaged over the views, "probability" or "logit".
        backbone_args: further arguments of the backbone's constructor.
        steps: steps of that store (`imaging.steps.STEPS`), done to the volume of a new study; none in older cards.
        context, pool: these sections of the config; cards of earlier versions have none.
        parts: how studies of that store were cut (`imaging.parts.PartSettings`); empty for whole studies.
        sequences: how several sequences of a study became one volume (`imaging.sequences.SequenceSettings`); empty for
            one, as of CT.
        window: slices that see each other: of a longer study the mean over windows that overlap by half.
        classes: those it predicts, in the order of the task; empty for all, as in older cards.
    """

    task: str
    backbone: str
    channels: dict[str, Any]
    image_size: int
    prepare_size: int | None
    hull_hu: tuple[int, int]
    tta: str
    batch_size: int
    tta_average: str = "probability"
    backbone_args: dict[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    context: dict[str, Any] = field(default_factory=lambda: ContextConfig().settings())
    pool: dict[str, Any] = field(default_factory=lambda: PoolConfig().settings())
    window: int = 1
    classes: tuple[str, ...] = ()
    parts: dict[str, Any] = field(default_factory=dict)
    sequences: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Config,
        prepare_size: int | None,
        hull_hu: tuple[int, int],
        steps: Sequence[str] = (),
        parts: PartSettings = UNCUT,
        sequences: dict[str, Any] | None = None,
    ) -> "ModelCard":
        """The card of a network trained with this config on a store of that size, HU range, steps and parts."""
        return cls(
            task=config.task,
            backbone=config.train.backbone,
            channels=config.channels.settings(),
            image_size=config.train.image_size,
            prepare_size=prepare_size,
            hull_hu=hull_hu,
            tta=find_row(TTA_SETS, config.train.tta, "train.tta").name,
            tta_average=config.train.tta_average,
            batch_size=config.train.predict_batch,
            backbone_args=config.train.backbone_args,
            steps=tuple(steps),
            context=config.train.context.settings(),
            pool=config.train.pool.settings(),
            window=config.train.longest_block,
            classes=Scope.of(find_task(config.task), config.train.classes).classes if config.train.classes else (),
            parts=parts.to_json(),
            sequences=sequences or {},
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values, without empty sequences, so that cards of CT stay byte-identical."""
        return {name: value for name, value in asdict(self).items() if name != "sequences" or value}

    def build(
        self,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        pretrained: str = "none",
        num_classes: int | None = None,
    ) -> DescriptorNetwork:
        """The network with random or pretrained weights.

        Args:
            drop_rate, drop_path_rate, pretrained: see `models.descriptor.build_network`.
            num_classes: number of outputs; None for the number of classes it predicts.

        Raises:
            ConfigError: see `models.descriptor.build_network`.
        """
        channels = make_rendering(ChannelsConfig(**self.channels))
        return build_network(
            self.backbone,
            num_channels=channels.num_channels,
            num_classes=num_classes or len(self.classes) or find_task(self.task).num_classes,
            image_size=self.image_size,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            pretrained=pretrained,
            backbone_args=self.backbone_args,
            context=ContextConfig(**self.context),
            pool=PoolConfig(**self.pool),
        )


class StudyReading(NamedTuple):
    """The predictions of a network for one study.

    Attributes:
        probabilities: (S, K) float32, the descriptors of the classes that the network predicts; those of the study for
            every slice with `train.pool.writes: study`.
        of_slices: (S, K) float32, of each slice alone; the same without a context.
        features: (S, F) float16 penultimate-layer features of each slice alone.
        of_study: (K,) float32, and
        weights: (S, K) float32, the part of each slice in it; None without pooling.
    """

    probabilities: np.ndarray
    of_slices: np.ndarray
    features: np.ndarray
    of_study: np.ndarray | None = None
    weights: np.ndarray | None = None


class Predictor:
    """A network for inference, with the preprocessing of its input.

    Every volume is predicted on its own in batches of the card's size, so that other studies do not change its result.

    Args:
        card: see `ModelCard`.
        network: uint8 images to logits, with its trained weights.
        device: device of the computation, always in float32.
    """

    def __init__(self, card: ModelCard, network: DescriptorNetwork, device: torch.device) -> None:
        self.card, self.device = card, device
        self.rendering = make_rendering(ChannelsConfig(**card.channels))
        self.network: DescriptorNetwork = network.eval().requires_grad_(False).to(device)
        self.network.use_channels_last()

    @property
    def task(self) -> Task:
        """The task it predicts."""
        return find_task(self.card.task)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes it predicts, in the order of the task."""
        return self.card.classes or self.task.classes

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(..., C) values of every class of the task, NaN for those that it does not predict, from its (..., K)."""
        return Scope(self.task, self.classes).spread(values)

    @property
    def num_features(self) -> int:
        """Size of the penultimate-layer embeddings."""
        return int(self.network.backbone.get_classifier().in_features)

    def predict_volume(self, volume: np.ndarray, positions_mm: np.ndarray | None = None) -> np.ndarray:
        """The probabilities of every slice of one study.

        Args:
            volume: (S, H, W) int16 HU, row i is slice_index i, as in the store.
            positions_mm: (S,) of the slices along their normal; None for slices 5 mm apart. Used by a context alone.

        Returns:
            (S, K) float32 in [0, 1].
        """
        return self.read_study(volume, positions_mm).probabilities

    def describe_volume(
        self, volume: np.ndarray, positions_mm: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The probabilities and penultimate-layer embeddings of every slice of one study.

        Args:
            volume, positions_mm: as for `predict_volume`.

        Returns:
            (S, K) float32 in [0, 1], the same bytes as from `predict_volume`; (S, F) float16, the mean over the views
            of test-time augmentation.
        """
        study = self.read_study(volume, positions_mm)
        return study.probabilities, study.features

    @torch.inference_mode()
    def read_study(self, volume: np.ndarray, positions_mm: np.ndarray | None = None) -> StudyReading:
        """All predictions of the network for one study; the mean over the views of test-time augmentation.

        Args:
            volume, positions_mm: as for `predict_volume`.
        """
        positions = self.centre(len(volume), positions_mm)
        fitted = self._fit(volume)
        tta = find_row(TTA_SETS, self.card.tta, "tta")
        encoded = [self._encode(fitted, view) for view in tta.views]
        found = [self._combine(*of_view, positions) for of_view in encoded]
        if tta.phases > 1 and self.network.sees_blocks:
            found += [self._combine_phases(*of_view, positions, tta.phases) for of_view in encoded]
        study = [of_study for _, of_study, _ in found if of_study is not None]
        weights = [of_study for *_, of_study in found if of_study is not None]
        of_study = self._average(study) if study else None
        probabilities = self._average([series for series, *_ in found])
        if of_study is not None and self.card.pool.get("writes") == OF_STUDY:
            probabilities = np.tile(of_study, (len(volume), 1))
        return StudyReading(
            probabilities=probabilities,
            of_slices=self._average([logits for _, logits in encoded]),
            features=_mean([features for features, _ in encoded]).astype(np.float16),
            of_study=of_study,
            weights=_mean(weights) if weights else None,
        )

    @torch.inference_mode()
    def encode_study(self, volume: np.ndarray, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (S, F) and logits (S, K) of the slices of a study in one view, each slice alone."""
        return self._encode(self._fit(volume), view)

    def _fit(self, volume: np.ndarray) -> np.ndarray:
        """The (S, size, size) volume at the size of the network's images."""
        return resize_volume(pad_to_square(volume), self.card.image_size)

    def _encode(self, fitted: np.ndarray, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """As `encode_study`, of a volume from `_fit`."""
        images_of = self._render(view.show(fitted))
        if self.network.sees_volumes:
            images_of = iter([np.concatenate(list(images_of))])
        parts = [self.network.encode(torch.from_numpy(images).to(self.device)) for images in images_of]
        features, logits = (torch.cat(part).float() for part in zip(*parts, strict=True))
        return features, logits

    def attend(
        self,
        encoded: tuple[torch.Tensor, torch.Tensor],
        study: tuple[torch.Tensor, torch.Tensor],
        rows: np.ndarray,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """(n, K) descriptor logits of some slices, a function of their own features with the rest of the study fixed.

        Args:
            encoded: features (n, F) and logits (n, K) of these slices, through which gradients flow.
            study: those of every slice, from `encode_study`.
            rows: (n,) places of the slices in the study.
            positions: (S,) from `centre`.
        """
        if not self.network.sees_blocks:
            return encoded[1].float()
        num_slices, each = len(positions), torch.arange(len(rows), device=self.device)
        size = min(self.card.window, num_slices)
        starts = np.clip(rows - size // 2, 0, num_slices - size)  # the slice in the middle
        grid = torch.from_numpy(starts[:, None] + np.arange(size)).to(self.device)
        own = (each, torch.from_numpy(rows - starts).to(self.device))
        pairs = zip(study, encoded, strict=True)
        features, logits = (whole[grid].index_put(own, part.float()) for whole, part in pairs)
        is_real = torch.ones(grid.shape, dtype=torch.bool)
        return self.network.combine(features, logits, is_real, positions[grid]).descriptor[own]

    def centre(self, num_slices: int, positions_mm: np.ndarray | None) -> torch.Tensor:
        """(S,) positions as the network gets them, see `centre_positions`."""
        known = np.full(num_slices, np.nan) if positions_mm is None else positions_mm
        return torch.from_numpy(centre_positions(known)).to(self.device)

    def _combine(
        self, features: torch.Tensor, logits: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """(S, K) logits of the slices of a study, and with pooling (K,) logits of the study and (S, K) weights.

        A study with more slices than the window is read in windows that overlap by half, and the logits of a slice are
        the mean over its windows. Studies are pooled over the same windows: the logits are those of the highest window
        of each class, with its weights.
        """
        if not self.network.sees_blocks:
            return logits, None, None
        num_slices, size = len(logits), min(self.card.window, len(logits))
        rows = torch.from_numpy(window_starts(num_slices, size)[:, None] + np.arange(size)).to(self.device)
        is_real = torch.ones(rows.shape, dtype=torch.bool)
        found = self.network.combine(features[rows], logits[rows], is_real, positions[rows])
        flat, counts = rows.flatten(), torch.bincount(rows.flatten(), minlength=num_slices)
        descriptor = found.descriptor.flatten(0, 1)
        series = torch.zeros_like(logits).index_add(0, flat, descriptor) / counts[:, None]
        if found.study is None:
            return series, None, None
        best = found.study.logits.argmax(0)  # (K,)
        classes = torch.arange(logits.shape[1], device=self.device)
        weights = torch.zeros_like(logits)
        weights[rows[best].T, classes] = found.study.weights[best, :, classes].T
        return series, found.study.logits[best, classes], weights

    def _combine_phases(
        self, features: torch.Tensor, logits: torch.Tensor, positions: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """As `_combine`, of `count` readings that each have every `count`-th slice.

        The logits of the study are the mean over the readings, as are the weights; those of a slice are from its own.
        """
        phases = [torch.arange(first, len(logits), count) for first in range(min(count, len(logits)))]
        found = [self._combine(features[rows], logits[rows], positions[rows]) for rows in phases]
        order = torch.cat(phases).argsort()
        series = torch.cat([own for own, *_ in found])[order]
        study = [own for _, own, _ in found if own is not None]
        weights = [own for *_, own in found if own is not None]
        if not study:
            return series, None, None
        return series, torch.stack(study).mean(0), torch.cat(weights)[order] / len(phases)

    def _average(self, logits: Sequence[torch.Tensor]) -> np.ndarray:
        """Probabilities from the logits of each view."""
        if self.card.tta_average == "logit":
            return torch.from_numpy(_mean(logits)).sigmoid().numpy()
        # Batch by batch: torch computes the elements that do not fill a vector with another last bit.
        batches = [of_view.split(self.card.batch_size) for of_view in logits]
        return _mean([torch.cat([part.sigmoid() for part in parts]) for parts in batches])

    def _render(self, volume: np.ndarray) -> Iterator[np.ndarray]:
        """Batches of (n, H, W, C) uint8 images of slices of the right size."""
        rows = np.arange(len(volume))
        for first in range(0, len(rows), self.card.batch_size):
            yield self.rendering.render(volume, rows[first : first + self.card.batch_size])


def spread_positions(rows: pd.DataFrame, num_slices: int) -> np.ndarray:
    """(S,) position_mm of the slices of a study, by slice_index; NaN for slices that are not among the rows."""
    positions = np.full(num_slices, np.nan)
    positions[rows["slice_index"].to_numpy()] = rows["position_mm"].to_numpy()
    return positions


def _mean(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """The mean over the views."""
    mean: np.ndarray = (torch.stack(list(parts)).sum(0) / len(parts)).cpu().numpy()
    return mean


def window_starts(num_slices: int, size: int) -> np.ndarray:
    """(W,) int64 first slices of windows that overlap by half and cover a study.

    Example:
        >>> window_starts(100, 40).tolist()
        [0, 20, 40, 60]
        >>> window_starts(45, 40).tolist()
        [0, 5]
    """
    last = num_slices - size
    return np.unique(np.append(np.arange(0, last + 1, max(size // 2, 1)), last))


def load_predictor(fold_folder: Path, device: str = "auto") -> Predictor:
    """The predictor of a finished fold.

    Args:
        device: "auto" for a GPU if available, or any name of a torch device.

    Raises:
        ArtifactError: the fold is missing, unfinished or damaged.
        ConfigError: the device is unknown or not available.
    """
    check_digests(fold_folder, read_manifest(fold_folder), (CARD_NAME, WEIGHTS_NAME))
    return read_predictor(fold_folder, device)


def read_predictor(folder: Path, device: str = "auto") -> Predictor:
    """The predictor from the weights and card in a folder, finished or not.

    Raises:
        ArtifactError: weights or card are missing, damaged or do not fit each other.
        ConfigError: the device is unknown or not available.
    """
    found = find_device(device)
    try:
        card = read_card(folder)
        _check_weights(card, folder / WEIGHTS_NAME)
        network = card.build()
        network.load_state_dict(load_file(folder / WEIGHTS_NAME))
        if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
            raise RuntimeError("a weight is not finite.")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder / WEIGHTS_NAME}: expected the weights that {CARD_NAME} describes: {str(error).splitlines()[0]} "
            "`ichkit verify` lists what is damaged; train the fold again: `ichkit train --fresh` with the -c and --run "
            "it was trained with."
        ) from error
    return Predictor(card, network, found)


def read_card(folder: Path) -> ModelCard:
    """The card in a folder.

    Raises:
        ArtifactError: missing or not a card.
        ConfigError: a step that this installation does not have.
    """
    try:
        raw = json.loads((folder / CARD_NAME).read_text())
        lists = {name: tuple(raw[name]) for name in ("steps", "classes") if name in raw}
        card = ModelCard(**{**raw, **lists, "hull_hu": tuple(raw["hull_hu"])})
        _check_card(card)
        return card
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(
            f"{folder / CARD_NAME}: expected the description of a network ({type(error).__name__}: {error}). "
            "Train the fold again: `ichkit train --fresh` with the -c and --run it was trained with."
        ) from error


def _check_card(card: ModelCard) -> None:
    """Refuses a card that no training run writes, before a network of that size is built.

    Raises:
        ValueError: a field is not as described in `ModelCard`, or the images are too large.
    """
    sides = [card.image_size] if card.prepare_size is None else [card.image_size, card.prepare_size]
    if not all(type(side) is int and 1 <= side <= _MAX_SIDE for side in sides):
        raise ValueError(f"image_size and prepare_size must be 1 to {_MAX_SIDE}")
    if type(card.batch_size) is not int or not 1 <= card.batch_size * card.image_size**2 <= _MAX_BATCH_PIXELS:
        raise ValueError(f"batch_size times image_size squared must be 1 to {_MAX_BATCH_PIXELS} pixels")
    if not isinstance(card.backbone_args, dict):
        raise ValueError("backbone_args must be a mapping")
    check_backbone_args(card.backbone_args)
    low, high = card.hull_hu
    if not all(type(value) is int and abs(value) < 2**15 for value in (low, high)) or low >= high:
        raise ValueError("hull_hu must be two ascending 16-bit HU values")
    if not all(type(name) is str for name in card.steps) or len(card.steps) > _MAX_STEPS:
        raise ValueError(f"steps must be at most {_MAX_STEPS} names")
    for name in card.steps:
        find_step(name)
    PartSettings.from_json(card.parts)
    SequenceSettings.from_json(card.sequences)
    ContextConfig(**card.context), PoolConfig(**card.pool)
    if type(card.window) is not int or not 1 <= card.window <= _MAX_WINDOW:
        raise ValueError(f"window must be 1 to {_MAX_WINDOW}")
    find_row(TTA_SETS, str(card.tta), "tta")
    if card.classes != tuple(name for name in find_task(card.task).classes if name in card.classes):
        raise ValueError("classes must be classes of the task, in its order")
    if card.tta_average not in ("probability", "logit"):
        raise ValueError('tta_average must be "probability" or "logit"')


def _check_weights(card: ModelCard, path: Path) -> None:
    """Compares names and shapes of a file's tensors with those of the card's network, before either takes memory.

    Raises:
        RuntimeError: they differ.
    """
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in card.build().state_dict().items()}
    with safe_open(path, framework="pt") as tensors:
        found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    wrong = sorted(name for name in wanted if found.get(name) != wanted[name])
    if wrong or len(found) != len(wanted):
        raise RuntimeError(
            f"{len(wrong)} of {len(wanted)} tensors are missing or have another shape, "
            f"{len(found.keys() - wanted.keys())} do not belong to this network."
        )


def encode_weights(network: nn.Module) -> bytes:
    """The network's tensors as safetensors; the same weights give the same bytes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: torch does not know it, or it is not available on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device("cuda" if name == "gpu" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f'device: "{name}" cannot be used here ({str(error).splitlines()[0]}). Try "cpu".') from error
    return device
