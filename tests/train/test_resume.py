import os
import signal
import subprocess
import sys
import time

import pytest
from support.commands import do
from support.pixels import make_pixel_work
from support.training import TINY, StopAtLook, config, read_files

from ichkit.core.errors import ArtifactError, Stopped
from ichkit.core.progress import StopFlag
from ichkit.engine.checkpoint import load_checkpoint
from ichkit.stages.train import fold as fold_stage
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask
from ichkit.work.places import partial_of

SAME = ("model.safetensors", "oof.parquet", "test.parquet", "cq500.parquet", "stacks_oof.npy")
EXTRA = ("train.epochs=3", "train.drop_rate=0.2")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Files of a fold trained without a stop."""
    work = make_pixel_work(tmp_path_factory.mktemp("straight"))
    do_fold(FoldTask(config(*EXTRA), work, "run", 0, trains=True), StopFlag())
    return read_files(work.fold("run", 0))


@pytest.mark.parametrize("looks", [(1,), (2, 3), (5, 1, 1), (17,)])
def test_a_fold_stopped_anywhere_ends_in_the_bytes_of_one_that_was_not(tmp_path, straight, looks):
    work = make_pixel_work(tmp_path)
    task = FoldTask(config(*EXTRA), work, "run", 0, trains=True)
    for number in looks:
        with pytest.raises(Stopped, match=r"saved.*Run the same command again to continue"):
            do_fold(task, StopAtLook(number))
        assert load_checkpoint(partial_of(task.folder) / "last.ckpt")
    do_fold(task, StopFlag())
    resumed = read_files(task.folder)
    assert {name: resumed[name] == straight[name] for name in SAME} == dict.fromkeys(SAME, True)
    assert set(resumed) == set(straight)


def test_a_stop_between_two_steps_keeps_the_step(tmp_path):
    work = make_pixel_work(tmp_path)
    task = FoldTask(config(*EXTRA), work, "run", 0, trains=True)
    with pytest.raises(Stopped, match="fold 0 is saved at epoch 1, step 1"):
        do_fold(task, StopAtLook(0))
    assert load_checkpoint(partial_of(task.folder) / "last.ckpt")["progress"]["step"] == 1


def test_unfinished_work_is_not_gone_on_with_under_other_settings(tmp_path):
    work = make_pixel_work(tmp_path)
    task = FoldTask(config(*EXTRA), work, "run", 0, trains=True)
    with pytest.raises(Stopped):
        do_fold(task, StopAtLook(0))
    with pytest.raises(
        ArtifactError, match=r"fold0\.partial: made from other settings.*train\.epochs: 3, now 2.*: this command with"
    ):
        do(train, config(), work, run_name="run", folds=[0])
    assert do(train, config(*EXTRA), work, run_name="run", folds=[0])[0].settings["train"]["epochs"] == 3


def test_death_during_the_save_goes_on_from_the_save_before(tmp_path, straight, monkeypatch):
    work = make_pixel_work(tmp_path)
    task = FoldTask(config(*EXTRA), work, "run", 0, trains=True)
    from ichkit.engine import loop

    real, saves = loop.save_checkpoint, []

    def die_at_the_second(path, state):
        saves.append(1)
        if len(saves) == 2:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        real(path, state)

    monkeypatch.setattr(loop, "save_checkpoint", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        do_fold(task, StopFlag())
    monkeypatch.undo()
    do_fold(task, StopFlag())
    resumed = read_files(task.folder)
    assert all(resumed[name] == straight[name] for name in SAME)
    assert set(resumed) == set(straight)


def test_a_stop_while_predicting_keeps_the_training(tmp_path, straight, monkeypatch):
    work = make_pixel_work(tmp_path)
    task = FoldTask(config(*EXTRA), work, "run", 0, trains=True)
    stop, real = StopFlag(), fold_stage._write_stacks

    def ask_for_a_stop(*arguments):
        real(*arguments)
        stop.set()

    monkeypatch.setattr(fold_stage, "_write_stacks", ask_for_a_stop)
    with pytest.raises(Stopped, match="the trained weights are saved"):
        do_fold(task, stop)
    monkeypatch.undo()
    assert load_checkpoint(partial_of(task.folder) / "last.ckpt")["progress"]["epoch"] == 3
    do_fold(task, StopFlag())
    resumed = read_files(task.folder)
    assert all(resumed[name] == straight[name] for name in SAME)


_CHILD = """
import sys
from pathlib import Path
from ichkit.core.config import load_config
from ichkit.core.errors import Stopped
from ichkit.work.folder import WorkFolder
from ichkit.engine import parallel
from ichkit.stages.train import run as train
train.count_cores = lambda: 2
try:
    config, work = load_config("default", tuple(sys.argv[2:])), WorkFolder(Path(sys.argv[1]))
    train.run(train.plan(config, work, train.TrainOptions("run")))
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_stops_every_fold_at_work_with_exit_75_and_all_saved(tmp_path):
    work = make_pixel_work(tmp_path, num_patients=16)
    command = [sys.executable, "-c", _CHILD, str(tmp_path), *TINY, "train.epochs=5000"]
    child = subprocess.Popen(command)
    checkpoints = [partial_of(work.fold("run", fold)) / "last.ckpt" for fold in (0, 1)]
    deadline = time.monotonic() + 180
    while not all(path.exists() for path in checkpoints) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(60) == 75
    assert all(load_checkpoint(path)["progress"]["epoch"] >= 1 for path in checkpoints)
