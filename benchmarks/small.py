"""What a second stage does to few patients: `python benchmarks/small.py [--json FILE] [--seeds 20] [--sizes 5,10,20]`.

Simulated descriptors, 12 to 16 slices per patient, two in five patients with hemorrhage; five folds, or one fold dealt
into five parts. The bases are weak, strong, or uneven: the network of each fold then has its own calibration, and
bleeds are missed or seen where there are none, whole studies at a time. Every stacker, the calibrated base and the
blend are compared with the run, out of fold: the mean ratio of the losses over the seeds, and the largest.

With `--plays FILE` an interrupted call goes on where it stopped.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import report

from ichkit.core.config import load_config
from ichkit.core.progress import logger
from ichkit.core.seeding import derive_seed
from ichkit.phantom.descriptors import TASK, make_work
from ichkit.stacking.blend import fit_blend
from ichkit.stacking.inner import make_training_part
from ichkit.stacking.inputs import plan_fold_models, read_inputs
from ichkit.stacking.rows import log_losses_of_logits, make_rows
from ichkit.stacking.table import BASE, BLEND, STACKERS
from ichkit.validation.coherence import make_logits_coherent

KEYS = ["base", "size", "seed"]
KINDS = (BASE, *STACKERS, BLEND)
BASES = {
    "weak": {"noise": 1.0, "slope": 0.5, "offset": -2.5, "contrast": 4.0},
    "strong": {"noise": 0.7, "contrast": 6.0},
    "uneven": {"noise": 1.0, "contrast": 4.0, "mistakes": 0.4, "fold_spread": 0.2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plays", type=Path, help="CSV of single ratios; those that it has are not computed again")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sizes", default="5,10,20,40,80", help="numbers of patients")
    parser.add_argument("--bases", default=",".join(BASES))
    parser.add_argument("--folds", type=int, choices=(1, 5), default=5, help="1: one fold, dealt into five parts")
    args = parser.parse_args()
    logger.setLevel("ERROR")
    torch.set_num_threads(1)
    plays = pd.read_csv(args.plays) if args.plays is not None and args.plays.is_file() else pd.DataFrame(columns=KEYS)
    for size in map(int, args.sizes.split(",")):
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for base in args.bases.split(","):
                if (plays[KEYS] == [base, size, seed]).all(axis=1).any():
                    continue
                found = {**dict(zip(KEYS, (base, size, seed), strict=True)), **play(base, size, seed, args.folds)}
                plays = pd.concat([plays, pd.DataFrame([found])] if len(plays) else [pd.DataFrame([found])])
                if args.plays is not None:
                    plays.to_csv(args.plays, index=False)
    report(summarise(plays), args.json)


def summarise(plays: pd.DataFrame) -> dict[str, float]:
    """By base and size: the number of seeds, the run's mean loss, and mean and largest ratio of every kind."""
    figures: dict[str, float] = {}
    for (base, size), own in plays.groupby(["base", "size"]):
        figures |= {f"num_seeds_{base}_{size}": len(own), f"loss_{base}_{size}": float(own["run"].mean())}
        for kind in KINDS:
            figures[f"mean_{kind}_{base}_{size}"] = float(own[f"ratio_{kind}"].mean())
            figures[f"worst_{kind}_{base}_{size}"] = float(own[f"ratio_{kind}"].max())
    for name in ("mean", "worst"):
        figures[f"{name}_of_all"] = max(value for key, value in figures.items() if key.startswith(f"{name}_"))
    return figures


def play(base: str, num_patients: int, seed: int, num_folds: int) -> dict[str, float]:
    """Kind to its out-of-fold loss as a share of the run's; with one fold, `num_patients` are those of the fold."""
    config = load_config("demo", ("stack.sequence.num_seeds=1",))
    with tempfile.TemporaryDirectory() as scratch:
        work = make_work(
            Path(scratch) / "work",
            num_patients=num_patients * (5 if num_folds == 1 else 1),
            slices_per_study=(12, 16),
            positive_rate=0.4,
            folds=tuple(range(num_folds)),
            seed=seed,
            test_studies=1,
            cq500_studies=1,
            **BASES[base],
        )
        inputs = read_inputs(work, TASK, None)
    rows = make_rows([inputs.out_of_fold(run) for run in inputs.runs], inputs.train, TASK)
    labels = inputs.train[list(TASK.classes)].to_numpy(np.float64)
    found = {kind: np.empty(labels.shape) for kind in KINDS}
    for plan in plan_fold_models(inputs, TASK, config.stack.num_parts, config.seed):
        others = ~plan.held
        seed = derive_seed(config.seed, "stack inner", plan.name)
        training = make_training_part(rows.take(others), inputs.train[others], TASK, config.stack.num_inner, seed)
        chosen, held = training.chosen_rows(), rows.take(plan.held)
        base_logits = training.calibration.apply(held.combined_logits())
        inner, outer = [training.inner_base_logits()[chosen]], [base_logits]
        for name, stacker in STACKERS.items():
            seed = derive_seed(config.seed, "stack", plan.name, name)
            model, logits = stacker.fit(training, TASK, config.stack, seed)
            calibration, calibrated = training.calibrate(logits[chosen])
            inner.append(calibrated)
            outer.append(calibration.apply(model.predict(held, base_logits)))
        blend = fit_blend(np.stack(inner), training.labels[chosen], KINDS[:-1], config.stack.blend.tolerance)
        for kind, logits in zip(KINDS, [*outer, blend.apply(np.stack(outer))], strict=True):
            found[kind][plan.held] = make_logits_coherent(logits, TASK)
    weights = TASK.weight_array()

    def loss(logits: np.ndarray) -> float:
        return float(log_losses_of_logits(logits, labels).mean(axis=0) @ weights)

    own = loss(rows.combined_logits())
    return {"run": own, **{f"ratio_{kind}": loss(logits) / own for kind, logits in found.items()}}


if __name__ == "__main__":
    main()
