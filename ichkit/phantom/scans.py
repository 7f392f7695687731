"""A folder of scans with a label file of regions, as a user has it: real UIDs, one series a study."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.seeding import derive_seed, make_generator
from ichkit.imaging.regions import REGIONS
from ichkit.phantom.confounders import draw_scan, finish_slice
from ichkit.phantom.difficulty import DEMO, Difficulty
from ichkit.phantom.head import draw_head
from ichkit.phantom.headers import CT_IMAGE_STORAGE, EXPLICIT_VR, encode_file, encode_pixels, geometry_elements
from ichkit.phantom.ischemia import (
    INTACT,
    SIDES,
    InfarctPlan,
    draw_decoys,
    draw_dense_artery,
    draw_infarcts,
    plan_infarcts,
)
from ichkit.phantom.lattice import draw_lattice
from ichkit.phantom.lesions import add_lesions
from ichkit.phantom.render import draw_pose, draw_slice
from ichkit.phantom.study import draw_stack
from ichkit.work.artifacts import encode_table

LABELS_NAME = "regions.csv"
_THICKNESS_MM, _EXTENT_MM = 5.0, 150.0
_FORMAT = (16, 1, -1024)


@dataclass(frozen=True)
class ScanToDraw:
    """The task of a worker that draws and writes one study; fields as in `plan.StudyToDraw`."""

    plan: InfarctPlan
    root: Path
    masks: Path | None
    size: int
    seed: int
    difficulty: Difficulty = DEMO


def plan_scans(
    part: str, count: int, root: Path, masks: Path | None, size: int, seed: int, difficulty: Difficulty
) -> list[ScanToDraw]:
    """The tasks of one data set."""
    return [ScanToDraw(plan, root, masks, size, seed, difficulty) for plan in plan_infarcts(part, count, seed)]


def write_scan(task: ScanToDraw) -> dict[str, Any]:
    """Draws one study, writes its files, and returns its description for `phantom.json`, slices from the bottom up."""
    plan, shape = task.plan, (task.size, task.size)
    head = draw_head(make_generator(task.seed, "phantom", plan.part, "patient", plan.patient))
    generator = make_generator(task.seed, "phantom", plan.part, plan.index)
    lattice = draw_lattice(generator)
    pose = draw_pose(generator, generator.uniform(100, 300), task.difficulty.turn_degrees)
    scan = draw_scan(generator, task.difficulty)
    stack = draw_stack(generator, pose, shape, np.arange(0, _EXTENT_MM, _THICKNESS_MM), _THICKNESS_MM, 0.0)
    infarcts = draw_infarcts(generator, plan.findings, head, pose, stack.grids, _THICKNESS_MM)
    lesions = np.concatenate([infarcts, draw_decoys(generator, head)])
    arteries = draw_dense_artery(generator, plan.findings)
    folder = task.root / f"{plan.index:05d}"
    folder.mkdir()
    names, masks = [], {}
    for k, grid in enumerate(stack.grids):
        drawn = draw_slice(grid, _THICKNESS_MM, shape, head, pose, lattice, np.empty((0, 10)), arteries)
        hounsfield, mask = add_lesions(drawn, grid, _THICKNESS_MM, head, pose, lattice, lesions)
        image = finish_slice(generator, hounsfield, grid, pose, scan)
        names.append(_make_uid(task, "slice", k))
        masks[names[-1]] = mask
        elements = _slice_elements(task, names[-1], k)
        elements |= geometry_elements(grid, shape)
        elements["PixelData"] = encode_pixels(image, *_FORMAT)
        (folder / f"{k:04d}.dcm").write_bytes(encode_file(elements, EXPLICIT_VR))
    if task.masks is not None:
        arrays: dict[str, Any] = masks
        np.savez_compressed(task.masks / f"{plan.index:05d}.npz", **arrays)
    study = {"study_id": _make_uid(task, "study"), "slice_ids": names, "scores": plan.scores()}
    return {**asdict(plan), **study}


def write_regions(root: Path, studies: list[dict[str, Any]]) -> None:
    """Writes `regions.csv`: study_id, side, region and category of every region of every study."""
    rows = []
    for study in studies:
        found = {(one["side"], one["region"]): one["category"] for one in study["findings"]}
        rows += [
            (study["study_id"], side, region.name, found.get((side, region.name), INTACT))
            for side in SIDES
            for region in REGIONS
        ]
    table = pd.DataFrame(rows, columns=["study_id", "side", "region", "category"])
    (root / LABELS_NAME).write_bytes(encode_table(table, ".csv"))


def _slice_elements(task: ScanToDraw, slice_id: str, number: int) -> dict[str, str | int | bytes]:
    """The header of a slice, without geometry and pixels."""
    bits_stored, pixel_representation, intercept = _FORMAT
    return {
        "SOPClassUID": CT_IMAGE_STORAGE,
        "SOPInstanceUID": slice_id,
        "Modality": "CT",
        "PatientID": f"phantom-{task.plan.part}-{task.plan.patient}",
        "StudyInstanceUID": _make_uid(task, "study"),
        "SeriesInstanceUID": _make_uid(task, "series"),
        "SeriesNumber": "1",
        "InstanceNumber": str(number + 1),
        "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
        "SliceThickness": f"{_THICKNESS_MM:g}",
        "BitsStored": bits_stored,
        "HighBit": bits_stored - 1,
        "PixelRepresentation": pixel_representation,
        "WindowCenter": "40",
        "WindowWidth": "80",
        "RescaleIntercept": str(intercept),
        "RescaleSlope": "1",
    }


def _make_uid(task: ScanToDraw, *place: str | int) -> str:
    # PS3.5 B.2: 2.25 and a 128-bit number, here of 126 bits.
    place = ("phantom", "uid", task.plan.part, task.plan.index, *place)
    high, low = derive_seed(task.seed, *place, "high"), derive_seed(task.seed, *place, "low")
    return f"2.25.{(high << 63) + low}"
