"""Which series of a study is read: what speaks against one, what is taken where nothing passes, heads in two series."""

import io

import numpy as np
import pandas as pd
import pydicom
import pytest
from support.dicoms import write_series, write_slice
from support.indexes import plan_of, slices_of

from ichkit.core.tasks import find_task
from ichkit.sources.cq500 import read_majority
from ichkit.sources.files import FileRef
from ichkit.sources.plan import order_slices

TASK = find_task("hemorrhage")
HEAD = "1.2.3.1"


def write(root, uid, num=32, gap=5.0, start=0.0, **tags):
    """One series of the study 1.2 from `start` on."""
    paths = write_series(root / uid, num, gap, series_uid=uid, **tags)
    if start:
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.ImagePositionPatient = [0, 0, float(dataset.ImagePositionPatient[2]) + start]
            dataset.save_as(path)


def chosen(root):
    choice = plan_of(root).series_choice
    return choice.loc[choice["chosen"], "series_id"].to_list(), choice.set_index("series_id")["reason"]


@pytest.mark.parametrize(
    "better",
    [
        (
            {"SeriesDescription": "AX HEAD WITHOUT CONTRAST"},
            {"SeriesDescription": "BONE 1.25", "gap": 1.25, "num": 128},
        ),
        ({"ConvolutionKernel": "H31s"}, {"ConvolutionKernel": "H60s", "num": 33}),
        ({"ConvolutionKernel": ["Hr38f", "3"]}, {"ConvolutionKernel": ["Hr60f", "3"], "num": 33}),
        ({"ConvolutionKernel": "UB"}, {"ConvolutionKernel": "YD", "num": 33}),
        ({"ConvolutionKernel": "FC21"}, {"ConvolutionKernel": "FC81", "num": 33}),
        ({"BodyPartExamined": "HEAD"}, {"BodyPartExamined": "ABDOMEN", "num": 40}),
        ({}, {"num": 120}),  # 595 mm: not a head alone
        ({"ContrastBolusAgent": "NONE"}, {"ContrastBolusAgent": "Omnipaque", "num": 33}),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}, {"SeriesDescription": "BONE", "num": 33}),
        ({"SeriesDescription": "LOW DOSE HEAD"}, {"SeriesDescription": "CTA HEAD", "num": 33}),
    ],
)
def test_the_plain_head_is_chosen_beside_a_series_that_is_none(tmp_path, better):
    for uid, tags in zip((HEAD, "1.2.3.2"), better, strict=True):
        write(tmp_path, uid, **tags)
    assert chosen(tmp_path)[0] == [HEAD]


FALLEN = [
    ("few slices", {"num": 4}),
    ("contrast", {"SeriesDescription": "POST CONTRAST"}),
    ("bone", {"ConvolutionKernel": "BONE", "num": 33}),
    ("another body part", {"SeriesDescription": "NECK", "num": 50}),
]


@pytest.mark.parametrize("first", range(len(FALLEN)))
def test_where_nothing_passes_the_reason_that_weighs_least_decides_and_not_the_coverage(tmp_path, caplog, first):
    left = FALLEN[first:]
    for number, (_, tags) in enumerate(left):
        write(tmp_path, f"1.2.3.{9 - number}", **tags)
    with caplog.at_level("WARNING", logger="ichkit"):
        took, why = chosen(tmp_path)
    assert took == ["1.2.3.9"]
    assert why[took[0]].startswith("fallback: axial, although ")
    assert f"fallback: axial, although {why[took[0]].split('although ')[1]}" in caplog.text
    assert why[took[0]].count("1 (") == len(left) - 1


def test_inside_a_rank_the_series_that_covers_most_is_taken(tmp_path):
    write(tmp_path, "1.2.3.1", num=20, SeriesDescription="POST CONTRAST")
    write(tmp_path, "1.2.3.2", num=30, SeriesDescription="POST CONTRAST")
    assert chosen(tmp_path)[0] == ["1.2.3.2"]


def test_a_study_without_an_axial_series_is_said(tmp_path, caplog):
    write_series(tmp_path, 20, orientation=(0, 1, 0, 0, 0, -1))
    with caplog.at_level("WARNING", logger="ichkit"):
        assert chosen(tmp_path)[0] == []
    assert "study 1 of 1 found: no axial series of slices; not used: 1" in caplog.text


