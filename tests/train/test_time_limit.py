"""`train --time-limit`: epochs and folds that fit, chosen before training, and kept when it is called again."""

import logging

import pytest
from support.commands import call, do
from support.pixels import make_pixel_work
from support.simulated import TASK
from support.training import TINY, StopAtLook, config

from ichkit.core.errors import ConfigError, Stopped
from ichkit.core.train_config import TrainConfig
from ichkit.engine import step_cost
from ichkit.imaging.store import Prepared
from ichkit.stages.train import lanes, time_limit
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask, Parts
from ichkit.stages.train.time_limit import Pace, find_pace, shorten
from ichkit.work.artifacts import read_manifest

EPOCHS = 10
PACED = Pace(training=36.0, predicting=0.0, basis="by hand")  # a hundredth of an hour for each image


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store of two folds; nothing is trained in it."""
    return make_pixel_work(tmp_path_factory.mktemp("work"))


@pytest.fixture
def paced(monkeypatch):
    monkeypatch.setattr(time_limit, "find_pace", lambda *_: PACED)
    monkeypatch.setattr(lanes, "count_cores", lambda: 1)


def plan(work, hours, *changes, **options):
    settings = config(f"train.epochs={EPOCHS}", *changes)
    return train.plan(settings, work, train.TrainOptions("run", time_limit=hours, **options))


def count_images(work, fold):
    """Images of one epoch, by the store."""
    return len(Parts.of(Prepared.open(work.prepared, TASK), fold).train)


def test_epochs_are_cut_to_half_before_folds_are_left_out_and_further_for_one_fold_alone(work, paced):
    first, second = (count_images(work, fold) * EPOCHS / 100 for fold in (0, 1))  # hours of all epochs
    cases = {
        first + second + 0.01: ((0, 1), 10),
        (first + second) * 0.75: ((0, 1), 7),
        (first + second) * 0.51: ((0, 1), 5),
        (first + second) * 0.45: ((0,), int(EPOCHS * 0.45 * (first + second) / first)),
        first * 0.35: ((0,), 3),
    }
    for hours, (folds, epochs) in cases.items():
        found = plan(work, hours)
        assert (found.folds, found.config.train.epochs) == (folds, epochs)
        assert [task.config.train.epochs for task in found.tasks] == [epochs] * len(folds)
        assert found.fit.seconds == pytest.approx(sum((first, second)[fold] for fold in folds) * 3600 * epochs / EPOCHS)
        assert found.fit.seconds <= hours * 3600
    assert plan(work, None).fit is None


def test_folds_that_run_side_by_side_share_the_time(work, paced, monkeypatch):
    monkeypatch.setattr(lanes, "count_cores", lambda: 2)
    hours = [count_images(work, fold) * EPOCHS / 100 for fold in (0, 1)]
    assert plan(work, max(hours) + 0.01).folds == (0, 1)
    assert plan(work, max(hours) + 0.01).fit.seconds == pytest.approx(max(hours) * 3600)
    assert plan(work, max(hours) + 0.01, "train.threads=2").config.train.epochs < EPOCHS


def test_phases_are_cut_in_proportion_and_none_to_nothing():
    phases = [{"classes": ["any"], "epochs": 4}, {"epochs": 20}, {"epochs": 1}, {}]
    cut = shorten(TrainConfig(epochs=10, phases=phases), 5)
    assert [phase.epochs for phase in cut.phases] == [1, 5, 1, None]
    assert cut.epochs == 2
    assert shorten(TrainConfig(epochs=10, phases=phases), 20) == TrainConfig(epochs=10, phases=phases)


def test_validation_after_each_epoch_and_predictions_count(work, paced, monkeypatch):
    plain = plan(work, 1000.0).fit.seconds
    monkeypatch.setattr(time_limit, "find_pace", lambda *_: Pace(36.0, 3.6, "by hand"))
    parts = [Parts.of(Prepared.open(work.prepared, TASK), fold) for fold in (0, 1)]
    predicted = sum(len(slices) for part in parts for slices in part.predicted.values())
    assert plan(work, 1000.0).fit.seconds - plain == pytest.approx(3.6 * predicted)
    settings = config(f"train.epochs={EPOCHS}", "train.validation.share=0.5")
    held = [part.hold_validation(settings, fold) for fold, part in enumerate(parts)]
    kept, scored = sum(len(part.train) for part in held), sum(len(part.validation) for part in held)
    expected = EPOCHS * (36 * kept + 3.6 * scored) + 3.6 * predicted
    assert plan(work, 1000.0, "train.validation.share=0.5").fit.seconds == pytest.approx(expected)


def test_a_limit_that_no_fold_fits_into_is_refused_with_the_time_needed(work, paced):
    least = count_images(work, 0) * 36
    with pytest.raises(ConfigError, match=f"one epoch of one fold .* need about {round(least / 60)} min"):
        plan(work, least / 3600 * 0.9)


def test_a_second_call_keeps_the_epochs_of_the_first_and_does_the_other_folds(tmp_path, paced, caplog):
    work = make_pixel_work(tmp_path)
    hours = count_images(work, 0) * 0.021  # two epochs of a fold
    with caplog.at_level(logging.INFO, logger="ichkit"):
        first = do(train, config(f"train.epochs={EPOCHS}"), work, run_name="run", time_limit=hours)
    said = [record.getMessage() for record in caplog.records]
    chosen = next(i for i, text in enumerate(said) if "2 of 10 epochs of fold 0" in text)
    assert "left out: 1" in said[chosen]
    assert chosen < next(i for i, text in enumerate(said) if "epoch 1 of 2" in text)
    assert [manifest.facts["fold"] for manifest in first] == [0]
    again = plan(work, 1000.0)
    assert (again.config.train.epochs, [task.fold for task in again.tasks]) == (2, [1])
    assert plan(work, 1000.0, fresh=True).config.train.epochs == EPOCHS
    both = train.run(again)
    assert [manifest.settings["train"]["epochs"] for manifest in both] == [2, 2]
    assert plan(work, 0.0001).is_idle
    assert plan(work, 0.0001).folds == (0, 1)
    with pytest.raises(ConfigError, match="fold 1, whose epochs are fixed by others"):
        plan(make_half(tmp_path / "half"), hours / 10)


def make_half(root):
    """Fold 0 of a run is finished with two epochs."""
    work = make_pixel_work(root)
    do(train, config("train.epochs=2"), work, run_name="run", folds=[0])
    return work


def test_a_stopped_fold_counts_the_epochs_that_are_left(tmp_path, paced):
    work = make_pixel_work(tmp_path)
    task = FoldTask(config("train.epochs=4"), work, "run", 0, trains=True)
    whole = plan(work, 1000.0, folds=[0]).fit.seconds * 4 / EPOCHS
    steps = 0
    while True:  # until an epoch is finished
        with pytest.raises(Stopped):
            do_fold(task, StopAtLook(steps))
        found = plan(work, 1000.0, folds=[0])
        assert found.config.train.epochs == 4
        if found.fit.seconds < whole:
            break
        assert found.fit.seconds == pytest.approx(whole)
        steps += 1
    assert found.fit.seconds == pytest.approx(whole * 3 / 4)


def test_the_pace_counts_reading_and_goes_by_a_finished_fold_of_other_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(step_cost, "measure_step_cost", lambda *_, **__: step_cost.StepCost(14.0, 1))
    work = make_pixel_work(tmp_path)
    prepared = Prepared.open(work.prepared, TASK)
    task = FoldTask(config("train.epochs=9"), work, "new", 0, trains=True)
    pace = find_pace(task, prepared)
    assert 1.0 < pace.training < 1.5  # a step of 14 images takes a second for each, without reading
    assert 1 / 3 < pace.predicting < 0.8
    assert "trial step" in pace.basis
    do(train, config("train.epochs=2"), work, run_name="run", folds=[0])
    found = find_pace(task, prepared)
    assert found.basis == "measured on fold 0 of run"
    history = (work.fold("run", 0) / "history.csv").read_text().splitlines()
    assert found.training < read_manifest(work.fold("run", 0)).facts["seconds"]
    assert len(history) == 3
    other = FoldTask(config("train.epochs=9", "train.learning_rate=0.1"), work, "new", 0, trains=True)
    assert "trial step" in find_pace(other, prepared).basis


def test_the_dry_run_shows_the_choice_and_writes_nothing(work, paced):
    before = {path: path.stat().st_mtime_ns for path in work.root.rglob("*")}
    words = [word for text in (*TINY, f"train.epochs={EPOCHS}") for word in ("--set", text)]
    hours = str(count_images(work, 0) * 0.031)
    printed = " ".join(call("train", "--work", work.root, "--time-limit", hours, "--dry-run", *words).split())
    assert "3 of 10 epochs of fold 0" in printed
    assert "left out: 1" in printed
    assert "by hand" in printed
    assert {path: path.stat().st_mtime_ns for path in work.root.rglob("*")} == before


def test_processes_that_share_a_fold_cannot_each_choose(work, paced, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"--time-limit: each process of torchrun .* --set train\.epochs"):
        plan(work, 1.0, folds=[0])
