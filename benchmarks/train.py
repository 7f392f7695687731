"""Times the training loop beside the same network alone: `python benchmarks/train.py [--json FILE]`.

(a) the real loop: blocks read, augmented, windowed, cut and mixed, loss, step, average, journal; (b) the ceiling: the
same network and optimizer on one batch that is already where it computes, in the same precision and size. Rounds of
both in turn. It also says how long the paper's recipe would take here. With `--backbones` it measures instead what a
step of some backbones needs, each in a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from loader import make_store
from measuring import make_parser, report, watch_memory

from ichkit.core.config import Config, load_config
from ichkit.core.errors import Stopped
from ichkit.core.progress import StopFlag
from ichkit.core.tasks import find_task
from ichkit.core.train_config import TrainConfig
from ichkit.engine.blocks import BlockDataset, VolumeReader
from ichkit.engine.devices import make_fabric, prepare_network
from ichkit.engine.loop import TrainingLoop
from ichkit.engine.optimizers import make_optimizer
from ichkit.engine.phases import list_phases
from ichkit.engine.sampling import SliceIndex
from ichkit.imaging.store import Prepared
from ichkit.imaging.windows import make_rendering
from ichkit.models.descriptor import build_network
from ichkit.models.losses import make_loss
from ichkit.work.folder import WorkFolder

TASK = find_task("hemorrhage")
CPU = ("train.image_size=224", "train.batch_blocks=4", "train.threads=2", "train.pretrained=none")
GPU = ("train.image_size=512", "train.batch_blocks=16", "train.pretrained=none")
BACKBONES = ("resnet50", "seresnext50_32x4d", "tf_efficientnetv2_s", "convnext_tiny", "swin_tiny_patch4_window7_224")
ROUNDS, CPU_SLICES = 5, 130
PAPER_IMAGES = 5 * 20 * 674_258 * 4 / 5  # five folds, twenty epochs, each on the slices of the four other folds


def main() -> None:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--backbones", action="store_true", help="seconds and memory of some backbones instead")
    parser.add_argument("--one-backbone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_backbone:
        print(*measure_backbone(args.one_backbone))
        return
    if args.backbones:
        report(measure_backbones(), args.json)
        return
    with tempfile.TemporaryDirectory() as scratch:
        config = load_config("default", GPU if torch.cuda.is_available() else CPU)
        torch.set_num_threads(config.train.threads or torch.get_num_threads())
        prepared = make_store(config, Path(scratch), WorkFolder(Path(scratch) / "work"))
        figures = {**compare(config, prepared, Path(scratch)), **predict_hours(config)}
    report(figures, args.json)


def compare(config: Config, prepared: Prepared, scratch: Path) -> dict[str, float]:
    """Images per second of the loop and of the ceiling."""
    settings = config.train.model_copy(update={"epochs": 10_000})
    fabric = make_fabric(settings)
    loop = make_loop(fabric, config, settings, prepared, scratch / "last.ckpt")
    run_ceiling = Ceiling(fabric, settings)
    real, ceiling = [], []
    for turn in range(ROUNDS + 1):
        speeds = run_epoch(loop), run_ceiling(loop.batches.steps_per_epoch)
        if turn:  # the first round compiles kernels
            real.append(speeds[0])
            ceiling.append(speeds[1])
    return {
        "images_per_s": float(np.median(real)),
        "images_per_s_ceiling": float(np.median(ceiling)),
        "share_of_ceiling": float(np.median(np.array(real) / np.array(ceiling))),
        "share_lowest": float(np.min(np.array(real) / np.array(ceiling))),
        "image_size": settings.image_size,
        "batch_images": settings.batch_blocks * settings.block_size,
        "precision": fabric.strategy.precision.precision,
    }


def make_loop(fabric, config: Config, settings: TrainConfig, prepared: Prepared, checkpoint: Path) -> TrainingLoop:
    slices = prepared.split("train")
    if fabric.device.type == "cpu":
        slices = slices.head(CPU_SLICES)
    index = SliceIndex.of(slices, TASK.classes)
    reader, rendering = VolumeReader(prepared.folder), make_rendering(config.channels)
    dataset = BlockDataset(index, reader, rendering, settings, config.seed, fold=0)
    loss = make_loss(settings.loss, TASK.weight_array(), index.labels.mean(0, dtype=np.float64))
    network = build(settings)
    return TrainingLoop(
        fabric, network, dataset, loss, list_phases(settings, TASK.classes)[0], checkpoint, shows_meter=False
    )


def build(settings: TrainConfig):
    return build_network(settings.backbone, num_channels=3, num_classes=6, image_size=settings.image_size)


class EpochEnd(StopFlag):
    """Asks for a stop whenever an epoch is over, so that epochs of the loop can take turns with the ceiling."""

    def __init__(self, loop: TrainingLoop) -> None:
        super().__init__()
        self._loop = loop

    def __bool__(self) -> bool:
        return self._loop.progress.step == 0


def run_epoch(loop: TrainingLoop) -> float:
    """Images per second of one epoch, waiting for data included, writing the checkpoint not."""
    with suppress(Stopped):
        loop.run(EpochEnd(loop))
    return loop.progress.history[-1]["images_per_second"]


class Ceiling:
    """The network on one resident batch."""

    def __init__(self, fabric, settings: TrainConfig) -> None:
        self._fabric, network = fabric, build(settings)
        prepare_network(network, settings)
        optimizer = make_optimizer(
            network, settings.resolve_phases(TASK.classes)[0], on_gpu=fabric.device.type == "cuda"
        )
        self._network, self._optimizer = fabric.setup(network, optimizer)
        self._network.train()
        # The weights stay as they are, so that every round does the same: what one batch can teach is soon learnt.
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        generator = torch.Generator().manual_seed(0)
        shape = (settings.batch_blocks * settings.block_size, settings.image_size, settings.image_size, 3)
        self._images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(fabric.device)
        self._labels = torch.zeros(len(self._images), 6, device=fabric.device)
        self._loss = make_loss(settings.loss, TASK.weight_array(), np.full(6, 0.1))

    def __call__(self, steps: int) -> float:
        self._wait()
        began = time.perf_counter()
        for _ in range(steps):
            loss = self._loss(self._network(self._images[:, None]).slices[:, 0], self._labels)
            self._optimizer.zero_grad()
            self._fabric.backward(loss)
            self._optimizer.step()
        self._wait()
        return steps * len(self._images) / (time.perf_counter() - began)

    def _wait(self) -> None:
        if self._fabric.device.type == "cuda":
            torch.cuda.synchronize()


def predict_hours(config: Config) -> dict[str, float]:
    """Hours of the paper's recipe on this machine, from a few steps at its image size."""
    settings = load_config("resnet50-midl", ("train.pretrained=none",)).train
    if not torch.cuda.is_available():
        settings = settings.model_copy(update={"batch_blocks": 1})
    ceiling = Ceiling(make_fabric(settings), settings)
    ceiling(1)
    speed = ceiling(2)
    return {"images_per_s_paper": speed, "hours_of_the_papers_recipe": PAPER_IMAGES / speed / 3600}


def measure_backbones() -> dict[str, float]:
    """Seconds and peak gigabytes of a step of one block at 224 px, each backbone in a process of its own."""
    figures = {}
    for name in BACKBONES:
        command = [sys.executable, __file__, "--one-backbone", name]
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        figures |= {f"seconds_per_image_{name}": float(words[-2]), f"peak_gb_{name}": float(words[-1])}
    return figures


def measure_backbone(name: str) -> tuple[float, float]:
    overrides = (f"train.backbone={name}", "train.pretrained=none", "train.image_size=224", "train.batch_blocks=4")
    settings = load_config("default", overrides).train
    with watch_memory() as peak:
        ceiling = Ceiling(make_fabric(settings), settings)
        ceiling(1)
        speed = ceiling(2)
    return 1 / speed, torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else peak.gb


if __name__ == "__main__":
    main()
