"""Few patients: no kind of a stack may cost what its run had. `benchmarks/small.py` plays the whole grid."""

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.simulated import TASK, make_work

from ichkit.core.config import load_config
from ichkit.stages.stack import run as stack
from ichkit.validation.metrics import weighted_log_loss
from ichkit.work.artifacts import read_table
from ichkit.work.schemas import KEY

KINDS = ("fusion", "lightgbm", "blend")
WEAK = {"noise": 1.0, "slope": 0.5, "offset": -2.5, "contrast": 4.0}
STRONG = {"noise": 0.7, "contrast": 6.0}
MOST_ON_AVERAGE, MOST_IN_ONE = 1.01, 1.05


def ratios(root, num_patients, seed, base, folds):
    """Kind to its out-of-fold loss as a share of the run's."""
    shape = {"slices_per_study": (24, 30), "positive_rate": 0.4, "test_studies": 1, "cq500_studies": 1}
    work = make_work(root / "work", num_patients=num_patients, seed=seed, folds=folds, **shape, **base)
    do(stack, load_config("demo"), work, name="small")
    labels = read_table(work.prepared / "slices.parquet").set_index("slice_id")[list(TASK.classes)]

    def loss(*paths):
        table = pd.concat([read_table(path) for path in paths]).sort_values(KEY)
        p, y = table[TASK.probability_columns].to_numpy(np.float64), labels.loc[table.slice_id].to_numpy(np.float64)
        return weighted_log_loss(p, y, TASK.weight_array())

    own = loss(*(work.fold("base", fold) / "oof.parquet" for fold in folds))
    return {kind: loss(work.stacks / "small" / f"{kind}_oof.parquet") / own for kind in KINDS}


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(stack, "run_tasks", lambda function, tasks, **_: enumerate(map(function, tasks)))


@pytest.mark.slow
@pytest.mark.parametrize("base", [WEAK, STRONG], ids=["weak", "strong"])
@pytest.mark.parametrize(
    ("num_patients", "folds"),
    [(5, (0, 1, 2, 3, 4)), (10, (0, 1, 2, 3, 4)), (20, (0, 1, 2, 3, 4)), (40, (0, 1, 2, 3, 4)), (50, (0,))],
    ids=["5", "10", "20", "40", "10 in one fold"],
)
def test_no_stacker_and_no_blend_is_worse_than_its_run(tmp_path, in_process, base, num_patients, folds):
    found = pd.DataFrame([ratios(tmp_path / str(seed), num_patients, seed, base, folds) for seed in range(3)])
    assert (found.mean() < MOST_ON_AVERAGE).all(), found
    assert (found.max() < MOST_IN_ONE).all(), found
