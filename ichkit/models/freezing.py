"""The stages of a backbone, and freezing the first of them."""

import os
from dataclasses import dataclass

from timm.models import group_parameters
from torch import nn

from ichkit.core.errors import ConfigError
from ichkit.models.descriptor import DescriptorNetwork


@dataclass(frozen=True)
class Stage:
    """One stage of a backbone.

    Attributes:
        name: "stem", or what timm calls it.
        parameters: names of its parameters in the backbone.
    """

    name: str
    parameters: tuple[str, ...]


def list_stages(network: DescriptorNetwork) -> list[Stage]:
    """The stages in order of computation, without the head.

    Source: timm's coarse parameter groups, as used for its layer-wise learning rate decay.
    """
    backbone = network.backbone
    groups = group_parameters(backbone, backbone.group_matcher(coarse=True))
    ordered = [tuple(groups[number]) for number in sorted(groups)][:-1]
    return [Stage("stem" if i == 0 else _shared_name(names), names) for i, names in enumerate(ordered)]


class Frozen:
    """The frozen first stages of a backbone: their weights and batch statistics do not change.

    Args:
        network: its frozen parameters are set to require no gradient.
        num_stages: number of stages, counted from the input; the stem is the first.

    Raises:
        ConfigError: the backbone has fewer stages.
    """

    def __init__(self, network: DescriptorNetwork, num_stages: int) -> None:
        stages = list_stages(network) if num_stages else []
        if num_stages > len(stages):
            raise ConfigError(
                f"train.phases: frozen_stages is {num_stages}, but this backbone has {len(stages)} stages before its "
                f"head: {', '.join(stage.name for stage in stages)}. Use a smaller number."
            )
        self.names = [stage.name for stage in stages[:num_stages]]
        frozen = {name for stage in stages[:num_stages] for name in stage.parameters}
        parameters = dict(network.backbone.named_parameters())
        for name in frozen:
            parameters[name].requires_grad_(False)
        self.num_parameters = sum(parameters[name].numel() for name in frozen)
        ids = {id(parameters[name]) for name in frozen}
        # Whole modules, so that submodules without parameters, such as stochastic depth, are frozen with their block.
        self._modules = [module for module in network.backbone.modules() if _is_within(module, ids)]

    def keep_statistics(self) -> None:
        """Sets the frozen modules to evaluation mode; call after `network.train()`."""
        for module in self._modules:
            module.eval()

    def describe(self) -> str:
        """The frozen stages, for the log line before the first step."""
        return f"frozen: {', '.join(self.names)} ({self.num_parameters / 1e6:.2f} M parameters)"


def _is_within(module: nn.Module, ids: set[int]) -> bool:
    parameters = list(module.parameters())
    return len(parameters) > 0 and all(id(parameter) in ids for parameter in parameters)


def _shared_name(names: tuple[str, ...]) -> str:
    """The common module down to its number: "stages.1" of "stages.1.0.conv.weight" and "stages.1.0.bias"."""
    parts = os.path.commonpath([name.replace(".", "/") for name in names]).split("/")
    numbered = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[: numbered + 1])
