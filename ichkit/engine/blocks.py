"""Blocks of adjacent slices: which ones an epoch draws, and how each becomes a batch of images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, Sampler

from ichkit.core.config import TrainConfig
from ichkit.core.seeding import derive_seed, make_generator
from ichkit.core.tasks import Task
from ichkit.imaging.augment import Augmenter
from ichkit.imaging.store import open_volume
from ichkit.imaging.windows import Rendering, pad_to_square

# Volumes held decoded in each process; a small set then stays in memory, a large one is read block by block.
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class SliceIndex:
    """What training knows of its N slices, all of it in arrays: lists of objects grow in forked workers.

    Attributes:
        paths: (V,) fixed-width text, the volumes relative to the store.
        volume_of: (N,) int32, which volume a slice is in.
        position: (N,) int32, which row of that volume it is.
        first, last: (N,) int64, rows of this index at which its study begins and ends, both included.
        labels: (N, K) float32.
    """

    paths: np.ndarray
    volume_of: np.ndarray
    position: np.ndarray
    first: np.ndarray
    last: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, slices: pd.DataFrame, task: Task) -> "SliceIndex":
        """The index of labelled slices, rows sorted by study_id and slice_index."""
        volumes, paths = pd.factorize(slices.volume)
        begins = np.flatnonzero(np.diff(volumes, prepend=-1) != 0)
        lengths = np.diff(begins, append=len(slices))
        return cls(
            paths=np.array(paths, dtype=np.str_),
            volume_of=volumes.astype(np.int32),
            position=slices.slice_index.to_numpy(np.int32, copy=True),
            first=np.repeat(begins, lengths),
            last=np.repeat(begins + lengths - 1, lengths),
            labels=slices[list(task.classes)].to_numpy(np.float32, copy=True),
        )

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True)
class EpochPlan:
    """The M blocks of one epoch.

    Attributes:
        rows: (M, P) int64 rows of the index.
        is_real: (M, P) bool; False marks padding: beyond the ends of a study its end slice is repeated.
    """

    rows: np.ndarray
    is_real: np.ndarray


def plan_epoch(index: SliceIndex, block_size: int, sampling: str, seed: int, fold: int, epoch: int) -> EpochPlan:
    """The blocks of an epoch: N / P of them, so that each slice is seen about once.

    Args:
        block_size: P, odd.
        sampling: "blocks" draws centres without replacement, each with its neighbours in the study; "slices" deals
            single slices, each exactly once but for a remainder of fewer than P.

    Source: paper section 2.1 for the blocks; what an epoch is, is open there and chosen here.
    """
    order = make_generator(seed, "epoch", fold, epoch).permutation(len(index))
    num_blocks = max(1, len(index) // block_size)
    if sampling == "slices":
        rows = np.resize(order, (num_blocks, block_size))
        return EpochPlan(rows, np.arange(num_blocks * block_size).reshape(rows.shape) < len(order))
    centres = order[:num_blocks, None]
    rows = centres + np.arange(block_size) - block_size // 2  # (M, P)
    first, last = index.first[centres], index.last[centres]
    return EpochPlan(np.clip(rows, first, last), (first <= rows) & (rows <= last))


class Block(NamedTuple):
    """One block, or a batch of B blocks with a leading axis B.

    Attributes:
        images: (P, H, W, C) uint8.
        labels: (P, K) float32; a padded position has its slice's own labels.
        is_real: (P,) bool.
        rows: (P,) int64 rows of the index.
    """

    images: torch.Tensor
    labels: torch.Tensor
    is_real: torch.Tensor
    rows: torch.Tensor


class VolumeReader:
    """Reads slices of the store and keeps decoded volumes as long as there is room; pickles without what it holds.

    Args:
        folder: the prepared folder.
        budget_bytes: how much to keep in each process. A small set is soon in memory as a whole; of a large one the
            first volumes stay, and the others are read slice by slice.
    """

    def __init__(self, folder: Path, budget_bytes: int = CACHE_BYTES) -> None:
        self.folder, self.budget_bytes = folder, budget_bytes
        self._kept: dict[str, np.ndarray] = {}
        self._kept_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "budget_bytes": self.budget_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def read(self, relative: str, first: int, last: int) -> np.ndarray:
        """(last - first, H, W) int16 HU, H equal to W; `last` is held to the end of the volume.

        Raises:
            ArtifactError: the volume is missing or damaged.
        """
        if relative in self._kept:
            return self._kept[relative][first:last]
        stored = open_volume(self.folder / relative)
        num_slices, height, width = stored.shape
        num_bytes = 2 * num_slices * max(height, width) ** 2
        if self._kept_bytes + num_bytes > self.budget_bytes:
            return pad_to_square(np.asarray(stored[first : min(last, num_slices)]))
        self._kept[relative] = pad_to_square(np.asarray(stored[:]))
        self._kept_bytes += num_bytes
        return self._kept[relative][first:last]


class BlockDataset(Dataset[Block]):
    """Blocks by (epoch, number); the same key gives the same block in any process.

    Args:
        index: the slices to train on.
        reader: where their HU come from.
        rendering: how they become images.
        config: block size, sampling, augmentation, image size.
        seed, fold: tell the random numbers of two runs and of two folds apart.
    """

    def __init__(
        self, index: SliceIndex, reader: VolumeReader, rendering: Rendering, config: TrainConfig, seed: int, fold: int
    ) -> None:
        self.index, self.reader, self.rendering, self.config = index, reader, rendering, config
        self.seed, self.fold = seed, fold
        self._plans: dict[int, EpochPlan] = {}
        self._augmenter: Augmenter | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers make their own; an augmenter holds generators, and plans are quicker made than sent.
        return {**self.__dict__, "_plans": {}, "_augmenter": None}

    def plan(self, epoch: int) -> EpochPlan:
        """The blocks of an epoch; only the last one asked for is kept."""
        if epoch not in self._plans:
            size, sampling = self.config.block_size, self.config.sampling
            self._plans = {epoch: plan_epoch(self.index, size, sampling, self.seed, self.fold, epoch)}
        return self._plans[epoch]

    def __getitem__(self, key: tuple[int, int]) -> Block:
        epoch, number = key
        plan = self.plan(epoch)
        rows, is_real = plan.rows[number], plan.is_real[number]
        real = rows[is_real]
        # Padding repeats a slice that is in the block already; it is copied, not rendered again.
        sources = np.searchsorted(real, rows) if self.config.sampling == "blocks" else np.arange(len(rows)) % len(real)
        images = self._render(real, derive_seed(self.seed, "augment", self.fold, epoch, number))[sources]
        return Block(
            torch.from_numpy(images),
            torch.from_numpy(self.index.labels[rows]),
            torch.from_numpy(is_real),
            torch.from_numpy(rows),
        )

    def _render(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """(n, size, size, C) uint8 augmented images of distinct rows."""
        if self._augmenter is None:
            self._augmenter = Augmenter(self.config.augment, self.config.image_size)
        shares_geometry = self.config.augment.per == "block" and self.config.sampling == "blocks"
        groups = [rows] if shares_geometry else [rows[i : i + 1] for i in range(len(rows))]
        images = [self._render_together(group, derive_seed(seed, place)) for place, group in enumerate(groups)]
        return np.concatenate(images)

    def _render_together(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Images of adjacent rows of one study that share one draw of everything."""
        positions = self.index.position[rows]
        low = max(int(positions[0]) - self.rendering.reach, 0)
        relative = str(self.index.paths[self.index.volume_of[rows[0]]])
        slab = self.reader.read(relative, low, int(positions[-1]) + self.rendering.reach + 1)
        warped = self._augmenter.warp(slab, derive_seed(seed, "geometry"))
        return self._augmenter.add_noise(self.rendering.render(warped, positions - low), derive_seed(seed, "noise"))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of keys of a `BlockDataset`, from any step of any epoch on.

    The blocks of an epoch are spread evenly over its batches, so that no last batch is too small for batch statistics.

    Args:
        num_blocks: blocks in an epoch.
        batch_blocks: most blocks in a batch.
    """

    def __init__(self, num_blocks: int, batch_blocks: int) -> None:
        self._batches = np.array_split(np.arange(num_blocks), -(-num_blocks // batch_blocks))
        self.epoch, self.first_step = 0, 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a whole epoch."""
        return len(self._batches)

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Chooses what the next iteration gives."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for numbers in self._batches[self.first_step :]:
            yield [(self.epoch, int(number)) for number in numbers]


def stack_blocks(blocks: list[Block]) -> Block:
    """A batch of blocks: every part gets a leading axis B."""
    return Block(*(torch.stack(parts) for parts in zip(*blocks, strict=True)))
