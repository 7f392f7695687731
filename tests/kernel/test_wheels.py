"""Wheels for a machine without internet: what is installed can be packed and installed elsewhere."""

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

from ichkit.core.errors import ArtifactError
from ichkit.stages.kernel.wheels import pack_installed


@pytest.fixture
def other_place(tmp_path):
    """A small package as an installer lays it: a module, data, a command outside, compiled bytes."""
    place = tmp_path / "packages"
    info = place / "tiny-1.2.dist-info"
    info.mkdir(parents=True)
    (place / "tiny").mkdir()
    (place / "tiny" / "__init__.py").write_text("WORD = 'here'\n")
    (place / "tiny" / "a,b.txt").write_text("data")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.2\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "direct_url.json").write_text('{"url": "file:///home/someone/tiny"}')
    names = ["tiny/__init__.py", '"tiny/a,b.txt"', "tiny/__pycache__/__init__.cpython-311.pyc", "../../bin/tiny"]
    names += [f"{info.name}/{name}" for name in ("METADATA", "WHEEL", "INSTALLER", "direct_url.json", "RECORD")]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    return place


def install(wheel: Path, target: Path) -> None:
    words = ["install", "--no-index", "--no-deps", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "-q", *words], check=True, capture_output=True)


def test_a_packed_package_installs_and_holds_nothing_of_the_machine_it_came_from(other_place, tmp_path):
    wheel = pack_installed("tiny", other_place, tmp_path)
    assert wheel.name == "tiny-1.2-py3-none-any.whl"
    assert b"someone" not in wheel.read_bytes()
    install(wheel, tmp_path / "new")
    assert (tmp_path / "new" / "tiny" / "__init__.py").read_text() == "WORD = 'here'\n"
    assert (tmp_path / "new" / "tiny" / "a,b.txt").read_text() == "data"
    assert not (tmp_path / "new" / "bin").exists()
    before = wheel.read_bytes()
    assert pack_installed("tiny", other_place, tmp_path).read_bytes() == before


def test_a_real_package_is_the_same_files_after_it(tmp_path):
    place = Path(sysconfig.get_path("purelib"))
    install(pack_installed("click", place, tmp_path), tmp_path / "new")
    (made,) = metadata.distributions(name="click", path=[str(tmp_path / "new")])
    assert made.version == metadata.version("click")
    modules = [file for file in made.files or () if file.suffix == ".py"]
    assert len(modules) > 10
    assert all((tmp_path / "new" / file).read_bytes() == (place / file).read_bytes() for file in modules)


def test_a_missing_package_or_file_is_named(other_place, tmp_path):
    with pytest.raises(ArtifactError, match="the list of the files of none is missing in .* Install none again"):
        pack_installed("none", other_place, tmp_path)
    (other_place / "tiny" / "__init__.py").unlink()
    with pytest.raises(ArtifactError, match="tiny/__init__.py is missing in .* --wheel FILE"):
        pack_installed("tiny", other_place, tmp_path)
