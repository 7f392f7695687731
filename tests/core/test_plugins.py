"""Rows of a user's own: files and modules that are named, found in the current folder, and found again in workers."""

import os
import subprocess
import sys

import pytest

from ichkit.core.errors import ConfigError
from ichkit.core.plugins import add_plugins, load_plugins
from ichkit.core.tasks import TASKS, find_task

ROW = """
from ichkit.core.tasks import TASKS, Task
TASKS["{name}"] = Task("{name}", ("left", "right"), (0.5, 0.5), None, "Which side.", "a test")
def name_of(task):
    return task.name
"""
WORKER = """
import pickle, sys
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
from ichkit.core.tasks import find_task

def look(name):
    return find_task(name).headline_class

if __name__ == "__main__":
    find_task("side_c")
    import side_c
    for method in ("spawn", "forkserver"):
        with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
            print(pool.submit(look, "side_c").result(), pool.submit(side_c.name_of, find_task("side_c")).result())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, its path and tables as they were afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("ICHKIT_PLUGINS", raising=False)
    known = dict(TASKS)
    yield tmp_path
    TASKS.clear()
    TASKS.update(known)
    for path in tmp_path.rglob("*.py"):
        sys.modules.pop(path.stem, None)


def write_row(path, name=None):
    path.parent.mkdir(exist_ok=True)
    path.write_text(ROW.format(name=name or path.stem))
    return path


def test_a_module_of_the_current_folder_is_found_by_its_name(folder, monkeypatch):
    write_row(folder / "side_a.py")
    monkeypatch.setenv("ICHKIT_PLUGINS", "side_a")
    assert find_task("side_a").classes == ("left", "right")


def test_files_are_found_wherever_they_lie_and_join_what_is_named_already(folder, monkeypatch):
    write_row(folder / "side_a.py")
    monkeypatch.setenv("ICHKIT_PLUGINS", "side_a")
    add_plugins([write_row(folder / "elsewhere" / "side_b.py")])
    assert {"side_a", "side_b"} <= TASKS.keys()
    assert os.environ["ICHKIT_PLUGINS"] == f"side_a,{folder / 'elsewhere' / 'side_b.py'}"


def test_a_file_of_the_folder_takes_the_place_of_no_installed_module(folder, monkeypatch):
    write_row(folder / "side_a.py")
    (folder / "yaml.py").write_text("raise RuntimeError")
    monkeypatch.setenv("ICHKIT_PLUGINS", "side_a")
    load_plugins()
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from ichkit.core.tasks import find_task; find_task('side_a'); import yaml"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(ConfigError, match=r"cannot import .*yaml.py: another module has this name"):
        add_plugins([folder / "yaml.py"])


def test_a_started_worker_finds_the_row_and_the_module(folder):
    write_row(folder / "side_c.py")
    (folder / "script").mkdir()
    (folder / "script" / "main.py").write_text(WORKER)
    done = subprocess.run(
        [sys.executable, "-P", "script/main.py"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ICHKIT_PLUGINS": "side_c"},
    )
    assert done.stdout.split() == ["left", "side_c"] * 2, done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", r"could not import side_d \(ModuleNotFoundError"),
        ("def (", r"could not import side_d \(SyntaxError"),
        ('raise ValueError("of mine")', r"could not import side_d \(ValueError: of mine\)"),
    ],
)
def test_a_module_that_fails_is_named_with_its_reason(folder, monkeypatch, text, message):
    (folder / "side_d.py").write_text(text)
    monkeypatch.setenv("ICHKIT_PLUGINS", "side_d")
    with pytest.raises(ConfigError, match=message):
        load_plugins()


@pytest.mark.parametrize("name", ["missing.py", "notes.txt", "a,b.py"])
def test_what_is_no_python_file_is_refused(folder, name):
    (folder / "notes.txt").write_text("")
    (folder / "a,b.py").write_text("")
    with pytest.raises(ConfigError, match="expected a Python file whose path has no comma"):
        add_plugins([folder / name])
