"""Every way data may come: zips, folders, mixtures, own scans with labels, compressed and oddly shaped slices."""

import importlib.util
import shutil
import zipfile

import numpy as np
import pandas as pd
import pydicom
import pytest
from support.commands import do, phantom_options
from support.dicoms import make_dataset, read_header, write_series, write_slice

from ichkit.core.errors import ConfigError, DataError
from ichkit.core.tasks import find_task
from ichkit.imaging.dicom import UnreadableError
from ichkit.imaging.hounsfield import decode_stored
from ichkit.imaging.store import Prepared
from ichkit.sources.cq500 import read_baseline
from ichkit.sources.files import scan_files
from ichkit.sources.folder import plan_folder
from ichkit.sources.index import read_index
from ichkit.sources.plan import StudyTasks, order_slices
from ichkit.sources.study import PixelSettings, decode_study
from ichkit.stages.prepare import run as prepare
from ichkit.work.artifacts import ArtifactWriter, read_manifest
from ichkit.work.folder import WorkFolder

TASK = find_task("hemorrhage")


def refuse_to_decode(*_):
    raise AssertionError("a study was decoded again")


def prepared(work):
    return Prepared.open(work.prepared, TASK)


def pack(folder, zip_path, prefix="", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(zip_path, "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    return zip_path


def compare(work, reference, same_files=False):
    """The same slices with the same pixels; keys of volumes differ where the files are called otherwise."""
    ours, theirs = prepared(work), prepared(reference)
    columns = [name for name in theirs.slices if name != "volume"]
    pd.testing.assert_frame_equal(ours.slices[columns], theirs.slices[columns])
    pd.testing.assert_frame_equal(ours.slice_facts(), theirs.slice_facts())
    for mine, other in zip(
        ours.slices["volume"].drop_duplicates(), theirs.slices["volume"].drop_duplicates(), strict=True
    ):
        np.testing.assert_array_equal(ours.read_volume(mine), theirs.read_volume(other))


@pytest.fixture(scope="module")
def zipped_root(phantom_root, tmp_path_factory):
    """The phantom as it is downloaded: RSNA in one zip with other folder names, CQ500 as one zip a study."""
    root = tmp_path_factory.mktemp("zipped")
    renamed = root / "renamed"
    shutil.copytree(phantom_root / "rsna", renamed)
    for split in ("train", "test"):
        (renamed / f"stage_2_{split}").rename(renamed / f"stage_2_{split}_images")
    pack(renamed, root / "rsna.zip", prefix="rsna-intracranial-hemorrhage-detection/nested/")
    (root / "cq500").mkdir()
    for path in (phantom_root / "cq500").iterdir():
        if path.is_dir():
            pack(path, root / "cq500" / f"{path.name.replace(' ', '-')}.zip", prefix=f"{path.name}/")
        else:
            shutil.copyfile(path, root / "cq500" / path.name)
    return root


def test_the_zips_as_they_are_downloaded_give_the_slices_of_the_folders(
    zipped_root, prepared_once, tiny_config, tmp_path
):
    work = WorkFolder(tmp_path)
    do(prepare, tiny_config, work, prepare.PrepareOptions(rsna=zipped_root / "rsna.zip", cq500=zipped_root / "cq500"))
    compare(work, prepared_once)


def test_folders_and_zips_may_be_mixed(phantom_root, prepared_once, tiny_config, tmp_path):
    root = tmp_path / "mixed"
    shutil.copytree(phantom_root / "rsna", root)
    pack(root / "stage_2_test", root / "more.zip", prefix="stage_2_test/", method=zipfile.ZIP_STORED)
    shutil.rmtree(root / "stage_2_test")
    work = WorkFolder(tmp_path / "work")
    do(prepare, tiny_config, work, phantom_options(phantom_root, rsna=root))
    compare(work, prepared_once)


def own_scans(root, num_studies=8):
    """Studies of six slices, each study's pixels told apart by its number."""
    for i in range(num_studies):
        write_series(root / f"s{i}", 6, study_uid=f"1.2.{i}", series_uid=f"1.2.{i}.1", patient_id=f"PERSON {i // 2}")
    return root


def label_table(key, ids):
    table = pd.DataFrame({key: ids})
    for column, name in enumerate(TASK.subtypes):
        table[name] = [int((i + column) % 4 == 0) for i in range(len(ids))]
    return table


def folder_options(root, labels, **options):
    return prepare.PrepareOptions(**{"source": "folder", "folder": root, "labels": labels, **options})


def test_own_scans_with_labels_per_slice_become_a_training_split(tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = own_scans(tmp_path / "scans")
    ids = [f"1.2.{i}.1.{n + 1}" for i in range(8) for n in range(6)]
    labels = label_table("slice_id", ids[:-3])
    labels.to_csv(tmp_path / "labels.csv", index=False)
    work = WorkFolder(tmp_path / "work")
    manifest = do(prepare, tiny_config, work, folder_options(root, tmp_path / "labels.csv"))
    store = prepared(work)
    assert manifest.facts["data"] == "folder"
    assert set(store.slices["split"]) == {"train"}
    assert set(store.slices["dataset"]) == {"folder"}
    held = store.slices.set_index("slice_id")[list(TASK.classes)].astype(int)
    expected = labels.assign(any=labels[list(TASK.subtypes)].max(axis=1)).set_index("slice_id")[list(TASK.classes)]
    pd.testing.assert_frame_equal(held.sort_index(), expected.sort_index(), check_dtype=False)
    assert store.slices["fold"].notna().all()
    assert store.slices.groupby("patient_id")["fold"].nunique().eq(1).all()
    assert store.slices["patient_id"].nunique() == 4
    assert store.rejected()["reason"].to_list() == ["no label in the label file"] * 3
    written = [path for path in work.prepared.rglob("*") if path.is_file() and path.suffix != ".b2nd"]
    whole = "".join(path.read_text("latin-1") for path in written)
    assert "PERSON" not in whole
    assert "s0/" not in whole


def test_the_patients_of_own_scans_keep_their_folds_when_more_come(tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, work = own_scans(tmp_path / "scans"), WorkFolder(tmp_path / "work")
    ids = [f"1.2.{i}" for i in range(12)]
    label_table("study_id", ids).to_csv(tmp_path / "labels.csv", index=False)
    do(prepare, tiny_config, work, folder_options(root, tmp_path / "labels.csv"))
    first = prepared(work).folds
    own_scans(root, 12)
    do(prepare, tiny_config, work, folder_options(root, tmp_path / "labels.csv"))
    second = prepared(work).folds
    assert len(second) == 6
    both = first.merge(second, on="patient_id", suffixes=("_first", "_second"))
    assert len(both) == len(first) == 4
    assert (both["fold_first"] == both["fold_second"]).all()


def test_labels_per_study_go_to_every_slice_and_are_said_to_be_rough(tmp_path, tiny_config, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    root = own_scans(tmp_path / "scans")
    labels = label_table("study_id", [f"1.2.{i}" for i in range(8)])
    labels.to_csv(tmp_path / "labels.csv", index=False)
    work = WorkFolder(tmp_path / "work")
    with caplog.at_level("WARNING", logger="ichkit"):
        manifest = do(prepare, tiny_config, work, folder_options(root, tmp_path / "labels.csv"))
    assert "labels are per study" in caplog.text
    assert manifest.facts["folder"]["labels"] == "study"
    store = prepared(work)
    for table in (store.slices.drop_duplicates("study_id"), store.studies):
        held = table.set_index("study_id")[list(TASK.subtypes)].astype(int).sort_index()
        pd.testing.assert_frame_equal(held, labels.set_index("study_id").sort_index(), check_dtype=False)
    assert store.slices.groupby("study_id")["subdural"].nunique().eq(1).all()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "expected a label file, found none. Name it with --labels CSV.*ichkit predict"),
        ("name,any\na,1\n", "expected a header with slice_id or study_id.*found 2 columns, of those names any"),
        ("slice_id,any\na,1\n", "expected a header with slice_id or study_id, and epidural"),
        ("slice_id,%s\na,1,0,0,0,2\n", "expected 0 or 1 for every class .*, found something else, in row 2"),
        (
            "slice_id,%s\na,1,0,0,0,0\na,0,0,0,0,0\n",
            "a slice_id has different labels in an earlier row, in row 3",
        ),
        ("slice_id,%s\nnobody,1,0,0,0,0\n", "1 of its 1 ids in column slice_id are not among the 48 slices found"),
    ],
)
def test_labels_that_do_not_fit_say_what_was_expected(tmp_path, tiny_config, monkeypatch, content, expected):
    monkeypatch.chdir(tmp_path)
    root, labels = own_scans(tmp_path / "scans"), None
    if content is not None:
        labels = tmp_path / "labels.csv"
        labels.write_text(content % ",".join(TASK.subtypes) if "%s" in content else content)
    with pytest.raises(DataError, match=expected):
        do(prepare, tiny_config, WorkFolder(tmp_path / "work"), folder_options(root, labels))


def test_a_folder_is_no_rsna_and_unknown_sources_get_the_nearest(tmp_path, tiny_config):
    with pytest.raises(ConfigError, match="--folder and --labels need --source folder"):
        do(prepare, tiny_config, WorkFolder(tmp_path), prepare.PrepareOptions(source="rsna", folder=tmp_path))
    with pytest.raises(ConfigError, match='"foldr" is not a source of training data.*folder'):
        do(prepare, tiny_config, WorkFolder(tmp_path), prepare.PrepareOptions(source="foldr"))


def test_a_series_chosen_by_hand_is_taken_whatever_the_rule_says(phantom_root, prepared_once, tiny_config, tmp_path):
    choice = pd.read_csv(prepared_once.prepared / "series_choice.csv")
    others = choice[~choice["chosen"]].drop_duplicates("study_id").iloc[:1]
    study, series = others[["study_id", "series"]].iloc[0]
    override = tmp_path / "override.csv"
    others[["study_id", "series"]].to_csv(override, index=False)
    work = WorkFolder(tmp_path / "work")
    do(prepare, tiny_config, work, phantom_options(phantom_root, series_override=override))
    mine = pd.read_csv(work.prepared / "series_choice.csv")
    chosen = mine[mine["chosen"]].set_index("study_id")
    assert chosen.loc[study, "series"] == series
    assert chosen.loc[study, "reason"].startswith("chosen by the override file")
    rest = choice[choice["chosen"]].set_index("study_id").drop(study, errors="ignore")
    assert (chosen.loc[rest.index, "series"] == rest["series"]).all()
    held = prepared(work).slices
    assert set(held["series_id"][held["study_id"] == study]) == set(others["series_id"])
    # Taking it back is another input, not another setting.
    do(prepare, tiny_config, work, phantom_options(phantom_root))
    pd.testing.assert_frame_equal(pd.read_csv(work.prepared / "series_choice.csv"), choice)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("study_id,series\nCQ500-CT-1,nothing\n", 'has no series "nothing". It has: '),
        ("study_id,series\nCQ500-CT-9999,CT\n", "1 studies are not among the .* e.g. CQ500-CT-9999"),
        ("study,name\na,b\n", "expected a CSV with columns study_id, series"),
        ("study_id,series\na,b\na,c\n", "study a has two rows"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(phantom_root, tiny_config, tmp_path, rows, expected):
    override = tmp_path / "override.csv"
    studies = pd.read_csv(phantom_root / "cq500" / "reads.csv")["name"]
    override.write_text(rows.replace("CQ500-CT-1,", f"{studies.iloc[0]},"))
    with pytest.raises(DataError, match=expected):
        do(prepare, tiny_config, WorkFolder(tmp_path / "w"), phantom_options(phantom_root, series_override=override))


def test_changed_labels_are_noticed_although_the_file_is_as_long_as_before(phantom_root, tiny_config, tmp_path):
    root = tmp_path / "rsna"
    shutil.copytree(phantom_root / "rsna", root)
    work = WorkFolder(tmp_path / "work")
    do(prepare, tiny_config, work, phantom_options(phantom_root, rsna=root))
    before = prepared(work).split("train")
    path = root / "stage_2_train.csv"
    target = f"{before['slice_id'].iloc[0]}_subdural,"
    text = path.read_text()
    at = text.index(target) + len(target)
    flipped = "0" if text[at] == "1" else "1"
    path.write_text("\n".join(line[:-1] + flipped if line.startswith(target) else line for line in text.split("\n")))
    do(prepare, tiny_config, work, phantom_options(phantom_root, rsna=root))
    after = prepared(work).split("train")
    assert int(after["subdural"].iloc[0]) == int(flipped) != int(before["subdural"].iloc[0])


def test_a_store_of_a_version_without_single_reads_gets_them_and_decodes_nothing_again(
    prepared_work, phantom_root, tiny_config, monkeypatch
):
    before = read_manifest(prepared_work.prepared)
    reads = pd.read_csv(prepared_work.prepared / "cq500_reads.csv")
    raw = pd.read_csv(phantom_root / "cq500" / "reads.csv").set_index("name")
    second = reads[reads["reader"] == 2].set_index("study_id")
    assert (second["subdural"] == raw["R2:SDH"].loc[second.index]).all()
    writer = ArtifactWriter(prepared_work.prepared, before.kind)
    for name in before.files.keys() - {"cq500_reads.csv"}:
        writer.write_bytes(name, (prepared_work.prepared / name).read_bytes())
    writer.commit(settings=before.settings, inputs=before.inputs, facts=before.facts)
    monkeypatch.setattr("ichkit.sources.decode.store_study", refuse_to_decode)
    do(prepare, tiny_config, prepared_work, phantom_options(phantom_root))
    after = read_manifest(prepared_work.prepared)
    assert after.files["cq500_reads.csv"] == before.files["cq500_reads.csv"]
    assert after.files["slices.parquet"] == before.files["slices.parquet"]


def test_the_batches_and_the_baseline_of_cq500_are_kept_where_they_are_given(phantom_root, tiny_config, tmp_path):
    root = tmp_path / "cq500"
    shutil.copytree(phantom_root / "cq500", root)
    names = pd.read_csv(root / "reads.csv")["name"]
    scores = {word: np.linspace(0, 1, len(names)) for word in ("ICH", "IPH", "IVH", "SAH", "SDH", "EDH")}
    pd.DataFrame({"name": names, **scores}).to_csv(root / "prediction_probabilities.csv", index=False)
    work = WorkFolder(tmp_path / "work")
    do(prepare, tiny_config, work, phantom_options(phantom_root, cq500=root))
    facts = pd.read_csv(work.prepared / "cq500_facts.csv")
    assert set(facts["batch"]) <= {"B1", "B2"}
    assert set(facts["study_id"]) == set(names)
    baseline = pd.read_csv(work.prepared / "cq500_baseline.csv").set_index("study_id")
    assert baseline.loc[names.iloc[-1], "p_any"] == 1.0
    assert list(baseline.columns) == TASK.probability_columns
    assert {"cq500_facts.csv", "cq500_baseline.csv"} <= set(read_manifest(work.prepared).files)
    (root / "prediction_probabilities.csv").write_text("name,ICH,any_ICH\nx,0,1\n")
    files, _ = scan_files(root)
    (ref,) = [ref for ref in map_refs(files) if ref.relative.endswith("probabilities.csv")]
    with pytest.raises(DataError, match="expected columns name and one for EDH, found name, ICH, any_ICH"):
        read_baseline(ref, TASK)


def map_refs(files):
    from ichkit.sources.files import file_refs

    return file_refs(files)


def decode_file(path):
    data = path.read_bytes()
    header = read_header(data)
    whole = data[header.pixel_offset : header.pixel_offset + header.pixel_bytes] if header.pixel_bytes else data
    return decode_stored(whole, header)


COMPRESSED = {
    "RLELossless": None,
    "JPEG2000Lossless": "openjpeg",
    "JPEGLSLossless": "jpeg_ls",
}


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("signed", [0, 1])
def test_compressed_pixels_are_those_that_were_compressed(tmp_path, syntax, signed):
    module = COMPRESSED[syntax]
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed (extra dicom)")
    stored = np.random.default_rng(0).integers(0, 4096, (128, 96)).astype(np.uint16)
    dataset = make_dataset(stored, bits_stored=16, signed=signed)
    dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(decode_file(tmp_path / "a.dcm"), stored)


def test_a_missing_decoder_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    dataset = make_dataset(np.zeros((64, 64), np.uint16))
    dataset.compress(pydicom.uid.JPEG2000Lossless)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(UnreadableError, match=r"no decoder for JPEG 2000 .*; pip install 'ichkit\[dicom\]'"):
        decode_file(tmp_path / "a.dcm")


def decode_folder(root, size=None):
    plan = plan_folder(read_index(scan_files(root)[0], None), b"salt")
    return decode_study(StudyTasks(order_slices(plan.files)[0], PixelSettings(False, (-800, 2000), size))[0])


def test_slices_of_other_matrix_sizes_stand_in_the_middle_of_air(tmp_path):
    shapes = [(8, 8), (12, 8), (8, 10)]
    for i, shape in enumerate(shapes):
        write_slice(tmp_path / f"{i}.dcm", np.full(shape, 1064, np.uint16), slice_uid=f"1.{i}", position=(0, 0, 5 * i))
    study = decode_folder(tmp_path)
    assert study.volume.shape == (3, 12, 10)
    assert [(volume == 40).sum() for volume in study.volume] == [64, 96, 80]
    assert (study.volume[0][2:10, 1:9] == 40).all()
    assert ((study.volume == 40) | (study.volume == -800)).all()


def test_pixels_that_are_not_square_become_square_when_a_size_is_asked_for(tmp_path):
    stored = np.full((8, 16), 1064, np.uint16)
    write_slice(tmp_path / "a.dcm", stored, spacing=(2.0, 0.5))  # 16 mm high, 8 mm wide
    study = decode_folder(tmp_path, size=32)
    assert study.volume.shape == (1, 32, 32)
    inside = study.volume[0] == 40
    assert inside.any(axis=1).sum() == 32
    assert inside.any(axis=0).sum() == 16


def test_a_brain_share_counts_what_the_brain_window_shows(tmp_path):
    stored = np.full((10, 10), 1024 - 1000, np.uint16)
    stored[:3] = 1024 + 80
    stored[3] = 1024 + 81
    write_slice(tmp_path / "a.dcm", stored)
    assert decode_folder(tmp_path).brain_share == [0.3]


def test_a_labelled_folder_without_a_usable_slice_leaves_its_reasons(tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scans, labels = tmp_path / "scans", tmp_path / "labels.csv"
    scans.mkdir()
    (scans / "notes.txt").write_text("hello")
    write_slice(scans / "mr.dcm", Modality="MR")
    label_table("study_id", ["1.2"]).to_csv(labels, index=False)
    work = WorkFolder(tmp_path / "work")
    expected = r"no training slice could be used: 1 not (CT|DICOM); 1 not (CT|DICOM)\. .*rejected\.csv has every file"
    with pytest.raises(DataError, match=expected):
        do(prepare, tiny_config, work, folder_options(scans, labels))
    assert sorted(pd.read_csv(work.root / "rejected.csv")["reason"]) == ["not CT", "not DICOM"]
    assert not work.prepared.exists()


def test_scans_without_a_patient_are_no_training_data_and_the_reason_says_why(tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = own_scans(tmp_path / "scans")
    write_series(root / "nobody", 6, study_uid="1.2.8", series_uid="1.2.8.1", patient_id="  ")
    label_table("study_id", [f"1.2.{i}" for i in range(9)]).to_csv(tmp_path / "labels.csv", index=False)
    work = WorkFolder(tmp_path / "work")
    do(prepare, tiny_config, work, folder_options(root, tmp_path / "labels.csv"))
    store = prepared(work)
    assert "1.2.8" not in set(store.slices["study_id"])
    reasons = store.rejected()["reason"].value_counts().to_dict()
    assert reasons == {"no PatientID, which patient-wise folds need": 6}


def test_blanks_around_a_patient_id_do_not_move_a_patient_into_another_fold(tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        name = f"PERSON {i // 2}" + ("" if i % 2 else " \0")
        write_series(tmp_path / "scans" / f"s{i}", 6, study_uid=f"1.2.{i}", series_uid=f"1.2.{i}.1", patient_id=name)
    label_table("study_id", [f"1.2.{i}" for i in range(8)]).to_csv(tmp_path / "labels.csv", index=False)
    work = WorkFolder(tmp_path / "work")
    do(prepare, tiny_config, work, folder_options(tmp_path / "scans", tmp_path / "labels.csv"))
    assert prepared(work).slices["patient_id"].nunique() == 4
