"""How long training takes, by finished folds or by a trial step on this device."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ichkit.core.config import Config
from ichkit.core.rows import find_row
from ichkit.core.tasks import find_task
from ichkit.core.train_config import TrainConfig
from ichkit.imaging.store import Prepared
from ichkit.imaging.views import TTA_SETS
from ichkit.imaging.windows import make_rendering
from ichkit.show.plan import NOT_KNOWN
from ichkit.stages.train.fold_inputs import identify, with_defaults
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory

if TYPE_CHECKING:
    from ichkit.engine.step_cost import StepCost
    from ichkit.models.descriptor import DescriptorNetwork

FORWARD_SHARE = 1 / 3
"""Time of predicting an image divided by that of training on it; a backward pass takes about two forward passes."""


def seconds_by_history(
    config: Config, work: WorkFolder, prepared: Prepared, trained: Sequence[int]
) -> tuple[list[float], str]:
    """Time of training folds with these numbers of images, by the first finished fold of the same settings.

    Without one, no times.
    """
    inventory = take_inventory(work)
    for name, folds in inventory.finished_runs.items():
        for fold in folds:
            folder, manifest = inventory.runs[name][fold].folder, inventory.runs[name][fold].manifest
            if with_defaults(manifest.settings) != identify(config, prepared, work, fold).settings:
                continue
            history = read_table(folder / "history.csv")
            # If its tables were written again later, that took less time than training.
            seconds = max(manifest.facts["seconds"], history["seconds"].sum())
            each = seconds * config.train.total_epochs / history["num_images"].sum()
            return [each * num_images for num_images in trained], f"measured on fold {fold} of {name}"
    return [], NOT_KNOWN


def seconds_by_trial(
    config: Config, network: "DescriptorNetwork", longest: int, trained: Sequence[int], predicted: Sequence[float]
) -> tuple[list[float], int, str]:
    """Time of folds that train on and predict these numbers of images, bytes of activations, and the basis.

    Raises:
        ConfigError: see `try_step`.
    """
    settings = config.train
    tried, shape = try_step(config, longest, network)
    views = len(find_row(TTA_SETS, settings.tta, "train.tta").views)
    predicting = views * FORWARD_SHARE * tried.seconds / math.prod(shape)
    what = "with prediction" if views == 1 else f"with prediction in {views} views"
    each = [
        tried.seconds * count_steps(settings, num_trained, shape) + num_predicted * predicting
        for num_trained, num_predicted in zip(trained, predicted, strict=True)
    ]
    return each, tried.activation_bytes, f"measured on a trial step, {what}; reading is extra"


def try_step(config: Config, longest: int, network: "DescriptorNetwork") -> "tuple[StepCost, tuple[int, int]]":
    """Time and memory of a trial step on this device, its number of blocks and of slices in each.

    Args:
        longest: slices of the longest study.

    Raises:
        ConfigError: the accelerator, the loss or the network cannot be used as configured.
    """
    from ichkit.engine.devices import make_fabric, prepare_network, torch_threads
    from ichkit.engine.step_cost import measure_step_cost
    from ichkit.models.losses import make_loss

    settings, task = config.train, find_task(config.task)
    shape = (settings.batch_blocks, settings.block_size)
    if settings.sampling == "studies":
        shape = (settings.batch_blocks, min(settings.max_slices, longest))
    weights = task.weight_array()
    # An arbitrary prevalence: the value of the loss does not change the time.
    loss = make_loss(settings.loss, weights / weights.sum(), np.full(task.num_classes, 0.1))
    with torch_threads(settings.threads):
        fabric = make_fabric(settings)
        prepare_network(network, settings.model_copy(update={"compile": False}))
        cost = measure_step_cost(
            fabric,
            fabric.setup_module(network).module,
            loss,
            settings,
            shape=shape,
            num_channels=make_rendering(config.channels).num_channels,
            num_classes=task.num_classes,
        )
    return cost, shape


def count_steps(settings: TrainConfig, num_images: int, shape: tuple[int, int]) -> float:
    """Steps of a fold with this number of images, as if no block had padding, which costs no time."""
    if settings.sampling == "studies":
        return settings.total_epochs * num_images / math.prod(shape)
    return settings.total_epochs * math.ceil(math.ceil(num_images / shape[1]) / shape[0])
