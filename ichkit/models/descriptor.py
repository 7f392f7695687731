"""Stage 1: a 2D network that turns one image into a descriptor, the logits of every class."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import nn

from ichkit.core.errors import ConfigError
from ichkit.models import hub

HUB, NONE = "hub", "none"


@dataclass(frozen=True)
class Backbone:
    """A row of `BACKBONES`.

    Attributes:
        name: key in the table.
        constructor: keyword arguments of `timm.create_model` (in_chans, num_classes, drop_rate, pretrained, ...) to a
            module with `forward_features`, `forward_head(pre_logits=)`, `get_classifier` and `pretrained_cfg`.
        description: one sentence.
        source: where it was proposed, and the scheme its weights come from.
    """

    name: str
    constructor: Callable[..., nn.Module]
    description: str
    source: str


class DescriptorNetwork(nn.Module):
    """A backbone with a head for the task's classes, from uint8 images to logits.

    Normalisation is part of the network, so that images travel as uint8 and weights carry the mean and deviation they
    were trained with.

    Args:
        backbone: see `Backbone.constructor`.
        mean, std: (C,) of the images on a scale from 0 to 1.
    """

    # timm's models share methods (forward_head, get_classifier, ...) that torch's Module has no types for.
    backbone: Any
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 to (n, C, H, W) in the precision of the weights, channels last in memory."""
        return (images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean) / self.std

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 images to (n, F) pooled features, what the head sees."""
        maps = self.backbone.forward_features(self.normalise(images))
        pooled: torch.Tensor = self.backbone.forward_head(maps, pre_logits=True)
        return pooled

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8 images to (n, K) logits."""
        logits: torch.Tensor = self.backbone.forward_head(self.backbone.forward_features(self.normalise(images)))
        return logits


def build_network(
    name: str, *, num_channels: int, num_classes: int, image_size: int, drop_rate: float = 0.0, pretrained: str = NONE
) -> DescriptorNetwork:
    """A network by the name of its backbone; random weights come from torch's generator, which the caller seeds.

    Args:
        name: a row of `BACKBONES`, or any other name that timm knows.
        image_size: height and width; only backbones built for one size need it.
        drop_rate: dropout before the head.
        pretrained: "hub", "none", or the path of a local file (safetensors, or a state dict by torch.save).

    Raises:
        ConfigError: an unknown backbone, or weights that are out of reach, unreadable or of another network.

    Example:
        >>> build_network("test_resnet", num_channels=3, num_classes=6, image_size=64)(
        ...     torch.zeros(2, 64, 64, 3, dtype=torch.uint8)).shape
        torch.Size([2, 6])
    """
    row = find_backbone(name)
    arguments: dict[str, Any] = {"in_chans": num_channels, "num_classes": num_classes, "drop_rate": drop_rate}
    defaults = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if defaults is not None and defaults.fixed_input_size:
        arguments["img_size"] = image_size
    backbone: Any
    if pretrained == NONE:
        backbone = row.constructor(**arguments, pretrained=False)
    elif pretrained == HUB:
        backbone = _from_hub(row, arguments)
    else:
        backbone = _from_file(row, arguments, Path(pretrained))
    mean, std = (_per_channel(backbone.pretrained_cfg[key], num_channels) for key in ("mean", "std"))
    return DescriptorNetwork(backbone, mean, std)


def find_backbone(name: str) -> Backbone:
    """The row of that name, or one made for any other name of timm.

    Raises:
        ConfigError: no such backbone; the message has the nearest spelling and the rows of the table.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if timm.is_model(name):
        return Backbone(name, partial(timm.create_model, name), "Any backbone of timm, by its name there.", "timm")
    close = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    raise ConfigError(
        f'train.backbone: unknown "{name}". {hint}Choices: {", ".join(sorted(BACKBONES))}, '
        "or any other name of timm.list_models()."
    )


def set_prior_bias(network: DescriptorNetwork, prevalence: np.ndarray) -> None:
    """Starts the head at the prevalence of the classes, so that the first steps need not learn that bleeds are rare.

    Args:
        prevalence: (K,) share of positive slices among those trained on; held to [1e-4, 1 - 1e-4].

    Raises:
        ConfigError: the head of this backbone is no layer with a bias.

    Source: Lin et al., ICCV 2017, section 3.3.
    """
    head: Any = network.backbone.get_classifier()
    if not isinstance(getattr(head, "bias", None), nn.Parameter):
        raise ConfigError(
            "train.label_prior_bias: the head of this backbone has no bias. Use --set train.label_prior_bias=false."
        )
    held = torch.as_tensor(np.clip(prevalence, 1e-4, 1 - 1e-4), dtype=torch.float32)
    with torch.no_grad():
        head.bias.copy_(torch.logit(held))


def _per_channel(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    """The backbone's three values, or their mean for every channel where the images have another number of them."""
    return tuple(values) if len(values) == num_channels else (sum(values) / len(values),) * num_channels


