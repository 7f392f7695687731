"""Device, precision and threads of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ichkit.core.errors import ConfigError
from ichkit.core.train_config import TrainConfig
from ichkit.engine.parallel import count_cores
from ichkit.engine.ranks import ALONE, Ranks
from ichkit.models.descriptor import DescriptorNetwork

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_MOST_WORKERS = 16
_NO_MEMORY = "can't allocate memory"  # torch on a CPU raises a plain RuntimeError with these words
_PRECISIONS = {"32": "32-true", "64": "64-true"}


def make_fabric(config: TrainConfig, ranks: Ranks = ALONE, device: int | None = None) -> "Fabric":
    """Devices and precision: "auto" is bfloat16 on a GPU that supports it, float16 on other GPUs, float32 on a CPU.

    Args:
        ranks: with more than one process, joins those that `torchrun` started.
        device: index of the GPU to use in a single process; None for the first.

    Raises:
        ConfigError: the accelerator is unknown or not available.
    """
    # Imported here: the import takes seconds, and only training needs it.
    from lightning_fabric import Fabric

    on_gpu = config.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    precision: Any = _PRECISIONS.get(config.precision, config.precision)  # Fabric lists its names as literals
    if precision == "auto":
        precision = ("bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed") if on_gpu else "32-true"
    devices: dict[str, Any] = {"devices": 1 if device is None else [device]}
    if ranks.world > 1:
        devices = {"devices": ranks.local_world, "num_nodes": ranks.num_nodes, "strategy": "ddp"}
    try:
        fabric = Fabric(accelerator=config.accelerator, precision=precision, **devices)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f'train.accelerator: "{config.accelerator}" cannot be used here ({str(error).splitlines()[0]}). '
            "Choices: auto, cpu, cuda, mps."
        ) from error
    if ranks.world > 1:
        fabric.launch()
    return fabric


def count_gpus(accelerator: str) -> int:
    """Number of GPUs that this accelerator can use; 0 on a CPU."""
    return torch.cuda.device_count() if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available() else 0


def uses_cpu(accelerator: str) -> bool:
    """Whether networks are trained on the CPU with this accelerator."""
    is_there = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not is_there)


def count_loader_workers(config: TrainConfig, device: torch.device) -> int:
    """Number of data loading processes; 0 on a CPU, where they would compete with the network for the cores."""
    if config.workers is not None:
        return config.workers
    return min(count_cores(), _MOST_WORKERS) if device.type == "cuda" else 0


def prepare_network(network: DescriptorNetwork, config: TrainConfig) -> None:
    """Sets memory format, gradient checkpointing and compilation of a network in place.

    Raises:
        ConfigError: the backbone does not support gradient checkpointing.
    """
    network.use_channels_last()
    if config.grad_checkpointing:
        try:
            network.backbone.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ConfigError(
                f"train.grad_checkpointing: {config.backbone} does not support gradient checkpointing. "
                "Use --set train.grad_checkpointing=false; train.accumulate saves memory too."
            ) from error
    if config.compile:
        network.compile()


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Runs its block; if it runs out of memory, the error message ends with the advice.

    Raises:
        ConfigError: out of memory, on the device or on this machine.
    """
    try:
        yield
    except RuntimeError as error:
        on_device = isinstance(error, torch.OutOfMemoryError)
        if not on_device and _NO_MEMORY not in str(error):
            raise
        where = "on the GPU" if on_device else "on this machine"
        raise ConfigError(f"out of memory {where}: {str(error).splitlines()[0]} {advice}") from error


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Runs its block with that many torch threads and yields their number; None for one per core.

    The number of threads changes the last bits of a result.
    """
    before = torch.get_num_threads()
    # Torch counts the cores of the machine, not those of the container.
    torch.set_num_threads(threads or min(before, count_cores()))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
