"""Phantoms of ischemia: what is labelled is drawn where the parts look for it, as dark as the paper says."""

import json

import numpy as np
import pandas as pd
import pytest

from ichkit import write_phantom
from ichkit.core.errors import ConfigError, DataError
from ichkit.core.tasks import find_task
from ichkit.imaging.parts import PartSettings, cut_parts
from ichkit.imaging.regions import REGIONS
from ichkit.phantom.confounders import draw_scan, finish_slice
from ichkit.phantom.difficulty import DIFFICULTIES
from ichkit.phantom.head import draw_head
from ichkit.phantom.ischemia import Finding, draw_infarcts, plan_infarcts
from ichkit.phantom.lattice import draw_lattice
from ichkit.phantom.lesions import add_lesions
from ichkit.phantom.render import draw_pose, draw_slice
from ichkit.phantom.study import draw_stack

SIZE, GAP_MM = 128, 5.0
CATEGORIES = find_task("ischemia").categories
NOTHING = np.empty((0, 10))


def draw_study(seed, findings):
    """A noise-free head without and with infarcts, its mask, each (S, H, W), and the spacing of its pixels."""
    generator = np.random.default_rng(seed)
    head, lattice = draw_head(generator), draw_lattice(generator)
    pose = draw_pose(generator, 200.0, 0.0)
    scan = draw_scan(generator, DIFFICULTIES["noise-free"])
    stack = draw_stack(generator, pose, (SIZE, SIZE), np.arange(0, 150, GAP_MM), GAP_MM, 0.0)
    infarcts = draw_infarcts(generator, findings, head, pose, stack.grids, GAP_MM)
    before, after, masks = [], [], []
    for grid in stack.grids:
        plain = draw_slice(grid, GAP_MM, (SIZE, SIZE), head, pose, lattice, NOTHING)
        hounsfield, mask = add_lesions(plain, grid, GAP_MM, head, pose, lattice, infarcts)
        before.append(plain.hounsfield)
        after.append(finish_slice(generator, hounsfield, grid, pose, scan))
        masks.append(mask)
    return np.stack(before), np.stack(after), np.stack(masks), stack.grids[0].spacing


def cut(volume, spacing):
    positions = GAP_MM * np.arange(len(volume))
    return cut_parts(PartSettings("aspects", regions=REGIONS), volume, (spacing, spacing), positions)


@pytest.fixture(scope="module")
def studies():
    """Plans of twenty studies and what is drawn of them."""
    plans = plan_infarcts("scans", 20, 5)
    return [(plan, *draw_study(plan.index, plan.findings)) for plan in plans]


def test_the_parts_hold_exactly_the_infarcts_of_the_plan_so_that_a_reader_of_the_masks_gets_every_score(studies):
    for plan, _, after, masks, spacing in studies:
        found = set()
        for part in cut(after, spacing):
            inside = part.take(np.ones_like(masks), 0) > 0
            shares = (part.take(masks & 1, 0) > 0).sum((1, 2)) / inside.sum((1, 2))
            if shares.max() > 0.5:
                found.add(part.name)
        early = {
            f"{one.side}-{one.region}"
            for one in plan.findings
            if find_task("ischemia").categories[one.category]["early"]
        }
        assert found == early
        names = {region.name for region in REGIONS if region.group == "aspects"}
        for side, score in plan.scores().items():
            assert score == 10 - sum(part.startswith(side) and part.partition("-")[2] in names for part in found)


def test_infarcts_are_as_dark_and_as_narrow_as_the_paper_measured(studies):
    """Section 3.3: early signs 1.74 HU below intact brain, old infarcts 4.11 HU and with a smaller deviation."""
    for bit, expected in ((1, -1.74), (2, -4.11)):
        pairs = [
            (before[is_shown], after[is_shown])
            for _, before, after, masks, _ in studies
            if (is_shown := (masks == bit) & (before > 0) & (before < 60)).any()
        ]
        intact, infarct = (np.concatenate(values).astype(float) for values in zip(*pairs, strict=True))
        assert (infarct - intact).mean() == pytest.approx(expected, abs=0.6)
        if bit == 2:
            assert infarct[infarct > 20].std() < 0.9 * intact[intact > 20].std()


@pytest.mark.parametrize("num_slices", [1, 2, 3])
def test_an_infarct_lies_in_as_many_slices_of_its_part_as_planned(num_slices):
    for seed in range(4):
        _, after, masks, spacing = draw_study(seed, (Finding("left", "M5", "frank hypodensity", num_slices),))
        part = next(one for one in cut(after, spacing) if one.name == "left-M5")
        shares = (part.take(masks, 0) > 0).mean((1, 2)) / (part.take(np.ones_like(masks), 0) > 0).mean((1, 2))
        assert abs((shares > 0.5).sum() - num_slices) <= (num_slices > 1)


def test_every_class_is_in_several_patients_and_the_plan_depends_on_the_seed_alone():
    plans = plan_infarcts("scans", 20, 1)
    assert plans == plan_infarcts("scans", 20, 1) != plan_infarcts("scans", 20, 2)
    for name in find_task("ischemia").classes:
        patients = {plan.patient for plan in plans for one in plan.findings if CATEGORIES[one.category][name]}
        assert len(patients) >= 5
    assert len({plan.patient for plan in plans}) == 18


def test_the_folder_has_a_category_for_every_region_and_the_kind_in_its_facts(tmp_path):
    write_phantom(tmp_path, kind="ischemia", difficulty="noise-free", studies=3, test_studies=1, size=64, workers=1)
    facts = json.loads((tmp_path / "scans" / "phantom.json").read_text())
    assert facts["settings"]["kind"] == "ischemia"
    table = pd.read_csv(tmp_path / "scans" / "regions.csv")
    assert len(table) == 3 * 28
    assert set(table.category) <= set(CATEGORIES)
    assert not set(table.study_id) & set(pd.read_csv(tmp_path / "site" / "regions.csv").study_id)
    with pytest.raises(DataError, match="made from other settings: difficulty is noise-free"):
        write_phantom(tmp_path, kind="ischemia", studies=3, test_studies=1, size=64)
    with pytest.raises(ConfigError, match='phantom.kind: unknown "ischaemia".*ischemia'):
        write_phantom(tmp_path / "other", kind="ischaemia")
