"""A process of its own whose memory is capped, for input that was made to exhaust it."""

import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ichkit.imaging.dicom import STORED_COLUMNS, StoredPixels
from ichkit.sources.files import file_refs, scan_files
from ichkit.sources.index import read_headers
from ichkit.sources.study import PixelSettings, StudyTask, decode_study
from support.dicoms import write_series

HULL = (-800, 2000)


def in_a_small_process(function: Callable[..., Any], *args: object, megabytes: int) -> Any:
    """A function's result, from a process that may take so much more memory than its libraries do."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(1, _cap_memory, (Path(folder), megabytes)) as pool:
        return pool.apply(function, args)


def outcomes_of(path: Path) -> list[str]:
    """What becomes of every slice below a path, as `prepare` would treat it: "read", or the reason why not."""
    files, refused = scan_files(path)
    found = [str(reason) for reason in refused["reason"]]
    slices = [(ref, *one) for ref in file_refs(files) for one in read_headers([ref])]
    for ref, header, reason in slices:
        if reason or header is None:
            found.append(reason)
            continue
        stored = StoredPixels(*(getattr(header, name) for name in STORED_COLUMNS))
        study = decode_study(StudyTask("ab12", (((ref, stored),),), PixelSettings(False, HULL, None)))
        assert not study.kept or study.volume.dtype == np.int16
        found.append("read" if study.kept else study.failures[0][2])
    return found


def _cap_memory(folder: Path, megabytes: int) -> None:
    # Libraries load on first use, and some reserve room for every core: that is theirs, and is taken before the cap.
    write_series(folder / "first", 1)
    assert outcomes_of(folder / "first") == ["read"]
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    # Of data, not of address space, which libraries reserve freely.
    limit = int(data.split()[1]) * 1024 + megabytes * 1024**2
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
