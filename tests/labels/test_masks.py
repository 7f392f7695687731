"""`labels masks`: areas of NIfTI masks to labels, with the ids that `prepare` gives the same scans."""

import numpy as np
import pandas as pd
import pytest
from support.commands import call
from support.dicoms import write_slice
from support.simulated import TASK

from ichkit.sources.labels import read_folder_labels

nibabel = pytest.importorskip("nibabel")
AFFINE = np.diag([-0.8, -0.5, 5.0, 1.0])  # columns to the left, rows to the back, slices to the head


def write_mask(path, volume, axes="LPS", affine=AFFINE):
    """A (columns, rows, slices) mask, its axes stored in another order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume.astype(np.int16), affine, dtype=np.int16)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("LPS"), nibabel.orientations.axcodes2ornt(axes)
    )
    nibabel.save(image.as_reoriented(turn), path)


def drawn():
    """Four slices: nothing, 3 pixels of value 1, 5 pixels of value 2, both."""
    volume = np.zeros((12, 16, 4))
    volume[0, :3, 1], volume[1, :5, 2], volume[2, :4, 3], volume[3, :6, 3] = 1, 2, 1, 2
    return volume


def labels_of(path):
    table, key = read_folder_labels(path, TASK)
    return table.set_index(key)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SPL", "LAI"])
def test_the_slices_of_a_mask_are_labelled_from_the_feet_whatever_its_axes(tmp_path, axes):
    write_mask(tmp_path / "masks" / "case_seg.nii.gz", drawn(), axes)
    values = "1=epidural,2=subdural,3=intraparenchymal,4=intraventricular,5=subarachnoid"
    call("labels", "masks", tmp_path / "masks", "--values", values, "--out", tmp_path / "labels.csv")
    found = labels_of(tmp_path / "labels.csv")
    assert list(found.index) == ["case.1", "case.2", "case.3", "case.4"]
    assert found["epidural"].tolist() == [0, 1, 0, 1]
    assert found["subdural"].tolist() == [0, 0, 1, 1]
    assert found["any"].tolist() == [0, 1, 1, 1]
    assert found[["intraparenchymal", "intraventricular", "subarachnoid"]].eq(0).all(axis=None)


def test_a_small_area_does_not_count_and_studies_are_the_highest_slice(tmp_path):
    write_mask(tmp_path / "masks" / "case_mask.nii", drawn())
    values = "1=epidural,2=subdural,3=intraparenchymal,4=intraventricular,5=subarachnoid"
    # A pixel is 0.4 mm2: 3 pixels are 1.2, 4 are 1.6, 5 are 2.0, 6 are 2.4.
    asked = ("labels", "masks", tmp_path / "masks", "--values", values, "--level", "study")
    for area, epidural, subdural in ((1.5, 1, 1), (1.7, 0, 1), (2.5, 0, 0)):
        out = tmp_path / f"{area}.csv"
        call(*asked, "--min-area", area, "--out", out)
        found = labels_of(out)
        assert list(found.index) == ["case"]
        assert found.loc["case", ["epidural", "subdural", "any"]].tolist() == [epidural, subdural, epidural | subdural]


def test_the_smallest_area_counts_itself(tmp_path):
    write_mask(tmp_path / "masks" / "case.nii", drawn())
    asked = ("labels", "masks", tmp_path / "masks", "--values", "1=any,2=any", "--min-area", 2.0)
    call(*asked, "--out", tmp_path / "labels.csv")
    # 5 pixels of 0.4 mm2 on the third slice; 3 on the second; 4 and 6, which are one class here, on the last.
    assert labels_of(tmp_path / "labels.csv")["any"].tolist() == [0, 0, 1, 1]


def test_one_value_for_any_blood_leaves_the_subtypes_of_positive_slices_open(tmp_path):
    write_mask(tmp_path / "masks" / "case.nii", drawn() > 0)
    call("labels", "masks", tmp_path / "masks", "--values", "1=any", "--out", tmp_path / "labels.csv")
    found = labels_of(tmp_path / "labels.csv")
    assert found["any"].tolist() == [0, 1, 1, 1]
    assert found[list(TASK.subtypes)].isna().all(axis=1).tolist() == [False, True, True, True]


def test_a_class_that_was_not_drawn_is_unknown_and_so_is_any_where_nothing_was_found(tmp_path):
    write_mask(tmp_path / "masks" / "case.nii", drawn())
    call(
        "labels",
        "masks",
        tmp_path / "masks",
        "--values",
        "1=none",
        "--values",
        "2=subdural",
        "--out",
        tmp_path / "l.csv",
    )
    found = labels_of(tmp_path / "l.csv")
    assert found["subdural"].tolist() == [0, 0, 1, 1]
    assert found["any"].isna().tolist() == [True, True, False, False]
    assert found["epidural"].isna().all()


def write_scan(root, study, num_slices=4, series="", gap_mm=5.0):
    series = series or f"{study}.1"
    for i in range(num_slices):
        place = {"position": (0, 0, gap_mm * i), "spacing": (0.5, 0.8)}
        uids = {"slice_uid": f"{series}.{i}", "series_uid": series, "study_uid": study}
        write_slice(root / f"{series}_{9 - i}.dcm", np.full((16, 12), 1064, np.uint16), **uids, **place)


def test_a_mask_of_a_dicom_scan_gives_the_uids_of_the_slices_at_its_positions(tmp_path):
    write_scan(tmp_path / "scans" / "P7", "1.5")
    write_scan(tmp_path / "scans" / "P7", "1.5", num_slices=8, series="1.5.2", gap_mm=2.5)
    write_mask(tmp_path / "masks" / "P7_seg.nii.gz", drawn(), "RAS")
    asked = ("labels", "masks", tmp_path / "masks", "--values", "1=any,2=any", "--scans", tmp_path / "scans")
    call(*asked, "--out", tmp_path / "slices.csv")
    found = labels_of(tmp_path / "slices.csv")
    assert found["any"].to_dict() == {"1.5.1.0": 0, "1.5.1.1": 1, "1.5.1.2": 1, "1.5.1.3": 1}
    call(*asked, "--level", "study", "--out", tmp_path / "studies.csv")
    assert labels_of(tmp_path / "studies.csv")["any"].to_dict() == {"1.5": 1}


@pytest.mark.parametrize(
    ("shift_mm", "num_slices", "message"),
    [(2.0, 4, "slices up to 2.0 mm from those of the scan"), (0.0, 5, "4 slices, but 5 in the scan")],
)
def test_a_mask_of_another_series_is_refused_by_its_number(tmp_path, shift_mm, num_slices, message):
    write_scan(tmp_path / "scans" / "Anna", "1.5", num_slices)
    affine = AFFINE.copy()
    affine[2, 3] = shift_mm
    write_mask(tmp_path / "masks" / "Anna.nii", drawn(), affine=affine)
    asked = ("labels", "masks", tmp_path / "masks", "--values", "1=any,2=any", "--scans", tmp_path / "scans")
    printed = call(*asked, "--out", tmp_path / "labels.csv", code=2)
    assert f"number 1 of 1 by name: {message}" in printed
    assert "Anna" not in printed.replace(str(tmp_path), "")
    assert not (tmp_path / "labels.csv").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("1=epidural", "values 2 of the mask are not named"),
        ("1=epidurl,2=any", 'unknown class "epidurl"'),
        ("0=any", "expected VALUE=CLASS"),
        ("1=any,1=subdural", "1 is named twice"),
        ("1=none", "expected the class of each value"),
    ],
)
def test_values_that_do_not_fit_are_refused(tmp_path, values, message):
    write_mask(tmp_path / "masks" / "case.nii", drawn())
    printed = call("labels", "masks", tmp_path / "masks", "--values", values, "--out", tmp_path / "l.csv", code=2)
    assert message in printed


def test_labels_that_exist_are_never_replaced(tmp_path):
    write_mask(tmp_path / "masks" / "case.nii", drawn())
    by_hand = pd.DataFrame({"slice_id": ["case.1"]})
    by_hand.to_csv(tmp_path / "labels.csv", index=False)
    asked = ("labels", "masks", tmp_path / "masks", "--values", "1=any,2=any", "--out", tmp_path / "labels.csv")
    assert "expected no file" in call(*asked, code=2)
    assert pd.read_csv(tmp_path / "labels.csv").equals(by_hand)
