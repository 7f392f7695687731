"""The training loop of one phase of one fold; it can be stopped after any step and resumed with the same result."""

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from ichkit.core.errors import Stopped
from ichkit.core.progress import Meter, StopFlag, format_seconds, logger
from ichkit.core.train_config import HeadsConfig
from ichkit.engine.blocks import Block, BlockDataset, stack_blocks
from ichkit.engine.checkpoint import load_checkpoint, save_checkpoint
from ichkit.engine.devices import count_loader_workers
from ichkit.engine.evaluation import Evaluator, describe_scores, find_best, is_out_of_patience, to_value
from ichkit.engine.parallel import free_memory_bytes
from ichkit.engine.phases import Phase
from ichkit.engine.step import Stepper, StepResult
from ichkit.engine.step_log import StepLog
from ichkit.models.descriptor import DescriptorNetwork
from ichkit.models.losses import LossFunction
from ichkit.work.folder import STEP_LOG_NAME

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The first steps compile kernels and fill caches; the estimate of the time left excludes them.
_WARM_STEPS = 2
_TIMED_STEPS = 5
_LONG_SECONDS = 3600

VALIDATION = "validation_"
"""Prefix of the validation scores in `history.csv`."""
HELDOUT = "heldout_for_display_"
"""Prefix of the scores of the held-out fold for a listener."""


