"""Resources of this machine: packages, GPU, cores, memory, disk, and decoders for compressed DICOM."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ichkit.engine.parallel import CGROUP, SHARED_MEMORY, count_cores, free_memory_bytes, memory_limit
from ichkit.stages.doctor.gpus import Accelerators, Gpu, find_gpus
from ichkit.stages.doctor.packages import extra_versions, required_versions

DECODERS = {
    "uncompressed": ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"),
    "RLE": ("1.2.840.10008.1.2.5",),
    "JPEG 12 bit": ("1.2.840.10008.1.2.4.51",),
    "JPEG lossless": ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
    "HTJ2K": ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"),
}
"""Families of transfer syntaxes that may hold slices of 16 allocated bits. Source: DICOM PS3.5 section 10 and A.4."""
_JPEG_12_BIT = DECODERS["JPEG 12 bit"][0]
_UNKNOWN_BYTES = 2**62  # what `free_memory_bytes` gives where it cannot know


@dataclass(frozen=True)
class Machine:
    """Resources of a machine; None if unknown.

    Attributes:
        versions, extras: as `required_versions` and `extra_versions` give them.
        gpus, gpu_note, torch_error: as in `gpus.Accelerators`.
        cores: that this process may use.
        core_quota: how many of them the cgroup grants at a time; None without a limit.
        memory_bytes: of the machine; memory_limit_bytes: of the cgroup; memory_free_bytes: what new work may take.
        shared_memory_bytes: size of /dev/shm.
        disk_free_bytes: where the work folder is or will be.
        is_work_writable: whether the work folder can be written to, or made.
        decoders: family of transfer syntaxes to whether all of it can be decoded.
    """

    versions: dict[str, str]
    extras: dict[str, str]
    gpus: tuple[Gpu, ...]
    gpu_note: str
    torch_error: str
    cores: int
    core_quota: float | None
    memory_bytes: int | None
    memory_limit_bytes: int | None
    memory_free_bytes: int | None
    shared_memory_bytes: int | None
    disk_free_bytes: int
    is_work_writable: bool
    decoders: dict[str, bool]


def inspect_machine(root: Path, asked: Callable[[], Accelerators] = find_gpus) -> Machine:
    """Inspects this machine and writes nothing.

    Args:
        root: of the work folder, which need not be there.
        asked: the answer of `ask_torch`.
    """
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    free, limit, versions, extras, decoders = (
        free_memory_bytes(),
        memory_limit(),
        required_versions(),
        extra_versions(),
        find_decoders(),
    )
    torch = asked()
    return Machine(
        versions=versions,
        extras=extras,
        gpus=torch.gpus,
        gpu_note=torch.note,
        torch_error=torch.torch_error,
        cores=count_cores(),
        core_quota=_core_quota(),
        memory_bytes=_memory_bytes(),
        memory_limit_bytes=None if limit is None else limit.num_bytes,
        memory_free_bytes=free if free < _UNKNOWN_BYTES else None,
        shared_memory_bytes=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None,
        disk_free_bytes=shutil.disk_usage(place).free,
        is_work_writable=place.is_dir() and os.access(place, os.W_OK | os.X_OK),
        decoders=decoders,
    )


def find_decoders() -> dict[str, bool]:
    """Family of transfer syntaxes to whether every syntax of it can be decoded here."""
    return {family: all(map(_can_decode, syntaxes)) for family, syntaxes in DECODERS.items()}


def _can_decode(syntax: str) -> bool:
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:  # known to DICOM, not to this version of pydicom
        return False
    # pydicom counts Pillow as a decoder of this syntax, but Pillow reads its 8 bit images alone.
    if syntax == _JPEG_12_BIT:
        return bool(set(decoder.available_plugins) - {"pillow"})
    return decoder.is_available


def _core_quota() -> float | None:
    """Number of cores allowed by the cgroup. Source: kernel docs, cgroup-v2, "cpu.max": quota, then period."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no cgroup of its own, or its limit is "max"
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, some systems not these names
        return None
