"""Files, series and labels of the sources, on small trees and on the real label file where it is at hand."""

import os
import signal
import zipfile
from functools import partial

import numpy as np
import pandas as pd
import pytest
from support.dicoms import write_series, write_slice

from ichkit.core.errors import DataError
from ichkit.core.tasks import find_task
from ichkit.engine.parallel import run_tasks
from ichkit.imaging.geometry import is_axial, slab_groups, slice_normals
from ichkit.imaging.store import open_volume
from ichkit.sources.cq500 import read_majority, read_votes
from ichkit.sources.decode import without_culprit
from ichkit.sources.files import FileRef, file_refs, scan_files
from ichkit.sources.folder import plan_folder
from ichkit.sources.index import read_headers, read_index
from ichkit.sources.plan import add_positions, order_slices
from ichkit.sources.rsna import read_labels
from ichkit.sources.series import CQ500_RULE, FOLDER_RULE, SLABS_RULE, THICK_RULE, THIN_RULE, choose_series
from ichkit.sources.series_names import why_dropped_by_name
from ichkit.sources.study import PixelSettings, StudyTask, store_study

TASK = find_task("hemorrhage")


def plain_ref(path):
    return FileRef(path.name, str(path), path.stat().st_size, -1, 0, 0)


def write_labels(path, rows):
    pd.DataFrame(rows, columns=["ID", "Label"]).to_csv(path, index=False)
    return plain_ref(path)


def label_rows(image, positive=()):
    return [(f"{image}_{name}", int(name in positive)) for name in TASK.classes]


def test_the_normal_points_to_the_head_however_rows_and_columns_run():
    up = slice_normals(np.array([[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, -1, 0], [-1, 0, 0, 0, 1, 0]], float))
    np.testing.assert_allclose(up, [[0, 0, 1]] * 3)
    tilt = np.radians(11)
    tilted = slice_normals(np.array([[1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)]]))
    np.testing.assert_allclose(tilted, [[0, np.sin(tilt), np.cos(tilt)]])


def test_positions_of_a_tilted_series_are_its_spacing_times_the_cosine_of_the_tilt(tmp_path):
    tilt = np.radians(11)
    for i in range(5):
        place = (0.0, 0.0, 155 + 5.1 * i)
        orientation = (1, 0, 0, 0, np.cos(tilt), -np.sin(tilt))
        write_slice(tmp_path / f"{i}.dcm", slice_uid=f"1.2.3.{i}", position=place, orientation=orientation)
    placed = add_positions(index_of(tmp_path))
    np.testing.assert_allclose(np.diff(placed["position_mm"]), 5.1 * np.cos(tilt), atol=1e-5)
    np.testing.assert_allclose(placed["tilt_degrees"], 11, atol=1e-6)


def test_sagittal_and_coronal_images_are_not_axial_and_a_gantry_tilt_of_30_degrees_is():
    tilt = np.radians(30)
    rows = [[0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1], [1, 0, 0, 0, np.cos(tilt), np.sin(tilt)]]
    assert is_axial(np.array(rows, float)).tolist() == [False, False, True]


def test_slabs_hold_about_five_millimetres_and_no_slice_is_lost():
    groups = slab_groups(np.arange(0, 96) * 0.625, 5.0)
    assert np.bincount(groups).tolist() == [8] * 12
    assert slab_groups(np.arange(0, 97) * 0.625, 5.0)[-1] == 11  # a last slab of one joins the one before
    assert slab_groups(np.arange(0, 9) * 0.625, 5.0).tolist() == [0] * 9  # of two slabs too
    assert slab_groups(np.arange(0, 12) * 0.625, 5.0).tolist() == [0] * 8 + [1] * 4  # half a slab is one


def test_a_zip_and_the_folder_it_was_made_from_hold_the_same_files(tmp_path):
    folder = tmp_path / "a"
    paths = [write_slice(folder / "deep" / f"{i}.dcm", np.full((8, 8), i, np.uint16)) for i in range(3)]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed = tmp_path / f"packed{method}.zip"
        with zipfile.ZipFile(packed, "w", method) as archive:
            for path in paths:
                archive.write(path, path.relative_to(folder).as_posix())
        files, refused = scan_files(packed)
        plain, _ = scan_files(folder)
        assert files["relative"].to_list() == plain["relative"].to_list()
        assert refused.empty
        for member, path in zip(file_refs(files), sorted(paths), strict=True):
            assert member.read() == path.read_bytes()
            assert member.read(100, 50) == path.read_bytes()[100:150]
            assert member.read(len(path.read_bytes()) - 5, 50) == path.read_bytes()[-5:]


