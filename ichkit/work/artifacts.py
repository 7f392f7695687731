"""Artifact folders: written next to their final place, manifest last, then renamed; without a manifest none is read."""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ichkit.core.csv_tables import encode_csv, read_csv
from ichkit.core.errors import ArtifactError
from ichkit.work.locks import hold, lock_path
from ichkit.work.places import (
    MANIFEST_NAME,
    disk_full,
    is_marked,
    open_partial,
    partial_of,
    put_in_place,
    set_aside_of,
)

FORMAT = 1
_REPORTED_PACKAGES = (
    "ichkit",
    "torch",
    "timm",
    "albumentations",
    "pydicom",
    "lightgbm",
    "pandas",
    "numpy",
    "numba",
    "blosc2",
)
_SECONDS_TO_LOOK_AGAIN = 1.0
"""How long a reader waits for a writer that is between two renames; a killed writer never finishes them."""
_MIN_LOOKS = 3
_WITH_FRESH = ("ichkit prepare", "ichkit train")
_LISTS_DAMAGE = "`ichkit verify` lists what is damaged."
_T = TypeVar("_T")


@dataclass(frozen=True)
class FileDigest:
    """Expected SHA-256 and size of one file of an artifact."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """The settings, inputs and files of an artifact folder.

    Attributes:
        kind: "prepared", "fold", "stack", "scores", "export", "phantom", "tables".
        settings: the settings that determine the artifact.
        inputs: name to digest of everything that was read.
        facts: results that later stages need without opening the files.
        files: path relative to the folder to its digest.
    """

    kind: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    facts: dict[str, Any]
    files: dict[str, FileDigest]
    created_utc: str
    git_commit: str
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def sha256_of(self, name: str) -> str:
        """The digest of one file.

        Raises:
            ArtifactError: the artifact has no such file.
        """
        if name not in self.files:
            raise ArtifactError(f"{self.kind}: expected {name}, its manifest does not list it. {_LISTS_DAMAGE}")
        return self.files[name].sha256

    @property
    def settings_digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the settings."""
        return digest_of(self.settings)


