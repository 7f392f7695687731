"""Labels from segmentation masks in NIfTI: a class is positive on a slice where its area is large enough."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.imaging import nifti
from ichkit.imaging.dicom import Header, UnreadableError
from ichkit.imaging.geometry import slice_normals
from ichkit.sources.files import FileRef, file_refs

_ENDING = re.compile(r"(?i)[-_. ]?(?:seg(?:mentation)?s?|masks?|labels?|gt|ground[-_]?truth)$")
_TOLERANCE_MM = 1.0
"""Between the position of a slice of a mask and that of the scan; headers round to 0.1 mm at worst."""


@dataclass(frozen=True)
class Mask:
    """The areas in one mask.

    Attributes:
        study: its study: the file name without its ending, such as "_seg".
        values: (V,) the values of the mask other than 0, ascending.
        areas_mm2: (S, V) the area of each value on each slice, from the feet to the head.
        positions_mm: (S,) of the slices along their normal, which points to the head.
    """

    study: str
    values: np.ndarray
    areas_mm2: np.ndarray
    positions_mm: np.ndarray


def study_of_mask(relative: str) -> str:
    """The study that a mask file is named after.

    Example:
        >>> study_of_mask("masks/ID_0a1b_seg.nii.gz"), study_of_mask("case 3.nii")
        ('ID_0a1b', 'case 3')
    """
    stem = re.sub(r"(?i)\.nii(?:\.gz)?$", "", relative.rpartition("/")[2])
    return _ENDING.sub("", stem) or stem


def list_masks(files: pd.DataFrame) -> list[FileRef]:
    """The NIfTI files, by name."""
    return file_refs(files[files["relative"].str.lower().str.endswith(nifti.SUFFIXES)])


def read_mask(ref: FileRef) -> Mask:
    """The areas in a mask file.

    Raises:
        UnreadableError: no NIfTI with whole numbers in three dimensions.
    """
    outcomes = nifti.read_slices(lambda length: ref.read(0, length))
    headers: list[Header] = [header for header, _ in outcomes if header is not None]
    if len(headers) < len(outcomes) or not headers:
        raise UnreadableError(next(reason for _, reason in outcomes if reason))
    volume = nifti.read_volume(ref.read()).view(np.int16)
    values = np.unique(volume)
    values = values[values != 0]
    counts = np.zeros((len(volume), len(values)))
    for column, value in enumerate(values):
        counts[:, column] = (volume == value).sum((1, 2))
    pixel_mm2 = headers[0].spacing_row_mm * headers[0].spacing_col_mm
    places = np.array([(one.position_x, one.position_y, one.position_z) for one in headers])
    first = headers[0]
    turned = np.array([[first.row_x, first.row_y, first.row_z, first.column_x, first.column_y, first.column_z]])
    return Mask(study_of_mask(ref.relative), values, counts * pixel_mm2, places @ slice_normals(turned)[0])


def label_mask(mask: Mask, classes: Mapping[int, str], task: Task, min_area_mm2: float) -> pd.DataFrame:
    """(S rows) the label of every class of the task on every slice: 1, 0, or missing.

    A slice without any mask is negative throughout where a value stands for the class that covers all others; a class
    that no value stands for is unknown on the other slices.

    Args:
        classes: value to class; an empty text for a value without meaning.
        min_area_mm2: a smaller area does not count; 0 for any pixel.

    Raises:
        UnreadableError: a value that `classes` does not name.
    """
    unknown = sorted(set(mask.values.tolist()) - set(classes))
    if unknown:
        raise UnreadableError(f"values {', '.join(map(str, unknown[:5]))} of the mask are not named")
    areas = {name: np.zeros(len(mask.areas_mm2)) for name in classes.values() if name}
    for column, value in enumerate(mask.values.tolist()):
        if classes[value]:
            areas[classes[value]] += mask.areas_mm2[:, column]
    positive = {name: area >= max(min_area_mm2, np.finfo(float).tiny) for name, area in areas.items()}
    named = [name for name in task.subtypes if name in positive]
    found = np.zeros(len(mask.areas_mm2), bool)
    for is_positive in positive.values():
        found |= is_positive
    has_all = task.any_class in positive or len(named) == len(task.subtypes)
    nothing = np.where(found | (not has_all), np.nan, 0.0)
    labels = {name: positive[name].astype(np.float64) if name in positive else nothing for name in task.subtypes}
    if task.any_class is not None:
        labels[task.any_class] = np.where(found, 1.0, 0.0 if has_all else np.nan)
    return pd.DataFrame({name: labels[name] for name in task.classes}).astype("Int8")


def ids_without_scans(mask: Mask) -> list[str]:
    """The slice ids of a NIfTI scan that has the name of the study, from the feet to the head."""
    return [f"{mask.study}.{number + 1}" for number in range(len(mask.areas_mm2))]


def ids_in_scan(mask: Mask, slices: pd.DataFrame) -> list[str]:
    """The ids of the slices of a scan at the positions of those of its mask.

    Args:
        slices: slice_id and position_mm of one series.

    Raises:
        UnreadableError: another number of slices, or other positions.
    """
    ordered = slices.sort_values("position_mm")
    if len(ordered) != len(mask.positions_mm):
        raise UnreadableError(f"{len(mask.positions_mm)} slices, but {len(ordered)} in the scan")
    positions, own = ordered["position_mm"].to_numpy(np.float64), mask.positions_mm
    apart = np.abs(positions - own).max()
    if apart > _TOLERANCE_MM:
        raise UnreadableError(f"slices up to {apart:.1f} mm from those of the scan")
    return ordered["slice_id"].to_list()
