"""Loggers: the same weights with and without, the same curves after a stop, and nothing private."""

import getpass
import importlib
import importlib.util
import json
import logging
import os
import platform
import socket
import sqlite3
import struct
import warnings
from pathlib import Path

import pandas as pd
import pytest
from support.commands import call, do
from support.pixels import make_pixel_work
from support.training import StopAtLook, config, read_files

from ichkit.core.errors import ConfigError, Stopped
from ichkit.core.progress import StopFlag
from ichkit.core.progress import logger as log
from ichkit.stages.scores import evaluate
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask
from ichkit.tracking.loggers import LOGGERS, LoggerRow
from ichkit.tracking.session import Session, describe
from ichkit.work.folder import WorkFolder

SAME = ("model.safetensors", "oof.parquet", "test.parquet", "cq500.parquet", "stacks_oof.npy")
EVERY_STEP = ("train.log_every=1", "train.curve=heldout")


@pytest.fixture(autouse=True)
def _at_home(monkeypatch, tmp_path):
    """No server, no caches of the user, no settings of the environment."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "_MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))


def require(name):
    """Skips without the packages of a logger; imports them, whose deprecation warnings are not ours."""
    for package in LOGGERS[name].packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: {LOGGERS[name].install}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(package)


def read_tensorboard(work, name):
    """Tag to [(step, value)], in the order of the files."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted((work.tracking / "tensorboard" / name).iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def read_mlflow(work, name):
    rows = sqlite3.connect(work.tracking / "mlflow" / "mlflow.db").execute(
        "select key, step, value from metrics join runs using (run_uuid) where name = ? order by timestamp, step",
        (name,),
    )
    found = {}
    for key, step, value in rows:
        found.setdefault(key, []).append((step, value))
    return found


def read_leveldb_log(data):
    """The records of a log of LevelDB, in which W&B stores: blocks of 32 KiB, a record in one or more pieces."""
    whole, at = b"", 7  # after W&B's own header
    while at + 7 <= len(data):
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if kind:
            whole += data[at + 7 : at + 7 + size]
            if kind in (1, 4):  # all of a record, or its last piece
                yield whole
                whole = b""
        at += 7 + size
        left = -at % 32768
        at += left if left < 7 else 0


def read_wandb(work, name):
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted((work.tracking / "wandb").rglob("*.wandb")):
        if path.parent.is_symlink():
            continue
        rows, names = [], set()
        for record in map(Record.FromString, read_leveldb_log(path.read_bytes())):
            if record.HasField("run"):
                names.add(record.run.display_name)
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        for row in rows if name in names else ():
            axis = next(axis for axis in ("step", "epoch", "version") if axis in row)
            for key, value in row.items():
                if key.startswith(f"{axis}/") or axis == "version":
                    found.setdefault(key, []).append((row[axis], value))
    return found


READERS = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}


