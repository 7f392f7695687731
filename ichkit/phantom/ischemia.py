"""Ischemic stroke in phantoms: the infarcts of every patient, decided before any is drawn, and how they look."""

from dataclasses import dataclass

import numpy as np

from ichkit.core.seeding import make_generator
from ichkit.core.tasks import find_task
from ichkit.imaging.regions import ASPECTS, REGIONS, Region
from ichkit.phantom.bleeds import BLOB, Bleed
from ichkit.phantom.head import Head
from ichkit.phantom.lesions import Lesion
from ichkit.phantom.render import Grid, Pose, head_stretch

TASK = find_task("ischemia")
INTACT = "intact"
SIDES = {"right": -1, "left": 1}
_OLD, _RECENT, _FRANK, _TERRITORIAL, _SCATTERED = tuple(TASK.categories)[1:]
_SECOND_STUDY_SHARE = 0.1
_EARLY_SHARE, _OLD_SHARE, _OTHER_SHARE = 0.55, 0.5, 0.1
_MOST_SLICES = 3
_MARGIN_MM = 2.0
"""A slice nearer to the end of its region may be cut away where a head frame is found a little too high or too low."""
_SLICE_SHARES = {_TERRITORIAL: (0.2, 0.25, 0.55)}
_USUAL_SLICE_SHARES = (0.4, 0.25, 0.35)
_BITS = {_FRANK: 1, _TERRITORIAL: 1, _OLD: 2, _RECENT: 4, _SCATTERED: 4}
"""Bits of the mask: 1 early, 2 old, 4 infarcts that no class learns."""
_DENSE_ARTERY_SHARE = 0.3
_LEUKOARAIOSIS_SHARE, _LACUNE_SHARE = 0.3, 0.25


@dataclass(frozen=True)
class Finding:
    """One infarct.

    Attributes:
        side: "right" or "left" of the patient.
        region: a name of `imaging.regions.REGIONS`.
        category: of `Task.categories`.
        num_slices: 1 to 3, in how many of the region's slices it lies.
    """

    side: str
    region: str
    category: str
    num_slices: int


@dataclass(frozen=True)
class InfarctPlan:
    """One study before it is drawn.

    Attributes:
        part: the data set.
        index: position in its part; with the seed it determines every byte of the study.
        patient: number of the patient within the part.
        findings: its infarcts, at most one in a region.
    """

    part: str
    index: int
    patient: int
    findings: tuple[Finding, ...]

    def scores(self) -> dict[str, int]:
        """By side, 10 less the regions of ASPECTS with an early sign."""
        early = [one for one in self.findings if _BITS[one.category] == 1 and _region(one.region).group == ASPECTS]
        return {side: 10 - sum(one.side == side for one in early) for side in SIDES}


def plan_infarcts(part: str, count: int, seed: int) -> list[InfarctPlan]:
    """The studies of one data set; a tenth of the patients have a second study.

    Half of the patients have early signs, in one or two regions or in a territory, and half have old infarcts,
    independently of each other; a tenth have infarcts of categories that no class learns.
    """
    if count == 0:
        return []
    generator = make_generator(seed, "phantom", part, "plan")
    num_repeats = int(_SECOND_STUDY_SHARE * count)
    num_patients = count - num_repeats
    patients = [*range(num_patients), *generator.choice(num_patients, num_repeats, replace=False).tolist()]
    has = [_deal(generator, count, share) for share in (_EARLY_SHARE, _OLD_SHARE, _OTHER_SHARE)]
    plans = []
    for index in range(count):
        taken: dict[tuple[str, str], Finding] = {}
        if has[0][index]:
            _add(taken, generator, _TERRITORIAL if generator.random() < 0.6 else _FRANK)
        if has[1][index]:
            _add(taken, generator, _OLD)
        if has[2][index]:
            _add(taken, generator, str(generator.choice([_RECENT, _SCATTERED])))
        plans.append(InfarctPlan(part, index, patients[index], tuple(taken.values())))
    return plans


def _deal(generator: np.random.Generator, count: int, share: float) -> np.ndarray:
    """(count,) bool, this share of them true, at least one."""
    dealt: np.ndarray = generator.permutation(count) < max(round(share * count), 1)
    return dealt


def _add(taken: dict[tuple[str, str], Finding], generator: np.random.Generator, category: str) -> None:
    """Adds infarcts of a category in regions beside each other on one side, where there is none yet."""
    side = str(generator.choice(list(SIDES)))
    is_early = _BITS[category] == 1
    regions = [one for one in REGIONS if one.group == ASPECTS or not is_early]
    seed = regions[int(generator.integers(len(regions)))]
    num = int(generator.integers(3, 8) if category == _TERRITORIAL else generator.integers(1, 3 if is_early else 4))
    shares = _SLICE_SHARES.get(category, _USUAL_SLICE_SHARES)
    for region in sorted(regions, key=lambda one: _distance(one, seed))[:num]:
        if (side, region.name) not in taken:
            num_slices = 1 + int(generator.choice(_MOST_SLICES, p=shares))
            taken[side, region.name] = Finding(side, region.name, category, num_slices)


def _distance(one: Region, other: Region) -> float:
    height = (one.low + one.high - other.low - other.high) / 2
    return float(np.hypot(np.hypot(one.x - other.x, one.y - other.y), height))


def _region(name: str) -> Region:
    return next(region for region in REGIONS if region.name == name)


