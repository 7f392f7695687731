"""`predict --dicom`: heat maps as NIfTI, key slices as DICOM secondary capture, and a structured report per study."""

import gzip
import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

import ichkit
from ichkit.core.errors import ConfigError
from ichkit.core.progress import Meter, format_count, logger
from ichkit.core.tasks import Task
from ichkit.engine.inference import Predictor
from ichkit.imaging import nifti
from ichkit.imaging.dicom import UnreadableError
from ichkit.imaging.parts import whole_id
from ichkit.imaging.patient_space import affine_of_slices, whole_picture
from ichkit.imaging.pictures import caption_picture, enlarge_picture, paint_heat
from ichkit.sources.collect import PlannedSource
from ichkit.sources.files import file_refs
from ichkit.stages.explain.volumes import Volumes
from ichkit.stages.predict.model import RESEARCH_NOTE
from ichkit.stages.predict.outcome import DICOM_FOLDER as FOLDER
from ichkit.stages.predict.outcome import Prediction, find_headline, find_key_slices
from ichkit.stages.predict.study_heat import StudyHeat, find_heat
from ichkit.work.artifacts import FileDigest, encode_table, write_bytes_atomically

TRIAGE_NAME = f"{FOLDER}/triage.csv"
_MAKER, _SERIES = "ichkit", "ichkit research result, not for diagnosis"
_SCHEME = "99ICHKIT"
_ANY = Code("1386000", "SCT", "Intracranial hemorrhage (disorder)")
_CAPTURE_SERIES, _REPORT_SERIES = 9001, 9002
_CAPTURE_SIDE = 512  # on fewer pixels the text below cannot be read
# Attributes that a DICOM file of a patient must have, empty where the source lacks them; none is invented.
_EMPTY = [
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
]


def check_parts() -> None:
    """Raises if a package of the extra dicom-out is missing.

    Raises:
        ConfigError: names what to install.
    """
    try:
        import highdicom  # noqa: F401
        import nibabel  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"predict --dicom: {error.name} is not installed. Run pip install 'ichkit[dicom-out]'."
        ) from error


