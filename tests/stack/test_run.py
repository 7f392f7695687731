"""The stage `stack`: which runs and folds, what it refuses, what it writes, when it works again."""

import shutil

import numpy as np
import pandas as pd
import pytest
from support.coherent import count_incoherent
from support.commands import do
from support.simulated import TASK, add_external_set, flip_labels, make_work, rewrite_slices
from support.training import read_files

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, ConfigError, ContractError, FoldError, Stopped
from ichkit.core.logits import to_probabilities
from ichkit.core.progress import StopFlag
from ichkit.stacking import fold_models as models_module
from ichkit.stacking.fold_models import predict_fold_models, read_fold_models
from ichkit.stacking.inputs import choose_runs
from ichkit.stages.stack import run as stack
from ichkit.work.artifacts import ArtifactWriter, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.places import partial_of
from ichkit.work.schemas import KEY, check_predictions

QUICK = (
    "stack.fusion.epochs=2",
    "stack.fusion.num_seeds=1",
    "stack.fusion.weight_decay=[0.1]",
    "stack.fusion.channels=[8,8]",
    "stack.lightgbm.max_rounds=10",
    "stack.lightgbm.strengths=[strong,base]",
    "stack.num_inner=2",
)
KINDS = ("fusion", "lightgbm", "blend")


def quick_config(*more):
    return load_config("demo", (*QUICK, *more))


@pytest.fixture
def in_process(monkeypatch):
    """Fits run here, one after another, so that a test does not wait for processes; returns what was fitted."""
    fitted = []

    def run_tasks(function, tasks, **_):
        for position, task in enumerate(tasks):
            fitted.append(task.folder)
            yield position, function(task)

    monkeypatch.setattr(stack, "run_tasks", run_tasks)
    return fitted


def tables_of(work, name, split="oof"):
    return {kind: read_table(work.stacks / name / f"{kind}_{split}.parquet") for kind in KINDS}


def rewrite_table(folder, name, change):
    """Puts a changed table into a finished fold, manifest included."""
    old = read_manifest(folder)
    contents = {path: (folder / path).read_bytes() for path in old.files}
    table = change(read_table(folder / name))
    writer = ArtifactWriter(folder, "fold")
    for path, data in contents.items():
        writer.write_bytes(path, data)
    writer.write_table(name, table)
    writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


@pytest.mark.slow
def test_a_stack_of_two_runs_holds_every_table_in_worker_processes_that_end_alike(tmp_path, monkeypatch):
    work = make_work(tmp_path / "work", runs=("b", "a"), folds=(0, 2))
    manifest = do(stack, quick_config(), work)
    assert (manifest.facts["name"], manifest.facts["runs"], manifest.facts["folds"]) == ("a+b", ["a", "b"], [0, 2])
    slices = read_table(work.prepared / "slices.parquet")
    train = slices[slices.fold.isin([0, 2])]
    expected = {
        "oof": train[["slice_id", "fold"]],
        "test": slices.loc[slices.split == "test", ["slice_id"]].assign(fold=-1),
        "cq500": slices.loc[slices.dataset == "cq500", ["slice_id"]].assign(fold=-1),
    }
    written = {}
    for split, rows in expected.items():
        for kind, table in tables_of(work, "a+b", split).items():
            check_predictions(table, TASK, f"{kind}_{split}", rows)
            written[f"{kind}_{split}"] = table
    assert manifest.facts["num_slices"] == len(train)
    assert set(manifest.inputs) >= {"a/fold0/oof.parquet", "b/fold2/cq500.parquet", "prepared/labels"}
    assert not [name for name in manifest.files if name.endswith((".npy", "plan.json"))]
    # The same fits in this process, beside torch, end in the same bytes.
    monkeypatch.setattr(stack, "run_tasks", lambda function, tasks, **_: enumerate(map(function, tasks)))
    do(stack, quick_config(), work, name="again")
    for split in expected:
        for kind, table in tables_of(work, "again", split).items():
            pd.testing.assert_frame_equal(table, written[f"{kind}_{split}"], check_exact=True)


def test_boosters_are_fitted_before_torch_comes_into_the_workers(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1))
    do(stack, quick_config(), work)
    assert in_process == ["lightgbm/fold0", "lightgbm/fold1", "fusion/fold0", "fusion/fold1"]


