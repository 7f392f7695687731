"""One writer at a time, readers who change nothing, and folders of other people that stay as they are."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.work.artifacts import ArtifactWriter, find_damage, has_artifact, read_bytes, read_manifest, read_whole
from ichkit.work.folder import WorkFolder, check_name
from ichkit.work.inventory import take_inventory
from ichkit.work.locks import hold, lock_path
from ichkit.work.places import MARK, discard, partial_of, set_aside_of, settle

FORK = multiprocessing.get_context("fork")
NUM_FILES = 4


def write(folder, text):
    """An artifact of several files with the same content."""
    writer = ArtifactWriter(folder, "test")
    for number in range(NUM_FILES):
        writer.write_json(f"{number}.json", text)
    return writer.commit(settings={"text": text}, inputs={}, facts={})


def tree(root):
    """Path to content of everything below a folder; None for a folder."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def run_all(*processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def keep_writing(folder, name, rounds):
    for number in range(rounds):
        write(folder, f"{name} {number}")


def read_texts(folder, manifest):
    """What every file says, each compared with its digest."""
    names = [f"{number}.json" for number in range(NUM_FILES)]
    return {json.loads(read_bytes(folder / name, manifest.sha256_of(name))) for name in names}


def keep_reading(folder, is_over):
    num_read = 0
    while not is_over.is_set():
        assert has_artifact(folder)
        texts = read_whole(folder, lambda manifest: read_texts(folder, manifest) | {manifest.settings["text"]})
        assert len(texts) == 1, f"torn: {texts}"
        num_read += 1
    assert num_read > 10


def test_four_readers_and_two_writers_never_meet_a_missing_or_a_torn_artifact(tmp_path):
    folder, is_over = tmp_path / "made", FORK.Event()
    write(folder, "first")
    readers = [FORK.Process(target=keep_reading, args=(folder, is_over)) for _ in range(4)]
    writers = [FORK.Process(target=keep_writing, args=(folder, name, 150)) for name in ("a", "b")]
    for process in readers:
        process.start()
    try:
        run_all(*writers)
    finally:
        is_over.set()
    for process in readers:
        process.join(60)
    assert [process.exitcode for process in readers] == [0] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]
    assert find_damage(folder, read_manifest(folder)) == []


def test_a_reader_changes_nothing_of_what_a_killed_writer_left(tmp_path):
    folder = tmp_path / "made"
    write(folder, "old")
    folder.rename(tmp_path / "kept")
    set_aside_of(folder).mkdir()
    (set_aside_of(folder) / MARK).touch()
    (tmp_path / "kept").rename(set_aside_of(folder) / "made")
    partial_of(folder).mkdir()
    (partial_of(folder) / MARK).touch()
    before = tree(tmp_path)
    assert not has_artifact(folder)
    with pytest.raises(ArtifactError, match="unfinished"):
        read_manifest(folder)
    assert tree(tmp_path) == before
    with hold(folder):  # the next writer puts the only whole one back
        assert read_manifest(folder).settings == {"text": "old"}


