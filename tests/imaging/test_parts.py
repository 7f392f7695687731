"""The contract of every row of PARTS, laws of mirroring, and the placing of regions against the true head."""

import numpy as np
import pytest
from support.heads import draw_hard_head

from ichkit.core.config import PartsConfig
from ichkit.core.errors import ConfigError, DataError
from ichkit.imaging.head_frame import find_head_frame
from ichkit.imaging.parts import PARTS, SIDES, PartSettings, cut_parts, find_part, part_id, whole_id
from ichkit.imaging.regions import REGIONS, as_rows, make_regions, read_regions
from ichkit.imaging.steps import Origin, restore

FILL = -800


@pytest.fixture(scope="module")
def head():
    return draw_hard_head(np.random.default_rng(3), (), size=128, fov_mm=230)


def positions_of(volume):
    return 5.0 * np.arange(len(volume))


def settings_of(name):
    return PartSettings.of(PartsConfig(kind=name))


def cut(name, head, volume=None):
    volume = head.volume if volume is None else volume
    return cut_parts(settings_of(name), volume, head.spacing_mm, positions_of(volume))


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_what_it_says_of_the_volume_and_goes_back_to_its_place(name, head):
    before = head.volume.copy()
    parts = cut(name, head)
    assert len({part.name for part in parts}) == len(parts) > 0
    whole = Origin(*before.shape[1:], *head.spacing_mm, 0, 0, *before.shape[1:], True)
    for part in parts:
        taken = part.take(head.volume, FILL)
        assert taken.dtype == np.int16
        assert list(part.rows) == list(range(part.rows[0], part.rows[-1] + 1))
        origin = whole.cut(part.box, is_mirrored=part.is_mirrored)
        placed, expected = restore(taken, origin, FILL), np.full_like(before[list(part.rows)], FILL)
        inside = np.s_[:, part.box.top : part.box.top + part.box.height, part.box.left : part.box.left + part.box.width]
        kept = before[list(part.rows)][inside]
        expected[inside] = kept if part.outside is None else np.where(part.outside, FILL, kept)
        np.testing.assert_array_equal(placed, expected)
    np.testing.assert_array_equal(head.volume, before)


@pytest.mark.parametrize("name", PARTS)
def test_settings_survive_a_store_and_a_card(name):
    settings = settings_of(name)
    assert PartSettings.from_json(settings.to_json()) == settings
    assert bool(settings.to_json()) == (name != "whole")


@pytest.mark.parametrize("columns", [128, 127, 101])
@pytest.mark.parametrize("name", ["hemispheres", "aspects"])
def test_mirroring_a_person_exchanges_the_parts_of_both_sides(name, columns, head):
    volume = np.ascontiguousarray(head.volume[:, :, 5 : 5 + columns] if columns < 120 else head.volume[:, :, :columns])
    mirrored = np.ascontiguousarray(volume[..., ::-1])
    ours, theirs = ({part.name: part for part in cut(name, head, one)} for one in (volume, mirrored))
    for part in ours.values():
        side, hyphen, rest = part.name.partition("-")
        other = theirs[("left" if side == "right" else "right") + hyphen + rest]
        one, two = part.take(volume, FILL), other.take(mirrored, FILL)
        if name == "hemispheres":
            np.testing.assert_array_equal(one, two)
        else:
            # Columns are sampled from the left on, so a box may differ by a pixel; what it shows may not.
            assert np.abs(np.subtract(one.shape, two.shape)).max() <= 1
            assert part.rows == other.rows


def test_sides_are_those_of_the_patient(head):
    """Columns run to the patient's left: a spot in high columns lies in the left half, near its first columns' end."""
    volume = head.volume.copy()
    volume[:, 60:64, 80:84] = 3000
    right, left = cut("hemispheres", head, volume)
    assert (right.name, left.name) == SIDES
    assert (left.take(volume, FILL) == 3000).any()
    assert not (right.take(volume, FILL) == 3000).any()


def test_a_region_of_the_left_side_shows_high_columns(head):
    columns = np.broadcast_to(np.arange(head.volume.shape[2], dtype=np.int16), head.volume.shape)
    centre = head.volume.shape[2] / 2
    parts = cut("aspects", head)
    assert {part.name.partition("-")[0] for part in parts} == set(SIDES)
    for part in parts:
        shown = part.take(columns, FILL)
        away = np.median(shown[shown != FILL]) - centre
        assert (away > 0) == part.name.startswith("left"), part.name


def test_where_no_head_is_found_the_frame_lies_in_the_middle_of_the_picture():
    frame = find_head_frame(np.full((4, 30, 40), FILL, np.int16), (0.5, 0.5), positions_of(np.zeros(4)))
    assert not frame.is_found
    rows, columns = frame.to_picture(np.zeros(1), np.zeros(1))
    assert (rows.tolist(), columns.tolist()) == ([14.5], [19.5])


