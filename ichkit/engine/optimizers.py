"""Optimizers: those of timm by name and rows of our own; parameter groups with learning rates and weight decay."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from torch import nn

from ichkit.core.errors import ConfigError, nearest
from ichkit.core.plugins import load_plugins
from ichkit.core.train_config import ResolvedPhase
from ichkit.models.descriptor import DescriptorNetwork

SCALE = "lr_scale"
"""Key of a parameter group: the factor on the learning rate of the step."""
_INSIDE = "backbone."
_SET_ELSEWHERE = ("groups", "params", "lr", "weight_decay", "foreach", "fused")


@dataclass(frozen=True)
class OptimizerRow:
    """A row of `OPTIMIZERS`.

    Attributes:
        name: key in the table.
        constructor: parameter groups and `lr` to an optimizer.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    constructor: Callable[..., torch.optim.Optimizer]
    description: str
    source: str


def make_optimizer(network: DescriptorNetwork, phase: ResolvedPhase, *, on_gpu: bool = False) -> torch.optim.Optimizer:
    """An optimizer by the name of a row of `OPTIMIZERS` or of timm, for the parameters that require a gradient.

    Raises:
        ConfigError: the optimizer is unknown, or needs a package or device that is not available; `train.layer_decay`
            is set and the backbone does not name its layers.
    """
    load_plugins()
    names = [*OPTIMIZERS, *(str(name) for name in list_optimizers())]
    if phase.optimizer not in names:
        raise ConfigError(f'train.optimizer: unknown "{phase.optimizer}". {nearest(phase.optimizer, names)}')
    groups, further = make_groups(network, phase), phase.optimizer_args
    if phase.optimizer in OPTIMIZERS:
        row = OPTIMIZERS[phase.optimizer]
        _check_arguments(phase, inspect.signature(row.constructor).parameters)
        return row.constructor(groups, lr=phase.learning_rate, **further)
    # One call for all tensors if supported: call overhead is a tenth of a small network's step on a CPU.
    constructor = get_optimizer_class(phase.optimizer, bind_defaults=False)
    known = inspect.signature(constructor).parameters
    _check_arguments(phase, known)
    how = next((name for name in (("fused",) if on_gpu else ()) + ("foreach",) if name in known), None)
    options: dict[str, Any] = {**further, **({} if how is None else {how: True})}
    try:
        return create_optimizer_v2(groups, opt=phase.optimizer, lr=phase.learning_rate, **options)
    except (AssertionError, ImportError) as error:
        raise ConfigError(
            f'train.optimizer: "{phase.optimizer}" cannot be used here ({error}). Try "adam" or "adamw".'
        ) from error


def _check_arguments(phase: ResolvedPhase, known: Mapping[str, object]) -> None:
    """Refuses arguments that the optimizer does not take, or that other settings set.

    Raises:
        ConfigError: it takes no such number.
    """
    allowed = [name for name in known if name not in (*_SET_ELSEWHERE, "self")]
    for name in phase.optimizer_args:
        if name not in allowed:
            raise ConfigError(
                f'train.phases: optimizer_args has "{name}", which {phase.optimizer} does not take. '
                f"{nearest(name, allowed)}"
            )


def make_groups(network: DescriptorNetwork, phase: ResolvedPhase) -> list[dict[str, Any]]:
    """The trained parameters, grouped by learning rate factor and weight decay, each group in the network's order.

    The factor is that of `train.rate_factors` for the part (head: the classifier; backbone: the rest of the timm model;
    context: what follows it), times `train.layer_decay` for each layer between the parameter and the head.

    Raises:
        ConfigError: see `make_optimizer`.
    """
    head = {id(parameter) for parameter in network.backbone.get_classifier().parameters()}
    layers = _number_layers(network) if phase.layer_decay < 1 else {}
    last = max(layers.values(), default=0)
    listed: Callable[[], set[str]] = getattr(network.backbone, "no_weight_decay", set)
    skipped = listed()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = name.removeprefix(_INSIDE)
        factors = phase.rate_factors
        part = factors.head if id(parameter) in head else factors.backbone if inside != name else factors.context
        scale = part * phase.layer_decay ** (last - layers.get(name, last))
        is_small = parameter.ndim <= 1 or name.endswith(".bias")
        spared = phase.spares_norms_and_biases and (is_small or any(fnmatch(inside, pattern) for pattern in skipped))
        groups.setdefault((scale, 0.0 if spared else phase.weight_decay), []).append(parameter)
    return [{"params": own, "weight_decay": decay, SCALE: scale} for (scale, decay), own in groups.items()]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of a step; each group multiplies it by its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(SCALE, 1.0)


def _number_layers(network: DescriptorNetwork) -> dict[str, int]:
    """The layer of each parameter of the backbone, counted from the input, by its name in the network.

    Source: timm's parameter groups, as used for its own layer-wise learning rate decay (Bao et al., ICLR 2022).
    """
    backbone = network.backbone
    if not hasattr(backbone, "group_matcher"):
        raise ConfigError(
            "train.layer_decay: this backbone does not name its layers (it has no `group_matcher`). "
            "Use --set train.layer_decay=1."
        )
    found = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    return {_INSIDE + name: layer for name, layer in found.items()}


class AdaBound(torch.optim.Optimizer):
    """Adam whose step size per weight is clipped to bounds that meet at the rate of SGD.

    Args:
        groups: parameter groups.
        lr: learning rate of the first steps.
        betas: decay of the two moments.
        final_rate: rate that the bounds meet at; it follows the schedule as `lr` does.
        gamma: speed at which the bounds meet.
        eps: added to the denominator.

    Source: Luo et al., ICLR 2019, algorithm 2, with Adam's bias correction as in the authors' code.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        final_rate: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "final_rate": final_rate, "gamma": gamma, "eps": eps}
        super().__init__(groups, {**defaults, "weight_decay": 0.0, "base_rate": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        count, (first, second) = state["step"], group["betas"]
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state["mean"].mul_(first).add_(gradient, alpha=1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        corrected = group["lr"] * (1 - second**count) ** 0.5 / (1 - first**count)
        final = group["final_rate"] * group["lr"] / group["base_rate"]
        low = final * (1 - 1 / (group["gamma"] * count + 1))
        high = final * (1 + 1 / (group["gamma"] * count))
        rates = (corrected / (state["square"].sqrt() + group["eps"])).clamp_(low, high)
        parameter.sub_(rates.mul_(state["mean"]))


OPTIMIZERS = {
    "adabound": OptimizerRow(
        name="adabound",
        constructor=AdaBound,
        description="Adam at first, SGD at the end; timm does not have it.",
        source="Luo et al., ICLR 2019",
    ),
}
