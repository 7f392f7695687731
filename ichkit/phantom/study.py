"""One study from its plan: a head in a scanner, its slices and their labels."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ichkit.core.seeding import make_generator
from ichkit.phantom.bleeds import BLOB, CRESCENT, LENS, SUBTYPES, draw_bleeds
from ichkit.phantom.confounders import Scan, draw_scan
from ichkit.phantom.difficulty import DEMO, Difficulty
from ichkit.phantom.head import Head, draw_head
from ichkit.phantom.lattice import draw_lattice
from ichkit.phantom.lookalikes import draw_lookalikes
from ichkit.phantom.plan import StudyPlan
from ichkit.phantom.render import Drawn, Grid, Pose, draw_pose, draw_slice

MIN_AREA_MM2 = 40.0
_BOTTOM_MM, _TOP_MM = -62.0, 90.0
_MAX_ATTEMPTS = 60
_MAX_SHIFT_MM = 9.0


@dataclass(frozen=True)
class Scene:
    """A head with its bleeds and its pose in a scanner; see the class of each field."""

    head: Head
    lattice: np.ndarray
    bleeds: np.ndarray
    pose: Pose
    scan: Scan
    difficulty: Difficulty = DEMO
    lookalikes: np.ndarray | None = None


@dataclass(frozen=True)
class Stack:
    """The positions of the slices of one series, from the bottom up.

    Attributes:
        grids: one per slice.
        shape: (rows, columns).
        thickness_mm: extent of a slice along its normal.
    """

    grids: tuple[Grid, ...]
    shape: tuple[int, int]
    thickness_mm: float


def draw_patient(plan: StudyPlan, seed: int) -> Head:
    """The head of the plan's patient, the same in each of the patient's studies."""
    return draw_head(make_generator(seed, "phantom", plan.part, "patient", plan.patient))


def draw_scene(
    generator: np.random.Generator, head: Head, subtypes: tuple[str, ...], difficulty: Difficulty = DEMO
) -> Scene:
    """A head in a random scanner, with the requested bleeds and the look-alikes of a difficulty."""
    lattice = draw_lattice(generator)
    pose = draw_pose(generator, generator.uniform(100, 300), difficulty.turn_degrees)
    scan = draw_scan(generator, difficulty)
    bleeds = draw_bleeds(generator, subtypes, difficulty)
    lookalikes = draw_lookalikes(generator, difficulty.lookalikes) if difficulty.lookalikes else None
    return _with_effects(Scene(head, lattice, bleeds, pose, scan, difficulty, lookalikes), generator)


def draw_stack(
    generator: np.random.Generator,
    pose: Pose,
    shape: tuple[int, int],
    steps_mm: np.ndarray,
    thickness_mm: float,
    tilt_degrees: float,
) -> Stack:
    """A random field of view around a head.

    Args:
        steps_mm: table position of each slice above the first.
        tilt_degrees: gantry tilt; the table still moves along z, so that the volume is sheared.
    """
    spacing = round(generator.uniform(215, 265) / min(shape), 6)
    cosine, sine = np.cos(np.deg2rad(tilt_degrees)), np.sin(np.deg2rad(tilt_degrees))
    rows, columns = shape
    z = pose.centre_mm[2] + _BOTTOM_MM + generator.uniform(-6, 6)
    x = -spacing * (columns - 1) / 2 + generator.normal(0, 2)
    y = -spacing * cosine * (rows - 1) / 2 + generator.normal(0, 2)
    lift = spacing * sine * (rows - 1) / 2
    grids = tuple(Grid(x, y, z + lift + float(step), spacing, cosine, sine) for step in steps_mm)
    return Stack(grids, shape, thickness_mm)


def draw_steps(generator: np.random.Generator, difficulty: Difficulty = DEMO) -> tuple[np.ndarray, float]:
    """Table positions (S,) in mm from the first slice, and the slice thickness: mostly 5 mm, sometimes another.

    Source: 86 % of RSNA gaps exceed 4.5 mm, 9 % lie at 2-3.5 mm, and a gap may vary inside a series.
    """
    kind = generator.random()
    extent = _TOP_MM - _BOTTOM_MM + generator.uniform(-6, 6)
    gap = float(generator.choice([4.8, 5.0, 5.0, 5.1, 5.5]))
    if kind < difficulty.thick_share:
        return np.arange(0, extent, 7.5), 7.5
    if kind < 0.86:
        return np.arange(0, extent, gap), 5.0
    if kind < 0.94:
        return np.arange(0, extent, 3.3), 3.3
    return np.concatenate([np.arange(0, 30, 3.0), np.arange(30, extent, gap)]), 5.0


def draw_slices(scene: Scene, stack: Stack) -> list[Drawn]:
    """All slices of a series, before noise."""
    return [
        draw_slice(
            grid,
            stack.thickness_mm,
            stack.shape,
            scene.head,
            scene.pose,
            scene.lattice,
            scene.bleeds,
            scene.lookalikes,
        )
        for grid in stack.grids
    ]


def label_slices(slices: list[Drawn]) -> np.ndarray:
    """(S, 6) uint8 labels, `SUBTYPES` then any: positive if the mask has an area of `MIN_AREA_MM2` or more.

    Source: chosen here, because 40 mm2, a diameter of 7 mm, is about the smallest bleed that three readers agree on.
    """
    found = np.array([drawn.area_mm2 for drawn in slices]) >= MIN_AREA_MM2
    return np.column_stack([found, found.any(1)]).astype(np.uint8)


def read_labels(generator: np.random.Generator, labels: np.ndarray, difficulty: Difficulty) -> np.ndarray:
    """(S, 6) uint8 labels as readers give them, with the errors of a difficulty.

    The end of a bleed is placed a slice too early or too late, a bleed is overlooked, or takes the name of another.

    Args:
        labels: (S, 6) uint8 of `label_slices`, slices in order.
    """
    read = labels[:, : len(SUBTYPES)].copy()
    for subtype in np.flatnonzero(read.any(0)):
        column = read[:, subtype].copy()
        ends = np.flatnonzero(np.diff(column))
        beside = np.unique([ends, ends + 1])
        wrong = beside[generator.random(len(beside)) < difficulty.end_error]
        column[wrong] = 1 - column[wrong]
        fate = generator.random()
        name = int(generator.integers(len(SUBTYPES)))
        read[:, subtype] = 0
        if fate >= difficulty.missed_share:
            is_confused = fate < difficulty.missed_share + difficulty.confused_share
            read[:, name if is_confused else subtype] |= column
    return np.column_stack([read, read.any(1)]).astype(np.uint8)


def draw_visible(
    generator: np.random.Generator, scene: Scene, stack: Stack, subtypes: tuple[str, ...]
) -> tuple[Scene, list[Drawn]]:
    """The scene and its slices; bleeds are redrawn until every requested subtype is positive in at least one slice."""
    for _ in range(_MAX_ATTEMPTS):
        slices = draw_slices(scene, stack)
        shown = label_slices(slices)[:, : len(SUBTYPES)].max(0)
        if all(shown[SUBTYPES.index(name)] for name in subtypes):
            return scene, slices
        scene = _with_effects(replace(scene, bleeds=draw_bleeds(generator, subtypes, scene.difficulty)), generator)
    raise AssertionError(f"bleeds are drawn large enough to show, yet {subtypes} did not in {_MAX_ATTEMPTS} attempts")


def write_masks(path: Path, slice_ids: list[str], slices: list[Drawn]) -> None:
    """Writes one npz per study: slice id to (H, W) uint8; bit c is the mask of class c of `SUBTYPES`."""
    masks: dict[str, Any] = {name: drawn.bits for name, drawn in zip(slice_ids, slices, strict=True)}
    np.savez_compressed(path, **masks)


def _with_effects(scene: Scene, generator: np.random.Generator) -> Scene:
    """The scene with the effects of its bleeds: midline shift, and scalp swelling over most epidural bleeds.

    Sometimes the scalp is swollen without a bleed below.
    """
    room = scene.bleeds[np.isin(scene.bleeds[:, 0], (LENS, BLOB, CRESCENT))]
    # Column 4 is the bleed's half axis along x or its thickness, column 7 its side; +1 shifts to the right.
    shift = float(np.clip(-0.3 * (room[:, 4] * room[:, 7]).sum(), -_MAX_SHIFT_MM, _MAX_SHIFT_MM))
    head = scene.head._replace(shift_mm=shift, swelling_mm=0.0)
    lens = scene.bleeds[scene.bleeds[:, 0] == LENS]
    if len(lens) and generator.random() < 0.6:
        x, y, z = lens[0, 1:4].tolist()
    elif generator.random() < 0.12:
        x, y, z = float(generator.choice([-66.0, 66.0])), generator.uniform(-40, 40), generator.uniform(0, 40)
    else:
        return replace(scene, head=head)
    swollen = head._replace(swelling_x=x, swelling_y=y, swelling_z=z, swelling_mm=generator.uniform(4, 12))
    return replace(scene, head=swollen)
