"""MR of patients with a stroke and the time since its onset, as NIfTI files in a BIDS tree, ready for `prepare`."""

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.errors import DataError
from ichkit.core.seeding import make_generator
from ichkit.phantom.head import Head, draw_head
from ichkit.phantom.lattice import draw_lattice
from ichkit.phantom.mr import GREY, SEQUENCES, Lesion, Plane, draw_field, draw_tissues, show
from ichkit.phantom.render import Pose, draw_pose
from ichkit.work.artifacts import encode_json, encode_table

LABELS_FILE, READERS_FILE = "labels.csv", "readers.csv"
SIDES = ("right", "left")
_LIMITS_MINUTES = {"tss45": 270.0, "tss3": 180.0}
_MEDIAN_MINUTES, _QUARTILES_MINUTES = 222.0, (105.0, 715.0)
_NORMAL_QUARTILE = 0.6745
_SHORTEST_MINUTES, _LONGEST_MINUTES = 20.0, 14_400.0
_THICKNESS_MM, _NUM_SLICES = 6.0, 26
_HEAD_MM = 205.0
"""Field of view of a phantom of one size; what it holds is as large as a head with its scalp."""
_LOWEST_MM = -66.0
_FOLDERS = {"dwi": "dwi", "b0": "dwi", "flair": "anat"}
_SUFFIXES = {"dwi": "dwi", "b0": "b0", "flair": "FLAIR"}
# Of the size that is asked for: diffusion is 128 to 256 pixels wide, FLAIR 256 to 320 (Zhang 2021, section 2.1).
_SHARE_OF_SIZE = {"dwi": 4, "b0": 4, "flair": 2}
_LACUNE_SHARE = 0.25
_READER_ERROR = 0.35
"""Standard deviation of a reader's judgement, in units of the slope of FLAIR; gives a kappa near the paper's 0.46."""


@dataclass(frozen=True)
class PatientToDraw:
    """The task of a worker: one patient.

    Attributes:
        root: unfinished folder of the tree.
        masks: folder for the masks of the lesion, or None.
        size: a quarter of it is the matrix of diffusion, half of it that of FLAIR.
    """

    index: int
    root: Path
    masks: Path | None
    size: int
    seed: int


@dataclass(frozen=True)
class Stroke:
    """A stroke and how old it looks.

    Attributes:
        minutes: from onset to MR.
        side: of `SIDES`.
        flair_hours: when FLAIR is half as bright as it will be; later with good collaterals.
    """

    minutes: float
    side: str
    flair_hours: float

    def factors(self, strength: float) -> dict[str, float]:
        """The factor on the brain's signal in each sequence.

        Source: diffusion within minutes, FLAIR within hours, T2 later (SYSTEMS of the papers: Zhang 2021, section 1).
        """
        hours = self.minutes / 60
        diffusion = 1 + strength * (1 - np.exp(-hours / 0.5))
        flair = 1 + 0.55 * strength * _rise(hours, self.flair_hours, 0.8)
        b0 = 1 + 0.35 * strength * _rise(hours, self.flair_hours + 4, 1.5)
        return {"dwi": float(diffusion), "b0": float(b0), "flair": float(flair)}

    @property
    def mismatch(self) -> float:
        """How far FLAIR is from being half as bright as it will be: above 0 before it, as in DWI-FLAIR mismatch."""
        return 0.5 - _rise(self.minutes / 60, self.flair_hours, 0.8)


def _rise(hours: float, middle: float, width: float) -> float:
    return float(1 / (1 + np.exp(np.clip((middle - hours) / width, -60, 60))))


def draw_minutes(generator: np.random.Generator) -> float:
    """Minutes from onset to MR: a log-normal of the paper's median 222 with its quartiles 105 and 715.

    The spread is another on each side of the median, because the quartiles are.

    Source: Zhang et al. 2021, section 2.1.
    """
    deviate = generator.standard_normal()
    quartile = _QUARTILES_MINUTES[int(deviate > 0)]
    spread = abs(np.log(quartile / _MEDIAN_MINUTES)) / _NORMAL_QUARTILE
    return float(np.clip(_MEDIAN_MINUTES * np.exp(spread * deviate), _SHORTEST_MINUTES, _LONGEST_MINUTES))


def draw_stroke(generator: np.random.Generator) -> Stroke:
    """A random stroke; FLAIR follows about four and a half hours after the onset."""
    minutes = draw_minutes(generator)
    return Stroke(minutes, str(generator.choice(SIDES)), float(np.clip(generator.normal(4.5, 1.0), 2.0, 8.0)))


