"""The findings of `ichkit doctor` as a table."""

from collections.abc import Iterator

from ichkit.show.table import NOTHING, Cell, Table
from ichkit.stages.doctor.found_data import DataState
from ichkit.stages.doctor.found_work import WorkState
from ichkit.stages.doctor.machine import Machine
from ichkit.stages.doctor.packages import EXTRAS, NOT_INSTALLED
from ichkit.stages.doctor.run import Diagnosis

_SHOWN_VERSIONS = ("python", "torch", "timm", "albumentations", "pydicom", "lightgbm", "pandas", "numba")
_BLANK: list[Cell | str] = ["", "", ""]
_FIRST = (True, False, False)


def render(diagnosis: Diagnosis) -> Table:
    """One row per topic: the finding, and below it any problem; `!` marks a warning, `x` an error."""
    rows: list[list[Cell | str]] = []
    for section in (_machine_rows(diagnosis.machine), _data_rows(diagnosis.data), _work_rows(diagnosis.inventory)):
        rows += [_BLANK] if rows else []
        for topic, found in section:
            rows += _topic_rows(topic, found, diagnosis)
    return Table("", ("", "", ""), rows, num_text=3)


def _topic_rows(topic: str, found: str, diagnosis: Diagnosis) -> list[list[Cell | str]]:
    problem, warning = diagnosis.problems.get(topic), diagnosis.warnings.get(topic)
    mark = Cell("x", tone="bad") if problem else Cell("!", tone="warn") if warning else ""
    said: list[Cell | str] = [found] if found else []
    said += [Cell(f"{problem.reason} Run `{problem.command}`.", tone="bad")] if problem else []
    said += [Cell(warning, tone="warn")] if warning else []
    return [[mark if first else "", topic if first else "", one] for first, one in zip(_FIRST, said, strict=False)]


def _machine_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    versions = [f"{name} {machine.versions[name]}" for name in _SHOWN_VERSIONS]
    own = machine.versions["ichkit"]
    yield "ichkit", "not installed, run from a checkout" if own == NOT_INSTALLED else own
    yield "packages", ", ".join(versions)
    gpus = [one.name + ("" if one.memory_bytes is None else f", {_size(one.memory_bytes)}") for one in machine.gpus]
    yield "GPU", "; ".join(gpus) or "none: training runs on the CPU"
    yield "cores", str(machine.cores)
    limit = "" if machine.memory_limit_bytes is None else f", the cgroup's limit is {_size(machine.memory_limit_bytes)}"
    yield "memory", f"{_size(machine.memory_free_bytes)} free of {_size(machine.memory_bytes)}{limit}"
    yield "/dev/shm", _size(machine.shared_memory_bytes)
    yield "disk", f"{_size(machine.disk_free_bytes)} free on the disk of the work folder"
    missing = [family for family, is_there in machine.decoders.items() if not is_there]
    known = ", ".join(family for family, is_there in machine.decoders.items() if is_there)
    yield "DICOM", known + (f"; missing: {', '.join(missing)}" if missing else "")
    extras = [
        f"{name} {version}" if version != NOT_INSTALLED else f"no {name} ({EXTRAS[name]}: pip install 'ichkit[{name}]')"
        for name, version in machine.extras.items()
    ]
    yield "extras", "; ".join(extras)


def _data_rows(data: dict[str, DataState]) -> Iterator[tuple[str, str]]:
    for name, state in data.items():
        kind = " (phantom)" if state.is_phantom else ""
        yield f"data: {name}", f"{state.where}{kind}" if state.is_found else f"none at {' or '.join(state.looked_at)}"


def _work_rows(inventory: WorkState) -> Iterator[tuple[str, str]]:
    yield "prepared", _describe_prepared(inventory)
    runs = [
        f"{name}: folds {_numbers(run.folds)}" + (f"; unfinished {_numbers(run.unfinished)}" if run.unfinished else "")
        for name, run in inventory.runs.items()
    ]
    yield "runs", "; ".join(runs) or NOTHING
    stacks = [
        f"{name}: {', '.join(stack.kinds)} on folds {_numbers(stack.folds)}{_age(stack.is_outdated)}"
        for name, stack in inventory.stacks.items()
    ]
    yield "stacks", "; ".join(stacks) or NOTHING
    yield "scores", "finished" if inventory.has_scores else NOTHING
    sent = [f"{name}{_age(note.is_outdated)}" for name, note in inventory.submissions.items()]
    yield "submissions", ", ".join(sent) or NOTHING
    yield "report", f"finished{_age(inventory.is_report_outdated)}" if inventory.has_report else NOTHING
    if inventory.damaged:
        yield "damaged", ""


def _describe_prepared(inventory: WorkState) -> str:
    state = inventory.prepared
    if state is None:
        return "unfinished" if inventory.is_prepare_unfinished else NOTHING
    counts = f"{state.num_slices} slices of {state.num_studies} studies ({state.data}), {state.num_rejected} rejected"
    return f"{counts}; folds {_numbers(state.folds)}"


def _numbers(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers)) or "none"


def _age(is_outdated: bool) -> str:
    return " (outdated)" if is_outdated else ""


def _size(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 1e9:.1f} GB"
