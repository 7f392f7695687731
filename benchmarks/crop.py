"""The head crop: `python benchmarks/crop.py [--json FILE] [--heads 1000] [--scans FOLDER] [--gain 64 96]`.

Brain outside the box: on phantom heads with tilt, metal, headrests, frames, cut off and off centre, and on real scans
(`--scans`: folders with one DICOM series each), whose brain is the soft tissue that a closed skull surrounds. `--gain`:
what the crop buys at these image sizes on phantoms with small heads, somewhere in a picture of 400 mm: the loss of a
small network out of fold, with and without it, paired by patient.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
from measuring import report
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.commands import do
from support.heads import draw_hard_head, widen_pictures

from ichkit import write_phantom
from ichkit.core.config import load_config
from ichkit.core.tasks import find_task
from ichkit.imaging.head_box import find_head_box
from ichkit.imaging.store import Prepared
from ichkit.stages.prepare import run as prepare
from ichkit.stages.train import run as train
from ichkit.validation.metrics import log_losses
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder

TASK = find_task("hemorrhage")
SIZES = (96, 128, 128, 256)
NUM_DRAWS = 2000
SETTINGS = (
    "prepare.num_folds=3",
    "prepare.size=null",
    "prepare.workers=1",
    "train.epochs=6",
    "train.accelerator=cpu",
    "train.threads=1",
    "train.workers=0",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--heads", type=int, default=1000, help="0 for none; figures already in the file are kept")
    parser.add_argument("--scans", type=Path, nargs="*", default=[], help="folders of one real series each")
    parser.add_argument("--gain", type=int, nargs="*", default=[], help="image sizes to train at; minutes each")
    parser.add_argument("--studies", type=int, default=100, help="phantom studies to train on and predict")
    args = parser.parse_args()
    figures = json.loads(args.json.read_text()) if args.json is not None and args.json.exists() else {}
    figures.pop("versions", None)
    if args.heads:
        figures |= measure_heads(args.heads)
    figures |= measure_scans(args.scans)
    if args.gain:
        with tempfile.TemporaryDirectory() as folder:
            figures |= measure_gain(Path(folder), args.studies, args.gain)
    report(figures, args.json)


def measure_heads(count: int) -> dict[str, Any]:
    """Heads with brain outside the box, heads not found, and how much larger than the brain the boxes are."""
    lost, missed, seconds, spare, share = 0, 0, [], [], []
    for number in range(count):
        generator = np.random.default_rng(number)
        head = draw_hard_head(generator, size=int(generator.choice(SIZES)))
        began = time.process_time()
        box = find_head_box(head.volume, head.spacing_mm)
        seconds.append(time.process_time() - began)
        if box is None:
            missed += 1
            continue
        lost += int(head.brain.sum() > box.cut(head.brain).sum())
        brain = head.brain.any(0)
        if brain.any():
            extent = max(np.ptp(np.flatnonzero(brain.any(axis))) + 1 for axis in (0, 1))
            spare.append((max(box.height, box.width) - extent) * head.spacing_mm[0])
            share.append(box.height * box.width / brain.size)
    return {
        "heads": count,
        "heads_with_brain_outside": lost,
        "heads_not_found": missed,
        "median_share_of_picture": float(np.median(share)),
        "median_mm_beyond_brain": float(np.median(spare)),
        "p95_mm_beyond_brain": float(np.quantile(spare, 0.95)),
        "cpu_ms_per_head": 1000 * float(np.median(seconds)),
    }


def measure_scans(folders: list[Path]) -> dict[str, Any]:
    """Of each real series: brain pixels, those outside the box, and the side of picture and box in mm."""
    figures: dict[str, Any] = {}
    for folder in folders:
        volume, spacing = read_series(folder)
        box, brain = find_head_box(volume, spacing), find_brain(volume)
        assert box is not None, folder
        name = folder.name
        figures[f"{name}_slices"] = len(volume)
        figures[f"{name}_brain_pixels"] = int(brain.sum())
        figures[f"{name}_brain_pixels_outside"] = int(brain.sum() - box.cut(brain).sum())
        figures[f"{name}_picture_mm"] = volume.shape[1] * spacing[0]
        figures[f"{name}_side_mm"] = box.height * spacing[0]
    return figures


def read_series(folder: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """(S, H, W) int16 HU of the files with the most common number of rows, by position, and the spacing."""
    files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    series = Counter(file.SeriesInstanceUID for file in files).most_common(1)[0][0]
    own = sorted(
        (file for file in files if file.SeriesInstanceUID == series),
        key=lambda file: float(file.ImagePositionPatient[2]),
    )
    slices = [file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept) for file in own]
    row, column = map(float, own[0].PixelSpacing)
    return np.clip(slices, -800, 2000).astype(np.int16), (row, column)


def find_brain(volume: np.ndarray) -> np.ndarray:
    """(S, H, W) bool: soft tissue that the closed bone of its slice surrounds, at full resolution."""
    brain = np.zeros(volume.shape, bool)
    for inside, image in zip(brain, volume, strict=True):
        skull = ndimage.binary_closing(image > 150, iterations=5)
        soft = ndimage.binary_fill_holes(skull) & (image > -10) & (image < 100)
        inside[:] = ndimage.binary_opening(soft, iterations=4)
    return brain


def measure_gain(folder: Path, studies: int, sizes: list[int]) -> dict[str, Any]:
    """Out-of-fold loss with and without the crop at some image sizes, and the paired gain with its 95 % interval."""
    write_phantom(folder, studies=studies, test_studies=0, cq500_studies=0, size=128, seed=11)
    widen_pictures(folder / "rsna", seed=11)
    figures: dict[str, Any] = {"gain_studies": studies}
    losses = {}
    for crop in ("none", "head"):
        work = WorkFolder(folder / crop)
        config = load_config("demo", (*SETTINGS, f"prepare.crop={crop}"))
        do(prepare, config, work, prepare.PrepareOptions(rsna=folder / "rsna"))
        for size in sizes:
            trained = load_config("demo", (*SETTINGS, f"prepare.crop={crop}", f"train.image_size={size}"))
            do(train, trained, work, run_name=f"at{size}", folds=[0, 1, 2])
            losses[crop, size] = read_losses(work, f"at{size}")
            figures[f"loss_{crop}_{size}"] = float(losses[crop, size]["loss"].mean())
    figures["loss_prior"] = measure_prior(work)
    for size in sizes:
        figures |= compare(losses["none", size], losses["head", size], f"gain_{size}")
    return figures


def read_losses(work: WorkFolder, run: str) -> pd.DataFrame:
    """slice_id, patient_id and the weighted log loss of every slice out of fold, in the order of the ids."""
    table = pd.concat([read_table(work.fold(run, k) / "oof.parquet") for k in (0, 1, 2)]).set_index("slice_id")
    slices = Prepared.open(work.prepared, TASK).split("train").set_index("slice_id").loc[table.index]
    labels = slices[list(TASK.classes)].to_numpy(np.float64)
    loss = log_losses(table[TASK.probability_columns].to_numpy(np.float64), labels) @ TASK.weight_array()
    return pd.DataFrame({"patient_id": slices["patient_id"], "loss": loss}).sort_index()


def measure_prior(work: WorkFolder) -> float:
    """The loss of the prevalence in the other folds."""
    slices = Prepared.open(work.prepared, TASK).split("train")
    labels, fold = slices[list(TASK.classes)].to_numpy(np.float64), slices["fold"].to_numpy(np.int64)
    prior = np.stack([labels[fold != k].mean(0) for k in range(3)])[fold]
    return float((log_losses(prior, labels) @ TASK.weight_array()).mean())


def compare(before: pd.DataFrame, after: pd.DataFrame, name: str) -> dict[str, float]:
    """The share of the loss that is gained, and its interval by resampling patients."""
    assert before.index.equals(after.index)
    sums = pd.DataFrame({"before": before["loss"], "after": after["loss"], "patient": before["patient_id"]})
    per_patient = sums.groupby("patient").sum().to_numpy()
    drawn = np.random.default_rng(0).integers(0, len(per_patient), (NUM_DRAWS, len(per_patient)))
    totals = per_patient[drawn].sum(1)
    gains = 1 - totals[:, 1] / totals[:, 0]
    low, high = np.quantile(gains, (0.025, 0.975))
    whole = per_patient.sum(0)
    return {name: float(1 - whole[1] / whole[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


if __name__ == "__main__":
    main()
