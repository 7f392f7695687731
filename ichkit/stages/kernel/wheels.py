"""Wheels for a machine without internet: of ichkit itself, from a checkout or an installed package, and of others."""

import base64
import csv
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from ichkit.core.errors import ArtifactError, ConfigError

_SECONDS = 600
_SOURCES = ("ichkit", "configs", "pipelines", "setup.py", "pyproject.toml", "README.md", "LICENSE")
"""What the wheel of ichkit is built from."""
_OF_THE_INSTALLATION = frozenset({"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"})
"""Files of a .dist-info folder that an installer wrote and no wheel has; RECORD is written anew."""
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip file can hold


def collect_wheels(source: Path, packages: Sequence[str]) -> list[tuple[str, bytes]]:
    """File name and content of every wheel.

    Args:
        source: a wheel of ichkit, a checkout, or the folder that ichkit is installed in.
        packages: further packages, downloaded in the versions that are installed here.

    Raises:
        ConfigError: a package is not installed.
        ArtifactError: pip failed, or files of the installed ichkit are missing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if source.is_file():
            shutil.copy(source, folder)
        elif is_checkout(source):
            _build(source, folder)
        else:
            pack_installed("ichkit", source, folder)
        if packages:
            _pip("download", "--no-deps", "--only-binary=:all:", "-d", name, *pin_packages(packages))
        return [(path.name, path.read_bytes()) for path in sorted(folder.glob("*.whl"))]


def pin_packages(packages: Sequence[str]) -> list[str]:
    """The packages with the versions that are installed here, as pip reads them.

    Raises:
        ConfigError: one is not installed.
    """
    try:
        return [f"{package}=={metadata.version(package)}" for package in packages]
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"kernel --with: {error.name} is not installed here. Install it first.") from error


def is_checkout(folder: Path) -> bool:
    """Whether a wheel can be built from `folder`."""
    return (folder / "pyproject.toml").is_file()


def pack_installed(name: str, place: Path, folder: Path) -> Path:
    """Writes the wheel that an installed package came from, as far as its installer kept it.

    Args:
        name: of a package of pure Python.
        place: the folder it is installed in (`site-packages`).
        folder: for the wheel.

    Returns:
        The path of the wheel. Equal installations give equal bytes.

    Raises:
        ArtifactError: no such package in `place`, or some of its files are missing.

    Source: the binary distribution format, sections "File contents" and "The .dist-info directory".
    """
    found = next(iter(metadata.distributions(name=name, path=[str(place)])), None)
    files = [file for file in (found.files if found else None) or () if ".." not in file.parts]
    kept = [file for file in files if file.suffix != ".pyc" and file.name not in _OF_THE_INSTALLATION]
    missing = [str(file) for file in kept if not (place / file).is_file()]
    if found is None or not kept or missing:
        raise ArtifactError(
            f"kernel: {missing[0] if missing else f'the list of the files of {name}'} is missing in {place}. Install "
            f"{name} again, or give its wheel with --wheel FILE (pip wheel --no-deps in a checkout writes it)."
        )
    tags = [line.partition(":")[2].strip() for line in (found.read_text("WHEEL") or "").splitlines() if "Tag:" in line]
    path = folder / f"{name}-{found.version}-{tags[0] if tags else 'py3-none-any'}.whl"
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    info = next(file.parts[0] for file in kept if file.parts[0].endswith(".dist-info"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in sorted(kept, key=lambda file: (file.parts[0] == info, file.as_posix())):
            data = (place / file).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.writerow([file.as_posix(), f"sha256={digest}", len(data)])
            wheel.writestr(_entry(file.as_posix()), data)
        rows.writerow([f"{info}/RECORD", "", ""])
        wheel.writestr(_entry(f"{info}/RECORD"), record.getvalue())
    return path


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EARLIEST)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def _build(checkout: Path, folder: Path) -> None:
    """From a copy, because setuptools leaves its folders beside what it builds."""
    copy = folder / "source"
    copy.mkdir()
    for name in _SOURCES:
        path = checkout / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(copy))


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"kernel: pip {words[0]} did not end in {_SECONDS // 60} minutes. Try again.") from error
    if done.returncode:
        raise ArtifactError(
            f"kernel: pip {words[0]} failed: {done.stderr.strip()[-400:]}. See `pip {words[0]} --help`."
        )
