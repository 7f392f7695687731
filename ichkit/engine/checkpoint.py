"""Checkpoints of unfinished training: written to a temporary file, synced, then renamed, so that none is incomplete."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ichkit.core.errors import ArtifactError
from ichkit.work.places import disk_full


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a state of tensors, numbers, text, lists and dicts; the previous file stays until this one is on disk.

    Raises:
        DiskFullError: the disk is full; the previous file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch's writer wraps a full disk in a RuntimeError.
        cause = error if isinstance(error, OSError) else error.__context__
        raise (disk_full(path, cause) if isinstance(cause, OSError) else error) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state, with its tensors on the CPU; loading executes no code of the file.

    Raises:
        ArtifactError: not readable.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ArtifactError(
            f"{path}: expected a checkpoint, found a file that cannot be read ({type(error).__name__}). "
            "Start this fold over: this command with --fresh."
        ) from error
    return state
