"""Times `ichkit demo` command by command and recomputes its losses: `python benchmarks/demo.py [--json FILE]`.

`--finished FOLDER` computes the losses of a demo that has already run, without timing anything.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import report

from ichkit.core.config import find_yaml, read_yaml
from ichkit.core.logits import to_logits, to_probabilities
from ichkit.core.tasks import find_task
from ichkit.stacking.calibration import fit_calibration
from ichkit.stacking.rows import log_losses_of_logits
from ichkit.validation.metrics import weighted_log_loss
from ichkit.validation.resampling import resample

TASK = find_task("hemorrhage")
P = TASK.probability_columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--folder", type=Path, help="keep what the demo makes here; must be empty")
    parser.add_argument("--finished", type=Path, help="a finished demo: compute its losses, time nothing")
    args = parser.parse_args()
    if args.finished is not None:
        report(measure(args.finished), args.json)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        figures = {**time_commands(folder), **measure(folder)}
    report(figures, args.json)


def time_commands(folder: Path) -> dict[str, float]:
    """Wall seconds of each command of the demo's recipe, each in a process of its own, and of all."""
    seconds = {}
    for command in read_yaml(find_yaml("demo", "pipelines"))["commands"]:
        words = command.split()
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ichkit", *words], cwd=folder, check=True, env=os.environ)
        seconds[f"seconds_{words[0]}"] = time.perf_counter() - began
    return {**seconds, "seconds_total": sum(seconds.values())}


def measure(folder: Path) -> dict[str, float]:
    """Losses beside the constant prior's and beside the base calibrated per class on the other folds; CQ500 AUC."""
    board = pd.read_csv(folder / "submissions" / "leaderboard.csv").set_index("kind")
    slices = pd.read_parquet(folder / "work" / "prepared" / "slices.parquet").set_index("slice_id")
    parts = sorted((folder / "work" / "runs" / "demo").glob("fold*/oof.parquet"))
    base = pd.concat([pd.read_parquet(path) for path in parts])
    rows = slices.loc[base["slice_id"]]
    labels, fold = rows[list(TASK.classes)].to_numpy(np.float64), base["fold"].to_numpy()
    logits = to_logits(base[P].to_numpy(np.float64))
    prior, calibrated = np.empty_like(logits), np.empty_like(logits)
    for k in np.unique(fold):
        held, others = fold == k, fold != k
        prior[held] = labels[others].mean(axis=0)
        calibrated[held] = to_probabilities(fit_calibration(logits[others], labels[others]).apply(logits[held]))
    weights = TASK.weight_array()
    loss_of_prior = weighted_log_loss(prior, labels, weights)
    loss_of_calibrated = weighted_log_loss(calibrated, labels, weights)
    best = min(board.loc[kind, "cv_weighted_log_loss"] for kind in ("fusion", "lightgbm"))
    return {
        "loss_prior": loss_of_prior,
        "loss_base": float(board.loc["base", "cv_weighted_log_loss"]),
        "loss_base_calibrated": loss_of_calibrated,
        **{f"loss_{kind}": float(board.loc[kind, "cv_weighted_log_loss"]) for kind in ("fusion", "lightgbm", "blend")},
        "blend_share_of_prior": float(board.loc["blend", "cv_weighted_log_loss"]) / loss_of_prior,
        "gain_over_calibrated_base": 1 - best / loss_of_calibrated,
        **compare_blend(folder, rows, calibrated, labels),
        "cq500_auc_mean_blend": float(board.loc["blend", "cq500_auc_mean"]),
    }


def compare_blend(folder: Path, rows: pd.DataFrame, calibrated: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What the blend gains over the calibrated base, with its 95 % interval on the same draws of patients."""
    (path,) = (folder / "work" / "stacks").glob("*/blend_oof.parquet")
    blend = pd.read_parquet(path).set_index("slice_id").loc[rows.index, P].to_numpy(np.float64)
    weights = TASK.weight_array()
    losses = [log_losses_of_logits(to_logits(p), labels) @ weights for p in (calibrated, blend)]  # (N,) each
    sums = pd.DataFrame(np.column_stack(losses)).groupby(rows["patient_id"].to_numpy()).sum().to_numpy()
    drawn = resample(sums, (), num_draws=2000, seed=0).sums
    gains = 1 - drawn[:, 1] / drawn[:, 0]
    low, high = np.quantile(gains, [0.025, 0.975])
    gain = 1 - losses[1].sum() / losses[0].sum()
    return {"gain_of_blend": float(gain), "gain_of_blend_low": float(low), "gain_of_blend_high": float(high)}


if __name__ == "__main__":
    main()
