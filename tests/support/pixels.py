"""A work folder like `simulated.make_work`, with pixels that show the labels: small heads, bright squares in them."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.seeding import make_generator
from ichkit.imaging.store import write_volume
from ichkit.work.artifacts import ArtifactWriter, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import conform, slices_dtypes
from support.simulated import TASK, make_work

AIR_HU, BRAIN_HU, BLOOD_HU = -800, 30, 75


def make_pixel_work(root: Path, *, size: int = 32, seed: int = 0, **tables: object) -> WorkFolder:
    """A prepared store of `size` x `size` slices and no runs; `tables` goes to `make_work`."""
    small = {"num_patients": 8, "slices_per_study": (5, 9), "num_folds": 2, "test_studies": 2, "cq500_studies": 2}
    work = make_work(root, runs=(), seed=seed, **{**small, **tables})
    slices = read_table(work.prepared / "slices.parquet")
    rng = make_generator(seed, "pixels")
    volumes = {relative: draw_volume(rows, size, rng) for relative, rows in slices.groupby("volume", sort=False)}
    put_volumes(work, slices, volumes, {"task": TASK.name, "size": size, "num_folds": 2, "hull_hu": [-800, 2000]})
    return work


def put_volumes(
    work: WorkFolder, slices: pd.DataFrame, volumes: dict[str, np.ndarray], settings: dict[str, object]
) -> None:
    """Makes the prepared folder again with these pixels, each volume named by a digest of its content.

    Args:
        volumes: old path to (S, H, W) int16 HU; volumes that are not named keep path and file.
    """
    old = read_manifest(work.prepared)
    writer = ArtifactWriter(work.prepared, "prepared")
    for name in old.files:
        if name != "slices.parquet" and name not in volumes:
            writer.write_bytes(name, (work.prepared / name).read_bytes())
    renamed = {}
    for path, volume in volumes.items():
        renamed[path], digest = write_volume(writer.folder, hashlib.sha256(volume.tobytes()).hexdigest()[:32], volume)
        writer.record(renamed[path], digest)
    slices = slices.assign(volume=slices.volume.map(lambda path: renamed.get(path, path)))
    writer.write_table("slices.parquet", conform(slices, slices_dtypes(TASK)))
    writer.commit(settings=settings, inputs=old.inputs, facts=old.facts)


def draw_volume(rows: pd.DataFrame, size: int, rng: np.random.Generator) -> np.ndarray:
    """(S, size, size) int16 HU: a round head; class c shows as a bright square at a place of its own."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    head = np.where(np.hypot(y, x) < size * 0.45, BRAIN_HU, AIR_HU)
    volume = np.repeat(head[None], len(rows), 0) + rng.normal(0, 4, (len(rows), size, size))
    labels = rows[list(TASK.subtypes)].to_numpy(np.float64, na_value=np.nan)
    labels = np.where(np.isnan(labels), rng.random(labels.shape) < 0.2, labels)
    for position, column in np.argwhere(labels == 1):
        angle = 2 * np.pi * column / len(TASK.subtypes)
        top, left = (int(size / 2 + size * 0.22 * f(angle) - size / 12) for f in (np.sin, np.cos))
        volume[position, top : top + size // 6, left : left + size // 6] += BLOOD_HU - BRAIN_HU
    return np.clip(np.rint(volume), -800, 2000).astype(np.int16)
