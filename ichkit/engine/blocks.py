"""Blocks of adjacent slices, read from the store, augmented and collated to batches."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from ichkit.core.seeding import derive_seed
from ichkit.core.train_config import TrainConfig
from ichkit.engine.sampling import EpochPlan, SliceIndex, plan_epoch
from ichkit.imaging.augment import Augmenter
from ichkit.imaging.store import open_volume, read_rows
from ichkit.imaging.windows import Rendering, pad_to_square

CACHE_BYTES = 1 << 30
"""Decoded volumes that one reader keeps: a small data set fits, of a large one each block is read when needed."""


class Block(NamedTuple):
    """One block, or a batch of B blocks with a leading axis B.

    Attributes:
        images: (P, H, W, C) uint8.
        labels: (P, K) float32, NaN where unknown; a padded position has the labels of the slice it repeats.
        positions_mm: (P,) float32, distance of each slice from the middle of its study.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions_mm: torch.Tensor


class VolumeReader:
    """Reads slices of the store and caches decoded volumes up to a budget; the cache is not pickled.

    Args:
        folder: the prepared folder.
        budget_bytes: size of the cache. It keeps the first volumes that fit; of the others only the slices are read.
        num_sharing: number of processes that share the budget, each with a reader of its own.
    """

    def __init__(self, folder: Path, budget_bytes: int = CACHE_BYTES, num_sharing: int = 1) -> None:
        self.folder, self.budget_bytes = folder, budget_bytes // num_sharing
        self._kept: dict[str, np.ndarray] = {}
        self._kept_bytes = 0

    def __reduce__(self) -> tuple[type["VolumeReader"], tuple[Path, int]]:
        return VolumeReader, (self.folder, self.budget_bytes)

    def read(self, relative: str, first: int, last: int) -> np.ndarray:
        """(last - first, [M,] H, W) int16 HU, H equal to W; `last` is clipped to the end of the volume.

        Raises:
            ArtifactError: the volume is missing or damaged.
        """
        if relative in self._kept:
            return self._kept[relative][first:last]
        path = self.folder / relative
        stored = open_volume(path)
        num_slices = stored.shape[0]
        num_bytes = 2 * math.prod(stored.shape[:-2]) * max(stored.shape[-2:]) ** 2
        if self._kept_bytes + num_bytes > self.budget_bytes:
            return pad_to_square(read_rows(path, stored, first, min(last, num_slices)))
        self._kept[relative] = pad_to_square(read_rows(path, stored, 0, num_slices))
        self._kept_bytes += num_bytes
        return self._kept[relative][first:last]


class BlockDataset(Dataset[Block]):
    """Training blocks by (epoch, number); the same key gives the same block in any process.

    Args:
        index: the slices to train on.
        reader: reads their HU.
        rendering: converts HU to images.
        config: block size, sampling, augmentation, image size.
        seed, fold: part of every seed, so that runs and folds draw different random numbers.
    """

    def __init__(
        self, index: SliceIndex, reader: VolumeReader, rendering: Rendering, config: TrainConfig, seed: int, fold: int
    ) -> None:
        self.index, self.reader, self.rendering, self.config = index, reader, rendering, config
        self.seed, self.fold = seed, fold
        self._plans: dict[int, EpochPlan] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers make their own augmenter, which holds generators, and plans, which are slow to pickle.
        return {name: value for name, value in self.__dict__.items() if name != "_augmenter"} | {"_plans": {}}

    @functools.cached_property
    def _augmenter(self) -> Augmenter:
        return Augmenter(self.config.augment, self.config.image_size)

    def plan(self, epoch: int) -> EpochPlan:
        """The blocks of an epoch; only the most recent plan is kept."""
        if epoch not in self._plans:
            self._plans = {epoch: plan_epoch(self.index, self.config, self.seed, self.fold, epoch)}
        return self._plans[epoch]

    def __getitem__(self, key: tuple[int, int]) -> Block:
        epoch, number = key
        plan = self.plan(epoch)
        rows, is_real = plan.rows[number], plan.is_real[number]
        real = rows[is_real]
        seed = derive_seed(self.seed, "augment", self.fold, epoch, number)
        if self.config.sampling == "studies":
            return self._block(self._render_study(real, seed), real)  # padded in `stack_blocks`
        # Padding repeats a slice of the block; its image is copied, not rendered again.
        sources = np.searchsorted(real, rows) if self.config.sampling == "blocks" else np.arange(len(rows)) % len(real)
        return self._block(self._render(real, seed)[sources], rows)

    def _block(self, images: np.ndarray, rows: np.ndarray) -> Block:
        return Block(*map(torch.from_numpy, (images, self.index.labels[rows], self.index.position_mm[rows])))

    def _render_study(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """(n, size, size, C) uint8 images of rows of one study, ascending or descending."""
        is_reversed = rows[0] > rows[-1]
        images = self._render(rows[::-1] if is_reversed else rows, seed)
        return images[::-1].copy() if is_reversed else images

    def _render(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """(n, size, size, C) uint8 augmented images of distinct rows."""
        shares_geometry = self.config.augment.per == "block" and self.config.sampling != "slices"
        groups = [rows] if shares_geometry else [rows[i : i + 1] for i in range(len(rows))]
        images = [self._render_together(group, derive_seed(seed, place)) for place, group in enumerate(groups)]
        return np.concatenate(images)

    def _render_together(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Images of adjacent rows of one study, augmented with the same parameters."""
        positions = self.index.position[rows]
        low = max(int(positions[0]) - self.rendering.reach, 0)
        relative = str(self.index.paths[self.index.volume_of[rows[0]]])
        slab = self.reader.read(relative, low, int(positions[-1]) + self.rendering.reach + 1)
        if self.rendering.reach == 0 and len(slab) > len(rows):  # every second slice: the others are not needed
            slab, positions, low = slab[positions - low], np.arange(len(rows)), 0
        warped = self._augmenter.warp(slab, derive_seed(seed, "geometry"))
        return self.rendering.render(self._augmenter.change_values(warped, derive_seed(seed, "noise")), positions - low)


def stack_blocks(blocks: list[Block]) -> Block:
    """A batch of B blocks, stacked along a new leading axis; shorter ones are padded with their last slice."""
    longest = max(len(block.images) for block in blocks)
    return Block(*(torch.stack([_pad(part, longest) for part in parts]) for parts in zip(*blocks, strict=True)))


def _pad(part: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - len(part)
    return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
