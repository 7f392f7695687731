"""The parameters of a head: sizes, age, tissue values, calcifications."""

from typing import NamedTuple

import numpy as np


class Head(NamedTuple):
    """The parameters of one head.

    Attributes:
        width, length, height: half axes of the skull's inner table, mm.
        skull_mm: thickness of the skull.
        scalp_mm: thickness of the scalp.
        sulcus: width of the sulci in units of the gyral noise; grows with atrophy.
        ventricle: factor on the radii of the ventricles.
        asymmetry: factor on the radius of the left ventricle.
        grey_hu, white_hu, fluid_hu, dura_hu, bone_hu: tissue values.
        falx_bend_mm: deviation of the falx to the left at the front.
        air_cells: share of the mastoid that is air, as a threshold on the noise.
        pineal_hu, choroid_hu, pallidum_hu: calcifications; 0 for none.
        swelling_x, swelling_y, swelling_z, swelling_mm: location and thickness of a scalp swelling.
        enhancement_hu: contrast medium in vessels and sinuses; 0 without contrast.
        shift_mm: midline shift by bleeds; positive to the left.
        halo_hu, halo_mm: added brightness of the brain at the inner table and the distance over which it decays; an
            effect of beam hardening and the tails of the point spread function, different in every scanner.
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
    """A random adult head with atrophy and calcifications by age, without bleeds.

    Source: chosen here; grey and white matter about 37 and 29 HU, the other ranges as in non-contrast head CT.
    """
    uniform = generator.uniform
    age = uniform()  # 0 young, 1 old: wider sulci and ventricles, more calcifications
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
