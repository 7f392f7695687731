"""Faults at every change of the file system: a command is killed, or refused a write, before its N-th change.

As SQLite is tested: a command runs in a process of its own, and an audit hook counts what it does to the file system
inside its folder (files opened for writing, renames, removals, folders made). Before the N-th of these OSError is
raised in its place, or the process group is killed. What a kill leaves is the folder as it is at that moment: it is
copied, so that one run serves many points; where other processes write too, the group is killed indeed. Then the
command runs again, undisturbed, and the folder must hold, byte for byte, what it holds after one undisturbed run; only
times differ. A command that begins twice from the same bytes does the same twice: a state that an earlier fault left
too is not run again.
"""

import contextlib
import errno
import hashlib
import importlib
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = (
    "prepare.workers=1",
    "prepare.num_folds=2",
    "prepare.size=null",
    "train.image_size=32",
    "train.epochs=1",
    "train.batch_blocks=4",
    "train.threads=1",
    "train.workers=0",
    "train.accelerator=cpu",
    "stack.fusion.epochs=1",
    "stack.fusion.num_seeds=1",
    "stack.num_inner=2",
    "stack.lightgbm.max_rounds=5",
    "evaluate.num_draws=20",
    "adversarial.permutations=19",
)
_SHARED = ["-c", "demo", *(word for text in SETTINGS for word in ("--set", text))]
_CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.truncate", "os.symlink"}
_SECONDS, _CPU_SECONDS = 1800, 300
_MOST_COPIES = 50
# In place of a kill; the last is what a read-only or foreign folder says.
ERRORS = {"ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES}
KILL, TORN = "kill", "torn"
"""Killed before a change; killed in the middle of writing a file, half of which is on the disk."""
FAULTS = (KILL, TORN, *ERRORS)
# Times, and the commit of a checkout.
_TIMES = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


@dataclass(frozen=True)
class Command:
    """One command that writes.

    Attributes:
        name: for messages and the JSON.
        base: the state it starts from: the name of the command before it; "" for an empty folder.
        words: as typed.
        again: as typed after a kill; None for the same.
        beside: a second command that runs undisturbed in the same folder at the same time.
        is_long: tried at few points, because each takes many seconds.
    """

    name: str
    base: str
    words: tuple[str, ...]
    again: tuple[str, ...] | None = None
    beside: tuple[str, ...] = ()
    is_long: bool = False

    @property
    def has_company(self) -> bool:
        """Other processes write into the folder too."""
        return bool(self.beside) or self.is_long


_PREPARE = ("prepare", "--rsna", "phantom/rsna", "--cq500", "phantom/cq500")
_PHANTOM = ("--studies", "10", "--test-studies", "2", "--cq500-studies", "2", "--size", "64")
_SMALL_PHANTOM = ("--studies", "4", "--test-studies", "1", "--cq500-studies", "1", "--size", "64")
_TINY_PHANTOM = ("--studies", "1", "--test-studies", "1", "--cq500-studies", "1", "--size", "64")
_WATCH = ("watch", "phantom/cq500", "--out", "watched", "--once", "--settle", "0")
_ONLY_BASES = ("data", "small data", "store")
COMMANDS = (
    Command("data", "", ("phantom", "phantom", *_PHANTOM)),
    Command("small data", "", ("phantom", "phantom", *_SMALL_PHANTOM)),
    Command("store", "data", (*_PREPARE, "--lock", "0.2")),
    Command("prepare", "small data", _PREPARE),
    Command("prepare --folds", "prepare", (*_PREPARE, "--folds", "mine.csv")),
    Command("prepare --fresh", "prepare --folds", (*_PREPARE, "--fresh"), _PREPARE),
    Command("train", "store", ("train", "--fold", "0")),
    Command("train --fresh", "train", ("train", "--fold", "0", "--fresh"), ("train", "--fold", "0")),
    Command("train 1", "train", ("train", "--fold", "1")),
    Command("train 0 and 1", "store", ("train", "--fold", "0"), beside=("train", "--fold", "1")),
    Command("stack", "train 1", ("stack",)),
    Command("evaluate", "stack", ("evaluate",)),
    Command("evaluate --prove", "evaluate", ("evaluate", "--prove")),
    Command("evaluate --protocols", "evaluate", ("evaluate", "--protocols")),
    Command("evaluate --robustness", "evaluate", ("evaluate", "--robustness")),
    Command("evaluate --adversarial", "evaluate", ("evaluate", "--adversarial")),
    Command("submit", "evaluate", ("submit", "--source", "demo-blend")),
    Command("leaderboard --record", "submit", ("leaderboard", "--record", "demo-blend", "--public", "0.5")),
    Command("report", "submit", ("report", "--label-errors")),
    Command("explain", "train 1", ("explain", "--worst", "2", "--class", "any")),
    Command("export", "stack", ("export", "demo-blend")),
    Command("predict", "stack", ("predict", "phantom/cq500", "--model", "demo-blend")),
    Command("watch", "stack", (*_WATCH, "--model", "demo-blend")),
    Command("phantom", "", ("phantom", "phantom", *_TINY_PHANTOM)),
    Command("prepare --backend ray", "small data", (*_PREPARE, "--backend", "ray"), is_long=True),
)


@dataclass
class Outcome:
    """What trying a command at some points found."""

    num_points: int = 0
    num_tried: int = 0
    num_equal: int = 0  # of those tried, how many left what an earlier one had left
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _State:
    """The folder after a fault before the change of this number; with what was wrong at once."""

    point: int
    problem: str = ""


class Harness:
    """States of a folder after each command, and faults on the way to them.

    Args:
        scratch: an empty folder for all of it.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._work = scratch / "work"
        self._commands = {command.name: command for command in COMMANDS}
        self._changes: dict[str, list[bool]] = {}
        self._mended: set[tuple[str, tuple[str, ...], str]] = set()
        os.environ["ICHKIT_SALT"] = "faults"
        _import_all()

    def state(self, name: str) -> Path:
        """The folder after an undisturbed command, made when it is first asked for."""
        folder = self.scratch / "states" / (name.replace(" ", "_") or "empty")
        if folder.exists():
            return folder
        if not name:
            folder.mkdir(parents=True)
            return folder
        command = self._commands[name]
        work = self.copy(command.base)
        if name == "prepare --folds":
            _swap_folds(work / "work" / "prepared" / "folds.csv", work / "mine.csv")
        for words in filter(None, (command.words, command.beside)):
            code, text = run(work, words)
            assert code == 0, f"{name}: exit {code}\n{text}"
        work.rename(folder)
        return folder

    def list_points(self, command: Command, fault: str = KILL) -> list[int]:
        """The changes of the file system that an undisturbed command makes, counted from 1: those a fault can hit."""
        if command.name not in self._changes:
            work = self.copy(command.base, command)
            with beside(work, command.beside):
                run(work, command.words, fault="count")
            self._changes[command.name] = json.loads((work / ".count").read_text())
            shutil.rmtree(work)
            if not command.is_long:
                _warm_up(work)
        are_torn = self._changes[command.name]
        points = [point for point, is_torn in enumerate(are_torn, 1) if is_torn or fault != TORN]
        return [] if command.has_company and fault == TORN else points

    def try_points(self, command: Command, fault: str, *, every: int = 1, first: int = 0) -> Outcome:
        """Tries a fault at every so-manieth point of a command.

        Args:
            fault: one of `FAULTS`.
            first: how many points are left out at the beginning.
        """
        expected = normalise(self.state(command.name))
        points = self.list_points(command, fault)
        found = Outcome(len(points))
        for state in self._states(command, fault, points[first::every]):
            found.num_tried += 1
            problem, is_equal = self._mend(command, fault, expected) if not state.problem else (state.problem, False)
            shutil.rmtree(self._work)
            found.num_equal += is_equal
            if problem:
                found.failures.append(f"{command.name}, {fault} at {state.point} of {points[-1]}: {problem}")
        return found

    def _states(self, command: Command, fault: str, points: list[int]) -> Iterator[_State]:
        """What each fault leaves in the folder, one after the other."""
        if fault in (KILL, TORN) and not command.has_company:
            for first in range(0, len(points), _MOST_COPIES):
                yield from self._copies(command, fault, points[first : first + _MOST_COPIES])
            return
        for point in points:
            work = self.copy(command.base, command)
            with beside(work, command.beside):
                code, text = run(work, command.words, at=(point,), fault=fault)
            is_right = fault not in ERRORS or code in (0, 2)
            yield _State(point, "" if is_right else f"exit {code}\n{text[-1500:]}")

    def _copies(self, command: Command, fault: str, points: list[int]) -> Iterator[_State]:
        """What a kill leaves: a copy of the folder at that moment, all of them from one run."""
        work = self.copy(command.base, command)
        run(work, command.words, at=points, fault=f"copy {fault}")
        shutil.rmtree(work)
        for point in points:
            copy_of(work, point).rename(work)
            yield _State(point)

    def _mend(self, command: Command, fault: str, expected: dict[str, bytes | None]) -> tuple[str, bool]:
        """What is wrong after the command was run again, and whether it was not needed: the state was mended before."""
        again = command.words if command.again is None or fault in ERRORS else command.again
        state = (command.name, again, digest_state(self._work))
        if state in self._mended:
            return "", True
        code, text = run(self._work, again)
        if code:
            return f"the same command again: exit {code}\n{text[-1500:]}", False
        problem = describe_difference(expected, normalise(self._work))
        if not problem:
            self._mended.add(state)
        return problem, False

    def copy(self, name: str, command: Command | None = None) -> Path:
        """A folder in the state after a command, to be changed; one at a time."""
        work = self._work
        shutil.copytree(self.state(name), work, copy_function=_link)
        if command is not None and command.name == "prepare --folds":
            _swap_folds(work / "work" / "prepared" / "folds.csv", work / "mine.csv")
        return work


def run(
    work: Path, words: tuple[str, ...], *, at: Collection[int] = (), fault: str = "", log: str = "log"
) -> tuple[int, str]:
    """Runs one command in a process of its own, in `work`; returns its exit code and what it printed.

    Args:
        at: before which changes of the file system the fault comes.
        fault: one of `FAULTS`; one to copy the folder as it would leave it; "count" to list the changes in `.count`.
    """
    printed = work.parent / log
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.chdir(work)
            with printed.open("wb", buffering=0) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = _run_here(work, words, at, fault)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), printed.read_text(errors="replace")


@contextlib.contextmanager
def beside(work: Path, words: tuple[str, ...]) -> Iterator[None]:
    """Runs a second command, undisturbed, in a process of its own while the block runs; without words none."""
    if not words:
        yield
        return
    pid = os.fork()
    if pid == 0:
        os._exit(run(work, words, log="log beside")[0])
    yield
    _, status = os.waitpid(pid, 0)
    assert status == 0, (work.parent / "log beside").read_text(errors="replace")


def _run_here(work: Path, words: tuple[str, ...], at: Collection[int], fault: str) -> int:
    import torch

    from ichkit.cli.main import main
    from ichkit.stages.stack import run as stack

    # The threads of a pool do not live on in a fork: an operation that waited for them would never end.
    torch.set_num_threads(1)
    signal.alarm(_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    # Fits in this process: workers would start Python anew for each.
    stack.run_tasks = lambda function, tasks, **_: ((i, function(task)) for i, task in enumerate(tasks))  # type: ignore[assignment]
    changes: list[bool] = []
    is_copying = False

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal is_copying
        if is_copying or not _is_change(event, args, work):
            return
        path = Path(_path_of(args))
        is_file_put_in_place = event == "os.rename" and path.is_file()
        changes.append(is_file_put_in_place)
        if len(changes) not in at:
            return
        if fault in ERRORS:
            raise OSError(ERRORS[fault], os.strerror(ERRORS[fault]), str(args[0]))
        if fault == KILL:
            os.killpg(0, signal.SIGKILL)
        is_copying = True
        copy = copy_of(work, len(changes))
        shutil.copytree(work, copy, copy_function=_link_unchanged)
        if fault == f"copy {TORN}":
            _tear(copy / path.absolute().relative_to(work))
        is_copying = False

    if fault:
        sys.addaudithook(watch)
    try:
        main([*words, *_SHARED], prog_name="ichkit")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    if fault == "count":
        Path(".count").write_text(json.dumps(changes))
        _note_warmth(work)
    return code


def _note_warmth(work: Path) -> None:
    """Writes down the modules and compiled kernels that this command came to need."""
    kernels = {
        (name, key): value.signatures
        for name, module in sorted(sys.modules.items())
        if name.startswith("ichkit.")
        for key, value in vars(module).items()
        if hasattr(value, "nopython_signatures")
    }
    work.with_name("warmth").write_bytes(pickle.dumps((sorted(sys.modules), kernels)))


def _warm_up(work: Path) -> None:
    """Imports and loads what the command just counted needs, so that its next processes have it from the beginning."""
    modules, kernels = pickle.loads(work.with_name("warmth").read_bytes())
    for name in modules:
        with contextlib.suppress(Exception):  # made by hand, or only for the main module
            importlib.import_module(name)
    for (name, key), signatures in kernels.items():
        for signature in signatures:
            getattr(sys.modules[name], key).compile(signature)


def copy_of(work: Path, point: int) -> Path:
    """Where a copy of a folder before a change goes."""
    return work.with_name(f"work before {point}")


def _tear(path: Path) -> None:
    """Leaves half of a file, as a kill in the middle of writing it does."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()  # other states may share its bytes
    path.write_bytes(half)


def _is_change(event: str, args: tuple[object, ...], work: Path) -> bool:
    if event == "open":
        flags = args[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
            return False
    elif event not in _CHANGES:
        return False
    path = _path_of(args)
    return bool(path) and (not path.startswith("/") or path.startswith(f"{work}/")) and path != ".count"


def _path_of(args: tuple[object, ...]) -> str:
    """The path of an audit event; empty if it has a file descriptor."""
    return os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""


def normalise(root: Path) -> dict[str, bytes | None]:
    """Path to content of everything below a folder, without times; None for a folder."""
    found: dict[str, bytes | None] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name != ".count":
            found[name] = None if path.is_dir() else _without_times(path)
    return found


def digest_state(root: Path) -> str:
    """A digest of everything that decides what a command does here: paths and contents, without times and locks."""
    state = normalise(root)
    content = [(name, None if name.endswith("-lock") else state[name]) for name in sorted(state)]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _without_times(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == "manifest.json":
        try:
            raw = json.loads(data)
        except ValueError:  # torn
            return data
        facts = {name: value for name, value in raw["facts"].items() if not name.startswith("seconds")}
        timed = ("history.csv", "steps.jsonl")
        files = {name: None if name.endswith(timed) else file for name, file in raw["files"].items()}
        return json.dumps({**raw, "created_utc": "", "git_commit": "", "facts": facts, "files": files}).encode()
    if path.name in ("history.csv", "steps.jsonl"):
        return str(len(data.splitlines())).encode()
    if path.name == "report.json":  # the time of the report
        return b""
    if path.name == "report.html":
        return data[-20:]
    return _TIMES.sub(b"", data)


def describe_difference(expected: dict[str, bytes | None], found: dict[str, bytes | None]) -> str:
    """What is missing, what is too much and what is different; empty where nothing is."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    parts = [f"{what}: {', '.join(names[:4])}" for what, names in
             (("missing", missing), ("left over", extra), ("different", other)) if names]  # fmt: skip
    return "; ".join(parts)


def _swap_folds(source: Path, target: Path) -> None:
    """Folds that no dealing gives: every patient in the other one of two."""
    head, *rows = source.read_text().splitlines()
    swapped = [f"{row[:-1]}{1 - int(row[-1])}" for row in rows]
    target.write_text("\n".join([head, *swapped]) + "\n")


def _link(source: str, target: str) -> None:
    """A copy that shares its bytes: ichkit replaces files and never writes into one, but for the journal."""
    if source.endswith(".jsonl"):
        shutil.copyfile(source, target)
    else:
        os.link(source, target)


def _link_unchanged(source: str, target: str) -> None:
    """A copy of what the command wrote; what lay there before is shared, as it is by all states."""
    if os.stat(source).st_nlink > 1:  # noqa: PTH116
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def _import_all() -> None:
    """What the commands import, so that a forked process has it; nothing here computes, so no thread is left behind."""
    with contextlib.suppress(ImportError):
        import lightgbm  # noqa: F401
    import ichkit.phantom.writer
    import ichkit.stages.explain.run
    import ichkit.stages.predict.export
    import ichkit.stages.predict.run
    import ichkit.stages.prepare.run
    import ichkit.stages.report.run
    import ichkit.stages.scores.submit
    import ichkit.stages.stack.run
    import ichkit.stages.train.network  # noqa: F401


def chosen(names: list[str]) -> Iterator[Command]:
    """The commands of these names; all that are more than a base of others without any."""
    return (command for command in COMMANDS if command.name in names or (not names and command.name not in _ONLY_BASES))