def test_hostile_zip_members_are_refused_with_their_reason(tmp_path):
    packed = tmp_path / "bad.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../out.dcm", b"x")
        archive.writestr("/abs.dcm", b"x")
        archive.writestr("bomb.dcm", bytes(64 * 1024**2))
        archive.writestr("good.dcm", b"x")
    files, refused = scan_files(packed)
    assert files["relative"].to_list() == ["good.dcm"]
    assert refused.set_index("relative")["reason"].to_dict() == {
        "../out.dcm": "zip member's path leaves the zip",
        "/abs.dcm": "zip member's path leaves the zip",
        "bomb.dcm": "zip member is compressed more than 1000 to 1",
    }


def test_a_missing_root_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="expected a folder or a zip at .*nowhere, found nothing"):
        scan_files(tmp_path / "nowhere")


def test_identical_label_rows_are_merged_and_contradicting_ones_named(tmp_path):
    rows = label_rows("ID_a", ["subdural", "any"]) + label_rows("ID_b")
    table, num_rows = read_labels(write_labels(tmp_path / "l.csv", rows + rows[:6]), TASK)
    labels = table.set_index("slice_id")
    assert num_rows == 18
    assert labels.loc["ID_a"].to_dict() == dict(zip(TASK.classes, (0, 0, 0, 0, 1, 1), strict=True))
    assert labels.loc["ID_b"].sum() == 0
    with pytest.raises(DataError, match="1 images have two different labels for subdural, e.g. ID_a"):
        read_labels(write_labels(tmp_path / "l.csv", [*rows, ("ID_a_subdural", 0)]), TASK)
    with pytest.raises(DataError, match="ID_b lacks any"):
        read_labels(write_labels(tmp_path / "l.csv", rows[:-1]), TASK)
    with pytest.raises(DataError, match="expected labels 0 or 1, found 2 in row 2"):
        read_labels(write_labels(tmp_path / "l.csv", [("ID_a_any", 2), *rows]), TASK)


def test_each_class_of_cq500_is_the_majority_of_its_own_column_and_any_is_that_of_ich(tmp_path):
    columns = {"any": "ICH", "epidural": "EDH", "intraparenchymal": "IPH"}
    columns |= {"intraventricular": "IVH", "subarachnoid": "SAH", "subdural": "SDH"}
    # Study n has two votes of three for class n and one vote for every other one: also `any` without a subtype.
    rows = [
        {"name": f"CQ500-CT-{n}", "Category": "B1"}
        | {
            f"R{r}:{column}": int(r == 3 or (name == own and r == 1))
            for r in (1, 2, 3)
            for name, column in columns.items()
        }
        for n, own in enumerate(columns)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "reads.csv", index=False)
    table, _ = read_majority(plain_ref(tmp_path / "reads.csv"), TASK)
    np.testing.assert_array_equal(table[list(columns)], np.eye(len(columns), dtype=int))


def test_the_real_reads_of_cq500_give_the_published_counts(real_data):
    table, batches = read_majority(plain_ref(real_data / "cq500" / "reads.csv"), TASK)
    counts = table.set_index("study_id").sum().to_dict()
    assert len(table) == 491
    assert counts == {
        "any": 205,
        "intraparenchymal": 134,
        "intraventricular": 28,
        "subdural": 53,
        "epidural": 13,
        "subarachnoid": 60,
    }
    orphans = table[(table["any"] == 1) & (table[list(TASK.subtypes)].sum(axis=1) == 0)]["study_id"]
    assert orphans.str.rsplit("-").str[-1].astype(int).to_list() == [12, 106, 159, 228, 362, 370]
    assert batches["batch"].value_counts().to_dict() == {"B2": 277, "B1": 214}


