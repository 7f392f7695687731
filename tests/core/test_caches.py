"""Where numba's kernels are cached: its own places first, else a private folder that nobody else can prepare."""

import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import pytest
from support.users import NOBODY, run_as_nobody, world_folder

from ichkit.core import caches


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Neither package nor home can be written to, and nothing was chosen before; gives the temporary folder."""
    monkeypatch.delenv(caches.VARIABLE, raising=False)
    monkeypatch.setattr(caches, "_is_writable", lambda _: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # numba is loaded in a test process; it keeps the folder it has.
    monkeypatch.setattr(sys.modules["numba"].config, "CACHE_DIR", "")
    yield tmp_path
    os.environ.pop(caches.VARIABLE, None)


def test_a_package_or_a_home_that_can_be_written_to_is_left_to_numba(monkeypatch, tmp_path):
    monkeypatch.delenv(caches.VARIABLE, raising=False)
    caches.provide_kernel_cache(tmp_path)
    assert caches.VARIABLE not in os.environ
    monkeypatch.setattr(caches, "_is_writable", lambda folder: folder == caches._user_caches())
    caches.provide_kernel_cache(tmp_path)
    assert caches.VARIABLE not in os.environ


def test_a_folder_that_the_user_named_is_kept(nowhere, monkeypatch):
    monkeypatch.setenv(caches.VARIABLE, "/chosen")
    caches.provide_kernel_cache()
    assert os.environ[caches.VARIABLE] == "/chosen"


def test_the_folder_is_closed_to_others_and_the_same_one_next_time(nowhere):
    caches.provide_kernel_cache()
    (folder,) = nowhere.iterdir()
    assert os.environ.pop(caches.VARIABLE) == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    caches.provide_kernel_cache()
    assert os.environ[caches.VARIABLE] == str(folder)
    assert str(folder) == sys.modules["numba"].config.CACHE_DIR


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_folder_that_someone_else_prepared_is_not_used(nowhere, kind):
    planted = nowhere / f"ichkit-numba-{caches._user()}"
    if kind == "a link":
        (nowhere / "elsewhere").mkdir(mode=0o700)
        planted.symlink_to(nowhere / "elsewhere")
    elif kind == "a file":
        planted.write_bytes(b"")
    else:
        planted.mkdir()
        planted.chmod(0o777)
    caches.provide_kernel_cache()
    chosen = Path(os.environ[caches.VARIABLE])
    assert chosen != planted
    assert chosen.parent == nowhere
    assert stat.S_IMODE(chosen.stat().st_mode) == 0o700


def test_nobody_without_a_home_runs_the_doctor_on_a_package_of_root():
    folder = world_folder()
    try:
        done = run_as_nobody("-m", "ichkit", "doctor", folder=folder)
        assert done.returncode in (0, 2), done.stderr
        assert "What to do next: ichkit demo" in done.stdout
        assert done.stderr == ""  # no warning of any library about its caches
        assert (folder / "tmp" / f"ichkit-numba-{NOBODY}").is_dir()
    finally:
        shutil.rmtree(folder)
