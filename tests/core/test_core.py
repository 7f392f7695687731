"""Floor 0: settings, seeds, artifacts, tables, tasks on workers."""

import errno
import json
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.jobs import square_or_die

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, ConfigError, ContractError, DiskFullError, Stopped
from ichkit.core.progress import StopFlag, format_seconds, stop_on_signal
from ichkit.core.seeding import derive_seed, make_generator
from ichkit.core.tasks import find_task
from ichkit.engine.parallel import WorkerDied, run_tasks
from ichkit.work import artifacts
from ichkit.work.artifacts import (
    ArtifactWriter,
    digest_table,
    encode_table,
    find_damage,
    has_artifact,
    list_differences,
    read_manifest,
)
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.locks import hold
from ichkit.work.places import partial_of
from ichkit.work.schemas import check_predictions, is_sorted, make_predictions, sort_rows

TASK = find_task("hemorrhage")


def write_artifact(folder, text="hello"):
    writer = ArtifactWriter(folder, "test")
    writer.write_json("a.json", {"text": text})
    writer.write_array("b.npy", np.arange(3))
    return writer.commit(settings={"x": 1}, inputs={}, facts={})


def test_an_artifact_is_not_there_until_it_is_whole(tmp_path):
    folder = tmp_path / "made"
    writer = ArtifactWriter(folder, "test")
    writer.write_json("a.json", 1)
    assert not has_artifact(folder)
    with pytest.raises(ArtifactError, match=r"made: unfinished. Run `ichkit export` first"):
        read_manifest(folder)
    writer.commit(settings={}, inputs={}, facts={})
    assert has_artifact(folder)
    assert not partial_of(folder).exists()
    assert find_damage(folder, read_manifest(folder)) == []


def test_an_older_artifact_is_there_until_the_new_one_is(tmp_path):
    folder = tmp_path / "made"
    write_artifact(folder, "first")
    writer = ArtifactWriter(folder, "test")
    writer.write_json("a.json", {"text": "second"})
    assert json.loads((folder / "a.json").read_text())["text"] == "first"
    writer.commit(settings={}, inputs={}, facts={})
    assert json.loads((folder / "a.json").read_text())["text"] == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_kill_between_the_renames_loses_neither_artifact(tmp_path, step, monkeypatch):
    folder = tmp_path / "made"
    write_artifact(folder, "first")
    renames, original = [], type(folder).rename

    def rename(self, target):
        if len(renames) == step:
            raise KeyboardInterrupt
        renames.append(target)
        return original(self, target)

    monkeypatch.setattr(type(folder), "rename", rename)
    if step < 2:
        with pytest.raises(KeyboardInterrupt):
            write_artifact(folder, "second")
    else:
        write_artifact(folder, "second")
    monkeypatch.undo()
    with hold(folder):
        pass
    assert json.loads((folder / "a.json").read_text())["text"] == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_every_kind_of_damage_is_named(tmp_path):
    folder = tmp_path / "made"
    manifest = write_artifact(folder)
    (folder / "a.json").write_text('{\n  "text": "hellO"\n}\n')
    (folder / "b.npy").unlink()
    damage = find_damage(folder, manifest)
    assert len(damage) == 2
    assert damage[0].endswith("a.json: changed since it was written (SHA-256 differs)")
    assert damage[1].endswith("b.npy: missing")


