"""The contents of every study of a phantom, decided before any is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ichkit.core.progress import logger
from ichkit.core.seeding import make_generator
from ichkit.phantom.bleeds import SUBTYPES
from ichkit.phantom.difficulty import DEMO, Difficulty

POSITIVE_SHARE = 0.4
MIN_POSITIVES = 3
_FEW_STUDIES = 15
_SECOND_STUDY_SHARE = 0.1
# Epidural is the rarest, as in the real data, but more frequent than there, so that 60 studies are enough for training.
_BLEEDS_PER_POSITIVE = 1.3
_SUBTYPE_SHARES = (0.16, 0.21, 0.21, 0.21, 0.21)
_COMMON_FORMATS = ((16, 1, -1024), (12, 0, -1024))
_RARE_TRAIN_FORMATS = ((12, 0, 0), (12, 0, 1), (16, 1, 0), (12, 1, 0), (12, 0, -1000))
_RARE_TEST_FORMATS = ((16, 1, 0), (12, 1, 0), (12, 0, -1000))


@dataclass(frozen=True)
class StudyPlan:
    """One study before it is drawn.

    Attributes:
        part: "train", "test" or "cq500".
        index: position in its part; with the seed it determines every byte of the study.
        patient: number of the patient within the part.
        subtypes: its bleeds; empty for a negative study.
        pixel_format: (BitsStored, PixelRepresentation, RescaleIntercept).
        is_padded: -2000 is stored outside the scan circle.
        has_ties: some positions along the normal occur twice.
        has_two_series: the lower and upper parts of the head are separate series.
        is_oblong: rows and columns differ.
        is_truncated: one of its files is truncated.
    """

    part: str
    index: int
    patient: int
    subtypes: tuple[str, ...]
    pixel_format: tuple[int, int, int]
    is_padded: bool
    has_ties: bool
    has_two_series: bool
    is_oblong: bool
    is_truncated: bool


@dataclass(frozen=True)
class StudyToDraw:
    """The task of a worker that draws and writes one study.

    Attributes:
        root: unfinished folder of the data set.
        masks: folder for the masks, or None.
        size: rows and columns of a slice.
        difficulty: of the phantom.
    """

    plan: StudyPlan
    root: Path
    masks: Path | None
    size: int
    seed: int
    difficulty: Difficulty = DEMO


def plan_part(part: str, count: int, seed: int) -> list[StudyPlan]:
    """The studies of one part, with their subtypes and pixel formats.

    Every subtype gets at least `MIN_POSITIVES` studies of different patients, or as many as the part has, with a
    warning.
    """
    if count == 0:
        return []
    generator = make_generator(seed, "phantom", part, "plan")
    num_repeats = int(_SECOND_STUDY_SHARE * count) if part != "cq500" else 0
    num_patients = count - num_repeats
    patients = [*range(num_patients), *generator.choice(num_patients, num_repeats, replace=False).tolist()]
    formats = _deal_formats(generator, part, count)
    padded = [fmt == (16, 1, -1024) and generator.random() < 0.62 for fmt in formats]
    subtypes = _deal_subtypes(generator, part, num_patients, count, padded)
    odd = generator.permutation(count).tolist() if part != "cq500" else []
    # The truncated file must not be the only positive slice of a class.
    truncated = next((study for study in odd if not subtypes[study]), odd[0]) if odd else None
    return [
        StudyPlan(
            part=part,
            index=index,
            patient=patients[old],
            subtypes=subtypes[old],
            pixel_format=formats[old],
            is_padded=padded[old],
            has_ties=old in odd[:1],
            has_two_series=count >= 4 and old in odd[1:2],
            is_oblong=part == "train" and count >= _FEW_STUDIES and old in odd[2:3],
            is_truncated=old == truncated,
        )
        for index, old in enumerate(generator.permutation(count).tolist())
    ]


def _deal_formats(generator: np.random.Generator, part: str, count: int) -> list[tuple[int, int, int]]:
    rare = {"train": _RARE_TRAIN_FORMATS, "test": _RARE_TEST_FORMATS, "cq500": ()}[part]
    formats = [*_COMMON_FORMATS, *rare][:count]
    more = generator.choice(2, max(count - len(formats), 0), p=[0.56, 0.44])
    formats += [_COMMON_FORMATS[choice] for choice in more]
    return [formats[i] for i in generator.permutation(count)]


def _deal_subtypes(
    generator: np.random.Generator, part: str, num_patients: int, count: int, padded: Sequence[bool]
) -> list[tuple[str, ...]]:
    """Subtypes of each study; the first `num_patients` studies are of different patients."""
    num_positive = max(round(POSITIVE_SHARE * count), 1)
    # Scanners that pad have fewer positive slices: 8.0 % against 18.6 % of the others (RSNA 2019).
    weights = np.where(padded, 0.4, 1.0)
    positives = generator.choice(count, num_positive, replace=False, p=weights / weights.sum())
    different = [study for study in positives.tolist() if study < num_patients]
    held: dict[int, set[str]] = {study: set() for study in positives.tolist()}
    least = min(MIN_POSITIVES, len(different))
    if least < MIN_POSITIVES:
        logger.warning(
            "phantom: %d studies in %s are too few for %d positives of every class; each class gets %d.",
            count,
            part,
            MIN_POSITIVES,
            least,
        )
    shares = dict(zip(SUBTYPES, _SUBTYPE_SHARES, strict=True))
    for subtype in generator.permutation(SUBTYPES).tolist():
        wanted = round(shares[subtype] * _BLEEDS_PER_POSITIVE * num_positive)
        # Studies with the fewest subtypes come first, so that subtypes are spread evenly.
        ranks = {study: (len(held[study]), generator.random()) for study in held}
        chosen = sorted(different, key=ranks.__getitem__)[:least]
        rest = sorted(held.keys() - set(chosen), key=ranks.__getitem__)
        for study in [*chosen, *rest[: max(wanted - least, 0)]]:
            held[study].add(subtype)
    for study in (study for study in held if not held[study]):
        held[study].add(str(generator.choice(SUBTYPES, p=_SUBTYPE_SHARES)))
    return [tuple(name for name in SUBTYPES if name in held.get(study, ())) for study in range(count)]