def draw_lesions(generator: np.random.Generator, stroke: Stroke) -> np.ndarray:
    """(n, 10) float64, rows of `Lesion`: the acute one first, then decoys on both sides.

    Decoys are old FLAIR lesions of the white matter, and old infarcts that diffusion shows through their T2.
    """
    sign = 1.0 if stroke.side == "left" else -1.0
    rows = [_draw_acute(generator, sign, stroke.factors(generator.uniform(0.7, 1.4)))]
    for _ in range(int(generator.poisson(2.0))):
        side = float(generator.choice([-1.0, 1.0]))
        place = (side * generator.uniform(14, 34), generator.uniform(-35, 45), generator.uniform(14, 40))
        radii = generator.uniform(3, 8, 3)
        rows.append(Lesion._make([*place, *radii, side, 1.0, generator.uniform(1.1, 1.4), generator.uniform(1.3, 1.8)]))
    if generator.random() < 0.3:
        side = float(generator.choice([-1.0, 1.0]))
        place = (side * generator.uniform(24, 48), generator.uniform(-40, 50), generator.uniform(5, 45))
        radii = generator.uniform(6, 14, 3)
        bright = generator.uniform(1.5, 2.0)
        rows.append(
            Lesion._make([*place, *radii, side, generator.uniform(1.1, 1.3), bright, generator.uniform(1.4, 1.9)])
        )
    return np.array(rows, np.float64)


def _draw_acute(generator: np.random.Generator, sign: float, factors: dict[str, float]) -> Lesion:
    place = generator.random()
    if place < _LACUNE_SHARE:  # a small vessel deep in the brain
        centre = (generator.uniform(14, 30), generator.uniform(-15, 20), generator.uniform(2, 26))
        radii = generator.uniform(5, 9, 3)
    elif place < 0.85:  # the middle cerebral artery
        centre = (generator.uniform(32, 48), generator.uniform(-28, 32), generator.uniform(6, 42))
        radii = generator.uniform((9, 12, 10), (18, 30, 22))
    else:  # the posterior cerebral artery
        centre = (generator.uniform(14, 26), generator.uniform(46, 58), generator.uniform(6, 22))
        radii = generator.uniform((7, 9, 8), (12, 16, 14))
    return Lesion._make(
        [sign * centre[0], centre[1], centre[2], *radii, sign, factors["dwi"], factors["b0"], factors["flair"]]
    )


def write_patient(task: PatientToDraw) -> dict[str, Any]:
    """Draws and writes one patient; returns what `phantom.json` says of it."""
    name = f"sub-{task.index + 1:04d}"
    generator = make_generator(task.seed, "phantom", "onset", task.index)
    stroke = draw_stroke(generator)
    head = draw_head(generator)
    lattice = draw_lattice(generator)
    lesions = draw_lesions(generator, stroke)
    pose = draw_pose(generator, generator.uniform(-20, 20))
    tilt = np.deg2rad(generator.normal(0, 6))
    is_flipped = bool(generator.random() < 0.5)
    signals = {}
    for sequence in SEQUENCES:
        moved = _move(generator, pose, largest_mm=0.0 if sequence == "b0" else 1.0 if sequence == "dwi" else 3.0)
        values, affine, masks = _draw_sequence(generator, sequence, task.size, head, moved, tilt, lattice, lesions)
        lesion, brain = masks
        own = np.isin(lesion, 0)
        signals[sequence] = float(values[own].mean() / values[brain & (lesion < 0)].mean()) if own.any() else None
        field = draw_field(generator, values.shape, generator.uniform(0.05, 0.15))
        finished = _finish(generator, values * field)
        base = task.root / name / _FOLDERS[sequence] / f"{name}_{_SUFFIXES[sequence]}"
        _write_image(base, finished, affine, is_flipped)
        if task.masks is not None:
            _write_image(task.masks / f"{name}_{_SUFFIXES[sequence]}_lesion", own.astype(np.int16), affine, is_flipped)
    return {
        "study_id": name,
        "onset_minutes": round(stroke.minutes, 1),
        "side": stroke.side,
        "mismatch": round(stroke.mismatch, 4),
        "oracle": signals,
    }


def _move(generator: np.random.Generator, pose: Pose, largest_mm: float) -> Pose:
    """The pose after a patient moved a little between two sequences."""
    direction = generator.standard_normal(3)
    step = generator.uniform(1, largest_mm) if largest_mm > 1 else generator.uniform(0, largest_mm)
    return Pose(pose.rotation, pose.centre_mm + step * direction / np.linalg.norm(direction))


