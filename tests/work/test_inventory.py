"""The inventory of a work folder: every reader sees the same in it, and looking changes nothing."""

from pathlib import Path

import pytest
from support.simulated import TASK
from support.workfolders import write_fold, write_prepared, write_stack

from ichkit.core.errors import ArtifactError
from ichkit.stages.doctor import verify
from ichkit.stages.doctor.found_work import find_work
from ichkit.validation.catalog import find_sources
from ichkit.work.artifacts import ArtifactWriter
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.places import MARK, final_of, partial_of, set_aside_of


@pytest.fixture
def work(tmp_path):
    work = WorkFolder(tmp_path / "work")
    write_prepared(work)
    for run, fold in (("b", 2), ("b", 0), ("b", 10), ("a", 1)):
        write_fold(work, run, fold)
    write_stack(work, "b", [0, 2], name="b+")
    (work.runs / "c" / "fold0.partial").mkdir(parents=True)
    (work.stacks / "half.partial").mkdir()
    return work


def test_folds_ascend_by_number_and_what_was_begun_is_told_from_what_is_finished(work):
    found = take_inventory(work)
    assert found.finished_runs == {"a": [1], "b": [0, 2, 10]}
    assert {name: list(run) for name, run in found.runs.items()} == {"a": [1], "b": [0, 2, 10], "c": [0]}
    assert (found.runs["c"][0].is_begun, found.runs["c"][0].is_finished) == (True, False)
    assert (found.stacks["half"].is_begun, found.finished_stacks) == (True, ["b+"])
    assert not found.scores.is_finished
    assert [found.path_of(entry) for entry in found.finished][-2:] == ["runs/b/fold10", "stacks/b+"]


def test_what_is_derived_is_finished_and_verified_but_none_of_its_tables_is_an_input(work, tmp_path):
    for folder in (work.proof, work.tables):
        writer = ArtifactWriter(folder, folder.name)
        writer.write_bytes("a.parquet", b"x")
        writer.commit(settings={}, inputs={}, facts={})
    found = take_inventory(work)
    assert [found.path_of(entry) for entry in found.finished][-2:] == ["proof", "tables"]
    assert not {"proof/a.parquet", "tables/a.parquet"} & set(found.tables)
    (work.proof / "a.parquet").write_bytes(b"y")
    assert [line for line in verify.run(work, tmp_path) if "proof" in line]


def test_doctor_catalog_and_completion_see_the_same(work):
    found, seen = take_inventory(work), find_work(work, Path("submissions"))
    assert {name: list(run.folds) for name, run in seen.runs.items() if run.folds} == found.finished_runs
    assert list(seen.stacks) == found.finished_stacks
    assert found.source_names == ["a", "b", "b+-blend"] == [source.name for source in find_sources(work, TASK)]
    assert seen.runs["c"].unfinished == (0,)


def test_looking_changes_nothing_and_what_a_killed_writer_left_is_unfinished_for_every_reader(work):
    fold = work.fold("b", 2)
    set_aside_of(fold).mkdir()
    (set_aside_of(fold) / MARK).touch()
    fold.rename(set_aside_of(fold) / fold.name)
    before = {path: path.stat().st_mtime_ns for path in work.root.rglob("*")}
    entry = take_inventory(work).runs["b"][2]
    assert (entry.folder, entry.is_finished) == (fold, False)
    assert find_work(work, Path("submissions")).runs["b"].unfinished == (2,)
    assert [source.folds for source in find_sources(work, TASK)][:2] == [(1,), (0, 10)]
    assert not [line for line in verify.run(work, Path("submissions")) if "fold2" in line]
    assert {path: path.stat().st_mtime_ns for path in work.root.rglob("*")} == before


@pytest.mark.parametrize("place", ["runs/=b/fold0", "runs/b/fold3.old", "runs/b/folder", "stacks/b.old"])
def test_a_copy_made_by_hand_is_in_no_view(work, place):
    source = work.fold("b", 0) if place.startswith("runs") else work.stacks / "b+"
    before = take_inventory(work)
    (work.root / place).parent.mkdir(exist_ok=True)
    source.rename(work.root / place)
    write_fold(work, "b", 0) if place.startswith("runs") else write_stack(work, "b", [0, 2], name="b+")
    assert take_inventory(work) == before
    assert verify.run(work, Path("submissions")) == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"facts": 1}', "\0", None])
def test_damage_is_noted_once_and_raised_to_who_needs_the_manifest(work, content):
    path = work.fold("b", 2) / "manifest.json"
    good = path.read_text()
    path.write_text(good.replace('"facts": {', '"facts": [], "more": {') if content is None else content)
    entry = take_inventory(work).runs["b"][2]
    assert entry.is_finished
    assert entry.damage.startswith(f"{path}: not a manifest")
    with pytest.raises(ArtifactError, match="not a manifest"):
        _ = entry.manifest
    path.write_text(good)
    with pytest.raises(ArtifactError, match="not a manifest"):
        _ = entry.manifest


def test_a_name_beside_an_artifact_leads_to_it():
    folder = Path("runs/a/fold0")
    assert {final_of(path) for path in (folder, partial_of(folder), set_aside_of(folder))} == {folder}
    assert final_of(Path("runs/.hidden")) == Path("runs/.hidden")
