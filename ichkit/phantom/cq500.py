"""The CQ500 layout: folder names with spaces, several series per study, three readers."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.seeding import derive_seed, make_generator
from ichkit.phantom.bleeds import SUBTYPES
from ichkit.phantom.confounders import finish_slice
from ichkit.phantom.headers import (
    CT_IMAGE_STORAGE,
    EXPLICIT_VR,
    IMPLICIT_VR,
    encode_file,
    encode_pixels,
    geometry_elements,
    outside_circle,
)
from ichkit.phantom.plan import StudyToDraw
from ichkit.phantom.render import Drawn, Grid
from ichkit.phantom.study import (
    Scene,
    Stack,
    draw_patient,
    draw_scene,
    draw_slices,
    draw_stack,
    draw_visible,
    label_slices,
    write_masks,
)
from ichkit.work.artifacts import encode_table

NUM_CQ500 = 491
_THIN_STEP_MM, _THIN_START_MM, _MAX_THIN_SLICES = 1.25, 14.0, 96
# Of the reader who differs in a study: the chance to miss a class that is there, and to report one that is not. With
# one of three differing, readers disagree about as often as those of the real file.
_MISSES, _REPORTS = 0.35, 0.07
# Column of reads.csv for each of SUBTYPES, in the order of the real file.
_READ_NAMES = {
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SDH": "subdural",
    "EDH": "epidural",
    "SAH": "subarachnoid",
}
_OTHER_FINDINGS = (
    "BleedLocation-Left", "BleedLocation-Right", "ChronicBleed", "Fracture", "CalvarialFracture", "OtherFracture",
    "MassEffect", "MidlineShift",
)  # fmt: skip
# Names of (plain, thin, bone, contrast) series, one row per hospital; from the list of real names.
_HOSPITALS = (
    ("CT Plain", "CT PLAIN THIN", "CT BONE", "CT C"),
    ("CT PRE CONTRAST 5MM STD", "CT PRE CONTRAST THIN", "CT PRE CONTRAST BONE", "CT POST CONTRAST"),
    ("CT 5mm", "CT 0.625mm", "CT BONE THIN", "CT 5mm POST CONTRAST"),
    ("CT 55mm Plain", "CT Thin Plain", "CT Thin Bone", "CT 55mm Contrast"),
)
_LOCALIZER = "CT I To S"


def choose_numbers(count: int, seed: int) -> list[int]:
    """The n of `CQ500-CT-n` of each study, all different."""
    generator = make_generator(seed, "phantom", "cq500", "numbers")
    numbers: list[int] = generator.choice(max(NUM_CQ500, count), count, replace=False).tolist()
    return numbers


def write_study(task: tuple[StudyToDraw, int]) -> dict[str, Any]:
    """Draws one study with all its series, writes its files, and returns its description for `phantom.json`.

    Args:
        task: the study, and the n of `CQ500-CT-n`.
    """
    study, number = task
    plan = study.plan
    generator = make_generator(study.seed, "phantom", plan.part, plan.index)
    scene = draw_scene(generator, draw_patient(plan, study.seed), plan.subtypes, study.difficulty)
    shape = (study.size, study.size)
    tilt = round(generator.uniform(5, 15), 3) if generator.random() < 0.4 else 0.0
    steps = np.arange(0, 150 + generator.uniform(-6, 8), 5.0)
    stack = draw_stack(generator, scene.pose, shape, steps, 5.0, tilt)
    scene, drawn = draw_visible(generator, scene, stack, plan.subtypes)
    plain, thin, bone, contrast = _HOSPITALS[int(generator.integers(len(_HOSPITALS)))]
    out = _StudyFolder(study, number, generator, scene)
    out.write(plain, stack, drawn, kernel="STANDARD")
    if generator.random() < 0.4:
        out.write(bone, stack, drawn, kernel="BONE", sharp=True)
    if generator.random() < 0.25:
        bright = replace(scene, head=scene.head._replace(enhancement_hu=60.0))
        out.write(contrast, stack, draw_slices(bright, stack), kernel="STANDARD")
    if generator.random() < 0.3:
        out.write_localizer(stack, drawn)
    if plan.index % 5 == 0:
        steps = np.arange(_MAX_THIN_SLICES) * _THIN_STEP_MM
        fine = draw_stack(generator, scene.pose, shape, steps, _THIN_STEP_MM, tilt)
        fine = replace(fine, grids=tuple(grid._replace(z=grid.z + _THIN_START_MM) for grid in fine.grids))
        out.write(thin, fine, draw_slices(scene, fine), kernel="STANDARD", noise_factor=1.7)
    labels = label_slices(drawn).max(0).tolist()
    return {**asdict(plan), "name": f"CQ500-CT-{number}", "tilt_degrees": tilt, "series": out.series, "labels": labels}


class _StudyFolder:
    """Writes the series of one study, each to its own folder."""

    def __init__(self, study: StudyToDraw, number: int, generator: np.random.Generator, scene: Scene) -> None:
        self.study, self.generator, self.scene = study, generator, scene
        self.name = f"CQ500CT{number}"
        self.folder = study.root / f"{self.name} {self.name}" / "Unknown Study"
        self.series: dict[str, list[str]] = {}
        self.syntax = EXPLICIT_VR if generator.random() < 0.7 else IMPLICIT_VR

    def write(
        self,
        name: str,
        stack: Stack,
        drawn: list[Drawn],
        *,
        kernel: str,
        sharp: bool = False,
        noise_factor: float = 1.0,
    ) -> None:
        """Writes an axial series; in half of them file numbers run from the vertex down."""
        images = [
            finish_slice(
                self.generator,
                one.hounsfield,
                grid,
                self.scene.pose,
                self.scene.scan,
                noise_factor=noise_factor,
                sharp=sharp,
            )
            for grid, one in zip(stack.grids, drawn, strict=True)
        ]
        geometry = [geometry_elements(grid, stack.shape) for grid in stack.grids]
        extra = {
            "ConvolutionKernel": kernel,
            "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
            "SliceThickness": f"{stack.thickness_mm:g}",
        }
        uids = self._write_files(name, images, geometry, extra, self.generator.random() < 0.5)
        if self.study.masks is not None:
            write_masks(self.study.masks / f"{self.name}_{len(self.series)}.npz", uids, drawn)

    def write_localizer(self, stack: Stack, drawn: list[Drawn]) -> None:
        """Writes a localizer series of one lateral view, the mean of the axial slices from left to right."""
        lateral = np.stack([one.hounsfield.mean(1) for one in drawn])[::-1]
        rows = np.linspace(0, len(lateral) - 1, self.study.size).round().astype(int)
        image = lateral[rows].astype(np.int16)
        top, extent = stack.grids[-1], stack.grids[-1].z - stack.grids[0].z
        geometry = geometry_elements(Grid(0.0, top.y, top.z, extent / self.study.size, 1.0, 0.0), image.shape)
        geometry["ImageOrientationPatient"] = "0.000000\\1.000000\\0.000000\\0.000000\\0.000000\\-1.000000"
        self._write_files(_LOCALIZER, [image], [geometry], {"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, False)

    def _write_files(
        self,
        name: str,
        images: list[np.ndarray],
        geometry: list[dict[str, Any]],
        extra: dict[str, str],
        is_reversed: bool,
    ) -> list[str]:
        """Writes CT000000.dcm, CT000001.dcm and so on; returns the SOPInstanceUID of each image."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        plan = self.study.plan
        bits_stored, pixel_representation, intercept = plan.pixel_format
        padding = outside_circle(images[0].shape) if plan.is_padded and len(images) > 1 else None
        uids = [self._make_uid(name, k) for k in range(len(images))]
        numbers = range(len(images))[::-1] if is_reversed else range(len(images))
        for k, number in enumerate(numbers):
            elements = {
                "SOPClassUID": CT_IMAGE_STORAGE,
                "SOPInstanceUID": uids[k],
                "Modality": "CT",
                "SeriesDescription": name.removeprefix("CT "),
                "PatientID": self.name,
                "StudyInstanceUID": self._make_uid("study"),
                "SeriesInstanceUID": self._make_uid(name),
                "SeriesNumber": str(len(self.series) + 1),
                "InstanceNumber": str(number + 1),
                **extra,
                **geometry[k],
                "BitsStored": bits_stored,
                "HighBit": bits_stored - 1,
                "PixelRepresentation": pixel_representation,
                "WindowCenter": "40",
                "WindowWidth": "80",
                "RescaleIntercept": str(intercept),
                "RescaleSlope": "1",
                "PixelData": encode_pixels(images[k], *plan.pixel_format, padding),
            }
            (folder / f"CT{number:06d}.dcm").write_bytes(encode_file(elements, self.syntax))
        self.series[name] = uids
        return uids

    def _make_uid(self, *place: str | int) -> str:
        # PS3.5 B.2: 2.25 and a 128-bit number, here of 126 bits.
        place = ("phantom", "uid", self.study.plan.index, *place)
        high, low = derive_seed(self.study.seed, *place, "high"), derive_seed(self.study.seed, *place, "low")
        return f"2.25.{(high << 63) + low}"