@dataclass
class Progress:
    """Progress of training; a checkpoint holds it and the stepper's state.

    Attributes:
        phase: index of the phase.
        epoch, step: the next step; epoch counts within the phase, step within the epoch.
        loss_sum, num_images: sums over the finished steps of this epoch.
        earlier_steps: steps of the finished epochs of the run.
        history: one row per finished epoch of the run.
        display: scores of the held-out fold, one row per finished epoch; nothing reads them but the report.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_images: int = 0
    earlier_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    display: list[dict[str, float]] = field(default_factory=list)


class Listener(Protocol):
    """Gets a copy of every row that training logs; nothing that it does may affect the training."""

    def log_step(self, step: int, row: Mapping[str, float]) -> None:
        """Gets a row of the step log; `step` counts those of the run, from 1."""

    def log_epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        """Gets a row of the history; `epoch` counts those of the run, from 1."""


@dataclass
class _Pace:
    """Speed of an epoch since this call started it."""

    began: float
    num_images: int = 0
    waited: float = 0.0

    def measure(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self.began, 1e-9)
        return {
            "seconds": seconds,
            "images_per_second": self.num_images / seconds,
            "data_wait_share": self.waited / seconds,
        }


class TrainingLoop:
    """Trains a network on the blocks of one fold's training part, for one phase of the run.

    A run that is stopped and resumed ends in the same bytes as an uninterrupted one. In distributed training all
    processes share the loss and stop together, and only the main process writes.

    Args:
        fabric: devices and precision.
        network: uint8 images to logits; moved to the device and trained in place.
        dataset: the blocks.
        loss_function: see `models.losses`.
        phase: the phase to train.
        checkpoint: the file written after every epoch and on a stop; the step log is beside it.
        heads: weights of the losses, see `Stepper`.
        earlier: history and display of earlier phases.
        validation: scores the patients of the training part that are held out from training.
        curve: scores the held-out fold, for display only.
        shows_meter: True for a progress bar; else one line per epoch.
        listener: gets every logged row, in the main process.
        stepper_type: does the steps.

    Raises:
        ConfigError: see `Stepper`.
    """

    def __init__(
        self,
        fabric: "Fabric",
        network: DescriptorNetwork,
        dataset: BlockDataset,
        loss_function: LossFunction,
        phase: Phase,
        checkpoint: Path,
        *,
        heads: HeadsConfig | None = None,
        earlier: Progress | None = None,
        validation: Evaluator | None = None,
        curve: Evaluator | None = None,
        shows_meter: bool = True,
        listener: Listener | None = None,
        stepper_type: type[Stepper] = Stepper,
    ) -> None:
        self.fabric, self.dataset, self.phase, self.config = fabric, dataset, phase, dataset.config
        self.checkpoint, self.shows_meter = checkpoint, shows_meter and fabric.is_global_zero
        earlier = earlier or Progress()
        self.progress = Progress(
            phase.number,
            earlier_steps=earlier.earlier_steps,
            history=list(earlier.history),
            display=list(earlier.display),
        )
        self._listener = listener if fabric.is_global_zero else None
        self._validation, self._curve = validation, curve
        self._best: dict[str, torch.Tensor] | None = None
        self.stepper = stepper_type(fabric, network, dataset, loss_function, phase, heads)
        self.batches = self.stepper.batches
        self._loader = fabric.setup_dataloaders(self._make_loader(), use_distributed_sampler=False)
        path = checkpoint.with_name(STEP_LOG_NAME)
        self._step_log = StepLog(path, self.config.log_every, writes=fabric.is_global_zero)
        self._pace = _Pace(time.monotonic())
        self._is_stop_agreed = False
        self._steps_here, self._warm_at = 0, 0.0
        self._label = f"fold {dataset.fold}"

    def run(self, stop: StopFlag) -> nn.Module:
        """Trains from the checkpoint to the last epoch; returns the network for inference, of the last or best epoch.

        Raises:
            Stopped: a stop was requested; the checkpoint holds the last finished step.
            NonFiniteLossError: the loss is not finite.
            DiskFullError: the checkpoint does not fit on the disk.
        """
        self._resume()
        steps_left = 0 if self._is_over() else self._count_steps_left()
        if steps_left:
            self._log_estimate(steps_left)
        meter = Meter(self._label, steps_left, "steps") if self.shows_meter else None
        with meter or nullcontext():
            while not self._is_over():
                self._run_epoch(stop, meter)
        if self._best is not None:
            self.stepper.trained.load_state_dict(self._best)
        return self.stepper.trained

    @property
    def kept_epoch(self) -> int:
        """The epoch of the run, counted from 1, whose weights are the result: the best one or the last."""
        values = self._values()
        best = find_best(values) if self._best is not None else None
        own = [row for row in self.progress.history if row["phase"] == self.phase.number + 1]
        return int(own[-1 if best is None else best]["epoch"])

    def describe(self) -> str:
        """Size of an epoch, device and memory, for the log line before the first step."""
        plan = self.dataset.plan(self.phase.first_epoch)
        blocks = f"{len(plan.rows)} blocks of {self.config.block_size}"
        if self.config.sampling == "studies":
            blocks = f"{len(plan.rows)} studies of at most {self.config.max_slices} slices"
        parts = [
            f"{self.phase.config.epochs} epochs of {int(plan.is_real.sum())} images in {blocks}, "
            f"{self.batches.steps_per_epoch} steps each",
            f"at {self.config.image_size} px on {self.fabric.device} ({torch.get_num_threads()} CPU threads, "
            f"{self.fabric.strategy.precision.precision})",
            f"{self.stepper.held_bytes() / 1e6:.0f} MB for weights and optimizer",
        ]
        if self.fabric.world_size > 1:
            parts.append(f"{self.fabric.world_size} processes")
        if self.stepper.frozen.names:
            parts.append(self.stepper.frozen.describe())
        return ", ".join(parts)

    def _run_epoch(self, stop: StopFlag, meter: Meter | None) -> None:
        progress, epoch = self.progress, self.phase.first_epoch + self.progress.epoch
        self.stepper.validation_values = self._values()
        self.batches.start(epoch, progress.step)
        self._pace = _Pace(time.monotonic())
        for batch, seconds_waited in _timed(self._loader):
            self._pace.waited += seconds_waited
            self._record(self.stepper.do(batch, epoch, progress.step, stop))
            progress.step += 1
            if meter:
                meter.advance(1, f"epoch {epoch + 1} of {self.phase.total_epochs}", seconds_waited)
            self._log_time_left()
            if self._must_stop(stop) and progress.step < self.batches.steps_per_epoch:
                self._save()
                raise Stopped.after(f"{self._label} is saved at epoch {epoch + 1}, step {progress.step}")
        self._record(self.stepper.finish())
        row: dict[str, float] = {
            "phase": self.phase.number + 1,
            "epoch": epoch + 1,
            "loss": progress.loss_sum / progress.num_images,
            "num_images": progress.num_images,
            **self._pace.measure(),
        }
        scores = self._evaluate(self._validation)
        row |= {f"{VALIDATION}{name}": value for name, value in scores.items()}
        progress.history.append(row)
        shown: dict[str, float] = {}
        if self._curve is not None:
            shown = self._evaluate(self._curve)
            progress.display.append({"epoch": epoch + 1, **shown})
        if self._listener is not None:
            self._listener.log_epoch(epoch + 1, row | {f"{HELDOUT}{name}": value for name, value in shown.items()})
        if self.config.validation.keep == "best" and find_best(self._values()) == len(self._values()) - 1:
            self._best = {name: tensor.clone() for name, tensor in self.stepper.trained.state_dict().items()}
        progress.earlier_steps += self.batches.steps_per_epoch
        progress.epoch, progress.step, progress.loss_sum, progress.num_images = progress.epoch + 1, 0, 0.0, 0
        self._save()
        logger.info(
            "%s: epoch %d of %d, loss %.4f, %.0f images/s, %.0f %% of the time waiting for data",
            self._label,
            epoch + 1,
            self.phase.total_epochs,
            row["loss"],
            row["images_per_second"],
            100 * row["data_wait_share"],
        )
        if self._validation is not None:
            logger.info(
                "%s: validation on %d slices: %s", self._label, self._validation.num_slices, describe_scores(scores)
            )
            if self._is_over() and progress.epoch < self.phase.config.epochs:
                logger.info(
                    "%s: stopping early, no improvement for %d epochs", self._label, self.config.validation.patience
                )
        if self._must_stop(stop):
            raise Stopped.after(f"{self._label} is saved after epoch {epoch + 1}")

    def _evaluate(self, evaluator: Evaluator | None) -> dict[str, float]:
        """The scores of the inference weights; the main process computes them for all."""
        if evaluator is None:
            return {}
        scores: dict[str, float] = {}
        if self.fabric.is_global_zero:
            scores = evaluator.evaluate(self.stepper.trained, self.fabric.device)
        return self.fabric.broadcast(scores)

    def _values(self) -> list[float]:
        """The validation values of the finished epochs of this phase, lower is better; empty without validation."""
        if self._validation is None:
            return []
        metric = self.config.validation.metric
        rows = [row for row in self.progress.history if row["phase"] == self.phase.number + 1]
        return [to_value(row[f"{VALIDATION}{metric}"], metric) for row in rows]

    def _is_over(self) -> bool:
        """Whether the last epoch is done, or training has run out of patience."""
        is_last = self.progress.epoch >= self.phase.config.epochs
        return is_last or is_out_of_patience(self._values(), self.config.validation)

    def _record(self, result: StepResult | None) -> None:
        """Adds the result of a step to the mean of the epoch and to the step log."""
        if result is None:
            return
        self.progress.loss_sum += result.loss * result.num_images
        self.progress.num_images += result.num_images
        self._pace.num_images += result.num_images
        self._is_stop_agreed = self._is_stop_agreed or result.asks_to_stop
        if self._step_log.wants(result.step):
            row: dict[str, float] = {"phase": self.phase.number + 1, "epoch": result.epoch + 1, "step": result.step + 1}
            row |= {"loss": result.loss, "learning_rate": result.learning_rate, **self._pace.measure()}
            if self.fabric.device.type == "cuda":
                row["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
            self._step_log.add(row)
            if self._listener is not None:
                self._listener.log_step(self.progress.earlier_steps + result.step + 1, row)

    def _must_stop(self, stop: StopFlag) -> bool:
        """True if a stop is requested; in distributed training, once all processes know of it."""
        return self._is_stop_agreed if self.fabric.world_size > 1 else bool(stop)

    def _count_steps_left(self) -> int:
        return self.stepper.total_steps - self.progress.epoch * self.batches.steps_per_epoch - self.progress.step

    def _log_estimate(self, steps_left: int) -> None:
        """Before the first step: the estimated time of all steps and the memory of one."""
        step = self.stepper.measure_cost()
        seconds = step.seconds * steps_left
        logger.info(
            "%s: expecting about %s for %d steps, with %.2f GB of activations",
            self._label,
            format_seconds(seconds),
            steps_left,
            step.activation_bytes / 1e9,
        )
        if self.fabric.device.type == "cpu" and seconds > _LONG_SECONDS:
            logger.warning(
                "%s: without a GPU this takes about %s; training starts", self._label, format_seconds(seconds)
            )
        if self.fabric.device.type == "cpu" and step.activation_bytes > (free := free_memory_bytes()):
            logger.warning(
                "%s: a step needs about %.1f GB of memory, %.1f GB are free. Use a smaller train.batch_blocks or "
                "train.image_size, or --set train.accumulate=4",
                self._label,
                step.activation_bytes / 1e9,
                free / 1e9,
            )

    def _log_time_left(self) -> None:
        """Once per run, after a few timed steps: the time left."""
        self._steps_here += 1
        if self._steps_here == _WARM_STEPS:
            self._warm_at = time.monotonic()
        if self._steps_here != _WARM_STEPS + _TIMED_STEPS:
            return
        per_step = (time.monotonic() - self._warm_at) / _TIMED_STEPS
        seconds = per_step * self._count_steps_left()
        logger.info("%s: about %s left (%.2g s per step)", self._label, format_seconds(seconds), per_step)

    def _make_loader(self) -> DataLoader[Block]:
        workers = count_loader_workers(self.config, self.fabric.device)
        return DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=workers,
            collate_fn=stack_blocks,
            pin_memory=self.fabric.device.type == "cuda",
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers > 0 else None,
        )

    def _save(self) -> None:
        self._record(self.stepper.finish())
        if self.fabric.is_global_zero:
            state = {"progress": vars(self.progress), "best": self._best, **self.stepper.state()}
            save_checkpoint(self.checkpoint, state)
        self.fabric.barrier()

    def _resume(self) -> None:
        state = load_checkpoint(self.checkpoint) if self.checkpoint.exists() else None
        if state is None or state["progress"]["phase"] < self.phase.number:  # none, or the end of the previous phase
            self._step_log.drop_from(self.phase.first_epoch, 0)
            return
        self.progress = Progress(**state["progress"])
        self.stepper.load_state(state)
        best = state.get("best")
        self._best = None if best is None else {name: tensor.to(self.fabric.device) for name, tensor in best.items()}
        epoch = self.phase.first_epoch + self.progress.epoch
        self._step_log.drop_from(epoch, self.progress.step)
        if not self._is_over():
            logger.info("%s: resuming at epoch %d, step %d", self._label, epoch + 1, self.progress.step)


def _timed(loader: DataLoader[Block] | list[DataLoader[Block]]) -> Iterator[tuple[Block, float]]:
    """Each batch with the seconds spent waiting for it."""
    assert not isinstance(loader, list)  # Fabric gives a list for several loaders only
    batches = iter(loader)
    while True:
        began = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - began
