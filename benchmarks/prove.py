"""How often a second stage's out-of-fold gain is not confirmed by locked patients: `python benchmarks/prove.py`.

[--json FILE] [--plays FILE] [--sets 100] [--first-set 0] [--rivals PYTHON [--rival NAME]...]

Each data set is simulated: its number of patients, slices per study, share of positive studies and the errors of the
base are drawn. Half as many patients as train, at least 20, are locked. Stacks of ichkit (LightGBM and the blend) are
proved as `ichkit stack --prove` does. Beside them, on the same descriptors and rows, stands what scikit-learn users
write: gradient boosting on seven slices, scored on its own training rows (`in_sample`), by KFold over shuffled slices
(`kfold_slices`), or by GroupKFold over patients (`kfold_patients`).

A data set counts as unconfirmed if the interval of the gain out of fold minus the gain on locked patients lies above 0,
and as undervalued if it lies below. Chance alone gives 2.5 % of each. With `--rivals`, the stacking of AutoGluon and
MLJAR is measured beside on the same rows (`rivals.py`, run by the Python of an environment that has them), on the
headline class alone, and so is ichkit's (`blend_any`, `lightgbm_any`). With `--plays FILE` an interrupted call goes on.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import report
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold, KFold

from ichkit.core.config import load_config
from ichkit.core.logits import to_logits
from ichkit.core.progress import logger
from ichkit.core.roles import LOCKED
from ichkit.core.seeding import make_generator
from ichkit.phantom.descriptors import TASK, make_work
from ichkit.stacking.inputs import read_inputs
from ichkit.stacking.neighbours import neighbour_stacks
from ichkit.stages.scores import prove
from ichkit.stages.stack import run as stack
from ichkit.validation.proof import Gain, compare_gains, measure_gain, seed_of_gain
from ichkit.work.folder import WorkFolder

CONFIG = load_config("default", ("stack.stackers=[lightgbm]", "evaluate.num_draws=1000"))
PLAIN = ("in_sample", "kfold_slices", "kfold_patients")
NUM_PARTS, ROUNDS = 5, 60
RIVALS = ("autogluon", "autogluon_groups", "mljar")
HEADLINE = TASK.classes.index(TASK.headline_class)
ALONE = replace(TASK, weights=tuple(float(number == HEADLINE) for number in range(TASK.num_classes)))
SETTINGS = {"num_draws": 1000, "level": 0.95}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plays", type=Path, help="CSV of single data sets; those that it has are not computed again")
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--first-set", type=int, default=0)
    parser.add_argument("--rivals", type=Path, help="Python of an environment with AutoGluon and MLJAR")
    parser.add_argument("--rival", action="append", choices=RIVALS, help="of these rivals alone; repeatable")
    args = parser.parse_args()
    logger.setLevel("ERROR")
    torch.set_num_threads(1)
    plays = pd.read_csv(args.plays) if args.plays is not None and args.plays.is_file() else pd.DataFrame()
    done = set(plays["set"]) if len(plays) else set()
    for number in range(args.first_set, args.first_set + args.sets):
        if number in done:
            continue
        plays = pd.concat([plays, pd.DataFrame(play(number, args.rivals, args.rival or RIVALS))], ignore_index=True)
        if args.plays is not None:
            plays.to_csv(args.plays, index=False)
    report(summarise(plays), args.json)


def play(number: int, python: Path | None, rivals: Sequence[str]) -> list[dict[str, object]]:
    """One data set: a row for each second stage, and with the Python of the rivals one for each of them."""
    rng = make_generator(number, "prove benchmark")
    drawn = {
        "num_patients": int(np.exp(rng.uniform(np.log(25), np.log(200)))),
        "slices_per_study": (first := int(rng.integers(6, 25)), first + int(rng.integers(2, 12))),
        "positive_rate": float(rng.uniform(0.3, 0.7)),
        "noise": float(rng.uniform(0.5, 2.0)),
        "slope": float(rng.uniform(0.5, 1.5)),
        "contrast": float(rng.uniform(4, 6)),
        "mistakes": float(rng.choice([0.0, 0.2, 0.4])),
        "fold_spread": float(rng.choice([0.0, 0.2])),
    }
    with tempfile.TemporaryDirectory() as folder:
        locked = max(20, int(drawn["num_patients"]) // 2)
        work = make_work(
            Path(folder) / "work", locked_studies=locked, test_studies=2, cq500_studies=2, seed=number, **drawn
        )
        stack.run(stack.plan(CONFIG, work, stack.StackOptions()))
        plan = prove.plan(CONFIG, work)
        proof = prove.run(plan)
        if python is not None:
            alone = prove.run(replace(plan, prepared=replace(plan.prepared, task=ALONE)))
            proof = pd.concat([proof, alone.assign(kind=alone.kind + "_any")])
        shared = {"set": number, **{name: drawn[name] for name in ("num_patients", "noise", "mistakes")}}
        found = [
            {
                **shared,
                "kind": row["kind"],
                **{name: row[name] for name in proof.columns if "gain" in name or "diff" in name},
            }
            for row in proof.to_dict("records")
        ]
        rows = play_plain(work, number)
        rows += [] if python is None else play_rivals(work, number, python, rivals)
        return found + [{**shared, **row} for row in rows]


def play_plain(work: WorkFolder, number: int) -> list[dict[str, object]]:
    """Gradient boosting of scikit-learn on the same rows, scored in three ways."""
    inputs = read_inputs(work, TASK, None)
    train, locked = inputs.train, inputs.external[LOCKED]
    labels = train[list(TASK.classes)].to_numpy(float)
    own = features_of(inputs.out_of_fold(inputs.runs[0]), train)
    of_folds = [features_of(table, locked) for table in inputs.tables[LOCKED][inputs.runs[0]].values()]
    middle = own.shape[1] // TASK.num_classes // 2 * TASK.num_classes
    centre = slice(middle, middle + TASK.num_classes)
    whole = fit(own, labels, number)
    on_locked = np.concatenate([predict(whole, x) for x in of_folds])
    base_locked = np.concatenate([1 / (1 + np.exp(-x[:, centre])) for x in of_folds])
    new = measure_gain(
        base_locked,
        on_locked,
        np.tile(locked[list(TASK.classes)].to_numpy(float), (len(of_folds), 1)),
        np.tile(locked.patient_id.to_numpy(), len(of_folds)),
        TASK,
        seed=seed_of_gain(number, LOCKED),
        **SETTINGS,
    )
    base = 1 / (1 + np.exp(-own[:, centre]))
    rows = []
    for kind in PLAIN:
        second = predict(whole, own) if kind == "in_sample" else cross_fit(kind, own, labels, train.patient_id, number)
        old = measure_gain(
            base, second, labels, train.patient_id.to_numpy(), TASK, seed=seed_of_gain(number, "oof"), **SETTINGS
        )
        rows.append(describe(kind, old, new))
    return rows


def play_rivals(work: WorkFolder, number: int, python: Path, rivals: Sequence[str]) -> list[dict[str, object]]:
    """The stacking of other packages on the same rows, on the headline class alone."""
    inputs = read_inputs(work, TASK, None)
    train, locked = inputs.train, inputs.external[LOCKED]
    own = features_of(inputs.out_of_fold(inputs.runs[0]), train)
    of_folds = [features_of(table, locked) for table in inputs.tables[LOCKED][inputs.runs[0]].values()]
    middle = own.shape[1] // TASK.num_classes // 2 * TASK.num_classes
    base, new = (1 / (1 + np.exp(-x[:, middle : middle + TASK.num_classes])) for x in (own, np.concatenate(of_folds)))
    labels, of_locked = (rows[list(TASK.classes)].to_numpy(float) for rows in (train, locked))
    given, wanted = work.root / "rivals.npz", work.root / "rival.npz"
    np.savez(
        given,
        train=own,
        labels=labels[:, HEADLINE].astype(int),
        patients=pd.factorize(train.patient_id)[0],
        locked=np.concatenate(of_folds),
    )
    rows = []
    for name in rivals:
        command = [python, Path(__file__).with_name("rivals.py"), name, given, wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        told = np.load(wanted)
        out_of_fold, on_locked = base.copy(), new.copy()
        out_of_fold[:, HEADLINE] = np.clip(told["oof"], 1e-6, 1 - 1e-6)
        on_locked[:, HEADLINE] = np.clip(told["locked"], 1e-6, 1 - 1e-6)
        repeats = len(of_folds)
        old = measure_gain(
            base,
            out_of_fold,
            labels,
            train.patient_id.to_numpy(),
            ALONE,
            seed=seed_of_gain(number, "oof"),
            **SETTINGS,
        )
        kept = measure_gain(
            new,
            on_locked,
            np.tile(of_locked, (repeats, 1)),
            np.tile(locked.patient_id.to_numpy(), repeats),
            ALONE,
            seed=seed_of_gain(number, LOCKED),
            **SETTINGS,
        )
        rows.append(describe(name, old, kept))
    return rows


def describe(kind: str, old: Gain, new: Gain) -> dict[str, object]:
    """The row of one second stage."""
    kept = compare_gains(old, new, SETTINGS["level"])
    return {
        "kind": kind,
        "oof_gain": old.value,
        "locked_gain": new.value,
        "difference": kept.difference,
        "difference_low": kept.low,
        "difference_high": kept.high,
        "gain_kept": kept.share,
    }


def features_of(table: pd.DataFrame, slices: pd.DataFrame) -> np.ndarray:
    """(N, 7 C) logits of each slice and its neighbours, rows as `slices`."""
    ordered = slices[["slice_id", "study_id"]].merge(table, on=["slice_id", "study_id"], how="left", validate="1:1")
    codes, _ = pd.factorize(ordered.study_id)
    stacks = neighbour_stacks(ordered[TASK.probability_columns].to_numpy(np.float32), codes.astype(np.int64))
    return to_logits(np.clip(stacks.reshape(len(stacks), -1), 1e-6, 1 - 1e-6))


def fit(features: np.ndarray, labels: np.ndarray, seed: int) -> list[HistGradientBoostingClassifier | float]:
    """One model for each class; its share of positives where there is one label only."""
    models: list[HistGradientBoostingClassifier | float] = []
    for y in labels.T:
        if y.min() == y.max():
            models.append(float(np.clip(y.mean(), 1e-3, 1 - 1e-3)))
            continue
        models.append(HistGradientBoostingClassifier(max_iter=ROUNDS, random_state=seed).fit(features, y))
    return models


def predict(models: list[HistGradientBoostingClassifier | float], features: np.ndarray) -> np.ndarray:
    """(N, C) probabilities."""
    columns = [
        np.full(len(features), model) if isinstance(model, float) else model.predict_proba(features)[:, 1]
        for model in models
    ]
    return np.clip(np.stack(columns, axis=1), 1e-6, 1 - 1e-6)


def cross_fit(kind: str, features: np.ndarray, labels: np.ndarray, patients: pd.Series, seed: int) -> np.ndarray:
    """(N, C) probabilities of each row by models of the other parts."""
    second = np.empty(labels.shape)
    by_slice = KFold(NUM_PARTS, shuffle=True, random_state=seed)
    parts = by_slice if kind == "kfold_slices" else GroupKFold(NUM_PARTS)
    for rest, held in parts.split(features, groups=patients):
        second[held] = predict(fit(features[rest], labels[rest], seed), features[held])
    return second


def summarise(plays: pd.DataFrame) -> dict[str, float | int]:
    """For each second stage: data sets, shares of them, and medians of its gains."""
    figures: dict[str, float | int] = {"sets": plays["set"].nunique()}
    for kind, rows in plays.groupby("kind"):
        figures |= {
            f"{kind}_unconfirmed": float((rows.difference_low > 0).mean()),
            f"{kind}_undervalued": float((rows.difference_high < 0).mean()),
            f"{kind}_oof_gain": float(rows.oof_gain.median()),
            f"{kind}_locked_gain": float(rows.locked_gain.median()),
            f"{kind}_worse_on_locked": float((rows.locked_gain < 0).mean()),
        }
    return figures


if __name__ == "__main__":
    main()
