"""What ichkit does on a GPU, in one command of at most nine minutes: `python benchmarks/gpu.py [--json FILE]`.

Needs no data, no network and no pretrained weights. The figures are written after each part, so that a run that is cut
short keeps what it has; a part that fails leaves its error and the next one starts. `--device cpu --tiny` tries every
part without a GPU. Parts:

- resnet50, recipe: images per second of one resident batch (the ceiling), with memory: the paper's network at 512 px,
  and the networks of the podium recipe at their sizes; mixed precision, channels last, fused optimizer
- loop: the real training loop beside its ceiling, in turn, and the loader alone
- predict: seconds per study and network; probabilities of the GPU beside those of the CPU
- resume: a run that was interrupted beside two that were not
- stack: the second stage on simulated descriptors
- side_by_side: two trainings at once on one GPU
- compiled: the same networks with torch.compile
"""

import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from loader import TASK
from measuring import device_name, report
from train import PAPER_IMAGES, run_epoch

from ichkit import write_phantom
from ichkit.core.config import Config, find_yaml, load_config
from ichkit.core.errors import Stopped
from ichkit.core.progress import StopFlag
from ichkit.engine.blocks import BlockDataset, VolumeReader
from ichkit.engine.devices import make_fabric, prepare_network
from ichkit.engine.inference import ModelCard, Predictor
from ichkit.engine.loop import TrainingLoop
from ichkit.engine.optimizers import make_optimizer
from ichkit.engine.phases import list_phases
from ichkit.engine.sampling import SliceIndex
from ichkit.imaging.store import Prepared
from ichkit.imaging.windows import make_rendering
from ichkit.models.losses import make_loss
from ichkit.phantom.descriptors import make_competition
from ichkit.stages.prepare import run as prepare
from ichkit.stages.stack import run as stack
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.work.artifacts import package_versions, read_table
from ichkit.work.folder import WorkFolder

MINUTES = 8.5
HULL_HU = (-800, 2000)
ROUNDS = 5
NUM_SLICES = 32  # of a study to predict, as in benchmarks/predict.py
RECIPE_SLICES = 674_258 * 4 // 5  # of a fold's training part
TINY = (
    "train.image_size=32",
    "train.batch_blocks=2",
    "train.workers=0",
    "train.threads=1",
    "prepare.workers=1",
    "prepare.num_folds=2",
)
TINY_BACKBONES = {"resnet": "test_resnet", "convnext": "test_convnext", "swin": "test_vit"}


