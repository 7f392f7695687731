"""A network that reads whole studies beside the same network on single slices: `python benchmarks/series.py`.

[--json FILE] [--seeds 3] [--scratch DIR] [--studies 160] [--num-folds 2] [--folds 0,1,...] [--slice-epochs 12]
[--first-epochs 6] [--difficulty demo] [--set train.key=value ...]

Both networks are the demo's, on a phantom of the demo's difficulty or of the real one, with the same folds, seed and
augmentation. The slice network is the demo's own; the series network starts from a slice network of the first epochs
and differs in `SERIES`. It gets as many epochs as fit into what is left of the CPU seconds of the slice network,
training and prediction, measured in the same run; both are printed. Then both go through the same stackers. Gains are
shares of the slice network's loss (or of its blend's), out of fold, over the rows of all seeds; `_low` and `_high` are
the ends of the 95 % interval by resampling patients, the same ones for both.
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

TASK = find_task("hemorrhage")
SERIES = (
    "train.sampling=studies",
    "train.batch_blocks=3",  # batches of one study have statistics of one study
    "train.max_slices=12",
    "train.context=transformer",
    "train.context.width=64",
    "train.keep_slice_head=true",
    "train.learning_rate=0.002",
)
FIRST = "train.phases=[{weights: 'run:first'}]"
KINDS = ("fusion", "lightgbm", "blend")
NUM_DRAWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="keep work folders here; finished folds are not trained again")
    parser.add_argument("--studies", type=int, default=160)
    parser.add_argument("--difficulty", default="demo", help="of the phantom")
    parser.add_argument("--num-folds", type=int, default=2)
    parser.add_argument("--folds", help="only these, and no second stage")
    parser.add_argument("--slice-epochs", type=int, default=12)
    parser.add_argument("--first-epochs", type=int, default=6, help="those of the slice network before the series one")
    parser.add_argument("--set", action="append", default=[], help="further settings of the series network")
    args = parser.parse_args()
    logger.setLevel("WARNING")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        plays = [play(seed, scratch, args) for seed in range(args.seeds)]
    figures = {f"{name}_{seed}": value for seed, (own, _) in enumerate(plays) for name, value in own.items()}
    rows = pd.concat([losses for _, losses in plays])
    report({"seeds": args.seeds, **figures, **compare(rows)}, args.json)


def play(seed: int, scratch: Path, args: argparse.Namespace) -> tuple[dict[str, float], pd.DataFrame]:
    """CPU seconds and losses of one seed; the loss of each slice by source, with its patient."""
    data = scratch / f"phantom{seed}"
    changes = (f"seed={seed}", f"prepare.num_folds={args.num_folds}", "prepare.workers=1", "train.workers=0")
    slices = load_config("demo", (*changes, f"train.epochs={args.slice_epochs}"))
    first = load_config("demo", (*changes, f"train.epochs={args.first_epochs}"))
    work = WorkFolder(scratch / f"work{seed}")
    if not data.exists():
        counts = {"studies": args.studies, "test_studies": 1, "cq500_studies": 0}
        how = {"size": slices.phantom.size, "difficulty": args.difficulty, "seed": seed, "workers": 1}
        write_phantom(data, **counts, **how)
    if not (work.prepared / "manifest.json").exists():
        do(prepare, slices, work, rsna=data / "rsna")
    folds = [int(k) for k in args.folds.split(",")] if args.folds else list(range(slices.prepare.num_folds))
    figures = {"cpu_slices": 0.0, "cpu_series": 0.0}
    epochs = 0
    for fold in folds:
        spent = train(slices, work, "slices", fold)
        figures["cpu_slices"] += spent
        spent_first = train(first, work, "first", fold)
        own = (*changes, *SERIES, FIRST, *args.set)
        if not epochs:
            epochs = count_epochs(spent - spent_first, fold, work, own)
        series = load_config("demo", (*own, f"train.epochs={epochs}"))
        figures["cpu_series"] += spent_first + train(series, work, "series", fold)
    figures["epochs_series"] = epochs
    sources = {
        "slices": [work.fold("slices", k) / "oof.parquet" for k in folds],
        "series": [work.fold("series", k) / "oof.parquet" for k in folds],
        "slice_head": [work.fold("series", k) / "slice_oof.parquet" for k in folds],
    }
    if not args.folds:
        for run in ("slices", "series"):
            do(stack, slices, work, runs=[run], name=run)
            sources |= {f"{run}_{kind}": [work.stacks / run / f"{kind}_oof.parquet"] for kind in KINDS}
    losses = pd.DataFrame({name: read_losses(paths, work) for name, paths in sources.items()})
    figures |= {f"loss_{name}": float(losses[name].mean()) for name in losses}
    patients = read_table(work.prepared / "slices.parquet").set_index("slice_id").patient_id
    return figures, losses.assign(patient=f"{seed} " + patients.loc[losses.index].to_numpy())


def count_epochs(seconds: float, fold: int, work: WorkFolder, changes: tuple[str, ...]) -> int:
    """Epochs of the series network that fit into these CPU seconds, by runs of one and of five that are thrown away."""
    note = work.root / f"epochs_{fold}.txt"
    if not note.exists():
        spent = {}
        for epochs in (1, 5):
            spent[epochs] = train(load_config("demo", (*changes, f"train.epochs={epochs}")), work, f"try{epochs}", fold)
            shutil.rmtree(work.runs / f"try{epochs}")
        per_epoch = (spent[5] - spent[1]) / 4
        note.write_text(str(max(1, int(5 + (seconds - spent[5]) / per_epoch))))
    return int(note.read_text())


def train(config: Config, work: WorkFolder, run: str, fold: int) -> float:
    """CPU seconds of training a fold and writing its tables; those of an earlier call, where it is finished."""
    note = work.root / f"cpu_{run}_{fold}_{config.train.epochs}.txt"
    if not note.exists():
        began = cpu_seconds()
        do_fold(FoldTask(config, work, run, fold, trains=True, shows_meter=False), StopFlag())
        note.write_text(str(cpu_seconds() - began))
    return float(note.read_text())


def read_losses(paths: list[Path], work: WorkFolder) -> pd.Series:
    """The weighted log loss of every slice of some tables, by slice_id."""
    table = pd.concat([read_table(path) for path in paths]).set_index("slice_id").sort_index()
    labels = read_table(work.prepared / "slices.parquet").set_index("slice_id").loc[table.index, list(TASK.classes)]
    each = log_losses(table[TASK.probability_columns].to_numpy(np.float64), labels.to_numpy(np.float64))
    return pd.Series(each @ TASK.weight_array(), table.index)


def compare(rows: pd.DataFrame) -> dict[str, float]:
    """Gains of the series network over the slice network, and of its blend over the other's."""
    pairs = {"gain_over_slices": ("slices", "series"), "gain_of_slice_head": ("slices", "slice_head")}
    if "slices_blend" in rows:
        pairs["gain_over_blend"] = ("slices_blend", "series_blend")
        pairs["gain_alone_over_blend"] = ("slices_blend", "series")
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
