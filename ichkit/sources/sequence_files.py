"""The NIfTI files of one study: which sequence each is, by its name, and their images."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ichkit.core.errors import DataError
from ichkit.imaging import nifti
from ichkit.imaging.dicom import UnreadableError
from ichkit.imaging.sequence_steps import run_sequence_steps
from ichkit.imaging.sequences import Image, Sequences, SequenceSettings, measure, sample
from ichkit.sources.files import FileRef

MASK = "brain mask"
"""The role of a file with the mask of the brain: `desc-brain_mask` or `brainmask`."""
DERIVED = {"b0": ("dwi", "adc")}
"""Sequences that follow from two others: S0 = S exp(b ADC) (Stejskal and Tanner, J. Chem. Phys. 42, 1965)."""
_B_VALUE = 1000.0
_MOST_ADC = 4.0
_SIDE_BYTES = 1024**2
_NAME = re.compile(r"(?i)(?:^|/)(sub-[a-z0-9]+)((?:_[a-z0-9]+-[a-z0-9+]+)*)_([a-z0-9]+)\.nii(?:\.gz)?$")


def name_parts(relative: str) -> tuple[str, str, str]:
    """Subject, study and role of a file by its name; three empty texts if it is none of BIDS.

    Example:
        >>> name_parts("sub-01/ses-2/anat/sub-01_ses-2_run-1_FLAIR.nii.gz")
        ('sub-01', 'sub-01_ses-2', 'flair')
        >>> name_parts("derivatives/sub-01_desc-brain_mask.nii.gz")[2]
        'brain mask'
    """
    found = _NAME.search(relative)
    if found is None:
        return "", "", ""
    subject, entities, suffix = found[1], found[2], found[3].lower()
    session = re.search(r"(?i)_(ses-[a-z0-9+]+)", entities)
    study = f"{subject}_{session[1]}" if session else subject
    is_mask = suffix == "brainmask" or (suffix == "mask" and "_desc-brain" in entities.lower())
    return subject, study, MASK if is_mask else suffix


def roles_to_use(names: tuple[str, ...], there: set[str]) -> set[str] | None:
    """The roles that give all sequences, a brain mask among them if it is there; None where one is missing."""
    wanted: set[str] = set()
    for name in names:
        sources = {name} if name in there else set(DERIVED.get(name, (name,)))
        if not sources <= there:
            return None
        wanted |= sources
    return wanted | ({MASK} & there)


def read_sequences(refs: Sequence[FileRef], settings: SequenceSettings) -> Sequences:
    """The images of a study, each on its own grid.

    Args:
        refs: one file for each role.

    Raises:
        UnreadableError: a file is damaged; the message does not say which.
    """
    by_role = {name_parts(ref.relative)[2]: ref for ref in refs}
    images = []
    for name in settings.names:
        if name in by_role:
            images.append(Image(*nifti.read_image(by_role[name].read())))
        else:
            weighted, diffusion = (by_role[one] for one in DERIVED[name])
            images.append(_undo_diffusion(weighted, diffusion))
    mask = Image(*nifti.read_image(by_role[MASK].read())) if MASK in by_role else None
    if mask is not None:
        mask = Image((mask.values > 0.5).astype(np.float32), mask.affine)
    return Sequences.start(tuple(images), mask)


def _undo_diffusion(weighted: FileRef, diffusion: FileRef) -> Image:
    """The image without diffusion weighting, on the grid of the weighted one."""
    image = Image(*nifti.read_image(weighted.read()))
    values, affine = nifti.read_image(diffusion.read())
    on_grid = values
    if values.shape != image.values.shape or not np.allclose(affine, image.affine, atol=1e-2):
        raise UnreadableError("the ADC map is not on the grid of the diffusion-weighted image")
    typical = float(np.median(on_grid[on_grid > 0])) if (on_grid > 0).any() else 0.0
    # Stored in mm2/s, in 1e-3 or in 1e-6 mm2/s: of a brain about 0.8e-3 mm2/s.
    unit = 1e3 if typical < 0.05 else 1.0 if typical < 50 else 1e-3
    share = _read_b_value(weighted) / 1000 * np.clip(on_grid * unit, 0, _MOST_ADC)
    return Image((image.values * np.exp(share)).astype(np.float32), image.affine)


def _read_b_value(weighted: FileRef) -> float:
    """The b value in s/mm2 by the JSON file beside an image; 1000 without one."""
    side = Path(re.sub(r"(?i)\.nii(\.gz)?$", ".json", weighted.container))
    try:
        if weighted.zip_offset >= 0 or side.stat().st_size > _SIDE_BYTES:
            return _B_VALUE
        value = float(json.loads(side.read_bytes())["DiffusionBValue"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return _B_VALUE
    return value if 200 <= value <= 5000 else _B_VALUE


def with_landmarks(settings: SequenceSettings, folder: Path) -> SequenceSettings:
    """The settings with the histograms of a reference study.

    Args:
        folder: of the study; below it is one file for each sequence.

    Raises:
        DataError: the study is not complete or cannot be read.
    """
    refs = list(_refs_below(folder))
    used = roles_to_use(settings.names, {name_parts(ref.relative)[2] for ref in refs})
    if used is None or len({name_parts(ref.relative)[1] for ref in refs}) != 1:
        raise DataError(
            f"prepare.sequences.histogram: expected the folder of one study with {', '.join(settings.names)}, found "
            f"{len(refs)} NIfTI files at {folder}."
        )
    chosen = {name_parts(ref.relative)[2]: ref for ref in reversed(refs) if name_parts(ref.relative)[2] in used}
    try:
        study = run_sequence_steps(read_sequences(list(chosen.values()), settings), settings)
    except DataError as error:
        raise DataError(f"prepare.sequences.histogram: {folder} cannot be used: {error}") from error
    assert study.mask is not None
    brain = sample(study.mask, study.frames[0], settings.shape, settings.spacing_mm, order=0) > 0
    marks = [
        measure(sample(image, frame, settings.shape, settings.spacing_mm), brain)
        for image, frame in zip(study.images, study.frames, strict=True)
    ]
    return settings.with_marks(marks)


def _refs_below(folder: Path) -> Iterator[FileRef]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and name_parts(path.name)[2]:
            yield FileRef(path.relative_to(folder).as_posix(), str(path), path.stat().st_size, -1, 0, 0)
