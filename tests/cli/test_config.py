"""`ichkit config`: what it prints loads again, marks what differs and nothing else, and works from anywhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from ichkit.cli.main import main
from ichkit.cli.settings import list_shipped
from ichkit.core.config import load_config, shipped_names

ROOT = Path(__file__).parents[2]
CHANGES = ("train.epochs=3", 'prepare.rsna="/scans/a: b # c"', "stack.stackers=[sequence]", "train.ema_decay=null")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="ichkit")
    assert result.exit_code == code, result.output
    return result.output


def leaves(tree, place=""):
    """Dotted name to value of everything that is not a section; an empty mapping is a value."""
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{place}{key}.") if isinstance(value, dict) and value else {f"{place}{key}": value}
    return found


@pytest.mark.parametrize("changes", [(), CHANGES])
@pytest.mark.parametrize("name", shipped_names("configs"))
def test_what_show_prints_is_a_config_file_with_the_same_values(name, changes):
    words = [word for change in changes for word in ("--set", change)]
    Path("mine.yaml").write_text(call("config", "show", name, *words))
    assert load_config("mine.yaml") == load_config(name, changes)


@pytest.mark.parametrize(("name", "changes"), [("demo", ()), ("resnet50-midl", CHANGES), ("default", ())])
def test_exactly_the_values_unlike_the_defaults_are_marked_with_the_default(name, changes):
    printed = call("config", "show", "-c", name, *(word for change in changes for word in ("--set", change)))
    shown = leaves(load_config(name, changes).model_dump(mode="json"))
    basis = leaves(load_config().model_dump(mode="json"))
    different = [key for key in shown if shown[key] != basis[key]]
    marked = re.findall(r"^ *(\w+): (.*)  # default: (.*)$", printed, flags=re.MULTILINE)
    assert [key for key, _, _ in marked] == [key.rpartition(".")[2] for key in different]
    assert [yaml.safe_load(value) for _, value, _ in marked] == [shown[key] for key in different]
    assert [yaml.safe_load(value) for _, _, value in marked] == [basis[key] for key in different]
    assert printed.startswith(f'# {name}: of {len(shown)} values, {len(different)} differ from "default"')


def test_show_without_a_name_is_the_default():
    assert call("config", "show") == call("config", "show", "default")


def test_list_has_one_line_for_every_shipped_file_with_its_first_comment():
    lines = [line.split(maxsplit=1) for line in call("config", "list").splitlines() if line.startswith("  ")]
    shipped = [(folder, name) for folder in ("configs", "pipelines") for name in shipped_names(folder)]
    assert [name for name, _ in lines] == [name for _, name in shipped]
    for (folder, name), (_, comment) in zip(shipped, lines, strict=True):
        assert (ROOT / folder / f"{name}.yaml").read_text().startswith(f"# {comment}\n")


def test_a_file_without_a_comment_has_none_invented(monkeypatch, tmp_path):
    (tmp_path / "bare.yaml").write_text("seed: 1  # not about the file\n")
    monkeypatch.setattr("ichkit.core.config.shipped_folder", lambda _: tmp_path)
    assert list_shipped("configs") == {"bare": ""}


def test_diff_names_every_value_that_differs_and_set_belongs_to_the_second():
    assert call("config", "diff", "resnet50-midl", "default").splitlines() == [
        "train.sampling: blocks, now slices",
        "train.label_prior_bias: False, now True",
        "train.ema_decay: None, now 0.999",
        "train.adapts_to_length: False, now True",
    ]
    assert call("config", "diff", "demo", "demo") == "demo and demo do not differ\n"
    changed = call("config", "diff", "demo", "demo", "--set", "train.epochs=7")
    assert changed.splitlines() == ["train.epochs: 4, now 7"]


def test_diff_reads_files_too():
    Path("mine.yaml").write_text("extends: demo\nstack:\n  num_parts: 2\n")
    assert call("config", "diff", "demo", "mine.yaml").splitlines() == ["stack.num_parts: 5, now 2"]


MISTAKES = [
    (["config", "show", "dmeo"], 'config: "dmeo" is neither a shipped config nor a file. Did you mean "demo"?'),
    (["config", "diff", "demo", "defualt"], 'Did you mean "default"?'),
    (["config", "shwo"], 'Did you mean "show"? Choices: diff, list, show.'),
    (["config", "show", "demo", "-c", "default"], 'found "demo" and -c default; give only one of them.'),
    (["config", "show", "--set", "train.epoch=3"], "--set train.epoch: unknown key, did you mean train.epochs?"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_gives_one_message_and_exit_code_2(words, message):
    printed = call(*words, code=2)
    assert message in printed
    assert "Traceback" not in printed


def test_every_command_of_config_has_help_with_an_example():
    for name in main.commands["config"].commands:
        assert f"Example:\n    ichkit config {name}" in call("config", name, "--help")


@pytest.mark.slow
def test_it_works_from_an_installed_wheel(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("ichkit", "configs", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet", "--target"]
    subprocess.run([*pip, str(site), str(source)], check=True, cwd=tmp_path)
    shutil.rmtree(source)
    inside = {**os.environ, "PYTHONPATH": str(site)}
    ask = [sys.executable, "-m", "ichkit", "config"]
    for words in (["list"], ["show", "demo"], ["diff", "resnet50-midl", "default"]):
        done = subprocess.run([*ask, *words], capture_output=True, text=True, check=True, cwd=tmp_path, env=inside)
        assert done.stdout == call("config", *words)
