"""Real scans against pydicom's own pixels and rescale; skipped without ICHKIT_REAL_DATA."""

import numpy as np
import pydicom
import pytest
from support.dicoms import read_header
from support.encodings import HULL, decode_folder

from ichkit.imaging.hounsfield import has_decoder
from ichkit.sources.files import scan_files
from ichkit.sources.folder import plan_folder
from ichkit.sources.index import read_index, refuse_raw
from ichkit.sources.plan import StudyTasks, order_slices
from ichkit.sources.study import PixelSettings, decode_study


def reference(path):
    """HU as pydicom and its rescale give them, padding as air, clipped."""
    dataset = pydicom.dcmread(path)
    hounsfield = np.rint(
        dataset.pixel_array.astype(np.int64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    )
    if "PixelPaddingValue" in dataset:
        value = int(dataset.PixelPaddingValue)
        hounsfield[np.isin(dataset.pixel_array, [value, value - 65536])] = HULL[0]
    return np.clip(hounsfield, *HULL)


@pytest.mark.parametrize("name", ["ge_head_tilt", "cq500_scan"])
def test_a_real_scan_is_that_of_pydicom_pixel_for_pixel(real_data, name):
    root = real_data / name
    if not has_decoder(pydicom.uid.JPEGLosslessSV1):
        pytest.skip("no decoder of JPEG Lossless (extra dicom)")
    index = refuse_raw(read_index(scan_files(root)[0], None))
    scans = index[index["relative"].str.endswith(".dcm")].reset_index(drop=True)
    assert set(scans["reason"]) == {""}
    for path in sorted(root.glob("*.dcm")):
        data = path.read_bytes()
        header = read_header(data)
        assert header.turn == 0
    plan = plan_folder(scans, b"salt")
    files = order_slices(plan.files.assign(slab=range(len(plan.files))))[0]
    tasks = StudyTasks(files, PixelSettings(False, HULL, None, judges_hu=True))
    for position in range(len(tasks)):
        study = decode_study(tasks[position])
        assert study.failures == []
        rows = tasks.rows(position)["container"]
        for slice_hu, path in zip(study.volume, rows, strict=True):
            np.testing.assert_array_equal(slice_hu, reference(path))


def test_a_real_mr_volume_is_refused_by_its_side_file_or_for_its_values(real_data, tmp_path):
    pytest.importorskip("nibabel")
    volumes = sorted((real_data / "isles22").glob("*.nii.gz"))
    index = read_index(scan_files(real_data / "isles22")[0], None).set_index("relative")["reason"]
    sided = [path.name for path in volumes if path.with_name(path.name[: -len(".nii.gz")] + ".json").exists()]
    assert sided
    assert {index[name] for name in sided} == {"not CT"}
    for path in volumes:
        (tmp_path / path.name).symlink_to(path)
    studies = decode_folder(tmp_path, judges_hu=True)
    assert len(studies) == len(volumes)
    for study in studies:
        assert study.kept == []
        assert all(why.startswith("not HU of a head") for *_, why in study.failures)
