"""`evaluate --robustness`: each patient by the network of its own fold, the same sample in every call."""

import numpy as np
import pandas as pd
import pytest
from support.commands import call
from support.simulated import TASK, rewrite_slices
from support.trained import CONFIG, make_trained_work

from ichkit.core.errors import ConfigError
from ichkit.imaging.perturbations import PERTURBATIONS
from ichkit.imaging.store import Prepared
from ichkit.stages.scores import robustness
from ichkit.stages.scores.evaluate import EvaluateOptions
from ichkit.validation.catalog import find_sources
from ichkit.work.artifacts import read_table

NAMES = ("hu_plus_10", "every_second")


def configured(patients=2, names=NAMES):
    section = CONFIG.robustness.model_copy(update={"patients": patients, "perturbations": names})
    settings = CONFIG.evaluate.model_copy(update={"num_draws": 64})
    return CONFIG.model_copy(update={"robustness": section, "evaluate": settings})


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_trained_work(tmp_path_factory.mktemp("robust") / "work")


@pytest.fixture(scope="module")
def made(work):
    table = robustness.run(robustness.plan(configured(), work))
    return table, read_table(work.robustness / robustness.PREDICTIONS_NAME)


def test_scans_as_they_are_get_the_out_of_fold_probabilities_of_their_own_fold(work, made):
    unchanged = made[1][made[1].perturbation == robustness.UNCHANGED].set_index("slice_id")
    tables = [read_table(work.fold("demo", fold) / "oof.parquet") for fold in (0, 1)]
    own = pd.concat(tables).set_index("slice_id").loc[unchanged.index]
    np.testing.assert_allclose(unchanged[TASK.probability_columns], own[TASK.probability_columns], atol=1e-5)
    assert unchanged.fold.tolist() == own.fold.tolist()
    others = made[1][made[1].perturbation == "hu_plus_10"].set_index("slice_id").loc[unchanged.index]
    assert np.abs(others[TASK.probability_columns].to_numpy() - own[TASK.probability_columns].to_numpy()).max() > 1e-3


def test_some_patients_of_every_fold_are_asked_the_same_ones_each_time(work, made):
    prepared = Prepared.open(work.prepared, TASK)
    (source,) = find_sources(work, TASK)
    rows = robustness.pick_rows(prepared, source, configured())
    assert rows.groupby("fold").patient_id.nunique().tolist() == [2, 2]
    assert set(made[1].slice_id) == set(rows.slice_id)
    pd.testing.assert_frame_equal(robustness.pick_rows(prepared, source, configured()), rows)
    more = robustness.pick_rows(prepared, source, configured(patients=3))
    assert set(rows.patient_id) < set(more.patient_id)


def test_dropped_slices_are_compared_with_themselves_alone(made):
    table, predictions = made
    read = predictions[predictions.perturbation == "every_second"]
    assert (read.slice_index % 2 == 0).all()
    whole, some = (table[(table.perturbation == name) & (table.metric == "log_loss")] for name in NAMES)
    assert (some.n == len(read)).all()
    assert (whole.n == (predictions.perturbation == "hu_plus_10").sum()).all()
    # This network reads each slice alone, so that the distance between slices changes nothing.
    assert (some.difference == 0).all()


def test_it_is_kept_until_weights_sample_or_labels_change_and_the_report_shows_no_old_one(work, made):
    prepared = Prepared.open(work.prepared, TASK)
    sources = find_sources(work, TASK)
    found = robustness.read_robustness(work, prepared, sources)
    pd.testing.assert_frame_equal(found, made[0])
    path = work.robustness / "manifest.json"
    before = path.read_bytes(), path.stat().st_mtime_ns
    pd.testing.assert_frame_equal(robustness.run(robustness.plan(configured(), work)), made[0])
    assert before == (path.read_bytes(), path.stat().st_mtime_ns)
    assert robustness.plan(configured(patients=3), work).current is None
    slices = prepared.slices.copy()
    flipped = slices.assign(epidural=1 - slices.epidural)
    rewrite_slices(work, flipped)
    assert robustness.plan(configured(), work).current is None
    assert robustness.read_robustness(work, Prepared.open(work.prepared, TASK), sources) is None
    rewrite_slices(work, slices)


def test_unknown_perturbations_are_refused_with_the_nearest(work):
    with pytest.raises(ConfigError, match='robustness.perturbations: unknown "hu_plus_9". Did you mean "hu_plus_5"'):
        robustness.plan(configured(names=("hu_plus_9",)), work)


def test_the_command_prints_every_perturbation_and_a_dry_run_writes_nothing(work, made):
    words = ["evaluate", "--robustness", "--work", work.root, "--set", "robustness.patients=1"]
    words += ["--set", "evaluate.num_draws=64", "--set", "train.accelerator=cpu"]
    before = (work.robustness / "manifest.json").read_bytes()
    assert "1 held-out patient of each fold of demo" in call(*words, "--dry-run")
    assert (work.robustness / "manifest.json").read_bytes() == before
    text = call(*words)
    assert all(row.title in text for row in PERTURBATIONS.values())
    assert "Made from phantoms" in text
    assert len(robustness.find_names(CONFIG)) == len(PERTURBATIONS)
    assert EvaluateOptions().perturbs is False