def _draw_sequence(
    generator: np.random.Generator,
    sequence: str,
    size: int,
    head: Head,
    pose: Pose,
    tilt: float,
    lattice: np.ndarray,
    lesions: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The signal (S, H, W) with noise, the LPS affine of (column, row, slice), and the masks of lesions and brain."""
    side = max(size // _SHARE_OF_SIZE[sequence], 8)
    spacing = round(_HEAD_MM * generator.uniform(1.06, 1.16) / side, 4)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    across, down, up = turn.T
    half = spacing * (side - 1) / 2
    lowest = np.array([0.0, 0.0, pose.centre_mm[2] + _LOWEST_MM + generator.uniform(-3, 3)])
    origin = lowest - half * across - half * down
    images, numbers, brains = [], [], []
    for k in range(_NUM_SLICES):
        first = origin + k * _THICKNESS_MM * up
        plane = Plane(first, spacing * across, spacing * down, up, _THICKNESS_MM, (side, side))
        tissues, number = draw_tissues(plane, head, pose.rotation, pose.centre_mm, lattice, lesions)
        images.append(show(sequence, tissues, number, lesions))
        numbers.append(number)
        brains.append(tissues >= GREY)
    values = np.stack(images)
    noise = generator.uniform(0.02, 0.05)
    real, other = (generator.normal(0, noise, values.shape).astype(np.float32) for _ in range(2))
    affine = np.eye(4)
    affine[:3] = np.column_stack([spacing * across, spacing * down, _THICKNESS_MM * up, origin])
    return np.hypot(values + real, other), affine, (np.stack(numbers), np.stack(brains))


def _finish(generator: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """(S, H, W) int16 in the arbitrary unit of a scanner."""
    return np.clip(np.rint(values * generator.uniform(250, 900)), 0, 32767).astype(np.int16)


def _write_image(base: Path, values: np.ndarray, affine: np.ndarray, is_flipped: bool) -> None:
    """Writes a NIfTI file with its JSON side file; stored columns run to the right where `is_flipped` is set.

    Args:
        values: (S, H, W) int16.
        affine: (4, 4) from (column, row, slice) to millimetres to the left, back, head.
    """
    nibabel = import_nibabel()
    stored = values.transpose(2, 1, 0)
    if is_flipped:
        stored = stored[::-1]
        turned = affine.copy()
        turned[:3, 3] += (len(stored) - 1) * affine[:3, 0]
        turned[:3, 0] *= -1
        affine = turned
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    image.header.set_xyzt_units("mm")
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=4, mtime=0) as file:  # no time: the same bytes again
        file.write(image.to_bytes())
    base.parent.mkdir(parents=True, exist_ok=True)
    base.with_name(f"{base.name}.nii.gz").write_bytes(packed.getvalue())
    if not base.name.endswith("_lesion"):
        base.with_name(f"{base.name}.json").write_bytes(encode_json({"Modality": "MR"}))


def prepare_workers() -> None:
    """Compiles the kernels once, so that the workers load them from numba's cache.

    Raises:
        DataError: nibabel is not installed.
    """
    import_nibabel()
    generator = np.random.default_rng(0)
    head, lattice = draw_head(generator), draw_lattice(generator)
    lesions = draw_lesions(generator, draw_stroke(generator))
    plane = Plane(np.zeros(3), np.eye(3)[0], np.eye(3)[1], np.eye(3)[2], 1.0, (8, 8))
    show(SEQUENCES[0], *draw_tissues(plane, head, np.eye(3), np.zeros(3), lattice, lesions), lesions)


def import_nibabel() -> Any:
    """The package nibabel.

    Raises:
        DataError: it is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise DataError("phantom: MR is written as NIfTI, which needs nibabel. pip install 'ichkit[mr]'") from error
    return nibabel


def write_tables(root: Path, studies: Sequence[dict[str, Any]], seed: int, num_readers: int) -> None:
    """Writes the labels of every hemisphere, the participants, the description of the tree, and the readers if any."""
    labels = []
    for study in studies:
        for side in SIDES:
            has_stroke = side == study["side"]
            early = {name: int(study["onset_minutes"] < limit) for name, limit in _LIMITS_MINUTES.items()}
            known = early if has_stroke else dict.fromkeys(early, "")
            labels.append({"study_id": study["study_id"], "side": side, **known, "stroke": int(has_stroke)})
    (root / LABELS_FILE).write_bytes(encode_table(pd.DataFrame(labels), ".csv"))
    people = [
        {"participant_id": study["study_id"], "onset_minutes": study["onset_minutes"], "side": study["side"]}
        for study in studies
    ]
    (root / "participants.tsv").write_text(pd.DataFrame(people).to_csv(sep="\t", index=False, lineterminator="\n"))
    described = {"Name": "ichkit phantom: MR of strokes", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(described, indent=2) + "\n")
    if num_readers:
        generator = make_generator(seed, "phantom", "onset", "readers")
        reads = [
            {"study_id": study["study_id"], "side": study["side"], "reader": reader, "tss45": said}
            for study in studies
            for reader, said in enumerate(_read(generator, float(study["mismatch"]), num_readers), 1)
        ]
        (root / READERS_FILE).write_bytes(encode_table(pd.DataFrame(reads), ".csv"))


def _read(generator: np.random.Generator, mismatch: float, num_readers: int) -> list[int]:
    """What each reader says: 1 where DWI and FLAIR do not match, so that the onset was less than 4.5 hours ago."""
    seen = mismatch + generator.normal(0, _READER_ERROR, num_readers)
    return [int(value > 0) for value in seen]