def test_folders_that_people_call_old_or_partial_are_left_as_they_are(tmp_path):
    folder = tmp_path / "made"
    for name in ("made.old", "made.partial", ".made.ichkit-old", ".made.ichkit-trash"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("precious")
    before = tree(tmp_path)
    assert not has_artifact(folder)
    with pytest.raises(ArtifactError, match=r"made\.partial: expected unfinished work of ichkit .* Rename it"):
        write(folder, "new")
    assert tree(tmp_path) == before
    (tmp_path / "made.partial").rename(tmp_path / "mine")
    write(folder, "new")
    assert tree(tmp_path).items() > {key: text for key, text in before.items() if "partial" not in key}.items()


def test_a_folder_without_a_manifest_is_neither_replaced_nor_discarded(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.tex").write_text("precious")
    with pytest.raises(ArtifactError, match="expected a folder that ichkit wrote"):
        write(tmp_path / "made", "new")
    with pytest.raises(ArtifactError, match="expected a folder that ichkit wrote"):
        discard(tmp_path / "made")
    assert (tmp_path / "made" / "thesis.tex").read_text() == "precious"


def wait_and_write(folder, name):
    logging.getLogger("ichkit").setLevel(logging.INFO)
    with hold(folder):
        if not has_artifact(folder):
            time.sleep(0.3)
            write(folder, name)


def test_a_second_writer_waits_and_finds_the_work_done(tmp_path):
    folder = tmp_path / "made"
    run_all(*(FORK.Process(target=wait_and_write, args=(folder, name)) for name in ("a", "b")))
    assert read_manifest(folder).settings["text"] in ("a", "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def hold_for_ever(folder):
    with hold(folder):
        (folder.parent / "held").touch()
        time.sleep(600)


def test_a_lock_says_who_holds_it_and_that_of_a_dead_owner_is_taken_over(tmp_path, caplog):
    folder = tmp_path / "made"
    owner = FORK.Process(target=hold_for_ever, args=(folder,))
    owner.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    found = json.loads(lock_path(folder).read_text())
    assert set(found) == {"process", "host", "since_utc"}
    assert found["process"] == owner.pid
    says = pytest.raises(ArtifactError, match=rf"made: process {owner.pid} on .*, since 20.*, is writing it")
    with says, hold(folder, waits=False):
        pass
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    assert lock_path(folder).exists()
    write(folder, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held", "made"]


def test_a_lock_may_be_entered_again_by_its_process_and_is_gone_after(tmp_path):
    folder = tmp_path / "deep" / "made"
    with hold(folder), hold(folder):
        assert lock_path(folder).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written_nothing_is_locked(tmp_path):
    tmp_path.chmod(0o500)
    with hold(tmp_path / "made"):
        assert not lock_path(tmp_path / "made").exists()


CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate")


def write_and_die(folder, point):
    """Writes, and is killed before the change of the file system with that number, counted from 1."""
    count = 0

    def watch(event, args):
        nonlocal count
        if event in CHANGES or (event == "open" and args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR)):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    write(folder, "new")


def test_a_kill_at_any_point_of_a_commit_loses_neither_artifact(tmp_path):
    texts = set()
    for point in range(1, 100):
        folder = tmp_path / str(point) / "made"
        write(folder, "old")
        process = FORK.Process(target=write_and_die, args=(folder, point))
        process.start()
        process.join()
        with hold(folder):
            settle(folder)
        manifest = read_manifest(folder)
        assert find_damage(folder, manifest) == []
        assert not [path for path in folder.parent.iterdir() if path.name not in ("made", "made.partial")]
        assert not (folder / MARK).exists()
        texts.add(manifest.settings["text"])
        if process.exitcode == 0:
            break
    assert point > 10
    assert texts == {"old", "new"}


@pytest.mark.parametrize(
    "name",
    ["../../../outside", "/abs", "a/b", ".", "..", "", " ", "a\nb", "demo.partial", "demo.old", "=cmd|calc", "-x", "é",
     "<script>", "x" * 300],
)  # fmt: skip
def test_a_name_that_cannot_be_a_folder_is_refused_wherever_it_becomes_one(name):
    work = WorkFolder(Path("work"))
    for use in (lambda: check_name(name), lambda: work.fold(name, 0), lambda: work.stack_folder(name)):
        with pytest.raises(ConfigError, match="expected a name of"):
            use()


def test_names_on_disk_that_ichkit_would_not_make_are_no_runs_and_no_stacks(tmp_path):
    work = WorkFolder(tmp_path)
    write(work.fold("demo", 0), "a")
    write(work.stack_folder("demo"), "a")
    for copy in (work.runs / "=demo" / "fold0", work.runs / "demo" / "fold1.old", work.stacks / "demo.old"):
        write(copy, "copy")
    assert take_inventory(work).finished_runs == {"demo": [0]}
    assert take_inventory(work).finished_stacks == ["demo"]
