"""One training step, from a batch of blocks to updated weights, in one process or several."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ichkit.core.progress import StopFlag
from ichkit.core.seeding import derive_seed, make_generator
from ichkit.core.train_config import HeadsConfig
from ichkit.engine.blocks import Block, BlockDataset
from ichkit.engine.devices import prepare_network
from ichkit.engine.ema import AveragedWeights
from ichkit.engine.mixes import apply_mix, draw_mix
from ichkit.engine.optimizers import make_optimizer, set_rate
from ichkit.engine.phases import Phase
from ichkit.engine.sampling import EpochBatches
from ichkit.engine.schedule import Span, learning_rate_factor
from ichkit.engine.step_cost import StepCost, measure_step_cost
from ichkit.models.descriptor import BlockLogits, DescriptorNetwork
from ichkit.models.freezing import Frozen
from ichkit.models.losses import LossFunction

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class NonFiniteLossError(Exception):
    """The loss is not finite.

    Attributes:
        loss: its value.
        epoch, step: the step, counted from 0.
        rows: rows of the index at the centres of the step's blocks.
    """

    def __init__(self, loss: float, epoch: int, step: int, rows: list[int]) -> None:
        super().__init__(f"loss {loss} in epoch {epoch}, step {step}")
        self.loss, self.epoch, self.step, self.rows = loss, epoch, step, rows


@dataclass(frozen=True)
class StepResult:
    """Result of a step over all processes.

    Attributes:
        epoch, step: counted from 0.
        loss: mean over its images.
        num_images: number of images.
        learning_rate: at that step.
        asks_to_stop: True if a stop is requested in any process.
    """

    epoch: int
    step: int
    loss: float
    num_images: int
    learning_rate: float
    asks_to_stop: bool


@dataclass(frozen=True)
class _Pending:
    """A step whose loss has not been read yet, so that the host does not wait for the GPU.

    Attributes:
        seen: (2,) loss of the step and number of processes with a stop request; in host memory.
        arrived: on a GPU, the event after their copy; synchronising later would also wait for the next step.
        rows: rows of the index at the centres of this process's blocks.
    """

    seen: torch.Tensor
    arrived: torch.cuda.Event | None
    epoch: int
    step: int
    num_images: int
    learning_rate: float
    rows: np.ndarray


class Batch(NamedTuple):
    """Blocks as the network reads them, after CutMix.

    A network that sees slices alone gets every image as a block of its own, without padding.

    Attributes:
        images: (B, P, H, W, C) uint8.
        labels: (B, P, K), NaN where unknown.
        study_labels: (B, K), the highest of the known ones of the slices.
        positions_mm: (B, P).
        is_real: (B, P) bool, in host memory: reading it from a GPU would wait for the GPU.
    """

    images: torch.Tensor
    labels: torch.Tensor
    study_labels: torch.Tensor
    positions_mm: torch.Tensor
    is_real: torch.Tensor

    def chunk(self, number: int) -> "list[Batch]":
        """At most that many parts of whole blocks."""
        return [Batch(*parts) for parts in zip(*(part.chunk(number) for part in self), strict=True)]

    def twice(self) -> "Batch":
        """Every block twice."""
        return Batch(*(part.repeat(2, *[1] * (part.ndim - 1)) for part in self))


Weight = float | torch.Tensor


def count_labelled(batch: Batch) -> torch.Tensor:
    """(2,) float32: images and blocks with a known label, without padding."""
    is_real = batch.is_real.to(batch.labels.device, non_blocking=True)
    images = ~batch.labels.isnan().all(2) & is_real
    return torch.stack([images.sum(), (~batch.study_labels.isnan()).any(1).sum()]).float()


def highest_known(labels: torch.Tensor) -> torch.Tensor:
    """(B, K) the highest known label of the slices of each block; NaN if none is known.

    Args:
        labels: (B, P, K), NaN where unknown.
    """
    highest = labels.nan_to_num(-1.0).amax(1)
    return torch.where(highest < 0, torch.nan, highest)


class Stepper:
    """Runs the training steps of one phase.

    Every random number depends on epoch, step and block alone, and the learning rate on the step and on the validation
    values of finished epochs, so that the state between two steps is only weights, optimizer moments and counts.

    In distributed training each process takes its share of every batch, and gradients are those of the whole batch.
    CutMix and mixup then draw partners within a process.

    Args:
        fabric: devices and precision.
        network: uint8 images to logits; moved to the device and trained in place.
        dataset: the blocks.
        loss_function: see `models.losses`.
        phase: the phase to train.
        heads: weights of the losses; None for those of the config.

    Attributes:
        validation_values: of the finished epochs of the phase, lower is better; set by the loop before an epoch.

    Raises:
        ConfigError: see `Frozen`, `EpochBatches` and `make_optimizer`.
    """

    def __init__(
        self,
        fabric: "Fabric",
        network: DescriptorNetwork,
        dataset: BlockDataset,
        loss_function: LossFunction,
        phase: Phase,
        heads: HeadsConfig | None = None,
    ) -> None:
        self.fabric, self.dataset, self.loss_function, self.phase = fabric, dataset, loss_function, phase
        self.config = dataset.config
        self.heads = heads or self.config.heads
        num_blocks = len(dataset.plan(phase.first_epoch).rows)
        self.batches = EpochBatches(num_blocks, self.config.batch_blocks, fabric.global_rank, fabric.world_size)
        self._has_unknown = bool(np.isnan(dataset.index.labels).any())
        self.total_steps = self.batches.steps_per_epoch * phase.config.epochs
        self._span = Span(self.total_steps, round(self.batches.steps_per_epoch * phase.config.warmup_epochs))
        self.validation_values: list[float] = []
        self.frozen = Frozen(network, phase.config.frozen_stages, phase.config.frozen)
        prepare_network(network, self.config)
        # Fabric's optimizer only steps: it copies attributes, which would be stale after loading a state.
        self._optimizer = make_optimizer(network, phase.config, on_gpu=fabric.device.type == "cuda")
        self._network, self._fabric_optimizer = fabric.setup(network, self._optimizer)
        decay = self.config.ema_decay
        self._average = None if decay is None else AveragedWeights(self._network.module, decay)
        self._pending: _Pending | None = None
        # The rank is part of the seed only with several processes: one process is the same with and without torchrun.
        self._rank_place = () if fabric.world_size == 1 else (fabric.global_rank,)

    @property
    def trained(self) -> nn.Module:
        """The network for inference: EMA weights if used, else the network itself."""
        return self._network.module if self._average is None else self._average.network

    def do(self, batch: Block, epoch: int, step: int, stop: StopFlag) -> StepResult | None:
        """Runs one step; returns the result of the previous step, if not returned yet.

        Args:
            batch: this process's share of the batch.
            epoch: of the run.
            step: of the epoch.
            stop: read only in distributed training, where all processes must stop together.

        Raises:
            NonFiniteLossError: the loss of the previous step is not finite.
        """
        place = (self.dataset.fold, epoch, step, *self._rank_place)
        # Dropout and the like use torch's generator: seeded here, so that its state need not be saved.
        torch.manual_seed(derive_seed(self.dataset.seed, "step", *place))
        done = (epoch - self.phase.first_epoch) * self.batches.steps_per_epoch + step
        factor = learning_rate_factor(done, self._span, self.phase.config.schedule, self.validation_values)
        rate = self.phase.config.learning_rate * factor
        set_rate(self._optimizer, rate)
        plan, own = self.dataset.plan(epoch), self.batches.own(step)
        whole = self.batches.numbers[step]
        num_images = int(plan.is_real[whole].sum())
        mixed = self._mix(batch, place, plan.is_real[own, : batch.images.shape[1]])
        loss = self._descend(mixed, num_images, len(whole))
        if self._average is not None:
            self._average.update()
        before = self.finish()
        middle = plan.rows[own, plan.rows.shape[1] // 2]
        seen, arrived = self._agree(loss, stop).to("cpu", non_blocking=True), None
        if self.fabric.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending = _Pending(seen, arrived, epoch, step, num_images, rate, middle)
        return before

    def finish(self) -> StepResult | None:
        """The result of the last step, if not returned yet.

        Raises:
            NonFiniteLossError: its loss is not finite.
        """
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        if pending.arrived is not None:
            pending.arrived.synchronize()
        loss, asked = pending.seen.tolist()
        if not math.isfinite(loss):
            raise NonFiniteLossError(loss, pending.epoch, pending.step, sorted(pending.rows.tolist()))
        return StepResult(pending.epoch, pending.step, loss, pending.num_images, pending.learning_rate, asked > 0)

    def state(self) -> dict[str, Any]:
        """The state of training, as tensors, numbers, text, lists and dicts."""
        state: dict[str, Any] = {
            "network": self._network.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        if self._average is not None:
            state["average"] = self._average.network.state_dict()
            state["num_updates"] = self._average.num_updates
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self._network.module.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self._average is not None:
            self._average.network.load_state_dict(state["average"])
            self._average.num_updates = state["num_updates"]

    def measure_cost(self) -> StepCost:
        """Time of a mean step and memory of the largest, measured with blank images; changes nothing."""
        plan, own = self.dataset.plan(self.phase.first_epoch), range(self.batches.steps_per_epoch)
        shape = (len(self.batches.own(0)), self.config.block_size)
        mean_images: float = shape[0] * shape[1]
        if self.config.sampling == "studies":
            lengths = [plan.lengths[self.batches.own(step)] for step in own]
            shape = max(((len(of_step), int(of_step.max())) for of_step in lengths), key=math.prod)
            mean_images = float(np.mean([of_step.sum() for of_step in lengths]))
        cost = measure_step_cost(
            self.fabric,
            self._network.module,
            self.loss_function,
            self.config,
            shape=shape,
            num_channels=self.dataset.rendering.num_channels,
            num_classes=self.dataset.index.labels.shape[1],
        )
        return StepCost(cost.seconds * mean_images / math.prod(shape), cost.activation_bytes)

    def held_bytes(self) -> int:
        """Bytes of weights, gradients, Adam's two moments and EMA weights, without activations."""
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in self._network.module.parameters()]
        copies = 1 if self._average is None else 2
        return sum(size * (copies + 3 * is_trained) for size, is_trained in sizes)

    def _descend(self, batch: Batch, num_images: int, num_blocks: int) -> torch.Tensor:
        """Updates the weights; returns this process's part of the mean loss of the step.

        Args:
            num_images, num_blocks: of the step, over all processes.
        """
        self._network.train()
        self.frozen.keep_statistics()
        self._optimizer.zero_grad()
        parts = batch.chunk(self.config.accumulate)
        num_known = self._count_known(batch) if self._has_unknown else None
        losses = []
        for number, part in enumerate(parts):
            # Gradients are averaged over processes, so each weights its images by those of the mean process.
            image_weight: Weight = int(part.is_real.sum()) * self.fabric.world_size / num_images
            block_weight: Weight = len(part.images) * self.fabric.world_size / num_blocks
            if num_known is not None:
                image_weight, block_weight = count_labelled(part) * self.fabric.world_size / num_known
            if part.is_real.sum() == 1:
                # Batch statistics of a feature map of one pixel need two values; the mean loss of a pair is the same.
                part = part.twice()
            with self.fabric.no_backward_sync(self._network, enabled=number < len(parts) - 1):
                logits = self._network(part.images, part.is_real, part.positions_mm)
                loss = self._weigh_losses(logits, part, image_weight, block_weight)
                self.fabric.backward(loss)
            losses.append(loss.detach())
        if self.config.clip_norm is not None:
            # A float16 overflow is not an error: the gradient scaler skips the step and lowers the scale.
            self.fabric.clip_gradients(
                self._network, self._fabric_optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self._fabric_optimizer.step()
        return torch.stack(losses).sum() / self.fabric.world_size

    def _count_known(self, batch: Batch) -> torch.Tensor:
        """(2,) images and blocks of the step with a known label, over all processes; at least 1."""
        counts = count_labelled(batch)
        if self.fabric.world_size > 1:
            summed = self.fabric.all_reduce(counts, reduce_op="sum")
            assert isinstance(summed, torch.Tensor)  # as what went in
            counts = summed
        return counts.clamp(min=1)

    def _weigh_losses(
        self, logits: BlockLogits, batch: Batch, image_weight: Weight, block_weight: Weight
    ) -> torch.Tensor:
        """The loss of all heads; a loss of weight 0 stays, so that every parameter has a gradient in every process."""
        rows = None
        if not batch.is_real.all():
            rows = batch.is_real.flatten().nonzero()[:, 0].to(batch.labels.device, non_blocking=True)

        def of_slices(each: torch.Tensor) -> torch.Tensor:
            values, labels = each.flatten(0, 1), batch.labels.flatten(0, 1)
            return self.loss_function(*(values, labels) if rows is None else (values[rows], labels[rows]))

        if logits.series is None and logits.study is None:
            return of_slices(logits.slices) * image_weight
        losses = [(self.heads.slices, of_slices(logits.slices) * image_weight)]
        if logits.series is not None:
            losses.append((self.heads.series, of_slices(logits.series) * image_weight))
        if logits.study is not None:
            of_study = self.loss_function(logits.study.logits, batch.study_labels)
            losses.append((self.heads.study, of_study * block_weight))
        total = sum(weight for weight, _ in losses)
        return torch.stack([loss * (weight / total) for weight, loss in losses]).sum()

    def _mix(self, batch: Block, place: tuple[int, ...], is_real: np.ndarray) -> Batch:
        """The blocks after CutMix or mixup.

        Args:
            is_real: (B, P) bool.
        """
        images, labels, positions = batch.images, batch.labels, batch.positions_mm
        study_labels = highest_known(labels)  # padding repeats a slice of the study
        generator = make_generator(self.dataset.seed, "cutmix", *place)
        mix = draw_mix(len(images), images.shape[2], images.shape[3], self.config, generator)
        if mix is not None:
            images, labels = apply_mix(images, labels, mix)
            study_labels = study_labels * mix.share + study_labels[mix.partners] * (1 - mix.share)
        if self.config.sees_blocks:
            return Batch(images, labels, study_labels, positions, torch.from_numpy(is_real))
        images, labels, positions = (part.flatten(0, 1) for part in (images, labels, positions))
        if not is_real.all():
            rows = torch.from_numpy(np.flatnonzero(is_real)).to(images.device, non_blocking=True)
            images, labels, positions = images[rows], labels[rows], positions[rows]
        alone = torch.ones(len(images), 1, dtype=torch.bool)
        return Batch(images[:, None], labels[:, None], labels, positions[:, None], alone)

    def _agree(self, loss: torch.Tensor, stop: StopFlag) -> torch.Tensor:
        """(2,) loss and number of processes with a stop request, summed over all processes, without waiting."""
        if self.fabric.world_size == 1:
            return torch.stack([loss, torch.zeros_like(loss)])
        summed = self.fabric.all_reduce(torch.stack([loss, torch.full_like(loss, bool(stop))]), reduce_op="sum")
        assert isinstance(summed, torch.Tensor)  # as what went in
        return summed
