"""The shipped default beside an afternoon's baseline, and stackers beside their base, at several data sizes.

`python benchmarks/default.py --folder FOLDER [--sizes 30,65,200,800] [--seeds 0,1,2] [--stack 30,65] [--json FILE]`

A pool of phantom studies of real difficulty is drawn once. For each size and seed, that many patients train and the
same `--held` patients are predicted: by `ichkit train` with the default config and by `benchmarks/baseline.py`, with
the same network from random weights and the same number of images. Finished cells are kept in FOLDER, so that a call
that was stopped goes on. One process, one thread.

`--variant NAME=section.key=value,...` compares the default under other settings; `--only NAMES` runs some of them.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from baseline import BATCH, CLASSES, WEIGHTS, fit, predict, read_images
from measuring import cpu_seconds, report
from sklearn.metrics import roc_auc_score

from ichkit import write_phantom
from ichkit.cli.main import main as ichkit
from ichkit.core.seeding import make_generator
from ichkit.core.tasks import find_task
from ichkit.stacking.neighbours import neighbour_stacks
from ichkit.work.artifacts import ArtifactWriter, read_manifest, read_table

TASK = find_task("hemorrhage")
P = TASK.probability_columns
IMAGES, MIN_EPOCHS, MAX_EPOCHS = 24_000, 3, 20  # a run of few patients has about 210 steps of 112 slices
BASE, PLAIN = "default", "baseline"
RATE = 3e-3  # of both: tiny networks from random weights need more than resnet50 does
NUM_DRAWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--folder", type=Path, required=True, help="keeps the pool and the finished cells")
    parser.add_argument("--sizes", default="65,30,200", help="training patients")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--held", type=int, default=120, help="patients to predict")
    parser.add_argument("--backbone", default="test_byobnet", help="of timm, from random weights")
    parser.add_argument("--pixels", type=int, default=64, help="image size of the networks")
    parser.add_argument("--epochs", type=int, help="instead of as many as the size asks for")
    parser.add_argument("--variant", action="append", default=[], help="NAME=section.key=value,section.key=value")
    parser.add_argument("--only", help="these variants and sources only, by name")
    parser.add_argument("--stack", default="", help="sizes at which the default's tables are also stacked")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sizes, seeds, stacked = (
        [int(word) for word in text.split(",") if word] for text in (args.sizes, args.seeds, args.stack)
    )
    variants = {PLAIN: (), BASE: ()}
    for text in args.variant:
        name, _, settings = text.partition("=")
        variants[name] = tuple(word.replace(";", ",") for word in settings.split(","))
    if args.only:
        variants = {name: variants[name] for name in args.only.split(",")}
    pool = make_pool(args.folder / "pool", max(sizes) + args.held)
    rows = []
    for seed in seeds:
        for size in sizes:
            work = deal(pool, args.folder / f"{size}-{seed}", size, args.held, seed)
            for name, settings in variants.items():
                rows.append(measure(work, name, settings, size, seed, args))
                print(describe(rows[-1]), flush=True)
            if size in stacked and BASE in variants:
                rows += [stack(work, patients, size, seed) for patients in (30, 65, args.held) if patients <= args.held]
    facts = {"backbone": args.backbone, "pixels": args.pixels, "num_held": args.held}
    report({**facts, **summarise(rows)}, args.json)


def make_pool(folder: Path, num_studies: int) -> Path:
    """A prepared phantom with at least that many patients."""
    # One study in ten is a patient's second.
    if not (folder / "work" / "prepared" / "manifest.json").exists():
        counts = {"studies": -(-num_studies * 10 // 9), "test_studies": 0, "cq500_studies": 0}
        write_phantom(folder / "phantom", **counts, size=128, difficulty="real", workers=1)
        call("prepare", "--rsna", folder / "phantom" / "rsna", "--work", folder / "work", "--set", "prepare.workers=1")
    return folder / "work" / "prepared"


def deal(pool: Path, work: Path, size: int, num_held: int, seed: int) -> Path:
    """A work folder with `size` patients in fold 1, which train, and those held out of every cell in fold 0."""
    if (work / "prepared" / "manifest.json").exists():
        return work
    manifest = read_manifest(pool)
    slices = read_table(pool / "slices.parquet")
    patients = make_generator(0, "held").permutation(np.unique(slices.patient_id.astype(str)))
    held, others = patients[:num_held], patients[num_held:]
    train = make_generator(seed, "train").permutation(others)[:size]
    fold_of = dict.fromkeys(held, 0) | dict.fromkeys(train, 1)
    writer = ArtifactWriter(work / "prepared", "prepared")
    for name in manifest.files:
        if name.startswith("volumes/"):
            (writer.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (writer.folder / name).hardlink_to(pool / name)
            writer.record(name, manifest.files[name])
        elif name in ("slices.parquet", "studies.parquet"):
            table = read_table(pool / name)
            table = table[table.patient_id.isin(list(fold_of))].reset_index(drop=True)
            if "fold" in table:
                table["fold"] = table.patient_id.map(fold_of).astype(table.fold.dtype)
            writer.write_table(name, table)
        elif name == "folds.csv":
            writer.write_table(name, pd.DataFrame(sorted(fold_of.items()), columns=["patient_id", "fold"]))
        else:
            writer.write_bytes(name, (pool / name).read_bytes())
    writer.commit(settings=manifest.settings, inputs=manifest.inputs, facts=manifest.facts)
    return work


def measure(
    work: Path, name: str, settings: tuple[str, ...], size: int, seed: int, args: argparse.Namespace
) -> dict[str, object]:
    """One network of one cell: its loss on the held-out patients, slice by slice, and the CPU seconds it took."""
    path = work / f"{name}.parquet"
    slices = read_table(work / "prepared" / "slices.parquet")
    train, held = slices[slices.fold == 1], slices[slices.fold == 0].reset_index(drop=True)
    epochs = args.epochs or int(np.clip(round(IMAGES / len(train)), MIN_EPOCHS, MAX_EPOCHS))
    if not path.exists():
        began = cpu_seconds()
        if name == PLAIN:
            labels = train[CLASSES].to_numpy(np.float32)
            how = {"backbone": args.backbone, "num_images": epochs * len(train), "rate": RATE, "seed": seed}
            network = fit(read_images(work / "prepared", train, args.pixels), labels, **how)
            table = pd.DataFrame(predict(network, read_images(work / "prepared", held, args.pixels)), columns=P)
            table.insert(0, "slice_id", held.slice_id)
        else:
            own = [f"train.backbone={args.backbone}", "train.pretrained=none", f"train.image_size={args.pixels}"]
            own += [
                f"train.epochs={epochs}",
                f"train.learning_rate={RATE}",
                "train.threads=1",
                "train.workers=0",
                f"seed={seed}",
                *settings,
            ]
            call("train", "--fold", "0", "--run", name, "--work", work, *(w for word in own for w in ("--set", word)))
            table = read_table(work / "runs" / name / "fold0" / "oof.parquet")[["slice_id", *P]]
        table.assign(cpu_seconds=cpu_seconds() - began).to_parquet(path)
    table = pd.read_parquet(path)
    p, y = table.set_index("slice_id").loc[held.slice_id, P].to_numpy(np.float64), held[CLASSES].to_numpy(np.float64)
    prior = np.tile(train[CLASSES].to_numpy(np.float64).mean(0), (len(held), 1))
    return {
        "name": name,
        "size": size,
        "seed": seed,
        "patients": held.patient_id.astype(str).to_numpy(),
        "losses": losses_of(p, y),
        "prior": losses_of(prior, y).mean(),
        "aucs": [float(roc_auc_score(y[:, k], p[:, k])) for k in range(len(CLASSES))],
        "seconds": float(table.cpu_seconds.iloc[0]),
        "steps": epochs * len(train) // BATCH,
    }


def stack(work: Path, num_patients: int, size: int, seed: int) -> dict[str, object]:
    """Second stages on the default's descriptors of some held-out patients, beside their base; kept in a CSV."""
    root = work / f"stack-{num_patients}"
    path = root / "losses.csv"
    if not path.exists():
        slices = read_table(work / "prepared" / "slices.parquet")
        held = np.unique(slices.patient_id[slices.fold == 0].astype(str))
        chosen = make_generator(seed, "stacked").permutation(held)[:num_patients]
        keep_patients(work, root, chosen)
        call("stack", "--runs", BASE, "--name", "second", "--work", root)
        labels = read_table(root / "prepared" / "slices.parquet").set_index("slice_id")
        tables = {"base": read_table(root / "runs" / BASE / "fold0" / "oof.parquet")}
        tables |= {
            found.name.removesuffix("_oof.parquet"): read_table(found)
            for found in sorted((root / "stacks" / "second").glob("*_oof.parquet"))
        }
        rows = {
            name: losses_of(
                table[P].to_numpy(np.float64), labels.loc[table.slice_id, CLASSES].to_numpy(np.float64)
            ).mean()
            for name, table in tables.items()
        }
        pd.Series(rows).to_csv(path)
    rows = pd.read_csv(path, index_col=0).iloc[:, 0]
    gains = {kind: float(1 - rows[kind] / rows["base"]) for kind in rows.index if kind != "base"}
    print(
        f"  stack {size} seed {seed}, {num_patients} patients: " + ", ".join(f"{k} {g:+.1%}" for k, g in gains.items())
    )
    return {"stack": gains, "size": size, "seed": seed, "num_patients": num_patients}


