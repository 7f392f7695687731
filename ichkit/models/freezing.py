"""The stages of a backbone, and freezing the first of them or parts by name."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from timm.models import group_parameters
from torch import nn

from ichkit.core.errors import ConfigError
from ichkit.models.descriptor import DescriptorNetwork

_INSIDE = "backbone."


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
    """The frozen parts of a network: their weights and batch statistics do not change.

    Args:
        network: its frozen parameters are set to require no gradient.
        num_stages: number of stages of the backbone, counted from the input; the stem is the first.
        parts: names of further modules or parameters of the network.

    Raises:
        ConfigError: the backbone has fewer stages, the network no such part, or nothing is left to train.
    """

    def __init__(self, network: DescriptorNetwork, num_stages: int, parts: Sequence[str] = ()) -> None:
        stages = list_stages(network) if num_stages else []
        if num_stages > len(stages):
            raise ConfigError(
                f"train.phases: frozen_stages is {num_stages}, but this backbone has {len(stages)} stages before its "
                f"head: {', '.join(stage.name for stage in stages)}. Use a smaller number."
            )
        self.names = [*(stage.name for stage in stages[:num_stages]), *parts]
        parameters = dict(network.named_parameters())
        frozen = {f"{_INSIDE}{name}" for stage in stages[:num_stages] for name in stage.parameters}
        for part in parts:
            frozen |= _find_part(part, list(parameters))
        if len(frozen) == len(parameters):
            raise ConfigError(f"train.phases: nothing is left to train with {', '.join(self.names)} frozen.")
        for name in frozen:
            parameters[name].requires_grad_(False)
        self.num_parameters = sum(parameters[name].numel() for name in frozen)
        ids = {id(parameters[name]) for name in frozen}
        # Whole modules, so that submodules without parameters, such as stochastic depth, are frozen with their block.
        self._modules = [module for module in network.modules() if _is_within(module, ids)]

    def keep_statistics(self) -> None:
        """Sets the frozen modules to evaluation mode; call after `network.train()`."""
        for module in self._modules:
            module.eval()

    def describe(self) -> str:
        """The frozen parts, for the log line before the first step."""
        return f"frozen: {', '.join(self.names)} ({self.num_parameters / 1e6:.2f} M parameters)"


def _find_part(part: str, names: list[str]) -> set[str]:
    """The parameters of a module, or the parameter of that name.

    Raises:
        ConfigError: there is none; the message lists the parts one level below the nearest one that exists.
    """
    found = {name for name in names if name == part or name.startswith(f"{part}.")}
    if found:
        return found
    above = part
    while above and not any(name.startswith(f"{above}.") for name in names):
        above = above.rpartition(".")[0]
    inside = f"{above}." if above else ""
    below = [inside + name.removeprefix(inside).partition(".")[0] for name in names if name.startswith(inside)]
    raise ConfigError(
        f'train.phases: frozen names "{part}". Expected parts with weights: {", ".join(dict.fromkeys(below))}.'
    )


def _is_within(module: nn.Module, ids: set[int]) -> bool:
    parameters = list(module.parameters())
    return len(parameters) > 0 and all(id(parameter) in ids for parameter in parameters)


def _shared_name(names: tuple[str, ...]) -> str:
    """The common module down to its number: "stages.1" of "stages.1.0.conv.weight" and "stages.1.0.bias"."""
    parts = os.path.commonpath([name.replace(".", "/") for name in names]).split("/")
    numbered = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[: numbered + 1])