def _from_hub(row: Backbone, arguments: dict[str, Any]) -> nn.Module:
    defaults = timm.get_pretrained_cfg(row.name) if timm.is_model(row.name) else None
    if defaults is not None and defaults.hf_hub_id:
        cached = hub.find_cached(defaults.hf_hub_id)
        if cached is not None:  # named, so that the hub's client does not ask the network about it
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
        "Download the file on another machine and name it: --set train.pretrained=/path/model.safetensors; "
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
                "Name weights that were trained on other data."
            )
        overlay = {"file": str(path), "custom_load": False}
        backbone: nn.Module = row.constructor(**arguments, pretrained=True, pretrained_cfg_overlay=overlay)
        # timm leaves out what it does not find as soon as the head differs, and would train on from random weights.
        head: Any = cast("Any", backbone).pretrained_cfg["classifier"]
        heads = (head,) if isinstance(head, str) else tuple(head)
        missing = [name for name in backbone.state_dict() if name not in names and not name.startswith(heads)]
        if missing:
            raise KeyError(f"{len(missing)} tensors are missing, e.g. {missing[0]}.")
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError, SafetensorError) as error:
        raise ConfigError(
            f"train.pretrained: {path} holds no weights of {row.name}: {str(error).splitlines()[0]} "
            "Expected a state dict of this backbone in safetensors or torch format, as timm publishes it."
        ) from error
    return backbone


def _names_in(path: Path) -> set[str]:
    """Names of the tensors in a file of weights."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            return set(tensors.keys())
    return set(load_state_dict(str(path), weights_only=True))


BACKBONES = {
    "resnet50": Backbone(
        name="resnet50",
        constructor=partial(timm.create_model, "resnet50"),
        description="The paper's network; 24 M parameters.",
        source="He et al., CVPR 2016; MIDL 2020, section 2.1; ImageNet weights of timm",
    ),
    "seresnext50_32x4d": Backbone(
        name="seresnext50_32x4d",
        constructor=partial(timm.create_model, "seresnext50_32x4d"),
        description="The network most used among the first of the competition; 28 M parameters.",
        source="Hu et al., CVPR 2018; ImageNet weights of timm",
    ),
    "tf_efficientnetv2_s": Backbone(
        name="tf_efficientnetv2_s",
        constructor=partial(timm.create_model, "tf_efficientnetv2_s"),
        description="A newer convolutional network, strong for its cost; 20 M parameters.",
        source="Tan and Le, ICML 2021; ImageNet weights of timm",
    ),
    "convnext_tiny": Backbone(
        name="convnext_tiny",
        constructor=partial(timm.create_model, "convnext_tiny"),
        description="A convolutional network without batch statistics; 28 M parameters.",
        source="Liu et al., CVPR 2022; ImageNet weights of timm",
    ),
    "swin_tiny_patch4_window7_224": Backbone(
        name="swin_tiny_patch4_window7_224",
        constructor=partial(timm.create_model, "swin_tiny_patch4_window7_224"),
        description="A hierarchical transformer; 28 M parameters; image sizes that are multiples of 32.",
        source="Liu et al., ICCV 2021; ImageNet weights of timm",
    ),
    "test_byobnet": Backbone(
        name="test_byobnet",
        constructor=partial(timm.create_model, "test_byobnet"),
        description="A tiny network that learns fast from nothing: the demo's; 0.2 M parameters.",
        source="timm, models/byobnet.py",
    ),
    "test_resnet": Backbone(
        name="test_resnet",
        constructor=partial(timm.create_model, "test_resnet"),
        description="A tiny network for processors, demos and tests; 0.4 M parameters.",
        source="timm, models/resnet.py",
    ),
}
