"""Labels per study, copied to slices or learnt by a pool: `python benchmarks/pools.py [--json FILE]`.

[--seeds 3] [--first-seed 1] [--studies 160] [--pools attention,...] [--epochs 10] [--start 60] [--scratch DIR]

The demo's phantom as a folder with one label row per study, as most hospitals have them: a bleed covers a few of 32
slices. Networks, whole studies, augmentation and epochs are the same; one copies the label of a study to each of its
slices, the others learn it from pooled logits. All start from one network of `--start` other studies with labels per
slice, as one starts from public data; from random weights (`--start 0`) none of them learns from so few studies. The
settings were chosen on seed 0. The score is the area under the ROC curve of `any` and the mean over all classes, per
study, out of fold. A copied network's study is the mean or the maximum of its slices, whichever has the higher area.
Gains are differences of areas; `_low` and `_high` bound the 95 % interval by resampling patients.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import report
from series import TASK, do, train

from ichkit import write_phantom
from ichkit.core.config import load_config
from ichkit.core.progress import logger
from ichkit.stages.predict import export
from ichkit.stages.prepare import run as prepare
from ichkit.validation.metrics import roc_auc_by_class
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder

CLASSES, P = list(TASK.classes), TASK.probability_columns
COMMON = (
    "prepare.num_folds=2",
    "prepare.workers=1",
    "train.workers=0",
    "train.sampling=studies",
    "train.batch_blocks=4",
    "train.learning_rate=0.002",
)
START_EPOCHS = 12
SPARSE = 3
NUM_DRAWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--studies", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--start", type=int, default=60, help="studies of the network that all start from")
    parser.add_argument("--pools", default="attention,max,top-mean")
    parser.add_argument("--scratch", type=Path, help="keep work folders here; finished folds are not trained again")
    args = parser.parse_args()
    logger.setLevel("ERROR")
    pools = args.pools.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        plays = [play(seed, scratch, args, pools) for seed in seeds]
    figures: dict[str, float] = {}
    for seed, (_, cpu) in zip(seeds, plays, strict=True):
        figures |= {f"{name}_{seed}": value for name, value in cpu.items()}
    tables = [table for table, _ in plays]
    figures |= compare(tables, pools)
    asked = {name: getattr(args, name) for name in ("seeds", "first_seed", "studies", "epochs", "start")}
    report(asked | figures, args.json)


def play(seed: int, scratch: Path, args: argparse.Namespace, pools: list[str]) -> tuple[pd.DataFrame, dict[str, float]]:
    """Study probabilities of every source with the labels, one row a study; CPU seconds of each."""
    changes = (*COMMON, f"seed={seed}", f"train.epochs={args.epochs}")
    if args.start:
        changes += (f"train.phases=[{{weights: 'model:{make_start(seed, scratch, args.start)}'}}]",)
    config, data = load_config("demo", changes), scratch / f"phantom{seed}"
    if not data.exists():
        counts = {"studies": args.studies, "test_studies": 1, "cq500_studies": 0}
        write_phantom(data, config, **counts, seed=seed, workers=1)
    known, work = WorkFolder(scratch / f"truth{seed}"), WorkFolder(scratch / f"weak{seed}")
    if not (work.prepared / "manifest.json").exists():
        do(prepare, config, known, rsna=data / "rsna")
        labels = scratch / f"labels{seed}.csv"
        slices = read_table(known.prepared / "slices.parquet")
        slices = slices[slices.split == "train"].sort_values(["study_id", "slice_index"], ignore_index=True)
        slices.groupby("study_id")[CLASSES].max().reset_index().to_csv(labels, index=False)
        folder = scratch / f"folder{seed}"
        folder.mkdir()
        for slice_id in thin_out(slices, seed):
            (folder / f"{slice_id}.dcm").symlink_to((data / "rsna" / "stage_2_train" / f"{slice_id}.dcm").resolve())
        do(prepare, config, work, folder=folder, labels=labels)
    studies = read_table(work.prepared / "studies.parquet").set_index("study_id").sort_index()
    found, cpu = {}, {}
    folds = range(config.prepare.num_folds)
    cpu["cpu_copied"] = sum(train(config, work, "copied", k) for k in folds)
    slices = pd.concat([read_table(work.fold("copied", k) / "oof.parquet") for k in folds])
    of_study = slices.groupby("study_id")[P]
    found |= {"copied_mean": of_study.mean(), "copied_max": of_study.max()}
    for pool in pools:
        pooled = load_config("demo", (*changes, f"train.pool={pool}"))
        cpu[f"cpu_{pool}"] = sum(train(pooled, work, pool, k) for k in folds)
        rows = pd.concat([read_table(work.fold(pool, k) / "study_oof.parquet") for k in folds])
        found[pool] = rows.groupby("study_id")[P].first()
    table = pd.concat({name: frame.loc[studies.index] for name, frame in found.items()}, axis=1)
    table["labels", ""] = list(studies[CLASSES].to_numpy(np.int64))
    table["patient", ""] = f"{seed} " + studies.patient_id
    return table, cpu


def make_start(seed: int, scratch: Path, studies: int) -> Path:
    """The export of a network of other patients with labels per slice."""
    changes = ("prepare.workers=1", "prepare.num_folds=2", "train.workers=0", f"train.epochs={START_EPOCHS}")
    config = load_config("demo", (*changes, f"seed={1000 + seed}"))
    data, work, out = scratch / f"other{seed}", WorkFolder(scratch / f"start{seed}"), scratch / f"model{seed}"
    if not out.exists():
        write_phantom(data, config, studies=studies, test_studies=1, cq500_studies=0, seed=1000 + seed, workers=1)
        do(prepare, config, work, rsna=data / "rsna")
        train(config, work, "start", 0)
        do(export, config, work, model="start", out=out)
    return out.resolve()


def thin_out(slices: pd.DataFrame, seed: int) -> list[str]:
    """Slices to keep: of a bleed at most `SPARSE` adjacent slices; as many are taken out of studies without one.

    Args:
        slices: sorted by study_id and slice_index.
    """
    rng = np.random.default_rng(seed)
    counts = slices[slices["any"] == 1].groupby("study_id").size().to_numpy()
    kept: list[str] = []
    for _, rows in slices.groupby("study_id"):
        bleeds = np.flatnonzero(rows["any"].to_numpy() == 1)
        if not len(bleeds):
            length = min(int(rng.choice(counts)), len(rows) - 1)
            first = int(rng.integers(len(rows) - length + 1))
            bleeds = np.arange(first, first + length)
        first = int(rng.integers(max(len(bleeds) - SPARSE, 0) + 1))
        out = np.setdiff1d(bleeds, bleeds[first : first + SPARSE])
        kept += rows["slice_id"].drop(rows.index[out]).to_list()
    return kept


def score(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(2,) area of `any`, and the mean over all classes that have both labels, of (N, K) studies."""
    areas = roc_auc_by_class(probabilities, labels)
    return np.array([areas[CLASSES.index(TASK.headline_class)], np.nanmean(areas)])


