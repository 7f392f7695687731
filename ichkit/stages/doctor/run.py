"""`ichkit doctor`: this machine, the data and the work folder and the next command."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ichkit.core.config import Config
from ichkit.sources.table import SOURCES
from ichkit.stages.doctor.found_data import DataState, find_data
from ichkit.stages.doctor.found_work import WorkState, find_work
from ichkit.stages.doctor.gpus import Accelerators, find_gpus
from ichkit.stages.doctor.machine import Machine, inspect_machine
from ichkit.stages.doctor.next_step import Step, choose_step
from ichkit.work.folder import WorkFolder

MIN_SHARED_MEMORY_BYTES = 10**9
MIN_DISK_BYTES = 10**9
"""`ichkit demo` leaves 0.36 GB (`du -s ichkit-demo`), and a folder is written beside the one it replaces."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of `ichkit doctor`.

    Attributes:
        warnings: topic to what is not as it should be, and what to do about it.
        problems: topic to what makes the toolkit unusable here, and the command that fixes it.
    """

    machine: Machine
    data: dict[str, DataState]
    inventory: WorkState
    warnings: dict[str, str]
    problems: dict[str, Step]
    next: Step


def run(
    config: Config,
    work: WorkFolder,
    submissions: Path,
    config_name: str | None = None,
    asked: Callable[[], Accelerators] = find_gpus,
) -> Diagnosis:
    """Inspects machine, data and work folder and writes nothing; damaged or missing parts are reported, not raised.

    Args:
        config_name: the config that the next command should name; None for the one the work was made with.
        asked: the answer of `ask_torch`, so that torch is loaded meanwhile.
    """
    data = {name: find_data(source, getattr(config.prepare, name, None)) for name, source in SOURCES.items()}
    inventory = find_work(work, submissions)
    machine = inspect_machine(work.root, asked)
    problems = find_problems(machine)
    return Diagnosis(
        machine=machine,
        data=data,
        inventory=inventory,
        warnings=find_warnings(machine, data, inventory),
        problems=problems,
        next=next(iter(problems.values()), None)
        or choose_step(data, inventory, work, config_name, has_gpu=bool(machine.gpus)),
    )


def find_problems(machine: Machine) -> dict[str, Step]:
    """Problems that make the toolkit unusable here, by topic, and the command that fixes each."""
    problems = {}
    if machine.torch_error:
        problems["packages"] = Step(
            "pip install --force-reinstall torch torchvision", f"torch cannot be loaded ({machine.torch_error})."
        )
    if not machine.is_work_writable:
        problems["disk"] = Step("ichkit doctor --work DIR", "The work folder can be neither created nor written to.")
    return problems


def find_warnings(machine: Machine, data: dict[str, DataState], inventory: WorkState) -> dict[str, str]:
    """Warnings by topic, and what to do about each."""
    warnings = {}
    if machine.gpu_note:
        warnings["GPU"] = f"{machine.gpu_note}. Install the torch that fits the driver: https://pytorch.org."
    if machine.core_quota is not None and machine.core_quota < machine.cores:
        warnings["cores"] = (
            f"the cgroup limits this process to {machine.core_quota:g} of them: set prepare.workers and train.threads "
            f"to {max(1, int(machine.core_quota))}."
        )
    shared = machine.shared_memory_bytes
    if shared is not None and shared < MIN_SHARED_MEMORY_BYTES:
        warnings["/dev/shm"] = (
            "small: with a GPU, data loading workers pass batches through shared memory. Raise it (Docker: --shm-size) "
            "or set train.workers=0."
        )
    if machine.disk_free_bytes < MIN_DISK_BYTES:
        warnings["disk"] = "almost no space is free on the disk of the work folder. Name another disk with --work DIR."
    if not all(machine.decoders.values()):
        warnings["DICOM"] = "compressed images of the missing kinds would be rejected: `pip install 'ichkit[dicom]'`."
    for name, state in data.items():
        if state.is_named and not state.is_found:
            warnings[f"data: {name}"] = f"nothing is at {state.looked_at[0]}. Correct the path."
    if inventory.damaged:
        shown = ", ".join(inventory.damaged[:3]) + (", ..." if len(inventory.damaged) > 3 else "")
        warnings["damaged"] = f"{shown} cannot be read. `ichkit verify` lists the reasons."
    return warnings
