"""Preparation steps of several sequences: bias field, registration, brain mask, midline, template, histogram."""

import shlex
import subprocess
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import scipy

from ichkit.core.errors import DataError
from ichkit.core.rows import find_row
from ichkit.imaging import nifti, registration
from ichkit.imaging.head_box import otsu
from ichkit.imaging.sequences import Image, Sequences, SequenceSettings, Step, grid_affine, place, sample

_COARSE_MM = (6.0, 5.0, 5.0)
_COARSE_SHAPE = (30, 44, 38)
"""Of a grid that holds a head, between whose slices a plane or a movement is found to a fraction of a pixel."""
_OPEN_MM, _CLOSE_MM = 3.0, 8.0
_TURN_DEGREES, _SHIFT_MM = 4.0, 4.0
"""The first step of the search for the midsagittal plane."""
_COMMAND_SECONDS = 1800


@dataclass(frozen=True)
class SequenceStep:
    """A row of `SEQUENCE_STEPS`.

    Attributes:
        name: key in the table.
        function: from the sequences of a study and the settings to the sequences.
        description: one sentence.
        source: its origin.
    """

    name: str
    function: Step
    description: str
    source: str


def run_sequence_steps(study: Sequences, settings: SequenceSettings) -> Sequences:
    """The sequences after all steps, with a mask of the brain and in the frame of the head.

    Raises:
        ConfigError: no such step.
        DataError: a step fails; the message says why.
    """
    for name in settings.steps:
        study = find_row(SEQUENCE_STEPS, name, "prepare.sequences.steps").function(study, settings)
    study = _with_mask(study)
    assert study.mask is not None
    if not study.is_placed:
        study = replace(place(study, study.mask), is_placed=True)
    return study


def _correct_field(study: Sequences, _settings: SequenceSettings) -> Sequences:
    return replace(study, images=tuple(registration.correct_field(image) for image in study.images))


def _register(study: Sequences, settings: SequenceSettings) -> Sequences:
    """The frames of all sequences but the reference after a rigid registration to it."""
    study = _with_mask(study)
    assert study.mask is not None
    placed = place(study, study.mask)
    fixed = sample(placed.images[settings.reference], placed.frames[settings.reference], _COARSE_SHAPE, _COARSE_MM)
    frames = list(placed.frames)
    for number, image in enumerate(placed.images):
        if number != settings.reference:
            moving = sample(image, frames[number], _COARSE_SHAPE, _COARSE_MM)
            frames[number] = frames[number] @ registration.find_rigid(fixed, moving, _COARSE_MM)
    return replace(placed, frames=tuple(frames))


def _strip(study: Sequences, settings: SequenceSettings) -> Sequences:
    """With the mask of a file where there is one, else of the user's command, else of a threshold."""
    if study.mask is None and settings.command:
        study = replace(study, mask=_ask_command(settings.command, study.images[0]))
    return replace(_with_mask(study), strips=True)


def _with_mask(study: Sequences) -> Sequences:
    return study if study.mask is not None else replace(study, mask=_threshold(study.images[0]))


def _threshold(image: Image) -> Image:
    """The brain: the largest part above Otsu's threshold after an opening, closed and filled in each slice."""
    top = float(np.percentile(image.values, 99.5)) or 1.0
    smooth = scipy.ndimage.gaussian_filter(image.values, 1.5 / image.spacing_mm)
    levels = np.clip(smooth * (255 / top), 0, 255).astype(np.int16)
    mask = levels > otsu(levels)
    mask = scipy.ndimage.binary_opening(mask, _ball(_OPEN_MM, image))
    labels, count = scipy.ndimage.label(mask)
    if count:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = labels == sizes.argmax()
    mask = np.pad(mask, [(0, 0), (20, 20), (20, 20)])
    mask = scipy.ndimage.binary_closing(mask, _ball(_CLOSE_MM, image))[:, 20:-20, 20:-20]
    filled = np.stack([scipy.ndimage.binary_fill_holes(one) for one in mask])
    return Image(filled.astype(np.float32), image.affine)


def _ball(radius_mm: float, image: Image) -> np.ndarray:
    """(1, h, w) bool disc inside a slice."""
    down, across = (max(1, int(radius_mm / size)) for size in image.spacing_mm[1:])
    y, x = np.ogrid[-down : down + 1, -across : across + 1]
    return np.asarray((y / down) ** 2 + (x / across) ** 2 <= 1)[None]


