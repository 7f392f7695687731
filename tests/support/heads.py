"""Phantom heads as scanners and patients make them difficult: their brain is known to the pixel."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pydicom
from numba import njit

from ichkit.phantom.anatomy import BRAIN, DURA, FLUID, VENTRICLE, tissue_at
from ichkit.phantom.bleeds import SUBTYPES, sulcus_factor
from ichkit.phantom.confounders import finish_slice
from ichkit.phantom.head import draw_head
from ichkit.phantom.landmarks import INNER_RADII_MM
from ichkit.phantom.render import Grid
from ichkit.phantom.study import Stack, draw_scene, draw_slices

AIR_HU = -1000
FIELD_FACTOR = 1.7
"""From the phantom's 215 to 265 mm to pictures of about 400 mm."""
TROUBLES = (
    "tilt",
    "nod",
    "off_centre",
    "cut_off",
    "metal",
    "table",
    "cushion",
    "tubes",
    "frame",
    "empty_ends",
    "few_slices",
    "raw",
    "oblong",
)


class HardHead(NamedTuple):
    """A study and its truth.

    Attributes:
        volume: (S, H, W) int16, HU unless "raw" is among the troubles.
        brain: (S, H, W) bool, what lies inside the skull.
        spacing_mm: between rows and between columns.
        troubles: names of `TROUBLES`.
    """

    volume: np.ndarray
    brain: np.ndarray
    spacing_mm: tuple[float, float]
    troubles: tuple[str, ...]


def draw_hard_head(generator, troubles=None, size=128, fov_mm=None):
    """A head with the named troubles; without names, each trouble with a probability of a quarter."""
    if troubles is None:
        troubles = tuple(name for name in TROUBLES if generator.random() < 0.25)
    scene = draw_scene(generator, draw_head(generator), tuple(generator.choice(SUBTYPES, generator.integers(3), False)))
    fov = generator.uniform(215, 420) if fov_mm is None else fov_mm
    fov = generator.uniform(150, 190) if "cut_off" in troubles else fov
    rows, columns = (size, size * 9 // 8) if "oblong" in troubles else (size, size)
    spacing = fov / size
    rotation, centre = scene.pose.rotation, scene.pose.centre_mm
    if "nod" in troubles:
        rotation = rotation @ _about_x(np.deg2rad(generator.uniform(-25, 25)))
    if "off_centre" in troubles:
        # By as much as leaves the head in the picture, and a little more.
        room = max(fov / 2 - 75, 10)
        centre = centre + np.append(generator.uniform(-room, room, 2), 0)
    scene = replace(scene, pose=replace(scene.pose, rotation=rotation, centre_mm=centre))
    tilt = np.deg2rad(generator.uniform(-28, 28)) if "tilt" in troubles else 0.0
    gap = generator.uniform(6, 12)
    heights = np.arange(-62, 82, gap)
    if "empty_ends" in troubles:
        heights = np.append(heights, [120, 130, 140, 150])
    if "few_slices" in troubles:
        heights = np.sort(generator.choice(np.arange(-40, 55, gap), int(generator.integers(1, 4)), replace=False))
    x, y = -spacing * (columns - 1) / 2, -spacing * np.cos(tilt) * (rows - 1) / 2
    lift = spacing * np.sin(tilt) * (rows - 1) / 2
    z = scene.pose.centre_mm[2]
    grids = tuple(Grid(x, y, z + lift + height, spacing, np.cos(tilt), np.sin(tilt)) for height in heights)
    if "metal" in troubles:
        scene = replace(scene, scan=replace(scene.scan, metal=(generator.uniform(-60, 60), -40.0, heights.mean())))
    drawn = draw_slices(scene, Stack(grids, (rows, columns), 5.0))
    pictures = np.stack([one.hounsfield for one in drawn])
    brain = np.stack([draw_brain(grid, (rows, columns), scene) for grid in grids])
    _add_things(generator, pictures, scene, spacing, troubles)
    scanned = [
        finish_slice(generator, picture, grid, scene.pose, scene.scan)
        for picture, grid in zip(pictures, grids, strict=True)
    ]
    volume = np.stack(scanned)
    if "metal" in troubles:
        _add_streaks(generator, volume, brain)
    volume = np.clip(volume, -800, 2000)
    if "raw" in troubles:  # stored values without their rescale, of 12 or fewer bits
        slope = generator.uniform(0.2, 1.0)
        volume = np.clip(slope * (volume + 1024), 0, 4095)
    return HardHead(volume.astype(np.int16), brain, (spacing, spacing), troubles)


def draw_brain(grid, shape, scene):
    """(H, W) bool: where the middle of the slice is inside the skull."""
    stretch = np.array(INNER_RADII_MM) / np.array([scene.head.width, scene.head.length, scene.head.height])
    to_head = stretch[:, None] * scene.pose.rotation
    steps = (
        grid.spacing * to_head @ np.array([1.0, 0.0, 0.0]),
        grid.spacing * to_head @ np.array([0.0, grid.tilt_cos, -grid.tilt_sin]),
    )
    first = to_head @ (np.array([grid.x, grid.y, grid.z]) - scene.pose.centre_mm)
    inside = np.zeros(shape, np.bool_)
    _fill_brain(first, *steps, scene.head, scene.lattice, scene.bleeds, inside)
    return inside


@njit
def _fill_brain(first, along_row, along_column, head, lattice, bleeds, inside):
    for i in range(inside.shape[0]):
        for j in range(inside.shape[1]):
            x, y, z = first + j * along_row + i * along_column
            if x * x / 9000 + y * y / 11500 + z * z / 10000 < 1:
                kind = tissue_at(x, y, z, sulcus_factor(x, y, z, bleeds), head, lattice)[1]
                inside[i, j] = kind in (BRAIN, FLUID, VENTRICLE, DURA)


def widen_pictures(root, seed):
    """Puts every slice somewhere into a larger picture of air, at the same place in all slices of a study."""
    for path in sorted(root.rglob("*.dcm")):
        with pydicom.config.disable_value_validation():
            file = pydicom.dcmread(path)
            rows, columns = file.Rows, file.Columns
            if len(file.PixelData) < 2 * rows * columns:
                continue  # the phantom's truncated file
            stored = np.frombuffer(file.PixelData, "<u2", rows * columns).reshape(rows, columns)
            border = np.concatenate([stored[0], stored[-1], stored[:, 0], stored[:, -1]])
            wide = np.full(
                (int(rows * FIELD_FACTOR), int(columns * FIELD_FACTOR)), np.bincount(border).argmax(), np.uint16
            )
            draw = np.random.default_rng([seed, *str(file.StudyInstanceUID).encode()])
            top, left = (int(draw.integers(0, size + 1)) for size in np.subtract(wide.shape, stored.shape))
            wide[top : top + rows, left : left + columns] = stored
            file.Rows, file.Columns, file.PixelData = *wide.shape, wide.tobytes()
            file["PixelData"].VR = "OW"
            file.save_as(path)


def _about_x(angle):
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])