def test_with_one_fold_its_patients_are_dealt_into_parts_and_keep_their_fold(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(3,), num_patients=60)
    manifest = do(stack, quick_config("stack.num_parts=3"), work)
    assert manifest.facts["chains"] == ["part0", "part1", "part2"]
    assert manifest.facts["folds"] == [3]
    slices = read_table(work.prepared / "slices.parquet")
    for table in tables_of(work, "base").values():
        check_predictions(table, TASK, "oof", slices.loc[slices.fold == 3, ["slice_id", "fold"]])
    fold_models = read_fold_models(work.stacks / "base").fold_models
    assert [fold_model.fold for fold_model in fold_models] == [3, 3, 3]


def test_test_and_cq500_are_the_mean_of_the_chains_and_come_from_the_files_alone(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1, 2))
    do(stack, quick_config(), work)
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.split == "test"].sample(frac=1, random_state=0)
    given = {"base": {fold: read_table(work.fold("base", fold) / "test.parquet").iloc[::-1] for fold in (0, 1, 2)}}
    for kind, table in predict_fold_models(work.stacks / "base", given, slices).items():
        # Rows in any order give the stored table, byte for byte.
        pd.testing.assert_frame_equal(table, tables_of(work, "base", "test")[kind], check_exact=True)
    ordered = slices.sort_values(KEY, ignore_index=True)
    single = [
        fold_model.predict(
            work.stacks / "base", models_module.make_rows([given["base"][fold_model.fold]], ordered, TASK)
        )
        for fold_model in read_fold_models(work.stacks / "base").fold_models
    ]
    for kind in KINDS:
        mean = np.mean([to_probabilities(logits[kind]) for logits in single], axis=0)
        stored = tables_of(work, "base", "test")[kind][TASK.probability_columns].to_numpy()
        np.testing.assert_allclose(stored, np.clip(mean, 1e-6, 1 - 1e-6), atol=2e-7)


def test_every_table_is_coherent_though_the_runs_are_not(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1, 2))
    do(stack, quick_config(), work)
    raw = read_table(work.fold("base", 0) / "oof.parquet")[TASK.probability_columns].to_numpy()
    assert count_incoherent(raw, TASK) > 0.1 * len(raw)
    for split in ("oof", "test", "cq500"):
        for kind, table in tables_of(work, "base", split).items():
            assert count_incoherent(table[TASK.probability_columns].to_numpy(), TASK) == 0, f"{kind}_{split}"


def test_a_study_is_predicted_the_same_with_and_without_the_others(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1))
    do(stack, quick_config(), work)
    slices = read_table(work.prepared / "slices.parquet")
    one = slices[slices.study_id == slices.study_id[slices.split == "test"].iloc[0]]
    given = {"base": {k: read_table(work.fold("base", k) / "test.parquet") for k in (0, 1)}}
    given["base"] = {k: table[table.study_id == one.study_id.iloc[0]] for k, table in given["base"].items()}
    for kind, table in predict_fold_models(work.stacks / "base", given, one).items():
        stored = tables_of(work, "base", "test")[kind]
        stored = stored[stored.study_id == one.study_id.iloc[0]]
        np.testing.assert_allclose(table[TASK.probability_columns], stored[TASK.probability_columns], atol=1e-6)


def test_descriptors_that_a_chain_needs_and_are_not_given_are_named(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1))
    do(stack, quick_config(), work)
    slices = read_table(work.prepared / "slices.parquet")
    given = {"base": {0: read_table(work.fold("base", 0) / "test.parquet")}}
    with pytest.raises(ContractError, match=r"descriptors of run base, fold 1, found \{'base': \[0\]\}"):
        predict_fold_models(work.stacks / "base", given, slices[slices.split == "test"])


def test_splits_without_slices_get_empty_tables(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1), test_studies=0, cq500_studies=0)
    do(stack, quick_config(), work)
    for split in ("test", "cq500"):
        for table in tables_of(work, "base", split).values():
            assert len(table) == 0
            check_predictions(table, TASK, split)


def test_a_second_run_does_nothing_and_changed_labels_or_settings_make_it_again(tmp_path, in_process, caplog):
    caplog.set_level("INFO", logger="ichkit")
    work = make_work(tmp_path / "work", folds=(0, 1))
    first = do(stack, quick_config(), work)
    in_process.clear()
    assert do(stack, quick_config(), work) == first
    assert in_process == []
    assert "stack base: up to date" in caplog.text
    flip_labels(work, 1)
    do(stack, quick_config(), work)
    assert "fitted again, because prepared/labels changed" in caplog.text
    do(stack, quick_config("stack.lightgbm.patience=7"), work)
    assert "fitted again, because stack changed" in caplog.text
    rewrite_table(work.fold("base", 1), "test.parquet", lambda table: table.assign(p_any=np.float32(0.5)))
    do(stack, quick_config("stack.lightgbm.patience=7"), work)
    assert "fitted again, because base/fold1/test.parquet changed" in caplog.text
    assert len(in_process) == 3 * 4


