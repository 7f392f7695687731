"""How the cost of each command grows with the number of scans: `python benchmarks/growth.py [--json FILE]`.

Phantoms of 1, 4 and 16 times as many studies; CPU seconds of `prepare`, an epoch of `train`, `stack`, `evaluate` and
`predict`, each on one core in one process. With cost = fixed + rate * size**exponent, the exponent follows from the
differences of three sizes in equal steps, log4((c16 - c4) / (c4 - c1)), so that what every size costs (imports, models)
cannot flatter it. Below 96 studies the second stage leaves out classes, and its cost says nothing. Medians over rounds;
`--picture FILE` draws them.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from measuring import make_parser, report, time_cpu

from ichkit import write_phantom
from ichkit.core.config import load_config
from ichkit.stages.predict import run as predict
from ichkit.stages.prepare import run as prepare
from ichkit.stages.scores import evaluate
from ichkit.stages.stack import run as stack
from ichkit.stages.train import run as train
from ichkit.work.folder import WorkFolder

SIZES = (1, 4, 16)
ALONE = ("prepare.workers=1", "prepare.num_folds=2", "train.workers=0", "train.epochs=1")


def main() -> None:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=96, help="training studies of the smallest size")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="write a PNG here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        measure(root / "warm", 8)  # kernels are compiled
        rounds = [
            {size: measure(root / f"{turn}-{size}", size * args.studies) for size in SIZES}
            for turn in range(args.rounds)
        ]
    names = list(rounds[0][SIZES[0]])
    seconds = {name: [float(np.median([one[size][name] for one in rounds])) for size in SIZES] for name in names}
    figures = {f"seconds_{name}_{size}": of[i] for name, of in seconds.items() for i, size in enumerate(SIZES)}
    figures |= {f"exponent_{name}": find_exponent(*of) for name, of in seconds.items()}
    if args.picture is not None:
        draw(seconds, args.studies).savefig(args.picture, dpi=110)
    report({"studies": args.studies, "rounds": args.rounds, **figures}, args.json)


def find_exponent(smallest: float, middle: float, largest: float) -> float:
    """The exponent of a cost at 1, 4 and 16 times a size, beyond what every size costs."""
    return float(np.log((largest - middle) / (middle - smallest)) / np.log(4))


def measure(folder: Path, studies: int) -> dict[str, float]:
    """CPU seconds of each command for so many training studies, and an eighth as many to predict."""
    config, work = load_config("demo", ALONE), WorkFolder(folder / "work")
    write_phantom(folder, studies=studies, test_studies=studies // 8, cq500_studies=4, size=128, seed=0)
    roots = {"rsna": folder / "rsna", "cq500": folder / "cq500"}
    asked = predict.PredictOptions(
        folder / "rsna" / "stage_2_test", "demo", folder / "out", has_page=False, source="rsna"
    )
    commands = {
        "prepare": lambda: prepare.run(prepare.plan(config, work, prepare.PrepareOptions(**roots))),
        "train": lambda: train.run(train.plan(config, work, train.TrainOptions(run_name="demo", folds=[0, 1]))),
        "stack": lambda: stack.run(stack.plan(config, work)),
        "evaluate": lambda: evaluate.run(evaluate.plan(config, work)),
        "predict": lambda: predict.run(predict.plan(config, work, asked)),
    }
    return {name: time_cpu(command)[1] for name, command in commands.items()}


def draw(seconds: dict[str, list[float]], studies: int) -> Figure:
    """Cost beyond that of the smallest size over the number of studies, both logarithmic, with a line of exponent 1."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    sizes = np.array(SIZES) * studies
    for name, of in seconds.items():
        axes.loglog(sizes, of, "o-", label=f"{name}, exponent {find_exponent(*of):.2f}")
    low = min(of[0] for of in seconds.values())
    axes.loglog(sizes, low * sizes / sizes[0], ":", color="gray", label="exponent 1")
    axes.set(xlabel="training studies", ylabel="CPU seconds")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # what would run in several processes runs in this one
    main()