def test_base_and_vertex_in_two_series_are_one_head_from_the_feet_up(tmp_path, caplog):
    # The vertex has the smaller id: parts of a head follow each other by position, not by series.
    write(tmp_path, "1.2.3.2", num=20, gap=2.5, SeriesDescription="POSTERIOR FOSSA")
    write(tmp_path, "1.2.3.1", num=20, gap=5.0, start=50.0, SeriesDescription="SUPRATENTORIAL")
    with caplog.at_level("WARNING", logger="ichkit"):
        slices = slices_of(tmp_path)
    assert slices["position_mm"].to_list() == [2.5 * i for i in range(20)] + [50 + 5.0 * i for i in range(20)]
    assert slices["slice_index"].to_list() == list(range(40))
    assert slices["series_id"].to_list() == ["1.2.3.2"] * 20 + ["1.2.3.1"] * 20
    assert "one of two series with half of the head each" in caplog.text


def test_thin_halves_are_averaged_each_by_itself(tmp_path):
    write(tmp_path, "1.2.3.1", num=64, gap=1.25)
    write(tmp_path, "1.2.3.2", num=14, gap=5.0, start=80.0)
    files, slices = order_slices(plan_of(tmp_path).files)
    assert len(files) == 78
    assert slices["series_id"].to_list() == ["1.2.3.1"] * 16 + ["1.2.3.2"] * 14
    assert (np.diff(slices["position_mm"]) > 0).all()


def test_where_halves_overlap_a_place_is_read_once(tmp_path):
    write(tmp_path, "1.2.3.1", num=20, gap=2.5)
    write(tmp_path, "1.2.3.2", num=22, gap=5.0, start=40.0)
    plan = plan_of(tmp_path)
    positions = order_slices(plan.files)[1]["position_mm"]
    assert positions.is_unique
    assert positions.to_list() == [2.5 * i for i in range(16)] + [40 + 5.0 * i for i in range(22)]
    assert plan.rejected["reason"].to_list() == ["the other half of the head covers the same positions"] * 4


def test_a_half_that_does_not_fit_is_said_to_be_missing(tmp_path, caplog):
    write(tmp_path, "1.2.3.1", num=20, gap=2.5, spacing=(0.4, 0.4))
    write(tmp_path, "1.2.3.2", num=20, gap=5.0, start=50.0)
    with caplog.at_level("WARNING", logger="ichkit"):
        took, why = chosen(tmp_path)
    assert took == ["1.2.3.2"]
    assert why["1.2.3.2"].endswith("half of the head may be in another series, which is not used")
    assert "half of the head may be in another series" in caplog.text


def test_a_spine_below_the_head_is_no_half_of_it(tmp_path):
    write(tmp_path, HEAD)
    write(tmp_path, "1.2.3.2", num=66, gap=3.0, start=-200.0)
    assert chosen(tmp_path)[0] == [HEAD]


def test_a_slab_has_the_name_and_the_place_of_its_middle_slice(tmp_path):
    write_series(tmp_path, 160, gap_mm=1.0)
    files, slices = order_slices(plan_of(tmp_path).files)
    assert files.groupby("slab").size().to_list() == [5] * 32
    assert slices["slice_id"].to_list() == [f"1.2.3.{5 * i + 3}" for i in range(32)]
    assert slices["position_mm"].to_list() == [5.0 * i + 2 for i in range(32)]


def test_any_of_cq500_comes_from_the_ich_columns_and_from_no_subtype(tmp_path):
    words = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")
    # Study 1: ICH by two readers who do not agree on where. Study 2: two readers see IPH, one of them no ICH.
    ones = {1: {"R1:ICH", "R2:ICH", "R1:IPH", "R2:SAH"}, 2: {"R1:IPH", "R2:IPH", "R1:ICH"}}
    reads = [
        {"name": f"CQ500-CT-{n}", **{f"R{r}:{w}": int(f"R{r}:{w}" in marked) for r in (1, 2, 3) for w in words}}
        for n, marked in ones.items()
    ]
    buffer = io.StringIO()
    pd.DataFrame(reads).to_csv(buffer, index=False)
    path = tmp_path / "reads.csv"
    path.write_text(buffer.getvalue())
    table, _ = read_majority(FileRef(path.name, str(path), path.stat().st_size, -1, 0, 0), TASK)
    assert table.set_index("study_id")["any"].to_dict() == {"CQ500-CT-1": 1, "CQ500-CT-2": 0}
    assert table.set_index("study_id")["intraparenchymal"].to_dict() == {"CQ500-CT-1": 0, "CQ500-CT-2": 1}
    assert table.set_index("study_id")["subarachnoid"].to_dict() == {"CQ500-CT-1": 0, "CQ500-CT-2": 0}


