"""AISD: plain CT of acute ischemic stroke with a mask for every slice, which gives slices or regions their labels."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd

from ichkit.core.errors import DataError
from ichkit.imaging.dicom import UnreadableError
from ichkit.imaging.geometry import turn_pixels
from ichkit.imaging.parts import Cut, cut_parts, part_id
from ichkit.sources.files import FileRef, file_refs
from ichkit.sources.folder import hide_files, plan_folder
from ichkit.sources.plan import Found, SourcePlan, StudyTasks, make_rejected, order_slices
from ichkit.sources.study import PixelSettings, decode_study
from ichkit.work.artifacts import digest_table

DATASET = "aisd"
MIN_SHARE = 0.4
"""A region has the finding where the mask covers this share of it in one of its slices; chosen here."""
MIN_AREA_MM2 = 40.0
"""A slice has the finding from this area on, as in phantoms; chosen here."""
_IMAGE = re.compile(r"(?i)(?:^|/)dicom[^/]*/([^/]+)/")
_MASK = re.compile(r"(?i)(?:^|/)masks?/([^/]+)/(\d+)\.png$")
_LAYOUT_HINT = (
    "Expected dicom-0/CASE/*.dcm, dicom-1/ ... and mask/CASE/000.png, 001.png ... as unpacked from "
    "https://github.com/GriffinLiang/AISD."
)


def image_files(files: pd.DataFrame) -> pd.DataFrame:
    """The DICOM files of all cases.

    Raises:
        DataError: there is none.
    """
    images = files[files["relative"].str.extract(_IMAGE)[0].notna()]
    if images.empty:
        raise DataError(f"aisd: no case among {len(files)} files. {_LAYOUT_HINT}")
    return images.reset_index(drop=True)


def plan_aisd(found: Found) -> SourcePlan:
    """The chosen series of every case, with labels of its slices, or of its regions where studies are cut.

    The masks show acute infarcts, the class that the task counts; its other classes are unknown. Masks are taken in the
    order of their numbers for slices in the order of their files (InstanceNumber); a case with another number of masks
    than of slices is rejected.

    Raises:
        DataError: the task counts no class, or no case has masks.

    Source: Liang et al., MICCAI 2021; the layout as its README names the archives. Not tried on the data themselves.
    """
    if found.task.counted_class is None:
        raise DataError(
            f"aisd: its masks show infarcts, and the task {found.task.name} has no class for them. Choose a config "
            "with such a task, e.g. -c aspects2020."
        )
    plan = plan_folder(found.index, found.salt, found.override, judges_hu=found.judges_hu, dataset=DATASET)
    masks = _list_masks(found.files)
    pixels = PixelSettings(False, (-1024, 3071), None, found.judges_hu)
    ordered, _ = order_slices(plan.files)
    tasks = StudyTasks(ordered, pixels)
    kept, lost, labels = [], [], []
    for number, study_id in enumerate(tasks.study_ids):
        rows = tasks.rows(number)
        case = _IMAGE.search(str(rows["relative"].iloc[0]))
        own = masks.get(case[1], []) if case else []
        try:
            if len(own) != len(rows):
                raise UnreadableError(f"{len(own)} masks for {len(rows)} slices")
            by_file = rows.sort_values(["instance_number", "relative"]).index
            read = {
                index: turn_pixels(_read_mask(ref), int(rows["turn"][index]))
                for index, ref in zip(by_file, own, strict=True)
            }
            labels.append(_label(found, study_id, rows, [read[index] for index in rows.index], tasks, number))
            kept.append(rows.drop(columns="slice_index"))
        except UnreadableError as error:
            lost.append(rows.assign(reason=str(error)))
    if not kept:
        raise DataError(f"aisd: no case has a mask for each of its slices. {_LAYOUT_HINT}")
    table = pd.concat(labels, ignore_index=True)
    refused = [hide_files(make_rejected(pd.concat(lost)), found.salt)] if lost else []
    key = table.columns[0]
    return replace(
        plan,
        files=pd.concat(kept, ignore_index=True),
        rejected=pd.concat([plan.rejected, *refused], ignore_index=True),
        labels=table if key == "slice_id" else None,
        study_labels=table if key == "study_id" else None,
        facts={**plan.facts, "labels": "slice" if key == "slice_id" else "study"},
        inputs={f"{DATASET}_labels": digest_table(table)},
    )


def label_parts(cuts: list[Cut], mask: np.ndarray) -> dict[str, int]:
    """1 by the name of a part where the mask covers `MIN_SHARE` of it in one of its slices, else 0.

    Args:
        mask: (S, H, W) bool.
    """
    found = {}
    for cut in cuts:
        inside = cut.take(np.ones(mask.shape, np.uint8), 0) > 0
        covered = (cut.take(mask.astype(np.uint8), 0) > 0).sum((1, 2))
        found[cut.name] = int((covered / np.maximum(inside.sum((1, 2)), 1)).max(initial=0.0) >= MIN_SHARE)
    return found


def _label(
    found: Found, study_id: str, rows: pd.DataFrame, masks: list[np.ndarray], tasks: StudyTasks, number: int
) -> pd.DataFrame:
    """The labels of one case: slice_id or study_id first, then a column per class."""
    counted = found.task.counted_class
    spacing = (float(rows["spacing_row_mm"].iloc[0]), float(rows["spacing_col_mm"].iloc[0]))
    if found.by_part:
        decoded = decode_study(tasks[number])
        if len(decoded.kept) != len(masks):
            raise UnreadableError("a slice cannot be read, so that its regions have no labels")
        mask = np.stack(masks)
        if decoded.volume.shape != mask.shape:
            raise UnreadableError("its masks are of another size than its slices")
        cuts = cut_parts(found.parts, decoded.volume, spacing, rows["position_mm"].to_numpy(float))
        parts = label_parts(cuts, mask)
        table = pd.DataFrame({"study_id": [part_id(study_id, name) for name in parts], counted: list(parts.values())})
    else:
        areas = np.array([mask.sum() for mask in masks]) * spacing[0] * spacing[1]
        table = pd.DataFrame({"slice_id": rows["slice_id"].to_numpy(), counted: (areas >= MIN_AREA_MM2).astype(int)})
    unknown = {name: pd.array([pd.NA] * len(table), "Int8") for name in found.task.classes if name != counted}
    table = table.assign(**unknown)[[table.columns[0], *found.task.classes]]
    return table.astype(dict.fromkeys(found.task.classes, "Int8"))


def _list_masks(files: pd.DataFrame) -> dict[str, list[FileRef]]:
    """The mask files of every case, by number."""
    named = files["relative"].str.extract(_MASK)
    masks = files[named[0].notna()].assign(case=named[0], number=pd.to_numeric(named[1]))
    ordered = masks.sort_values(["case", "number"])
    return {str(case): file_refs(rows) for case, rows in ordered.groupby("case")}


def _read_mask(ref: FileRef) -> np.ndarray:
    """(H, W) bool.

    Raises:
        UnreadableError: no picture.
    """
    image = cv2.imdecode(np.frombuffer(ref.read(), np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise UnreadableError("a mask is no readable picture")
    return np.asarray(image > 0)
