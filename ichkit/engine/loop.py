"""The training loop of one fold: each step depends on its place alone, so that training can stop and go on anywhere."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ichkit.core.config import TrainConfig
from ichkit.core.errors import ConfigError
from ichkit.core.progress import Meter, StopFlag, format_seconds, logger
from ichkit.core.seeding import derive_seed, make_generator
from ichkit.engine.blocks import Block, BlockDataset, EpochBatches, stack_blocks
from ichkit.engine.checkpoint import load_checkpoint, save_checkpoint
from ichkit.engine.cutmix import apply_cut, draw_cut
from ichkit.engine.devices import make_optimizer
from ichkit.engine.ema import AveragedWeights
from ichkit.engine.parallel import count_cores
from ichkit.engine.schedule import learning_rate_factor
from ichkit.models.losses import LossFunction

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# The first steps compile kernels and fill caches; the estimate of the time to go begins after them.
_WARM_STEPS = 2
_TIMED_STEPS = 5
_LONG_SECONDS = 3600


@dataclass
class Progress:
    """Where training stands; with the weights, all that a checkpoint holds.

    Attributes:
        epoch, step: the next step to do, counted inside its epoch.
        loss_sum, num_images: over the steps of this epoch that are done.
        history: one row per finished epoch.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_images: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Pending:
    """A step whose loss has not been looked at yet, so that a GPU need not wait for the look."""

    loss: torch.Tensor
    num_images: int
    rows: torch.Tensor


