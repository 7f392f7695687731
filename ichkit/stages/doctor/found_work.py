"""A summary of a work folder and its submissions; writes nothing and raises nothing."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ichkit.core.config import DEFAULT, load_config, shipped_names
from ichkit.core.errors import ArtifactError, IchkitError
from ichkit.show.page import read_meta
from ichkit.sources.table import SOURCES
from ichkit.stages.prepare.plan import LOCK, store_settings
from ichkit.validation.notes import is_csv_unchanged, note_names, read_note
from ichkit.work.artifacts import list_differences, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import Entry, take_inventory


@dataclass(frozen=True)
class PreparedState:
    """Summary of the prepared data: origin, counts, folds, and whether there is a test split to submit.

    Attributes:
        config: the shipped config whose settings the store has; None if it is that of none.
    """

    data: str
    num_slices: int
    num_studies: int
    num_rejected: int
    folds: tuple[int, ...]
    has_sample: bool
    config: str | None = None


@dataclass(frozen=True)
class RunState:
    """The finished folds of a run, and those with unfinished work; both ascending."""

    folds: tuple[int, ...]
    unfinished: tuple[int, ...]


@dataclass(frozen=True)
class StackState:
    """The runs, folds and kinds of a finished stack; outdated if the tables of its runs have changed."""

    runs: tuple[str, ...]
    folds: tuple[int, ...]
    kinds: tuple[str, ...]
    is_outdated: bool


@dataclass(frozen=True)
class SubmissionState:
    """The folds of a submission; outdated if its CSV or the tables it was made from have changed."""

    folds: tuple[int, ...]
    is_outdated: bool


@dataclass(frozen=True)
class WorkState:
    """The content of a work folder, by name.

    Attributes:
        prepared: None where `prepare` has not finished.
        is_prepare_unfinished: it was begun, and is resumed by the next call.
        is_report_outdated: the report shows other runs and stacks than there are now.
        damaged: what is there and cannot be read, relative to the work folder or the submissions.
    """

    prepared: PreparedState | None = None
    is_prepare_unfinished: bool = False
    runs: dict[str, RunState] = field(default_factory=dict)
    stacks: dict[str, StackState] = field(default_factory=dict)
    submissions: dict[str, SubmissionState] = field(default_factory=dict)
    has_scores: bool = False
    has_report: bool = False
    is_report_outdated: bool = False
    damaged: tuple[str, ...] = ()


def find_work(work: WorkFolder, submissions: Path) -> WorkState:
    """The current content of a work folder; damaged parts are listed in `damaged` and otherwise omitted."""
    inventory = take_inventory(work)
    runs = {
        name: RunState(
            tuple(k for k, entry in run.items() if entry.is_finished),
            tuple(k for k, entry in run.items() if entry.is_begun or not entry.is_finished),
        )
        for name, run in inventory.runs.items()
    }
    damaged = [inventory.path_of(entry) for entry in inventory.finished if entry.damage]
    prepared, stacks, sent = None, {}, {}
    if inventory.prepared.is_finished:
        with _noting("prepared", damaged):
            prepared = _read_prepared(inventory.prepared)
    for name in inventory.finished_stacks:
        with _noting(f"stacks/{name}", damaged):
            facts = inventory.stacks[name].manifest.facts
            folds, kinds = tuple(sorted(facts["folds"])), tuple(facts["kinds"])
            stacks[name] = StackState(tuple(facts["runs"]), folds, kinds, inventory.is_outdated(name))
    for name in note_names(submissions):
        with _noting(f"{name}.json", damaged):
            note = read_note(submissions, name) or {}
            is_same = all(inventory.tables.get(path) == digest for path, digest in note["tables"].items())
            is_current = is_same and is_csv_unchanged(submissions, note)
            sent[name] = SubmissionState(tuple(sorted(note["folds"])), not is_current)
    return WorkState(
        prepared=prepared,
        is_prepare_unfinished=prepared is None and inventory.prepared.is_begun,
        runs=runs,
        stacks=stacks,
        submissions=sent,
        has_scores=inventory.scores.is_finished,
        has_report=work.report.is_file(),
        is_report_outdated=read_meta(work.report, "ichkit-tables") not in (None, inventory.digest),
        damaged=tuple(dict.fromkeys(damaged)),
    )


@contextlib.contextmanager
def _noting(place: str, damaged: list[str]) -> Iterator[None]:
    """Records a part that cannot be read, and continues without it."""
    try:
        yield
    except (ArtifactError, OSError, ValueError, KeyError, TypeError, AttributeError):
        damaged.append(place)


def _read_prepared(entry: Entry) -> PreparedState:
    manifest = entry.manifest
    folds, sample = (
        read_table(entry.folder / name, manifest.sha256_of(name), dtype=str) for name in ("folds.csv", "sample_ids.csv")
    )
    return PreparedState(
        data=str(manifest.facts["data"]),
        num_slices=int(manifest.facts["num_slices"]),
        num_studies=int(manifest.facts["num_studies"]),
        num_rejected=int(manifest.facts["num_rejected"]),
        folds=tuple(sorted({*map(int, folds.fold)})),
        has_sample=len(sample) > 0,
        config=_find_config(manifest.settings),
    )


def _find_config(settings: dict[str, Any]) -> str | None:
    """The shipped config that a store was prepared with, by its settings; None if they are those of none.

    The default if it fits, else the one with the shortest name: variants are named after what they vary.
    """
    source = str(settings.get("source"))
    found = {name: value for name, value in settings.items() if name != LOCK}
    for name in sorted(shipped_names("configs"), key=lambda name: (name != DEFAULT, len(name), name)):
        with contextlib.suppress(IchkitError):  # a config of other sources
            if source in SOURCES and not list_differences(store_settings(load_config(name), source), found):
                return name
    return None
