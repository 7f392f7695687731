"""What `watch` has done: an entry in the manifest of each study's folder, and the table of all of them."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError
from ichkit.core.progress import logger
from ichkit.core.tasks import Task
from ichkit.stages.watch.plan import STUDY_PREFIX, SUMMARY_NAME
from ichkit.work.artifacts import (
    ArtifactWriter,
    FileDigest,
    Manifest,
    digest_file,
    encode_json,
    encode_table,
    has_artifact,
    read_manifest,
    write_bytes_atomically,
)
from ichkit.work.locks import hold
from ichkit.work.places import discard, final_of, is_marked, partial_of

KIND = "watched"
PREDICTED, REJECTED, FAILED = "predicted", "rejected", "failed"
"""Failed: by what may be another time the next time, such as memory; the next start tries again."""
_ATTEMPTS_NAME = "attempts.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a study.

    Attributes:
        status: `PREDICTED`, `REJECTED` or `FAILED`.
        reason: why it was not predicted.
        studies: the rows of its `studies.csv`.
    """

    status: str
    reason: str
    studies: pd.DataFrame


@dataclass(frozen=True)
class Entry:
    """A study in the output folder.

    Attributes:
        folder: the name of its folder.
        key, stamp: as in `Arrival`.
        status, reason: as in `Outcome`.
        digests: of its files.
        num_files: number of its files, copies too.
        studies: rows of study_id, num_slices, p_<class>; one without probabilities if it was not predicted.
        written_utc: when its folder was written.
    """

    folder: str
    key: str
    stamp: str
    status: str
    reason: str
    digests: frozenset[str]
    num_files: int
    studies: tuple[dict[str, Any], ...]
    written_utc: str

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "Entry":
        """The entry in a manifest.

        Raises:
            ArtifactError: it has none.
        """
        facts = manifest.facts
        if manifest.kind != KIND:
            raise ArtifactError(f"{folder}: expected the folder of a study that `ichkit watch` has written.")
        try:
            key, stamp, status, reason = (str(facts[name]) for name in ("key", "stamp", "status", "reason"))
            digests, studies = frozenset(map(str, facts["digests"])), tuple(dict(row) for row in facts["studies"])
            num_files = int(facts["num_files"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{folder}: expected an entry of `ichkit watch` in its manifest.") from error
        return cls(folder.name, key, stamp, status, reason, digests, num_files, studies, manifest.created_utc)


def commit(
    writer: ArtifactWriter, settings: dict[str, Any], facts: dict[str, Any], outcome: Outcome, digests: Collection[str]
) -> Entry:
    """Puts a folder with the outputs of `predict` in its place, with the entry of the study.

    Args:
        facts: key, stamp and num_files of the entry.
        digests: of its files.
    """
    rows = json.loads(outcome.studies.to_json(orient="records", double_precision=15))
    rows = rows or [{"study_id": facts["key"], "num_slices": 0}]
    for path in sorted(writer.folder.rglob("*")) if outcome.status != FAILED else ():
        if path.is_file() and not path.name.startswith("."):
            name = path.relative_to(writer.folder).as_posix()
            writer.record(name, FileDigest(digest_file(path), path.stat().st_size))
    facts = {**facts, "status": outcome.status, "reason": outcome.reason, "studies": rows, "digests": sorted(digests)}
    return Entry.of(writer.final, writer.commit(settings=settings, inputs={}, facts=facts))


def read_entries(out: Path) -> dict[str, Entry]:
    """The entries of an output folder by key; for the holder of its lock, who completes what a kill has left."""
    folders = {final_of(path) for path in out.iterdir() if final_of(path).name.startswith(STUDY_PREFIX)}
    entries = {}
    for folder in sorted(folders):
        with hold(folder):
            if is_marked(partial_of(folder)):
                discard(partial_of(folder))
        if not has_artifact(folder):
            continue
        try:
            entry = Entry.of(folder, read_manifest(folder))
        except ArtifactError as error:
            logger.warning("watch: %s The study is predicted again.", error)
            continue
        entries[entry.key] = entry
    return entries


def write_summary(out: Path, entries: Collection[Entry], task: Task) -> None:
    """Writes the table of all studies, ordered by their ids."""
    rows = [
        {"status": one.status, "reason": one.reason, "num_files": one.num_files, **study}
        | {"folder": one.folder, "written_utc": one.written_utc}
        for one in sorted(entries, key=lambda one: one.key)
        for study in one.studies
    ]
    columns = ["study_id", "status", "reason", "num_files", "num_slices", *task.probability_columns]
    table = pd.DataFrame(rows, columns=[*columns, "folder", "written_utc"])
    table[task.probability_columns] = table[task.probability_columns].astype(np.float32)
    write_bytes_atomically(out / SUMMARY_NAME, encode_table(table, ".csv"))


class Attempts:
    """How often a process ended while it predicted a study, by folder, in a file of the output folder."""

    def __init__(self, out: Path) -> None:
        self._path = out / _ATTEMPTS_NAME
        try:
            found = json.loads(self._path.read_bytes())
            self._counts = {str(name): int(count) for name, count in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._counts = {}

    def count(self, folder: str) -> int:
        """Attempts that have not ended."""
        return self._counts.get(folder, 0)

    def begin(self, folder: str) -> None:
        """Notes that an attempt begins."""
        self._counts[folder] = self.count(folder) + 1
        self._write()

    def end(self, folder: str) -> None:
        """Notes that it ended, well or not."""
        self._counts.pop(folder, None)
        self._write()

    def _write(self) -> None:
        write_bytes_atomically(self._path, encode_json(self._counts))
