"""What makes one head differ from another: sizes, age, tissue values, calcifications."""

from typing import NamedTuple

import numpy as np


class Head(NamedTuple):
    """What makes one head differ from another.

    Attributes:
        width, length, height: half axes of the skull's inner table, mm.
        skull_mm: thickness of the skull.
        scalp_mm: thickness of the scalp.
        sulcus: width of the sulci in units of the gyral noise; grows with atrophy.
        ventricle: factor on the radii of the ventricles.
        asymmetry: how much wider the left ventricle is than the right one, as a factor on its radius.
        grey_hu, white_hu, fluid_hu, dura_hu, bone_hu: tissue values.
        falx_bend_mm: how far the falx leans to the left at the front.
        air_cells: share of the mastoid that is air, as a threshold on the noise.
        pineal_hu, choroid_hu, pallidum_hu: calcifications; 0 where there is none.
        swelling_x, swelling_y, swelling_z, swelling_mm: where the scalp is swollen and by how much.
        enhancement_hu: contrast medium in vessels and sinuses; 0 in a plain scan.
        shift_mm: how far the middle of the brain is pushed to the left by what bleeds on the right, or the other way.
        halo_hu, halo_mm: how much brighter the brain looks at the inner table, and how fast that fades inwards; beam
            hardening and the wide foot of the scanner's point spread do this, differently in every scanner.
    """

    width: float
    length: float
    height: float
    skull_mm: float
    scalp_mm: float
    sulcus: float
    ventricle: float
    asymmetry: float
    grey_hu: float
    white_hu: float
    fluid_hu: float
    dura_hu: float
    bone_hu: float
    falx_bend_mm: float
    air_cells: float
    pineal_hu: float
    choroid_hu: float
    pallidum_hu: float
    swelling_x: float
    swelling_y: float
    swelling_z: float
    swelling_mm: float
    enhancement_hu: float
    shift_mm: float
    halo_hu: float
    halo_mm: float


def draw_head(generator: np.random.Generator) -> Head:
    """A random adult head, healthy but for its age and its calcifications.

    Source: grey and white matter 37 and 29 HU as in the issue; the other ranges from what plain head CT shows.
    """
    uniform = generator.uniform
    age = uniform()  # 0 young, 1 old: wider sulci and ventricles, more calcium
    return Head(
        width=uniform(63, 71),
        length=uniform(79, 89),
        height=uniform(69, 78),
        skull_mm=uniform(5, 8),
        scalp_mm=uniform(3.5, 7),
        sulcus=0.05 + 0.25 * age * uniform(0.6, 1.0),
        ventricle=0.75 + 0.6 * age * uniform(0.5, 1.0),
        asymmetry=uniform(0.85, 1.2),
        grey_hu=uniform(36, 39),
        white_hu=uniform(28, 31),
        fluid_hu=uniform(4, 9),
        dura_hu=uniform(42, 50) + (uniform(12, 28) if generator.random() < 0.4 else 0.0),
        bone_hu=uniform(1000, 1400),
        falx_bend_mm=uniform(-2, 2),
        air_cells=uniform(-0.4, 0.6),
        pineal_hu=uniform(90, 250) if generator.random() < 0.2 + 0.5 * age else 0.0,
        choroid_hu=uniform(90, 250) if generator.random() < 0.2 + 0.5 * age else 0.0,
        pallidum_hu=uniform(55, 120) if generator.random() < 0.05 + 0.15 * age else 0.0,
        swelling_x=0.0,
        swelling_y=0.0,
        swelling_z=0.0,
        swelling_mm=0.0,
        enhancement_hu=0.0,
        shift_mm=0.0,
        halo_hu=uniform(0, 30),
        halo_mm=uniform(1.5, 3.5),
    )