def _ask_command(command: str, image: Image) -> Image:
    """The mask that a command of the user writes for an image.

    Raises:
        DataError: the command fails or writes no mask.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "image.nii.gz", Path(folder) / "mask.nii.gz"
        given.write_bytes(nifti.encode_image(image.values, image.affine))
        words = [word.format(input=given, mask=made) for word in shlex.split(command)]
        try:
            subprocess.run(words, check=True, capture_output=True, timeout=_COMMAND_SECONDS)
            values, affine = nifti.read_image(made.read_bytes())
        except (OSError, subprocess.SubprocessError, DataError) as error:
            raise DataError(
                f"the command of prepare.sequences.strip_command failed ({type(error).__name__})"
            ) from error
    return Image(values, affine)


def _align_midline(study: Sequences, settings: SequenceSettings) -> Sequences:
    """In the frame whose plane x = 0 is the one about which the reference is most like its mirror image.

    The search is done for the image and for its mirror image, and the mean is taken, so that mirroring a person
    mirrors the result.
    """
    study = _with_mask(study)
    assert study.mask is not None
    placed = place(study, study.mask)
    reference, frame = placed.images[settings.reference], placed.frames[settings.reference]
    brain = sample(study.mask, placed.frames[0], _COARSE_SHAPE, _COARSE_MM, order=0)
    low = Image(
        sample(reference, frame, _COARSE_SHAPE, _COARSE_MM) * (brain > 0), grid_affine(_COARSE_SHAPE, _COARSE_MM)
    )

    def unlike(place_of_plane: np.ndarray) -> float:
        shown = sample(low, plane_transform(place_of_plane), _COARSE_SHAPE, _COARSE_MM).ravel()
        mirrored = shown.reshape(_COARSE_SHAPE)[..., ::-1].ravel()
        spread = float(shown.var())
        return 1 - float(((shown - shown.mean()) * (mirrored - shown.mean())).mean()) / spread if spread else 1.0

    search = partial(scipy.optimize.minimize, x0=np.zeros(3), method="Powell", options={"xtol": 1e-2, "ftol": 1e-5})
    first, second = search(unlike), search(lambda p: unlike(-p))
    best = (first.x - second.x) / 2
    turned = placed.moved(plane_transform(best))
    # Along and up again, because the box of a turned head is another; across it is the plane that counts.
    settled = place(turned, study.mask)
    kept = np.linalg.inv(turned.frames[0]) @ settled.frames[0]
    kept[0, 3] = 0.0
    return replace(turned.moved(_below_top(kept, turned, settings)), is_placed=True)


def _below_top(shift: np.ndarray, study: Sequences, settings: SequenceSettings) -> np.ndarray:
    """The shift with the top of the brain where the field has it: the same slices show the same height of a head."""
    assert study.mask is not None
    points = np.argwhere(study.mask.values > 0)[:, ::-1] @ study.mask.affine[:3, :3].T + study.mask.affine[:3, 3]
    heights = (np.linalg.inv(study.frames[0]) @ np.column_stack([points, np.ones(len(points))]).T)[2]
    shift = shift.copy()
    shift[2, 3] = float(np.percentile(heights, 99.5)) + 1.5 * settings.spacing_mm[0] - settings.field_mm[0] / 2
    return shift


def plane_transform(place_of_plane: np.ndarray) -> np.ndarray:
    """(4, 4) from a frame whose plane x = 0 is the given one to the frame in which it is given.

    Args:
        place_of_plane: (3,) turn about the axis of the body, turn about that from front to back, and shift to the left;
            in units of `_TURN_DEGREES` and `_SHIFT_MM`.
    """
    yaw, roll = np.deg2rad(_TURN_DEGREES * np.asarray(place_of_plane[:2]))
    about_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(roll), 0, np.sin(roll)], [0, 1, 0], [-np.sin(roll), 0, np.cos(roll)]])
    transform = np.eye(4)
    # The symmetric product, so that opposite turns give mirrored transforms.
    half = _half(about_y)
    transform[:3, :3] = half @ about_z @ half
    transform[0, 3] = _SHIFT_MM * place_of_plane[2]
    return transform


def _half(about_y: np.ndarray) -> np.ndarray:
    angle = np.arctan2(about_y[0, 2], about_y[0, 0]) / 2
    return np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])


def _to_template(study: Sequences, settings: SequenceSettings) -> Sequences:
    """In the frame of the template, whose centre is that of its grid."""
    study = _with_mask(study)
    assert study.mask is not None
    placed = place(study, study.mask)
    values, affine = nifti.read_image(Path(settings.template).read_bytes())
    centre = np.eye(4)
    centre[:3, 3] = (affine @ [*(np.array(values.shape[::-1]) - 1) / 2, 1])[:3]
    fixed = sample(Image(values, affine), centre, _COARSE_SHAPE, _COARSE_MM)
    moving = sample(placed.images[settings.reference], placed.frames[settings.reference], _COARSE_SHAPE, _COARSE_MM)
    return replace(placed.moved(registration.find_affine(fixed, moving, _COARSE_MM)), is_placed=True)


def _match_histogram(study: Sequences, _settings: SequenceSettings) -> Sequences:
    return replace(study, matches=True)


_PAPER = "Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2.1"

SEQUENCE_STEPS = {
    "bias-field": SequenceStep(
        name="bias-field",
        function=_correct_field,
        description="Divides each image by the smooth field of its coil.",
        source="N4, Tustison et al., IEEE Transactions on Medical Imaging 29, 2010; in SimpleITK",
    ),
    "register": SequenceStep(
        name="register",
        function=_register,
        description="Moves the other sequences rigidly onto the reference, by mutual information.",
        source=f"{_PAPER}; in SimpleITK",
    ),
    "strip": SequenceStep(
        name="strip",
        function=_strip,
        description="Keeps the brain: the mask of a file, else of the user's command, else of a threshold.",
        source=f"{_PAPER}: FSL BET; the threshold on the first sequence is chosen here",
    ),
    "midline": SequenceStep(
        name="midline",
        function=_align_midline,
        description="Turns the head so that the middle column of the grid is its midsagittal plane.",
        source="chosen here, because the atlas of the paper cannot be shipped",
    ),
    "template": SequenceStep(
        name="template",
        function=_to_template,
        description="Registers the reference to a template by an affine map, the others with it.",
        source=f"{_PAPER}: FSL FLIRT to MNI-152 T2w; in SimpleITK",
    ),
    "histogram": SequenceStep(
        name="histogram",
        function=_match_histogram,
        description="Matches the histogram of each sequence in the brain to that of a reference study.",
        source=f"{_PAPER}; percentiles as by Nyul and Udupa, Magnetic Resonance in Medicine 42, 1999",
    ),
}
