"""Slice sampling: the index of the training slices, the blocks that an epoch draws, and their batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from ichkit.core.errors import ConfigError
from ichkit.core.rows import find_row
from ichkit.core.seeding import make_generator
from ichkit.core.train_config import TrainConfig
from ichkit.models.context import centre_positions

CENTRAL_SHARE = (0.2, 0.9)
"""Part of a study that "central" draws from: positive slices are rare at the vertex and below the skull base."""
_LENGTH_ERROR = 0.05


@dataclass(frozen=True)
class SliceIndex:
    """The N training slices as arrays; lists of objects would be copied to every worker as they are read.

    Attributes:
        paths: (V,) fixed-width text, the volumes relative to the store.
        volume_of: (N,) int32, index of the slice's volume in `paths`.
        position: (N,) int32, row of the slice in its volume.
        position_mm: (N,) float32, distance of the slice from the middle of its study.
        first, last: (N,) int64, first and last row of the slice's study in this index, both inclusive.
        labels: (N, K) float32, NaN where unknown.
    """

    paths: np.ndarray
    volume_of: np.ndarray
    position: np.ndarray
    position_mm: np.ndarray
    first: np.ndarray
    last: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, slices: pd.DataFrame, classes: tuple[str, ...]) -> "SliceIndex":
        """The index of labelled slices, sorted by study_id and slice_index; `classes` are the label columns."""
        volumes, paths = pd.factorize(slices.volume)
        begins = np.flatnonzero(np.diff(volumes, prepend=-1) != 0)
        lengths = np.diff(begins, append=len(slices))
        positions = np.split(slices.position_mm.to_numpy(np.float64), begins[1:])
        return cls(
            paths=np.array(paths, dtype=np.str_),
            volume_of=volumes.astype(np.int32),
            position=slices.slice_index.to_numpy(np.int32, copy=True),
            position_mm=np.concatenate([centre_positions(of_study) for of_study in positions]),
            first=np.repeat(begins, lengths),
            last=np.repeat(begins + lengths - 1, lengths),
            labels=slices[list(classes)].to_numpy(np.float32, copy=True, na_value=np.nan),
        )

    def __len__(self) -> int:
        return len(self.position)

    def centres(self, beyond: int) -> "Candidates":
        """Every slice as a centre, and `beyond` positions before and after each study."""
        begins, lengths = np.unique(self.first, return_counts=True)
        places = lengths + 2 * beyond
        offset = np.arange(places.sum()) - np.repeat(np.cumsum(places) - places, places)
        rows = np.repeat(begins, places) + offset - beyond
        return Candidates(rows, np.repeat(begins, places), np.repeat(begins + lengths - 1, places), self.labels)


@dataclass(frozen=True)
class Candidates:
    """The M possible centres of blocks.

    Attributes:
        rows: (M,) int64 rows of the index; those before `first` and after `last` are beyond the study.
        first, last: (M,) int64, first and last row of the study of each, both inclusive.
        slice_labels: (N, K) float32 labels of the index, NaN where unknown.
    """

    rows: np.ndarray
    first: np.ndarray
    last: np.ndarray
    slice_labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """(M, K) float32 labels of each centre; beyond a study, those of its end slice."""
        labels: np.ndarray = self.slice_labels[np.clip(self.rows, self.first, self.last)]
        return labels

    def labelled(self) -> "Candidates":
        """The candidates with a known label; the others have no loss."""
        is_known = ~np.isnan(self.labels).all(1)
        if is_known.all():
            return self
        return Candidates(self.rows[is_known], self.first[is_known], self.last[is_known], self.slice_labels)


@dataclass(frozen=True)
class Centres:
    """A row of `CENTRES`.

    Attributes:
        name: key in the table.
        draw: candidates, number of centres and generator to (n,) int64 indices of candidates.
        reaches_beyond: True if blocks may be centred beyond the ends of a study, so that an end slice is in as many
            blocks as any other.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    draw: Callable[[Candidates, int, np.random.Generator], np.ndarray]
    reaches_beyond: bool
    description: str
    source: str