def keep_patients(work: Path, root: Path, chosen: np.ndarray) -> None:
    """Copies the tables of a work folder, fold 0 with the chosen patients alone, without volumes."""
    manifest = read_manifest(work / "prepared")
    slices = read_table(work / "prepared" / "slices.parquet")
    slices = slices[slices.patient_id.astype(str).isin(chosen) | (slices.fold == 1)].reset_index(drop=True)
    studies = read_table(work / "prepared" / "studies.parquet")
    folds = read_table(work / "prepared" / "folds.csv", dtype={"patient_id": str})
    tables = {
        "slices.parquet": slices,
        "studies.parquet": studies[studies.study_id.isin(slices.study_id)].reset_index(drop=True),
        "folds.csv": folds[folds.patient_id.isin(slices.patient_id.astype(str))].reset_index(drop=True),
    }
    writer = ArtifactWriter(root / "prepared", "prepared")
    for name in manifest.files:
        if name in tables:
            writer.write_table(name, tables[name])
        elif not name.startswith("volumes/"):
            writer.write_bytes(name, (work / "prepared" / name).read_bytes())
    writer.commit(settings=manifest.settings, inputs=manifest.inputs, facts=manifest.facts)
    source = work / "runs" / BASE / "fold0"
    fold, writer = read_manifest(source), ArtifactWriter(root / "runs" / BASE / "fold0", "fold")
    oof = read_table(source / "oof.parquet")
    oof = oof[oof.slice_id.isin(slices.slice_id)].reset_index(drop=True)
    for name in fold.files:
        if name == "oof.parquet":
            writer.write_table(name, oof)
        elif name == "stacks_oof.npy":
            windows = neighbour_stacks(oof[P].to_numpy(np.float32), pd.factorize(oof.study_id)[0], 7)
            writer.write_array(name, windows)
        else:
            writer.write_bytes(name, (source / name).read_bytes())
    writer.commit(settings=fold.settings, inputs=fold.inputs, facts=fold.facts)


