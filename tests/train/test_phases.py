"""Runs of several phases, and runs that begin with the weights of earlier ones."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from support.commands import do
from support.pixels import make_pixel_work
from support.simulated import rewrite_slices
from support.training import StopAtLook, config, read_files

from ichkit.core.errors import ArtifactError, ConfigError, Stopped
from ichkit.core.progress import StopFlag
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask
from ichkit.work.artifacts import read_table

SAME = ("model.safetensors", "oof.parquet", "test.parquet", "cq500.parquet")
TWO = "train.phases=[{classes: [any], epochs: 1, frozen_stages: 1}, {epochs: 2, learning_rate: 0.001}]"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store with a finished fold of run `first`; tests add runs of their own."""
    work = make_pixel_work(tmp_path_factory.mktemp("work"))
    do(train, config("train.epochs=1"), work, run_name="first", folds=[0])
    return work


def train_fold(work, run, *changes):
    do(train, config(*changes), work, run_name=run, folds=[0])
    return read_files(work.fold(run, 0))


def test_one_phase_that_changes_nothing_is_the_run_without_phases(work):
    files = train_fold(work, "one", "train.phases=[{epochs: 1}]")
    first = read_files(work.fold("first", 0))
    assert {name: files[name] == first[name] for name in SAME} == dict.fromkeys(SAME, True)


@pytest.mark.parametrize("looks", [(1,), (3, 2)])
def test_a_run_of_two_phases_stopped_anywhere_ends_in_the_bytes_of_one_that_was_not(work, tmp_path, looks):
    straight = train_fold(work, "two", TWO)
    history = pd.read_csv(work.fold("two", 0) / "history.csv")
    assert history[["phase", "epoch"]].to_numpy().tolist() == [[1, 1], [2, 2], [2, 3]]
    task = FoldTask(config(TWO), make_pixel_work(tmp_path), "two", 0, trains=True)
    for number in looks:
        with pytest.raises(Stopped):
            do_fold(task, StopAtLook(number))
    do_fold(task, StopFlag())
    resumed = read_files(task.folder)
    assert {name: resumed[name] == straight[name] for name in SAME} == dict.fromkeys(SAME, True)


def test_the_journal_has_each_step_once_also_after_a_stop(tmp_path):
    task = FoldTask(config(TWO, "train.log_every=1"), make_pixel_work(tmp_path), "two", 0, trains=True)
    with pytest.raises(Stopped):
        do_fold(task, StopAtLook(2))
    do_fold(task, StopFlag())
    rows = [json.loads(line) for line in (task.folder / "steps.jsonl").read_text().splitlines()]
    places = [(row["epoch"], row["step"]) for row in rows]
    assert places == sorted(set(places))
    assert {row["epoch"] for row in rows} == {1, 2, 3}
    assert [row["phase"] for row in rows] == [1 if row["epoch"] == 1 else 2 for row in rows]
    assert all(row["loss"] > 0 and row["learning_rate"] > 0 for row in rows)


def test_a_run_begins_with_the_weights_of_the_same_fold_of_an_earlier_one(work):
    files = train_fold(work, "tuned", "train.phases=[{weights: 'run:first', epochs: 1, frozen_stages: 5}]")
    first, tuned = (load_file(work.fold(run, 0) / "model.safetensors") for run in ("first", "tuned"))
    changed = {name for name in first if not torch.equal(first[name], tuned[name])}
    assert changed == {name for name in first if "head" in name}
    assert files["oof.parquet"] != (work.fold("first", 0) / "oof.parquet").read_bytes()


def test_weights_that_may_have_seen_the_held_out_fold_are_refused(work, tmp_path):
    other = make_pixel_work(tmp_path)
    do(train, config("train.epochs=1"), other, run_name="first", folds=[0])
    slices = read_table(other.prepared / "slices.parquet")
    rewrite_slices(other, slices.assign(fold=(slices.fold + 1) % 2))
    with pytest.raises(ArtifactError, match=r"run:first cannot initialise fold 0.*may have seen labels"):
        train_fold(other, "tuned", "train.phases=[{weights: 'run:first', epochs: 1}]")
    with pytest.raises(ArtifactError, match="none"):
        train_fold(work, "tuned2", "train.phases=[{weights: 'run:none', epochs: 1}]")


def test_other_weights_behind_the_same_words_are_other_settings(work, tmp_path):
    other = make_pixel_work(tmp_path)
    words = "train.phases=[{weights: 'run:first', epochs: 1}]"
    do(train, config("train.epochs=1"), other, run_name="first", folds=[0])
    train_fold(other, "tuned", words)
    do(
        train,
        config("train.epochs=1", "seed=0", "train.learning_rate=0.001"),
        other,
        run_name="first",
        folds=[0],
        fresh=True,
    )
    with pytest.raises(ArtifactError, match="made from other settings"):
        train_fold(other, "tuned", words)


def test_a_last_phase_with_fewer_classes_and_an_unknown_class_are_refused(work):
    with pytest.raises(ConfigError, match="the last phase trains on all classes"):
        config("train.phases=[{classes: [any]}]")
    with pytest.raises(ConfigError, match='unknown class "anny". Did you mean "any"'):
        train_fold(work, "wrong", "train.phases=[{classes: [anny]}, {epochs: 1}]")
