"""What a tab offers: the names that are there, of the work folder that the line names."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete, get_completion_class

import ichkit
from ichkit.cli.main import main
from ichkit.core.config import Config, shipped_names
from ichkit.core.config_errors import list_settings
from ichkit.work.artifacts import ArtifactWriter

BASH = shutil.which("bash")


def complete(line):
    """Values offered for a line that ends where the cursor is."""
    *words, typed = line.split(" ")[1:]
    found = ShellComplete(main, {}, "ichkit", "_ICHKIT_COMPLETE").get_completions(words, typed)
    return [item.value for item in found]


def kinds(line):
    *words, typed = line.split(" ")[1:]
    return [item.type for item in ShellComplete(main, {}, "ichkit", "").get_completions(words, typed)]


def write_work(root):
    """Two finished runs, one begun, a stack, and the remains of another."""
    for place in ("runs/demo/fold0", "runs/demo/fold1", "runs/deep/fold0", "stacks/deep+demo"):
        writer = ArtifactWriter(root / place, "any")
        for name in ("blend_oof", "lightgbm_oof", "blend_test") if "stacks" in place else ():
            writer.write_bytes(f"{name}.parquet", b"")
        writer.commit(settings={}, inputs={}, facts={})
    (root / "runs" / "later" / "fold2.partial").mkdir(parents=True)
    (root / "stacks" / "half.partial").mkdir()


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ICHKIT_WORK", raising=False)
    write_work(tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize("line", ["ichkit train -c ", "ichkit train --config ", "ichkit config show "])
def test_a_config_is_completed_with_the_shipped_names(line):
    assert complete(line) == shipped_names("configs")
    assert complete(f"{line}de") == ["default", "demo"]


def test_a_source_of_training_data_is_completed():
    assert complete("ichkit prepare --source ") == ["rsna", "folder", "bids"]
    assert complete("ichkit prepare --source f") == ["folder"]


def test_both_configs_of_a_diff_are_completed():
    assert complete("ichkit config diff de") == complete("ichkit config diff demo de") == ["default", "demo"]


def test_a_config_is_shown_with_its_first_comment():
    found = ShellComplete(main, {}, "ichkit", "").get_completions(["train", "-c"], "demo")
    assert found[0].help.startswith("Small enough for two CPU cores")


def test_a_pipeline_is_completed_with_the_shipped_names():
    assert complete("ichkit run ") == shipped_names("pipelines")


@pytest.mark.parametrize("line", ["ichkit train -c ./my", "ichkit run ./my"])
def test_what_is_no_shipped_name_is_left_to_the_files_of_the_shell(line):
    assert kinds(line) == ["file"]


def test_runs_of_the_work_folder_that_the_line_names_are_offered():
    assert complete("ichkit train --work other --run ") == ["deep", "demo", "later"]
    assert complete("ichkit train --work other --run d") == ["deep", "demo"]
    assert complete("ichkit train --run ") == []


def test_the_work_folder_is_the_environment_s_or_the_default_where_the_line_names_none(work, monkeypatch):
    monkeypatch.setenv("ICHKIT_WORK", str(work))
    assert complete("ichkit train --run la") == ["later"]
    monkeypatch.delenv("ICHKIT_WORK")
    work.rename(work.with_name("work"))
    assert complete("ichkit train --run la") == ["later"]


def test_runs_behind_a_comma_are_offered_without_those_that_are_there():
    assert complete("ichkit stack --work other --runs d") == ["deep", "demo"]
    assert complete("ichkit stack --work other --runs demo,") == ["demo,deep", "demo,later"]
    assert complete("ichkit stack --work other --runs demo,deep,l") == ["demo,deep,later"]


@pytest.mark.parametrize(
    "command", ["evaluate --source", "submit --source", "predict scans --model", "watch scans --model"]
)
def test_a_source_is_a_finished_run_or_a_kind_of_a_whole_stack(command):
    sources = ["deep", "demo", "deep+demo-blend", "deep+demo-lightgbm"]
    assert complete(f"ichkit {command.split()[0]} --work other {command.split(maxsplit=1)[1]} ") == sources


def test_a_model_that_is_no_source_is_left_to_the_folders_of_the_shell():
    assert kinds("ichkit predict scans --work other --model ./wo") == ["dir"]


def test_a_setting_is_completed_by_key_and_by_value():
    assert complete("ichkit train --set train.back") == ["train.backbone=", "train.backbone_args=", "train.backend="]
    assert complete("ichkit train --set train.sampling=") == [
        f"train.sampling={name}" for name in ("blocks", "slices", "studies")
    ]
    assert complete("ichkit train --set stack.calibrate=f") == ["stack.calibrate=false"]
    assert complete("ichkit train --set train.augment.per=s") == ["train.augment.per=slice"]
    assert "task=hemorrhage" in complete("ichkit train --set task=")
    assert complete("ichkit train --set train.epochs=") == complete("ichkit train --set nothing.like=") == []


def test_every_setting_can_be_asked_for_its_values():
    for key in list_settings(Config):
        assert all(value.startswith(f"{key}=") for value in complete(f"ichkit train --set {key}="))


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["train", "--set", "train.sampling", "=", "sl"], "plain,slices"),
        (["train", "--set", "train.sampl"], "plain,train.sampling="),
        (["config", "diff", "dem"], "plain,demo"),
    ],
)
def test_bash_which_splits_words_at_the_sign_gets_what_it_replaces(words, offered, monkeypatch):
    monkeypatch.setenv("COMP_WORDS", " ".join(["ichkit", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    assert get_completion_class("bash")(main, {}, "ichkit", "_ICHKIT_COMPLETE").complete() == offered


def test_bash_offers_every_value_right_after_the_sign(monkeypatch):
    monkeypatch.setenv("COMP_WORDS", "ichkit train --set train.sampling =")
    monkeypatch.setenv("COMP_CWORD", "4")
    found = get_completion_class("bash")(main, {}, "ichkit", "_ICHKIT_COMPLETE").complete()
    assert found.split() == ["plain,blocks", "plain,slices", "plain,studies"]


def test_looking_changes_nothing_and_a_damaged_stack_is_not_offered(work):
    before = sorted(work.rglob("*"))
    assert "deep+demo-blend" in complete("ichkit submit --work other --source ")
    assert sorted(work.rglob("*")) == before
    (work / "stacks" / "deep+demo" / "manifest.json").write_text("{")
    assert complete("ichkit submit --work other --source ") == ["deep", "demo"]


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_gets_the_names_and_torch_is_never_loaded():
    """As the script that `_ICHKIT_COMPLETE=bash_source ichkit` prints asks for them."""
    line = {"COMP_WORDS": "ichkit train --work other --run d", "COMP_CWORD": "5", "_ICHKIT_COMPLETE": "bash_complete"}
    code = (
        "import sys, atexit, json; heavy = ('torch', 'numba', 'lightgbm', 'timm');"
        "atexit.register(lambda: print(json.dumps([m for m in heavy if m in sys.modules]), file=sys.stderr));"
        "from ichkit.cli.main import main; main(prog_name='ichkit')"
    )
    path = os.pathsep.join([str(Path(ichkit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ask = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(ask, capture_output=True, text=True, env={**os.environ, **line, "PYTHONPATH": path})
    assert done.stdout.split() == ["plain,deep", "plain,demo"]
    assert json.loads(done.stderr) == []
