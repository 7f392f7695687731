"""`ichkit watch`: each study once, when it is complete, whatever arrives and however the last watch ended."""

import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from support.commands import call
from support.dicoms import make_dataset, write_series, write_slice
from support.models import make_model

from ichkit.core.progress import StopFlag
from ichkit.engine.parallel import run_tasks
from ichkit.stages.watch import entries, run
from ichkit.stages.watch.arrivals import Arrivals
from ichkit.work.locks import hold

FORK = multiprocessing.get_context("fork")
SMALL = ("--no-page", "--set", "prepare.workers=1")
NEEDS_DCMTK = pytest.mark.skipif(
    shutil.which("storescp") is None or shutil.which("storescu") is None,
    reason="needs storescp and storescu of dcmtk (Debian: dcmtk)",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture
def place(tmp_path, model):
    """A folder with the model and an empty `in`."""
    (tmp_path / "in").mkdir()
    (tmp_path / "model").symlink_to(model)
    return tmp_path


@pytest.fixture
def predicted(monkeypatch):
    """The number of files of each study that is predicted, in order."""
    counts, write = [], run.write_prediction

    def count(plan, *arguments):
        counts.append(len(plan.images))
        return write(plan, *arguments)

    monkeypatch.setattr(run, "write_prediction", count)
    return counts


def arrive(place, number, num_slices=3, **tags):
    """A study in a folder of its own, or more slices of it."""
    ids = {"study_uid": f"1.4.{number}", "series_uid": f"1.4.{number}.1", "patient_id": f"ANON {number}"}
    return write_series(place / "in" / f"s{number}", num_slices, **(ids | tags))


def words_of(place, settle=0):
    words = ["watch", place / "in", "--model", place / "model", "--out", place / "out", "--settle", settle]
    return [*words, "--poll", "0.01", "--work", place / "w", *SMALL]


def watch(place, *words, code=0, settle=0):
    return " ".join(call(*words_of(place, settle), *words, code=code).split())


def once(place, **options):
    return watch(place, "--once", **options)


def summary(place):
    return pd.read_csv(place / "out" / "watched.csv")


def test_a_study_has_the_outputs_of_predict_for_its_files_and_its_rows_in_the_summary(place):
    for number in (0, 1):
        arrive(place, number, 4 + number)
    said = once(place)
    assert "2 studies (2 predicted)" in said
    assert not re.search(r"ANON|1\.4\.|\d{4}-\d\d", said)
    table = summary(place)
    assert table["study_id"].tolist() == ["1.4.0", "1.4.1"]
    assert table["num_files"].tolist() == table["num_slices"].tolist() == [4, 5]
    for number, folder in enumerate(table["folder"]):
        alone = place / f"alone{number}"
        call("predict", place / "in" / f"s{number}", "--model", place / "model", "--out", alone, *SMALL)
        names = {path.name for path in alone.iterdir()}
        assert {path.name for path in (place / "out" / folder).iterdir()} == names | {"manifest.json"}
        for name in ("slices.csv", "studies.csv", "series_choice.csv", "predictions.json"):
            assert (place / "out" / folder / name).read_bytes() == (alone / name).read_bytes()
        studies = pd.read_csv(alone / "studies.csv")
        pd.testing.assert_frame_equal(table.loc[[number], studies.columns].reset_index(drop=True), studies)


def test_the_summary_is_ordered_by_study_and_the_predictions_by_arrival(place, predicted):
    for number in (2, 0, 3, 1):
        arrive(place, number, 3 + number)
        time.sleep(0.02)  # a file system's clock may tick at 100 Hz
    once(place)
    assert predicted == [5, 3, 6, 4]
    assert summary(place)["study_id"].tolist() == ["1.4.0", "1.4.1", "1.4.2", "1.4.3"]
    once(place)
    assert summary(place)["study_id"].tolist() == ["1.4.0", "1.4.1", "1.4.2", "1.4.3"]


def test_the_order_of_two_studies_does_not_depend_on_how_long_a_look_takes(place, predicted, monkeypatch):
    late = itertools.count(time.time(), 60)
    slow = SimpleNamespace(time=lambda: next(late), monotonic=time.monotonic)
    monkeypatch.setattr("ichkit.stages.watch.arrivals.time", slow)
    for number in (0, 1):
        arrive(place, number, 3 + number)
    once(place)
    assert predicted == [3, 4]


def test_a_study_is_predicted_again_when_files_arrive_and_not_when_they_go_or_come_twice(place, predicted):
    paths = arrive(place, 0)
    once(place)
    assert predicted == [3]
    once(place)
    shutil.copy(paths[0], place / "in" / "copy.dcm")
    os.utime(paths[1])
    once(place)
    paths[2].unlink()
    (place / "in" / "copy.dcm").unlink()
    once(place)
    assert predicted == [3]
    arrive(place, 0, 5)
    assert "predicted again: its files changed" in once(place)
    assert predicted == [3, 5]
    assert summary(place)["num_slices"].tolist() == [5]
    assert len(list((place / "out").glob("study-*"))) == 1
    shutil.rmtree(place / "in" / "s0")
    once(place)
    assert summary(place)["num_slices"].tolist() == [5]


def test_damaged_and_other_files_are_listed_with_the_reason_and_the_watch_goes_on(place):
    for path in arrive(place, 0):
        path.write_bytes(path.read_bytes()[:-50])
    arrive(place, 1)
    write_slice(place / "in" / "mr.dcm", Modality="MR", study_uid="1.5")
    (place / "in" / "notes.txt").write_text("hello")
    (place / "in" / "broken.zip").write_bytes(b"PK")
    said = once(place)
    assert "3 files of no CT study" in said
    table = summary(place).set_index("study_id")
    assert table["status"].to_dict() == {"1.4.0": "rejected", "1.4.1": "predicted"}
    assert table.loc["1.4.0", "reason"] == "3 truncated: the pixels end too early"
    assert pd.isna(table.loc["1.4.0", "p_any"])
    loose = pd.read_csv(place / "out" / "unassigned.csv")
    assert sorted(loose["reason"]) == ["not CT", "not DICOM", "zip cannot be read (BadZipFile)"]
    assert not loose["file"].str.contains("notes|mr|broken").any()
    assert "of no CT study" not in once(place)


def test_an_error_in_one_study_is_its_entry_and_the_next_start_tries_again(place, predicted, monkeypatch):
    arrive(place, 0)
    arrive(place, 1, 4)
    write = run.write_prediction

    def fail(plan, *arguments):
        if len(plan.images) == 3:
            raise ZeroDivisionError("secret")
        return write(plan, *arguments)

    monkeypatch.setattr(run, "write_prediction", fail)
    said = once(place)
    assert "2 studies (1 predicted, 1 failed)" in said
    assert "internal error (ZeroDivisionError)" in said
    assert "secret" not in said
    monkeypatch.setattr(run, "write_prediction", write)
    assert "2 studies (2 predicted)" in once(place)
    assert predicted == [4, 3]


def test_a_file_that_grows_is_waited_for(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("ichkit.stages.watch.arrivals.time.monotonic", lambda: now[0])
    whole = write_slice(tmp_path / "whole.dcm").read_bytes()
    (tmp_path / "in").mkdir()
    arrivals = Arrivals(tmp_path / "in", b"salt", run_tasks, StopFlag())
    assert arrivals.look() == []
    path = tmp_path / "in" / "a.dcm"
    for size in (10, len(whole) - 20, len(whole) - 10, len(whole)):
        path.write_bytes(whole[:size])
        now[0] += 5
        found = arrivals.look()
        assert [one.since for one in found] == ([] if size == 10 else [now[0]])
    assert arrivals.find_loose(now[0]).empty
    now[0] += 5
    (again,) = arrivals.look()
    assert again.since == 120
    assert again.is_unchanged()
    path.write_bytes(whole[:-1] + b"\x07")
    os.utime(path, (1, 1))
    assert not again.is_unchanged()


def test_what_is_not_complete_is_left_to_a_later_call(place, predicted):
    arrive(place, 0)
    assert "1 study not complete yet" in once(place, settle=3600)
    assert predicted == []
    assert summary(place).empty


def test_a_study_that_changes_while_it_is_read_is_not_recorded(place, monkeypatch):
    paths = arrive(place, 0)
    write = run.write_prediction

    def change(plan, *arguments):
        prediction = write(plan, *arguments)
        paths[0].unlink()
        return prediction

    monkeypatch.setattr(run, "write_prediction", change)
    assert "its files changed meanwhile" in once(place)
    assert summary(place).empty
    assert not list((place / "out").glob("study-*"))


KILLED = """
import os, sys
from ichkit.cli.main import main
from ichkit.stages.watch import run

where, words = sys.argv[1], sys.argv[2:]
die = lambda *_: os.kill(os.getpid(), 9)
work = getattr(run, where)
calls = []

def last(*arguments):
    calls.append(1)
    if len(calls) == 2:
        (work(*arguments) if where == "write_prediction" else None, die())
    return work(*arguments)

setattr(run, where, last)
main(words)
"""


@pytest.mark.parametrize("where", ["write_prediction", "write_summary", "commit"])
def test_a_kill_neither_repeats_nor_loses_a_study(place, predicted, where):
    for number in range(3):
        arrive(place, number, 3 + number)
    words = [str(word) for word in (*words_of(place), "--once")]
    killed = subprocess.run([sys.executable, "-c", KILLED, where, *words], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    # The first call of write_summary is at the start: the second study is not yet begun, the first is in its place.
    assert "3 studies (3 predicted)" in once(place)
    assert sorted(predicted) == [4, 5]  # what was being predicted comes last
    assert sorted(summary(place)["num_slices"]) == [3, 4, 5]
    assert not [path.name for path in (place / "out").iterdir() if path.name.startswith(".")]
    assert json.loads((place / "out" / "attempts.json").read_text()) == {}


def test_a_study_that_ends_the_process_again_and_again_is_left_out_and_comes_last(place, predicted):
    arrive(place, 0)
    arrive(place, 1, 4)
    once(place)
    folder = summary(place).set_index("study_id").loc["1.4.0", "folder"]
    shutil.rmtree(place / "out" / folder)
    attempts = entries.Attempts(place / "out")
    for _ in range(3):
        attempts.begin(folder)
    predicted.clear()
    arrive(place, 2, 5)
    said = once(place)
    assert predicted == [5]
    table = summary(place).set_index("study_id")
    assert said.index(table.loc["1.4.2", "folder"]) < said.index(folder)
    assert table.loc["1.4.0", "reason"] == "the process ended 3 times while it was predicted"


def test_a_signal_ends_the_watch_with_what_is_done_and_a_folder_that_goes_is_looked_for(place, monkeypatch):
    arrive(place, 0)
    pauses = []

    def pause(seconds, stop):
        pauses.append(seconds)
        if len(pauses) == 1:
            (place / "in").rename(place / "away")
        elif len(pauses) == 3:
            (place / "away").rename(place / "in")
            arrive(place, 1)
        elif len(pauses) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "_pause", pause)
    said = watch(place, code=75)
    assert said.count("the folder cannot be read") == 1
    assert "stopped: 2 studies (2 predicted) in" in said


def write_until(out, ready, is_awaited):
    with hold(out):
        ready.set()
        is_awaited.wait(120)


def test_a_second_watch_of_one_output_folder_waits(place, monkeypatch):
    arrive(place, 0)
    ready, is_awaited = FORK.Event(), FORK.Event()
    other = FORK.Process(target=write_until, args=(place / "out", ready, is_awaited))
    other.start()
    assert ready.wait(30)

    def wait(seconds):
        is_awaited.set()
        time.sleep(seconds)

    # However long the plan takes, the other one writes until it is waited for.
    monkeypatch.setattr("ichkit.work.locks.time", SimpleNamespace(sleep=wait))
    said = once(place)
    other.join()
    assert f"waiting for process {other.pid} on" in said
    assert "1 study (1 predicted)" in said


def test_the_output_folder_is_outside_the_watched_one_and_of_one_model(place):
    arrive(place, 0)
    for out in (place / "in" / "out", place):
        assert "expected an output folder outside" in once_into(place, out)
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("mine")
    assert "found other content" in once_into(place, place / "mine")
    once(place)
    assert "dicom: False" not in watch(place, "--once", "--accept-raw", code=2)
    assert "accept_raw: False, now True" in watch(place, "--once", "--accept-raw", code=2)
    assert "expected a folder at" in " ".join(call("watch", place / "no", "--model", place / "model", code=2).split())


def once_into(place, out):
    words = ("watch", place / "in", "--model", place / "model", "--out", out, "--once", *SMALL)
    return " ".join(call(*words, code=2).split())


def test_a_damaged_entry_is_predicted_again(place, predicted):
    arrive(place, 0)
    once(place)
    folder = summary(place)["folder"][0]
    (place / "out" / folder / "manifest.json").write_text("{")
    assert "The study is predicted again" in once(place)
    assert predicted == [3, 3]


def test_files_with_a_study_uid_each_that_make_one_head_are_one_study(place, predicted):
    for i in range(9):
        arrive(place, i, 1)
        path = next((place / "in" / f"s{i}").iterdir())
        tags = {"slice_uid": f"1.{i}", "series_uid": "1.7", "study_uid": f"1.4.{i}", "patient_id": "one"}
        path.unlink()
        write_slice(path, position=(0, 0, 5 * i), **tags)
    once(place)
    assert predicted == [9]
    assert len(summary(place)) == 1


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def send(port, paths):
    words = ["storescu", "-aec", "WATCH", "127.0.0.1", str(port), *map(str, paths)]
    for _ in range(50):
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError("storescp did not take the files")


@NEEDS_DCMTK
def test_what_a_storage_scp_of_dcmtk_receives_is_predicted(place, predicted):
    sent, port = place / "sent", free_port()
    sent.mkdir()
    pixels = np.full((8, 8), 1064, np.uint16)
    pixels[0, 0] = 24  # air
    for number, num_slices in ((0, 3), (1, 4)):
        for i in range(num_slices):
            uid = f"1.2.826.0.1.3680043.8.498.{number + 1}"
            tags = {"study_uid": uid, "series_uid": f"{uid}.1", "slice_uid": f"{uid}.1.{i + 1}"}
            dataset = make_dataset(pixels, position=(0, 0, 5 * i), **tags)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.save_as(sent / f"{number}-{i}.dcm", enforce_file_format=True)
    scp = subprocess.Popen(["storescp", "-od", str(place / "in"), str(port)], stderr=subprocess.DEVNULL)
    try:
        send(port, sorted(sent.glob("0-*")))
        once(place)
        assert predicted == [3]
        send(port, sorted(sent.glob("*")))  # the first study once more: same content
        once(place)
        assert predicted == [3, 4]
    finally:
        scp.terminate()
        scp.wait()
    assert summary(place)["status"].tolist() == ["predicted", "predicted"]
