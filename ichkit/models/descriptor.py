"""Stage 1: a network from a block of images to the descriptor of each, the logits of all classes."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import nn

from ichkit.core.errors import ConfigError
from ichkit.core.train_config import NONE, ContextConfig, PoolConfig
from ichkit.models import hub
from ichkit.models.context import make_context
from ichkit.models.flat import make_cnn2, make_cnn4
from ichkit.models.gates import make_gated_resnet18
from ichkit.models.pooling import Pooled, make_pool
from ichkit.models.volume import VolumeEncoder

HUB = "hub"
BEYOND_SLICES = ("context.", "series.", "pool.")
"""Beginnings of the names of tensors that a network of single slices does not have."""


@dataclass(frozen=True)
class Backbone:
    """A row of `BACKBONES`.

    Attributes:
        name: key in the table.
        constructor: keyword arguments of `timm.create_model` (in_chans, num_classes, drop_rate, pretrained, ...) to a
            module with `forward_features`, `forward_head(pre_logits=)`, `get_classifier` and `pretrained_cfg`.
        description: one sentence.
        source: where it was proposed, and where its weights come from.
        sees_volumes: True for a backbone that sees a study as one volume (`models.volume`).
        has_fixed_size: True for a constructor that takes `img_size`, because its weights are for one image size.
    """

    name: str
    constructor: Callable[..., nn.Module]
    description: str
    source: str
    sees_volumes: bool = False
    has_fixed_size: bool = False


class BlockLogits(NamedTuple):
    """The output of a network for B blocks of P slices; values at padded positions are meaningless.

    Attributes:
        slices: (B, P, K) logits of each slice alone.
        series: (B, P, K) logits of each slice that see the others of its block; None without a context.
        study: logits of each study and the weights of its slices; None without pooling.
    """

    slices: torch.Tensor
    series: torch.Tensor | None = None
    study: Pooled | None = None

    @property
    def descriptor(self) -> torch.Tensor:
        """(B, P, K) the logits that the second stage gets."""
        return self.slices if self.series is None else self.series


class DescriptorNetwork(nn.Module):
    """A backbone with a head for the task's classes and, optionally, a context module: from images to logits.

    Normalisation is part of the network, so that images are transferred as uint8 and the mean and standard deviation
    are stored with the weights.

    The series head adds to the logits of the slice and starts at zero, so that an untrained context changes nothing.

    Args:
        backbone: see `Backbone.constructor`.
        mean, std: (C,) of images scaled to [0, 1].
        context, pool: see `models.context` and `models.pooling`.
    """

    # The methods that timm's models share (forward_head, get_classifier, ...) have no type in torch's Module.
    backbone: Any
    mean: torch.Tensor
    std: torch.Tensor
    context: nn.Module | None
    series: nn.Linear | None
    pool: nn.Module | None

    def __init__(
        self,
        backbone: Any,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        context: ContextConfig | None = None,
        pool: PoolConfig | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.context, self.series, self.pool = None, None, None
        context, pool = context or ContextConfig(), pool or PoolConfig()
        if context.kind == pool.kind == NONE:
            return
        head = backbone.get_classifier()
        num_features = head.in_features
        self.context = make_context(num_features, context)
        if self.context is not None:
            num_features = context.width
            self.series = nn.Linear(num_features, head.out_features)
            nn.init.zeros_(self.series.weight)
            nn.init.zeros_(self.series.bias)
        self.pool = make_pool(num_features, head.out_features, pool)

    @property
    def sees_blocks(self) -> bool:
        """True if the network has a context or a pool, so that it needs whole blocks."""
        return self.context is not None or self.pool is not None

    @property
    def sees_volumes(self) -> bool:
        """True if even the features of a slice depend on the other slices of its study."""
        return False

    def use_channels_last(self) -> None:
        """Keeps weights and maps in the memory order that convolutions of images are fastest in."""
        self.to(memory_format=torch.channels_last)

    def head_names(self) -> set[str]:
        """Names of the tensors whose shape depends on the classes, heads as a whole."""
        heads = {id(parameter) for parameter in self.backbone.get_classifier().parameters()}
        names = {name for name, parameter in self.named_parameters() if id(parameter) in heads}
        return names | {name for name in self.state_dict() if name.startswith(("series.", "pool."))}

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 to (n, C, H, W) in the precision of the weights, channels last in memory."""
        return (images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean) / self.std

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, H, W, C) uint8 images to penultimate-layer features (n, F) and logits (n, K), each image alone."""
        maps = self.backbone.forward_features(self.normalise(images))
        return self.backbone.forward_head(maps, pre_logits=True).flatten(1), self.backbone.forward_head(maps)

    def combine(
        self, features: torch.Tensor, logits: torch.Tensor, is_real: torch.Tensor, positions_mm: torch.Tensor
    ) -> BlockLogits:
        """The logits of blocks from the output of `encode` for their slices.

        Args:
            features, logits: (B, P, F) and (B, P, K).
            is_real: (B, P) bool, False at padding; each block has a real slice.
            positions_mm: (B, P) from the middle of the study.
        """
        series, found = None, features
        if self.context is not None and self.series is not None:
            found = self.context(features, is_real, positions_mm)
            series = logits + self.series(found)
        pooled = None if self.pool is None else self.pool(found, logits if series is None else series, is_real)
        return BlockLogits(logits, series, pooled)

    def forward(
        self,
        images: torch.Tensor,
        is_real: torch.Tensor | None = None,
        positions_mm: torch.Tensor | None = None,
    ) -> BlockLogits:
        """(B, P, H, W, C) uint8 images to logits.

        Args:
            is_real: (B, P) bool, in host memory, where it can be read without waiting for a GPU; None without padding.
                Padding does not enter the backbone.
            positions_mm: (B, P) float from the middle of the study; needed with a context.
        """
        shape = images.shape[:2]
        flat = images.flatten(0, 1)
        if not self.sees_blocks:
            logits: torch.Tensor = self.backbone.forward_head(self.backbone.forward_features(self.normalise(flat)))
            return BlockLogits(logits.unflatten(0, shape))
        is_real = torch.ones(shape, dtype=torch.bool) if is_real is None else is_real
        positions_mm = torch.zeros(shape, device=flat.device) if positions_mm is None else positions_mm
        rows = None
        if not is_real.all():
            rows = is_real.flatten().nonzero()[:, 0].to(flat.device, non_blocking=True)
            flat = flat[rows]
        parts = []
        for part in self.encode(flat):
            spread = part
            if rows is not None:
                spread = part.new_zeros(is_real.numel(), part.shape[1]).index_copy(0, rows, part)
            parts.append(spread.unflatten(0, shape))
        features, logits = parts
        return self.combine(features, logits, is_real, positions_mm)


class VolumeNetwork(DescriptorNetwork):
    """A network whose backbone sees a study as one volume; padded slices are blank.

    Args: see `DescriptorNetwork`.
    """

    @property
    def sees_blocks(self) -> bool:
        """True: it needs whole studies."""
        return True

    @property
    def sees_volumes(self) -> bool:
        """True."""
        return True

    def use_channels_last(self) -> None:
        """Nothing: maps of volumes have another memory order."""

    def as_volumes(self, images: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        """(B, P, H, W, C) uint8 images to normalised volumes (B, C, P, H, W)."""
        volumes: torch.Tensor = self.normalise(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        if is_real is not None and not is_real.all():
            volumes = volumes * is_real.to(volumes.device, volumes.dtype, non_blocking=True)[:, :, None, None, None]
        return volumes.transpose(1, 2).contiguous()

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, H, W, C) uint8 slices of one study to the features (n, F) and logits (n, K) of each."""
        features = self.backbone.forward_features(self.as_volumes(images[None]))
        return features[0], self.backbone.forward_head(features)[0]

    def forward(
        self,
        images: torch.Tensor,
        is_real: torch.Tensor | None = None,
        positions_mm: torch.Tensor | None = None,
    ) -> BlockLogits:
        """See `DescriptorNetwork.forward`; each block is a volume."""
        shape = images.shape[:2]
        features = self.backbone.forward_features(self.as_volumes(images, is_real))
        is_real = torch.ones(shape, dtype=torch.bool) if is_real is None else is_real
        positions_mm = torch.zeros(shape, device=images.device) if positions_mm is None else positions_mm
        return self.combine(features, self.backbone.forward_head(features), is_real, positions_mm)


