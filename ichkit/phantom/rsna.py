"""The RSNA layout: anonymous ids, seven pixel formats, label and sample files."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.seeding import derive_seed, make_generator
from ichkit.phantom.bleeds import SUBTYPES
from ichkit.phantom.confounders import finish_slice
from ichkit.phantom.headers import (
    EXPLICIT_VR,
    IMPLICIT_VR,
    encode_file,
    encode_pixels,
    geometry_elements,
    outside_circle,
)
from ichkit.phantom.plan import StudyPlan, StudyToDraw
from ichkit.phantom.render import Grid
from ichkit.phantom.study import (
    draw_patient,
    draw_scene,
    draw_stack,
    draw_steps,
    draw_visible,
    label_slices,
    read_labels,
    write_masks,
)
from ichkit.work.artifacts import encode_table

CLASSES = (*SUBTYPES, "any")
_PARTS = ("train", "test")
FOLDERS = {"train": "stage_2_train", "test": "stage_2_test"}
_NUM_DUPLICATES = 4
_TRUNCATED_SHARE = 0.6
_MAX_SLICES = 1024


@dataclass(frozen=True)
class _Style:
    """Number formats and windows in the headers of one scanner."""

    transfer_syntax: str
    decimals: bool
    centre: str
    width: str


def make_id(seed: int, digits: int, kind: str, number: int) -> str:
    """An id such as `ID_0f3a5b2c1` that does not reveal its number and is different for every number.

    A Feistel network of four rounds is a permutation for any round function.

    Args:
        digits: hexadecimal digits of the id, even or odd.
        kind: purpose of the id; ids of different kinds are unrelated.
        number: at least 0, below 16 to the power of `digits`.
    """
    half = 2 * digits
    left, right = divmod(number, 1 << half)
    for turn in range(4):
        left, right = right, left ^ derive_seed(seed, "phantom", "id", kind, turn, right) % (1 << half)
    return f"ID_{(left << half) + right:0{digits}x}"


def write_study(task: StudyToDraw) -> dict[str, Any]:
    """Draws one study, writes its files, and returns its description for `phantom.json`, slices from the bottom up."""
    plan = task.plan
    generator = make_generator(task.seed, "phantom", plan.part, plan.index)
    scene = draw_scene(generator, draw_patient(plan, task.seed), plan.subtypes, task.difficulty)
    steps, thickness = draw_steps(generator, task.difficulty)
    if plan.has_ties:  # some table positions were scanned twice
        again = generator.choice(len(steps), 3, replace=False)
        steps = np.sort(np.concatenate([steps, steps[again]]))
    tilt = round(generator.uniform(*task.difficulty.tilt_degrees), 3) if generator.random() < 0.5 else 0.0
    shape = (task.size, task.size * 9 // 8) if plan.is_oblong else (task.size, task.size)
    stack = draw_stack(generator, scene.pose, shape, steps[:_MAX_SLICES], thickness, tilt)
    scene, drawn = draw_visible(generator, scene, stack, plan.subtypes)
    style = _draw_style(generator)
    slice_ids = [make_id(task.seed, 9, "slice", _number(plan) * _MAX_SLICES + k) for k in range(len(drawn))]
    series = _split_series(plan, len(drawn), task.seed)
    cut = int(generator.integers(len(drawn) // 4, len(drawn) * 3 // 4)) if plan.is_truncated else -1
    padding = outside_circle(shape) if plan.is_padded else None
    for k, (grid, one) in enumerate(zip(stack.grids, drawn, strict=True)):
        image = finish_slice(generator, one.hounsfield, grid, scene.pose, scene.scan)
        elements = _slice_elements(plan, task.seed, slice_ids[k], series[k], grid, shape, style)
        elements["PixelData"] = encode_pixels(image, *plan.pixel_format, padding)
        data = encode_file(elements, style.transfer_syntax)
        data = data[: int(_TRUNCATED_SHARE * len(data))] if k == cut else data
        (task.root / FOLDERS[plan.part] / f"{slice_ids[k]}.dcm").write_bytes(data)
    if task.masks is not None:
        write_masks(task.masks / f"{_study_id(plan, task.seed)}.npz", slice_ids, drawn)
    labels = label_slices(drawn)
    if task.difficulty.end_error > 0:  # of a generator of its own, so that the pictures are those without errors
        reader = make_generator(task.seed, "phantom", plan.part, "labels", plan.index)
        labels = read_labels(reader, labels, task.difficulty)
    return {
        **asdict(plan),
        "study_id": _study_id(plan, task.seed),
        "patient_id": _patient_id(plan, task.seed),
        "tilt_degrees": tilt,
        "transfer_syntax": style.transfer_syntax,
        "truncated": slice_ids[cut] if plan.is_truncated else None,
        "slice_ids": slice_ids,
        "labels": labels.tolist(),
    }


def write_tables(root: Path, studies: list[dict[str, Any]], seed: int) -> None:
    """Writes the label file with duplicate rows, the sample submission, and the labels of the test part."""
    generator = make_generator(seed, "phantom", "rsna", "tables")
    train = _label_table(studies, "train", generator)
    num_slices = len(train) // len(CLASSES)
    twice = generator.choice(num_slices, min(_NUM_DUPLICATES, num_slices), replace=False)
    rows = (twice[:, None] * len(CLASSES) + np.arange(len(CLASSES))).ravel()
    train = pd.concat([train, train.iloc[rows]])
    test = _label_table(studies, "test", generator)
    (root / "stage_2_train.csv").write_bytes(encode_table(train, ".csv"))
    (root / "stage_2_test_labels.csv").write_bytes(encode_table(test, ".csv"))
    (root / "stage_2_sample_submission.csv").write_bytes(encode_table(test.assign(Label=0.5), ".csv"))


def _label_table(studies: list[dict[str, Any]], part: str, generator: np.random.Generator) -> pd.DataFrame:
    """ID and Label of every slice of a part, slices in random order, classes in file order."""
    ids = np.array([slice_id for study in studies if study["part"] == part for slice_id in study["slice_ids"]], object)
    labels = np.array([row for study in studies if study["part"] == part for row in study["labels"]], np.int64)
    order = generator.permutation(len(ids))
    names = [f"{slice_id}_{name}" for slice_id in ids[order] for name in CLASSES]
    return pd.DataFrame({"ID": names, "Label": labels.reshape(-1, len(CLASSES))[order].ravel()})


def _number(plan: StudyPlan) -> int:
    """A number that is unique over both parts."""
    return 2 * plan.index + _PARTS.index(plan.part)


def _study_id(plan: StudyPlan, seed: int) -> str:
    return make_id(seed, 10, "study", _number(plan))


def _patient_id(plan: StudyPlan, seed: int) -> str:
    return make_id(seed, 8, "patient", 2 * plan.patient + _PARTS.index(plan.part))


def _split_series(plan: StudyPlan, num_slices: int, seed: int) -> list[str]:
    """The series of each slice: one, or the skull base and the rest."""
    border = num_slices // 3 if plan.has_two_series else 0
    ids = [make_id(seed, 10, "series", 2 * _number(plan) + number) for number in range(2)]
    return [ids[0] if k < border else ids[1] for k in range(num_slices)]


def _draw_style(generator: np.random.Generator) -> _Style:
    """A random style; the real files have five forms of windows, 45 % with two values."""
    centre, width = [
        ("30", "80"),
        ("35.000000", "100.000000"),
        ("40", "150"),
        ("00036\\00036", "00080\\00080"),
        ("40\\600", "80\\2800"),
    ][int(generator.choice(5, p=[0.25, 0.15, 0.15, 0.3, 0.15]))]
    syntax = EXPLICIT_VR if generator.random() < 0.6 else IMPLICIT_VR
    return _Style(syntax, bool(generator.random() < 0.4), centre, width)


def _slice_elements(
    plan: StudyPlan, seed: int, slice_id: str, series_id: str, grid: Grid, shape: tuple[int, int], style: _Style
) -> dict[str, str | int | bytes]:
    """The header of a slice, with the tags of the real files only and without pixel data."""
    bits_stored, pixel_representation, intercept = plan.pixel_format
    return {
        "SOPInstanceUID": slice_id,
        "Modality": "CT",
        "PatientID": _patient_id(plan, seed),
        "StudyInstanceUID": _study_id(plan, seed),
        "SeriesInstanceUID": series_id,
        "StudyID": "",
        **geometry_elements(grid, shape),
        "BitsStored": bits_stored,
        "HighBit": bits_stored - 1,
        "PixelRepresentation": pixel_representation,
        "WindowCenter": style.centre,
        "WindowWidth": style.width,
        "RescaleIntercept": f"{intercept}.000000" if style.decimals else f"{intercept}",
        "RescaleSlope": "1.000000" if style.decimals else ("1" if style.transfer_syntax == IMPLICIT_VR else "1.0"),
    }