def losses_of(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N,) weighted log loss of each slice."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    losses: np.ndarray = -(y * np.log(p) + (1 - y) * np.log(1 - p)) @ WEIGHTS.numpy().astype(np.float64)
    return losses


def describe(row: dict[str, object]) -> str:
    """One line of progress."""
    loss, aucs = row["losses"].mean(), row["aucs"]
    return (
        f"{row['size']:5d} patients, seed {row['seed']}, {row['name']:12s} loss {loss:.4f} of prior {row['prior']:.4f} "
        f"= {loss / row['prior']:.3f}, AUC any {aucs[-1]:.3f}, subtypes {min(aucs[:-1]):.2f}-{max(aucs[:-1]):.2f}, "
        f"{row['seconds']:.0f} CPU s"
    )


def summarise(rows: list[dict[str, object]]) -> dict[str, float]:
    """Figures by size: loss over prior and AUC of each network, and gains over the baseline, paired by patient."""
    figures: dict[str, float] = {}
    singles = [row for row in rows if "losses" in row]
    for size in sorted({row["size"] for row in singles}):
        of_size = [row for row in singles if row["size"] == size]
        names = list(dict.fromkeys(row["name"] for row in of_size))
        for name in names:
            own = [row for row in of_size if row["name"] == name]
            figures[f"seeds_{name}_{size}"] = len(own)
            figures[f"share_of_prior_{name}_{size}"] = float(np.mean([r["losses"].mean() / r["prior"] for r in own]))
            figures[f"auc_any_{name}_{size}"] = float(np.mean([r["aucs"][-1] for r in own]))
            figures[f"steps_of_112_{name}_{size}"] = int(own[0]["steps"])
            figures[f"cpu_seconds_{name}_{size}"] = float(np.mean([r["seconds"] for r in own]))
        for name in (name for name in names if name != PLAIN and PLAIN in names):
            figures |= {f"{key}_{name}_{size}": value for key, value in compare(of_size, name).items()}
    for row in rows:
        for kind, gain in row.get("stack", {}).items():
            figures[f"stack_{kind}_{row['size']}_on_{row['num_patients']}_seed{row['seed']}"] = gain
    return figures


def compare(rows: list[dict[str, object]], name: str) -> dict[str, float]:
    """The share of the baseline's loss that a network saves over all seeds, with a 95 % interval over patients."""
    pairs = []
    for seed in sorted({row["seed"] for row in rows}):
        own = {row["name"]: row for row in rows if row["seed"] == seed}
        if name in own and PLAIN in own:
            frame = pd.DataFrame({"a": own[PLAIN]["losses"], "b": own[name]["losses"]})
            pairs.append(frame.groupby(own[name]["patients"]).sum().to_numpy())
    sums = np.stack(pairs)  # (seeds, patients, 2); the patients are the same for every seed
    drawn = make_generator(0, "draws").integers(sums.shape[1], size=(NUM_DRAWS, sums.shape[1]))
    totals = sums[:, drawn].sum(2).sum(0)  # (draws, 2)
    gains = 1 - totals[:, 1] / totals[:, 0]
    whole = sums.sum((0, 1))
    worst = min(1 - pair[:, 1].sum() / pair[:, 0].sum() for pair in pairs)
    low, high = np.quantile(gains, [0.025, 0.975])
    return {
        "gain": float(1 - whole[1] / whole[0]),
        "gain_low": float(low),
        "gain_high": float(high),
        "gain_worst_seed": float(worst),
    }


def call(*words: object) -> None:
    """One ichkit command in this process."""
    try:
        ichkit([str(word) for word in (*words, "--quiet")], standalone_mode=False)
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"ichkit {' '.join(map(str, words))} ended with exit code {stop.code}")


if __name__ == "__main__":
    main()
