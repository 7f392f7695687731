"""Times the second stage at the size of the competition: `python benchmarks/stack.py [--json FILE] [--studies N]`.

Fusion with one seed, LightGBM, their blend and every score with its interval, five folds, on simulated descriptors.
With `--data WORK` it measures a finished work folder instead, such as the demo's: what each stacker gains over the same
stacker that is shown nothing but the centre slice.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib.externals.loky import get_reusable_executor
from measuring import make_parser, report, time_cpu, watch_memory

from ichkit.core.config import Config, load_config
from ichkit.core.progress import logger
from ichkit.core.seeding import derive_seed
from ichkit.phantom.descriptors import COMPETITION_SLICES, COMPETITION_STUDIES, TASK, make_competition
from ichkit.stacking.inner import make_training_part
from ichkit.stacking.inputs import plan_fold_models, read_inputs
from ichkit.stacking.neighbours import neighbour_stacks
from ichkit.stacking.rows import Rows, log_losses_of_logits, make_rows
from ichkit.stacking.table import STACKERS
from ichkit.stages.scores import evaluate
from ichkit.stages.stack import run as stack
from ichkit.work.folder import WorkFolder

REPEATS = 5
SETTINGS = ("stack.fusion.num_seeds=1",)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--studies", type=int, default=COMPETITION_STUDIES, help="size of the simulated training set")
    args = parser.parse_args()
    logger.setLevel("INFO")
    if args.data is not None:
        report(measure_neighbours(WorkFolder(args.data)), args.json)
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = WorkFolder(Path(scratch) / "work")
        drawn = make_competition(work, args.studies)
        figures = {**drawn, **time_stages(work), "stacks_seconds": time_stacks()}
    report(figures, args.json)


def time_stages(work: WorkFolder) -> dict[str, float]:
    """Wall and CPU seconds of `stack` and of `evaluate`, the most memory both held, and the losses they found."""
    config, found = load_config("default", SETTINGS), {}

    def make_stack() -> None:
        found["stack"] = stack.run(stack.plan(config, work))
        get_reusable_executor().shutdown(wait=True)  # what workers computed counts once they have ended

    with watch_memory() as peak:
        seconds, cpu = time_cpu(make_stack)
        seconds_scores, cpu_scores = time_cpu(lambda: evaluate.run(evaluate.plan(config, work)))
    losses = {f"loss_{kind}": of_kind["out_of_fold"] for kind, of_kind in found["stack"].facts["optimism"].items()}
    return {
        "seconds_stack": seconds,
        "seconds_scores": seconds_scores,
        "seconds_total": seconds + seconds_scores,
        "cpu_seconds_total": cpu + cpu_scores,
        "peak_gb": peak.gb,
        **losses,
    }


def time_stacks() -> float:
    """Median seconds of the windows of seven descriptors around each of the competition's slices."""
    rng = np.random.default_rng(0)
    descriptors = rng.random((COMPETITION_SLICES, TASK.num_classes), np.float32)
    codes = np.arange(COMPETITION_SLICES) * COMPETITION_STUDIES // COMPETITION_SLICES
    neighbour_stacks(descriptors[:100], codes[:100])  # compiles, or loads what was compiled before
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        neighbour_stacks(descriptors, codes)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def measure_neighbours(work: WorkFolder) -> dict[str, Any]:
    """Out-of-fold losses of the calibrated base and of each stacker, with neighbours and with every slice alone."""
    config = load_config("demo")
    inputs = read_inputs(work, TASK, None)
    rows = make_rows([inputs.out_of_fold(run) for run in inputs.runs], inputs.train, TASK)
    figures: dict[str, Any] = {}
    for name in STACKERS:
        with_neighbours = loss_of(name, rows, inputs, config)
        # Each slice as a study of its own: the same stacker, shown no neighbour.
        alone = loss_of(name, replace(rows, study_codes=np.arange(len(rows))), inputs, config)
        figures |= {f"loss_{name}": with_neighbours, f"loss_{name}_centre_slice": alone}
        figures[f"gain_of_neighbours_{name}"] = 1 - with_neighbours / alone
    return figures


def loss_of(name: str, rows: Rows, inputs: Any, config: Config) -> float:
    """Weighted out-of-fold log loss of one stacker."""
    labels = inputs.train[list(TASK.classes)].to_numpy(np.float64)
    losses = np.empty(labels.shape)
    for plan in plan_fold_models(inputs, TASK, config.stack.num_parts, config.seed):
        seed = derive_seed(config.seed, "stack inner", plan.name)
        others = ~plan.held
        training = make_training_part(rows.take(others), inputs.train[others], TASK, config.stack.num_inner, seed)
        model, _ = STACKERS[name].fit(training, TASK, config.stack, derive_seed(config.seed, "stack", plan.name, name))
        held = rows.take(plan.held)
        logits = model.predict(held, training.calibration.apply(held.combined_logits()))
        losses[plan.held] = log_losses_of_logits(logits, labels[plan.held])
    return float(losses.mean(axis=0) @ TASK.weight_array())


if __name__ == "__main__":
    main()
