"""The phases of the recipe onset2021 beside a network from random weights, on phantoms, with paired intervals.

    python benchmarks/onset.py FOLDER [--patients 160] [--epochs 12 12 12 4] [--json FILE]

Both train the same small network on the same folds; the one from random weights has as many epochs as all phases
together, on the class of the last. AUC is of held-out halves with a stroke, for less than 4.5 hours; differences have
95 % intervals by patient. Finished runs in FOLDER are kept, so that the script may be stopped and run again.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from aspects import compare
from measuring import report
from sklearn.metrics import roc_auc_score

from ichkit import prepare, train, write_phantom
from ichkit.core.config import load_config

CLASS, PHASES = "tss45", ("stroke", "tss3", "tss45", "tss45")
GATES = "frozen: [backbone.gates]"


def train_run(folder, name, overrides, common):
    """Trains a run, or keeps it; returns its out-of-fold probability of each half with its label and patient."""
    train(folder / "work", load_config("onset2021-demo", (*common, *overrides)), run_name=name)
    slices = pd.read_parquet(folder / "work" / "prepared" / "slices.parquet")
    tables = [pd.read_parquet(path) for path in sorted((folder / "work" / "runs" / name).glob("fold*/oof.parquet"))]
    columns = ["slice_id", "study_id", "patient_id", "stroke", CLASS]
    found = pd.concat(tables).filter(regex="slice_id|^p_").merge(slices[columns], on="slice_id")
    return found.drop_duplicates("study_id")


def find_ceiling(folder):
    """AUC of the ratio of FLAIR to DWI on the true mask, over all patients."""
    studies = json.loads((folder / "phantom" / "bids" / "phantom.json").read_text())["studies"]
    known = [study for study in studies if all(study["oracle"].values())]
    ratios = [study["oracle"]["flair"] / study["oracle"]["dwi"] for study in known]
    return float(roc_auc_score([study["onset_minutes"] < 270 for study in known], -np.array(ratios)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--epochs", type=int, nargs=4, default=(12, 12, 12, 4), help="of each phase")
    parser.add_argument("--frozen-stages", type=int, default=2)
    parser.add_argument("--tag", default="", help="of the runs, where one folder holds several settings")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder, epochs = options.folder, options.epochs
    common = ("prepare.num_folds=2", "train.workers=0", *options.overrides)
    write_phantom(folder / "phantom", load_config("onset2021-demo"), studies=options.patients, size=128)
    bids = folder / "phantom" / "bids"
    prepare(folder / "work", load_config("onset2021-demo", common), source="bids", folder=bids)
    shared = f"frozen_stages: {options.frozen_stages}"
    gates = ", frozen: [backbone.gates]"
    kinds = ("frozen_stages: 0" + gates, shared + gates, shared + gates, shared)
    parts = [f"epochs: {count}, {kind}" for count, kind in zip(epochs, kinds, strict=True)]
    found = {"patients": options.patients, "ceiling": find_ceiling(folder)}
    for last in range(1, 5):
        named = [f"{{classes: [{name}], {part}}}" for name, part in zip(PHASES, parts[: last - 1], strict=False)]
        named.append(f"{{{parts[last - 1]}}}")
        wanted = (f"train.phases=[{', '.join(named)}]", f"train.classes=[{PHASES[last - 1]}]")
        if last in (1, 4):
            table = train_run(folder, f"phases{last}{options.tag}", wanted, common)
            if last == 1:
                found["auc_stroke"] = float(roc_auc_score(table.stroke, table.p_stroke))
    alone = ("train.phases=[]", f"train.epochs={sum(epochs)}", f"train.classes=[{CLASS}]")
    scratch = train_run(folder, f"scratch{options.tag}", alone, common)
    found |= compare(CLASS, table, scratch)
    report(found, options.json)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