def test_two_series_with_every_other_slice_are_one_head_and_it_is_said(tmp_path, caplog):
    write(tmp_path, HEAD, num=16, gap=10.0)
    write(tmp_path, "1.2.3.2", num=16, gap=10.0, start=5.0)
    slices = slices_of(tmp_path)
    assert slices["position_mm"].to_list() == [5.0 * i for i in range(32)]
    assert slices["series_id"].to_list() == [HEAD, "1.2.3.2"] * 16
    assert "one of two interleaved series, each with every other slice of the head" in caplog.text


@pytest.mark.parametrize(("gap", "start"), [(10.0, 1.0), (5.0, 2.5)])
def test_a_second_scan_of_the_same_head_is_not_put_between_the_slices_of_the_first(tmp_path, gap, start):
    num = round(160 / gap)
    write(tmp_path, HEAD, num=num, gap=gap)
    write(tmp_path, "1.2.3.2", num=num, gap=gap, start=start)
    assert chosen(tmp_path)[0] == [HEAD]


@pytest.mark.parametrize(
    ("first", "second", "is_joined"), [("1.9", "1.9", True), ("1.9", "", True), ("1.9", "1.8", False)]
)
def test_halves_are_joined_in_one_frame_of_reference_alone(tmp_path, caplog, first, second, is_joined):
    write(tmp_path, HEAD, num=16, FrameOfReferenceUID=first)
    write(tmp_path, "1.2.3.2", num=16, start=80.0, FrameOfReferenceUID=second)
    assert len(slices_of(tmp_path)) == (32 if is_joined else 16)
    assert ("half of the head may be in another series" in caplog.text) != is_joined


@pytest.mark.parametrize("tags", [{"intercept": 0}, {"slope": 0.001}])
def test_where_the_best_series_holds_no_hu_of_a_head_the_next_is_taken_and_it_is_said(tmp_path, caplog, tags):
    write(tmp_path, HEAD, **tags)
    write(tmp_path, "1.2.3.2", gap=4.0)
    names, reasons = chosen(tmp_path)
    assert names == ["1.2.3.2"]
    assert reasons[HEAD].startswith("values that are not HU of a head")
    assert "skipped: a series with values that are not HU of a head" in caplog.text


def test_a_series_whose_pixels_cannot_be_read_is_passed_over_too(tmp_path):
    write(tmp_path, HEAD)
    write(tmp_path, "1.2.3.2", gap=4.0)
    for path in (tmp_path / HEAD).iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no picture"])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    assert chosen(tmp_path)[0] == ["1.2.3.2"]


def test_a_head_without_hu_is_not_replaced_by_another_part_of_the_body(tmp_path):
    write(tmp_path, HEAD, intercept=0)
    write(tmp_path, "1.2.3.2", SeriesDescription="CHEST")
    assert chosen(tmp_path)[0] == [HEAD]  # and refused where its pixels are read


def test_files_that_have_a_series_uid_of_their_own_each_are_one_series(tmp_path, caplog):
    for i in range(24):
        write(tmp_path, f"1.2.3.{i + 1}", num=1, start=5.0 * i)
    slices = slices_of(tmp_path)
    assert slices["position_mm"].to_list() == [5.0 * i for i in range(24)]
    assert len(set(slices["series_id"])) == 1
    assert "24 files each have their own SeriesInstanceUID" in caplog.text


def test_a_few_single_images_stay_series_of_their_own(tmp_path):
    write(tmp_path, HEAD)
    for i in range(5):
        write(tmp_path, f"1.2.3.{i + 2}", num=1, start=200.0 + 5 * i)
    assert len(slices_of(tmp_path)) == 32


