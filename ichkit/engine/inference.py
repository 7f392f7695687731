"""Inference with the model of one fold: from volumes in Hounsfield units to the probabilities of every slice."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from ichkit.core.config import ChannelsConfig, Config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.tasks import Task, find_task
from ichkit.core.train_config import check_backbone_args
from ichkit.imaging.steps import find_step
from ichkit.imaging.windows import make_rendering, pad_to_square, resize_volume
from ichkit.models.descriptor import DescriptorNetwork, build_network
from ichkit.work.artifacts import check_digests, read_manifest
from ichkit.work.folder import CARD_NAME, WEIGHTS_NAME

_MAX_SIDE = 4096
_MAX_STEPS = 10
_MAX_BATCH_PIXELS = 2**27
"""Eight times the default batch of 64 images of 512 x 512."""


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
        tta: test-time augmentation, "none" or "hflip".
        batch_size: images per forward pass; recorded because it changes the last bits of a probability.
        backbone_args: further arguments of the backbone's constructor.
        steps: steps of that store (`imaging.steps.STEPS`), done to the volume of a new study; none in older cards.
    """

    task: str
    backbone: str
    channels: dict[str, Any]
    image_size: int
    prepare_size: int | None
    hull_hu: tuple[int, int]
    tta: str
    batch_size: int
    backbone_args: dict[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, config: Config, prepare_size: int | None, hull_hu: tuple[int, int], steps: Sequence[str] = ()
    ) -> "ModelCard":
        """The card of a network trained with this config on a store of that size, HU range and steps."""
        return cls(
            task=config.task,
            backbone=config.train.backbone,
            channels=config.channels.settings(),
            image_size=config.train.image_size,
            prepare_size=prepare_size,
            hull_hu=hull_hu,
            tta=config.train.tta,
            batch_size=config.train.predict_batch,
            backbone_args=config.train.backbone_args,
            steps=tuple(steps),
        )

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
            num_classes: number of outputs; None for the number of classes of the task.

        Raises:
            ConfigError: see `models.descriptor.build_network`.
        """
        channels = make_rendering(ChannelsConfig(**self.channels))
        return build_network(
            self.backbone,
            num_channels=channels.num_channels,
            num_classes=num_classes or find_task(self.task).num_classes,
            image_size=self.image_size,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            pretrained=pretrained,
            backbone_args=self.backbone_args,
        )


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
        self.network.to(memory_format=torch.channels_last)

    @property
    def task(self) -> Task:
        """The task it predicts."""
        return find_task(self.card.task)

    @property
    def num_features(self) -> int:
        """Size of the penultimate-layer embeddings."""
        return int(self.network.backbone.get_classifier().in_features)

    def predict_volume(self, volume: np.ndarray) -> np.ndarray:
        """The probabilities of every slice of one study.

        Args:
            volume: (S, H, W) int16 HU, row i is slice_index i, as in the store.

        Returns:
            (S, K) float32 in [0, 1].
        """
        return np.concatenate([self._predict_images(images) for images in self._render(volume)])

    def describe_volume(self, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probabilities and penultimate-layer embeddings of every slice of one study.

        Args:
            volume: (S, H, W) int16 HU, as for `predict_volume`.

        Returns:
            (S, K) float32 in [0, 1], the same bytes as from `predict_volume`; (S, F) float16, the mean over the views
            of test-time augmentation.
        """
        parts = [self._describe_images(images) for images in self._render(volume)]
        probabilities, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        return probabilities, features

    def _render(self, volume: np.ndarray) -> Iterator[np.ndarray]:
        """Batches of (n, H, W, C) uint8 images of the slices."""
        volume = resize_volume(pad_to_square(volume), self.card.image_size)
        rows = np.arange(len(volume))
        for first in range(0, len(rows), self.card.batch_size):
            yield self.rendering.render(volume, rows[first : first + self.card.batch_size])

    @torch.inference_mode()
    def _predict_images(self, images: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8 to (n, K) float32 probabilities."""
        batch = torch.from_numpy(images).to(self.device)
        probabilities = self.network(batch).float().sigmoid()
        if self.card.tta == "hflip":
            probabilities = (probabilities + self.network(batch.flip(2)).float().sigmoid()) / 2
        held: np.ndarray = probabilities.cpu().numpy()
        return held

    @torch.inference_mode()
    def _describe_images(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, H, W, C) uint8 to (n, K) float32 probabilities and (n, F) float16 embeddings."""
        batch = torch.from_numpy(images).to(self.device)
        views = [batch, batch.flip(2)] if self.card.tta == "hflip" else [batch]
        backbone, found = self.network.backbone, []
        for view in views:
            maps = backbone.forward_features(self.network.normalise(view))
            features = backbone.forward_head(maps, pre_logits=True)
            found.append((backbone.forward_head(maps).float().sigmoid(), features.float().flatten(1)))
        probabilities, features = (sum(parts) / len(views) for parts in zip(*found, strict=True))
        return probabilities.cpu().numpy(), features.half().cpu().numpy()


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
            "`ichkit verify` lists what is damaged; train the fold again with `ichkit train --fresh`."
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
        card = ModelCard(**{**raw, "hull_hu": tuple(raw["hull_hu"]), "steps": tuple(raw.get("steps", ()))})
        _check_card(card)
        return card
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(
            f"{folder / CARD_NAME}: expected the description of a network ({type(error).__name__}: {error}). "
            "Train the fold again with `ichkit train --fresh`."
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
    if card.tta not in ("none", "hflip"):
        raise ValueError('tta must be "none" or "hflip"')


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
