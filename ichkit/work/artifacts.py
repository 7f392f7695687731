"""Artifact folders: written beside their final place, manifest last, then renamed; no manifest, no trust."""

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ichkit.core.errors import ArtifactError, DiskFullError
from ichkit.work.looking import is_looking_only

MANIFEST_NAME = "manifest.json"
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


@dataclass(frozen=True)
class FileDigest:
    """What one file of an artifact must be: its SHA-256 and its size."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What an artifact folder is made of and from.

    Attributes:
        kind: "prepared", "fold", "stack", "scores", "export", "phantom".
        settings: what was configured; other settings make another artifact.
        inputs: name to digest of everything read.
        facts: whatever a later stage or a person wants to know without opening the files.
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


def disk_full(path: Path, error: OSError) -> DiskFullError | OSError:
    """The same error, or where the disk is full one that says how much room is left and that the rest is safe."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    return DiskFullError(
        f"disk: {path.parent} is full ({free / 1e6:.0f} MB free). What was finished stays valid. "
        "Free some room, or choose another disk with --work, and run the same command again."
    )


def write_bytes_atomically(path: Path, data: bytes) -> FileDigest:
    """Writes a file beside its final place, syncs it and renames it; returns its digest, taken from the bytes written.

    Raises:
        DiskFullError: no room left; the old file, if there was one, is untouched.
    """
    assert not is_looking_only(), f"{path}: written to by something that only looks"
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # its folder may not be there
            temporary.unlink(missing_ok=True)
        raise disk_full(path, error) from error
    return FileDigest(hashlib.sha256(data).hexdigest(), len(data))


def encode_json(value: Any) -> bytes:
    """Indented UTF-8 JSON with a newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=False, default=str) + "\n").encode()


def encode_table(frame: pd.DataFrame, suffix: str) -> bytes:
    """A table as parquet or CSV bytes; the same table gives the same bytes."""
    if suffix == ".csv":
        return frame.to_csv(index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n").encode()
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer, compression="zstd")
    return buffer.getvalue()


def encode_array(array: np.ndarray) -> bytes:
    """An array as npy bytes, never pickled."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class ArtifactWriter:
    """Writes one artifact folder in `<final>.partial` and puts it in place when it is whole.

    Args:
        final: the folder it will be.
        kind: the manifest's kind.
        resume: keep what `<final>.partial` already holds; otherwise start from an empty folder.
    """

    def __init__(self, final: Path, kind: str, *, resume: bool = False) -> None:
        assert not is_looking_only(), f"{final}: written to by something that only looks"
        self.final, self.kind = final, kind
        self.folder = partial_of(final)
        self.files: dict[str, FileDigest] = {}
        finish_rename(final)
        if self.folder.exists() and not resume:
            shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_full(final, error) from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes one file and notes its digest."""
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
        """Notes a file that a worker wrote inside `folder`, with the digest the worker took."""
        self.files[name] = digest

    def discard(self, name: str) -> None:
        """Removes a file that was only needed on the way."""
        (self.folder / name).unlink(missing_ok=True)
        self.files.pop(name, None)

    def commit(self, *, settings: dict[str, Any], inputs: dict[str, str], facts: dict[str, Any]) -> Manifest:
        """Writes the manifest and renames the folder to its final place; an older one there is replaced."""
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
        finish_rename(self.final)
        return manifest


def partial_of(final: Path) -> Path:
    """Where unfinished work on a folder lives."""
    return final.with_name(final.name + ".partial")


def finish_rename(final: Path) -> None:
    """Moves a whole `<final>.partial` into place; safe to be killed in at any point and called again.

    The older folder is set aside as `<final>.old` first and removed last, so that one of the two is always there.
    Whoever only looks leaves everything where it is.
    """
    if is_looking_only():
        return
    partial, old = partial_of(final), final.with_name(final.name + ".old")
    if (partial / MANIFEST_NAME).exists():
        if final.exists():
            if old.exists():
                shutil.rmtree(old)
            final.rename(old)
        partial.rename(final)
    elif old.exists() and not final.exists():
        old.rename(final)
    if old.exists():
        shutil.rmtree(old)


def has_artifact(folder: Path) -> bool:
    """True where a whole artifact stands."""
    finish_rename(folder)
    return (folder / MANIFEST_NAME).is_file()


def read_manifest(folder: Path, *, made_by: str) -> Manifest:
    """The manifest of a whole artifact.

    Args:
        made_by: the command that makes it, for the message.

    Raises:
        ArtifactError: the folder is missing, unfinished, or from a newer format.
    """
    if not has_artifact(folder):
        state = "is unfinished" if partial_of(folder).exists() else "is not there"
        raise ArtifactError(f"{folder}: expected a finished artifact, it {state}. Run `{made_by}` first.")
    try:
        raw = json.loads((folder / MANIFEST_NAME).read_text())
        files = {name: FileDigest(**digest) for name, digest in raw.pop("files").items()}
        manifest = Manifest(files=files, **raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{folder / MANIFEST_NAME}: not a manifest ({error}). Run `{made_by} --fresh`.") from error
    if manifest.format != FORMAT:
        raise ArtifactError(
            f"{folder}: expected format {FORMAT}, found {manifest.format}. Run `{made_by} --fresh` with this version."
        )
    return manifest


def find_damage(folder: Path, manifest: Manifest) -> list[str]:
    """One line for each file that is missing, unexpected in size, or changed since it was written."""
    damage = []
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            damage.append(f"{path}: missing")
        elif path.stat().st_size != digest.num_bytes:
            damage.append(f"{path}: {path.stat().st_size} bytes, expected {digest.num_bytes}")
        elif digest_file(path) != digest.sha256:
            damage.append(f"{path}: changed since it was written (SHA-256 differs)")
    return damage


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A parquet or CSV table of an artifact.

    Raises:
        ArtifactError: missing or unreadable.
    """
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, usecols=columns)
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). `ichkit verify` lists what is damaged."
        ) from error


def git_commit() -> str:
    """The commit of the checkout this package runs from; empty outside a checkout of its own."""
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
    """Versions of Python and of the packages that decide the bytes of a result."""
    versions = {"python": platform.python_version()}
    for name in _REPORTED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