@dataclass
class Bench:
    """Where and how large everything is measured.

    Attributes:
        device: "cuda" or "cpu".
        is_tiny: small networks, images and data, to try the script.
        scratch: folder for data.
        ends: when the last part has to be over, by `time.monotonic`.
        images_per_s: the speeds found so far, by network.
    """

    device: str
    is_tiny: bool
    scratch: Path
    ends: float
    images_per_s: dict[str, float] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Until the end."""
        return self.ends - time.monotonic()

    @property
    def seconds(self) -> float:
        """How long one speed is measured."""
        return 0.2 if self.is_tiny else 3.0

    def load(self, name: str, *overrides: str) -> Config:
        """A shipped config without pretrained weights, on this device, at toy size where asked for."""
        config = load_config(name, ("train.pretrained=none", f"train.accelerator={self.device}", *overrides))
        if not self.is_tiny:
            return config
        small = next(small for large, small in TINY_BACKBONES.items() if large in config.train.backbone)
        return load_config(
            name,
            (*overrides, "train.pretrained=none", f"train.backbone={small}", *TINY, f"train.accelerator={self.device}"),
        )

    @cached_property
    def networks(self) -> dict[str, Config]:
        """The networks of the podium recipe by the name of their run."""
        found = {}
        for command in yaml.safe_load(find_yaml("podium", "pipelines").read_text())["commands"]:
            words = shlex.split(command)
            options = list(zip(words[1::2], words[2::2], strict=False))
            if words[0] != "train" or any("phases" in value for _, value in options):
                continue
            named = dict(options)
            found[named["--run"]] = self.load(named["--config"], *(v for key, v in options if key == "--set"))
        return found

    @cached_property
    def prepared(self) -> Prepared:
        """A store of a few phantoms."""
        size, studies = (64, 16) if self.is_tiny else (512, 12)
        root, work = self.scratch / "phantom", WorkFolder(self.scratch / "work")
        workers = {"workers": 1} if self.is_tiny else {}
        write_phantom(root, studies=studies, test_studies=2, cq500_studies=2, size=size, seed=0, **workers)
        options = prepare.PrepareOptions(rsna=root / "rsna", cq500=root / "cq500")
        prepare.run(prepare.plan(self.load("resnet50-midl"), work, options))
        return Prepared.open(work.prepared, TASK)


class Resident:
    """A network with its optimizer on one batch that is already on the device: the ceiling of its training.

    Batches that do not fit into memory are halved.
    """

    def __init__(self, config: Config) -> None:
        settings = config.train
        self.num_slices = 40 if settings.sampling == "studies" else settings.block_size  # 35 is RSNA's mean
        self._blocks, self._size = settings.batch_blocks, settings.image_size
        self._fabric = make_fabric(settings)
        network = ModelCard.of(config, None, HULL_HU).build()
        prepare_network(network, settings)
        phase = settings.resolve_phases(TASK.classes)[0]
        optimizer = make_optimizer(network, phase, on_gpu=self._fabric.device.type == "cuda")
        self.num_parameters = sum(parameter.numel() for parameter in network.parameters())
        self._network, self._optimizer = self._fabric.setup(network, optimizer)
        self._network.train()
        # The weights stay as they are, so that every round does the same: what one batch can teach is soon learnt.
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        self._loss = make_loss(settings.loss, TASK.weight_array(), np.full(TASK.num_classes, 0.1))
        self._make_batch()
        while True:
            try:
                self.run(2)
                return
            except torch.OutOfMemoryError:
                if self._blocks == 1:
                    raise
                self._blocks //= 2
                self._make_batch()

    @property
    def num_images(self) -> int:
        """Images in a batch."""
        return self._blocks * self.num_slices

    def _make_batch(self) -> None:
        self._images = None
        shape = (self._blocks, self.num_slices, self._size, self._size, 3)
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self._fabric.device)
        self._positions = torch.zeros(shape[:2], device=self._fabric.device)
        self._labels = torch.zeros(self.num_images, TASK.num_classes, device=self._fabric.device)

    def run(self, steps: int) -> float:
        """Images per second of that many steps."""
        wait(self._fabric.device)
        began = time.perf_counter()
        for _ in range(steps):
            logits = self._network(self._images, None, self._positions).descriptor.flatten(0, 1)
            loss = self._loss(logits, self._labels)
            self._optimizer.zero_grad()
            self._fabric.backward(loss)
            self._optimizer.step()
        wait(self._fabric.device)
        return steps * self.num_images / (time.perf_counter() - began)

    def measure(self, seconds: float) -> list[float]:
        """Images per second of each of several rounds that take about that long together."""
        speed = self.run(1)
        steps = max(1, math.ceil(seconds / ROUNDS * speed / self.num_images))
        return [self.run(steps) for _ in range(ROUNDS)]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_network(bench: Bench, name: str, config: Config) -> dict[str, Any]:
    """Speed, memory and predicted hours of one network."""
    if bench.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ceiling = Resident(config)
    speeds = ceiling.measure(bench.seconds)
    bench.images_per_s[name] = float(np.median(speeds))
    figures = {
        f"images_per_s_{name}": float(np.median(speeds)),
        f"images_per_s_lowest_{name}": min(speeds),
        f"batch_images_{name}": ceiling.num_images,
        f"image_size_{name}": config.train.image_size,
        f"million_parameters_{name}": ceiling.num_parameters / 1e6,
    }
    if bench.device == "cuda":
        figures[f"peak_gb_{name}"] = torch.cuda.max_memory_allocated() / 1e9
    images = 5 * config.train.epochs * RECIPE_SLICES
    return figures | {f"hours_of_five_folds_{name}": images / np.median(speeds) / 3600}


def measure_resnet50(bench: Bench) -> dict[str, Any]:
    """The paper's network at 512 px."""
    found = measure_network(bench, "resnet50_512", bench.load("resnet50-midl"))
    return found | {"hours_of_the_papers_recipe": PAPER_IMAGES / found["images_per_s_resnet50_512"] / 3600}


