"""Faults at every change of the file system: a command is killed, or refused a write, before its N-th change.

As SQLite is tested: a command runs in a process of its own, and an audit hook counts what it does to the file system
inside its folder (files opened for writing, renames, removals, folders made). Before the N-th of these the process
group is killed, or OSError is raised in its place. Then the command runs again, undisturbed, and the folder must hold,
byte for byte, what it holds after one undisturbed run; only times differ.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
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
    "evaluate.num_draws=20",
)
_SHARED = ["-c", "demo", *(word for text in SETTINGS for word in ("--set", text))]
_CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.truncate", "os.symlink"}
_SECONDS = 300
# In place of a kill; the last is what a read-only or foreign folder says.
ERRORS = {"ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES}
# Times, and the commit of a checkout.
_TIMES = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


@dataclass(frozen=True)
class Command:
    """One command that writes.

    Attributes:
        name: for messages and the JSON.
        base: the state it starts from: the name of the command before it; "" for an empty folder.
        words: as typed.
        again: as typed after the fault; None for the same.
    """

    name: str
    base: str
    words: tuple[str, ...]
    again: tuple[str, ...] | None = None


_PREPARE = ("prepare", "--rsna", "phantom/rsna", "--cq500", "phantom/cq500")
_PHANTOM = ("--studies", "10", "--test-studies", "2", "--cq500-studies", "2", "--size", "64")
_TINY_PHANTOM = ("--studies", "1", "--test-studies", "1", "--cq500-studies", "1", "--size", "64")
COMMANDS = (
    Command("data", "", ("phantom", "phantom", *_PHANTOM)),
    Command("phantom", "", ("phantom", "phantom", *_TINY_PHANTOM)),
    Command("prepare", "data", _PREPARE),
    Command("prepare --folds", "prepare", (*_PREPARE, "--folds", "mine.csv")),
    Command("prepare --fresh", "prepare --folds", (*_PREPARE, "--fresh"), _PREPARE),
    Command("train", "prepare", ("train", "--fold", "0")),
    Command("train --fresh", "train", ("train", "--fold", "0", "--fresh"), ("train", "--fold", "0")),
    Command("train 1", "train", ("train", "--fold", "1")),
    Command("stack", "train 1", ("stack",)),
    Command("evaluate", "stack", ("evaluate",)),
    Command("submit", "evaluate", ("submit",)),
    Command("report", "submit", ("report",)),
    Command("export", "stack", ("export", "demo-blend")),
    Command("predict", "stack", ("predict", "phantom/cq500", "--model", "demo-blend", "--no-page")),
)


@dataclass
class Outcome:
    """What trying a command at some points found."""

    num_points: int = 0
    num_tried: int = 0
    failures: list[str] = field(default_factory=list)


class Harness:
    """States of a folder after each command, and faults on the way to them.

    Args:
        scratch: an empty folder for all of it.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._commands = {command.name: command for command in COMMANDS}
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
        code, text = run(work, command.words)
        assert code == 0, f"{name}: exit {code}\n{text}"
        work.rename(folder)
        return folder

    def count_points(self, command: Command) -> int:
        """How many changes of the file system an undisturbed command makes."""
        work = self.copy(command.base, command)
        run(work, command.words, at=-1)
        num_points = int((work / ".count").read_text())
        shutil.rmtree(work)
        return num_points

    def try_points(self, command: Command, fault: str, *, every: int = 1, first: int = 1) -> Outcome:
        """Tries a fault at every so-manieth point of a command.

        Args:
            fault: "kill", or a key of `ERRORS`.
        """
        expected = normalise(self.state(command.name))
        found = Outcome(self.count_points(command))
        for point in range(first, found.num_points + 1, every):
            found.num_tried += 1
            problem = self._try(command, fault, point, expected)
            if problem:
                found.failures.append(f"{command.name}, {fault} at {point} of {found.num_points}: {problem}")
        return found

    def remove(self, work: Path) -> None:
        """Makes room for the next copy."""
        shutil.rmtree(work)

    def _try(self, command: Command, fault: str, point: int, expected: dict[str, bytes]) -> str:
        work = self.copy(command.base, command)
        try:
            code, text = run(work, command.words, at=point, fault=fault)
            if fault != "kill" and code not in (0, 2):
                return f"exit {code}\n{text[-1500:]}"
            code, text = run(work, command.words if command.again is None or fault != "kill" else command.again)
            if code:
                return f"the same command again: exit {code}\n{text[-1500:]}"
            return describe_difference(expected, normalise(work))
        finally:
            shutil.rmtree(work)

    def copy(self, name: str, command: Command | None = None) -> Path:
        """A folder in the state after a command, to be changed; one at a time."""
        work = self.scratch / "work"
        shutil.copytree(self.state(name), work, copy_function=_link)
        if command is not None and command.name == "prepare --folds":
            _swap_folds(work / "work" / "prepared" / "folds.csv", work / "mine.csv")
        return work


