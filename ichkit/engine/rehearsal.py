"""One step tried on a copy of the network before a run begins: how long it takes, and what memory it wants."""

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ichkit.models.losses import LossFunction

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_SHORT_SECONDS = 2.0
_FEW_IMAGES = 7


@dataclass(frozen=True)
class Rehearsal:
    """What a forward and backward pass costs.

    Attributes:
        seconds: how long it takes.
        activation_bytes: what it keeps between forward and backward, weights aside.
    """

    seconds: float
    activation_bytes: int


def rehearse(
    fabric: "Fabric", network: nn.Module, loss_function: LossFunction, images: torch.Tensor, num_classes: int
) -> Rehearsal:
    """Tries a pass on a copy, which is never compiled; the network given stays as it is.

    Where all images would take long, it is a few of them, and both figures are scaled to all.

    Args:
        fabric: devices and precision.
        network: uint8 images to logits, in its place.
        loss_function: see `models.losses`.
        images: (n, H, W, C) uint8.
        num_classes: K of the logits.
    """
    trial = copy.deepcopy(network).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in trial.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = images.to(fabric.device)
    labels = torch.zeros(len(images), num_classes, device=fabric.device)

    def measure(number: int) -> float:
        _wait(fabric.device)
        began = time.perf_counter()
        with fabric.autocast():
            loss = loss_function(trial(images[:number]), labels[:number])
        loss.backward()
        _wait(fabric.device)
        return time.perf_counter() - began

    few = min(_FEW_IMAGES, len(images))
    # The first pass allocates and chooses kernels: it counts memory, not time.
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        measure(few)
    share = len(images) / few
    seconds = measure(few) * share
    if seconds < _SHORT_SECONDS:
        seconds = measure(len(images))
    return Rehearsal(seconds, round(sum(kept.values()) * share))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
