"""Which slices an epoch draws: the index of what there is, the centres of blocks, and batches of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from ichkit.core.errors import ConfigError
from ichkit.core.rows import find_row
from ichkit.core.seeding import make_generator
from ichkit.core.train_config import TrainConfig

# The part of a study, by slices, that "central" draws from: bleeds are rare at the vertex and below the skull base.
CENTRAL_SHARE = (0.2, 0.9)


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
    def of(cls, slices: pd.DataFrame, classes: tuple[str, ...]) -> "SliceIndex":
        """The index of labelled slices, rows sorted by study_id and slice_index; `classes` name the label columns."""
        volumes, paths = pd.factorize(slices.volume)
        begins = np.flatnonzero(np.diff(volumes, prepend=-1) != 0)
        lengths = np.diff(begins, append=len(slices))
        return cls(
            paths=np.array(paths, dtype=np.str_),
            volume_of=volumes.astype(np.int32),
            position=slices.slice_index.to_numpy(np.int32, copy=True),
            first=np.repeat(begins, lengths),
            last=np.repeat(begins + lengths - 1, lengths),
            labels=slices[list(classes)].to_numpy(np.float32, copy=True),
        )

    def __len__(self) -> int:
        return len(self.position)

    def centres(self, beyond: int) -> "Candidates":
        """Every slice as a centre, and so many positions beyond either end of each study."""
        begins, lengths = np.unique(self.first, return_counts=True)
        places = lengths + 2 * beyond
        offset = np.arange(places.sum()) - np.repeat(np.cumsum(places) - places, places)
        rows = np.repeat(begins, places) + offset - beyond
        return Candidates(rows, np.repeat(begins, places), np.repeat(begins + lengths - 1, places), self.labels)


@dataclass(frozen=True)
class Candidates:
    """The M positions that a block may be centred at.

    Attributes:
        rows: (M,) int64, counted as rows of the index; positions before `first` and after `last` lie beyond the study.
        first, last: (M,) int64, rows at which the study of each begins and ends, both included.
        slice_labels: (N, K) float32 labels of the index.
    """

    rows: np.ndarray
    first: np.ndarray
    last: np.ndarray
    slice_labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """(M, K) float32 labels of the slice at each position; beyond the ends, of the end slice."""
        return np.asarray(self.slice_labels[np.clip(self.rows, self.first, self.last)])


@dataclass(frozen=True)
class Centres:
    """A row of `CENTRES`.

    Attributes:
        name: key in the table.
        draw: candidates, number of centres and generator to (n,) int64 numbers of candidates.
        reaches_beyond: whether blocks are centred beyond the ends of a study too, so that an end slice is in as many
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
        is_real: (M, P) bool; False marks padding: beyond the ends of a study its end slice is repeated.
    """

    rows: np.ndarray
    is_real: np.ndarray


def plan_epoch(index: SliceIndex, config: TrainConfig, seed: int, fold: int, epoch: int) -> EpochPlan:
    """The blocks of an epoch, as many as show N slices, so that as many slices are seen as there are.

    `train.sampling` says what a block of `train.block_size` slices is: "blocks" takes each centre with its neighbours
    in the study; "slices" deals the centres themselves, any studies together. `train.centres` says which are drawn.

    Blocks of 7 are centred at -3 to n + 2 in a study of n slices: each slice then lies in 7 of the possible blocks, the
    end slices too, and one in 7 of the blocks is drawn. What such a block has beyond the study is padding.

    Raises:
        ConfigError: no such centres.

    Source: paper section 2.1 for the blocks; what an epoch is, is open there and chosen here.
    """
    size = config.block_size
    chosen, generator = find_centres(config.centres), make_generator(seed, "epoch", fold, epoch)
    if config.sampling == "slices":
        num_blocks = max(1, len(index) // size)
        centres = chosen.draw(index.centres(0), len(index), generator)
        rows = np.resize(centres, (num_blocks, size))
        return EpochPlan(rows, np.arange(num_blocks * size).reshape(rows.shape) < len(centres))
    candidates = index.centres(size // 2 if chosen.reaches_beyond else 0)
    drawn = chosen.draw(candidates, max(1, len(candidates) // size), generator)[:, None]
    rows = candidates.rows[drawn] + np.arange(size) - size // 2  # (M, P)
    first, last = candidates.first[drawn], candidates.last[drawn]
    return EpochPlan(np.clip(rows, first, last), (first <= rows) & (rows <= last))


def count_blocks(config: TrainConfig, num_slices: int, num_studies: int) -> int:
    """How many blocks `plan_epoch` draws from so many slices in so many studies.

    Example:
        >>> count_blocks(TrainConfig(sampling="blocks"), num_slices=300, num_studies=10)
        51
    """
    is_longer = config.sampling == "blocks" and find_centres(config.centres).reaches_beyond
    num_centres = num_slices + num_studies * (config.block_size - 1) * is_longer
    return max(1, num_centres // config.block_size)


def find_centres(name: str) -> Centres:
    """The row of that name.

    Raises:
        ConfigError: no such row.
    """
    return find_row(CENTRES, name, "train.centres")


def _draw_uniform(candidates: Candidates, count: int, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(len(candidates))[:count]


def _draw_balanced(candidates: Candidates, count: int, generator: np.random.Generator) -> np.ndarray:
    labels = candidates.labels
    groups = np.column_stack([labels > 0.5, (labels <= 0.5).all(1)]).astype(np.float64)  # (M, K + 1)
    groups = groups[:, groups.any(0)]
    return generator.choice(len(candidates), size=count, p=(groups / groups.sum(0)).mean(1))


def _draw_central(candidates: Candidates, count: int, generator: np.random.Generator) -> np.ndarray:
    place = (candidates.rows - candidates.first + 0.5) / (candidates.last - candidates.first + 1)
    inside = np.flatnonzero((place >= CENTRAL_SHARE[0]) & (place <= CENTRAL_SHARE[1]))
    # Fewer slices than an epoch has centres: dealt as evenly as they can be.
    return np.resize(generator.permutation(inside), count)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of keys of a `BlockDataset`, from any step of any epoch on.

    The blocks of an epoch are spread evenly over its batches, so that no last batch is too small for batch statistics.

    Args:
        num_blocks: blocks in an epoch.
        batch_blocks: most blocks in a batch, over all processes together.
        rank, world: which of how many processes this is; each takes its share of every batch.

    Raises:
        ConfigError: a batch has fewer blocks than there are processes.
    """

    def __init__(self, num_blocks: int, batch_blocks: int, rank: int = 0, world: int = 1) -> None:
        self.numbers = np.array_split(np.arange(num_blocks), -(-num_blocks // batch_blocks))
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
        """Batches in a whole epoch."""
        return len(self.numbers)

    def own(self, step: int) -> np.ndarray:
        """Numbers of the blocks that this process has of a step."""
        return self.numbers[step][self._own]

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Chooses what the next iteration gives."""
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
        description="Every slice alike; no block twice in an epoch.",
        source="paper section 2.1",
    ),
    "balanced": Centres(
        name="balanced",
        draw=_draw_balanced,
        reaches_beyond=True,
        description="Every class, and no bleed, equally often, with replacement; probabilities are then too high.",
        source="class-balanced sampling, Shen et al., ECCV 2016, section 3.1",
    ),
    "central": Centres(
        name="central",
        draw=_draw_central,
        reaches_beyond=False,
        description="Slices from a fifth to nine tenths of the way through their study, where most bleeds are.",
        source="chosen here",
    ),
}
