"""Time and memory of one training step, measured on a copy of the network before training starts."""

import copy
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ichkit.core.train_config import TrainConfig
from ichkit.models.descriptor import BlockLogits
from ichkit.models.losses import LossFunction

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_SHORT_SECONDS = 2.0
_FEW_IMAGES = 7


@dataclass(frozen=True)
class StepCost:
    """Cost of one step.

    Attributes:
        seconds: time of its forward and backward passes.
        activation_bytes: activations saved for one backward pass, without the weights.
    """

    seconds: float
    activation_bytes: int


def measure_step_cost(
    fabric: "Fabric",
    network: nn.Module,
    loss_function: LossFunction,
    config: TrainConfig,
    *,
    shape: tuple[int, int],
    num_channels: int,
    num_classes: int,
) -> StepCost:
    """Runs a pass with blank images on a copy, which is never compiled; the given network is not changed.

    If a pass of all images would take long, a few are measured, and both numbers are scaled.

    Args:
        fabric: devices and precision.
        network: uint8 images to logits, on its device.
        loss_function: see `models.losses`.
        config: size of images, gradient accumulation.
        shape: blocks of this process in a step, and slices in each.
        num_channels, num_classes: of the images, of the logits.
    """
    num_images, length = math.prod(shape), shape[1] if config.sees_blocks else 1
    at_once = -(-num_images // length // config.accumulate) * length
    side = config.image_size
    images = torch.zeros((at_once, side, side, num_channels), dtype=torch.uint8, device=fabric.device)
    labels = torch.zeros(at_once, num_classes, device=fabric.device)
    trial = copy.deepcopy(network).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in trial.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def measure(number: int) -> float:
        _wait(fabric.device)
        began = time.perf_counter()
        with fabric.autocast():
            logits: BlockLogits = trial(images[:number].unflatten(0, (-1, min(length, number))))
            loss = loss_function(logits.descriptor.flatten(0, 1), labels[:number])
            if logits.study is not None:
                loss = loss + loss_function(logits.study.logits, labels[: len(logits.study.logits)])
        loss.backward()
        _wait(fabric.device)
        return time.perf_counter() - began

    few = min(_FEW_IMAGES, at_once)
    few -= few % min(length, few)
    # The first pass allocates memory and selects kernels, so it measures memory, not time.
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        measure(few)
    share = at_once / few
    seconds = measure(few) * share
    if seconds < _SHORT_SECONDS:
        seconds = measure(at_once)
    return StepCost(seconds * num_images / at_once, round(sum(kept.values()) * share))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