def build_network(
    name: str,
    *,
    num_channels: int,
    num_classes: int,
    image_size: int,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    pretrained: str = NONE,
    backbone_args: Mapping[str, Any] = MappingProxyType({}),
    context: ContextConfig | None = None,
    pool: PoolConfig | None = None,
) -> DescriptorNetwork:
    """A network by the name of its backbone; random weights use torch's generator, which the caller seeds.

    Args:
        name: a row of `BACKBONES`, or any other timm model.
        image_size: height and width; used only by backbones with a fixed input size.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth; 0 passes no argument, as some backbones have none.
        pretrained: "hub", "none", or the path of a local file (safetensors, or a state dict by torch.save).
        backbone_args: further arguments of the constructor.
        context, pool: what lets the slices of a block see each other; None for nothing.

    Raises:
        ConfigError: unknown backbone, context or pool, an argument that the backbone does not take, or weights that
            cannot be downloaded or read or belong to another network.

    Example:
        >>> build_network("test_resnet", num_channels=3, num_classes=6, image_size=64)(
        ...     torch.zeros(2, 7, 64, 64, 3, dtype=torch.uint8)).slices.shape
        torch.Size([2, 7, 6])
    """
    row = find_backbone(name)
    arguments: dict[str, Any] = {"in_chans": num_channels, "num_classes": num_classes, "drop_rate": drop_rate}
    defaults = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if row.has_fixed_size or (defaults is not None and defaults.fixed_input_size):
        arguments["img_size"] = image_size
    extra = {**backbone_args, **({"drop_path_rate": drop_path_rate} if drop_path_rate else {})}
    if extra:
        _check_arguments(row, arguments, extra)
        arguments |= extra
    backbone: Any
    if pretrained == NONE:
        backbone = row.constructor(**arguments, pretrained=False)
    elif pretrained == HUB:
        backbone = _from_hub(row, arguments)
    else:
        backbone = _from_file(row, arguments, Path(pretrained))
    mean, std = (_per_channel(backbone.pretrained_cfg[key], num_channels) for key in ("mean", "std"))
    if row.sees_volumes:
        if pool is None or pool.kind == NONE:
            raise ConfigError(
                f"train.pool: {name} reads a study as one volume and predicts it as a whole. Use "
                "--set train.pool=mean and --set train.sampling=studies."
            )
        return VolumeNetwork(backbone, mean, std, context, pool)
    return DescriptorNetwork(backbone, mean, std, context, pool)