def test_a_full_disk_is_said_with_what_to_do_and_leaves_no_half_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"is full .*MB free\). Finished work stays valid. Free some space"):
        artifacts.write_bytes_atomically(path, b"new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_the_same_table_gives_the_same_bytes_and_another_order_another_digest():
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    assert encode_table(frame, ".parquet") == encode_table(frame.copy(), ".parquet")
    assert digest_table(frame) != digest_table(frame.iloc[::-1])
    assert digest_table(frame) != digest_table(frame.rename(columns={"a": "c"}))


def test_differences_are_listed_by_their_place():
    old = {"train": {"epochs": 20, "cutmix": {"alpha": 1.0}}, "seed": 0}
    new = {"train": {"epochs": 3, "cutmix": {"alpha": 1.0}}, "seed": 0, "extra": True}
    assert list_differences(old, new) == ["train.epochs: 20, now 3", "extra: None, now True"]


def test_seeds_differ_by_place_and_not_by_call():
    places = [("a", 0, 1), ("a", 1, 0), ("b", 0, 1), ("a", 0), ("a", "0", "1")]
    seeds = [derive_seed(0, *place) for place in places]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [derive_seed(0, *place) for place in places]
    assert derive_seed(1, "a") != derive_seed(0, "a")
    assert make_generator(0, "a").integers(1 << 60) == make_generator(0, "a").integers(1 << 60)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "--set train.epoch: unknown key, did you mean train.epochs?"),
        ("trian.x=1", "--set trian.x: unknown key, did you mean train"),
        (
            "train.cutmix.probability=2",
            "train.cutmix.probability: Input should be less than or equal to 1, found 2",
        ),
        ("train.block_size=6", "--set train.block_size: must be odd, so that there is a middle slice, found 6"),
        ("task=strokes", 'unknown task "strokes". Choices: hemorrhage'),
        ("epochs", 'expected section.key=value, found "epochs"'),
    ],
)
def test_a_wrong_override_says_what_is_right(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config("default", (override,))
    assert message in str(caught.value)


def test_a_wrong_config_name_lists_the_choices_and_a_circle_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='"defualt" is neither a shipped config nor a file. Did you mean "default"'):
        load_config("defualt")
    path = tmp_path / "a.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(ConfigError, match="circular `extends`"):
        load_config(str(path))


def test_a_config_extends_another_and_runtime_choices_are_no_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: demo\ntrain:\n  epochs: 2\n")
    mine, demo = load_config(str(path)), load_config("demo")
    assert mine.train == demo.train.model_copy(update={"epochs": 2})
    faster = load_config("demo", ("train.workers=3", "prepare.workers=2"))
    assert faster.train.settings() == demo.train.settings()
    assert faster.prepare.settings() == demo.prepare.settings()
    assert list_differences(demo.train.settings(), mine.train.settings()) == [f"epochs: {demo.train.epochs}, now 2"]


def some_slices():
    return pd.DataFrame(
        {"slice_id": ["c", "a", "b"], "study_id": ["s2", "s1", "s1"], "slice_index": [0, 1, 0], "fold": [1, 0, 0]}
    )