def run(work: Path, words: tuple[str, ...], *, at: int = 0, fault: str = "kill", log: str = "log") -> tuple[int, str]:
    """Runs one command in a process of its own, in `work`; returns its exit code and what it printed.

    Args:
        at: before which change of the file system the fault comes; 0 for none, -1 to count them into `.count`.
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


def _run_here(work: Path, words: tuple[str, ...], at: int, fault: str) -> int:
    from ichkit.cli.main import main
    from ichkit.stages.stack import run as stack

    signal.alarm(_SECONDS)
    # Fits in this process: workers would start Python anew for each.
    stack.run_tasks = lambda function, tasks, **_: ((i, function(task)) for i, task in enumerate(tasks))  # type: ignore[assignment]
    count = 0

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if not _is_change(event, args, work):
            return
        count += 1
        if count != at:
            return
        if fault == "kill":
            os.killpg(0, signal.SIGKILL)
        raise OSError(ERRORS[fault], os.strerror(ERRORS[fault]), str(args[0]))

    if at:
        sys.addaudithook(watch)
    try:
        main([*words, *_SHARED], prog_name="ichkit")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    if at < 0:
        Path(".count").write_text(str(count))
    return code


def _is_change(event: str, args: tuple[object, ...], work: Path) -> bool:
    if event == "open":
        flags = args[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
            return False
    elif event not in _CHANGES:
        return False
    path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
    return bool(path) and (not path.startswith("/") or path.startswith(f"{work}/")) and path != ".count"


def normalise(root: Path) -> dict[str, bytes | None]:
    """Path to content of everything below a folder, without times; None for a folder."""
    found: dict[str, bytes | None] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name != ".count":
            found[name] = None if path.is_dir() else _without_times(path)
    return found


def _without_times(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == "manifest.json":
        raw = json.loads(data)
        facts = {name: value for name, value in raw["facts"].items() if not name.startswith("seconds")}
        timed = ("history.csv", "steps.jsonl")
        files = {name: None if name.endswith(timed) else file for name, file in raw["files"].items()}
        return json.dumps({**raw, "created_utc": "", "git_commit": "", "facts": facts, "files": files}).encode()
    if path.name in ("history.csv", "steps.jsonl"):
        return str(len(data.splitlines())).encode()
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


def _import_all() -> None:
    """What the commands import, so that a forked process has it; nothing here computes, so no thread is left behind."""
    with contextlib.suppress(ImportError):
        import lightgbm  # noqa: F401
    import ichkit.phantom.writer
    import ichkit.stages.predict.export
    import ichkit.stages.predict.run
    import ichkit.stages.prepare.run
    import ichkit.stages.report.run
    import ichkit.stages.scores.submit
    import ichkit.stages.stack.run
    import ichkit.stages.train.network  # noqa: F401


def chosen(names: list[str]) -> Iterator[Command]:
    """The commands of these names; all but the making of data without any."""
    return (command for command in COMMANDS if command.name in names or (not names and command.name != "data"))