def _check_arguments(row: Backbone, arguments: dict[str, Any], extra: dict[str, Any]) -> None:
    """Builds the network without memory for its weights, to see whether it takes the arguments.

    Raises:
        ConfigError: it does not.
    """
    try:
        with torch.device("meta"):
            row.constructor(**arguments, **extra, pretrained=False)
    except Exception as error:  # timm's models fail in many ways on values that they do not expect
        written = ", ".join(f"{name}={value}" for name, value in extra.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"train.backbone_args: {row.name} does not take {written} ({reason}). Expected arguments of its timm "
            "constructor; train.drop_path_rate needs a backbone with stochastic depth."
        ) from error


def find_backbone(name: str) -> Backbone:
    """The row of that name, or a new row for any other timm model.

    Raises:
        ConfigError: no such backbone; the message has the nearest spelling and the rows of the table.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if timm.is_model(name):
        return _timm_backbone(name, "Any timm model.", "timm")
    close = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    raise ConfigError(
        f'train.backbone: unknown "{name}". {hint}Choices: {", ".join(sorted(BACKBONES))}, '
        "or any other name of timm.list_models()."
    )


def _timm_backbone(name: str, description: str, source: str) -> Backbone:
    return Backbone(name, partial(timm.create_model, name), description, source)


def set_prior_bias(network: DescriptorNetwork, prevalence: np.ndarray) -> None:
    """Initialises the bias of the head to the class prevalence, so that training starts at the base rate.

    Args:
        prevalence: (K,) share of positive training slices; clipped to [1e-4, 1 - 1e-4].

    Raises:
        ConfigError: the head of this backbone has no bias.

    Source: Lin et al., ICCV 2017, section 3.3.
    """
    head: Any = network.backbone.get_classifier()
    if not isinstance(getattr(head, "bias", None), nn.Parameter):
        raise ConfigError(
            "train.label_prior_bias: the head of this backbone has no bias. Use --set train.label_prior_bias=false."
        )
    clipped = torch.as_tensor(np.clip(prevalence, 1e-4, 1 - 1e-4), dtype=torch.float32)
    with torch.no_grad():
        head.bias.copy_(torch.logit(clipped))


def _per_channel(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    """The backbone's values, or their mean for every channel if the images have another number of channels."""
    return tuple(values) if len(values) == num_channels else (sum(values) / len(values),) * num_channels


