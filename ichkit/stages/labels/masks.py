"""`ichkit labels masks`: a label file from segmentation masks."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError, DataError, nearest
from ichkit.core.progress import Meter, format_count
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.dicom import UnreadableError
from ichkit.show.plan import Forecast, Plan
from ichkit.sources.files import FileRef, scan_files
from ichkit.sources.folder import image_files
from ichkit.sources.index import read_index
from ichkit.sources.masks import Mask, ids_in_scan, ids_without_scans, label_mask, list_masks, read_mask, study_of_mask
from ichkit.sources.plan import add_positions
from ichkit.stages.labels.label_file import SLICE, STUDY, merge_slices, refuse_existing, write_labels
from ichkit.work.folder import WorkFolder

NO_CLASS = "none"
_SHOWN = 5


@dataclass(frozen=True)
class MaskOptions:
    """Options of `labels masks`.

    Attributes:
        path: a folder of NIfTI masks, each named after its study.
        values: VALUE=CLASS of every value in the masks; "none" for a value without meaning.
        scans: the scans; None where they are NIfTI files named after the studies too.
        level: "slice" or "study", the rows of the label file.
        min_area_mm2: a class is positive on a slice from this area on; 0 is any pixel.
        out: the label file.
    """

    path: Path
    values: tuple[str, ...]
    scans: Path | None = None
    level: str = SLICE
    min_area_mm2: float = 0.0
    out: Path = Path("labels.csv")


@dataclass(frozen=True)
class MaskPlan(Plan):
    """What `labels masks` found: the masks, and what their values mean."""

    task: Task
    options: MaskOptions
    classes: dict[int, str]
    masks: tuple[FileRef, ...]

    @property
    def writes(self) -> tuple[Path, ...]:
        """The label file."""
        return (self.options.out,)

    def forecast(self) -> Forecast:
        """The masks and the meaning of their values."""
        named = ", ".join(f"{value} is {name or 'ignored'}" for value, name in sorted(self.classes.items()))
        size = sum(ref.num_bytes for ref in self.masks)
        steps = (f"{format_count(len(self.masks), 'mask')}: {named}", f"one row per {self.options.level}")
        return Forecast(steps, size / 10)


def plan(config: Config, _work: WorkFolder, options: MaskOptions) -> MaskPlan:
    """Lists the masks and checks the options; writes nothing.

    Raises:
        DataError: no NIfTI file at the path, or two masks of one study.
        ConfigError: values that name no class, or a label file that exists.
    """
    task = find_task(config.task)
    refuse_existing(options.out)
    classes = parse_values(options.values, task)
    files, _ = scan_files(options.path)
    masks = list_masks(files)
    if not masks:
        raise DataError(
            f"masks: expected NIfTI files (.nii, .nii.gz) at {options.path}, found none. Save DICOM segmentations as "
            "NIfTI first, e.g. with 3D Slicer or dcmqi."
        )
    studies = pd.Series([study_of_mask(ref.relative) for ref in masks])
    if studies.duplicated().any():
        raise DataError(
            f"masks: {int(studies.duplicated().sum())} of {len(masks)} masks have the study name of another. Give one "
            "mask per study, in which every class has a value of its own."
        )
    return MaskPlan(task, options, classes, tuple(masks))


def run(plan: MaskPlan) -> pd.DataFrame:
    """Writes the label file and returns its table.

    Raises:
        DataError: a mask that cannot be used; it is named by its number, in the order of the names.
    """
    options, task = plan.options, plan.task
    scans = None if options.scans is None else _read_scans(options.scans)
    tables = []
    with Meter("masks", len(plan.masks), "masks") as meter:
        for number, ref in enumerate(plan.masks, 1):
            try:
                mask = read_mask(ref)
                labels = label_mask(mask, plan.classes, task, options.min_area_mm2)
                study, ids = (mask.study, ids_without_scans(mask)) if scans is None else _find_scan(mask, scans)
            except UnreadableError as error:
                raise DataError(
                    f"masks: number {number} of {len(plan.masks)} by name: {error}. Every value other than 0 needs "
                    f"--values VALUE=CLASS (or VALUE={NO_CLASS}); a mask has the slices of its scan."
                ) from error
            tables.append(labels.assign(study_id=study, slice_id=ids))
            meter.advance()
    slices = pd.concat(tables, ignore_index=True)
    table = merge_slices(slices, task) if options.level == STUDY else slices[["slice_id", *task.classes]]
    write_labels(options.out, table, task, options.level)
    return table


def parse_values(texts: tuple[str, ...], task: Task) -> dict[int, str]:
    """Value to class, of VALUE=CLASS texts; several in one text are separated by commas.

    Raises:
        ConfigError: not of that form, a value twice or 0, or no class of the task.

    Example:
        >>> from ichkit.core.tasks import find_task
        >>> parse_values(("1=epidural,2=subdural", "9=none"), find_task("hemorrhage"))
        {1: 'epidural', 2: 'subdural', 9: ''}
    """
    classes: dict[int, str] = {}
    for text in (part.strip() for whole in texts for part in whole.split(",") if part.strip()):
        value, sign, name = (part.strip() for part in text.partition("="))
        if not sign or not value.isdecimal() or int(value) == 0 or not name:
            raise ConfigError(f"--values: expected VALUE=CLASS such as 1={task.classes[0]}, found {text[:40]!r}.")
        if name != NO_CLASS and name not in task.classes:
            raise ConfigError(f'--values: unknown class "{name[:40]}". {nearest(name[:40], (*task.classes, NO_CLASS))}')
        if int(value) in classes:
            raise ConfigError(f"--values: {value} is named twice. Name each value once.")
        classes[int(value)] = "" if name == NO_CLASS else name
    if not any(classes.values()):
        raise ConfigError(f"--values: expected the class of each value, e.g. --values 1={task.classes[0]}; found none.")
    return classes


def _read_scans(root: Path) -> pd.DataFrame:
    """The readable slices of the scans, with position_mm and the name of their folder."""
    files, _ = scan_files(root)
    index = add_positions(read_index(image_files(files), None))
    index = index[(index["reason"] == "") & index["position_mm"].notna()]
    if index.empty:
        raise DataError(f"masks: expected scans at {root}, found no readable CT slice. Check --scans.")
    folder = index["relative"].str.replace(r"/?[^/]*$", "", regex=True).str.replace(r"^.*/", "", regex=True)
    return index.assign(folder=folder, slice_id=index["slice_uid"])


def _find_scan(mask: Mask, scans: pd.DataFrame) -> tuple[str, list[str]]:
    """The study of a mask and the ids of its slices: of the series that has the mask's slices.

    A mask has the name of the study, the series or the folder of its scan.

    Raises:
        UnreadableError: no such scan, no series with these slices, or several.
    """
    is_own = (scans[["study_uid", "series_uid", "folder"]] == mask.study).any(axis=1)
    fitting, reasons = [], []
    for _, series in scans[is_own].groupby("series_uid"):
        try:
            fitting.append((str(series["study_uid"].iloc[0]), ids_in_scan(mask, series)))
        except UnreadableError as error:
            reasons.append(str(error))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UnreadableError(f"{len(fitting)} series have its slices; name it after the SeriesInstanceUID")
    reason = "; ".join(dict.fromkeys(reasons[:_SHOWN]))
    raise UnreadableError(reason or "no scan has its name as StudyInstanceUID, SeriesInstanceUID or folder")