def test_the_middle_part_has_the_slices_above_the_middle_one():
    volume = np.arange(11, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    (part,) = cut_parts(PartSettings("middle", 5), volume, (1.0, 1.0), positions_of(volume))
    assert part.take(volume, FILL)[:, 0, 0].tolist() == [6, 7, 8, 9, 10]
    (part,) = cut_parts(PartSettings("middle", 5), volume[:8], (1.0, 1.0), positions_of(volume[:8]))
    assert part.take(volume[:8], FILL)[:, 0, 0].tolist() == [3, 4, 5, 6, 7]
    (part,) = cut_parts(PartSettings("middle", 5), volume[:3], (1.0, 1.0), positions_of(volume[:3]))
    assert len(part.rows) == 3


@pytest.mark.parametrize("name", PARTS)
def test_air_and_a_single_slice_have_parts_too(name):
    for volume in (np.full((4, 30, 40), FILL, np.int16), np.full((1, 30, 40), FILL, np.int16)):
        parts = cut_parts(settings_of(name), volume, (1.0, 1.0), np.full(len(volume), np.nan))
        assert all(min(part.take(volume, FILL).shape) >= 1 for part in parts)
        assert not any(part.is_found for part in parts) or name in ("whole", "middle", "halves")


@pytest.mark.parametrize("seed", range(4))
def test_the_frame_finds_the_reference_head(seed):
    """Against the truth of the phantom: centre to 2 mm, half axes of the inside to a tenth, slices to a slice."""
    head = draw_hard_head(np.random.default_rng(seed), (), size=160, fov_mm=240)
    frame = find_head_frame(head.volume, head.spacing_mm, positions_of(head.volume))
    assert frame.is_found
    assert abs(frame.turn) < 0.4
    widest = int(head.brain.sum((1, 2)).argmax())
    rows, columns = np.nonzero(head.brain[widest])
    x, y = frame.to_reference(rows.astype(float), columns.astype(float))
    for values, half in ((x, 68), (y, 84)):
        low, high = np.quantile(values, (0.005, 0.995))
        assert (low + high) / 2 == pytest.approx(0, abs=2)
        assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    back = frame.to_picture(x, y)
    np.testing.assert_allclose(back, (rows, columns), atol=1e-9)


def test_a_table_of_regions_can_be_replaced(tmp_path):
    path = tmp_path / "regions.csv"
    path.write_text("name,x,y,rx,ry,low,high\nA,20,0,10,12,-3,12\nB,30,10,5,6,20,40\n")
    regions = read_regions(path)
    assert [(one.name, one.x, one.high) for one in regions] == [("A", 20, 12), ("B", 30, 40)]
    settings = PartSettings.of(PartsConfig(kind="aspects", regions=path))
    volume = np.full((3, 20, 20), FILL, np.int16)
    names = [part.name for part in cut_parts(settings, volume, (1.0, 1.0), positions_of(volume))]
    assert names == ["right-A", "right-B", "left-A", "left-B"]
    assert make_regions(as_rows(REGIONS)) == REGIONS
    for text in (
        "name,x\nA,1\n",
        "name,x,y,rx,ry,low,high\nA,1,1,0,1,0,1\n",
        "name,x,y,rx,ry,low,high\nA:b,1,1,1,1,0,1\n",
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=r"expected a table of regions"):
            read_regions(path)


def test_ids_of_parts_lead_back_to_the_study():
    assert whole_id(part_id("1.2.3", "left-M1")) == "1.2.3" == part_id("1.2.3", "")
    assert whole_id("1.2.3") == "1.2.3"
    with pytest.raises(ConfigError, match=r'prepare.parts: unknown "hemisphere".*hemispheres'):
        find_part("hemisphere")


@pytest.mark.parametrize("columns", [12, 13])
def test_halves_meet_in_the_middle_column_and_mirroring_the_picture_exchanges_them(columns):
    volume = np.random.default_rng(4).integers(0, 3000, (3, 2, 6, columns)).astype(np.int16)
    way = PartSettings("halves")
    spacing, positions = (1.0, 1.0), np.arange(3.0)
    halves = {cut.name: cut.take(volume, 0) for cut in cut_parts(way, volume, spacing, positions)}
    mirrored = np.ascontiguousarray(volume[..., ::-1])
    others = {cut.name: cut.take(mirrored, 0) for cut in cut_parts(way, mirrored, spacing, positions)}
    np.testing.assert_array_equal(halves["right"], others["left"])
    np.testing.assert_array_equal(halves["left"], others["right"])
    np.testing.assert_array_equal(halves["right"], volume[..., : -(-columns // 2)])
    np.testing.assert_array_equal(halves["left"][..., ::-1], volume[..., columns // 2 :])


@pytest.mark.parametrize("slices", [-1, 0, 2.0, "5", None])
def test_a_number_of_slices_that_no_card_has_is_refused(slices):
    with pytest.raises(ValueError, match="slices must be a number above 0"):
        PartSettings.from_json({"kind": "middle", "slices": slices})


def test_a_region_between_two_slices_is_shown_by_the_nearest_one(head):
    """Of a scan with gaps of 60 mm no slice lies inside the region; the nearest to its middle is taken."""
    (region,) = make_regions([("A", 0, 0, 10, 10, 20, 22, "aspects")])
    volume, positions = head.volume[::12], positions_of(head.volume)[::12]
    heights = find_head_frame(volume, head.spacing_mm, positions).heights
    assert not ((heights >= 20) & (heights < 22)).any()
    cuts = cut_parts(PartSettings("aspects", 0, (region,)), volume, head.spacing_mm, positions)
    assert {cut.rows for cut in cuts} == {(int(np.abs(heights - 21).argmin()),)}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("place", range(1, 7))
def test_a_region_whose_place_or_size_is_no_finite_number_is_refused(place, value):
    row = ["A", 20, 0, 10, 12, -3, 12, "aspects"]
    row[place] = float(value)
    with pytest.raises(ValueError, match="region A"):
        make_regions([row])


def test_an_empty_cell_in_a_table_of_regions_is_refused(tmp_path):
    path = tmp_path / "regions.csv"
    path.write_text("name,x,y,rx,ry,low,high\nA,,0,10,12,-3,12\n")
    with pytest.raises(DataError, match="expected a table of regions"):
        read_regions(path)
    path.write_text("name,x,y,rx,ry,low,high\nA,1,0,10,12,-3,12\nA,2,0,10,12,-3,12\n")
    with pytest.raises(DataError, match="each name once"):
        read_regions(path)
