"""Times blocks from the store beside the usual route from PNG files: `python benchmarks/loader.py [--json FILE]`.

(a) this package: seven neighbours from the Hounsfield store, cropped, flipped, rotated and distorted as one channel
each with one draw for the block, noise in HU, three windows by table; (b) the usual route: the ready 3-channel PNG of
each slice decoded, and albumentations applied to each with its own draw. The same operations with the same
probabilities and strengths, noise included; one thread, all CPU time counted, interleaved round by round. Files are in
the page cache and nothing decoded is kept.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from measuring import make_parser, report, time_cpu

from ichkit import write_phantom
from ichkit.core.config import ChannelsConfig, Config, load_config
from ichkit.core.tasks import find_task
from ichkit.core.train_config import AugmentConfig, TrainConfig
from ichkit.engine.blocks import Block, BlockDataset, VolumeReader, stack_blocks
from ichkit.engine.sampling import SliceIndex
from ichkit.imaging import augment
from ichkit.imaging.store import Prepared, open_volume
from ichkit.imaging.windows import make_rendering, pad_to_square
from ichkit.stages.prepare import run as prepare
from ichkit.stages.prepare.run import PrepareOptions
from ichkit.work.folder import WorkFolder

TASK = find_task("hemorrhage")
SIZES = (512, 384, 256)
BATCH_BLOCKS, NUM_BLOCKS, ROUNDS, STUDIES = 4, 16, 7, 8
BRAIN_WIDTH_HU = 80


def main() -> None:
    args = make_parser(__doc__.splitlines()[0]).parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        work = WorkFolder(Path(scratch) / "work")
        prepared = make_store(load_config("default"), Path(scratch), work)
        figures = {}
        for size in SIZES:
            figures |= compare(prepared, Path(scratch) / f"png{size}", size)
        figures |= time_steps(prepared)
    report(figures, args.json)


def make_store(config: Config, scratch: Path, work: WorkFolder) -> Prepared:
    write_phantom(scratch / "phantom", studies=STUDIES, test_studies=1, cq500_studies=1, size=512, seed=0)
    prepare.run(
        prepare.plan(
            config, work, PrepareOptions(rsna=scratch / "phantom" / "rsna", cq500=scratch / "phantom" / "cq500")
        )
    )
    return Prepared.open(work.prepared, TASK)


def make_dataset(prepared: Prepared, size: int) -> BlockDataset:
    index = SliceIndex.of(prepared.split("train"), TASK.classes)
    reader = VolumeReader(prepared.folder, budget_bytes=0)
    config = TrainConfig(image_size=size)
    return BlockDataset(index, reader, make_rendering(ChannelsConfig()), config, seed=0, fold=0)


def compare(prepared: Prepared, folder: Path, size: int) -> dict[str, float]:
    """Blocks per CPU second of both routes at one image size."""
    dataset, paths = make_dataset(prepared, size), write_pngs(prepared, folder)
    usual = UsualRoute(dataset, paths, size)
    ours, theirs = [], []
    for turn in range(ROUNDS + 1):
        timed = [
            time_cpu(lambda make=make, turn=turn: make_batches(make, dataset, turn))[1]
            for make in (lambda epoch, number: dataset[epoch, number], usual.block)
        ]
        if turn:  # the first round compiles kernels and fills the page cache
            ours.append(timed[0])
            theirs.append(timed[1])
    ratios = np.array(theirs) / np.array(ours)
    return {
        f"blocks_per_s_core_{size}": NUM_BLOCKS / float(np.median(ours)),
        f"png_blocks_per_s_core_{size}": NUM_BLOCKS / float(np.median(theirs)),
        f"ratio_vs_png_{size}": float(np.median(ratios)),
        f"ratio_lowest_{size}": float(ratios.min()),
    }


def make_batches(make_block: Callable[[int, int], Block], dataset: BlockDataset, epoch: int) -> None:
    numbers = np.resize(np.arange(len(dataset.plan(epoch).rows)), NUM_BLOCKS)
    for first in range(0, NUM_BLOCKS, BATCH_BLOCKS):
        stack_blocks([make_block(epoch, int(number)) for number in numbers[first : first + BATCH_BLOCKS]])


def write_pngs(prepared: Prepared, folder: Path) -> list[Path]:
    """What others train from: one PNG for each row of the training split, its channels three windows."""
    folder.mkdir()
    rendering, paths = make_rendering(ChannelsConfig()), []
    for row in prepared.split("train").itertuples():
        volume = pad_to_square(prepared.read_volume(row.volume))
        paths.append(folder / f"{row.Index}.png")
        cv2.imwrite(str(paths[-1]), rendering.render(volume, np.array([row.slice_index]))[0])
    return paths


class UsualRoute:
    """Slices from PNG files, each augmented alone."""

    def __init__(self, dataset: BlockDataset, paths: list[Path], size: int) -> None:
        import albumentations

        config = AugmentConfig()
        self.dataset, self.paths = dataset, paths
        geometry = augment.make_geometry(config, size)
        noise_std = tuple(hu / BRAIN_WIDTH_HU for hu in config.noise_hu)
        noise = albumentations.GaussNoise(std_range=noise_std, p=config.noise_probability)
        self._transform = albumentations.Compose([*geometry.transforms, noise])
        self._transform.set_random_seed(0)

    def block(self, epoch: int, number: int) -> Block:
        rows = self.dataset.plan(epoch).rows[number]
        images = np.stack([self._transform(image=cv2.imread(str(self.paths[row])))["image"] for row in rows])
        index = self.dataset.index
        return Block(*map(torch.from_numpy, (images, index.labels[rows], index.position_mm[rows])))


def time_steps(prepared: Prepared) -> dict[str, float]:
    """Milliseconds per slice of each step of our route at 512 px, medians over blocks."""
    config, dataset = AugmentConfig(), make_dataset(prepared, 512)
    augmenter, rendering = augment.Augmenter(config, 512), dataset.rendering
    noisy = augment.Augmenter(config.model_copy(update={"noise_probability": 1.0}), 512)
    slices = prepared.split("train")
    spent: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        began = time.perf_counter()
        result = work()
        spent.setdefault(name, []).append((time.perf_counter() - began) * 1e3 / 7)
        return result

    for seed, relative in enumerate(list(slices.volume.unique()) * 4):
        slab = timed("read", lambda relative=relative: np.asarray(open_volume(prepared.folder / relative)[8:15]))
        warped = timed("geometry", lambda slab=slab, seed=seed: augmenter.warp(slab, seed))
        timed("noise_where_drawn", lambda warped=warped, seed=seed: noisy.change_values(warped, seed))
        images = timed("windows", lambda warped=warped: rendering.render(warped, np.arange(7)))
        timed("to_batch", lambda images=images: torch.stack([torch.from_numpy(images)] * BATCH_BLOCKS))
    medians = {f"ms_per_slice_{name}": float(np.median(values)) for name, values in spent.items()}
    medians["ms_per_slice_to_batch"] /= BATCH_BLOCKS
    return medians


if __name__ == "__main__":
    main()
