"""What a release consists of: archives that anyone can build again to the byte, and dependencies of free licences."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = ("ichkit", "configs", "pipelines", "setup.py", "pyproject.toml", "README.md", "LICENSE")
EPOCH = "1767225600"  # 2026-01-01


def copy_sources(target):
    """What is built, in a folder of its own, because setuptools leaves its folders beside it; with new times."""
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, target / name, ignore=skipped, copy_function=shutil.copy)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


def build(kind, tree, out):
    code = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv[1])"
    words = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(
        words, cwd=tree, env=os.environ | {"SOURCE_DATE_EPOCH": EPOCH}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source archive, built twice from copies in two places."""
    found = {"wheel": [], "sdist": []}
    for _ in range(2):
        tree = copy_sources(tmp_path_factory.mktemp("place") / "tree")
        for kind, paths in found.items():
            paths.append(build(kind, tree, tmp_path_factory.mktemp(kind)))
    return found


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_two_builds_of_the_same_files_have_the_same_name_and_bytes(built, kind):
    first, second = built[kind]
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_the_source_archive_names_nobody_and_no_time_but_that_of_the_release(built):
    with tarfile.open(built["sdist"][0]) as archive:
        for member in archive.getmembers():
            assert (member.mtime, member.uid, member.gid) == (int(EPOCH), 0, 0), member.name
            assert (member.uname, member.gname) == ("", ""), member.name


@pytest.mark.slow
def test_the_wheel_made_from_the_source_archive_is_that_made_from_the_tree(built, tmp_path):
    with tarfile.open(built["sdist"][0]) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    out = tmp_path / "out"
    out.mkdir()
    assert contents(build("wheel", tree, out)) == contents(built["wheel"][0])


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_its_configs_and_its_pipelines(built):
    expected = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in (("ichkit", "ichkit"), ("configs", "ichkit/configs"), ("pipelines", "ichkit/pipelines"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {name for name in contents(built["wheel"][0]) if ".dist-info/" not in name}
    assert found == expected


def is_copyleft(licence):
    """True for a licence of the GPL or AGPL; the LGPL, an exception for linking, and another choice are none."""
    licence = re.sub(r"GPL-[\w.+-]+ WITH \S+", "", licence, flags=re.IGNORECASE)
    choices = re.split(r"\s+OR\s+", licence)
    return all(re.search(r"\bA?GPL|GNU (Affero )?General Public", choice, re.IGNORECASE) for choice in choices)


def licence_of(package):
    """The licence expression, else the classifiers, else the first line of the licence field."""
    classifiers = [text for text in package.get_all("Classifier", []) if text.startswith("License :: ")]
    return package.get("License-Expression") or "; ".join(classifiers) or package.get("License", "").partition("\n")[0]


def runtime_dependencies():
    """The metadata of every installed package that ichkit needs, and what these need, without extras."""
    found, waiting = {}, [Requirement(text) for text in PROJECT["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        waiting += [Requirement(text) for text in metadata.requires(name) or ()]
    return found


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", False),
        ("LGPL-3.0-or-later", False),
        ("GNU Lesser General Public License v2 (LGPLv2)", False),
        ("BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("MIT OR GPL-2.0-only", False),
        ("GPL-3.0-only", True),
        ("AGPL-3.0", True),
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("MIT AND GPLv2+", True),
    ],
)
def test_a_copyleft_licence_is_known_by_every_spelling(licence, expected):
    assert is_copyleft(licence) == expected


def test_no_dependency_has_a_licence_of_the_gpl_or_agpl():
    packages = runtime_dependencies()
    # Those named in pyproject.toml and those behind them.
    assert {"torch", "pandas", "numpy", "sympy", "python-dateutil"} <= packages.keys()
    assert {name: licence_of(package) for name, package in packages.items() if is_copyleft(licence_of(package))} == {}
