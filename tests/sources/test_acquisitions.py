"""Inside one series: localizers, other planes, repeated passes; what is left is one pass over the head."""

import re

import numpy as np
import pandas as pd
import pydicom
import pytest
from support.dicoms import write_series, write_slice
from support.indexes import index_of, plan_of, slices_of

from ichkit.sources.acquisitions import REPEATED, split_repeats
from ichkit.sources.plan import order_slices

SAGITTAL = (0, 1, 0, 0, 0, -1)


def scout(path, z, **tags):
    image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return write_slice(
        path, slice_uid="1.2.3.999", position=(0, 0, z), orientation=SAGITTAL, ImageType=image_type, **tags
    )


def test_a_localizer_inside_a_series_is_rejected_and_leaves_its_geometry_as_without_it(tmp_path):
    for name, z in (("below", -40.0), ("amid", 77.0)):
        write_series(tmp_path / name, 32)
        before = plan_of(tmp_path / name)
        scout(tmp_path / name / "scout.dcm", z)
        after = plan_of(tmp_path / name)
        pd.testing.assert_frame_equal(after.series_choice, before.series_choice)
        pd.testing.assert_frame_equal(order_slices(after.files)[1], order_slices(before.files)[1])
        assert after.rejected["reason"].to_list() == ["localizer"]
        assert after.rejected["slice_id"].to_list() == ["1.2.3.999"]