def _add_things(generator, pictures, scene, spacing, troubles):
    """Puts what lies around a head into the air of every slice; lengths in mm from the centre of the brain."""
    rows, columns = pictures.shape[1:]
    y, x = np.mgrid[:rows, :columns] * spacing
    x = x - spacing * (columns - 1) / 2 - scene.pose.centre_mm[0]
    y = y - spacing * (rows - 1) / 2 - scene.pose.centre_mm[1]
    things = np.full((rows, columns), float(AIR_HU))
    if "table" in troubles:  # a shell of 4 mm around foam, as wide as the picture
        below = y - 125
        things[(below > 0) & (below < 60)] = -920
        things[((below > 0) & (below < 4)) | ((below > 56) & (below < 60))] = generator.uniform(0, 400)
    if "cushion" in troubles:  # a gel ring that touches the back of the head
        ring = np.hypot(x, y)
        things[(ring > 80) & (y > 30) & (np.abs(x) < 110) & (y < 135)] = generator.uniform(-250, 60)
    if "tubes" in troubles:
        for _ in range(4):
            angle, far = generator.uniform(np.pi, 2 * np.pi), generator.uniform(105, 150)
            around = np.hypot(x - far * np.cos(angle), y - far * np.sin(angle))
            radius = generator.uniform(3, 9)
            things[around < radius] = generator.uniform(50, 400)
            things[around < 0.7 * radius] = AIR_HU
        for _ in range(3):  # leads with a metal core
            angle, far = generator.uniform(0, 2 * np.pi), generator.uniform(100, 140)
            things[np.hypot(x - far * np.cos(angle), y - far * np.sin(angle)) < 2] = 2500
    if "frame" in troubles:  # four posts and a ring of a stereotactic frame
        things[np.abs(np.hypot(x, y) - 128) < 3.5] = 1200
        for angle in np.deg2rad([45, 135, 225, 315]):
            things[np.hypot(x - 120 * np.cos(angle), y - 120 * np.sin(angle)) < 8] = 2500
    is_air = (pictures < -900) & (things > AIR_HU)
    pictures[is_air] = np.broadcast_to(things, pictures.shape)[is_air]


def _add_streaks(generator, volume, brain):
    """Bright and dark rays through the whole picture, as dental metal throws them, in a third of the slices."""
    rows, columns = volume.shape[1:]
    y, x = np.mgrid[:rows, :columns]
    for s in generator.choice(len(volume), max(len(volume) // 3, 1), replace=False):
        at = generator.uniform(0.3, 0.7, 2) * (rows, columns)
        angle, far = np.arctan2(y - at[0], x - at[1]), np.hypot(y - at[0], x - at[1])
        rays = np.cos(generator.integers(7, 15) * angle + generator.uniform(0, 6)) ** 5
        added = generator.uniform(300, 900) * rays * np.exp(-far / (0.3 * rows))
        volume[s] = np.clip(volume[s] + added, -1024, 3071)