def write_dicom(
    out: Path,
    prediction: Prediction,
    networks: dict[str, dict[int, Predictor]],
    volumes: Volumes,
    planned: PlannedSource,
    task: Task,
) -> dict[str, FileDigest]:
    """Writes the outputs of every study below `out/dicom`; returns digests by relative path.

    ::

        OUT/dicom/triage.csv                 studies, highest probability of the first class first
            study-N/heat.nii.gz              (columns, rows, slices) in the space of the scan
            study-N/key-1.dcm ...            secondary capture: a key slice with its heat
            study-N/report.dcm               TID 1500: the probability of each class, with the key slices

    N is the row of `studies.csv`, from 1. The DICOM files belong to the study of their source and repeat its patient
    attributes as they are there; scans that were no DICOM have `heat.nii.gz` alone.
    """
    predictors = [predictor for of_run in networks.values() for predictor in of_run.values()]
    main = find_headline(prediction.studies, task)
    keys = dict(list(find_key_slices(prediction.slices, task).groupby("study_id")))
    of_study = dict(zip(planned.tasks.study_ids, range(len(planned.tasks)), strict=True))
    written = {TRIAGE_NAME: _write(out, TRIAGE_NAME, encode_table(make_triage(prediction, task), ".csv"))}
    num_without = 0
    with Meter("dicom", len(prediction.studies), "studies") as meter:
        for number, study in enumerate(prediction.studies.to_dict("records"), 1):
            study_id = str(study["study_id"])
            rows = prediction.slices[prediction.slices["study_id"] == study_id].sort_values("slice_index")
            files = planned.tasks.rows(of_study[whole_id(study_id)])
            own = [_find_file(files, str(name)) for name in rows["slice_id"]]
            volume, origin = volumes.of_study(study_id)
            heat = find_heat(volume, origin or whole_picture(own), rows, predictors, task, main)
            folder = f"{FOLDER}/study-{number}"
            name = f"{folder}/heat.nii.gz"
            written[name] = _write(out, name, encode_nifti(heat.heat, affine_of_slices(own)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of pydicom repeat values of the header
                sources = [_read_source(own[int(index)]) for index in _positions(keys[study_id], rows)]
                known = [source for source in sources if source is not None]
                if len(known) < len(sources) or not known:
                    num_without += 1
                    meter.advance()
                    continue
                try:
                    identity = _identify(known[0], study_id, rows, prediction, task)
                    made = _capture(known, identity, keys[study_id], rows, heat, task, main)
                    report = _report(known, identity, study, prediction, task)
                except Exception as error:  # attributes of a hostile source make highdicom and pydicom raise anything
                    logger.debug("predict: study %d has no DICOM outputs (%s)", number, type(error).__name__)
                    num_without += 1
                else:
                    named = {**{f"key-{rank}.dcm": data for rank, data in enumerate(made, 1)}, "report.dcm": report}
                    written |= {f"{folder}/{key}": _write(out, f"{folder}/{key}", data) for key, data in named.items()}
            meter.advance()
    if num_without:
        logger.warning(
            "predict: %s without DICOM outputs: the scans are no DICOM, or lack attributes or valid UIDs",
            format_count(num_without, "study", "studies"),
        )
    return written


def make_triage(prediction: Prediction, task: Task) -> pd.DataFrame:
    """The studies by the headline class, most probable first: rank, study (row of `studies.csv`), and the key slice."""
    main = f"p_{find_headline(prediction.studies, task)}"
    keys = find_key_slices(prediction.slices, task).groupby("study_id").first()
    table = prediction.studies.assign(study=np.arange(1, len(prediction.studies) + 1))
    table = table.sort_values([main, "study"], ascending=[False, True], ignore_index=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    table["key_slice_index"] = keys["slice_index"].reindex(table["study_id"]).to_numpy()
    columns = ["rank", "study", "study_id", "num_slices", *task.probability_columns, "key_slice_index"]
    return table[columns]


def encode_nifti(heat: np.ndarray, affine_lps: np.ndarray) -> bytes:
    """A (S, H, W) float32 map as compressed NIfTI-1 in the space of the scan.

    Args:
        affine_lps: (4, 4) from `affine_of_slices`.
    """
    import nibabel

    nifti1: Any = nibabel.Nifti1Image
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps  # NIfTI counts to the right and the front
    image = nifti1(np.ascontiguousarray(heat.transpose(2, 1, 0)), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header["descrip"] = b"ichkit Grad-CAM x probability, research use only"
    return gzip.compress(image.to_bytes(), mtime=0)


def derive_uid(*texts: str) -> str:
    """A UID from the texts, the same for the same ones.

    Source: DICOM PS3.5 B.2: 2.25 and a UUID as an integer, here the first 128 bits of a SHA-256.

    Example:
        >>> derive_uid("a") == derive_uid("a"), derive_uid("a")[:5]
        (True, '2.25.')
    """
    digest = hashlib.sha256("\x1f".join(texts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16])}"


def _identify(
    source: Dataset, study_id: str, rows: pd.DataFrame, prediction: Prediction, task: Task
) -> tuple[str, ...]:
    """What tells outputs apart: patients who share a UID, parts of a study and other predictions of it."""
    digest = hashlib.sha256(rows[task.probability_columns].to_numpy(np.float32).tobytes()).hexdigest()
    return prediction.model.name, digest, str(source.StudyInstanceUID), str(source.PatientID), _part_of(study_id)


def _part_of(study_id: str) -> str:
    """The name of a part, such as "left"; empty for a whole study."""
    return study_id.removeprefix(whole_id(study_id)).removeprefix(":")


def _write(out: Path, name: str, data: bytes) -> FileDigest:
    return write_bytes_atomically(out / name, data)


def _find_file(files: pd.DataFrame, slice_id: str) -> dict[Any, Any]:
    """The file of a slice: for a slab, that of its middle."""
    found: dict[Any, Any] = files[files["slice_id"] == whole_id(slice_id)].iloc[0].to_dict()
    return found


def _positions(keys: pd.DataFrame, rows: pd.DataFrame) -> list[int]:
    """Where the key slices are among the slices of their study."""
    where = {name: place for place, name in enumerate(rows["slice_id"])}
    return [where[name] for name in keys["slice_id"]]


def _read_source(file: dict[Any, Any]) -> Dataset | None:
    """The header of a DICOM file, without private tags; None for NIfTI, or without UIDs."""
    if file["syntax"] == nifti.SYNTAX:
        return None
    (ref,) = file_refs(pd.DataFrame([file]))
    try:
        source = pydicom.dcmread(io.BytesIO(ref.read()), stop_before_pixels=True, force=True)
        uids = [source.get(name) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")]
    except (UnreadableError, ValueError, KeyError, TypeError):
        return None
    if not all(uids):
        return None
    for name in _EMPTY:
        if name not in source:
            setattr(source, name, "")
    return source


def _capture(
    sources: Sequence[Dataset],
    identity: tuple[str, ...],
    keys: pd.DataFrame,
    rows: pd.DataFrame,
    heat: StudyHeat,
    task: Task,
    main: str,
) -> list[bytes]:
    """A secondary capture of every key slice."""
    import highdicom

    made = []
    series, part = derive_uid("captures", *identity), _part_of(str(rows["study_id"].iloc[0]))
    for rank, (source, index) in enumerate(zip(sources, _positions(keys, rows), strict=True), 1):
        picture = paint_heat(heat.picture_hu[index], heat.heat[index], is_faded=False)
        row = rows.iloc[index]
        lines = [f"{part + ': ' if part else ''}{main} {row[f'p_{main}']:.3f}"]
        if heat.shown[index]:
            lines.append(f"heat map: {heat.shown[index]} {row[f'p_{heat.shown[index]}']:.3f}")
        picture = caption_picture(enlarge_picture(picture, _CAPTURE_SIDE), [*lines, RESEARCH_NOTE])
        image = highdicom.sc.SCImage.from_ref_dataset(
            ref_dataset=source,
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),
            series_instance_uid=series,
            series_number=_CAPTURE_SERIES,
            sop_instance_uid=derive_uid("capture", str(source.SOPInstanceUID), *identity),
            instance_number=rank,
            manufacturer=_MAKER,
            transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian,
            series_description=_SERIES,
        )
        image.Modality = "OT"
        image.BurnedInAnnotation = "YES"
        image.BodyPartExamined = "HEAD"  # unpaired, so that there is no laterality (PS3.3 C.7.3.1)
        made.append(_encode(image))
    return made


def _report(
    sources: Sequence[Dataset], identity: tuple[str, ...], study: dict[Any, Any], prediction: Prediction, task: Task
) -> bytes:
    """The structured report of a study: a probability for each class, and the key slices they are seen on."""
    import highdicom
    from highdicom import sr

    model, part = prediction.model.name, _part_of(str(study["study_id"]))
    device = sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            uid=derive_uid("device", _MAKER), name=_MAKER, manufacturer_name=_MAKER, model_name=model
        ),
    )
    algorithm = sr.AlgorithmIdentification(name=f"{_MAKER} {model}", version=ichkit.__version__)
    references = [sr.SourceImageForMeasurementGroup(str(one.SOPClassUID), str(one.SOPInstanceUID)) for one in sources]
    groups = []
    for name in task.classes:
        value = study[f"p_{name}"]
        if pd.isna(value):
            continue
        # Subtypes have private codes: the meaning is the class of this software, not a diagnosis.
        is_any = name == task.any_class and task.finding == "hemorrhage"
        finding = _ANY if is_any else Code(name[:16].upper(), _SCHEME, f"{name} ({task.finding})"[:64])
        seen = f"{part}: {name}" if part else name
        measured = sr.Measurement(
            name=codes.DCM.Probability, value=round(float(value), 6), unit=Code("1", "UCUM", "no units")
        )
        groups.append(
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(uid=derive_uid("tracking", *identity, name), identifier=seen),
                finding_type=finding,
                algorithm_id=algorithm,
                measurements=[measured],
                source_images=references,
            )
        )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.ComputedTomographyOfHead,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    document = highdicom.sr.Comprehensive3DSR(
        evidence=list(sources),
        content=content,
        series_instance_uid=derive_uid("report series", *identity),
        series_number=_REPORT_SERIES,
        sop_instance_uid=derive_uid("report", *identity),
        instance_number=1,
        manufacturer=_MAKER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=_SERIES,
    )
    return _encode(document)


def _encode(dataset: Dataset) -> bytes:
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()
