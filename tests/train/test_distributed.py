"""Two processes on a CPU that train one network together, as `torchrun` starts them."""

import json
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.pixels import make_pixel_work
from support.ranks import finish, start
from support.training import config, read_files

from ichkit.core.errors import ConfigError
from ichkit.engine.ranks import Ranks
from ichkit.engine.sampling import CENTRES
from ichkit.models.context import CONTEXTS
from ichkit.models.pooling import POOLS
from ichkit.stages.train import run as train
from ichkit.work.artifacts import read_manifest
from ichkit.work.places import partial_of

EXACT = (
    "train.backbone=test_convnext",  # no batch statistics, which differ between halves of a batch
    "train.precision=64",
    "train.cutmix.probability=0",
    "train.batch_blocks=4",
    "train.epochs=7",
    "train.log_every=1",
)


def losses_of(work):
    lines = (work.fold("run", 0) / "steps.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


def train_alone_and_together(tmp_path, changes):
    """Work folders of one process and of two, and what each of the two printed."""
    alone, together = make_pixel_work(tmp_path / "alone"), make_pixel_work(tmp_path / "together")
    do(train, config(*changes), alone, run_name="run", folds=[0])
    codes, told = finish(together, start(together, changes), seconds=120)
    assert codes == [0, 0], told
    return alone, together, told


STUDIES = ("train.sampling=studies", "train.context.width=16", "train.context.dropout=0")
READERS = {
    "blocks": (),
    "slices": ("train.sampling=slices",),
    "studies": ("train.sampling=studies",),
    "conv on blocks": ("train.context=conv", "train.context.width=16", "train.context.dropout=0"),
    "gru and attention": ("train.context=gru", "train.pool=attention", *STUDIES),
    **{f"{name} centres": (f"train.centres={name}",) for name in CENTRES if name != "uniform"},
    **{name: (f"train.context={name}", *STUDIES) for name in CONTEXTS if name not in ("none", "gru")},
    **{name: (f"train.pool={name}", *STUDIES) for name in POOLS if name not in ("none", "attention")},
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_two_processes_with_half_the_batch_each_give_the_losses_of_one(tmp_path, reader):
    alone, together, told = train_alone_and_together(tmp_path, (*EXACT, *READERS[reader]))
    expected = losses_of(alone)
    assert len(expected) >= 12
    np.testing.assert_allclose(losses_of(together), expected, atol=1e-5, rtol=0)
    assert np.abs(expected - expected[0]).max() > 1e-3
    assert set(read_files(together.fold("run", 0))) == set(read_files(alone.fold("run", 0)))
    assert "epoch 1 of 7" in told[0]
    assert "epoch 1 of 7" not in told[1]


@pytest.mark.slow
def test_two_processes_choose_the_epoch_that_one_chooses(tmp_path):
    changes = (*EXACT, "train.validation={share: 0.5, keep: best, patience: 2}", "train.learning_rate=0.03")
    alone, together, _ = train_alone_and_together(tmp_path, changes)
    ours, theirs = (pd.read_csv(work.fold("run", 0) / "history.csv") for work in (alone, together))
    assert ours.epoch.tolist() == theirs.epoch.tolist()
    np.testing.assert_allclose(theirs.validation_loss, ours.validation_loss, atol=1e-4)
    kept = {read_manifest(work.fold("run", 0)).facts["kept_epoch"] for work in (alone, together)}
    assert len(kept) == 1
    assert kept != {7}


@pytest.mark.slow
def test_a_stop_of_one_process_stops_both_and_the_step_is_kept(tmp_path):
    work = make_pixel_work(tmp_path / "work")
    processes = start(work, (*EXACT, "train.epochs=2000"))
    journal = partial_of(work.fold("run", 0)) / "steps.jsonl"
    deadline = time.monotonic() + 60
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(processes[1].pid, signal.SIGTERM)
    codes, told = finish(work, processes, seconds=60)
    assert codes == [75, 75], told
    assert (journal.parent / "last.ckpt").exists()


def test_several_folds_are_refused_where_processes_share_one(tmp_path, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"torchrun joins 2 processes on one fold, found folds 0, 1"):
        do(train, config(), make_pixel_work(tmp_path), run_name="run")


def test_the_place_among_processes_is_read_from_the_environment(monkeypatch):
    assert Ranks.of_environment() == Ranks()
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    ranks = Ranks.of_environment()
    assert (ranks.is_main, ranks.num_nodes) == (False, 2)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ConfigError, match="WORLD_SIZE=many"):
        Ranks.of_environment()