def test_another_number_of_threads_is_not_another_stack(tmp_path, in_process):
    work = make_work(tmp_path / "work", folds=(0, 1))
    first = do(stack, quick_config(), work)
    assert do(stack, quick_config("stack.lightgbm.num_threads=2"), work) == first


def test_a_stack_whose_fits_are_cut_off_by_a_stop_is_stopped_and_not_unfinished(tmp_path, monkeypatch):
    def run_tasks(function, tasks, *, stop, **_):
        yield 0, function(tasks[0])
        stop.set()

    monkeypatch.setattr(stack, "run_tasks", run_tasks)
    with pytest.raises(Stopped, match="1 of 4 fits are kept"):
        do(stack, quick_config(), make_work(tmp_path / "work", folds=(0, 1)))


def test_a_stopped_stack_goes_on_and_ends_like_one_that_never_stopped(tmp_path, in_process, monkeypatch):
    work = make_work(tmp_path / "work", folds=(0, 1))
    do(stack, quick_config(), work, name="whole")
    in_process.clear()
    checks = []

    def stop_at_the_second(self, saved):
        checks.append(saved)
        if len(checks) == 2:
            raise Stopped(f"stopped: {saved}.")

    with monkeypatch.context() as patched:
        patched.setattr(StopFlag, "check", stop_at_the_second)
        with pytest.raises(Stopped, match="2 of 4 fits are kept"):
            do(stack, quick_config(), work, name="halted")
    assert not (work.stacks / "halted").exists()
    stray = partial_of(work.stacks / "halted") / "lightgbm" / "fold0" / ".lightgbm.json.tmp"
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_text("half of a file, of a worker that was killed")
    do(stack, quick_config(), work, name="halted")
    assert in_process == ["lightgbm/fold0", "lightgbm/fold1", "fusion/fold0", "fusion/fold1"]
    files = [read_manifest(work.stacks / name).files for name in ("whole", "halted")]
    assert files[0] == files[1]
    assert not list(work.stacks.rglob("*.tmp"))


def test_what_was_left_by_other_settings_is_not_gone_on_with(tmp_path, in_process, monkeypatch):
    work = make_work(tmp_path / "work", folds=(0, 1))

    def stop(self, saved):
        raise Stopped(saved)

    with monkeypatch.context() as patched:
        patched.setattr(StopFlag, "check", stop)
        with pytest.raises(Stopped):
            do(stack, quick_config(), work)
    in_process.clear()
    do(stack, quick_config("seed=1"), work)
    assert len(in_process) == 4


def test_stack_before_train_names_the_command_to_run(tmp_path):
    with pytest.raises(ArtifactError, match=r"expected at least one finished fold.*Run `ichkit train` first"):
        do(stack, quick_config(), WorkFolder(tmp_path / "nothing"))
    work = make_work(tmp_path / "work", folds=())
    with pytest.raises(ArtifactError, match="Run `ichkit train` first"):
        do(stack, quick_config(), work)


def test_a_row_with_a_fold_that_is_not_its_own_is_refused(tmp_path):
    work = make_work(tmp_path / "work", folds=(0, 1))
    rewrite_table(work.fold("base", 0), "oof.parquet", lambda table: table.assign(fold=1))
    with pytest.raises(ContractError, match=r"base/fold0/oof.parquet: slice .* has fold 1, expected 0"):
        do(stack, quick_config(), work)
    assert not (work.stacks / "base").exists()


def test_rows_that_moved_to_another_fold_since_training_are_refused(tmp_path):
    work = make_work(tmp_path / "work", folds=(0, 1))
    first, second = (work.fold("base", fold) / "oof.parquet" for fold in (0, 1))
    swapped = read_table(first)
    rewrite_table(work.fold("base", 0), "oof.parquet", lambda _: read_table(second))
    rewrite_table(work.fold("base", 1), "oof.parquet", lambda _: swapped)
    with pytest.raises(ContractError, match="expected exactly the"):
        do(stack, quick_config(), work)


