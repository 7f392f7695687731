"""What a second stage does to few patients: `python benchmarks/small.py [--json FILE] [--seeds 20] [--sizes 5,10,20]`.

Simulated descriptors of few patients, 24 to 30 slices each, two in five of them bleeding; bases that are weak, strong
or too sure of themselves; five folds, or one fold dealt into five parts. Every kind of a stack is compared with its
run, out of fold: the mean ratio of the losses over the seeds, and the worst.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.commands import do
from support.simulated import TASK, make_work

from ichkit.core.config import load_config
from ichkit.core.progress import logger
from ichkit.stages.stack import run as stack
from ichkit.validation.metrics import weighted_log_loss
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import KEY

KINDS = ("fusion", "lightgbm", "blend")
BASES = {
    "weak": {"noise": 1.0, "slope": 0.5, "offset": -2.5, "contrast": 4.0},
    "strong": {"noise": 0.7, "contrast": 6.0},
    "overconfident": {"noise": 2.0, "slope": 1.5, "contrast": 4.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sizes", default="5,10,20,40,80", help="numbers of patients")
    parser.add_argument("--bases", default=",".join(BASES))
    parser.add_argument("--folds", type=int, choices=(1, 5), default=5, help="1: one fold, dealt into five parts")
    args = parser.parse_args()
    logger.setLevel("ERROR")
    figures: dict[str, float] = {}
    for base in args.bases.split(","):
        for size in map(int, args.sizes.split(",")):
            ratios = pd.DataFrame([play(base, size, seed, args.folds) for seed in range(args.seeds)])
            for kind in KINDS:
                figures[f"mean_{kind}_{base}_{size}"] = float(ratios[kind].mean())
                figures[f"worst_{kind}_{base}_{size}"] = float(ratios[kind].max())
    for name in ("mean", "worst"):
        figures[f"{name}_of_all"] = max(value for key, value in figures.items() if key.startswith(name))
    report({"num_seeds": args.seeds, **figures}, args.json)


def play(base: str, num_patients: int, seed: int, num_folds: int) -> dict[str, float]:
    """Kind to its out-of-fold loss as a share of the run's; with one fold, `num_patients` are those of the fold."""
    folds = tuple(range(num_folds))
    with tempfile.TemporaryDirectory() as scratch:
        work = make_work(
            Path(scratch) / "work",
            num_patients=num_patients * (5 if num_folds == 1 else 1),
            slices_per_study=(24, 30),
            positive_rate=0.4,
            folds=folds,
            seed=seed,
            test_studies=1,
            cq500_studies=1,
            **BASES[base],
        )
        do(stack, load_config("demo"), work, name="small")
        own = loss_of([work.fold("base", fold) / "oof.parquet" for fold in folds], work)
        return {kind: loss_of([work.stacks / "small" / f"{kind}_oof.parquet"], work) / own for kind in KINDS}


def loss_of(paths: list[Path], work: WorkFolder) -> float:
    """Weighted log loss of the rows of some tables."""
    table = pd.concat([read_table(path) for path in paths]).sort_values(KEY)
    labels = read_table(work.prepared / "slices.parquet").set_index("slice_id").loc[table.slice_id, list(TASK.classes)]
    p, y = table[TASK.probability_columns].to_numpy(np.float64), labels.to_numpy(np.float64)
    return weighted_log_loss(p, y, TASK.weight_array())


if __name__ == "__main__":
    main()