def test_the_real_single_reads_have_the_counts_of_each_reader_and_its_majority(real_data):
    ref = plain_ref(real_data / "cq500" / "reads.csv")
    votes, (majority, _) = read_votes(ref, TASK), read_majority(ref, TASK)
    assert votes["reader"].to_list() == [1, 2, 3] * 491
    assert votes["study_id"].to_list()[::3] == majority["study_id"].to_list()
    raw = pd.read_csv(real_data / "cq500" / "reads.csv")
    for reader, own in votes.groupby("reader"):
        assert own["epidural"].sum() == raw[f"R{reader}:EDH"].sum()
        assert own["any"].sum() == raw[f"R{reader}:ICH"].sum()
    summed = votes.groupby("study_id", sort=False)[list(TASK.classes)].sum() >= 2
    assert (summed.to_numpy() == majority[list(TASK.classes)].to_numpy()).all()


def test_every_real_study_but_the_contrast_only_one_keeps_a_series_by_name(real_data):
    names = pd.read_csv(real_data / "cq500" / "series.csv")
    kept = names[[why_dropped_by_name(name) == "" for name in names["series"]]]
    assert set(names["study"]) - set(kept["study"]) == {"CQ500CT336"}
    forbidden = r"bone|contrast|3d|hires|hi-res|hrct|oral|cect|mmc|pns|orbit|4cc"
    assert not kept["series"].str.replace("PRE-CONTRAST", "").str.contains(forbidden, case=False).any()


def series_row(name, gap, coverage=150.0, num=30, axial=True, kind="", low=0.0, repeats=1.0, spacing=0.5):
    return {
        "study_id": "s",
        "series_id": name,
        "series": name,
        "kind": kind,
        "num_slices": num,
        "gap_mm": gap,
        "hole_mm": 0.0,
        "axial": axial,
        "coverage_mm": coverage,
        "low": low,
        "high": low + coverage,
        "repeats": repeats,
        "rows": 512,
        "columns": 512,
        "spacing_row_mm": spacing,
        "spacing_col_mm": spacing,
        "normal_x": 0.0,
        "normal_y": 0.0,
        "normal_z": 1.0,
    }


def chosen(rows, rule=CQ500_RULE):
    choice = choose_series(pd.DataFrame(rows), rule)
    return choice.set_index("series")["chosen"], choice.set_index("series")["reason"]


def test_the_series_nearest_five_millimetres_wins_then_coverage_then_name():
    took, _ = chosen([series_row("Plain Thin", 0.625), series_row("Plain", 5.1), series_row("3mm", 3.0)])
    assert took[took].index.to_list() == ["Plain"]
    took, _ = chosen([series_row("b", 5.0), series_row("z", 5.0), series_row("a", 5.0, coverage=140)])
    assert took[took].index.to_list() == ["b"]


def test_other_rules_take_the_thinnest_or_a_thick_series_and_leave_a_study_without_one_out():
    rows = [series_row("Plain", 5.0), series_row("3mm", 3.0), series_row("Thin", 1.25), series_row("Thinner", 0.625)]
    for rule, wanted in ((THIN_RULE, "Thinner"), (SLABS_RULE, "Thinner"), (THICK_RULE, "Plain")):
        took, why = chosen(rows, rule)
        assert took[took].index.to_list() == [wanted]
        assert why["3mm"] == (
            "another series is nearer 5 mm, covers more, or comes first by name"
            if wanted == "Plain"
            else "spacing not below 2 mm"
        )
    assert chosen(rows, THICK_RULE)[1]["Thin"] == "spacing below 2 mm"
    assert chosen(rows, SLABS_RULE)[1]["Thinner"].endswith("smallest; thin, averaged to slabs of about 5 mm")
    assert chosen(rows, THIN_RULE)[1]["Thinner"].endswith("smallest")
    assert not chosen(rows[:2], THIN_RULE)[0].any()
    assert not chosen(rows[2:], THICK_RULE)[0].any()


