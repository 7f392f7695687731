"""`prepare.crop: head`: the store against the uncropped one, its table, its audit, resuming, and other settings."""

import base64
import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from support.commands import do, phantom_options
from support.dicoms import write_series, write_slice
from support.indexes import plan_of

from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.progress import StopFlag, Stopped
from ichkit.core.tasks import find_task
from ichkit.imaging.head_box import Box, find_head_box
from ichkit.imaging.store import Prepared
from ichkit.sources.plan import StudyTasks, order_slices
from ichkit.sources.study import PixelSettings, decode_study
from ichkit.stages.prepare import run as prepare
from ichkit.stages.prepare.crop_audit import describe_crops, measure_crops, pick_extremes
from ichkit.work.artifacts import find_damage, read_manifest
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import CROPS

TASK = find_task("hemorrhage")


def with_prepare(config, **values):
    return config.model_copy(update={"prepare": config.prepare.model_copy(update=values)})


def store(work):
    return Prepared.open(work.prepared, TASK)


def digests(work):
    return {name: item.sha256 for name, item in read_manifest(work.prepared).files.items()}


@pytest.fixture(scope="module")
def cropping(tiny_config):
    return with_prepare(tiny_config, crop="head")


@pytest.fixture(scope="module")
def cropped(phantom_root, cropping, tmp_path_factory):
    """The phantom's store with the crop; never written to."""
    work = WorkFolder(tmp_path_factory.mktemp("cropped"))
    do(prepare, cropping, work, phantom_options(phantom_root))
    return work


def test_every_volume_is_the_one_box_of_its_study_cut_out_of_all_slices(cropped, prepared_once):
    whole, part = store(prepared_once), store(cropped)
    volumes = whole.slices.drop_duplicates(["dataset", "study_id"]).set_index(["dataset", "study_id"])["volume"]
    crops = part.crops()
    assert crops.dtypes.astype(str).to_dict() == CROPS
    assert set(zip(crops["dataset"], crops["study_id"], strict=True)) == set(volumes.index)
    assert set(crops["volume"]) == set(part.slices["volume"])
    assert crops["is_found"].all()
    for row in crops.to_dict("records"):
        volume = whole.read_volume(volumes[row["dataset"], row["study_id"]])
        box = find_head_box(volume, (row["spacing_row_mm"], row["spacing_col_mm"]))
        assert (box.top, box.left, box.height, box.width) == tuple(row[k] for k in ("top", "left", "height", "width"))
        assert volume.shape[1:] == (row["rows"], row["columns"])
        np.testing.assert_array_equal(part.read_volume(row["volume"]), box.cut(volume))
    assert (crops["height"] < crops["rows"]).mean() > 0.5


def test_the_other_tables_are_those_of_the_whole_pictures(cropped, prepared_once):
    whole, part = store(prepared_once), store(cropped)
    pd.testing.assert_frame_equal(part.slices.drop(columns="volume"), whole.slices.drop(columns="volume"))
    pd.testing.assert_frame_equal(part.slice_facts(), whole.slice_facts())
    first = whole.slices.drop_duplicates(["dataset", "study_id"])
    sizes = part.crops().merge(first, on=["dataset", "study_id"], suffixes=("", "_source"))
    np.testing.assert_allclose(sizes["spacing_row_mm"], sizes["spacing_row_mm_source"])


def test_a_store_without_a_crop_says_nothing_of_it(prepared_once):
    prepared = store(prepared_once)
    assert "steps" not in prepared.manifest.settings
    assert "crop" not in prepared.manifest.facts
    assert "crops.parquet" not in prepared.manifest.files
    assert prepared.steps == ()
    assert prepared.crops().empty
    assert prepared.origins == {}
    assert "origin" not in (prepared.folder / "records.json").read_text()
    page = (prepared.folder / "audit.html").read_text()
    assert "crop" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page).lower()  # a picture may spell four letters


def test_a_changed_byte_of_the_table_is_found(cropped, tmp_path):
    shutil.copytree(cropped.root, tmp_path / "work")
    path = WorkFolder(tmp_path / "work").prepared / "crops.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    damage = find_damage(path.parent, read_manifest(path.parent))
    assert [line.partition(":")[0] for line in damage] == [str(path)]


def test_a_stopped_call_goes_on_and_gives_the_same_bytes(cropped, phantom_root, cropping, tmp_path, monkeypatch):
    work, calls, original = WorkFolder(tmp_path), [], StopFlag.check

    def stop_after(flag, saved):
        calls.append(saved)
        if len([text for text in calls if "studies are finished" in text]) == 7:
            flag.set()
        original(flag, saved)

    monkeypatch.setattr(StopFlag, "check", stop_after)
    with pytest.raises(Stopped):
        do(prepare, cropping, work, phantom_options(phantom_root))
    monkeypatch.undo()
    do(prepare, cropping, work, phantom_options(phantom_root))
    assert digests(work) == digests(cropped)


def test_another_crop_is_refused_until_the_store_is_made_again(cropped, phantom_root, tiny_config, cropping, tmp_path):
    with pytest.raises(ArtifactError, match=r"other settings \(steps: \['head'\], now None\).*--fresh"):
        do(prepare, tiny_config, cropped, phantom_options(phantom_root))
    with pytest.raises(ConfigError, match='prepare.crop: unknown "heed"'):
        do(prepare, with_prepare(tiny_config, crop="heed"), WorkFolder(tmp_path), phantom_options(phantom_root))


