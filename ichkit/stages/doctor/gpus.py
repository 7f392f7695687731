"""The GPUs that torch can use, asked in a process of its own meanwhile; a crash of torch ends only that."""

import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_TIMEOUT_S = 120
"""A driver that hangs is reported as one that does not work."""


@dataclass(frozen=True)
class Gpu:
    """One accelerator; its memory is None if it shares the memory of the machine."""

    name: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Accelerators:
    """What torch can use.

    Attributes:
        gpus: those that torch can use.
        note: what torch or the driver says where a GPU is there and cannot be used; empty otherwise.
        torch_error: why torch cannot be loaded; empty where it can.
    """

    gpus: tuple[Gpu, ...] = ()
    note: str = ""
    torch_error: str = ""


def ask_torch() -> Callable[[], Accelerators]:
    """Starts to look for GPUs; the result waits for the answer. A torch that is loaded already is asked here.

    Its import takes as long as all else of `ichkit doctor`.
    """
    if "torch" in sys.modules:
        return find_gpus
    # -P: neither this folder nor the current one is where its imports are looked for first.
    command = [sys.executable, "-P", __file__]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return lambda: _read_answer(child)


def find_gpus() -> Accelerators:
    """The same in this process, which loads torch."""
    try:
        torch = importlib.import_module("torch")
    # OSError: a shared library that is missing or too old.
    except (ImportError, OSError, RuntimeError) as error:
        return Accelerators(torch_error=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            known = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            return Accelerators(tuple(Gpu(one.name, one.total_memory) for one in known))
    if torch.backends.mps.is_available():
        return Accelerators((Gpu("Apple GPU (mps)", None),))
    said = [str(item.message) for item in heard if issubclass(item.category, UserWarning)]
    if said:
        return Accelerators(note=said[0].splitlines()[0])
    if _NVIDIA_DRIVER.exists():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return Accelerators(note=f"an NVIDIA driver is installed, but this torch (built with {built}) sees no GPU")
    return Accelerators()


def _read_answer(child: subprocess.Popen[bytes]) -> Accelerators:
    try:
        printed, _ = child.communicate(timeout=_TIMEOUT_S)
        told = json.loads(printed)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return Accelerators(torch_error=f"its import or the driver did not answer for {_TIMEOUT_S} seconds")
    except ValueError:  # it wrote nothing, or not all
        return Accelerators(torch_error=f"its import ended the process with exit status {child.returncode}")
    gpus = tuple(Gpu(**one) for one in told["gpus"])
    return Accelerators(gpus, told["note"], told["torch_error"])


if __name__ == "__main__":
    print(json.dumps(asdict(find_gpus())))
