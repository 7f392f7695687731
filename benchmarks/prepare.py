"""Times `prepare` beside the usual route to PNG files: `python benchmarks/prepare.py [--data DIR] [--json FILE]`.

Both sides read the same files, interleaved round by round, and all their CPU time is counted, writing included:
(a) this package: headers, decoding, repair, clipping, compression, digests, files on disk; (b) the usual route: pydicom
with its default settings, NumPy windows, a 3-channel PNG at OpenCV's default level; (c) plain reading of the bytes; (a)
once more into a fast store, and from a zip of the same files; and each part of (a) alone (`measure_parts`), whose sum
is what (a) could reach. Files are in the page cache for all of them.
"""

import hashlib
import os
import shutil
import tempfile
import time
import warnings
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
from measuring import make_parser, report, time_cpu

from ichkit import write_phantom
from ichkit.engine.parallel import run_tasks
from ichkit.imaging.dicom import read_slices
from ichkit.imaging.hounsfield import decode_stored, fill_hounsfield
from ichkit.imaging.store import COMPACT, Codec, encode_volume, open_volume
from ichkit.sources.files import scan_files
from ichkit.sources.folder import plan_folder
from ichkit.sources.index import read_index
from ichkit.sources.plan import StudyTasks, order_slices
from ichkit.sources.study import PixelSettings, StudyRecord, is_repaired, store_study
from ichkit.work.artifacts import encode_json, write_bytes_atomically

WINDOWS = ((40, 80), (75, 215), (600, 2800))
HULL_HU = (-800, 2000)
PIXELS = PixelSettings(True, HULL_HU, None)
MIN_SLICES = 300


def main() -> None:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--studies", type=int, default=40, help="of the phantom, where no folder is given")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.data or make_phantom(Path(scratch), args.studies)
        report(measure(root, Path(scratch), args.rounds), args.json)


def make_phantom(scratch: Path, studies: int) -> Path:
    write_phantom(scratch / "phantom", studies=studies, test_studies=1, cq500_studies=1, size=512, seed=0)
    return scratch / "phantom" / "rsna" / "stage_2_train"