def compare(tables: list[pd.DataFrame], pools: list[str]) -> dict[str, float]:
    """Areas, means over seeds, and the gain of each pool over the better way of the copied network."""
    figures: dict[str, float] = {}
    sources = ("copied_mean", "copied_max", *pools)
    found = [{name: table[name][P].to_numpy(np.float64) for name in sources} for table in tables]
    labels = [np.stack(table["labels"]).astype(np.float64) for table in tables]
    rows_of = [list(table.reset_index(drop=True).groupby("patient").indices.values()) for table in tables]
    means = {
        name: np.mean([score(own[name], known) for own, known in zip(found, labels, strict=True)], axis=0)
        for name in sources
    }
    best = max(("copied_mean", "copied_max"), key=lambda name: means[name][0])
    for name, (of_any, of_all) in means.items():
        figures |= {f"auc_any_{name}": float(of_any), f"auc_mean_{name}": float(of_all)}
    rng = np.random.default_rng(0)
    drawn: dict[str, list[np.ndarray]] = {pool: [] for pool in pools}
    for _ in range(NUM_DRAWS):
        gains: dict[str, list[np.ndarray]] = {pool: [] for pool in pools}
        for own, known, patients in zip(found, labels, rows_of, strict=True):
            rows = np.concatenate([patients[place] for place in rng.integers(len(patients), size=len(patients))])
            base = score(own[best][rows], known[rows])
            for pool in pools:
                gains[pool].append(score(own[pool][rows], known[rows]) - base)
        for pool in pools:
            drawn[pool].append(np.mean(gains[pool], axis=0))
    for pool in pools:
        for place, what in enumerate(("any", "mean")):
            figures[f"gain_{what}_{pool}"] = float((means[pool] - means[best])[place])
            low, high = np.nanquantile(np.array(drawn[pool])[:, place], [0.025, 0.975])
            figures |= {f"gain_{what}_{pool}_low": float(low), f"gain_{what}_{pool}_high": float(high)}
    return figures


if __name__ == "__main__":
    main()