def test_with_a_size_the_box_fills_the_square(phantom_root, cropping, cropped, tmp_path):
    work = WorkFolder(tmp_path)
    do(prepare, with_prepare(cropping, size=48), work, phantom_options(phantom_root, cq500=None))
    sized, native = store(work), store(cropped)
    of_study = {row["study_id"]: row for row in native.crops().to_dict("records")}
    for row in sized.crops().to_dict("records"):
        before = of_study[row["study_id"]]
        assert {k: row[k] for k in CROPS if k != "volume"} == {k: before[k] for k in CROPS if k != "volume"}
        volume = sized.read_volume(row["volume"])
        assert volume.shape[1:] == (48, 48)
        expected = cv2.resize(native.read_volume(before["volume"])[3], (48, 48), interpolation=cv2.INTER_AREA)
        if before["height"] == before["width"] >= 48:
            np.testing.assert_array_equal(volume[3], expected)


def test_the_audit_counts_the_boxes_and_shows_the_extremes(cropped):
    prepared = store(cropped)
    crop = json.loads((prepared.folder / "audit.json").read_text())["crop"]
    crops = prepared.crops()
    assert crop == prepared.manifest.facts["crop"]
    assert (crop["studies"], crop["not_found"]) == (len(crops), 0)
    assert sum(item["count"] for item in crop["side_mm"]) == len(crops)
    sides = np.maximum(crops["height"] * crops["spacing_row_mm"], crops["width"] * crops["spacing_col_mm"])
    assert crop["median_side_mm"] == pytest.approx(np.median(sides))
    assert 150 < crop["median_side_mm"] < 240
    page = (prepared.folder / "audit.html").read_text()
    sheets = [base64.b64decode(text) for text in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)]
    assert len(sheets) == 2
    shown = cv2.imdecode(np.frombuffer(sheets[1], np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert shown.shape[1] == 3 * 200
    # Each of the nine pictures has the yellow frame.
    tiles = [shown[y : y + 200, x : x + 200] for y in np.arange(3) * (shown.shape[0] // 3) for x in (0, 200, 400)]
    assert all(((tile[..., 2] > 180) & (tile[..., 0] < 110)).sum() > 100 for tile in tiles)


def test_slices_of_two_matrix_sizes_and_pixels_that_are_not_square_share_one_box(tmp_path):
    y, x = np.mgrid[:80, :60]
    ball = np.select([np.hypot(y - 40, 2 * (x - 30)) < 30, np.hypot(y - 40, 2 * (x - 30)) < 36], [40, 900], -1000)
    for i, rows in enumerate((80, 80, 72)):
        stored = (1024 + ball[:rows]).astype(np.uint16)
        write_slice(tmp_path / f"{i}.dcm", stored, slice_uid=f"1.{i}", position=(0, 0, 5 * i), spacing=(2.0, 4.0))
    files = order_slices(plan_of(tmp_path).files)[0]
    pixels = PixelSettings(False, (-800, 2000), None)
    whole, part = (decode_study(StudyTasks(files, one)[0]) for one in (pixels, replace(pixels, steps=("head",))))
    origin = part.origin
    assert (origin.rows, origin.columns, origin.spacing_row_mm, origin.spacing_col_mm) == (80, 60, 2.0, 4.0)
    assert abs(2.0 * origin.height - 4.0 * origin.width) <= 4
    assert 140 < max(2.0 * origin.height, 4.0 * origin.width) < 180
    box = Box(origin.top, origin.left, origin.height, origin.width)
    np.testing.assert_array_equal(part.volume, box.cut(whole.volume))
    assert part.brain_share == whole.brain_share


def test_the_extremes_are_found_and_a_study_without_a_head_is_no_extreme():
    crops = pd.DataFrame(
        [
            ("a", 100, 100, 1.0, 2.0, 20, 10, 60, 30, True),
            ("b", 100, 100, 1.0, 1.0, 0, 0, 50, 50, True),
            ("c", 100, 100, 1.0, 1.0, 20, 20, 60, 60, True),
            ("d", 100, 100, 9.0, 9.0, 0, 0, 100, 100, False),
        ],
        columns=["study_id", *list(CROPS)[3:]],
    )
    measured = measure_crops(crops)
    assert measured["side_mm"].to_list() == [60, 50, 60, 900]
    assert measured["off_centre_mm"].to_list() == [50, pytest.approx(np.hypot(25, 25)), 0, 0]
    assert measured["share"].to_list() == [0.18, 0.25, 0.36, 1]
    captions = [(text.partition(":")[0], position) for text, position in pick_extremes(measured)]
    assert captions == [("smallest", 1), ("largest", 0), ("most off centre", 0), ("no head found", 3)]
    described = describe_crops(measured)
    assert (described["studies"], described["not_found"], described["median_side_mm"]) == (4, 1, 60)


def test_a_study_without_a_head_keeps_its_whole_picture_and_is_counted(tmp_path, cropping, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        name = {"series_uid": f"1.2.{i}.1", "study_uid": f"1.2.{i}", "patient_id": f"P{i}"}
        write_series(tmp_path / "scans" / str(i), 4, **name)
    labels = pd.DataFrame({"study_id": [f"1.2.{i}" for i in range(6)]})
    labels[list(TASK.subtypes)] = np.repeat(np.arange(6)[:, None] % 2, len(TASK.subtypes), 1)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    work = WorkFolder(tmp_path / "work")
    caplog.set_level("INFO", logger="ichkit")
    options = {"source": "folder", "folder": tmp_path / "scans", "labels": tmp_path / "labels.csv"}
    do(prepare, cropping, work, prepare.PrepareOptions(**options))
    prepared = store(work)
    assert prepared.manifest.facts["crop"]["not_found"] == 6
    assert not prepared.crops()["is_found"].any()
    assert prepared.read_volume(prepared.slices["volume"].iloc[0]).shape == (4, 8, 8)
    assert "no head found in 6 of 6 studies" in caplog.text
    assert "No head was found in 6" in (prepared.folder / "audit.html").read_text()