def test_every_candidate_is_given_its_reason():
    took, why = chosen(
        [
            series_row("CT BONE", 5.0),
            series_row("CT C", 5.0),
            series_row("CT short", 5.0, coverage=60),
            series_row("CT few", 5.0, num=3),
            series_row("CT side", 5.0, axial=False),
            series_row("CT scout", 5.0, kind="localizer"),
            series_row("CT Plain Thin", 0.625, num=240),
        ]
    )
    assert took[took].index.to_list() == ["CT Plain Thin"]
    assert why["CT BONE"] == "bone or high-resolution kernel"
    assert why["CT C"] == "contrast"
    assert why["CT short"] == "covers less than 100 mm"
    assert why["CT few"] == "fewer than 16 slices"
    assert why["CT side"] == "not axial"
    assert why["CT scout"] == "localizer"
    assert "slabs of about 5 mm" in why["CT Plain Thin"]


def test_a_folder_falls_back_to_the_axial_series_with_the_most_coverage_and_says_so():
    rows = [series_row("a", 5.0, coverage=20, num=5), series_row("b", 5.0, coverage=0, num=1)]
    took, why = chosen(rows, FOLDER_RULE)
    assert took[took].index.to_list() == ["a"]
    assert why["a"] == ("fallback: axial, although fewer than 16 slices; not used: 1 (fewer than 16 slices)")
    assert not chosen(rows, CQ500_RULE)[0].any()


def index_of(root):
    files, _ = scan_files(root)
    return read_index(files, None, run=partial(run_tasks, workers=1))


def test_slices_stand_from_the_feet_to_the_head_whatever_the_files_are_called(tmp_path):
    write_series(tmp_path, 20)
    plan = plan_folder(index_of(tmp_path), b"salt")
    _, slices = order_slices(plan.files)
    assert slices["position_mm"].to_list() == [5.0 * i for i in range(20)]
    assert slices["slice_index"].to_list() == list(range(20))


def test_ties_in_position_go_by_slice_id_and_duplicates_are_rejected(tmp_path):
    for name, uid in (("b", "1.9"), ("a", "1.8"), ("c", "1.8")):
        write_slice(tmp_path / f"{name}.dcm", slice_uid=uid)
    plan = plan_folder(index_of(tmp_path), b"salt")
    assert order_slices(plan.files)[1]["slice_id"].to_list() == ["1.8", "1.9"]
    assert plan.rejected["reason"].to_list() == ["duplicate of another file"]


def test_nothing_that_names_a_patient_leaves_a_folder(tmp_path):
    write_series(
        tmp_path / "DOE JANE", 3, patient_id="SECRET-ID", PatientName="DOE^JANE", SeriesDescription="Jane's head"
    )
    (tmp_path / "DOE JANE" / "notes.txt").write_text("DOE")
    plan = plan_folder(index_of(tmp_path), b"salt")
    tables = [plan.files.drop(columns=["relative", "container", "kind"]), plan.rejected, plan.series_choice]
    shown = " ".join(table.to_csv() for table in tables).lower()
    assert len(plan.rejected) == 1
    assert not any(word in shown for word in ("doe", "jane", "secret"))


def test_an_index_is_read_again_only_for_files_that_are_new(tmp_path):
    write_series(tmp_path, 3)
    first = index_of(tmp_path)
    marked = first.assign(reason="seen before")
    write_slice(tmp_path / "new.dcm", slice_uid="1.2.3.99", position=(0, 0, 99))
    files, _ = scan_files(tmp_path)
    second = read_index(files, marked, run=partial(run_tasks, workers=1))
    assert sorted(second["reason"]) == ["", "seen before", "seen before", "seen before"]
    pd.testing.assert_frame_equal(index_of(tmp_path).drop(columns="reason"), second.drop(columns="reason"))


class DeadlyRef(FileRef):
    """A file that takes down the process that reads it, as a crash in a decoder would."""

    def read(self, offset=0, length=None):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_file_that_kills_its_worker_is_found_and_the_rest_of_its_study_is_kept(tmp_path):
    good = plain_ref(write_slice(tmp_path / "a.dcm", np.full((8, 8), 1064, np.uint16)))
    header, _ = read_headers([good])[0]
    deadly = DeadlyRef("b.dcm", good.container, good.num_bytes, -1, 0, 0)
    task = StudyTask("ab12", (((good, header),), ((deadly, header),)), PixelSettings(False, (-800, 2000), None))
    record = without_culprit(partial(store_study, tmp_path), task)
    assert record.kept == [0]
    assert record.failures == [(1, 0, "its worker died, twice")]
    assert (np.asarray(open_volume(tmp_path / record.volume)[:]) == 40).all()
