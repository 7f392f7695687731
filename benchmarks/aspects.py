"""Windows, concatenation of slices and freezing depth of the recipe aspects2020, on phantoms, with paired intervals.

    python benchmarks/aspects.py FOLDER [--studies 120] [--epochs 8] [--json FILE]

Every comparison trains the same small network on the same folds; differences of AUC are of held-out slices, and their
95 % intervals resample patients. Finished runs in FOLDER are kept, so that the script may be stopped and run again.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import report

from ichkit import prepare, train, write_phantom
from ichkit.core.config import load_config
from ichkit.validation.objectives import OBJECTIVES, measure_history

WINDOWS = {"40/40": "[[40, 40]]", "40/30": "[[40, 30]]", "40/20": "[[40, 20]]"}
AIMED = {"early": "40/20", "old": "40/30"}
DRAWS, LEVEL = 1000, 0.95
THETAS = range(6)


def settings_of(one, window, *, concatenates=True, more=()):
    """Overrides of a run."""
    values = WINDOWS[window]
    channels = ["channels.kind=neighbours", f"channels.windows={values}"]
    if not concatenates:  # three times the slice itself, so that the network is the same
        channels = ["channels.kind=windows", f"channels.windows=[{', '.join([values[1:-1]] * 3)}]"]
    return (*channels, f"train.classes=[{one}]", *more)


def train_run(folder, name, overrides, common):
    """Trains a run, or keeps it; returns its out-of-fold table with the labels and patients of its rows."""
    config = load_config("aspects2020-demo", (*common, *overrides))
    train(folder / "work", config, run_name=name)
    slices = pd.read_parquet(folder / "work" / "prepared" / "slices.parquet")
    tables = [pd.read_parquet(path) for path in sorted((folder / "work" / "runs" / name).glob("fold*/oof.parquet"))]
    probabilities = pd.concat(tables)[["slice_id", "p_early", "p_old"]]
    return probabilities.merge(slices[["slice_id", "study_id", "patient_id", "early", "old"]], on="slice_id")


def auc(labels, scores, weights):
    """AUC of weighted rows."""
    order = np.argsort(scores, kind="stable")
    labels, scores, weights = labels[order], scores[order], weights[order]
    positive, negative = weights * labels, weights * (1 - labels)
    below = np.cumsum(negative) - negative
    _, group = np.unique(scores, return_inverse=True)
    first = np.concatenate([[True], group[1:] != group[:-1]])
    tied = np.bincount(group, negative)[group]
    return float((positive * (below[first][np.cumsum(first) - 1] + tied / 2)).sum() / positive.sum() / negative.sum())


def compare(one, a, b, rows=None):
    """AUC of two tables and their difference with its interval, by patients; `rows` chooses some."""
    both = a[["slice_id", "study_id", "patient_id", one, f"p_{one}"]].merge(b[["slice_id", f"p_{one}"]], on="slice_id")
    both = both[both[one].notna()]
    both = both if rows is None else both[rows(both)]
    labels = both[one].to_numpy(float)
    scores = [both[f"p_{one}_{side}"].to_numpy(float) for side in "xy"]
    codes, patients = pd.factorize(both["patient_id"])
    generator = np.random.default_rng(0)
    values = [auc(labels, score, np.ones(len(labels))) for score in scores]
    drawn = []
    for _ in range(DRAWS):
        weights = np.bincount(generator.integers(len(patients), size=len(patients)), minlength=len(patients))[codes]
        drawn.append(auc(labels, scores[0], weights) - auc(labels, scores[1], weights))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "auc": values[0],
        "auc_other": values[1],
        "difference": values[0] - values[1],
        "low": float(low),
        "high": float(high),
        "num_slices": len(labels),
        "num_positive": int(labels.sum()),
        "num_patients": len(patients),
    }


def in_few_slices(folder, one, most):
    """Chooses intact parts, and those with an infarct of the class in at most that many slices."""
    studies = json.loads((folder / "phantom" / "scans" / "phantom.json").read_text())["studies"]
    slices_of = {
        f"{study['study_id']}:{found['side']}-{found['region']}": found["num_slices"]
        for study in studies
        for found in study["findings"]
    }
    return lambda both: (both[one] == 0) | (both["study_id"].map(slices_of).fillna(9) <= most)


def freeze(folder, common, start):
    """f(theta) of every depth and fold, and the depth that each fold chooses by its own validation patients."""
    table = []
    for theta in THETAS:
        phase = f"train.phases=[{{weights: '{start}', frozen_stages: {theta}}}]"
        overrides = settings_of("early", "40/20", more=(phase,))
        found = train_run(folder, f"theta{theta}", overrides, common)
        labels, scores = found["early"].to_numpy(float), found["p_early"].to_numpy(float)
        known = ~np.isnan(labels)
        row = {"theta": theta, "auc": auc(labels[known], scores[known], np.ones(known.sum()))}
        for path in sorted((folder / "work" / "runs" / f"theta{theta}").glob("fold*")):
            history = pd.read_csv(path / "history.csv")
            kept = json.loads((path / "manifest.json").read_text())["facts"]["kept_epoch"] or len(history)
            for name in ("first-plus-mean", "first-plus-minimum"):
                row[f"{name}_{path.name}"] = measure_history(OBJECTIVES[name], history, kept)
        table.append(row)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--only", choices=("windows", "slices", "theta"))
    parser.add_argument("--start", help="model:FOLDER of a hemorrhage network, for the freezing depth")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = options.folder
    common = (f"train.epochs={options.epochs}", "prepare.num_folds=2", "train.workers=0")
    phantom = {"studies": options.studies, "test_studies": 0, "size": 128}
    write_phantom(folder / "phantom", load_config("aspects2020-demo"), **phantom)
    scans = folder / "phantom" / "scans"
    prepare(
        folder / "work",
        load_config("aspects2020-demo", common),
        source="folder",
        folder=scans,
        labels=scans / "regions.csv",
    )
    found = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    found |= {"studies": options.studies, "epochs": options.epochs}
    if options.only in (None, "windows", "slices"):
        for one, best in AIMED.items():
            plain = ("train.validation.share=0", "train.validation.keep=last")
            run = {}
            for window in WINDOWS if options.only != "slices" else (best,):
                name = f"{one}-{window.replace('/', '-')}"
                run[window] = train_run(folder, name, settings_of(one, window, more=plain), common)
            for window, table in run.items():
                if window != best:
                    found[f"{one}: {best} less {window}"] = compare(one, run[best], table)
            if options.only != "windows":
                alone = settings_of(one, best, concatenates=False, more=plain)
                single = train_run(folder, f"{one}-single", alone, common)
                found[f"{one}: three slices less one"] = compare(one, run[best], single)
                rows = in_few_slices(folder, one, 1)
                found[f"{one}: three slices less one, infarcts in one slice"] = compare(one, run[best], single, rows)
    if options.start and options.only in (None, "theta"):
        found["theta"] = freeze(folder, common, options.start)
    report(found, options.json)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