class TrainingLoop:
    """Trains a network on the blocks of one fold's training part.

    Every random number is drawn from a seed derived from its place (epoch, step, block), and the learning rate is a
    function of the step: a checkpoint holds weights, moments and counts, and no generator, and a run that was stopped
    between any two steps ends in the same bytes as one that was not.

    Args:
        fabric: device and precision.
        network: uint8 images to logits; the loop moves and changes it.
        dataset: the blocks.
        loss_function: see `models.losses`.
        config: the train section.
        checkpoint: the file that is written after every epoch and on a stop.
        shows_meter: a progress bar; else one line per epoch.
    """

    def __init__(
        self,
        fabric: "Fabric",
        network: nn.Module,
        dataset: BlockDataset,
        loss_function: LossFunction,
        config: TrainConfig,
        checkpoint: Path,
        *,
        shows_meter: bool = True,
    ) -> None:
        self.fabric, self.dataset, self.loss_function = fabric, dataset, loss_function
        self.config, self.checkpoint, self.shows_meter = config, checkpoint, shows_meter
        self.progress = Progress()
        self.batches = EpochBatches(len(dataset.plan(0).rows), config.batch_blocks)
        self.total_steps = self.batches.steps_per_epoch * config.epochs
        self.warmup_steps = round(self.batches.steps_per_epoch * config.warmup_epochs)
        network = network.to(memory_format=torch.channels_last)
        # Fabric's optimizer is for stepping; it keeps copies of attributes that loading a state would leave stale.
        self._optimizer = make_optimizer(network, config)
        self.network, self._stepper = fabric.setup(network, self._optimizer)
        self.average = None if config.ema_decay is None else AveragedWeights(self.network.module, config.ema_decay)
        self._loader = fabric.setup_dataloaders(self._make_loader(), use_distributed_sampler=False)
        self._pending: _Pending | None = None
        self._steps_here, self._warm_at = 0, 0.0
        self._label = f"fold {dataset.fold}"

    def run(self, stop: StopFlag) -> nn.Module:
        """Trains from where the checkpoint stands to the last epoch; returns the network that predicts.

        Raises:
            Stopped: a stop was asked for; the checkpoint holds the step reached.
            ConfigError: the loss is no longer a number.
            DiskFullError: no room for the checkpoint.
        """
        if self.checkpoint.exists():
            self._resume()
        done = self.progress.epoch * self.batches.steps_per_epoch + self.progress.step
        meter = Meter(self._label, self.total_steps - done, "steps") if self.shows_meter else None
        with meter or nullcontext():
            while self.progress.epoch < self.config.epochs:
                self._run_epoch(stop, meter)
        return self.network.module if self.average is None else self.average.network

    def describe(self) -> str:
        """What an epoch is and where it runs, for the line before the first step."""
        plan = self.dataset.plan(0)
        return (
            f"{self.config.epochs} epochs of {int(plan.is_real.sum())} images in {len(plan.rows)} blocks of "
            f"{self.config.block_size}, {self.batches.steps_per_epoch} steps each, at {self.config.image_size} px on "
            f"{self.fabric.device} ({torch.get_num_threads()} CPU threads, {self.fabric.strategy.precision.precision})"
        )

    def _run_epoch(self, stop: StopFlag, meter: Meter | None) -> None:
        progress, began, waited = self.progress, time.monotonic(), 0.0
        images_before = progress.num_images
        self.batches.start(progress.epoch, progress.step)
        for batch, seconds_waited in _timed(self._loader):
            waited += seconds_waited
            self._run_step(batch)
            if meter:
                meter.advance(1, f"epoch {progress.epoch + 1} of {self.config.epochs}", seconds_waited)
            self._say_how_long()
            if stop and progress.step < self.batches.steps_per_epoch:
                self._save()
                stop.check(f"{self._label} is saved at epoch {progress.epoch + 1}, step {progress.step}")
        self._look_at_pending()
        seconds = max(time.monotonic() - began, 1e-9)
        row = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / progress.num_images,
            "num_images": progress.num_images,
            "seconds": seconds,
            "images_per_second": (progress.num_images - images_before) / seconds,
            "data_wait_share": waited / seconds,
        }
        progress.history.append(row)
        progress.epoch, progress.step, progress.loss_sum, progress.num_images = progress.epoch + 1, 0, 0.0, 0
        self._save()
        logger.info(
            "%s: epoch %d of %d, loss %.4f, %.0f images/s, %.0f %% of the time waiting for data",
            self._label,
            progress.epoch,
            self.config.epochs,
            row["loss"],
            row["images_per_second"],
            100 * row["data_wait_share"],
        )
        stop.check(f"{self._label} is saved after epoch {progress.epoch}")

    def _run_step(self, batch: Block) -> None:
        progress, place = self.progress, (self.dataset.fold, self.progress.epoch, self.progress.step)
        # Dropout and its like draw from torch's generator: seeded here, so that no generator needs saving.
        torch.manual_seed(derive_seed(self.dataset.seed, "step", *place))
        factor = learning_rate_factor(
            progress.epoch * self.batches.steps_per_epoch + progress.step, self.total_steps, self.warmup_steps
        )
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        images, labels = self._cut(batch, place)
        self.network.train()
        loss = self.loss_function(self.network(images), labels)
        self._optimizer.zero_grad()
        self.fabric.backward(loss)
        self._stepper.step()
        if self.average is not None:
            self.average.update()
        self._look_at_pending()
        self._pending = _Pending(loss.detach(), len(images), batch.rows[:, batch.rows.shape[1] // 2])
        progress.step += 1

    def _cut(self, batch: Block, place: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, H, W, C) images and (n, K) labels of the real slices of a batch, after CutMix; padding ends here."""
        images, labels = batch.images, batch.labels
        generator = make_generator(self.dataset.seed, "cutmix", *place)
        cut = draw_cut(len(images), *images.shape[2:4], self.config.cutmix, generator)
        if cut is not None:
            images, labels = apply_cut(images, labels, cut)
        return images[batch.is_real], labels[batch.is_real]

    def _look_at_pending(self) -> None:
        """Takes the loss of the step before into the epoch's mean.

        Raises:
            ConfigError: it is not a number.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        loss = pending.loss.item()
        if not torch.isfinite(pending.loss):
            raise ConfigError(
                f"train: expected a finite loss, found {loss} in {self._label}, epoch {self.progress.epoch + 1}, for "
                f"the blocks around rows {sorted(pending.rows.tolist())} of its training part (from 0, in the order of "
                f"study_id and slice_index). Lower train.learning_rate (now {self.config.learning_rate:g}) or use "
                "--set train.precision=32, and start over with --fresh."
            )
        self.progress.loss_sum += loss * pending.num_images
        self.progress.num_images += pending.num_images

    def _say_how_long(self) -> None:
        """Once per run, as soon as a few steps have been timed: how long the rest will take."""
        self._steps_here += 1
        if self._steps_here == _WARM_STEPS:
            self._warm_at = time.monotonic()
        if self._steps_here != _WARM_STEPS + _TIMED_STEPS:
            return
        per_step = (time.monotonic() - self._warm_at) / _TIMED_STEPS
        done = self.progress.epoch * self.batches.steps_per_epoch + self.progress.step
        seconds = per_step * (self.total_steps - done)
        logger.info("%s: about %s to go (%.2g s a step)", self._label, format_seconds(seconds), per_step)
        if self.fabric.device.type == "cpu" and seconds > _LONG_SECONDS:
            logger.warning("%s: without a GPU this takes about %s; going on", self._label, format_seconds(seconds))

    def _make_loader(self) -> DataLoader[Block]:
        on_gpu = self.fabric.device.type == "cuda"
        # On a CPU the network wants every core, and workers would only take them away.
        workers = self.config.workers if self.config.workers is not None else (min(count_cores(), 16) if on_gpu else 0)
        return DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=workers,
            collate_fn=stack_blocks,
            pin_memory=on_gpu,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers > 0 else None,
        )

    def _save(self) -> None:
        self._look_at_pending()
        state: dict[str, Any] = {
            "progress": vars(self.progress),
            "network": self.network.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.network.state_dict()
            state["num_updates"] = self.average.num_updates
        save_checkpoint(self.checkpoint, state)

    def _resume(self) -> None:
        state = load_checkpoint(self.checkpoint)
        self.progress = Progress(**state["progress"])
        self.network.module.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.average is not None:
            self.average.network.load_state_dict(state["average"])
            self.average.num_updates = state["num_updates"]
        if self.progress.epoch < self.config.epochs:
            logger.info("%s: going on at epoch %d, step %d", self._label, self.progress.epoch + 1, self.progress.step)


def _timed(loader: DataLoader[Block]) -> Iterator[tuple[Block, float]]:
    """Each batch with the seconds it was waited for."""
    batches = iter(loader)
    while True:
        began = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - began
