"""What a work folder and its submissions hold, told from manifests alone; nothing is touched and nothing raises."""

import contextlib
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ichkit.work.folder import WorkFolder
from ichkit.work.places import MANIFEST_NAME, partial_of

# A kill between two renames leaves a whole artifact under one of the last two; the next command puts it in place.
_SUFFIXES = ("", ".partial", ".old")
_OUT_OF_FOLD = "_oof.parquet"


@dataclass(frozen=True)
class PreparedState:
    """What `prepare` made: where the data are from, how much, its folds, whether there is a test split to submit."""

    data: str
    num_slices: int
    num_studies: int
    num_rejected: int
    folds: tuple[int, ...]
    has_sample: bool


@dataclass(frozen=True)
class RunState:
    """The folds of a run that are whole, and those that were begun; both ascending."""

    folds: tuple[int, ...]
    unfinished: tuple[int, ...]


@dataclass(frozen=True)
class StackState:
    """What a whole stack was made from and holds; outdated where its runs have other tables now."""

    runs: tuple[str, ...]
    folds: tuple[int, ...]
    kinds: tuple[str, ...]
    is_outdated: bool


@dataclass(frozen=True)
class SubmissionState:
    """The folds behind a submission; outdated where its CSV is gone or its tables are others now."""

    folds: tuple[int, ...]
    is_outdated: bool


@dataclass(frozen=True)
class Holdings:
    """Everything that is there, by name.

    Attributes:
        prepared: None where `prepare` has not finished.
        is_prepare_unfinished: it was begun, and goes on with the next call.
        damaged: what is there and cannot be read, relative to the work folder or the submissions.
    """

    prepared: PreparedState | None = None
    is_prepare_unfinished: bool = False
    runs: dict[str, RunState] = field(default_factory=dict)
    stacks: dict[str, StackState] = field(default_factory=dict)
    submissions: dict[str, SubmissionState] = field(default_factory=dict)
    has_scores: bool = False
    has_report: bool = False
    damaged: tuple[str, ...] = ()


def read_holdings(work: WorkFolder, submissions: Path) -> Holdings:
    """What is there now; a damaged part is named in `damaged` and otherwise left out."""
    damaged: list[str] = []
    digests: dict[str, str] = {}  # of every table that is there, keyed as in the notes of submissions
    prepared, stacks, notes = None, {}, {}
    with _noting("prepared", damaged):
        prepared = _read_prepared(work.prepared)
    runs = {name: _read_run(work, name) for name in run_names(work)}
    for place in [f"runs/{name}/fold{k}" for name, run in runs.items() for k in run.folds]:
        with _noting(place, damaged):
            digests |= _digest_tables(_read_manifest(work.root / place), place)
    for name in stack_names(work):
        with _noting(f"stacks/{name}", damaged):
            manifest = _read_manifest(work.stacks / name)
            stacks[name] = _read_stack(manifest, digests)
            digests |= _digest_tables(manifest, f"stacks/{name}")
    for path in sorted(submissions.glob("*.json")):
        with _noting(path.name, damaged):
            notes[path.stem] = _read_submission(path, digests)
    return Holdings(
        prepared=prepared,
        is_prepare_unfinished=prepared is None and partial_of(work.prepared).is_dir(),
        runs=runs,
        stacks=stacks,
        submissions=notes,
        has_scores=_whole(work.scores) is not None,
        has_report=work.report.is_file(),
        damaged=tuple(damaged),
    )


def run_names(work: WorkFolder) -> list[str]:
    """Every run with a fold that was begun, by name."""
    return sorted({path.parent.name for path in work.runs.glob("*/fold*") if path.is_dir()})


def stack_names(work: WorkFolder) -> list[str]:
    """Every whole stack, by name."""
    names = {re.sub(r"\.(partial|old)$", "", path.name) for path in work.stacks.glob("*") if path.is_dir()}
    return sorted(name for name in names if _whole(work.stacks / name) is not None)


def source_names(work: WorkFolder) -> list[str]:
    """Everything that can be scored and submitted: runs with a whole fold, then every kind of every whole stack."""
    runs = [name for name in run_names(work) if _read_run(work, name).folds]
    tables = [(name, path) for name in stack_names(work) for path in sorted(_kind_tables(work.stacks / name))]
    return [*runs, *(f"{name}-{path.name.removesuffix(_OUT_OF_FOLD)}" for name, path in tables)]


def _kind_tables(folder: Path) -> Iterator[Path]:
    whole = _whole(folder)
    return iter(()) if whole is None else whole.glob(f"*{_OUT_OF_FOLD}")


def _whole(folder: Path) -> Path | None:
    """Where the whole artifact of that name lies at the moment; None where there is none.

    `has_artifact` would put it in its place, which is not for one who only looks.
    """
    places = (folder.with_name(folder.name + suffix) for suffix in _SUFFIXES)
    return next((place for place in places if (place / MANIFEST_NAME).is_file()), None)


@contextlib.contextmanager
def _noting(place: str, damaged: list[str]) -> Iterator[None]:
    """Notes a part that cannot be read, and goes on without it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        damaged.append(place)


def _read_manifest(folder: Path) -> dict[str, Any]:
    whole = _whole(folder)
    if whole is None:
        raise FileNotFoundError(folder)
    return json.loads((whole / MANIFEST_NAME).read_text(encoding="utf-8"))


def _digest_tables(manifest: dict[str, Any], place: str) -> dict[str, str]:
    tables = {name: file["sha256"] for name, file in manifest["files"].items() if name.endswith(".parquet")}
    return {f"{place}/{name}": digest for name, digest in tables.items()}


def _read_prepared(folder: Path) -> PreparedState | None:
    whole = _whole(folder)
    if whole is None:
        return None
    facts = _read_manifest(folder)["facts"]
    with (whole / "folds.csv").open(encoding="utf-8", newline="") as file:
        folds = {int(row["fold"]) for row in csv.DictReader(file)}
    with (whole / "sample_ids.csv").open(encoding="utf-8") as file:
        has_sample = len(file.readlines(1024)) > 1  # a header at least
    counts = (int(facts[name]) for name in ("num_slices", "num_studies", "num_rejected"))
    return PreparedState(str(facts["data"]), *counts, tuple(sorted(folds)), has_sample)


def _read_run(work: WorkFolder, name: str) -> RunState:
    matches = [re.fullmatch(r"fold(\d+)(?:\.partial|\.old)?", path.name) for path in (work.runs / name).iterdir()]
    begun = sorted({int(match.group(1)) for match in matches if match})
    folds = tuple(k for k in begun if _whole(work.fold(name, k)) is not None)
    # A finished fold whose tables are being made anew has both.
    unfinished = (k for k in begun if partial_of(work.fold(name, k)).is_dir() or k not in folds)
    return RunState(folds, tuple(unfinished))


def _read_stack(manifest: dict[str, Any], digests: dict[str, str]) -> StackState:
    facts, used = manifest["facts"], manifest["inputs"].items()
    return StackState(
        runs=tuple(facts["runs"]),
        folds=tuple(sorted(facts["folds"])),
        kinds=tuple(facts["kinds"]),
        is_outdated=any(digests.get(f"runs/{name}", digest) != digest for name, digest in used),
    )


def _read_submission(path: Path, digests: dict[str, str]) -> SubmissionState:
    note = json.loads(path.read_text(encoding="utf-8"))
    is_same = all(digests.get(name) == digest for name, digest in note["tables"].items())
    is_there = (path.parent / note["csv"]).is_file()
    return SubmissionState(tuple(sorted(note["folds"])), not (is_same and is_there))