def test_a_test_table_of_another_fold_is_refused(tmp_path):
    work = make_work(tmp_path / "work", folds=(0, 1))
    rewrite_table(work.fold("base", 1), "test.parquet", lambda table: table.assign(fold=0))
    with pytest.raises(ContractError, match=r"base/fold1/test.parquet: slice .* has fold 0, expected 1"):
        do(stack, quick_config(), work)


def test_a_patient_in_two_folds_is_refused(tmp_path):
    work = make_work(tmp_path / "work", folds=(0, 1))
    slices = read_table(work.prepared / "slices.parquet")
    slices.loc[slices.index[(slices.fold == 0).fillna(False)][:1], "fold"] = 1
    rewrite_slices(work, slices)
    with pytest.raises(FoldError, match="has folds 0 and 1; a patient has one"):
        do(stack, quick_config(), work)


def test_too_few_patients_to_learn_from_are_said(tmp_path):
    work = make_work(tmp_path / "work", folds=(0,), num_patients=10)
    with pytest.raises(FoldError, match="at least 2 patients to fit each model on, found 1"):
        do(stack, quick_config(), work)


@pytest.mark.parametrize("name", ["../up", "a/b", " ", ".hidden", "x.partial", "é"])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path, name):
    work = make_work(tmp_path / "work", folds=(0, 1))
    with pytest.raises(ConfigError, match="expected a name of"):
        do(stack, quick_config(), work, name=name)


@pytest.mark.parametrize(
    ("finished", "requested", "expected"),
    [
        ({"a": [0, 1, 2], "b": [0, 1, 2]}, None, (("a", "b"), (0, 1, 2))),
        ({"b": [0, 1, 2], "a": [0, 1]}, None, (("b",), (0, 1, 2))),
        ({"c": [0, 1], "b": [1, 2], "a": [0], "d": [1, 2]}, None, (("b", "d"), (1, 2))),
        ({"a": [0]}, None, (("a",), (0,))),
        ({"a": [0, 1], "b": [1, 2]}, ["b", "a"], (("a", "b"), (1,))),
        ({"a": [0, 1], "b": [1, 2]}, ["b"], (("b",), (1, 2))),
    ],
)
def test_the_runs_and_folds_of_a_stack(finished, requested, expected):
    assert choose_runs(finished, [0, 1, 2], requested) == expected


def test_runs_that_share_no_fold_or_do_not_exist_are_refused():
    with pytest.raises(ArtifactError, match=r"share a fold, found a: 0; b: 1, 2\. Train the same folds"):
        choose_runs({"a": [0], "b": [1, 2]}, [0, 1, 2], ["a", "b"])
    with pytest.raises(ArtifactError, match=r'run "resnte" has no finished fold. Did you mean "resnet"'):
        choose_runs({"resnet": [0]}, [0], ["resnte"])


def test_runs_of_real_and_of_made_data_do_not_mix(tmp_path):
    work = make_work(tmp_path / "work", runs=("a",), folds=(0, 1))
    make_work(tmp_path / "other", runs=("b",), folds=(0, 1), data="rsna")
    (tmp_path / "other/runs/b").rename(tmp_path / "work/runs/b")
    with pytest.raises(ArtifactError, match="trained on the same data, found phantom, rsna"):
        do(stack, quick_config(), work)


def test_every_external_set_has_its_tables_and_a_run_that_lacks_one_is_refused(tmp_path, in_process):
    work = make_work(tmp_path / "work", runs=("base", "late"), num_folds=2)
    late = read_files(work.fold("late", 0))
    add_external_set(work, "site")
    manifest = do(stack, quick_config("stack.stackers=[lightgbm]"), work, runs=["base"])
    assert {"base/fold0/site.parquet", "prepared/site", "prepared/cq500"} <= manifest.inputs.keys()
    for kind in ("lightgbm", "blend"):
        site, cq500 = (read_table(work.stacks / "base" / f"{kind}_{name}.parquet") for name in ("site", "cq500"))
        assert site.slice_id.equals("site-" + cq500.slice_id)
        np.testing.assert_array_equal(site[TASK.probability_columns], cq500[TASK.probability_columns])
    shutil.rmtree(work.fold("late", 0))
    for name, data in late.items():
        work.fold("late", 0).mkdir(parents=True, exist_ok=True)
        (work.fold("late", 0) / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"expected site.parquet in .*fold0.*Run `ichkit train --run late` again"):
        do(stack, quick_config("stack.stackers=[lightgbm]"), work, runs=["late"])