def write_reads(root: Path, studies: list[dict[str, Any]], seed: int) -> None:
    """Writes `reads.csv`: three readers, of whom one in each study may miss a class or report one that is not there.

    The two others are right, so that the majority is the truth; ICH of a reader is the maximum of its subtypes.
    """
    generator = make_generator(seed, "phantom", "cq500", "reads")
    rows = []
    for position in generator.permutation(len(studies)).tolist():
        study = studies[position]
        truth = dict(zip((*SUBTYPES, "any"), study["labels"], strict=True))
        row: dict[str, Any] = {"name": study["name"], "Category": "B2" if study["index"] % 2 else "B1"}
        reads = {"ICH": truth["any"], **{column: truth[name] for column, name in _READ_NAMES.items()}}
        differs = int(generator.integers(3))
        for reader in range(3):
            own = _misread(reads, generator) if reader == differs else reads
            row.update({f"R{reader + 1}:{column}": value for column, value in own.items()})
            row.update({f"R{reader + 1}:{column}": 0 for column in _OTHER_FINDINGS})
        rows.append(row)
    (root / "reads.csv").write_bytes(encode_table(pd.DataFrame(rows), ".csv"))


def _misread(reads: dict[str, int], generator: np.random.Generator) -> dict[str, int]:
    """The reads of the reader who differs."""
    chances = generator.random(len(_READ_NAMES))
    own = {
        column: reads[column] ^ int(chance < (_MISSES if reads[column] else _REPORTS))
        for column, chance in zip(_READ_NAMES, chances, strict=True)
    }
    return {"ICH": max(own.values()), **own}
