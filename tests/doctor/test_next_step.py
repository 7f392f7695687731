"""What the doctor says of a work folder, and the next step from each state."""

import shlex
from pathlib import Path

import pandas as pd
import pytest
from support.workfolders import write_fold, write_prepared, write_stack, write_submission

from ichkit.cli.main import main
from ichkit.core.config import load_config
from ichkit.sources.table import SOURCES
from ichkit.stages.doctor.found_data import DataState
from ichkit.stages.doctor.found_work import find_work
from ichkit.stages.doctor.next_step import choose_step
from ichkit.stages.prepare.plan import store_settings
from ichkit.work.artifacts import ArtifactWriter
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory

NOWHERE = {name: DataState(False, "", tuple(map(str, row.folders)), False, False) for name, row in SOURCES.items()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, and no work folder named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ICHKIT_WORK", raising=False)


def next_command(data=NOWHERE, work="work", config_name=None):
    folder = WorkFolder(Path(work))
    step = choose_step(data, find_work(folder, Path("submissions")), folder, config_name)
    check_parses(step.command)
    return step.command


def check_parses(command):
    """A command that is advised exists, and so do its options."""
    name, *words = shlex.split(command)[1:]
    main.commands[name].make_context(name, words)


def found(name, where="data/somewhere"):
    return {**NOWHERE, name: DataState(True, where, (where,), False, False)}


def test_from_an_empty_folder_to_the_board_each_step_is_the_next():
    work, rsna = WorkFolder(Path("work")), found("rsna")
    assert next_command() == "ichkit demo"
    assert next_command(rsna) == "ichkit prepare"
    write_prepared(work)
    assert next_command(rsna) == next_command() == "ichkit train --fold 0"
    write_fold(work, "default", 0)
    assert next_command() == "ichkit stack"
    write_stack(work, "default", [0])
    assert next_command() == "ichkit submit"
    write_submission(work, "default", [0])
    assert next_command() == "ichkit train"
    write_fold(work, "default", 1)
    write_fold(work, "default", 2)
    assert next_command() == "ichkit stack"
    write_stack(work, "default", [0, 1, 2])
    assert next_command() == "ichkit submit"
    write_submission(work, "default", [0, 1, 2])
    assert next_command() == "ichkit report"
    digest = take_inventory(work).digest
    work.report.write_text(f'<head><meta name="ichkit-tables" content="{digest}"></head>')
    assert next_command() == "ichkit leaderboard"
    assert not find_work(work, Path("submissions")).is_report_outdated
    write_stack(work, "default", [0, 1, 2], name="second")
    assert find_work(work, Path("submissions")).is_report_outdated
    assert next_command() == "ichkit report"


def test_what_was_begun_goes_on_first():
    work = WorkFolder(Path("work"))
    (work.root / "prepared.partial").mkdir(parents=True)
    step = choose_step(found("rsna"), find_work(work, Path("submissions")), work)
    assert (step.command, "`prepare` was interrupted and will resume" in step.reason) == ("ichkit prepare", True)
    write_prepared(work)
    write_fold(work, "demo", 0)
    (work.runs / "demo" / "fold2.partial").mkdir()
    assert next_command() == "ichkit train --fold 2 -c demo"


def test_a_run_goes_on_with_the_config_it_was_trained_with():
    work = WorkFolder(Path("work"))
    write_prepared(work)
    for run, config in (("demo", load_config("demo")), ("default", load_config("default", ("train.epochs=3",)))):
        write_fold(work, run, 0, config=config)
        (work.runs / run / "fold1.partial").mkdir()
    written = "ichkit train --fold 1 -c work/runs/default/fold0/config.yaml --run default"
    assert next_command() == written
    Path(shlex.split(written)[5]).unlink()
    (work.runs / "default" / "fold1.partial").rmdir()
    assert next_command() == "ichkit train --fold 1 -c demo"
    write_fold(work, "mine", 0, config=load_config("demo"))
    (work.runs / "demo" / "fold1.partial").rename(work.runs / "mine" / "fold1.partial")
    assert next_command() == "ichkit train --fold 1 -c work/runs/mine/fold0/config.yaml --run mine"


def test_what_follows_a_run_takes_the_shipped_config_it_is_named_after():
    work = WorkFolder(Path("work"))
    write_prepared(work)
    write_fold(work, "demo", 0)
    assert next_command() == "ichkit stack -c demo"
    assert next_command(config_name="resnet50-midl") == "ichkit stack -c resnet50-midl"
    write_stack(work, "demo", [0])
    assert next_command() == "ichkit submit -c demo"
    write_submission(work, "demo", [0])
    assert next_command() == "ichkit train -c demo"
    assert next_command(config_name="mine/demo.yaml") == "ichkit train -c mine/demo.yaml"
    assert next_command(config_name="other.yaml") == "ichkit train -c other.yaml --run demo"


def test_a_config_and_a_work_folder_that_were_named_are_named_again(monkeypatch):
    assert next_command(found("rsna"), config_name="demo") == "ichkit prepare -c demo"
    assert next_command(found("rsna"), work="my work") == "ichkit prepare --work 'my work'"
    assert next_command(work="elsewhere") == "ichkit demo"
    monkeypatch.setenv("ICHKIT_WORK", "elsewhere")
    assert next_command(found("rsna"), work="elsewhere") == "ichkit prepare"


def test_the_first_training_takes_the_config_that_the_store_was_prepared_with():
    work = WorkFolder(Path("work"))
    for name, expected in (("demo", " -c demo"), ("quick", " -c quick"), ("resnet50-midl", "")):
        write_prepared(work, settings=store_settings(load_config(name), "rsna") | {"lock": 0.15})
        assert next_command() == f"ichkit train --fold 0{expected}"
        assert next_command(config_name="good") == "ichkit train --fold 0 -c good"
    write_prepared(work, settings=store_settings(load_config("demo", ("prepare.size=200",)), "rsna"))
    assert next_command() == "ichkit train --fold 0"
    inventory = find_work(work, Path("submissions"))
    assert "--dry-run" in choose_step(NOWHERE, inventory, work, has_gpu=False).reason
    assert "--dry-run" not in choose_step(NOWHERE, inventory, work).reason


def test_a_blend_by_hand_is_not_named_as_a_model_for_predictions():
    work = WorkFolder(Path("work"))
    write_prepared(work, folds=1)
    write_fold(work, "a", 0)
    write_stack(work, "a", [0])
    write_submission(work, "a", [0])
    work.report.write_text(f'<head><meta name="ichkit-tables" content="{take_inventory(work).digest}"></head>')
    step = choose_step(NOWHERE, find_work(work, Path("submissions")), work)
    assert step.reason.endswith("The leaderboard shows the best model, which `ichkit predict` uses.")
    write_stack(work, "a", [0], name="mine", kind="hand")
    work.report.write_text(f'<head><meta name="ichkit-tables" content="{take_inventory(work).digest}"></head>')
    step = choose_step(NOWHERE, find_work(work, Path("submissions")), work)
    assert "uses the best one that has networks, which a blend by hand (kind hand) has not" in step.reason


def test_own_scans_are_prepared_from_their_folder_and_scored_instead_of_submitted():
    work = WorkFolder(Path("work"))
    assert next_command(found("folder")) == "ichkit prepare --source folder --labels labels.csv"
    write_prepared(work, folds=1, has_sample=False)
    write_fold(work, "default", 0)
    write_stack(work, "default", [0])
    assert next_command() == "ichkit evaluate"
    ArtifactWriter(work.scores, "scores").commit(settings={}, inputs={}, facts={})
    assert next_command() == "ichkit report"


def test_other_tables_of_a_run_outdate_its_stack_and_another_stack_its_submission():
    work = WorkFolder(Path("work"))
    write_prepared(work, folds=1)
    write_fold(work, "default", 0)
    write_stack(work, "default", [0])
    write_submission(work, "default", [0])
    assert next_command() == "ichkit report"
    write_fold(work, "default", 0, content="second")
    assert find_work(work, Path("submissions")).stacks["default"].is_outdated
    assert next_command() == "ichkit stack"
    write_stack(work, "default", [0])
    assert not find_work(work, Path("submissions")).submissions["default-blend"].is_outdated
    Path("submissions/default-blend.csv").unlink()
    assert next_command() == "ichkit submit"


def test_a_run_that_no_stack_holds_is_stacked_with_the_others():
    work = WorkFolder(Path("work"))
    write_prepared(work, folds=1)
    write_fold(work, "a", 0)
    write_stack(work, "a", [0])
    assert next_command() == "ichkit submit"
    write_fold(work, "b", 0)
    step = choose_step(NOWHERE, find_work(work, Path("submissions")), work)
    assert step.command == "ichkit stack"
    assert step.reason == "1 of 1 folds of a are trained, and no stack uses the current predictions of b."
    write_stack(work, "b", [0])
    assert next_command() == "ichkit submit"


@pytest.mark.slow
def test_the_store_of_a_real_prepare_is_read(prepared_once):
    state = find_work(prepared_once, Path("submissions")).prepared
    slices = pd.read_parquet(prepared_once.prepared / "slices.parquet")
    assert (state.data, state.num_slices, state.num_studies) == ("phantom", len(slices), slices.study_id.nunique())
    assert state.folds == (0, 1, 2)
    assert state.has_sample


@pytest.mark.parametrize("content", ["", "[]", "{", '{"facts": 1}', "\0"])
def test_what_is_damaged_is_named_and_the_rest_is_told(content):
    work = WorkFolder(Path("work"))
    write_prepared(work)
    for fold in (0, 1):
        write_fold(work, "default", fold)
    write_stack(work, "default", [0, 1])
    for folder in (work.prepared, work.stacks / "default", work.fold("default", 1)):
        (folder / "manifest.json").write_text(content)
    Path("submissions").mkdir()
    Path("submissions/mine.json").write_text(content)
    expected = ("prepared", "runs/default/fold1", "stacks/default", "mine.json")
    assert find_work(work, Path("submissions")).damaged == expected
    assert find_work(work, Path("submissions")).runs["default"].folds == (0, 1)
