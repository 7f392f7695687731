"""A network that reads whole studies beside the same network on single slices: `python benchmarks/series.py`.

[--json FILE] [--seeds 3] [--scratch DIR] [--studies 160] [--num-folds 2] [--folds 0,1,...] [--slice-epochs 30]
[--first-epochs 8] [--series-epochs N] [--difficulty demo] [--first-seed 0] [--set train.key=value ...]
[--variant "NAME=train.key=value;train.key=value" ...]

Both networks are the demo's, on a phantom of the demo's difficulty or of the real one, with the same folds, seed and
augmentation. The slice network is the demo's own; the series network starts from a slice network of the first epochs
and has the config `series-demo`. It gets as many epochs as fit into what is left of the CPU seconds of the slice
network, training and prediction, measured in the same run, or `--series-epochs`; both times are printed, and the share
that the series network takes, its first epochs included. Then both go through the same stackers; of one fold the
patients are dealt into parts. Gains are shares of the slice network's loss (or of its blend's), on held-out slices,
over the rows of all seeds; `_low` and `_high` are the ends of the 95 % interval by resampling patients, the same ones
for both.
With `--variant`, series networks with further settings are compared with the slice network instead, without a second
stage: to choose settings, on seeds that the comparison does not use.

A call that was stopped goes on in `--scratch`; a fold that it had not finished is trained again from the start, so that
its CPU time is counted in full.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import cpu_seconds, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.commands import do

from ichkit import write_phantom
from ichkit.core.config import Config, load_config
from ichkit.core.progress import StopFlag, logger
from ichkit.core.tasks import find_task
from ichkit.stages.prepare import run as prepare
from ichkit.stages.stack import run as stack
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask
from ichkit.validation.metrics import log_losses
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.places import discard, partial_of

TASK = find_task("hemorrhage")
CONFIG = "series-demo"
KINDS = ("fusion", "lightgbm", "blend")
SLICES = "slices"
PAIRS = {
    "gain_over_slices": (SLICES, "series"),
    "gain_of_slice_head": (SLICES, "slice_head"),
    "gain_over_blend": ("slices_blend", "series_blend"),
    "gain_alone_over_blend": ("slices_blend", "series"),
}
NUM_DRAWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="keep work folders here; finished folds are not trained again")
    parser.add_argument("--studies", type=int, default=160)
    parser.add_argument("--difficulty", default="demo", help="of the phantom")
    parser.add_argument("--num-folds", type=int, default=2)
    parser.add_argument("--folds", help="train only these")
    parser.add_argument("--slice-epochs", type=int, default=30)
    parser.add_argument("--first-epochs", type=int, default=8, help="those of the slice network before the series one")
    parser.add_argument("--series-epochs", type=int, help="instead of as many as fit into the time")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="further settings of the series network")
    parser.add_argument("--variant", action="append", default=[], help="NAME=train.key=value;train.key=value")
    args = parser.parse_args()
    logger.setLevel("WARNING")
    variants = {
        name: tuple(filter(None, text.split(";"))) for name, _, text in (v.partition("=") for v in args.variant)
    }
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        plays = [play(seed, scratch, args, variants) for seed in seeds]
    figures = {
        f"{name}_{seed}": value for seed, (own, _) in zip(seeds, plays, strict=True) for name, value in own.items()
    }
    rows = pd.concat([losses for _, losses in plays])
    facts = {"seeds": args.seeds, "difficulty": args.difficulty, "studies": args.studies}
    facts |= {"slices": len(rows), "patients": rows.patient.nunique()}
    for run in variants or ("series",):
        facts[f"share_of_cpu_{run}"] = sum(own[f"cpu_{run}"] for own, _ in plays) / sum(
            own["cpu_slices"] for own, _ in plays
        )
    pairs = {f"gain_{name}": (SLICES, name) for name in variants} or PAIRS
    report({**facts, **figures, **compare(rows, pairs)}, args.json)


def play(
    seed: int, scratch: Path, args: argparse.Namespace, variants: dict[str, tuple[str, ...]]
) -> tuple[dict[str, float], pd.DataFrame]:
    """CPU seconds and losses of one seed; the loss of each slice by source, with its patient."""
    data, work = scratch / f"phantom{seed}", WorkFolder(scratch / f"work{seed}")
    changes = (f"seed={seed}", f"prepare.num_folds={args.num_folds}", "prepare.workers=1", "train.workers=0")
    slices = load_config("demo", (*changes, f"train.epochs={args.slice_epochs}"))
    first = load_config("demo", (*changes, f"train.epochs={args.first_epochs}"))
    if not (work.prepared / "manifest.json").exists():
        if not data.exists():
            counts = {"studies": args.studies, "test_studies": 1, "cq500_studies": 0}
            how = {"size": slices.phantom.size, "difficulty": args.difficulty, "seed": seed, "workers": 1}
            write_phantom(data, **counts, **how)
        do(prepare, slices, work, rsna=data / "rsna")
    folds = [int(k) for k in args.folds.split(",")] if args.folds else list(range(slices.prepare.num_folds))
    runs = variants or {"series": ()}
    figures = dict.fromkeys((f"cpu_{run}" for run in (SLICES, *runs)), 0.0)
    epochs = args.series_epochs
    for fold in folds:
        spent, spent_first = train(slices, work, SLICES, fold), train(first, work, "first", fold)
        figures["cpu_slices"] += spent
        for run, settings in runs.items():
            own = (*changes, *args.set, *settings)
            if not epochs:
                epochs = count_epochs(spent - spent_first, fold, work, own)
            series = load_config(CONFIG, (*own, f"train.epochs={epochs}"))
            figures[f"cpu_{run}"] += spent_first + train(series, work, run, fold)
    figures["epochs_series"] = epochs
    sources = {run: [work.fold(run, k) / "oof.parquet" for k in folds] for run in (SLICES, *runs)}
    if not variants:
        sources["slice_head"] = [work.fold("series", k) / "slice_oof.parquet" for k in folds]
        for run in (SLICES, "series"):
            do(stack, slices, work, runs=[run], name=run)
            sources |= {f"{run}_{kind}": [work.stacks / run / f"{kind}_oof.parquet"] for kind in KINDS}
    losses = pd.DataFrame({name: read_losses(paths, work) for name, paths in sources.items()})
    figures |= {f"loss_{name}": float(losses[name].mean()) for name in losses}
    table = read_table(work.prepared / "slices.parquet").set_index("slice_id").loc[losses.index]
    labels = table[list(TASK.classes)].to_numpy(np.float64)
    prevalence = np.tile(labels.mean(0), (len(labels), 1))
    figures["loss_prevalence"] = float((log_losses(prevalence, labels) @ TASK.weight_array()).mean())
    return figures, losses.assign(patient=f"{seed} " + table.patient_id.to_numpy())


def count_epochs(seconds: float, fold: int, work: WorkFolder, changes: tuple[str, ...]) -> int:
    """Epochs of the series network that fit into these CPU seconds, by runs of one and of five that are thrown away."""
    note = work.root / f"epochs_{fold}.txt"
    if not note.exists():
        spent = {}
        for epochs in (1, 5):
            spent[epochs] = train(load_config(CONFIG, (*changes, f"train.epochs={epochs}")), work, f"try{epochs}", fold)
            shutil.rmtree(work.runs / f"try{epochs}")
        per_epoch = (spent[5] - spent[1]) / 4
        note.write_text(str(max(1, int(5 + (seconds - spent[5]) / per_epoch))))
    return int(note.read_text())


def train(config: Config, work: WorkFolder, run: str, fold: int) -> float:
    """CPU seconds of training a fold and writing its tables; those of an earlier call, where it is finished.

    Raises:
        ArtifactError: it is finished with other settings.
    """
    note = work.root / f"cpu_{run}_{fold}_{config.train.epochs}.txt"
    began, was_finished = cpu_seconds(), note.exists()
    if not was_finished:
        discard(partial_of(work.fold(run, fold)))
    do_fold(FoldTask(config, work, run, fold, trains=not was_finished, shows_meter=False), StopFlag())
    if not was_finished:
        note.write_text(str(cpu_seconds() - began))
    return float(note.read_text())


def read_losses(paths: list[Path], work: WorkFolder) -> pd.Series:
    """The weighted log loss of every slice of some tables, by slice_id."""
    table = pd.concat([read_table(path) for path in paths]).set_index("slice_id").sort_index()
    labels = read_table(work.prepared / "slices.parquet").set_index("slice_id").loc[table.index, list(TASK.classes)]
    each = log_losses(table[TASK.probability_columns].to_numpy(np.float64), labels.to_numpy(np.float64))
    return pd.Series(each @ TASK.weight_array(), table.index)


def compare(rows: pd.DataFrame, pairs: dict[str, tuple[str, str]]) -> dict[str, float]:
    """The gain of each second source over the first one, with its interval over the patients of all seeds."""
    sums = rows.groupby("patient").sum(numeric_only=True)
    draws = np.random.default_rng(0).integers(0, len(sums), (NUM_DRAWS, len(sums)))
    figures = {}
    for name, (old, new) in pairs.items():
        drawn = 1 - sums[new].to_numpy()[draws].sum(1) / sums[old].to_numpy()[draws].sum(1)
        figures[name] = float(1 - sums[new].sum() / sums[old].sum())
        figures[f"{name}_low"], figures[f"{name}_high"] = map(float, np.quantile(drawn, (0.025, 0.975)))
    return figures


if __name__ == "__main__":
    main()
