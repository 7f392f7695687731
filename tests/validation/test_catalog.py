"""What a work folder holds, as sources: their names, folds, tables and digests."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from support.simulated import TASK, add_external_set, make_stack, make_work, rewrite_tables

from ichkit.core.errors import ArtifactError, ConfigError, ContractError
from ichkit.validation.catalog import find_sources, load_out_of_fold, load_split, pick_source
from ichkit.work.artifacts import digest_file, encode_json, read_table
from ichkit.work.folder import WorkFolder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> WorkFolder:
    work = make_work(tmp_path_factory.mktemp("catalog") / "work", num_patients=12, runs=("a", "b"), cq500_studies=4)
    make_stack(work, runs=("a", "b"))
    shutil.rmtree(work.fold("b", 2))
    return work


@pytest.fixture
def work(made, tmp_path) -> WorkFolder:
    shutil.copytree(made.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


def test_runs_come_by_their_name_and_stacks_by_name_and_kind(work):
    sources = find_sources(work, TASK)
    assert [(source.name, source.kind, source.folds_label) for source in sources] == [
        ("a", "base", "0+1+2+3+4"),
        ("b", "base", "0+1+3+4"),
        ("a+b-blend", "blend", "0+1+2+3+4"),
        ("a+b-fusion", "fusion", "0+1+2+3+4"),
        ("a+b-lightgbm", "lightgbm", "0+1+2+3+4"),
    ]
    assert sources[2].runs == ("a", "b")
    assert [source.path for source in sources[:3]] == ["runs/a", "runs/b", "stacks/a+b/blend_oof.parquet"]
    assert {source.data for source in sources} == {"phantom"}


def test_the_digests_of_a_source_are_those_of_its_files(work):
    for source in find_sources(work, TASK):
        assert len(source.digests) == 3 * len(source.paths("oof"))
        for name, digest in source.digests.items():
            assert digest_file(work.root / name) == digest
        assert source.digests_of(work, "test").keys() == {
            path.relative_to(work.root).as_posix() for path in source.paths("test")
        }


def test_a_test_table_of_a_run_is_the_mean_of_its_folds_in_float64(work):
    run = pick_source(find_sources(work, TASK), "b")
    for split in ("test", "cq500"):
        mean = load_split(run, split)
        parts = [read_table(work.fold("b", k) / f"{split}.parquet") for k in (0, 1, 3, 4)]
        for column in TASK.probability_columns:
            expected = sum(part[column].to_numpy(np.float64) for part in parts) / 4
            np.testing.assert_allclose(mean[column].to_numpy(np.float64), expected, rtol=1e-7)
        assert mean.fold.unique().tolist() == [-1]
        assert mean.slice_id.equals(parts[0].slice_id)


def test_out_of_fold_rows_keep_their_own_fold_and_each_slice_comes_once(work):
    table = load_out_of_fold(pick_source(find_sources(work, TASK), "b"))
    slices = read_table(work.prepared / "slices.parquet").set_index("slice_id")
    assert table.slice_id.is_unique
    assert (slices.fold.loc[table.slice_id].to_numpy() == table.fold.to_numpy()).all()
    assert sorted(table.fold.unique()) == [0, 1, 3, 4]


def test_an_unknown_source_is_refused_with_the_nearest_name(work):
    with pytest.raises(ConfigError, match=r'"a\+b-blent" is not a finished run or stack. Did you mean "a\+b-blend"\?'):
        pick_source(find_sources(work, TASK), "a+b-blent")


def test_a_run_called_like_a_kind_of_a_stack_is_refused(work):
    shutil.copytree(work.runs / "a", work.runs / "a+b-fusion")
    with pytest.raises(ContractError, match=r'both named "a\+b-fusion"'):
        find_sources(work, TASK)


def test_folds_whose_test_tables_hold_other_slices_are_not_averaged(work):
    path = work.fold("a", 3) / "test.parquet"
    rewrite_tables(path.parent, {path.name: read_table(path).iloc[1:]})
    with pytest.raises(ContractError, match=r"fold3.*expected the same slices as .*fold0.*ichkit train"):
        load_split(pick_source(find_sources(work, TASK), "a"), "test")


def test_a_manifest_that_does_not_list_a_table_is_refused(work):
    path = work.fold("a", 0) / "manifest.json"
    manifest = pd.read_json(path, typ="series").to_dict()
    del manifest["files"]["cq500.parquet"]
    path.write_bytes(encode_json(manifest))
    with pytest.raises(ArtifactError, match=r"fold0: expected cq500.parquet, its manifest does not list it"):
        find_sources(work, TASK)


def test_a_run_of_another_task_is_refused_by_both_names(work):
    path = work.fold("a", 0) / "manifest.json"
    path.write_text(path.read_text().replace('"task": "hemorrhage"', '"task": "ischemia"'))
    with pytest.raises(ArtifactError, match=r'expected the task "hemorrhage", found "ischemia"'):
        find_sources(work, TASK)


def test_every_external_set_that_all_folds_have_is_a_part_of_a_source(work):
    add_external_set(work, "site")
    run, stack = (pick_source(find_sources(work, TASK), name) for name in ("a", "a+b-fusion"))
    assert list(run.tables) == list(stack.tables) == ["oof", "test", "cq500", "site"]
    assert [path.name for path in run.paths("site")] == ["site.parquet"] * 5
    assert [path.name for path in stack.paths("site")] == ["fusion_site.parquet"]
    assert len(run.digests) == 4 * 5
    assert load_split(run, "site").slice_id.str.removeprefix("site-").equals(load_split(run, "cq500").slice_id)
    assert run.paths("hospital") == ()


def test_a_set_that_one_fold_lacks_is_no_part_of_its_run(work):
    add_external_set(work, "site")
    path = work.fold("a", 3) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["site.parquet"]
    path.write_bytes(encode_json(manifest))
    sources = find_sources(work, TASK)
    assert list(pick_source(sources, "a").tables) == ["oof", "test", "cq500"]
    assert list(pick_source(sources, "b").tables) == ["oof", "test", "cq500", "site"]
