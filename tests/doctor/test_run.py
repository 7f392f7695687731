"""`ichkit doctor`: what it says of this machine, the data and the work folder, without a name and without a trace."""

import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support.workfolders import write_fold, write_prepared, write_stack

import ichkit
from ichkit.cli.main import main
from ichkit.engine import parallel
from ichkit.sources.table import SOURCES
from ichkit.stages.doctor import gpus, machine, packages
from ichkit.stages.doctor import run as doctor
from ichkit.stages.doctor.found_data import DataState, find_data
from ichkit.stages.doctor.found_work import WorkState
from ichkit.stages.doctor.table import render
from ichkit.work.folder import WorkFolder

NOWHERE = {name: DataState(False, "", tuple(map(str, row.folders)), False, False) for name, row in SOURCES.items()}
GOOD = machine.Machine(
    versions=dict.fromkeys(("python", "ichkit", "numpy", *packages.required()), "1.0"),
    extras=dict.fromkeys(packages.EXTRAS, "1.0"),
    gpus=(gpus.Gpu("H100", 80 * 10**9),),
    gpu_note="",
    torch_error="",
    cores=8,
    core_quota=None,
    memory_bytes=64 * 10**9,
    memory_limit_bytes=None,
    memory_free_bytes=32 * 10**9,
    shared_memory_bytes=32 * 10**9,
    disk_free_bytes=100 * 10**9,
    is_work_writable=True,
    decoders=dict.fromkeys(machine.DECODERS, True),
)


