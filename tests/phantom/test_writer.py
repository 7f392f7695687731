"""One phantom of sixty studies, looked at from all sides: layout, headers, labels, difficulty."""

import itertools
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.config import IGNORE, WARN
from pydicom.config import settings as pydicom_settings
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ichkit import write_phantom
from ichkit.phantom.cq500 import write_reads

CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
# The tags that real RSNA files hold, and no other.
RSNA_TAGS = {
    "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "StudyID",
    "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel", "PhotometricInterpretation", "Rows",
    "Columns", "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "WindowCenter",
    "WindowWidth", "RescaleIntercept", "RescaleSlope", "PixelData",
}  # fmt: skip
SEVEN_FORMATS = {(16, 1, -1024), (12, 0, -1024), (12, 0, -1000), (16, 1, 0), (12, 1, 0), (12, 0, 0), (12, 0, 1)}


@dataclass(frozen=True)
class Phantom:
    root: Path

    def facts(self, name: str) -> dict:
        return json.loads((self.root / name / "phantom.json").read_text())

    @cached_property
    def studies(self) -> list[dict]:
        return self.facts("rsna")["studies"]

    @cached_property
    def external(self) -> list[dict]:
        return self.facts("cq500")["studies"]

    @cached_property
    def truncated(self) -> list[str]:
        return [study["truncated"] for study in self.studies if study["truncated"]]

    @cached_property
    def rsna(self) -> dict[str, pydicom.Dataset]:
        """Slice id to file, truncated ones left out."""
        paths = [path for path in (self.root / "rsna").glob("stage_2_*/*.dcm") if path.stem not in self.truncated]
        return {path.stem: pydicom.dcmread(path) for path in paths}

    def labels(self, part: str) -> np.ndarray:
        return np.array([row for study in self.studies if study["part"] == part for row in study["labels"]])


@pytest.fixture(autouse=True)
def _no_validation(monkeypatch):
    """The ids of RSNA are not legal UIDs, which pydicom warns of as each element is looked at."""
    monkeypatch.setattr(pydicom_settings, "reading_validation_mode", IGNORE)


def repaired_hounsfield(file: pydicom.Dataset) -> np.ndarray:
    """(H, W) HU by the rule for broken intercepts, worked out here a second time."""
    stored, intercept = file.pixel_array.astype(np.int64), int(float(file.RescaleIntercept))
    if file.BitsStored == 12 and file.PixelRepresentation == 0 and intercept > -100:
        stored = stored + 1000
        stored[stored >= 4096] -= 4096
        intercept = -1000
    return stored + intercept


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Phantom:
    root = tmp_path_factory.mktemp("phantom") / "out"
    write_phantom(root, studies=60, test_studies=15, cq500_studies=15, size=128, seed=0, keep_masks=True)
    return Phantom(root)


def test_all_seven_pixel_formats_occur_in_train_and_the_broken_ones_not_in_test(phantom):
    found = {
        part: {tuple(study["pixel_format"]) for study in phantom.studies if study["part"] == part}
        for part in ("train", "test")
    }
    assert found["train"] == SEVEN_FORMATS
    assert found["test"] == SEVEN_FORMATS - {(12, 0, 0), (12, 0, 1)}
    for study in phantom.studies:
        for slice_id in set(study["slice_ids"]) - set(phantom.truncated):
            file = phantom.rsna[slice_id]
            assert [file.BitsStored, file.PixelRepresentation, int(float(file.RescaleIntercept))] == study[
                "pixel_format"
            ]


