"""The whole of RSNA 2019 through everything but its pixels: `python benchmarks/prepare_scale.py [--studies N]`.

Headers of 752,803 training and 121,232 test slices in 21,744 and 3,518 studies are made up, with 18,938 patients and
the competition's prevalence; then label join, ordering, tasks, folds, tables, audit and manifest are the package's own.
With `--data DIR` (a phantom) the memory of the pixel pass is measured too, at a tenth of its studies and at all.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import make_parser, report, watch_memory

from ichkit.core.config import load_config
from ichkit.core.tasks import find_task
from ichkit.imaging.dicom import HEADER_COLUMNS
from ichkit.imaging.store import encode_volume, volume_path
from ichkit.sources.collect import PlannedSource
from ichkit.sources.files import FILE_COLUMNS, scan_files
from ichkit.sources.plan import Found, StudyTasks, order_slices
from ichkit.sources.rsna import image_files, plan_rsna
from ichkit.sources.study import PixelSettings, StudyRecord
from ichkit.stages.prepare.tables import Stamp, write_tables
from ichkit.work.artifacts import ArtifactWriter

TASK = find_task("hemorrhage")
TRAIN_SLICES, TRAIN_STUDIES, TEST_SLICES, TEST_STUDIES, PATIENTS = 752_803, 21_744, 121_232, 3_518, 18_938
FORMATS = [(16, 1, -1024.0), (12, 0, -1024.0), (12, 0, -1000.0), (16, 1, 0.0), (12, 1, 0.0), (12, 0, 0.0), (12, 0, 1.0)]
SHARES = np.array([414_096, 326_639, 6_681, 2_951, 2_312, 73, 50])
PREVALENCE = (0.0041, 0.0483, 0.0352, 0.0476, 0.0630)


def main() -> None:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=TRAIN_STUDIES)
    args = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        if args.data:
            figures |= measure_memory(args.data, Path(scratch))
        figures |= measure_scale(Path(scratch), args.studies / TRAIN_STUDIES)
    report(figures, args.json)


def measure_scale(scratch: Path, share: float) -> dict[str, float]:
    rng = np.random.default_rng(0)
    root = scratch / "rsna"
    root.mkdir()
    train = make_headers(rng, "train", round(TRAIN_SLICES * share), round(TRAIN_STUDIES * share))
    test = make_headers(rng, "test", round(TEST_SLICES * share), max(1, round(TEST_STUDIES * share)))
    index = pd.concat([train, test], ignore_index=True).sort_values("relative", ignore_index=True)
    write_labels(root, train, test, rng)
    del train, test
    seconds = {}
    with watch_memory() as peak:
        began = last = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal last
            seconds[f"seconds_{name}"], last = time.perf_counter() - last, time.perf_counter()

        csvs, _ = scan_files(root)
        files = pd.concat([csvs, index[FILE_COLUMNS]], ignore_index=True)
        found = Found(files, image_files(files), index, TASK)
        plan = plan_rsna(found)
        lap("labels_and_plan")
        ordered, slices = order_slices(plan.files)
        lap("order")
        tasks = StudyTasks(ordered, PixelSettings(True, (-800, 2000), None))
        planned = PlannedSource(plan, tasks, slices, repair=True)
        lap("tasks")
        writer = ArtifactWriter(scratch / "prepared", "prepared")
        records = make_records(writer.folder, planned, rng)
        lap("made_up_records")
        refused = {"rsna": pd.DataFrame(columns=["relative", "reason"])}
        write_tables(writer, [planned], records, refused, None, Stamp({}, {}, "rsna"), load_config())
        lap("tables_folds_audit")
    total = time.perf_counter() - began - seconds.pop("seconds_made_up_records")
    return {**seconds, "seconds_total": total, "peak_gb": peak.gb, "num_slices": len(index)}


def make_headers(rng: np.random.Generator, split: str, num_slices: int, num_studies: int) -> pd.DataFrame:
    """An index of good headers in the order in which files come: that of random ids."""
    study = np.sort(np.concatenate([np.repeat(np.arange(num_studies), 20), rng.integers(num_studies, size=num_slices)]))
    study = study[:: max(len(study) // num_slices, 1)][:num_slices]
    place = pd.Series(study).groupby(study).cumcount().to_numpy()
    names = [f"ID_{split[1]}{number:08x}" for number in rng.permutation(num_slices)]
    chosen = np.array(FORMATS)[rng.choice(len(FORMATS), num_studies, p=SHARES / SHARES.sum())[study]]
    patient = rng.integers(PATIENTS if split == "train" else 3_000, size=num_studies)
    tilt = rng.uniform(0, 0.35, num_studies)[study]
    columns = {
        "relative": [f"stage_2_{split}/{name}.dcm" for name in names],
        "container": [f"/data/rsna/stage_2_{split}/{name}.dcm" for name in names],
        "num_bytes": 525_000,
        "zip_offset": -1,
        "zip_bytes": 0,
        "zip_method": 0,
        "zip_crc": 0,
        "rows": 512,
        "columns": 512,
        "bits_stored": chosen[:, 0].astype(int),
        "high_bit": chosen[:, 0].astype(int) - 1,
        "pixel_representation": chosen[:, 1].astype(int),
        "slope": 1.0,
        "intercept": chosen[:, 2],
        "spacing_row_mm": 0.488,
        "spacing_col_mm": 0.488,
        "pixel_offset": 1_200,
        "pixel_bytes": 524_288,
        "slice_uid": names,
        "study_uid": [f"ID_{split}{number:06x}" for number in study],
        "series_uid": [f"ID_s{split}{number:06x}" for number in study],
        "patient_id": [f"ID_p{split}{number:06x}" for number in patient[study]],
        "kind": "",
        "position_x": -125.0,
        "position_y": -115.0,
        "position_z": 5.0 * place + rng.uniform(0, 100, num_studies)[study],
        "row_x": 1.0,
        "row_y": 0.0,
        "row_z": 0.0,
        "column_x": 0.0,
        "column_y": np.cos(tilt),
        "column_z": -np.sin(tilt),
        "reason": "",
    }
    table = pd.DataFrame(columns)
    assert set(table.columns) == {*FILE_COLUMNS, *HEADER_COLUMNS, "reason"}
    return table


def write_labels(root: Path, train: pd.DataFrame, test: pd.DataFrame, rng: np.random.Generator) -> None:
    for name, table in (("train", train), ("sample_submission", test)):
        labels = rng.random((len(table), TASK.num_classes - 1)) < np.array(PREVALENCE)
        labels = np.concatenate([labels, labels.any(1, keepdims=True)], axis=1).astype(np.int8)
        ids = np.repeat(table["slice_uid"].to_numpy(), TASK.num_classes)
        ids = pd.Series(ids) + "_" + pd.Series(np.tile(TASK.classes, len(table)))
        values = labels.reshape(-1) if name == "train" else 0.5
        pd.DataFrame({"ID": ids, "Label": values}).to_csv(root / f"stage_2_{name}.csv", index=False)


def make_records(folder: Path, planned: PlannedSource, rng: np.random.Generator) -> dict[str, StudyRecord]:
    """Records as if every slice had been read, and a small volume for each study."""
    counts = planned.slices.groupby("study_id", sort=False).size().to_list()
    frame = encode_volume(np.zeros((60, 8, 8), np.int16))
    records = {}
    for key, count in zip(planned.tasks.keys, counts, strict=True):
        path = folder / volume_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(frame)
        padded, brain = (rng.random(2) < 0.3).tolist() * count, rng.random(count).tolist()
        facts = (list(range(count)), padded[:count], brain, [])
        records[key] = StudyRecord(key, volume_path(key), "0" * 64, len(frame), *facts)
    return records


def measure_memory(phantom: Path, scratch: Path) -> dict[str, float]:
    """Peak memory of the whole process tree of `ichkit prepare`, at a tenth of a phantom's studies and at all."""
    total = sum(1 for _ in (phantom / "rsna" / "stage_2_train").iterdir())
    figures: dict[str, float] = {"memory_num_files": total}
    studies = json.loads((phantom / "rsna" / "phantom.json").read_text())["settings"]["studies"]
    for name, limit in (("tenth", max(1, studies // 10)), ("all", studies)):
        words = ["prepare", "--rsna", phantom / "rsna", "--limit-studies", limit, "--work", scratch / name]
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "ichkit", *map(str, words)], cwd=scratch)
        with watch_memory(process.pid) as peak:
            process.wait()
        assert process.returncode == 0
        figures |= {f"memory_peak_gb_{name}": peak.gb, f"memory_seconds_{name}": time.perf_counter() - began}
        figures[f"memory_studies_{name}"] = limit
    return figures


if __name__ == "__main__":
    main()