@pytest.mark.parametrize(("num", "is_said"), [(1, False), (8, True)])
def test_where_many_slices_of_another_orientation_are_left_out_it_is_a_warning(tmp_path, caplog, num, is_said):
    write(tmp_path, HEAD)
    write(tmp_path / "more", HEAD, num=num, start=400.0, orientation=(1, 0, 0, 0, 0.6, 0.8))
    assert len(slices_of(tmp_path)) == 32
    assert (f"{num} slices of another orientation are left out" in caplog.text) == is_said


@pytest.mark.parametrize(
    ("missing", "is_said"), [((), False), ((0, 1), False), ((9,), True), ((9, 10, 11), True), ((7, 20), True)]
)
def test_slices_that_are_missing_inside_a_series_are_a_warning(tmp_path, caplog, missing, is_said):
    for i, path in enumerate(write_series(tmp_path, 32)):
        if i in missing:
            path.unlink()
    with caplog.at_level("WARNING", logger="ichkit"):
        reason = plan_of(tmp_path).series_choice["reason"].item()
    width = 5 + 5 * (3 if 10 in missing else 1)
    assert (f"slices may be missing: two neighbours are apart by {width} mm" in reason) == is_said
    assert ("slices may be missing" in caplog.text) == is_said


def test_a_spacing_that_changes_along_the_head_is_no_missing_slice(tmp_path):
    for i in range(24):
        z = 2.5 * i if i < 12 else 27.5 + 8.0 * (i - 11)
        write_slice(tmp_path / f"{i}.dcm", slice_uid=f"1.2.3.{i}", position=(0, 0, z))
    assert plan_of(tmp_path).series_choice["reason"].to_list() == ["plain axial series with spacing nearest 5 mm"]


def write_anonymised(root, num=24, patient="P1", **tags):
    """A head of which every file has UIDs of its own, but for those given."""
    for i in range(num):
        own = {f"{name}_uid": f"{patient[1:]}.{number}.{i}" for number, name in enumerate(("study", "series", "slice"))}
        write_slice(root / f"{(7 * i) % 101:03d}.dcm", position=(0, 0, 5.0 * i), patient_id=patient, **own | tags)


@pytest.mark.parametrize("shared", ["", "series_uid", "FrameOfReferenceUID"])
def test_files_that_have_a_study_uid_of_their_own_each_are_one_study(tmp_path, caplog, shared):
    for patient in ("P1", "P2"):
        # What files share tells heads apart even in one folder; without it the folder does.
        folder = tmp_path / (patient if not shared else "all")
        write_anonymised(folder / patient, patient=patient, **({shared: f"1.2.3.{patient[1:]}"} if shared else {}))
    slices = slices_of(tmp_path)
    assert slices["position_mm"].to_list() == [5.0 * i for i in range(24)] * 2
    assert slices["study_id"].nunique() == slices["patient_id"].nunique() == 2
    assert "48 files each have their own StudyInstanceUID" in caplog.text


def test_two_scans_of_one_patient_in_one_folder_with_uids_of_their_own_stay_apart(tmp_path):
    write_anonymised(tmp_path)
    for path in list(tmp_path.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID += ".5"
        dataset.SOPInstanceUID += ".5"
        dataset.save_as(path.with_suffix(".second"))
    # Which slice belongs to which scan cannot be told: each stays alone rather than in a mixture.
    assert slices_of(tmp_path)["study_id"].nunique() == 48


def test_single_slices_of_many_people_stay_studies_of_their_own(tmp_path):
    for i, z in enumerate(np.random.default_rng(0).uniform(0, 150, 24)):
        uids = {"study_uid": f"1.2.8.{i}", "series_uid": f"1.2.9.{i}", "slice_uid": f"1.2.10.{i}"}
        write_slice(tmp_path / f"{i}.dcm", position=(0, 0, z), patient_id="anonymous", **uids)
    assert slices_of(tmp_path)["study_id"].nunique() == 24


def test_every_file_of_a_study_without_a_series_to_use_is_rejected_with_the_reason_of_its_series(tmp_path):
    write(tmp_path / "head", HEAD, study_uid="1.2")
    write(tmp_path / "coronal", "1.2.3.2", study_uid="1.9", num=20, orientation=(1, 0, 0, 0, 0, -1))
    write(tmp_path / "scout", "1.2.3.3", study_uid="1.9", num=2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    rejected = plan_of(tmp_path).rejected
    assert rejected["reason"].value_counts().to_dict() == {"not axial": 20, "localizer": 2}
    assert set(rejected["study_id"]) == {"1.9"}
