"""AISD on a made-up tree of its layout: labels of slices and of regions from masks, cases that do not fit."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from ichkit import prepare, write_phantom
from ichkit.core.config import load_config
from ichkit.core.errors import DataError
from ichkit.core.tasks import find_task
from ichkit.imaging.head_box import Box
from ichkit.imaging.parts import Cut
from ichkit.sources.aisd import label_parts
from ichkit.sources.external import ExternalSet

CONFIG = ("prepare.workers=1", "prepare.num_folds=2", "prepare.size=32")
CATEGORIES = find_task("ischemia").categories


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A phantom as training data, and its other site in the layout of AISD; the last case lacks a mask."""
    root = tmp_path_factory.mktemp("aisd")
    options = {"kind": "ischemia", "difficulty": "noise-free", "studies": 4, "test_studies": 4, "size": 128}
    write_phantom(root / "phantom", **options, workers=1, keep_masks=True)
    studies = json.loads((root / "phantom" / "site" / "phantom.json").read_text())["studies"]
    for number, study in enumerate(studies):
        case = f"00{91460 + number}"
        drawn = root / "phantom" / "site" / f"{study['index']:05d}"
        shutil.copytree(drawn, root / "aisd" / f"dicom-{number % 2}" / case / "CT")
        masks = np.load(root / "phantom" / "masks" / "site" / f"{study['index']:05d}.npz")
        folder = root / "aisd" / "mask" / case
        folder.mkdir(parents=True)
        for k, name in enumerate(study["slice_ids"][: -1 if number == 3 else None]):
            cv2.imwrite(str(folder / f"{k:03d}.png"), masks[name] & 1)
    return root, studies


def run(root, work, labels=None, aisd=None, more=()):
    """Prepares the phantom with AISD as external set; returns its slices, its studies and all rejected files."""
    scans = root / "phantom" / "scans"
    prepare(
        work,
        load_config("aspects2020-demo", (*CONFIG, *more)),
        source="folder",
        folder=scans,
        labels=labels or scans / "regions.csv",
        external=(ExternalSet("aisd", aisd or root / "aisd"),),
    )
    tables = [pd.read_parquet(work / "prepared" / f"{name}.parquet") for name in ("slices", "studies")]
    slices, found = (table[table.dataset == "aisd"] for table in tables)
    return slices, found, pd.read_csv(work / "prepared" / "rejected.csv")


def test_regions_have_the_labels_of_their_masks_and_a_case_without_all_masks_is_rejected(tree, tmp_path):
    root, studies = tree
    _, found, rejected = run(root, tmp_path / "work")
    expected = {}
    for study in studies[:3]:
        early = {
            f"{one['side']}-{one['region']}" for one in study["findings"] if CATEGORIES[one["category"]]["early"] == 1
        }
        expected[study["study_id"]] = early
    assert len(found) == 3 * 28
    of_study = found.assign(study=found.study_id.str.rpartition(":")[0], part=found.study_id.str.rpartition(":")[2])
    for study, own in of_study.groupby("study"):
        assert set(own.part[own.early == 1]) == expected[study]
    assert found.old.isna().all()
    lost = rejected[rejected.dataset == "aisd"]
    assert lost.reason.str.contains("29 masks for 30 slices").sum() == 30


def test_a_case_stored_upside_down_has_the_same_labels_on_the_same_sides(tree, tmp_path):
    root, _ = tree
    _, expected, _ = run(root, tmp_path / "as drawn")
    turned = shutil.copytree(root / "aisd", tmp_path / "aisd")
    for path in turned.glob("dicom-?/*/CT/*.dcm"):
        file = pydicom.dcmread(path)
        span = np.array([*file.PixelSpacing][::-1]) * (np.array([file.Columns, file.Rows]) - 1)
        far = np.array(file.ImagePositionPatient) + np.append(span, 0.0)
        file.ImagePositionPatient, file.ImageOrientationPatient = far.round(6).tolist(), [-1, 0, 0, 0, -1, 0]
        file.PixelData = np.ascontiguousarray(file.pixel_array[::-1, ::-1]).tobytes()
        file.save_as(path)
    for path in turned.glob("mask/*/*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[::-1, ::-1])
    _, found, _ = run(root, tmp_path / "turned", aisd=turned)
    pd.testing.assert_series_equal(*(one.set_index("study_id").early.sort_index() for one in (found, expected)))


def test_slices_have_the_labels_of_their_masks_where_studies_stay_whole(tree, tmp_path):
    root, studies = tree
    scans = json.loads((root / "phantom" / "scans" / "phantom.json").read_text())["studies"]
    labels = pd.DataFrame({"study_id": [one["study_id"] for one in scans], "early": [0, 1, 0, 1], "old": [0, 0, 1, 1]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    slices, _, _ = run(root, tmp_path / "work", tmp_path / "labels.csv", more=("prepare.parts=whole",))
    found = slices.set_index("slice_id").early
    for study in studies[:3]:
        masks = np.load(root / "phantom" / "masks" / "site" / f"{study['index']:05d}.npz")
        for name in study["slice_ids"]:
            area = (masks[name] & 1).sum()
            if area == 0 or area > 40:  # pixels are larger than a square millimetre
                assert found[name] == int(area > 0)
    assert found.sum() > 0


def test_a_region_counts_from_a_share_in_one_slice_on():
    mask = np.zeros((2, 10, 10), bool)
    cut = Cut("left-M1", (0, 1), Box(0, 0, 10, 10))
    mask[1, :4] = True
    assert label_parts([cut], mask) == {"left-M1": 1}
    mask[1, 3, 9] = False
    assert label_parts([cut], mask) == {"left-M1": 0}


def test_a_folder_of_something_else_is_refused_with_the_layout(tree, tmp_path):
    root, _ = tree
    with pytest.raises(DataError, match="aisd: no case among .*mask/CASE"):
        run(root, tmp_path / "work", aisd=root / "phantom" / "site")