def test_every_format_decodes_to_a_head(phantom):
    """After the repair brain is brain and bone is bone, whatever the format; without it the broken ones are not."""
    for study in phantom.studies:
        middle = next(name for name in study["slice_ids"][len(study["slice_ids"]) // 2 :] if name in phantom.rsna)
        hounsfield = repaired_hounsfield(phantom.rsna[middle])
        height, width = hounsfield.shape
        brain = hounsfield[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
        assert 20 < np.median(brain) < 45
        assert 600 < np.percentile(hounsfield, 99.5) < 2000
        assert np.median(hounsfield[: height // 20, width // 3 : width // 2]) < -900


def test_padding_marks_the_corners_of_signed_files_alone(phantom):
    for study in phantom.studies:
        files = [phantom.rsna[name] for name in study["slice_ids"] if name in phantom.rsna]
        corners = {int(file.pixel_array[0, 0]) for file in files}
        assert (corners == {-2000}) == study["is_padded"]
        assert not study["is_padded"] or study["pixel_format"] == [16, 1, -1024]
    assert 0.1 < np.mean([study["is_padded"] for study in phantom.studies]) < 0.6


def test_headers_hold_the_tags_of_the_real_files_and_no_other(phantom):
    for file in phantom.rsna.values():
        assert {element.keyword for element in file} == RSNA_TAGS
        assert file.StudyID == ""
        assert file.Modality == "CT"


def test_headers_write_numbers_and_windows_in_the_ways_of_the_real_files(phantom):
    files = list(phantom.rsna.values())
    assert {str(file.RescaleIntercept) for file in files} >= {"-1024", "-1024.000000"}
    assert {str(file.RescaleSlope) for file in files} >= {"1", "1.0", "1.000000"}
    raw = {bytes(file.get_item("WindowCenter").value).strip() for file in map(fresh, files)}
    assert raw >= {b"30", b"00036\\00036"}
    assert {file.file_meta.TransferSyntaxUID.name for file in files} == {
        "Explicit VR Little Endian",
        "Implicit VR Little Endian",
    }


def fresh(file: pydicom.Dataset) -> pydicom.Dataset:
    """The file again, its elements still raw."""
    return pydicom.dcmread(file.filename)


def test_ids_are_random_and_say_nothing_about_the_order(phantom):
    for study in phantom.studies:
        assert all(re.fullmatch(r"ID_[0-9a-f]{9}", name) for name in study["slice_ids"])
        assert study["slice_ids"] != sorted(study["slice_ids"])
    names = [name for study in phantom.studies for name in study["slice_ids"]]
    assert len(set(names)) == len(names)


def test_a_tilted_gantry_shears_the_slices_along_the_table(phantom):
    tilts = set()
    for study in phantom.studies:
        files = [phantom.rsna[name] for name in study["slice_ids"] if name in phantom.rsna]
        tilts.add(study["tilt_degrees"])
        cosine, sine = np.cos(np.deg2rad(study["tilt_degrees"])), np.sin(np.deg2rad(study["tilt_degrees"]))
        for file in files:
            assert np.allclose(file.ImageOrientationPatient, [1, 0, 0, 0, cosine, -sine], atol=1e-6)
            assert file.ImagePositionPatient[:2] == files[0].ImagePositionPatient[:2]
        assert (np.diff([file.ImagePositionPatient[2] for file in files]) >= 0).all()
    assert 0.0 in tilts
    assert max(tilts) > 10


def test_one_study_a_part_has_ties_and_one_has_two_series(phantom):
    for part in ("train", "test"):
        ties, series = [], []
        for study in (study for study in phantom.studies if study["part"] == part):
            files = [phantom.rsna[name] for name in study["slice_ids"] if name in phantom.rsna]
            heights = [float(file.ImagePositionPatient[2]) for file in files]
            ties.append(len(set(heights)) < len(heights))
            series.append(len({file.SeriesInstanceUID for file in files}))
        assert sum(ties) == 1
        assert sorted(series)[-2:] == [1, 2]


def test_a_tie_is_two_scans_of_one_place(phantom):
    study = next(study for study in phantom.studies if study["has_ties"])
    files = [phantom.rsna[name] for name in study["slice_ids"] if name in phantom.rsna]
    pairs = [(a, b) for a, b in itertools.pairwise(files) if a.ImagePositionPatient == b.ImagePositionPatient]
    assert pairs
    for a, b in pairs:
        first, second = repaired_hounsfield(a), repaired_hounsfield(b)
        assert not np.array_equal(first, second)


def test_some_slices_are_not_square(phantom):
    shapes = {(file.Rows, file.Columns) for file in phantom.rsna.values()}
    assert shapes == {(128, 128), (128, 144)}


def test_patients_recur_inside_a_part_and_never_across(phantom):
    patients = {part: [s["patient_id"] for s in phantom.studies if s["part"] == part] for part in ("train", "test")}
    assert len(set(patients["train"])) < len(patients["train"])
    assert not set(patients["train"]) & set(patients["test"])
    for study in phantom.studies:
        present = [name for name in study["slice_ids"] if name in phantom.rsna]
        assert {phantom.rsna[name].PatientID for name in present} == {study["patient_id"]}
        assert {phantom.rsna[name].StudyInstanceUID for name in present} == {study["study_id"]}


def test_the_label_file_repeats_four_images_and_contradicts_itself_nowhere(phantom):
    table = pd.read_csv(phantom.root / "rsna" / "stage_2_train.csv")
    assert list(table.columns) == ["ID", "Label"]
    assert table.ID.duplicated().sum() == 24
    assert table.drop_duplicates().ID.is_unique
    expected = {
        f"{name}_{label}": value
        for study in phantom.studies
        if study["part"] == "train"
        for name, row in zip(study["slice_ids"], study["labels"], strict=True)
        for label, value in zip(CLASSES, row, strict=True)
    }
    assert table.drop_duplicates().set_index("ID").Label.to_dict() == expected
    assert [name.rpartition("_")[2] for name in table.ID[:6]] == CLASSES


def test_any_is_the_maximum_of_the_subtypes(phantom):
    for part in ("train", "test"):
        labels = phantom.labels(part)
        assert np.array_equal(labels[:, 5], labels[:, :5].max(1))


def test_the_sample_submission_asks_for_every_test_slice_once(phantom):
    sample = pd.read_csv(phantom.root / "rsna" / "stage_2_sample_submission.csv")
    truth = pd.read_csv(phantom.root / "rsna" / "stage_2_test_labels.csv")
    assert sample.ID.is_unique
    assert sample.ID.tolist() == truth.ID.tolist()
    assert set(sample.Label) == {0.5}
    stems = {path.stem for path in (phantom.root / "rsna" / "stage_2_test").glob("*.dcm")}
    assert {name.rpartition("_")[0] for name in sample.ID} == stems


def test_one_file_in_train_and_one_in_test_ends_too_early(phantom):
    assert len(phantom.truncated) == 2
    asked = pd.concat(
        pd.read_csv(phantom.root / "rsna" / name) for name in ("stage_2_train.csv", "stage_2_sample_submission.csv")
    )
    for name, folder in zip(phantom.truncated, ("stage_2_train", "stage_2_test"), strict=True):
        with pytest.raises(ValueError, match="less than expected"):
            _ = pydicom.dcmread(phantom.root / "rsna" / folder / f"{name}.dcm").pixel_array
        assert f"{name}_any" in set(asked.ID)


def test_every_class_is_in_three_patients_of_every_part(phantom):
    groups = {"cq500": phantom.external}
    groups |= {part: [study for study in phantom.studies if study["part"] == part] for part in ("train", "test")}
    for studies in groups.values():
        for k in range(6):
            ill = {study["patient"] for study in studies if np.atleast_2d(study["labels"])[:, k].max()}
            assert len(ill) >= 3


def test_prevalence_is_near_the_real_one(phantom):
    train = [study for study in phantom.studies if study["part"] == "train"]
    assert 0.35 <= np.mean([max(row[5] for row in study["labels"]) for study in train]) <= 0.45
    assert 0.10 <= phantom.labels("train")[:, 5].mean() <= 0.18
    ends = [study["labels"][k][5] for study in train for k in (0, -1)]
    assert np.mean(ends) < 0.05


def test_a_bleed_spans_several_neighbouring_slices(phantom):
    """Positive slices of a class stand together: most have a positive neighbour."""
    alone, total = 0, 0
    for study in phantom.studies:
        for column in np.array(study["labels"])[:, :5].T:
            padded = np.pad(column, 1)
            alone += int(((padded[1:-1] == 1) & (padded[:-2] == 0) & (padded[2:] == 0)).sum())
            total += int(column.sum())
    assert alone / total < 0.05


def test_labels_are_what_the_masks_show(phantom):
    """A label is set where its mask covers 40 mm2, and blood in the mask is hyperdense."""
    contrasts = []
    for study in phantom.studies:
        masks = np.load(phantom.root / "masks" / "rsna" / f"{study['study_id']}.npz", allow_pickle=False)
        assert sorted(masks.files) == sorted(study["slice_ids"])
        for name, labels in zip(study["slice_ids"], study["labels"], strict=True):
            if name not in phantom.rsna:
                continue
            area = float(np.prod([float(v) for v in phantom.rsna[name].PixelSpacing]))
            for k in range(5):
                inside = (masks[name] >> k & 1).astype(bool)
                assert (inside.sum() * area >= 40) == labels[k]
                if labels[k]:
                    contrasts.append(np.median(repaired_hounsfield(phantom.rsna[name])[inside]))
    assert 55 < np.median(contrasts) < 80


@pytest.mark.slow
def test_a_histogram_knows_something_of_a_bleed_but_not_enough(phantom):
    """Patient-wise out-of-fold logistic regression on HU inside the skull: neither trivial nor hopeless."""
    features, labels, patients = [], [], []
    for study in (study for study in phantom.studies if study["part"] == "train"):
        for name, row in zip(study["slice_ids"], study["labels"], strict=True):
            if name in phantom.rsna:
                features.append(inner_histogram(repaired_hounsfield(phantom.rsna[name])))
                labels.append(row[5])
                patients.append(study["patient"])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    predicted = cross_val_predict(
        model, np.array(features), labels, groups=patients, cv=GroupKFold(5), method="predict_proba"
    )
    assert 0.70 <= roc_auc_score(labels, predicted[:, 1]) <= 0.85


def inner_histogram(hounsfield: np.ndarray) -> np.ndarray:
    """Shares of 5 HU bins from -10 to 105 among the pixels enclosed by bone, and how many those are."""
    bone = ndimage.binary_closing(hounsfield > 150)
    inside = hounsfield[ndimage.binary_fill_holes(bone) & ~bone]
    counts = np.histogram(inside, np.arange(-10, 110, 5))[0] / max(len(inside), 1)
    return np.append(counts, len(inside) / hounsfield.size)


def test_cq500_folders_are_named_as_the_real_ones(phantom):
    pattern = re.compile(r"CQ500CT(\d+) CQ500CT\1/Unknown Study/CT [^/]+/CT\d{6}\.dcm")
    paths = sorted((phantom.root / "cq500").rglob("*.dcm"))
    assert all(pattern.fullmatch(path.relative_to(phantom.root / "cq500").as_posix()) for path in paths)
    numbers = {f"CQ500-CT-{pattern.search(path.as_posix()).group(1)}" for path in paths}
    assert numbers == {study["name"] for study in phantom.external}


def test_cq500_has_a_thick_plain_series_everywhere_and_a_thin_one_in_every_fifth_study(phantom):
    num_thin, kernels, kinds = 0, set(), set()
    for study in phantom.external:
        number = study["name"].rpartition("-")[2]
        steps = {}
        for name, uids in study["series"].items():
            folder = phantom.root / "cq500" / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / name
            files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
            assert sorted(file.SOPInstanceUID for file in files) == sorted(uids)
            kinds.add(files[0].ImageType[2])
            if files[0].ImageType[2] == "AXIAL":
                kernels.add(files[0].ConvolutionKernel)
                steps[name] = np.median(np.diff(sorted(float(file.ImagePositionPatient[2]) for file in files)))
                assert len(files) <= 96
        assert 5.0 in {round(step, 3) for step in steps.values()}
        num_thin += any(step < 1.3 for step in steps.values())
    assert num_thin == 3
    assert kernels == {"STANDARD", "BONE"}
    assert kinds == {"AXIAL", "LOCALIZER"}


def test_cq500_headers_are_legal_dicom_without_names_or_dates(phantom, monkeypatch):
    monkeypatch.setattr(pydicom_settings, "reading_validation_mode", WARN)  # and a warning is an error
    for path in (phantom.root / "cq500").rglob("CT00000*.dcm"):
        file = pydicom.dcmread(path)
        assert file.pixel_array.shape == (128, 128)
        assert not {element.VR for element in file} & {"PN", "DA", "TM", "DT"}
        assert file.SOPInstanceUID.is_valid
        assert file.file_meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID


def test_two_of_three_readers_are_right_and_sometimes_one_is_not(phantom):
    reads = pd.read_csv(phantom.root / "cq500" / "reads.csv").set_index("name")
    columns = ["EDH", "IPH", "IVH", "SAH", "SDH", "ICH"]
    assert set(reads.Category) <= {"B1", "B2"}
    votes = sum(reads[[f"R{reader}:{column}" for column in columns]].to_numpy() for reader in (1, 2, 3))
    truth = np.array([study["labels"] for study in phantom.external])
    order = [study["name"] for study in phantom.external]
    assert np.array_equal((pd.DataFrame(votes, reads.index).loc[order] >= 2).astype(int).to_numpy(), truth)
    assert ((votes == 1) | (votes == 2)).any()
    subtypes = [column for column in columns if column != "ICH"]
    for reader in (1, 2, 3):
        own = reads[[f"R{reader}:{column}" for column in subtypes]].max(axis=1)
        assert (reads[f"R{reader}:ICH"] >= own).all(), "a reader sees a subtype and no hemorrhage"


def test_readers_of_many_phantoms_differ_as_often_as_those_of_the_real_file(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.zeros((491, 6), int)
    labels[:, :5] = rng.random((491, 5)) < 0.2
    labels[:, 5] = labels.max(1)
    studies = [{"name": f"CQ500-CT-{i}", "index": i, "labels": row.tolist()} for i, row in enumerate(labels)]
    write_reads(tmp_path, studies, 0)
    reads = pd.read_csv(tmp_path / "reads.csv")
    votes = sum(reads[f"R{reader}:SDH"] for reader in (1, 2, 3)).to_numpy()
    assert 0.25 < (votes[votes >= 2] == 2).mean() < 0.45  # from .18 to .54 in the real file
    assert 0.03 < (votes[votes < 2] == 1).mean() < 0.11  # from .02 to .14