def train_fold(root, name, looks=()):
    work = make_pixel_work(root)
    task = FoldTask(config(*EVERY_STEP, f"tracking.loggers={name}"), work, "run", 0, trains=True)
    for number in looks:
        with pytest.raises(Stopped):
            do_fold(task, StopAtLook(number))
    do_fold(task, StopFlag())
    return work


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Files of a fold trained without any logger."""
    work = make_pixel_work(tmp_path_factory.mktemp("without"))
    do_fold(FoldTask(config(*EVERY_STEP), work, "run", 0, trains=True), StopFlag())
    return read_files(work.fold("run", 0))


def test_every_row_has_a_reader_here():
    assert set(READERS) == set(LOGGERS)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_has_the_curves_of_the_files_and_changes_no_byte_of_a_run_that_was_stopped_twice(
    tmp_path, without, name
):
    require(name)
    work = train_fold(tmp_path, name, looks=(0, 5))
    files = read_files(work.fold("run", 0))
    assert {file: files[file] == without[file] for file in SAME} == dict.fromkeys(SAME, True)
    found = READERS[name](work, "run/fold0")
    steps = [json.loads(line) for line in files["steps.jsonl"].decode().splitlines()]
    assert [step for step, _ in found["step/loss"]] == list(range(1, len(steps) + 1))
    assert [value for _, value in found["step/loss"]] == pytest.approx([row["loss"] for row in steps], rel=1e-6)
    history = pd.read_csv(work.fold("run", 0) / "history.csv")
    assert [step for step, _ in found["epoch/loss"]] == history["epoch"].tolist()
    assert [value for _, value in found["epoch/loss"]] == pytest.approx(history["loss"].tolist(), rel=1e-6)
    # The scores, and once more after nothing has changed.
    for _ in range(2):
        do(evaluate, config("evaluate.num_draws=20", f"tracking.loggers={name}"), work)
    loss = READERS[name](work, "run/scores")["cv_weighted_log_loss"]
    scores = pd.read_parquet(work.scores / "scores.parquet")
    pooled = scores[(scores.metric == "weighted_log_loss") & (scores.split == "train") & (scores.fold == -1)]
    assert loss == [(1, pytest.approx(pooled[pooled.subgroup == "all"]["value"].iloc[0], rel=1e-6))]
    shown = pd.read_csv(work.fold("run", 0) / "heldout_curve_for_display_only.csv")["weighted_log_loss"]
    curve = found["epoch/heldout_for_display_weighted_log_loss"]
    assert [value for _, value in curve] == pytest.approx(shown.tolist(), rel=1e-6)


@pytest.mark.parametrize("name", LOGGERS)
def test_what_a_logger_stores_names_no_person_host_path_or_patient(tmp_path, name, monkeypatch):
    require(name)
    # Names that no random bytes spell; a real host may be called "vm".
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host")
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    monkeypatch.setenv("LOGNAME", "secret-person")
    work = train_fold(tmp_path / "secret-place", name)
    stored = [path for path in (work.tracking / name).rglob("*") if path.is_file() and path.suffix != ".log"]
    held = b"".join(path.read_bytes() for path in stored) + "".join(path.name for path in stored).encode()
    slices = pd.read_parquet(work.prepared / "slices.parquet")
    private = {"secret-place", "secret-host", getpass.getuser(), str(Path.cwd())}
    private |= {*slices["patient_id"], *slices["study_id"]}
    assert [word for word in private if word.encode() in held] == []
    assert b"test_byobnet" in held  # the settings are


def test_a_training_says_where_its_log_lies(tmp_path, caplog):
    require("tensorboard")
    work = make_pixel_work(tmp_path / "work")
    with caplog.at_level(logging.INFO, logger=log.name):
        do(train, config("train.epochs=1", "tracking.loggers=[tensorboard]"), work, run_name="run", folds=[0])
    assert f"tensorboard: Event files in {work.root}/tracking/tensorboard." in caplog.text
    assert (work.tracking / "tensorboard" / "run" / "fold0").is_dir()


def test_another_training_of_the_same_fold_is_another_experiment(tmp_path):
    require("tensorboard")
    work = train_fold(tmp_path, "tensorboard")
    do(train, config(*EVERY_STEP, "tracking.loggers=tensorboard"), work, run_name="run", folds=[0], fresh=True)
    first, second = (read_tensorboard(work, name) for name in ("run/fold0", "run/fold0-2"))
    assert first["step/loss"] == second["step/loss"]


def test_steps_that_a_killed_run_repeats_are_stored_once_and_other_settings_begin_another_experiment(tmp_path):
    require("tensorboard")
    work, settings = WorkFolder(tmp_path), config("tracking.loggers=tensorboard").tracking
    for steps in ((1, 2, 3), (2, 3, 4)):
        with Session(settings, work, "run/fold0", "same", {}) as session:
            for step in steps:
                session.log_step(step, {"step": step, "loss": 1 / step, "gpu_gb": float("nan")})
    assert [step for step, _ in read_tensorboard(work, "run/fold0")["step/loss"]] == [1, 2, 3, 4]
    assert set(read_tensorboard(work, "run/fold0")) == {"step/loss"}
    with Session(settings, work, "run/fold0", "other", {}) as session:
        session.log_step(1, {"loss": 0.5})
    assert read_tensorboard(work, "run/fold0-2") == {"step/loss": [(1, 0.5)]}


class Broken:
    """Opens, and fails at the first value."""

    token = ""

    def __init__(self, experiment):
        self.calls = []

    def log(self, values, axis, at):
        raise RuntimeError("the server is gone")

    def close(self, *, is_finished):
        raise AssertionError("a logger that failed is not called again")


def refuse(experiment):
    raise OSError("no such server")


@pytest.mark.parametrize(("opened", "message"), [(Broken, "the server is gone"), (refuse, "no such server")])
def test_a_logger_that_fails_is_named_once_and_stops_nothing(tmp_path, without, monkeypatch, caplog, opened, message):
    row = LoggerRow("broken", opened, (), "", "fails", "this test")
    monkeypatch.setitem(LOGGERS, "broken", row)
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level(logging.WARNING, log.name):
        work = train_fold(tmp_path, "broken")
    assert [record.getMessage() for record in caplog.records if "broken" in record.getMessage()] == [
        record.getMessage() for record in caplog.records if message in record.getMessage()
    ]
    # A record is captured by two handlers where an earlier test has run a command.
    assert len({id(record) for record in caplog.records if message in record.getMessage()}) == 1
    files = read_files(work.fold("run", 0))
    assert {file: files[file] == without[file] for file in SAME} == dict.fromkeys(SAME, True)


def test_a_logger_may_use_random_numbers(tmp_path, monkeypatch):
    import random

    import numpy as np
    import torch

    class Rolling(Broken):
        def log(self, values, axis, at):
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(1)

        def close(self, *, is_finished):
            pass

    monkeypatch.setitem(LOGGERS, "rolling", LoggerRow("rolling", Rolling, (), "", "draws", "this test"))
    settings = config("tracking.loggers=rolling").tracking
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    with Session(settings, WorkFolder(tmp_path), "run/fold0", "", {}) as session:
        session.log_step(1, {"loss": 1.0})
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002


def test_a_missing_package_or_an_unknown_logger_is_refused_before_the_work(tmp_path, monkeypatch):
    work = make_pixel_work(tmp_path)
    row = LoggerRow("absent", Broken, ("no_such_package",), "pip install 'ichkit[absent]'", "", "")
    monkeypatch.setitem(LOGGERS, "absent", row)
    words = ["train", "--fold", "0", "--work", work.root, "--set", "train.backbone=test_byobnet"]
    printed = call(*words, "--set", "tracking.loggers=absent", code=2)
    assert "absent needs no_such_package, not installed. Run pip install 'ichkit[absent]'" in printed
    assert 'Did you mean "mlflow"' in call(*words, "--set", "tracking.loggers=[mlflw]", code=2)
    assert not work.runs.exists()


def test_settings_are_stored_flat_and_without_paths():
    tree = {"phases": [{"epochs": 1}, {"epochs": 2}], "windows": [[40, 80]], "template": "C:\\scans\\a.nii"}
    assert describe({"train": tree}) == {
        "train.phases.0.epochs": 1,
        "train.phases.1.epochs": 2,
        "train.windows": "[[40, 80]]",
        "train.template": "(path)",
    }


@pytest.mark.parametrize("word", ["../up", "", "a b"])
def test_the_name_of_a_project_is_a_name(word):
    with pytest.raises(ConfigError, match="project"):
        config(f"tracking.project='{word}'")