def measure_recipe(bench: Bench) -> dict[str, Any]:
    """The other networks of the podium recipe at their sizes."""
    figures = {}
    for name, config in bench.networks.items():
        if config.train.backbone != bench.load("resnet50-midl").train.backbone or bench.is_tiny:
            figures |= measure_network(bench, name, config)
    return figures


def measure_loop(bench: Bench) -> dict[str, Any]:
    """The real loop of the paper's network beside its ceiling, in turn; then the loader alone."""
    config = bench.load("resnet50-midl", "train.epochs=10000")
    settings, prepared = config.train, bench.prepared
    slices, copies = prepared.split("train"), 1 if bench.is_tiny else 12
    if bench.is_tiny:
        slices = slices.head(60)
    repeated = [slices.assign(study_id=slices.study_id + f"#{number}") for number in range(copies)]
    index = SliceIndex.of(pd.concat(repeated, ignore_index=True), TASK.classes)
    # Nothing is cached, as with a store that is larger than memory.
    reader = VolumeReader(prepared.folder, budget_bytes=0)
    dataset = BlockDataset(index, reader, make_rendering(config.channels), settings, config.seed, fold=0)
    loss = make_loss(settings.loss, TASK.weight_array(), index.labels.mean(0, dtype=np.float64))
    phase = list_phases(settings, TASK.classes)[0]
    fabric, network = make_fabric(settings), ModelCard.of(config, None, HULL_HU).build()
    checkpoint = bench.scratch / "last.ckpt"
    loop = TrainingLoop(fabric, network, dataset, loss, phase, checkpoint, shows_meter=False)
    ceiling, steps = Resident(config), loop.batches.steps_per_epoch
    real, highest = [], []
    for turn in range(ROUNDS + 1):
        speeds = run_epoch(loop), ceiling.run(steps)
        if turn:  # the first round starts workers and selects kernels
            real.append(speeds[0])
            highest.append(speeds[1])
        if bench.seconds_left < 0:
            break
    shares = np.array(real) / np.array(highest)
    loaded = []
    for _ in range(2 if bench.is_tiny else 3):
        began, num_images = time.perf_counter(), 0
        for batch in loop._make_loader():
            num_images += batch.images.shape[0] * batch.images.shape[1]
        loaded.append(num_images / (time.perf_counter() - began))
    return {
        "images_per_s_loop": float(np.median(real)),
        "share_of_ceiling": float(np.median(shares)),
        "share_of_ceiling_lowest": float(shares.min()),
        "loader_images_per_s": float(np.median(loaded)),
        "loader_images_per_s_lowest": min(loaded),
        "precision": fabric.strategy.precision.precision,
    }


