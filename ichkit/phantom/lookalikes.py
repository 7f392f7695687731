"""Findings that look like a bleed: calcifications, partial volume, thick dura, old lesions, vessels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ichkit.phantom.bleeds import ALONG_FALX, BLOB, CRESCENT, ON_TENT, Bleed


@dataclass(frozen=True)
class Lookalike:
    """A row of `LOOKALIKES`.

    Attributes:
        name: key in the table.
        share: of all look-alikes.
        draw: generator to shapes, drawn as those of bleeds but without label.
        description: one sentence.
        source: where it is described.
    """

    name: str
    share: float
    draw: Callable[[np.random.Generator], list[Bleed]]
    description: str
    source: str


def draw_lookalikes(generator: np.random.Generator, mean: float) -> np.ndarray:
    """(n, 10) float64, one `Bleed` per row, of a Poisson number of look-alikes."""
    rows = list(LOOKALIKES.values())
    shares = np.array([row.share for row in rows])
    kinds = generator.choice(len(rows), generator.poisson(mean), p=shares / shares.sum())
    shapes = [shape for kind in kinds for shape in rows[kind].draw(generator)]
    return np.array(shapes, np.float64).reshape(-1, len(Bleed._fields))


def _side(generator: np.random.Generator) -> float:
    return float(generator.choice([-1.0, 1.0]))


def _blob(
    generator: np.random.Generator, centre: tuple[float, float, float], radii: tuple[float, float], hu: float
) -> Bleed:
    (x, y, z), (rx, ry, rz) = centre, generator.uniform(*radii, 3)
    return Bleed(BLOB, x, y, z, rx, ry, rz, 0.0, hu, 0.0)


def _draw_calcification(generator: np.random.Generator) -> list[Bleed]:
    uniform, hu = generator.uniform, generator.uniform(70, 220)
    centre = (_side(generator) * uniform(8, 50), uniform(-50, 60), uniform(-30, 50))
    return [_blob(generator, centre, (1.5, 4.5), hu)]


def _draw_skull_base(generator: np.random.Generator) -> list[Bleed]:
    uniform, side = generator.uniform, _side(generator)
    front = generator.random() < 0.5  # the roofs of the orbits, else the petrous bones and the temporal poles
    x, y, z = ((8, 38), (-68, -42), (-26, -10)) if front else ((22, 50), (-28, 22), (-34, -18))
    centre = (side * uniform(*x), uniform(*y), uniform(*z))
    return [_blob(generator, centre, (4, 13), uniform(44, 68))]


def _draw_thick_falx(generator: np.random.Generator) -> list[Bleed]:
    uniform, hu = generator.uniform, generator.uniform(50, 85)
    y, z, reach, height = uniform(-50, 50), uniform(10, 50), uniform(15, 50), uniform(15, 40)
    return [Bleed(ALONG_FALX, 0, y, z, uniform(1.5, 4), reach, height, side, hu, 0) for side in (-1.0, 1.0)]


def _draw_dense_tentorium(generator: np.random.Generator) -> list[Bleed]:
    uniform = generator.uniform
    y, thickness, reach = uniform(25, 50), uniform(1.5, 4), uniform(15, 40)
    return [Bleed(ON_TENT, 0, y, 0, thickness, reach, 40, _side(generator), uniform(46, 70), 0)]


def _draw_vertex_rim(generator: np.random.Generator) -> list[Bleed]:
    uniform = generator.uniform
    y, z = uniform(-40, 40), uniform(-10, 55)
    radii = uniform(1.5, 4.5), uniform(20, 60), uniform(10, 30)
    return [Bleed(CRESCENT, 0, y, z, *radii, _side(generator), uniform(46, 66), 0)]


def _draw_hygroma(generator: np.random.Generator) -> list[Bleed]:
    uniform = generator.uniform
    y, z = uniform(-30, 15), uniform(0, 50)
    radii = uniform(4, 12), uniform(50, 80), uniform(20, 32)
    return [Bleed(CRESCENT, 0, y, z, *radii, _side(generator), uniform(8, 30), 0)]


def _draw_infarct(generator: np.random.Generator) -> list[Bleed]:
    uniform = generator.uniform
    centre = (_side(generator) * uniform(10, 50), uniform(-50, 60), uniform(-30, 50))
    return [_blob(generator, centre, (6, 24), uniform(14, 26))]


def _draw_tumour(generator: np.random.Generator) -> list[Bleed]:
    uniform = generator.uniform
    centre = (_side(generator) * uniform(8, 55), uniform(-60, 60), uniform(-30, 58))
    return [_blob(generator, centre, (6, 16), uniform(40, 54))._replace(rim_mm=uniform(0, 10))]


def _draw_vessel(generator: np.random.Generator) -> list[Bleed]:
    uniform, side = generator.uniform, _side(generator)
    x, y, z = side * uniform(15, 32), uniform(-16, -6), uniform(-14, -4)
    return [Bleed(BLOB, x, y, z, uniform(7, 12), 2, 2, side, uniform(48, 68), 0)]


LOOKALIKES = {
    "calcification": Lookalike(
        name="calcification",
        share=0.2,
        draw=_draw_calcification,
        description="A small focus of 70 to 220 HU; at its edge and in thick slices as bright as blood.",
        source="Morgan's differential of hyperdense foci; location and size chosen here",
    ),
    "skull-base": Lookalike(
        name="skull-base",
        share=0.25,
        draw=_draw_skull_base,
        description="Partial volume of the orbital roofs and petrous bones: bright patches in the lowest brain.",
        source="Barrett and Keat, RadioGraphics 2004: partial volume",
    ),
    "thick-falx": Lookalike(
        name="thick-falx",
        share=0.15,
        draw=_draw_thick_falx,
        description="A thick or calcified part of the falx, on both sides, as bright as an interhemispheric bleed.",
        source="chosen here, because a dense falx is a known false positive of subdural hemorrhage",
    ),
    "dense-tentorium": Lookalike(
        name="dense-tentorium",
        share=0.08,
        draw=_draw_dense_tentorium,
        description="A dense part of the tentorium or a transverse sinus.",
        source="chosen here, because a dense tentorium is a known false positive of subdural hemorrhage",
    ),
    "vertex-rim": Lookalike(
        name="vertex-rim",
        share=0.12,
        draw=_draw_vertex_rim,
        description="A thin bright rim below the skull: partial volume of oblique bone, or thick dura.",
        source="Barrett and Keat, RadioGraphics 2004: partial volume",
    ),
    "hygroma": Lookalike(
        name="hygroma",
        share=0.05,
        draw=_draw_hygroma,
        description="A dark crescent: hygroma or chronic subdural hematoma.",
        source="chosen here, because its shape is that of an acute subdural hemorrhage",
    ),
    "infarct": Lookalike(
        name="infarct",
        share=0.05,
        draw=_draw_infarct,
        description="A dark region of the brain.",
        source="chosen here, as a frequent finding without blood",
    ),
    "tumour": Lookalike(
        name="tumour",
        share=0.05,
        draw=_draw_tumour,
        description="A slightly bright mass, some with a dark rim.",
        source="chosen here, because it has the shape of an intraparenchymal hemorrhage",
    ),
    "vessel": Lookalike(
        name="vessel",
        share=0.05,
        draw=_draw_vessel,
        description="A dense middle cerebral artery.",
        source="chosen here, because it lies where subarachnoid blood does",
    ),
}