def draw_infarcts(
    generator: np.random.Generator,
    findings: tuple[Finding, ...],
    head: Head,
    pose: Pose,
    grids: tuple[Grid, ...],
    thickness_mm: float,
) -> np.ndarray:
    """(n, 14) float64, one `Lesion` per row; each lies in as many adjacent slices of its region as its finding says."""
    rows = []
    for finding in findings:
        region = _region(finding.region)
        x = SIDES[finding.side] * region.x
        heights, half = slice_heights(x, region.y, head, pose, grids, thickness_mm)
        inside = _slices_of(region, heights, finding.num_slices)
        num = min(finding.num_slices, len(inside))
        first = int(generator.integers(len(inside) - num + 1))
        low, high = heights[inside[first]] - half, heights[inside[first + num - 1]] + half
        place = (x, region.y, region.rx, region.ry, float(low), float(high))
        rows.append(Lesion(*place, *_draw_look(generator, finding.category, head)))
    return np.array(rows, np.float64).reshape(-1, len(Lesion._fields))


def _slices_of(region: Region, heights: np.ndarray, num: int) -> np.ndarray:
    """The slices among which an infarct of `num` slices lies, at most three that follow each other."""
    margin = _MARGIN_MM if num < _MOST_SLICES else 0.0
    inside = np.flatnonzero((heights >= region.low + margin) & (heights < region.high - margin))
    middle = (region.low + region.high) / 2
    if not len(inside):
        return np.array([np.abs(heights - middle).argmin()])
    while len(inside) > _MOST_SLICES:
        inside = inside[1:] if abs(heights[inside[0]] - middle) > abs(heights[inside[-1]] - middle) else inside[:-1]
    return inside


def slice_heights(
    x: float, y: float, head: Head, pose: Pose, grids: tuple[Grid, ...], thickness_mm: float
) -> tuple[np.ndarray, float]:
    """(S,) heights at which slices cut an upright line of the reference head, and half the height of a slice there."""
    normal = np.array([0.0, grids[0].tilt_sin, grids[0].tilt_cos])
    to_patient = pose.rotation.T / head_stretch(head)[None, :]
    rise = float(normal @ to_patient[:, 2])  # mm of the scanner for a reference mm towards the vertex
    start = float(normal @ (pose.centre_mm + to_patient @ np.array([x, y, 0.0])))
    places = np.array([normal @ np.array([grid.x, grid.y, grid.z]) for grid in grids])
    return (places - start) / rise, thickness_mm / 2 / rise


def _draw_look(generator: np.random.Generator, category: str, head: Head) -> tuple[float, ...]:
    """The fields of a `Lesion` after its place.

    Source: early signs are 1.74 HU below intact brain with the same spread, old infarcts 4.11 HU with a smaller one
        (section 3.3); lost contrast of grey and white matter, effaced sulci, cysts and wide sulci as in textbooks.
    """
    uniform, size = generator.uniform, generator.uniform(0.7, 1.3)
    bit = float(_BITS[category])
    if bit == 1:
        effaced = uniform(0.0, 0.2) if category == _TERRITORIAL else 0.0
        return (-2.0 * size, 1 - 0.12 * size, head.white_hu, effaced, 0.0, 0.0, 0.0, bit)
    is_cystic = category == _OLD and generator.random() < 0.3
    core, core_hu = (uniform(0.25, 0.45), uniform(-20, -10)) if is_cystic else (0.0, 0.0)
    if category == _OLD:
        return (-1.8 * size, 0.55, head.white_hu, 0.0, core, core_hu, uniform(0.0, 0.06), bit)
    return (-6.0 * size, 0.6, head.white_hu, 0.0, 0.0, 0.0, 0.0, bit)


def draw_decoys(generator: np.random.Generator, head: Head) -> np.ndarray:
    """(n, 14) float64 rows of `Lesion` without a label: dark white matter around the ventricles on both sides, and old
    lacunes, small holes in the deep grey matter.
    """
    uniform, rows = generator.uniform, []
    if generator.random() < _LEUKOARAIOSIS_SHARE:
        shift, low, high = uniform(-5, -3), uniform(8, 16), uniform(24, 34)
        for y in (uniform(-40, -32), uniform(34, 44)):
            rx, ry = uniform(5, 9), uniform(7, 12)
            look = (shift, 1.0, head.white_hu, 0.0, 0.0, 0.0, 0.0, 0.0)
            rows += [Lesion(sign * 16.0, y, rx, ry, low, high, *look) for sign in SIDES.values()]
    if generator.random() < _LACUNE_SHARE:
        for _ in range(int(generator.integers(1, 3))):
            x, y, z = generator.choice([-1, 1]) * uniform(12, 28), uniform(-20, 12), uniform(-2, 14)
            radius = uniform(1.5, 3.5)
            look = (uniform(-18, -10), 1.0, head.white_hu, 0.0, 0.0, 0.0, 0.0, 0.0)
            rows.append(Lesion(x, y, radius, radius, z - radius, z + radius, *look))
    return np.array(rows, np.float64).reshape(-1, len(Lesion._fields))


def draw_dense_artery(generator: np.random.Generator, findings: tuple[Finding, ...]) -> np.ndarray:
    """(n, 10) float64 rows of `Bleed`: a dense middle cerebral artery on the side of some territories; none else."""
    sides = {SIDES[one.side] for one in findings if one.category == _TERRITORIAL}
    rows = []
    for side in sorted(sides):
        if generator.random() < _DENSE_ARTERY_SHARE:
            x, y, z = side * generator.uniform(18, 28), generator.uniform(-14, -8), generator.uniform(-12, -6)
            rows.append(Bleed(BLOB, x, y, z, generator.uniform(7, 11), 2, 2, side, generator.uniform(50, 62), 0))
    return np.array(rows, np.float64).reshape(-1, len(Bleed._fields))