def test_predictions_are_sorted_clipped_and_float32():
    table = make_predictions(some_slices(), np.array([[0.0] * 6, [1.0] * 6, [0.5] * 6]), TASK)
    assert table["slice_id"].to_list() == ["b", "a", "c"]
    p = table[TASK.probability_columns]
    assert (p.dtypes == "float32").all()
    assert p.to_numpy(np.float64).min() >= 1e-6
    assert p.to_numpy(np.float64).max() <= 1 - 1e-6
    check_predictions(table, TASK, "here", some_slices())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="p_any"), "missing ['p_any']"),
        (lambda t: t.assign(p_any=np.float32(1)), "probabilities inside (0, 1)"),
        (lambda t: t.iloc[::-1], "sorted by study_id, then slice_index"),
        (lambda t: t.assign(slice_id="a"), "slice a has two rows"),
        (lambda t: t.iloc[:2], "expected exactly the 3 prepared slices, found 2 rows; 1 differ, e.g. c"),
        (lambda t: t.assign(fold=1), "slice b has fold 1, expected 0: it may be predicted by a model"),
    ],
)
def test_a_table_that_breaks_the_contract_is_refused(change, message):
    table = make_predictions(some_slices(), np.full((3, 6), 0.5), TASK)
    with pytest.raises(ContractError) as caught:
        check_predictions(change(table), TASK, "here", some_slices())
    assert str(caught.value).startswith("here: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["str", "object"])
def test_rows_are_sorted_exactly_if_sorting_them_changes_nothing(kind):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        table = pd.DataFrame({"study_id": rng.choice(["a", "B", "b1"], 3), "slice_index": rng.integers(2, size=3)})
        table = table.astype({"study_id": kind})
        by_pandas = table.sort_values(["study_id", "slice_index"], ignore_index=True)
        found.append(is_sorted(table))
        assert found[-1] == table.equals(by_pandas)
        pd.testing.assert_frame_equal(sort_rows(table.set_index(np.array([7, 8, 9]))), by_pandas)
    assert 0 < sum(found) < len(found)
    assert is_sorted(table.iloc[:0])
    assert not is_sorted(pd.DataFrame({"study_id": ["a", None], "slice_index": [0, 0]}, dtype="object"))


def test_a_probability_that_is_not_finite_is_refused():
    with pytest.raises(ContractError, match="c has a probability that is not finite"):
        make_predictions(some_slices(), np.array([[np.nan] * 6, [0.5] * 6, [0.5] * 6]), TASK)


def test_runs_and_stacks_are_listed_only_when_they_are_whole(tmp_path):
    work = WorkFolder(tmp_path)
    for fold in (0, 2):
        write_artifact(work.fold("a", fold))
    ArtifactWriter(work.fold("a", 1), "fold")
    ArtifactWriter(work.fold("b", 0), "fold")
    write_artifact(work.stacks / "a")
    ArtifactWriter(work.stacks / "c", "stack")
    assert take_inventory(work).finished_runs == {"a": [0, 2]}
    assert take_inventory(work).finished_stacks == ["a"]


def test_a_stop_signal_raises_a_flag_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped: all saved. Run the same command again"):
            stop.check("all saved")
    assert signal.getsignal(signal.SIGTERM) is before
    assert Stopped.exit_code == 75


def test_a_signal_in_an_inner_block_stops_the_outer_one_too():
    with stop_on_signal() as outer:
        with stop_on_signal() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner
        assert outer
    with stop_on_signal() as later:
        assert not later


def test_durations_are_said_as_people_say_them():
    assert [format_seconds(s) for s in (5, 89, 600, 9000)] == ["5 s", "89 s", "10 min", "2 h 30 min"]


def test_a_worker_that_dies_is_named_and_the_others_are_done():
    results = dict(run_tasks(square_or_die, [1, 2, 3, 4], workers=2))
    assert {i: r for i, r in results.items() if i != 2} == {0: 1, 1: 4, 3: 16}
    assert isinstance(results[2], WorkerDied)
    assert replace(results[2], reason="")


def test_a_stop_ends_the_workers_and_leaves_unfinished_tasks_without_a_result():
    stop, seconds = StopFlag(), [0.0, 30.0, 30.0]
    began, done = time.monotonic(), []
    for position, _ in run_tasks(time.sleep, seconds, workers=2, stop=stop):
        done.append(position)
        threading.Timer(0.5, stop.set).start()
    assert done == [0]
    assert time.monotonic() - began < 25
    assert dict(run_tasks(abs, [-1, -2], workers=2)) == {0: 1, 1: 2}  # in new ones


def test_tasks_whose_workers_a_signal_to_all_has_ended_do_not_begin_again():
    stop = StopFlag()
    stop.set()
    assert list(run_tasks(square_or_die, [3, 3, 3], workers=2, stop=stop)) == []


def test_a_reused_worker_resolves_paths_from_where_the_caller_is(tmp_path, monkeypatch):
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert dict(run_tasks(os.path.abspath, ["a", "b"], workers=2)) == {0: str(folder / "a"), 1: str(folder / "b")}


def test_workers_change_no_result():
    assert dict(run_tasks(abs, [-1, -2, -3], workers=1)) == dict(run_tasks(abs, [-1, -2, -3], workers=2))