def measure_predict(bench: Bench) -> dict[str, Any]:
    """Seconds of one study and network at 512 px, and how far the GPU's outputs are from those of the CPU."""
    config = bench.load("resnet50-midl")
    card, torch_state = ModelCard.of(config, None, HULL_HU), torch.random.get_rng_state()
    torch.manual_seed(0)
    weights = card.build().state_dict()
    torch.random.set_rng_state(torch_state)
    longest = bench.prepared.split("train").volume.mode()[0]
    volume = bench.prepared.read_volume(longest)[:NUM_SLICES]
    found, seconds = {}, []
    for device in dict.fromkeys(("cpu", bench.device)):
        network = card.build()
        network.load_state_dict(weights)
        predictor = Predictor(card, network, torch.device(device))
        predictor.predict_volume(volume[:2])
        for _ in range(ROUNDS if device == bench.device else 1):
            began = time.perf_counter()
            found[device] = predictor.predict_volume(volume).astype(np.float64)
            seconds.append(time.perf_counter() - began)
    other = found[bench.device]
    logits = {name: np.log(p / (1 - p)) for name, p in found.items()}
    return {
        "predict_seconds_per_study": float(np.median(seconds[-ROUNDS:])),
        "predict_seconds_per_study_highest": max(seconds[-ROUNDS:]),
        "predict_slices": len(volume),
        "agreement_probability": float(abs(other - found["cpu"]).max()),
        "agreement_logit": float(abs(logits[bench.device] - logits["cpu"]).max()),
        "spread_logit": float(logits["cpu"].std(0).mean()),
    }


class StopAfter(StopFlag):
    """Asks for a stop at the n-th look."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._left = number

    def __bool__(self) -> bool:
        self._left -= 1
        return self._left < 0


def measure_resume(bench: Bench) -> dict[str, Any]:
    """The largest difference of a probability: interrupted and resumed against not, and twice the same without."""
    tables = {}
    work = WorkFolder(bench.prepared.folder.parent)
    config = bench.load("resnet50-midl", "train.epochs=2", "train.image_size=64", "train.batch_blocks=2")
    for name in ("once", "again", "resumed"):
        plan = train.plan(config, work, train.TrainOptions(run_name=name, folds=[0]))
        if name == "resumed":
            with suppress(Stopped):
                do_fold(plan.tasks[0], StopAfter(5))
            assert plan.tasks[0].checkpoint.exists()
            plan = train.plan(config, work, train.TrainOptions(run_name=name, folds=[0]))
        train.run(plan)
        tables[name] = read_table(work.fold(name, 0) / "oof.parquet")[TASK.probability_columns].to_numpy(np.float64)
    return {
        "resume_difference": float(abs(tables["resumed"] - tables["once"]).max()),
        "repeat_difference": float(abs(tables["again"] - tables["once"]).max()),
    }


def measure_stack(bench: Bench) -> dict[str, Any]:
    """Seconds of the recipe's second stage, with its wide network on the GPU, on simulated descriptors."""
    studies = 40 if bench.is_tiny else 2000
    small = ("stack.fusion.epochs=1", "stack.fusion.num_seeds=1", "stack.num_inner=2", "stack.stackers=[fusion]")
    small = small if bench.is_tiny else ()
    work = WorkFolder(bench.scratch / "stack")
    make_competition(work, studies)
    config = load_config("podium", ("stack.embeddings.enabled=false", *small))
    began = time.perf_counter()
    made = stack.run(stack.plan(config, work))
    return {
        "stack_seconds": time.perf_counter() - began,
        "stack_studies": studies,
        **{f"stack_loss_{kind}": found["out_of_fold"] for kind, found in made.facts["optimism"].items()},
    }


def call_again(bench: Bench, *words: str) -> subprocess.Popen[str]:
    """This script once more, for a figure that needs a process of its own."""
    command = [sys.executable, __file__, "--device", bench.device, *(["--tiny"] if bench.is_tiny else []), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def collect(bench: Bench, processes: list["subprocess.Popen[str]"]) -> list[dict[str, Any]]:
    """The figures that these processes print last; all are ended at the deadline."""
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(bench.seconds_left, 1))
            if process.returncode:
                raise RuntimeError(err.strip().splitlines()[-1] if err.strip() else f"exit {process.returncode}")
            found.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


def measure_side_by_side(bench: Bench) -> dict[str, Any]:
    """Two trainings at once on one GPU, as two folds would be, against one."""
    starts = time.time() + (6 if bench.is_tiny else 25)
    both = collect(bench, [call_again(bench, "--one", "resnet50_512", "--at", str(starts)) for _ in range(2)])
    total = sum(found["images_per_s_resnet50_512"] for found in both)
    figures = {"images_per_s_side_by_side": total}
    if "resnet50_512" in bench.images_per_s:
        figures["side_by_side_gain"] = total / bench.images_per_s["resnet50_512"]
    return figures


