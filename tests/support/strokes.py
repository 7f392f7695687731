"""A prepared store of halves of phantom brains with a stroke, drawn on one small grid: no files, no registration."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.seeding import make_generator
from ichkit.core.tasks import find_task
from ichkit.imaging.store import write_volume
from ichkit.phantom.head import draw_head
from ichkit.phantom.lattice import draw_lattice
from ichkit.phantom.mr import GREY, SEQUENCES, Plane, draw_tissues, show
from ichkit.phantom.onset import SIDES, draw_lesions, draw_stroke
from ichkit.work.artifacts import ArtifactWriter
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import conform, slices_dtypes, studies_dtypes

TASK = find_task("onset")
NUM_SLICES, ROWS, THICKNESS_MM, SPACING_MM, LOWEST_MM = 12, 32, 7.0, 5.6, -14.0
BRAIN_VALUE, HIGHEST, NOISE = 1000, 3000, 0.03


def draw_patient(seed, index, mirrored=False):
    """(S, M, H, W) int16 values of a whole brain with columns to the patient's left, and its facts.

    Args:
        mirrored: exchange left and right of everything that is drawn, noise included.
    """
    rng = make_generator(seed, "strokes", index)
    stroke, head, lattice = draw_stroke(rng), draw_head(rng), draw_lattice(rng)
    lesions = draw_lesions(rng, stroke)
    half = SPACING_MM * (ROWS - 1) / 2
    values, masks = [], []
    for k in range(NUM_SLICES):
        first = np.array([-half, -half, LOWEST_MM + k * THICKNESS_MM])
        plane = Plane(
            first,
            np.array([SPACING_MM, 0, 0]),
            np.array([0, SPACING_MM, 0]),
            np.array([0, 0, 1.0]),
            THICKNESS_MM,
            (ROWS, ROWS),
        )
        tissues, numbers = draw_tissues(plane, head, np.eye(3), np.zeros(3), lattice, lesions)
        signals = np.stack([show(sequence, tissues, numbers, lesions) for sequence in SEQUENCES])
        values.append(signals * (tissues >= GREY))
        masks.append(numbers == 0)
    whole, mask = np.stack(values), np.stack(masks)
    whole = whole * (1 + rng.normal(0, NOISE, whole.shape)) * rng.uniform(0.9, 1.1, (1, 3, 1, 1))
    brain = whole[:, 0] > 0
    ratio = np.nan
    if mask.any():
        dwi, flair = (whole[:, c][mask].mean() / np.median(whole[:, c][brain & ~mask]) for c in (0, 2))
        ratio = (flair - 1) / max(dwi - 1, 0.05)
    side = stroke.side
    if mirrored:
        whole, side = whole[..., ::-1], SIDES[1 - SIDES.index(side)]
    stored = np.clip(np.rint(whole * BRAIN_VALUE), 0, HIGHEST).astype(np.int16)
    return stored, {"side": side, "minutes": stroke.minutes, "ratio": ratio}


def halves_of(whole):
    """Side to (S, M, H, W / 2), the left one mirrored."""
    middle = whole.shape[-1] // 2
    return {"right": whole[..., :middle], "left": np.ascontiguousarray(whole[..., middle:][..., ::-1])}


def make_strokes(
    root: Path, num_patients: int, *, num_folds: int = 3, seed: int = 0
) -> tuple[WorkFolder, pd.DataFrame]:
    """The store, and a row for each patient: side, minutes and the ratio of FLAIR to DWI in the lesion."""
    work = WorkFolder(root)
    writer = ArtifactWriter(work.prepared, "prepared")
    slices, studies, facts = [], [], []
    for index in range(num_patients):
        whole, of_patient = draw_patient(seed, index)
        patient = f"sub-{index:04d}"
        facts.append({"patient_id": patient, **of_patient})
        for side, volume in halves_of(whole).items():
            key = hashlib.sha256(volume.tobytes() + side.encode()).hexdigest()[:32]
            relative, digest = write_volume(writer.folder, key, volume)
            writer.record(relative, digest)
            has_stroke = side == of_patient["side"]
            labels = {"stroke": int(has_stroke)}
            for name, limit in (("tss45", 270), ("tss3", 180)):
                labels[name] = int(of_patient["minutes"] < limit) if has_stroke else pd.NA
            study = {
                "study_id": f"{patient}:{side}",
                "patient_id": patient,
                "dataset": "bids",
                "split": "train",
                "num_slices": NUM_SLICES,
                **labels,
            }
            studies.append(study)
            for k in range(NUM_SLICES):
                slices.append(
                    {
                        **study,
                        "slice_id": f"{study['study_id']}:{k:02d}",
                        "series_id": study["study_id"],
                        "slice_index": k,
                        "position_mm": k * THICKNESS_MM,
                        "gap_mm": THICKNESS_MM,
                        "rows": ROWS,
                        "columns": ROWS // 2,
                        "spacing_row_mm": SPACING_MM,
                        "spacing_col_mm": SPACING_MM,
                        "pixel_format": "16,1,0",
                        "hu_repaired": False,
                        "padded": False,
                        "volume": relative,
                        "fold": index % num_folds,
                    }
                )
    table = pd.DataFrame(slices).sort_values(["study_id", "slice_index"])
    writer.write_table("slices.parquet", conform(table, slices_dtypes(TASK)))
    writer.write_table("studies.parquet", conform(pd.DataFrame(studies).sort_values("study_id"), studies_dtypes(TASK)))
    folds = table[["patient_id", "fold"]].drop_duplicates()
    writer.write_bytes("folds.csv", folds.to_csv(index=False).encode())
    writer.commit(
        settings={"task": TASK.name, "size": None, "num_folds": num_folds, "hull_hu": [0, HIGHEST]},
        inputs={},
        facts={"data": "phantom", "bids": {"labels": "study"}},
    )
    (work.root / "folds.csv").parent.mkdir(parents=True, exist_ok=True)
    return work, pd.DataFrame(facts)
