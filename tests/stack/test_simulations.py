"""What a second stage is worth, on data with a known law: a gain where there is one, and never a loss."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.simulated import TASK, make_work

from ichkit.core.config import load_config
from ichkit.core.logits import to_logits
from ichkit.core.seeding import make_generator
from ichkit.stacking.calibration import fit_calibration
from ichkit.stacking.inner import make_training_part
from ichkit.stacking.rows import log_losses_of_logits, make_rows
from ichkit.stacking.table import STACKERS
from ichkit.stages.stack import run as stack
from ichkit.work.artifacts import read_table
from ichkit.work.schemas import KEY

KINDS = ("fusion", "lightgbm", "sequence", "blend")


@dataclass(frozen=True)
class Outcome:
    """Weighted log loss of every row, by what predicted it."""

    losses: dict[str, np.ndarray]
    patients: np.ndarray

    def ratio(self, kind, reference):
        return self.losses[kind].mean() / self.losses[reference].mean()

    def gain_interval(self, kind, reference):
        """95 % interval of how much lower the loss of `kind` is, patients drawn with replacement."""
        gains = np.bincount(self.patients, weights=self.losses[reference] - self.losses[kind])
        draws = make_generator(0, "gain").integers(len(gains), size=(2000, len(gains)))
        return np.quantile(gains[draws].sum(axis=1), [0.025, 0.975])


def play(root, **settings):
    """Stacks a simulated work folder with the demo's settings and scores it out of fold."""
    work = make_work(root / "work", test_studies=1, cq500_studies=1, **settings)
    changes = ("stack.stackers=[fusion,lightgbm,sequence]", "stack.sequence.num_seeds=1")
    manifest = do(stack, load_config("demo", changes), work)
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.split == "train"].sort_values(KEY, ignore_index=True)
    labels = slices[list(TASK.classes)].to_numpy(float)

    def logits_of(table):
        return to_logits(table.sort_values(KEY)[TASK.probability_columns].to_numpy(float))

    base = logits_of(pd.concat([read_table(work.fold("base", fold) / "oof.parquet") for fold in range(5)]))
    calibrated = np.empty_like(base)
    for fold in range(5):
        held = (slices.fold == fold).to_numpy()
        calibrated[held] = fit_calibration(base[~held], labels[~held]).apply(base[held])
    found = {kind: logits_of(read_table(work.stacks / "base" / f"{kind}_oof.parquet")) for kind in KINDS}
    assert manifest.facts["num_slices"] == len(base)
    losses = {
        kind: log_losses_of_logits(logits, labels) @ TASK.weight_array()
        for kind, logits in {"base": base, "calibrated": calibrated, **found}.items()
    }
    return Outcome(losses, pd.factorize(slices.patient_id)[0])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"noise": 4.0}, {"noise": 4.0, "slope": 0.3, "contrast": 2.0}])
def test_on_few_patients_and_a_weak_base_no_stacker_loses_to_the_calibrated_base(tmp_path, settings):
    outcome = play(tmp_path, num_patients=80, slices_per_study=(20, 26), **settings)
    for kind in KINDS:
        assert outcome.ratio(kind, "calibrated") < 1.02, kind


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_true_posteriors_are_neither_beaten_nor_spoilt(tmp_path, seed):
    outcome = play(tmp_path, num_patients=80, slices_per_study=(20, 26), noise=0.0, seed=seed)
    for kind in KINDS:
        assert outcome.ratio(kind, "base") < 1.005, kind
        low, _ = outcome.gain_interval(kind, "base")
        assert low <= 0, kind


def loss_of(name, rows, slices, folds):
    """Weighted loss of one stacker on folds that it never saw."""
    config, losses = load_config("demo", ("stack.sequence.num_seeds=1",)), []
    for fold in folds:
        held = (slices.fold == fold).to_numpy()
        training = make_training_part(rows.take(~held), slices[~held], TASK, config.stack.num_inner, seed=fold)
        model, _ = STACKERS[name].fit(training, TASK, config.stack, fold)
        own = rows.take(held)
        logits = model.predict(own, training.calibration.apply(own.combined_logits()))
        losses.append(log_losses_of_logits(logits, slices.loc[held, list(TASK.classes)].to_numpy(float)))
    return np.concatenate(losses).mean(axis=0) @ TASK.weight_array()


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKERS)
def test_a_stacker_beats_itself_shown_nothing_but_the_centre_slice(tmp_path, name):
    work = make_work(tmp_path / "work", num_patients=60, slices_per_study=(28, 36), noise=4.0)
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.split == "train"].sort_values(KEY, ignore_index=True)
    rows = make_rows([pd.concat([read_table(work.fold("base", k) / "oof.parquet") for k in range(5)])], slices, TASK)
    alone = replace(rows, study_codes=np.arange(len(rows)))  # each slice a study of its own
    assert loss_of(name, rows, slices, (0, 1)) < 0.9 * loss_of(name, alone, slices, (0, 1))


@pytest.mark.slow
def test_neighbours_help_where_slices_are_noisy_also_against_the_calibrated_base(tmp_path):
    outcome = play(tmp_path, num_patients=54, slices_per_study=(28, 36), noise=2.0)
    assert min(outcome.ratio(kind, "calibrated") for kind in ("fusion", "lightgbm")) < 0.95
    low, _ = outcome.gain_interval("blend", "calibrated")
    assert low > 0
