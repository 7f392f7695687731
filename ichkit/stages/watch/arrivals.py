"""What lies in the watched folder: its files by study, and since when they are unchanged."""

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ichkit.core.progress import StopFlag
from ichkit.engine.parallel import RunTasks
from ichkit.imaging.dicom import UnreadableError
from ichkit.sources.files import FILE_COLUMNS, FileRef, file_refs, scan_files
from ichkit.sources.folder import NO_STUDY, group_studies, image_files
from ichkit.sources.index import INDEX_COLUMNS, read_index
from ichkit.work.artifacts import digest_of

_DIGEST_BYTES = 12


class _State(NamedTuple):
    """Identifies one version of a file."""

    num_bytes: int
    modified_ns: int
    inode: int


@dataclass(frozen=True)
class Arrival:
    """The files of one study that are there.

    Attributes:
        key: what its files share (`group_studies`).
        files: `FILE_COLUMNS`.
        states: by container, as they were seen.
        stamp: a digest of their names, sizes and times.
        since: when the last of them was seen to change, in seconds of `time.monotonic`.
    """

    key: str
    files: pd.DataFrame
    states: Mapping[str, _State]
    stamp: str
    since: float

    def is_unchanged(self) -> bool:
        """Whether every file is still as it was seen."""
        return all(_find_state(name) == state for name, state in self.states.items())

    def digest(self) -> frozenset[str]:
        """A digest of the content of each file; names and copies do not count."""
        return frozenset(map(_digest, file_refs(self.files)))


class Arrivals:
    """Looks at a folder again and again; the header of a file is read once for each of its versions.

    A file that is there at the first look is taken to be unchanged since its ctime: rename and copy set it, whatever
    modification time they give to the file. Later a change is what differs between two looks, so that the clock of a
    file server does not matter.

    Args:
        root: the folder.
        salt: of `group_studies`.
        run: `run_tasks`, or a partial of it.
        stop: checked while headers are read.
    """

    def __init__(self, root: Path, salt: bytes, run: RunTasks, stop: StopFlag) -> None:
        self._root, self._salt, self._run, self._stop = root, salt, run, stop
        self._states: dict[str, _State] = {}
        self._since: dict[str, float] = {}
        self._files = pd.DataFrame(columns=FILE_COLUMNS)
        self._index = pd.DataFrame(columns=INDEX_COLUMNS)
        self._refused = pd.DataFrame(columns=["relative", "reason"])
        self._found: list[Arrival] = []
        self._is_first = True

    def look(self) -> list[Arrival]:
        """The studies that are there now.

        Raises:
            DataError, OSError: the folder cannot be read.
            Stopped: a stop was requested.
        """
        files, self._refused = scan_files(self._root)
        files = image_files(files)
        states = {name: state for name in files["container"].unique() if (state := _find_state(name)) is not None}
        files = files[files["container"].isin(list(states))].reset_index(drop=True)
        changed = {name for name, state in states.items() if self._states.get(name) != state}
        if self._is_first or changed or not files.equals(self._files):
            known = self._index[~self._index["container"].isin(list(changed))]
            # The headers first: what a stop or an error leaves out is new at the next look.
            index = read_index(files, known, run=self._run, stop=self._stop)
            now, clock = time.monotonic(), time.time()
            begin = {name: self._begin(name, now, clock) for name in changed}
            self._since = {name: begin[name] if name in begin else self._since[name] for name in states}
            self._states, self._files, self._index, self._is_first = states, files, index, False
            self._found = self._group()
        return self._found

    def find_loose(self, before: float) -> pd.DataFrame:
        """The files of no study, unchanged since a time: columns relative, reason.

        Args:
            before: in seconds of `time.monotonic`.
        """
        loose = self._index[self._index["key"] == ""] if len(self._index) else self._index
        loose = loose[np.array([self._since[name] <= before for name in loose["container"]], bool)]
        loose = loose.assign(reason=loose["reason"].mask(loose["reason"] == "", NO_STUDY))
        parts = [part for part in (loose[["relative", "reason"]], self._refused) if len(part)]
        return pd.concat(parts or [self._refused]).drop_duplicates().sort_values("relative", ignore_index=True)

    def _begin(self, name: str, now: float, clock: float) -> float:
        if not self._is_first:
            return now
        try:
            return now - max(clock - os.stat(name).st_ctime, 0.0)  # noqa: PTH116
        except OSError:
            return now

    def _group(self) -> list[Arrival]:
        self._index = self._index.assign(key=group_studies(self._index, self._salt))
        named = self._index[self._index["key"] != ""].drop_duplicates("relative")  # a file has several frames
        found = []
        for key, files in named.groupby("key", sort=True):
            states = {name: self._states[name] for name in files["container"]}
            stamp = digest_of([[file.relative, *states[file.container][:2]] for file in files.itertuples()])
            since = max(self._since[name] for name in states)
            found.append(Arrival(str(key), files[FILE_COLUMNS].reset_index(drop=True), states, stamp, since))
        return found


def _find_state(name: str) -> _State | None:
    """The state of a file; None if it is gone."""
    try:
        found = os.stat(name)  # noqa: PTH116
    except OSError:
        return None
    return _State(found.st_size, found.st_mtime_ns, found.st_ino)


def _digest(ref: FileRef) -> str:
    try:
        data = ref.read()
    except UnreadableError as error:
        data = str(error).encode()
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