@dataclass(frozen=True)
class EpochPlan:
    """The M blocks of one epoch.

    Attributes:
        rows: (M, P) int64 rows of the index.
        is_real: (M, P) bool; False marks padding: beyond the ends of a study its end slice is repeated. Whole studies
            are padded after their last slice, here to the longest of the epoch, and in a batch to its longest.
    """

    rows: np.ndarray
    is_real: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(M,) number of real slices of each block."""
        counts: np.ndarray = self.is_real.sum(1)
        return counts


def plan_epoch(index: SliceIndex, config: TrainConfig, seed: int, fold: int, epoch: int) -> EpochPlan:
    """The blocks of an epoch, which show as many slices as the index has labelled ones.

    `train.sampling` defines a block of `train.block_size` slices: "blocks" takes each centre with its neighbours in the
    study, "slices" groups the centres themselves across studies. With "studies" a block is a whole study, or a part of
    at most `train.max_slices` adjacent slices, and each study is drawn once. `train.centres` is the slice sampling
    strategy of the others.

    In a study of n slices, blocks of 7 are centred at -3 to n + 2, so that every slice, including the end slices, is in
    7 of the possible blocks; 1 in 7 blocks is drawn. Positions of a block beyond the study are padding.

    Slices without any known label are no centres, and studies without any are not drawn; as neighbours they are seen.

    Raises:
        ConfigError: `train.centres` is unknown.

    Source: paper section 2.1 for the blocks; the paper does not define an epoch, so its length is chosen here.
    """
    size = config.block_size
    chosen, generator = _find_centres(config), make_generator(seed, "epoch", fold, epoch)
    if config.sampling == "studies":
        return _plan_studies(index, config, generator)
    if config.sampling == "slices":
        candidates = index.centres(0).labelled()
        num_blocks = max(1, len(candidates) // size)
        centres = candidates.rows[chosen.draw(candidates, len(candidates), generator)]
        rows = np.resize(centres, (num_blocks, size))
        return EpochPlan(rows, np.arange(num_blocks * size).reshape(rows.shape) < len(centres))
    candidates = index.centres(size // 2 if chosen.reaches_beyond else 0).labelled()
    drawn = chosen.draw(candidates, max(1, len(candidates) // size), generator)[:, None]
    rows = candidates.rows[drawn] + np.arange(size) - size // 2  # (M, P)
    first, last = candidates.first[drawn], candidates.last[drawn]
    return EpochPlan(np.clip(rows, first, last), (first <= rows) & (rows <= last))


def count_blocks(config: TrainConfig, num_slices: int, num_studies: int) -> int:
    """Number of blocks that `plan_epoch` draws for a number of slices and studies.

    Example:
        >>> count_blocks(TrainConfig(sampling="blocks"), num_slices=300, num_studies=10)
        51
    """
    if config.sampling == "studies":
        return num_studies
    is_longer = config.sampling == "blocks" and _find_centres(config).reaches_beyond
    num_centres = num_slices + num_studies * (config.block_size - 1) * is_longer
    return max(1, num_centres // config.block_size)


def _plan_studies(index: SliceIndex, config: TrainConfig, generator: np.random.Generator) -> EpochPlan:
    """Every study once, with studies of about the same length in a batch, so that there is little padding.

    Lengths are compared with a random error of 5 %, so that the studies of a batch change from epoch to epoch.
    """
    augment = config.augment
    chosen: list[np.ndarray] = []
    begins = np.unique(index.first[~np.isnan(index.labels).all(1)])
    for first, last in zip(begins, index.last[begins], strict=True):
        rows = np.arange(first, last + 1)
        if generator.random() < augment.every_second_probability and len(rows) > 1:
            rows = rows[int(generator.integers(2)) :: 2]
        start = int(generator.integers(max(len(rows) - config.max_slices, 0) + 1))
        rows = rows[start : start + config.max_slices]
        chosen.append(rows[::-1] if generator.random() < augment.reversed_probability else rows)
    lengths = np.array([len(rows) for rows in chosen])
    by_length = np.argsort(lengths * generator.uniform(1, 1 + _LENGTH_ERROR, len(lengths)), kind="stable")
    batches = _split_batches(len(chosen), config.batch_blocks)
    order = np.empty(len(chosen), np.int64)
    taken = 0
    for number in generator.permutation(len(batches)):
        order[batches[number]] = by_length[taken : taken + len(batches[number])]
        taken += len(batches[number])
    places = np.arange(lengths.max())
    rows = np.stack([chosen[study][np.minimum(places, lengths[study] - 1)] for study in order])
    return EpochPlan(rows, places < lengths[order, None])


def _split_batches(num_blocks: int, batch_blocks: int) -> list[np.ndarray]:
    """The numbers of the blocks of each batch; batches differ by at most one block."""
    return np.array_split(np.arange(num_blocks), -(-num_blocks // batch_blocks))


def _find_centres(config: TrainConfig) -> Centres:
    return find_row(CENTRES, config.centres, "train.centres")


def _draw_uniform(candidates: Candidates, count: int, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(len(candidates))[:count]


def _draw_balanced(candidates: Candidates, count: int, generator: np.random.Generator) -> np.ndarray:
    labels = candidates.labels
    is_positive = labels > 0.5  # False where unknown
    is_negative = ~is_positive.any(1) & ~np.isnan(labels).all(1)
    groups = np.column_stack([is_positive, is_negative]).astype(np.float64)  # (M, K + 1)
    groups = groups[:, groups.any(0)]
    return generator.choice(len(candidates), size=count, p=(groups / groups.sum(0)).mean(1))


def _draw_central(candidates: Candidates, count: int, generator: np.random.Generator) -> np.ndarray:
    place = (candidates.rows - candidates.first + 0.5) / (candidates.last - candidates.first + 1)
    inside = np.flatnonzero((place >= CENTRAL_SHARE[0]) & (place <= CENTRAL_SHARE[1]))
    # An epoch has more centres than there are slices inside: they are repeated as evenly as possible.
    return np.resize(generator.permutation(inside), count)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of keys of a `BlockDataset`, starting at any step of any epoch.

    The blocks of an epoch are spread evenly over its batches, so that none is too small for batch statistics.

    Args:
        num_blocks: blocks in an epoch.
        batch_blocks: maximum number of blocks in a batch, over all processes.
        rank, world: rank of this process and number of processes; each takes its share of every batch.

    Raises:
        ConfigError: a batch has fewer blocks than there are processes.
    """

    def __init__(self, num_blocks: int, batch_blocks: int, rank: int = 0, world: int = 1) -> None:
        self.numbers = _split_batches(num_blocks, batch_blocks)
        self._own = slice(rank, None, world)
        smallest = min(map(len, self.numbers))
        if smallest < world:
            raise ConfigError(
                f"train.batch_blocks: expected at least one block for each of {world} processes, found a batch of "
                f"{smallest}. Use larger batches or fewer processes."
            )
        self.epoch, self.first_step = 0, 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return len(self.numbers)

    def own(self, step: int) -> np.ndarray:
        """Numbers of this process's blocks in a step."""
        return self.numbers[step][self._own]

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Sets the epoch and step at which the next iteration starts."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.steps_per_epoch):
            yield [(self.epoch, int(number)) for number in self.own(step)]


CENTRES = {
    "uniform": Centres(
        name="uniform",
        draw=_draw_uniform,
        reaches_beyond=True,
        description="All slices equally often; no block twice in an epoch.",
        source="paper section 2.1",
    ),
    "balanced": Centres(
        name="balanced",
        draw=_draw_balanced,
        reaches_beyond=True,
        description="Each class and slices of no class equally often, with replacement; overestimates probabilities.",
        source="class-balanced sampling, Shen et al., ECCV 2016, section 3.1",
    ),
    "central": Centres(
        name="central",
        draw=_draw_central,
        reaches_beyond=False,
        description="Slices between 20 % and 90 % of their study's slices, where most positive ones are.",
        source="chosen here for hemorrhage, because bleeds are rare at the vertex and below the skull base",
    ),
}