def test_an_image_of_another_plane_inside_a_series_is_rejected_for_it(tmp_path):
    write_series(tmp_path, 20)
    write_slice(tmp_path / "coronal.dcm", slice_uid="1.2.3.998", position=(0, 40, 20), orientation=(1, 0, 0, 0, 0, -1))
    plan = plan_of(tmp_path)
    assert len(plan.files) == 20
    assert plan.rejected["reason"].to_list() == ["another orientation than the rest of its series"]


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, 1, 0, 1, 0, 0)])
@pytest.mark.parametrize("degrees", [-28, -10, 10, 28])
def test_slices_of_two_tilts_follow_each_other_by_their_centres(tmp_path, degrees, orientation):
    """The skull base with a tilted gantry, then the vertex without: one head, and the corners are in another order."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    angle = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]])
    for i in range(20):
        turn = about_x if i < 8 else np.eye(3)
        centre = np.array([0.0, 0.0, 6.0 * i + (12 if i >= 8 else 0)])
        corner = centre - 15 * 11.5 * (turn @ column) - 20 * 9.5 * (turn @ row)
        write_slice(
            tmp_path / f"{(i * 7) % 23}.dcm",
            np.full((24, 20), 1000 + i, np.uint16),
            slice_uid=f"1.2.3.{i}",
            position=tuple(corner),
            orientation=(*(turn @ row), *(turn @ column)),
            spacing=(15.0, 20.0),
        )
    slices = slices_of(tmp_path)
    assert slices["slice_id"].to_list() == [f"1.2.3.{i}" for i in range(20)]
    assert slices["position_mm"].between(-1, 130).all()


def test_a_series_is_judged_by_most_of_its_slices(tmp_path):
    for path in write_series(tmp_path / "plain", 20):
        path.rename(tmp_path / path.name)
    write_slice(tmp_path / "first.dcm", slice_uid="1.2.3.0", position=(0, 0, -5.0), SeriesDescription="BONE")
    choice = plan_of(tmp_path).series_choice
    assert choice["reason"].to_list() == ["plain axial series with spacing nearest 5 mm"]
    assert choice["num_slices"].to_list() == [21]


def two_passes(root, first=16, second=16, shift=0.0, numbers=(1, 2)):
    """One series scanned twice at the same places, the second pass with other pixels."""
    for number, count, start, begin in zip(numbers, (first, second), (0, first), (0.0, shift), strict=True):
        for i in range(count):
            write_slice(
                root / f"{start + i:03d}.dcm",
                np.full((8, 8), 1000 + 100 * (start > 0) + i, np.uint16),
                slice_uid=f"1.2.3.{start + i + 1}",
                position=(0, 0, begin + 5.0 * i),
                AcquisitionNumber=number,
                InstanceNumber=start + i + 1,
            )


def test_of_two_acquisitions_of_the_same_places_one_is_read_and_it_is_said(tmp_path, caplog):
    two_passes(tmp_path)
    with caplog.at_level("WARNING", logger="ichkit"):
        plan = plan_of(tmp_path)
    slices = order_slices(plan.files)[1]
    assert slices["position_mm"].to_list() == [5.0 * i for i in range(16)]
    assert slices["acquisition_number"].to_list() == [2] * 16
    assert plan.rejected["reason"].to_list() == [REPEATED] * 16
    assert "one of several acquisitions of the same places" in caplog.text


def test_an_acquisition_that_was_broken_off_is_not_the_one_that_is_read(tmp_path):
    two_passes(tmp_path, first=16, second=7)
    slices = slices_of(tmp_path)
    assert slices["acquisition_number"].to_list() == [1] * 16


def test_a_repeated_pass_that_was_shifted_a_little_is_found_too(tmp_path):
    two_passes(tmp_path, shift=1.3)
    slices = slices_of(tmp_path)
    assert slices["acquisition_number"].to_list() == [2] * 16
    np.testing.assert_allclose(np.diff(slices["position_mm"]), 5.0)


def test_without_numbers_of_acquisitions_the_passes_are_told_apart_by_the_order_of_instances(tmp_path):
    two_passes(tmp_path, numbers=(1, 1))
    assert slices_of(tmp_path)["instance_number"].to_list() == list(range(17, 33))


def test_acquisitions_of_one_table_place_each_are_one_pass(tmp_path):
    for i in range(20):
        write_slice(
            tmp_path / f"{i}.dcm", slice_uid=f"1.2.3.{i}", position=(0, 0, 5.0 * i), AcquisitionNumber=i // 4 + 1
        )
    assert len(slices_of(tmp_path)) == 20


def test_acquisitions_that_take_turns_along_the_head_are_one_pass(tmp_path):
    for i in range(20):
        write_slice(
            tmp_path / f"{i}.dcm", slice_uid=f"1.2.3.{i}", position=(0, 0, 2.5 * i), AcquisitionNumber=i % 2 + 1
        )
    assert len(slices_of(tmp_path)) == 20


def test_of_two_kernels_inside_one_series_the_soft_one_is_read(tmp_path):
    for kernel, start in (("BONE", 0), ("STANDARD", 20)):
        for i in range(20):
            write_slice(
                tmp_path / f"{start + i}.dcm",
                np.full((8, 8), 1000 + start + i, np.uint16),
                slice_uid=f"1.2.3.{start + i}",
                position=(0, 0, 5.0 * i),
                ConvolutionKernel=kernel,
                InstanceNumber=start + i,
            )
    slices = slices_of(tmp_path)
    assert slices["instance_number"].to_list() == list(range(20, 40))


def test_a_series_that_scans_every_place_many_times_is_a_perfusion_and_not_the_head(tmp_path):
    for turn in range(5):
        for i in range(16):
            n = turn * 16 + i
            write_slice(
                tmp_path / "ctp" / f"{n}.dcm",
                np.full((8, 8), 1000 + n, np.uint16),
                series_uid="1.2.9",
                slice_uid=f"1.2.9.{n}",
                position=(0, 0, 10.0 * i),
                AcquisitionNumber=turn,
            )
    write_series(tmp_path / "plain", 40, gap_mm=4.0)
    choice = plan_of(tmp_path).series_choice.set_index("series_id")
    assert choice["chosen"].to_dict() == {"1.2.3": True, "1.2.9": False}
    assert choice.loc["1.2.9", "reason"] == "perfusion or dynamic: every place was scanned about 5 times"


def test_where_positions_cannot_tell_the_order_is_that_of_the_instances_with_a_warning(tmp_path, caplog):
    # As text, 1.2.3.10 comes before 1.2.3.2; and the files are named against both orders.
    for i in range(12):
        write_slice(
            tmp_path / f"{99 - i}.dcm",
            np.full((8, 8), 1000 + i, np.uint16),
            slice_uid=f"1.2.3.{i + 1}",
            InstanceNumber=i + 1,
        )
    with caplog.at_level("WARNING", logger="ichkit"):
        slices = slices_of(tmp_path)
    assert slices["slice_id"].to_list() == [f"1.2.3.{i + 1}" for i in range(12)]
    assert "all positions are the same, ordered by InstanceNumber" in caplog.text


def test_acquisition_number_breaks_ties_of_the_instances(tmp_path):
    for acquisition, uid in ((2, "1.2.3.1"), (1, "1.2.3.2")):
        write_slice(
            tmp_path / f"{uid}.dcm",
            np.full((8, 8), 1000 + acquisition, np.uint16),
            slice_uid=uid,
            InstanceNumber=7,
            AcquisitionNumber=acquisition,
        )
    assert slices_of(tmp_path)["slice_id"].to_list() == ["1.2.3.2", "1.2.3.1"]


def test_an_instance_number_that_is_no_number_is_no_reason_to_refuse_a_slice(tmp_path):
    path = write_slice(tmp_path / "a.dcm", InstanceNumber=12)
    data = path.read_bytes()
    assert data.count(b"IS\x02\x0012") == 1
    path.write_bytes(data.replace(b"IS\x02\x0012", b"IS\x02\x00x "))
    index = index_of(tmp_path)
    assert index["reason"].to_list() == [""]
    assert index["instance_number"].to_list() == [0]


def test_no_slice_is_lost_where_every_place_is_covered_once():
    files = pd.DataFrame({"study_id": "s", "series_id": "t", "position_mm": np.arange(30) * 0.6, "kind": ""})
    files = files.assign(
        acquisition_number=1, thickness_mm=0.6, instance_number=range(30), frame=0, slice_id=[str(i) for i in range(30)]
    )
    kept, refused = split_repeats(files)
    assert len(kept) == 30
    assert refused.empty


def two_reconstructions(root, thin_shift=0.0):
    """One series with a plain reconstruction of 5 mm and one of 1.25 mm with a bone kernel."""
    write_series(root / "thick", 28)
    for i in range(100):
        write_slice(
            root / "thin" / f"{i:03d}.dcm",
            np.full((8, 8), 1500, np.uint16),
            slice_uid=f"1.2.3.{500 + i}",
            position=(0, 0, 1.25 * i + thin_shift),
            SeriesDescription="BONE",
        )


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_of_two_reconstructions_in_one_series_the_plain_one_is_read_alone(tmp_path, shift):
    two_reconstructions(tmp_path, shift)
    plan = plan_of(tmp_path)
    assert plan.files["position_mm"].to_list() == [5.0 * i for i in range(28)]
    assert plan.rejected["reason"].to_list() == [REPEATED] * 100
    (choice,) = plan.series_choice["reason"]
    assert choice.startswith("plain axial series with spacing nearest 5 mm; one of several acquisitions")


def two_thicknesses(root, shift=0.6, of_thin=(0, 100), of_thick=range(28), **tags):
    """One series of one kernel with slices of 5 mm, and of 1.25 mm that share no position with them."""
    for i in of_thick:
        write_slice(root / f"a{i}.dcm", slice_uid=f"1.2.3.{i}", position=(0, 0, 5.0 * i), SliceThickness=5, **tags)
    for i in range(*of_thin):
        position = (0, 0, 1.25 * i + shift)
        write_slice(root / f"b{i}.dcm", slice_uid=f"1.2.3.{500 + i}", position=position, SliceThickness=1.25, **tags)


def test_slices_of_two_thicknesses_at_alternate_positions_are_two_acquisitions(tmp_path, caplog):
    two_thicknesses(tmp_path)
    with caplog.at_level("WARNING", logger="ichkit"):
        plan = plan_of(tmp_path)
    np.testing.assert_allclose(plan.files["position_mm"], 1.25 * np.arange(100) + 0.6)
    assert plan.rejected["reason"].to_list() == [REPEATED] * 28
    assert "one of several acquisitions of the same places" in caplog.text


def test_a_thickness_that_is_not_in_the_header_or_no_number_tells_nothing_apart(tmp_path):
    two_thicknesses(tmp_path)
    for path in tmp_path.iterdir():
        data, count = re.subn(rb"(\x18\0\x50\0DS\x04\0).{4}", rb"\1 x  ", path.read_bytes())
        assert count == 1
        path.write_bytes(data)
    assert index_of(tmp_path)["thickness_mm"].to_list() == [0.0] * 128
    assert len(plan_of(tmp_path).rejected) == 0


@pytest.mark.parametrize("acquisition", [{}, {"AcquisitionNumber": 2}])
def test_thin_slices_at_the_base_or_in_a_gap_of_thick_ones_are_of_the_same_pass(tmp_path, acquisition):
    two_thicknesses(tmp_path / "base", of_thin=(0, 40), of_thick=range(10, 28), shift=0.0)
    assert len(plan_of(tmp_path / "base").files) == 58
    # Between 50 and 75 mm there are thin slices alone.
    two_thicknesses(tmp_path / "amid", of_thin=(40, 60), of_thick=[*range(11), *range(15, 28)], shift=0.6)
    for path in (tmp_path / "amid").glob("b*"):
        dataset = pydicom.dcmread(path)
        for name, value in acquisition.items():
            setattr(dataset, name, value)
        dataset.save_as(path)
    assert len(plan_of(tmp_path / "amid").files) == 44


def test_thicknesses_that_alternate_in_a_regular_series_are_one_pass(tmp_path):
    for i in range(30):
        thickness = (4.9, 5.1)[i % 2]
        write_slice(tmp_path / f"{i}.dcm", slice_uid=f"1.2.3.{i}", position=(0, 0, 5.0 * i), SliceThickness=thickness)
    assert len(slices_of(tmp_path)) == 30


def test_a_few_slices_with_another_header_belong_to_their_pass(tmp_path):
    for i in range(30):
        name = {"SeriesDescription": "WITH CONTRAST"} if 10 <= i < 15 else {}
        z = 2.5 * i if i < 12 else 5.0 * i - 30
        write_slice(tmp_path / f"{i}.dcm", slice_uid=f"1.2.3.{i + 1}", position=(0, 0, z), **name)
    assert len(slices_of(tmp_path)) == 30


def test_frames_of_one_file_at_one_place_are_passes_in_the_order_of_the_frames():
    frames = np.arange(36)
    files = pd.DataFrame(
        {"study_id": "1", "series_id": "1", "kind": "", "frame": frames, "position_mm": 10.0 * (frames % 3)}
    )
    files = files.assign(
        acquisition_number=1, thickness_mm=0.0, instance_number=1, slice_id=[f"1.{frame + 1}" for frame in frames]
    )
    kept, _ = split_repeats(files)
    assert kept["frame"].to_list() == [33, 34, 35]