def measure_compiled(bench: Bench) -> dict[str, Any]:
    """The same networks compiled, each in a process of its own, as far as the time goes."""
    if bench.device == "cpu":
        return {"left_out_compiled": "only on a GPU"}
    figures: dict[str, Any] = {}
    for name in ("resnet50_512", *bench.networks):
        if name not in bench.images_per_s or bench.seconds_left < 40:
            continue
        try:
            (found,) = collect(bench, [call_again(bench, "--one", name, "--compile")])
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            figures[f"error_compiled_{name}"] = describe(error)
            continue
        speed = found[f"images_per_s_{name}"]
        figures |= {
            f"images_per_s_compiled_{name}": speed,
            f"compile_gain_{name}": speed / bench.images_per_s[name],
            f"compile_seconds_{name}": found["seconds_to_first_step"],
        }
    return figures


def measure_one(bench: Bench, name: str, *, is_compiled: bool, starts: float | None) -> dict[str, Any]:
    """The speed of one network, in a process that measures nothing else."""
    config = bench.load("resnet50-midl") if name == "resnet50_512" else bench.networks[name]
    train_config = config.train.model_copy(update={"compile": is_compiled})
    began = time.perf_counter()
    ceiling = Resident(config.model_copy(update={"train": train_config}))
    first = time.perf_counter() - began
    while starts is not None and time.time() < starts:
        time.sleep(0.01)
    speeds = ceiling.measure(2 * bench.seconds)
    return {f"images_per_s_{name}": float(np.median(speeds)), "seconds_to_first_step": first}


def describe(error: BaseException) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


PARTS: dict[str, tuple[float, Callable[[Bench], dict[str, Any]]]] = {
    "resnet50": (20, measure_resnet50),
    "recipe": (40, measure_recipe),
    "loop": (70, measure_loop),
    "predict": (20, measure_predict),
    "side_by_side": (45, measure_side_by_side),
    "resume": (40, measure_resume),
    "stack": (60, measure_stack),
    "compiled": (60, measure_compiled),
}
"""Parts in the order of their worth, each with the seconds that have to be left for it."""


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here, after each part")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy networks and data, to try the script")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the last part starts before they are over")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part alone; may be repeated")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--at", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("expected a GPU, found none. Try the script without one: --device cpu --tiny")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args.device, args.tiny, Path(scratch), time.monotonic() + 60 * args.minutes)
        if args.one:
            print(json.dumps(measure_one(bench, args.one, is_compiled=args.compile, starts=args.at)))
            return
        figures: dict[str, Any] = {"is_tiny": args.tiny, "torch_device": args.device}
        for name in args.only or PARTS:
            with suppress(Stopped):  # a signal ends the part; the rest would be cut short too
                figures |= measure_part(bench, name)
                save(figures, args.json)
                continue
            break
    report(figures, args.json)


def measure_part(bench: Bench, name: str) -> dict[str, Any]:
    """The figures of a part, or why there are none, and its seconds."""
    needed, measure = PARTS[name]
    if bench.seconds_left < (0 if bench.is_tiny else needed):
        return {f"left_out_{name}": f"{bench.seconds_left:.0f} s left, {needed:.0f} s needed"}
    began, figures = time.monotonic(), {}
    try:
        figures = measure(bench)
    except Stopped:
        raise
    except Exception as error:
        figures = {f"error_{name}": describe(error)}
    return figures | {f"seconds_{name}": time.monotonic() - began}


def save(figures: dict[str, Any], path: Path | None) -> None:
    """The figures so far."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(figures | {"device": device_name(), "versions": package_versions()}, indent=2) + "\n"
        beside = path.with_name(path.name + ".new")
        beside.write_text(text)
        beside.replace(path)


if __name__ == "__main__":
    main()