def measure(root: Path, scratch: Path, rounds: int) -> dict[str, float]:
    files, _ = scan_files(root)
    index = read_index(files, None)
    paths = [Path(row.container) for row in index[index["reason"] == ""].itertuples()]
    packed = pack(paths, scratch / "packed.zip")
    # The same files again and again where there are few, so that a round takes long enough to be timed.
    repeats = max(1, -(-MIN_SLICES // len(paths)))
    ours, usual, plain, zipped, fast, parts = [], [], [], [], [], []
    for turn in range(rounds + 1):
        out = scratch / f"out{turn}"
        ways = [
            lambda out=out: [prepare(root, out / f"ours{i}") for i in range(repeats)],
            lambda out=out: [write_pngs(paths, out / f"png{i}") for i in range(repeats)],
            lambda: [path.read_bytes() for _ in range(repeats) for path in paths],
            lambda out=out: [prepare(packed, out / f"zip{i}") for i in range(repeats)],
            lambda out=out: [prepare(root, out / f"fast{i}", "fast") for i in range(repeats)],
        ]
        timed = [0.0] * len(ways)
        for step in range(len(ways)):  # each way is the first and the last of some round: the disk lags behind
            number = (step + turn) % len(ways)
            timed[number] = time_cpu(ways[number])[1]
        of_parts = measure_parts(root, out)
        if turn:  # the first round compiles kernels and fills the page cache
            parts.append(of_parts)
            for total, seconds in zip((ours, usual, plain, zipped, fast), timed, strict=True):
                total.append(seconds / repeats)
        kept = out / "png0" if turn == rounds else None
        for folder in out.iterdir():
            if folder != kept:
                shutil.rmtree(folder)
    records = prepare(root, scratch / "checked")
    num_slices = sum(len(record.kept) for record in records)
    check_lossless(root, scratch / "checked", records)
    ratios = np.array(usual) / np.array(ours)
    volume_bytes = sum(record.num_bytes for record in records)
    fast_bytes = sum(record.num_bytes for record in prepare(root, scratch / "checked_fast", "fast"))
    milliseconds = {name: float(np.median([one[name] for one in parts])) for name in parts[0]}
    shares = [sum(one.values()) / (seconds / num_slices * 1e3) for one, seconds in zip(parts, ours, strict=True)]
    png_bytes = sum(path.stat().st_size for path in (scratch / f"out{rounds}" / "png0").glob("*.png"))
    return {
        "ratio_vs_png_per_core": float(np.median(ratios)),
        "ratio_lowest": float(ratios.min()),
        "ratio_highest": float(ratios.max()),
        "bytes_vs_png": volume_bytes / png_bytes,
        "slices_per_s_core": num_slices / float(np.median(ours)),
        "png_slices_per_s_core": len(paths) / float(np.median(usual)),
        "read_slices_per_s_core": len(paths) / float(np.median(plain)),
        "zip_slices_per_s_core": num_slices / float(np.median(zipped)),
        "fast_slices_per_s_core": num_slices / float(np.median(fast)),
        "fast_bytes": fast_bytes / volume_bytes,
        **{f"ms_{name}": value for name, value in milliseconds.items()},
        "share_of_parts": float(np.median(shares)),
        "share_of_parts_lowest": float(min(shares)),
        "kb_per_slice": volume_bytes / num_slices / 1e3,
        "kb_per_png": png_bytes / len(paths) / 1e3,
        **measure_efficiency(root, scratch),
        "num_slices": num_slices,
    }


def pack(paths: list[Path], zip_path: Path) -> Path:
    with zipfile.ZipFile(zip_path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in paths:
            archive.write(path, path.name)
    return zip_path


def study_tasks(root: Path) -> StudyTasks:
    """Scanning, headers and planning, in this process."""
    files, _ = scan_files(root)
    index = read_index(files[~files["relative"].str.endswith(".zip")], None, run=in_this_process)
    # Every series of the folder source's rule, so that any --data serves; RSNA's repair costs nothing extra.
    plan = plan_folder(index, b"benchmark")
    return StudyTasks(order_slices(plan.files)[0], PIXELS)


def in_this_process(function, tasks, **_):
    return run_tasks(function, tasks, workers=1)


def prepare(root: Path, out: Path, codec: Codec = COMPACT) -> list[StudyRecord]:
    """What `ichkit prepare` does with a data root, but for tables and folds: headers to volumes and records on disk."""
    records = []
    for _, record in in_this_process(StoreStudy(out, codec), study_tasks(root)):
        write_bytes_atomically(out / "records" / f"{record.key}.json", encode_json(asdict(record)))
        records.append(record)
    return records


class StoreStudy:
    """`store_study` into one folder; a class, so that it can be sent to a process."""

    def __init__(self, out: Path, codec: Codec = COMPACT) -> None:
        self.out, self.codec = out, codec

    def __call__(self, task) -> StudyRecord:
        return store_study(self.out, task, codec=self.codec)


def measure_parts(root: Path, out: Path) -> dict[str, float]:
    """CPU milliseconds per slice of each part that storing a study cannot do without, on the files that are kept."""
    pairs = [[pair for files in task.slices for pair in files] for task in study_tasks(root)]
    seconds = dict.fromkeys(("read", "headers", "convert", "compress", "digest", "write"), 0.0)
    num_slices = sum(len(study) for study in pairs)

    def timed(name, function, items):
        began = time.process_time()
        results = [function(item) for item in items]
        seconds[name] += time.process_time() - began
        return results

    def convert(pair):
        (data, header), row = pair
        fill_hounsfield(decode_stored(data, header), header, row, repair=is_repaired(header, PIXELS), hull_hu=HULL_HU)

    def write(frame):
        with (out / "parts" / "volume").open("wb") as file:
            file.write(frame)
            file.flush()
            os.fsync(file.fileno())

    (out / "parts").mkdir()
    for study in pairs:
        headers = [header for _, header in study]
        files = timed("read", lambda pair: Path(pair[0].container).read_bytes(), study)
        timed("headers", lambda data: read_slices(lambda count, data=data: data[:count], len(data)), files)
        pixels = [
            data[header.pixel_offset : header.pixel_offset + header.pixel_bytes]
            for data, header in zip(files, headers, strict=True)
        ]
        size = max(header.rows for header in headers), max(header.columns for header in headers)
        volume = np.full((len(study), *size), HULL_HU[0], np.int16)
        rows = [image[: header.rows, : header.columns] for image, header in zip(volume, headers, strict=True)]
        timed("convert", convert, list(zip(zip(pixels, headers, strict=True), rows, strict=True)))
        frames = timed("compress", encode_volume, [volume])
        timed("digest", lambda frame: hashlib.sha256(frame).digest(), frames)
        timed("write", write, frames)
    return {name: value / num_slices * 1e3 for name, value in seconds.items()}


def write_pngs(paths: list[Path], out: Path) -> None:
    """The usual route."""
    out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.config.settings.reading_validation_mode = pydicom.config.WARN
        for path in paths:
            dataset = pydicom.dcmread(path)
            # float64, as NumPy makes of it where nobody says otherwise
            hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            channels = []
            for level, width in WINDOWS:
                low, high = level - width / 2, level + width / 2
                window = (np.clip(hounsfield, low, high) - low) / (high - low) * 255
                channels.append(window.astype(np.uint8))
            (out / f"{path.stem}.png").write_bytes(cv2.imencode(".png", np.dstack(channels))[1].tobytes())


def check_lossless(root: Path, out: Path, records: list[StudyRecord]) -> None:
    """Every volume against pydicom and NumPy, inside the hull."""
    tasks = study_tasks(root)
    by_key = {record.key: record for record in records}
    for position, key in enumerate(tasks.keys):
        volume, task = np.asarray(open_volume(out / by_key[key].volume)[:]), tasks[position]
        for row, at in enumerate(by_key[key].kept):
            ((ref, header),) = task.slices[at]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(ref.container)
                stored, intercept = dataset.pixel_array.astype(np.int64), float(dataset.RescaleIntercept)
            if header.bits_stored == 12 and header.pixel_representation == 0 and intercept > -100:
                stored, intercept = (stored + 1000) % 4096, -1000.0
            expected = np.clip(np.rint(stored * float(dataset.RescaleSlope) + intercept), *HULL_HU)
            if volume.shape[1:] == expected.shape:
                np.testing.assert_array_equal(volume[row], expected)


def measure_efficiency(root: Path, scratch: Path) -> dict[str, float]:
    """How much two processes bring over one, for storing studies and for a loop that only computes."""
    tasks = list(study_tasks(root))
    # Each under a key of its own, so that no two processes write one file.
    tasks = [replace(tasks[i % len(tasks)], key=f"{i:032x}") for i in range(max(len(tasks), 24))]
    shares, gains, pure = [], [], []
    for turn in range(4):
        out = StoreStudy(scratch / f"both{turn}")
        gain = wall(out, tasks, 1) / wall(out, tasks, 2)
        bare = wall(compute, [2_000_000] * len(tasks), 1) / wall(compute, [2_000_000] * len(tasks), 2)
        if turn:
            gains.append(gain)
            pure.append(bare)
            shares.append(gain / bare)
    return {
        "efficiency_2_processes": float(np.median(shares)),
        "speedup_2_processes": float(np.median(gains)),
        "speedup_2_processes_pure_compute": float(np.median(pure)),
    }


def wall(function, tasks: list, workers: int) -> float:
    """Wall seconds of all tasks on so many processes that run already."""
    if workers > 1:
        list(run_tasks(compute, [1000] * workers, workers=workers))
    began = time.perf_counter()
    list(run_tasks(function, tasks, workers=workers))
    return time.perf_counter() - began


def compute(count: int) -> int:
    """A loop that touches no memory and no disk."""
    total = 0
    for i in range(count):
        total += i & 3
    return total


if __name__ == "__main__":
    main()
