"""Decodes every study to a volume in worker processes; a record of each makes the work resumable."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ichkit.core.errors import DataError, DiskFullError
from ichkit.core.progress import Meter, StopFlag, logger
from ichkit.engine.parallel import RunTasks, WorkerDied, run_tasks
from ichkit.imaging.store import COMPACT, Codec
from ichkit.sources.plan import StudyTasks
from ichkit.sources.study import StudyRecord, StudyTask, decode_study, store_study
from ichkit.work.artifacts import ArtifactWriter, FileDigest, encode_json, write_bytes_atomically

RECORDS_FILE = "records.json"
RECORDS_FOLDER = "records"


def decode_all(
    sources: Sequence[StudyTasks],
    folder: Path,
    earlier: Path,
    *,
    run: RunTasks,
    strict: bool,
    stop: StopFlag,
    codec: Codec = COMPACT,
) -> dict[str, StudyRecord]:
    """A record of every study, by key; studies of earlier calls are not decoded again.

    Args:
        folder: the folder for the volumes.
        earlier: a finished store; volumes of unchanged studies are linked from it.
        run: `run_tasks`, or a partial of it with a number of workers.
        strict: stop at the first file that cannot be read.
        codec: of the volumes that are written; linked ones keep theirs.

    Raises:
        DataError: a file cannot be read and `strict` is on.
        DiskFullError: the disk is full; finished studies are kept, and the message counts the missing ones.
        Stopped: a stop was requested; finished studies are kept.
    """
    keys = {key: (tasks, position) for tasks in sources for position, key in enumerate(tasks.keys)}
    records = _earlier_records(folder, earlier, keys)
    left = _Chosen([place for key, place in keys.items() if key not in records])
    if records and len(left):
        logger.info("prepare: %d of %d studies are finished already", len(records), len(keys))
    store = partial(store_study, folder, codec=codec)
    try:
        with Meter("studies", len(left), "studies") as meter:
            for position, result in run(store, left, stop=stop):
                record = without_culprit(store, left[position]) if isinstance(result, WorkerDied) else result
                if strict and record.failures:
                    raise DataError(f"prepare: a file cannot be read: {record.failures[0][2]} (--strict).")
                write_bytes_atomically(_record_path(folder, record.key), encode_json(record.to_json()))
                records[record.key] = record
                meter.advance()
                stop.check(f"{len(records)} of {len(keys)} studies are finished")
        stop.check(f"{len(records)} of {len(keys)} studies are finished")
    except DiskFullError as error:
        done = list(records.values())
        missing = len(keys) - len(done)
        each = sum(size for record in done for *_, size in record.files()) / max(len(done), 1)
        about = f", about {missing * each / 1e9:.2f} GB" if each else ""
        text = f"{error} {len(done)} of {len(keys)} studies are finished, {missing} are missing{about}."
        raise DiskFullError(text) from error
    return records


def keep_records(writer: ArtifactWriter, records: dict[str, StudyRecord]) -> None:
    """Writes all records into one file, adds the volumes to the artifact, and removes volumes that no study needs."""
    for record in records.values():
        for path, sha256, num_bytes in record.files():
            writer.record(path, FileDigest(sha256, num_bytes))
    # Compact: with 870,000 slices an indented file takes ten times as long and twice the space.
    whole = json.dumps({key: records[key].to_json() for key in sorted(records)}, separators=(",", ":"))
    writer.write_bytes(RECORDS_FILE, whole.encode())
    shutil.rmtree(writer.folder / RECORDS_FOLDER, ignore_errors=True)
    for volume in (writer.folder / "volumes").glob("*/*"):
        if str(volume.relative_to(writer.folder)) not in writer.files:
            volume.unlink()


class _Chosen(Sequence[StudyTask]):
    """The tasks at some positions, each built on access."""

    def __init__(self, places: list[tuple[StudyTasks, int]]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position: int) -> StudyTask:  # type: ignore[override]
        tasks, inside = self._places[position]
        return tasks[inside]


def _earlier_records(folder: Path, earlier: Path, keys: Collection[str]) -> dict[str, StudyRecord]:
    """Records of studies whose volume is complete: of an interrupted call, else of the finished store."""
    found = {}
    if (earlier / RECORDS_FILE).exists():
        for key, raw in json.loads((earlier / RECORDS_FILE).read_text()).items():
            record = StudyRecord(**raw)
            if key in keys and all(_link(earlier / path, folder / path, size) for path, _, size in record.files()):
                found[key] = record
    for path in (folder / RECORDS_FOLDER).glob("*.json"):
        record = StudyRecord(**json.loads(path.read_text()))
        if record.key in keys and all(_is_whole(folder / name, size) for name, _, size in record.files()):
            found[record.key] = record
    return found


def _is_whole(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes


def _link(old: Path, new: Path, num_bytes: int) -> bool:
    """Links a finished volume into the new store, or copies it if the disk allows no links."""
    if not _is_whole(old, num_bytes):
        return False
    if not new.exists():
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old, new)
        except OSError:
            shutil.copyfile(old, new)
    return True


def _record_path(folder: Path, key: str) -> Path:
    return folder / RECORDS_FOLDER / f"{key}.json"


def without_culprit(store: Callable[[StudyTask], StudyRecord], task: StudyTask) -> StudyRecord:
    """The record of a study whose worker died: the slice that kills a worker is found and omitted."""
    probes = [StudyTask(task.key, (files,), task.pixels) for files in task.slices]
    died = {i for i, result in run_tasks(_probe, probes, isolated=True) if isinstance(result, WorkerDied)}
    good = [i for i in range(len(probes)) if i not in died]
    positions = tuple(task.positions_mm[i] for i in good) if task.positions_mm else ()
    whole = StudyTask(task.key, tuple(task.slices[i] for i in good), task.pixels, positions)
    ((_, result),) = run_tasks(store, [whole], isolated=True)
    if not isinstance(result, StudyRecord):
        good, died, result = [], set(range(len(probes))), StudyRecord(task.key, "", "", 0, [], [], [], [])
    reason = "its worker died, twice"
    lost = [(i, inside, reason) for i in sorted(died) for inside in range(len(task.slices[i]))]
    failures = sorted(itertools.chain(lost, ((good[i], inside, why) for i, inside, why in result.failures)))
    return replace(result, kept=[good[i] for i in result.kept], failures=failures)


def _probe(task: StudyTask) -> bool:
    return bool(decode_study(task).kept)