def digest_of(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON value, keys sorted.

    Example:
        >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def list_differences(old: Any, new: Any, place: str = "") -> list[str]:
    """One line per value that differs between two trees of settings.

    Example:
        >>> list_differences({"train": {"epochs": 20}}, {"train": {"epochs": 3}})
        ['train.epochs: 20, now 3']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        parts = [list_differences(old.get(key), new.get(key), f"{place}.{key}".lstrip(".")) for key in keys]
        return [line for part in parts for line in part]
    old, new = json.loads(json.dumps(old, default=str)), json.loads(json.dumps(new, default=str))
    return [] if old == new else [f"{place}: {old}, now {new}"]


def digest_table(frame: pd.DataFrame) -> str:
    """First 16 hex digits of a SHA-256 over the column names and every value of a table, row order included."""
    sha = hashlib.sha256("\x1f".join(map(str, frame.columns)).encode())
    sha.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return sha.hexdigest()[:16]


def write_bytes_atomically(path: Path, data: bytes) -> FileDigest:
    """Writes a file next to its final place, syncs it and renames it; returns the digest of the written bytes.

    Raises:
        DiskFullError: the disk is full; an existing file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # its folder may be missing
            temporary.unlink(missing_ok=True)
        raise disk_full(path, error) from error
    return FileDigest(hashlib.sha256(data).hexdigest(), len(data))


def encode_json(value: Any) -> bytes:
    """Indented UTF-8 JSON with a newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=False, default=str) + "\n").encode()


def encode_table(frame: pd.DataFrame, suffix: str) -> bytes:
    """A table as parquet or CSV bytes; the same table gives the same bytes."""
    if suffix == ".csv":
        return encode_csv(frame)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer, compression="zstd")
    return buffer.getvalue()


def encode_array(array: np.ndarray) -> bytes:
    """An array as npy bytes, never pickled."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class ArtifactWriter:
    """Writes one artifact folder in `<final>.partial` and renames it when it is complete.

    It holds the lock of the folder until it is committed or deleted. A command that reads before it writes takes the
    lock before it reads (`locks.hold`), and the writer shares it.

    Args:
        final: the folder to create or replace.
        kind: the manifest's kind.
        resume: keep the content of `<final>.partial`; otherwise start from an empty folder.
        keeps: files of an earlier `<final>.partial` that are never removed.

    Raises:
        ArtifactError: one of the two folders was not written by ichkit.
        DiskFullError: the disk is full.
    """

    def __init__(self, final: Path, kind: str, *, resume: bool = False, keeps: tuple[str, ...] = ()) -> None:
        self.final, self.kind = final, kind
        self.files: dict[str, FileDigest] = {}
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(hold(final))
        try:
            self.folder = open_partial(final, resume=resume, keeps=keeps)
        except OSError as error:
            raise disk_full(final, error) from error

    def __del__(self) -> None:
        self._lock.close()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes one file and records its digest."""
        self.files[name] = write_bytes_atomically(self.folder / name, data)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file."""
        self.write_bytes(name, encode_json(value))

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Writes a table as parquet or CSV, by the name's suffix."""
        self.write_bytes(name, encode_table(frame, Path(name).suffix))

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Writes an array as npy."""
        self.write_bytes(name, encode_array(array))

    def record(self, name: str, digest: FileDigest) -> None:
        """Records a file that a worker wrote inside `folder`, with the digest that the worker computed."""
        self.files[name] = digest

    def discard(self, name: str) -> None:
        """Removes a temporary file."""
        (self.folder / name).unlink(missing_ok=True)
        self.files.pop(name, None)

    def commit(self, *, settings: dict[str, Any], inputs: dict[str, str], facts: dict[str, Any]) -> Manifest:
        """Writes the manifest and renames the folder to its final name; an existing artifact is replaced."""
        manifest = Manifest(
            kind=self.kind,
            settings=settings,
            inputs=inputs,
            facts=facts,
            files=dict(sorted(self.files.items())),
            created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            git_commit=git_commit(),
            versions=dict(package_versions()),
        )
        write_bytes_atomically(self.folder / MANIFEST_NAME, encode_json(asdict(manifest)))
        put_in_place(self.final)
        self._lock.close()
        return manifest


def has_artifact(folder: Path) -> bool:
    """True if there is a complete artifact; nothing on disk is changed."""
    return any((folder / MANIFEST_NAME).is_file() for _ in _looks(folder))


def find_current(folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Manifest | None:
    """The manifest of a finished artifact made with these settings from these inputs; None without such an artifact.

    Raises:
        ArtifactError: its manifest is damaged.
    """
    manifest = read_manifest(folder) if has_artifact(folder) else None
    is_current = manifest is not None and manifest.settings == settings and manifest.inputs == inputs
    return manifest if is_current else None


def _looks(folder: Path) -> Iterator[None]:
    """Yields once per look: again while a writer may be between its two renames."""
    yield
    deadline = time.monotonic() + _SECONDS_TO_LOOK_AGAIN
    for number in itertools.count(1):
        is_between = is_marked(set_aside_of(folder)) and time.monotonic() < deadline
        if not is_between and (number > _MIN_LOOKS or not lock_path(folder).exists()):
            # The new folder may have appeared since the previous look.
            yield
            return
        time.sleep(0.001)
        yield


def maker_of(folder: Path) -> str:
    """The command that creates the artifact in this folder."""
    if folder.parent.parent.name == "runs":
        return "ichkit train"
    places = {"stacks": "ichkit stack"}
    names = {"prepared": "ichkit prepare", "scores": "ichkit evaluate", "tables": "ichkit report --tables"}
    return places.get(folder.parent.name) or names.get(folder.name) or "ichkit export"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete artifact; nothing on disk is changed.

    Raises:
        ArtifactError: the folder is missing, unfinished, or from a newer format.
    """
    text = None
    for _ in _looks(folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            text = (folder / MANIFEST_NAME).read_bytes()
            break
    if text is None:
        if partial_of(folder).exists():
            raise ArtifactError(f"{folder}: unfinished. Run `{maker_of(folder)}` first.")
        raise ArtifactError(f"{folder}: not found. Run `{maker_of(folder)}` first.")
    maker = maker_of(folder)
    remedy = f"`{maker} --fresh` with the same -c" if maker in _WITH_FRESH else f"`{maker}`"
    try:
        raw = json.loads(text)
        files = {name: FileDigest(**digest) for name, digest in raw.pop("files").items()}
        manifest = Manifest(files=files, **raw)
        if not all(isinstance(part, dict) for part in (manifest.settings, manifest.inputs, manifest.facts)):
            raise TypeError("settings, inputs or facts")
        if not all(_is_inside(name) for name in files):
            raise ValueError("a file outside the folder")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{folder / MANIFEST_NAME}: not a manifest ({error}). Run {remedy}.") from error
    if manifest.format != FORMAT:
        raise ArtifactError(
            f"{folder}: expected format {FORMAT}, found {manifest.format}. Run {remedy} with this version."
        )
    return manifest


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def read_whole(folder: Path, read: Callable[[Manifest], _T]) -> _T:
    """The result of `read` on one version of an artifact: it is repeated if the artifact is replaced meanwhile.

    Args:
        read: takes the manifest; raises ArtifactError for a file that differs from the manifest.

    Raises:
        ArtifactError: as `read_manifest`, or a file is damaged.
    """
    while True:
        manifest = read_manifest(folder)
        try:
            found = read(manifest)
        except ArtifactError:
            if read_manifest(folder) == manifest:
                raise
        else:
            return found


def find_damage(folder: Path, manifest: Manifest, *, reads: bool = True) -> list[str]:
    """One line for each file that is missing, of unexpected size or (with `reads`) changed since it was written."""
    damage = []
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            damage.append(f"{path}: missing")
        elif path.stat().st_size != digest.num_bytes:
            damage.append(f"{path}: {path.stat().st_size} bytes, expected {digest.num_bytes}")
        elif reads and digest_file(path) != digest.sha256:
            damage.append(f"{path}: changed since it was written (SHA-256 differs)")
    return damage


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Checks that every file of an artifact exists and has its original size.

    Raises:
        ArtifactError: names the first file that does not, and their number.
    """
    _refuse_damage(find_damage(folder, manifest, reads=False))


def check_digests(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Checks that these files of an artifact exist and are unchanged.

    Raises:
        ArtifactError: names the first file that is not.
    """
    for name in names:
        read_bytes(folder / name, manifest.sha256_of(name))


def read_bytes(path: Path, sha256: str) -> bytes:
    """The bytes of a file of an artifact, compared with the digest in its manifest.

    Raises:
        ArtifactError: it is missing or has changed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}). {_LISTS_DAMAGE}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        _refuse_damage([f"{path}: changed since it was written (SHA-256 differs)"])
    return data


def _refuse_damage(damage: list[str]) -> None:
    if damage:
        more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
        raise ArtifactError(f"{damage[0]}{more}. {_LISTS_DAMAGE}")


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_table(path: Path, sha256: str | None = None, **options: Any) -> pd.DataFrame:
    """A parquet or CSV table of an artifact.

    Args:
        sha256: the digest in its manifest; None skips the check.
        options: for pandas.

    Raises:
        ArtifactError: missing, unreadable or changed.
    """
    try:
        content = path if sha256 is None else io.BytesIO(read_bytes(path, sha256))
        return read_csv(content, **options) if path.suffix == ".csv" else pd.read_parquet(content, **options)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({type(error).__name__}: {error}). {_LISTS_DAMAGE}") from error


def git_commit() -> str:
    """The commit of the checkout that this package runs from; empty if it is installed."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine the bytes of a result."""
    versions = {"python": platform.python_version()}
    for name in _REPORTED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
