"""Where and how training computes: device, precision, threads, optimizer."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import timm.optim
import torch
from torch import nn

from ichkit.core.config import TrainConfig
from ichkit.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def make_fabric(config: TrainConfig) -> "Fabric":
    """Device and precision: "auto" is bfloat16 on a GPU that has it, float16 on another, float32 on a CPU."""
    # Imported here: it takes seconds, and only training needs it.
    from lightning.fabric import Fabric

    precision = config.precision
    if precision == "auto":
        on_gpu = config.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
        precision = ("bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed") if on_gpu else "32-true"
    try:
        return Fabric(accelerator=config.accelerator, devices=1, precision=precision)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f'train.accelerator: "{config.accelerator}" cannot be used here ({str(error).splitlines()[0]}). '
            "Choices: auto, cpu, cuda, mps."
        ) from error


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """An optimizer by its name in timm.

    Raises:
        ConfigError: no such optimizer, or one that needs a package or a device that is not here.
    """
    names = timm.optim.list_optimizers()
    if config.optimizer not in names:
        raise ConfigError(f'train.optimizer: unknown "{config.optimizer}". {nearest(config.optimizer, names)}')
    # One call for all tensors, where the optimizer can: calling is a tenth of a small network's step on a CPU.
    constructor = timm.optim.get_optimizer_class(config.optimizer, bind_defaults=False)
    foreach = True if "foreach" in inspect.signature(constructor).parameters else None
    try:
        return timm.optim.create_optimizer_v2(
            network,
            opt=config.optimizer,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            foreach=foreach,
        )
    except (AssertionError, ImportError) as error:
        raise ConfigError(
            f'train.optimizer: "{config.optimizer}" cannot be used here ({error}). Try "adam" or "adamw".'
        ) from error


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Runs its block with that many threads of torch, None for as many as now; gives the number.

    The number of threads decides the last bits of a result.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