def make_torch(num_gpus=0, cuda="13.0", says=None):
    """A stand-in that is quick to load."""

    def is_available():
        if says:
            warnings.warn(says, stacklevel=1)
        return num_gpus > 0

    cuda_part = SimpleNamespace(
        is_available=is_available,
        device_count=lambda: num_gpus,
        get_device_properties=lambda i: SimpleNamespace(name=f"GPU {i}", total_memory=80 * 10**9),
    )
    mps = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))
    return SimpleNamespace(cuda=cuda_part, backends=mps, version=SimpleNamespace(cuda=cuda))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, no data named, and a torch without a GPU."""
    monkeypatch.chdir(tmp_path)
    for name in ("ICHKIT_WORK", *(source.variable for source in SOURCES.values())):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", make_torch())


def call(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="ichkit")
    assert result.exit_code == code, result.output
    return result.output


def test_the_work_folder_is_told_and_what_is_damaged_is_named():
    work = WorkFolder(Path("work"))
    write_prepared(work)
    write_fold(work, "default", 0)
    write_stack(work, "default", [0])
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    printed = call("doctor")
    assert "40 slices of 4 studies (phantom), 1 rejected; folds 0,1,2" in printed
    assert "default: blend on folds 0" in printed
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    for folder in (work.prepared, work.stacks / "default", work.fold("default", 0)):
        (folder / "manifest.json").write_text("")
    assert "prepared, runs/default/fold0, stacks/default cannot be read. `ichkit verify` lists the reasons." in call(
        "doctor"
    )


def test_data_are_found_where_prepare_finds_them(monkeypatch, tmp_path):
    source = SOURCES["rsna"]
    assert find_data(source).looked_at == tuple(map(str, source.folders))
    Path("data/rsna").mkdir(parents=True)
    assert find_data(source).where == "data/rsna"
    Path("data/rsna/phantom.json").touch()
    assert find_data(source).is_phantom
    monkeypatch.setenv("ICHKIT_RSNA", "nowhere")
    assert not find_data(source).is_found
    assert "nothing is at nowhere (ICHKIT_RSNA). Correct the path." in call("doctor")
    assert find_data(source, tmp_path).where == f"{tmp_path} (prepare.rsna)"


def test_a_phantom_that_is_found_is_called_one():
    Path("data/rsna").mkdir(parents=True)
    Path("data/rsna/phantom.json").touch()
    assert "data/rsna (phantom)" in call("doctor")


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"]])
@pytest.mark.parametrize("is_there", [False, True])
def test_the_path_of_a_person_s_own_scans_is_not_told(words, is_there, monkeypatch, tmp_path):
    private = tmp_path / "Erika_Mustermann"
    if is_there:
        private.mkdir()
    monkeypatch.setenv("ICHKIT_FOLDER", str(private))
    printed = call(*words)
    assert "Mustermann" not in printed
    assert "ICHKIT_FOLDER" in printed


def test_json_says_what_the_table_says():
    write_prepared(WorkFolder(Path("work")))
    told, printed = json.loads(call("doctor", "--json")), call("doctor")
    assert set(told) == {"machine", "data", "inventory", "warnings", "problems", "next"}
    assert f"What to do next: {told['next']['command']}\n{told['next']['reason']}\n" in printed
    assert told["inventory"]["prepared"]["folds"] == [0, 1, 2]
    assert f"torch {told['machine']['versions']['torch']}" in printed
    assert set(told["data"]) == set(SOURCES)


def diagnose(**changes):
    """Warnings and problems of a good machine with something wrong."""
    odd = replace(GOOD, **changes)
    return doctor.find_warnings(odd, NOWHERE, WorkState()), doctor.find_problems(odd)


ODDITIES = [
    ({"shared_memory_bytes": 64 * 2**20}, "/dev/shm", "Raise it (Docker: --shm-size) or set train.workers=0."),
    ({"disk_free_bytes": 10**8}, "disk", "Name another disk with --work DIR."),
    (
        {"core_quota": 2.5},
        "cores",
        "the cgroup limits this process to 2.5 of them: set prepare.workers and train.threads to 2.",
    ),
    ({"core_quota": 0.5}, "cores", "train.threads to 1."),
    ({"gpu_note": "the driver is too old"}, "GPU", "the driver is too old. Install the torch that fits the driver"),
    ({"decoders": {**GOOD.decoders, "JPEG-LS": False}}, "DICOM", "pip install 'ichkit[dicom]'"),
]


@pytest.mark.parametrize(("changes", "topic", "message"), ODDITIES)
def test_what_is_odd_is_a_warning_with_what_to_do(changes, topic, message):
    warned, problems = diagnose(**changes)
    assert list(warned) == [topic]
    assert message in warned[topic]
    assert not problems


def test_a_good_machine_has_no_warnings():
    assert diagnose() == ({}, {})
    assert diagnose(shared_memory_bytes=None, core_quota=8.0) == ({}, {})


def test_every_warning_and_problem_stands_in_the_row_of_its_topic():
    odd = replace(GOOD, is_work_writable=False, torch_error="ImportError: x")
    for changes, _, _ in ODDITIES:
        odd = replace(odd, **changes)
    lost = {name: replace(state, is_named=True) for name, state in NOWHERE.items()}
    damaged = WorkState(damaged=("prepared",))
    warned, problems = doctor.find_warnings(odd, lost, damaged), doctor.find_problems(odd)
    table = render(doctor.Diagnosis(odd, lost, damaged, warned, problems, next(iter(problems.values()))))
    marked = {topic.text for mark, topic, _ in table.lines if mark.text}
    assert marked == set(warned) | set(problems)


def test_a_work_folder_that_cannot_be_made_is_exit_2(tmp_path):
    (tmp_path / "file").touch()
    printed = call("doctor", "--work", "file/work", code=2)
    assert "The work folder can be neither created nor written to. Run `ichkit doctor --work DIR`." in printed
    assert "What to do next: ichkit doctor --work DIR" in printed


def test_a_torch_that_cannot_be_loaded_is_exit_2(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    printed = call("doctor", code=2)
    assert "torch cannot be loaded (ModuleNotFoundError: import of torch halted" in printed
    assert "What to do next: pip install --force-reinstall torch torchvision" in printed


def test_a_package_that_is_missing_is_one_message(monkeypatch):
    names = (*packages.required(), "no-such-package-as-this")
    monkeypatch.setattr(packages, "required", lambda: names)
    printed = call("doctor", code=2)
    assert "expected no-such-package-as-this, not installed. Run `pip install no-such-package-as-this`" in printed


def test_the_required_packages_are_those_of_the_metadata(monkeypatch):
    asked = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
    monkeypatch.setattr(packages.metadata, "requires", lambda name: [*asked, 'ray>=2.9; extra == "ray"'])
    packages.required.cache_clear()
    assert packages.required() == tuple(re.split("[>=]", requirement)[0] for requirement in asked)
    packages.required.cache_clear()


def test_gpus_are_named_with_their_memory(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", make_torch(num_gpus=2))
    assert "GPU 0, 80.0 GB; GPU 1, 80.0 GB" in call("doctor")


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", make_torch(says="CUDA initialization: driver too old\nand more"))
    assert "CUDA initialization: driver too old. Install the torch that fits the driver" in call("doctor")
    monkeypatch.setitem(sys.modules, "torch", make_torch(cuda=None))
    monkeypatch.setattr(gpus, "_NVIDIA_DRIVER", tmp_path)
    assert "an NVIDIA driver is installed, but this torch (built with no CUDA) sees no GPU" in call("doctor")


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import os; os._exit(0)", "its import ended the process with exit status 0"),
        ("import os; os.kill(os.getpid(), 11)", "its import ended the process with exit status -11"),
        ("import time; time.sleep(60)", "its import or the driver did not answer for 1 seconds"),
        ("raise OSError('libcudart.so: cannot open')", "OSError: libcudart.so: cannot open"),
    ],
)
def test_a_torch_that_crashes_or_hangs_does_not_end_doctor(program, expected, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpus, "_TIMEOUT_S", 1 if "sleep" in program else 60)
    monkeypatch.delitem(sys.modules, "torch")
    assert gpus.ask_torch()().torch_error == expected
    assert "torch" not in sys.modules


def test_limits_of_the_cgroup_are_read(monkeypatch, tmp_path):
    for module in (machine, parallel):
        monkeypatch.setattr(module, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("2000000000\n")
    seen = machine.inspect_machine(Path("work"))
    assert (seen.core_quota, seen.memory_limit_bytes) == (1.5, 2 * 10**9)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    seen = machine.inspect_machine(Path("work"))
    assert (seen.core_quota, seen.memory_limit_bytes) == (None, None)


def test_a_family_is_there_when_all_its_syntaxes_are_and_12_bit_jpeg_needs_more_than_pillow(monkeypatch):
    plugins = {syntax: ("gdcm",) for family in machine.DECODERS.values() for syntax in family}
    monkeypatch.setattr("pydicom.pixels.get_decoder", lambda syntax: _decoder(plugins[syntax]))
    assert all(machine.find_decoders().values())
    plugins["1.2.840.10008.1.2.4.70"], plugins["1.2.840.10008.1.2.4.51"] = (), ("pillow",)
    plugins["1.2.840.10008.1.2.4.90"] = ("pillow",)
    missing = [family for family, is_there in machine.find_decoders().items() if not is_there]
    assert missing == ["JPEG 12 bit", "JPEG lossless"]


def _decoder(plugins):
    return SimpleNamespace(available_plugins=plugins, is_available=bool(plugins))


def test_a_syntax_that_pydicom_does_not_know_is_missing(monkeypatch):
    def refuse(syntax):
        raise NotImplementedError(syntax)

    monkeypatch.setattr("pydicom.pixels.get_decoder", refuse)
    assert not any(machine.find_decoders().values())


@pytest.mark.slow
def test_this_machine_is_told_by_the_torch_that_is_here(tmp_path):
    path = os.pathsep.join([str(Path(ichkit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ask = [sys.executable, "-m", "ichkit", "doctor", "--json"]
    done = subprocess.run(
        ask, capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    told = json.loads(done.stdout)
    assert told["machine"]["torch_error"] == ""
    assert told["machine"]["decoders"]["uncompressed"]
    assert told["next"]["command"] == "ichkit demo"
    assert list(tmp_path.iterdir()) == []
