"""Resources of this machine: packages, GPU, cores, memory, disk, and decoders for compressed DICOM."""

import importlib
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from ichkit.engine.parallel import CGROUP, SHARED_MEMORY, count_cores, free_memory_bytes, memory_limit
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
_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_UNKNOWN_BYTES = 2**62  # what `free_memory_bytes` gives where it cannot know


@dataclass(frozen=True)
class Gpu:
    """One accelerator; its memory is None if it shares the memory of the machine."""

    name: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Machine:
    """Resources of a machine; None if unknown.

    Attributes:
        versions, extras: as `required_versions` and `extra_versions` give them.
        gpus: those that torch can use.
        gpu_note: what torch or the driver says where a GPU is there and cannot be used; empty otherwise.
        torch_error: why torch cannot be loaded; empty where it can.
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


def inspect_machine(root: Path) -> Machine:
    """Inspects this machine and writes nothing; most of its time is the import of torch.

    Args:
        root: of the work folder, which need not be there.
    """
    gpus, gpu_note, torch_error = _find_gpus()
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    free, limit = free_memory_bytes(), memory_limit()
    return Machine(
        versions=required_versions(),
        extras=extra_versions(),
        gpus=gpus,
        gpu_note=gpu_note,
        torch_error=torch_error,
        cores=count_cores(),
        core_quota=_core_quota(),
        memory_bytes=_memory_bytes(),
        memory_limit_bytes=None if limit is None else limit.num_bytes,
        memory_free_bytes=free if free < _UNKNOWN_BYTES else None,
        shared_memory_bytes=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None,
        disk_free_bytes=shutil.disk_usage(place).free,
        is_work_writable=place.is_dir() and os.access(place, os.W_OK | os.X_OK),
        decoders=find_decoders(),
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


def _find_gpus() -> tuple[tuple[Gpu, ...], str, str]:
    """The GPUs that torch can use; why it cannot use an existing one; why torch cannot be loaded (or empty)."""
    try:
        torch = importlib.import_module("torch")
    # OSError: a shared library that is missing or too old.
    except (ImportError, OSError, RuntimeError) as error:
        return (), "", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            known = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            return tuple(Gpu(one.name, one.total_memory) for one in known), "", ""
    if torch.backends.mps.is_available():
        return (Gpu("Apple GPU (mps)", None),), "", ""
    said = [str(item.message) for item in heard if issubclass(item.category, UserWarning)]
    if said:
        return (), said[0].splitlines()[0], ""
    if _NVIDIA_DRIVER.exists():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return (), f"an NVIDIA driver is installed, but this torch (built with {built}) sees no GPU", ""
    return (), "", ""


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