def _from_hub(row: Backbone, arguments: dict[str, Any]) -> nn.Module:
    defaults = timm.get_pretrained_cfg(row.name) if timm.is_model(row.name) else None
    if defaults is not None and defaults.hf_hub_id:
        cached = hub.find_cached(defaults.hf_hub_id)
        if cached is not None:  # named, so that the hub's client sends no request
            arguments = {**arguments, "pretrained_cfg_overlay": {"file": str(cached)}}
        elif reason := hub.why_unreachable():
            raise _download_failed(row, reason)
    try:
        return row.constructor(**arguments, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise _download_failed(row, reason) from error


def _download_failed(row: Backbone, reason: str) -> ConfigError:
    return ConfigError(
        f"train.pretrained: could not download the {row.name} weights from the Hugging Face Hub ({reason}). "
        "Download the file on another machine and pass it: --set train.pretrained=/path/model.safetensors; "
        "or start from random weights: --set train.pretrained=none."
    )


def _from_file(row: Backbone, arguments: dict[str, Any], path: Path) -> nn.Module:
    if not path.is_file():
        raise ConfigError(f'train.pretrained: expected "hub", "none" or a file of weights, found no file {path}.')
    try:
        names = _names_in(path)
        if any(name.startswith("backbone.") for name in names):
            raise ConfigError(
                f"train.pretrained: {path} comes from a run of ichkit, which may have seen the labels of this fold. "
                "Use weights that were trained on other data."
            )
        overlay = {"file": str(path), "custom_load": False}
        backbone: Any = row.constructor(**arguments, pretrained=True, pretrained_cfg_overlay=overlay)
        # If the head differs, timm ignores missing tensors and would leave random weights in their place.
        config: dict[str, Any] = backbone.pretrained_cfg
        heads = (config["classifier"],) if isinstance(config["classifier"], str) else tuple(config["classifier"])
        missing = [name for name in backbone.state_dict() if name not in names and not name.startswith(heads)]
        if missing:
            raise KeyError(f"{len(missing)} tensors are missing, e.g. {missing[0]}.")
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError, SafetensorError) as error:
        raise ConfigError(
            f"train.pretrained: {path} holds no weights of {row.name}: {str(error).splitlines()[0]} "
            "Expected a state dict of this backbone in safetensors or torch format, as timm publishes it."
        ) from error
    loaded: nn.Module = backbone
    return loaded


def _names_in(path: Path) -> set[str]:
    """Names of the tensors in a file of weights."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            return set(tensors.keys())
    return set(load_state_dict(str(path), weights_only=True))


BACKBONES = {
    "resnet50": _timm_backbone(
        "resnet50",
        "The paper's network; 24 M parameters.",
        "He et al., CVPR 2016; MIDL 2020, section 2.1; ImageNet weights of timm",
    ),
    "seresnext50_32x4d": _timm_backbone(
        "seresnext50_32x4d",
        "The most used network of the competition's top teams; 28 M parameters.",
        "Hu et al., CVPR 2018; ImageNet weights of timm",
    ),
    "tf_efficientnetv2_s": _timm_backbone(
        "tf_efficientnetv2_s",
        "A newer convolutional network, accurate for its cost; 20 M parameters.",
        "Tan and Le, ICML 2021; ImageNet weights of timm",
    ),
    "convnext_tiny": _timm_backbone(
        "convnext_tiny",
        "A convolutional network without batch statistics; 28 M parameters.",
        "Liu et al., CVPR 2022; ImageNet weights of timm",
    ),
    "swin_tiny_patch4_window7_224": _timm_backbone(
        "swin_tiny_patch4_window7_224",
        "A hierarchical transformer; 28 M parameters; the image size must be a multiple of 32.",
        "Liu et al., ICCV 2021; ImageNet weights of timm",
    ),
    "resnet18-gated": Backbone(
        name="resnet18-gated",
        constructor=make_gated_resnet18,
        description="ResNet-18 with a soft attention gate on its third stage; 12 M parameters.",
        source="Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2.2; ImageNet weights of timm",
    ),
    "cnn2": Backbone(
        name="cnn2",
        constructor=make_cnn2,
        description="Two convolutions and three linear layers; 13 M parameters at 128 pixels.",
        source="Alqnatri, bachelor thesis, FIIT STU Bratislava 2021, section 6.2; random weights",
        has_fixed_size=True,
    ),
    "cnn4": Backbone(
        name="cnn4",
        constructor=make_cnn4,
        description="Four convolutions and two linear layers; 30 M parameters at 256 pixels.",
        source="Castro et al., as described by Alqnatri 2021, section 5.3; random weights",
        has_fixed_size=True,
    ),
    "unet3d": Backbone(
        name="unet3d",
        constructor=VolumeEncoder,
        description="Encoder of a 3D U-Net with two attention gates, on whole studies; 6 M parameters.",
        source="Cicek et al., MICCAI 2016; Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2.2",
        sees_volumes=True,
    ),
    "test_byobnet": _timm_backbone(
        "test_byobnet",
        "A tiny network that learns fast from random weights, used by the demo; 0.2 M parameters.",
        "timm, models/byobnet.py",
    ),
    "test_resnet": _timm_backbone(
        "test_resnet",
        "A tiny network for CPUs, demos and tests; 0.4 M parameters.",
        "timm, models/resnet.py",
    ),
}
