"""What goes wrong on the way to a store: kills, full disks, planted names, flipped bytes; finished work stays."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pydicom
import pytest
from click.testing import CliRunner
from support.commands import do, phantom_options
from support.jobs import count_studies

from ichkit.cli.main import main
from ichkit.core.errors import DiskFullError, Stopped
from ichkit.engine import parallel
from ichkit.engine.parallel import run_tasks
from ichkit.stages.prepare import run as prepare
from ichkit.work import artifacts
from ichkit.work.artifacts import find_damage, read_manifest
from ichkit.work.folder import WorkFolder
from ichkit.work.places import partial_of

NUM_STUDIES = 28  # of the session's phantom: 16 + 6 + 6


def contents(work):
    """Every file of a store but the manifest, which holds the time it was made."""
    root = work.prepared
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {name: (root / name).read_bytes() for name in names if name != "manifest.json"}


def start_prepare(root, work):
    words = ["prepare", "-c", "demo", "--rsna", root / "rsna", "--cq500", root / "cq500", "--work", work.root]
    words += ["--set", "prepare.num_folds=3", "--set", "prepare.size=null", "--set", "prepare.workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ichkit", *map(str, words)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[3])},
    )
    return process


def kill_all(process):
    with contextlib.suppress(ProcessLookupError):  # it may have finished before
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def num_records(work):
    return len(list((partial_of(work.prepared) / "records").glob("*.json")))


def check_going_on(work, phantom_root, tiny_config, prepared_once, monkeypatch):
    """The next call does what is left and no more, and leaves the bytes of an undisturbed store."""
    finished, done = num_records(work), count_studies(monkeypatch)
    is_whole = (work.prepared / "manifest.json").exists()
    do(prepare, tiny_config, work, phantom_options(phantom_root))
    monkeypatch.undo()
    assert len(done) == (0 if is_whole else NUM_STUDIES - finished)
    assert contents(work) == contents(prepared_once)


@pytest.mark.slow
def test_killed_in_the_middle_of_the_pixels_it_goes_on_and_leaves_the_same_bytes(
    prepared_once, phantom_root, tiny_config, tmp_path, monkeypatch
):
    work = WorkFolder(tmp_path)
    process = start_prepare(phantom_root, work)
    while process.poll() is None and num_records(work) < 5:
        time.sleep(0.002)
    kill_all(process)
    assert not work.prepared.exists()
    check_going_on(work, phantom_root, tiny_config, prepared_once, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment_it_goes_on_and_leaves_the_same_bytes(
    prepared_once, phantom_root, tiny_config, tmp_path, monkeypatch, seed
):
    work, rng = WorkFolder(tmp_path), random.Random(seed)
    for _ in range(2):
        process = start_prepare(phantom_root, work)
        while process.poll() is None and not partial_of(work.prepared).exists():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 3))
        kill_all(process)
    check_going_on(work, phantom_root, tiny_config, prepared_once, monkeypatch)


@pytest.mark.slow
def test_a_signal_to_the_process_group_stops_it_and_the_next_call_leaves_the_same_bytes(
    prepared_once, phantom_root, tiny_config, tmp_path, monkeypatch
):
    work = WorkFolder(tmp_path)
    process = start_prepare(phantom_root, work)
    while process.poll() is None and num_records(work) < 5:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 75
    check_going_on(work, phantom_root, tiny_config, prepared_once, monkeypatch)


@pytest.mark.parametrize(("function", "saved"), [("_read_table", "headers .* not saved"), ("store_study", "3 of 28")])
def test_workers_that_a_signal_ended_are_not_started_again(
    prepared_once, phantom_root, tiny_config, tmp_path, monkeypatch, function, saved
):
    def run_until_signal(given, tasks, *, stop, **how):
        """As `run_tasks` ends when `timeout` or a scheduler sends SIGTERM to all processes of the group."""
        for position, result in run_tasks(given, tasks, stop=stop, **how):
            if given.func.__name__ == function and position == min(3, len(tasks) - 1):
                os.kill(os.getpid(), signal.SIGTERM)
                while not stop:
                    time.sleep(0.01)
                return
            yield position, result

    work = WorkFolder(tmp_path)
    monkeypatch.setattr("ichkit.stages.prepare.run.run_tasks", run_until_signal)
    with pytest.raises(Stopped, match=saved):
        do(prepare, tiny_config, work, phantom_options(phantom_root))
    monkeypatch.undo()
    check_going_on(work, phantom_root, tiny_config, prepared_once, monkeypatch)


@pytest.mark.parametrize("room", [0, 3, 11])
def test_a_full_disk_leaves_finished_studies_valid_and_says_how_many_are_missing(
    prepared_once, phantom_root, tiny_config, tmp_path, monkeypatch, room
):
    work, written, write = WorkFolder(tmp_path), [], artifacts.write_bytes_atomically

    def write_until_full(path, data):
        if path.suffix == ".b2nd":
            if len(written) == room:
                raise artifacts.disk_full(path, OSError(errno.ENOSPC, "No space left on device"))
            written.append(path)
        return write(path, data)

    monkeypatch.setattr("ichkit.imaging.store.write_bytes_atomically", write_until_full)
    about = r", about 0\.\d\d GB" if room else ""
    expected = f"is full .*Free some space.*{room} of 28 studies are finished, {28 - room} are missing{about}"
    with pytest.raises(DiskFullError, match=expected):
        do(prepare, tiny_config, work, phantom_options(phantom_root))
    monkeypatch.undo()
    check_going_on(work, phantom_root, tiny_config, prepared_once, monkeypatch)


def test_a_real_enospc_removes_the_half_written_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(DiskFullError, match="is full"):
        artifacts.write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["table.csv"]


def test_a_flipped_byte_in_any_file_of_the_store_is_found(prepared_work):
    manifest = read_manifest(prepared_work.prepared)
    assert find_damage(prepared_work.prepared, manifest) == []
    held = {path.relative_to(prepared_work.prepared).as_posix() for path in prepared_work.prepared.rglob("*.*")}
    assert set(manifest.files) == held - {"manifest.json"}
    for name in manifest.files:
        path = prepared_work.prepared / name
        whole = path.read_bytes()
        if not whole:
            continue
        damaged = bytearray(whole)
        damaged[random.Random(name).randrange(len(whole))] ^= 1 << random.Random(name).randrange(8)
        path.write_bytes(damaged)
        assert find_damage(prepared_work.prepared, manifest) == [
            f"{path}: changed since it was written (SHA-256 differs)"
        ]
        path.write_bytes(whole)


PLANTED = ("PLANTEDNAME", "19770707", "PLANTED CLINIC", "PLANTEDACCESSION", "PLANTEDWORDS")


@pytest.mark.filterwarnings("ignore:.*value.*:UserWarning")
def test_planted_names_dates_and_institutions_reach_no_file_and_no_message(phantom_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_root, root)
    for path in root.rglob("*.dcm"):
        with pydicom.config.disable_value_validation():
            dataset = pydicom.dcmread(path)
            dataset.PatientName, dataset.PatientBirthDate, dataset.StudyDate = PLANTED[0] + "^A", PLANTED[1], PLANTED[1]
            dataset.InstitutionName, dataset.AccessionNumber = PLANTED[2], PLANTED[3]
            dataset.SeriesDescription = f"{PLANTED[4]} of {PLANTED[0]}"
            dataset.save_as(path)
    work = tmp_path / "work"
    words = ["prepare", "-c", "demo", "--rsna", root / "rsna", "--cq500", root / "cq500", "--work", work, "--debug"]
    result = CliRunner().invoke(main, [str(word) for word in [*words, "--set", "prepare.workers=1"]])
    assert result.exit_code == 0, result.output
    written = {path: path.read_bytes() for path in work.rglob("*") if path.is_file() and path.suffix != ".b2nd"}
    assert len(written) > 10
    for path, data in written.items():
        assert not [word for word in PLANTED if word.lower().encode() in data.lower()], path
    assert not [word for word in PLANTED if word.lower() in result.output.lower()]
    index = json.dumps(decode_table(work / "prepared" / "index_cq500.parquet"))
    assert str(tmp_path) not in index  # nor does it say where the data lay


def decode_table(path):
    import pandas as pd

    return pd.read_parquet(path).astype("str").to_numpy().tolist()


def test_fewer_workers_are_started_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(parallel, "count_cores", lambda: 16)
    monkeypatch.setattr(parallel, "free_memory_bytes", lambda: 10 * 1024**3)
    assert parallel.count_workers(None, 1024**3) == 10
    assert parallel.count_workers(None, 1024**2) == 16
    assert parallel.count_workers(None, 100 * 1024**3) == 1
    assert parallel.count_workers(3, 100 * 1024**3) == 3  # who asks knows


def test_free_memory_is_at_most_what_the_cgroup_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "CGROUP", tmp_path)
    whole = parallel.free_memory_bytes()
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert parallel.free_memory_bytes() == 2_000_000 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert parallel.free_memory_bytes() == pytest.approx(whole, rel=0.2)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("5000000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1000000\n")
    assert parallel.free_memory_bytes() == 4_000_000


def test_cores_are_at_most_what_the_container_may_use(monkeypatch):
    assert parallel.count_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr("joblib.externals.loky.backend.context._cpu_count_cgroup", lambda _count: 1)
    assert parallel.count_cores() == 1


def test_what_is_needed_is_said_before_it_starts(phantom_root, tmp_path):
    words = ["prepare", "-c", "demo", "--rsna", phantom_root / "rsna", "--work", tmp_path, "--set", "prepare.workers=1"]
    result = CliRunner().invoke(main, list(map(str, words)))
    first = [line for line in result.output.splitlines() if "continuing without" not in line][:2]
    assert "GB free" in first[0]
    assert "on 1 process, if the disk is fast enough" in first[1]
