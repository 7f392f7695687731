"""The plan of `predict`: the files that may be images, and the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError, nearest
from ichkit.core.progress import logger
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.parts import WHOLE
from ichkit.show.plan import Forecast, Plan, format_bytes
from ichkit.sources.files import count_read, scan_files
from ichkit.sources.folder import image_files
from ichkit.sources.series import read_override
from ichkit.sources.table import SOURCES, DataSource
from ichkit.stages.predict.gate import GATE_NAME, Gate, find_gate
from ichkit.stages.predict.model import Model, find_model, is_export, model_of
from ichkit.stages.predict.outcome import JUDGED_TABLES, refuse_foreign_files
from ichkit.stages.predict.signing import check_signature
from ichkit.validation.catalog import find_sources
from ichkit.work.folder import WorkFolder

if TYPE_CHECKING:
    from ichkit.stages.predict.judge import LabelFile
    from ichkit.stages.predict.thresholds import Thresholds
    from ichkit.stages.scores.evaluate import EvaluatePlan

# The scores are imported inside functions: they load much that a named model does not need.


@dataclass(frozen=True)
class PredictOptions:
    """Options of `predict`.

    Attributes:
        path: a folder or a zip of DICOM, any number of studies and series.
        model: a run, a stack or an export, by name or folder; None for the source that `submit` would choose.
        out: the output folder.
        series_override: CSV of manually chosen series (study_id, series).
        has_page: write the page with pictures and heat maps.
        device: the device for inference.
        accept_raw: accept slices whose values may not be Hounsfield units.
        skip_undecodable: reject images whose decoder is not installed, instead of stopping.
        labels: a label file; the predictions are scored against it.
        subgroups: columns of it that make subgroups.
        source: of the scans, one with `DataSource.plan_scans`: they are read as `prepare` reads it; None for the series
            of each study that suits best.
        gate: the export of a first model; studies that it calls positive do not go on to `model`.
        gate_threshold: from this probability on the first model calls a study positive; None for that of its export.
        has_dicom: also write heat maps as NIfTI, and key slices and a structured report as DICOM.
        verify: PEM file of the public key that the model, and a first one, must be signed with; None checks nothing.
        requires_signature: refuse to predict without `verify`.
    """

    path: Path
    model: str | None = None
    out: Path = Path("predictions")
    series_override: Path | None = None
    has_page: bool = True
    device: str = "auto"
    accept_raw: bool = False
    skip_undecodable: bool = False
    labels: Path | None = None
    subgroups: tuple[str, ...] = ()
    source: str | None = None
    has_dicom: bool = False
    gate: Path | None = None
    gate_threshold: float | None = None
    verify: Path | None = None
    requires_signature: bool = False


@dataclass(frozen=True)
class PredictPlan(Plan):
    """What `predict` found; files are listed but not read.

    Attributes:
        images: files that may be images.
        refused: files rejected unread, with the reason.
        override: manually chosen series, or None.
        scoring: the plan of the scores; None if a model is named.
        model: the model; None if missing scores decide it.
        labels: the labels to score against, or None.
        gate: the first model, or None.
    """

    config: Config
    work: WorkFolder
    options: PredictOptions
    task: Task
    images: pd.DataFrame
    refused: pd.DataFrame
    override: pd.DataFrame | None
    scoring: "EvaluatePlan | None"
    model: Model | None
    labels: "LabelFile | None" = None
    gate: Gate | None = None

    @property
    def source(self) -> DataSource | None:
        """The source whose rules the scans are read by, or None."""
        return None if self.options.source is None else SOURCES[self.options.source]

    @property
    def repairs(self) -> bool:
        """Whether broken intercepts are repaired."""
        return self.source is not None and self.source.repair

    @property
    def judges_hu(self) -> bool:
        """Whether values that are not HU are rejected; not where they are repaired by a rule of their source."""
        return not (self.options.accept_raw or self.repairs)

    def find_model(self) -> Model:
        """The model; computes missing scores if they decide it."""
        if self.model is not None:
            return self.model
        from ichkit.stages.scores.evaluate import make_current
        from ichkit.stages.scores.submit import choose_source

        assert self.scoring is not None
        make_current(self.scoring)
        return model_of(self.scoring.work, choose_source(self.scoring, has_models=True))

    def find_operating_points(self, model: Model) -> "Thresholds":
        """The thresholds of the model, of its export or of its out-of-fold rows; empty if neither is at hand."""
        from ichkit.stages.predict.thresholds import measure_thresholds, read_thresholds

        if model.is_exported:
            return read_thresholds(model, self.task)
        return measure_thresholds(self.work, model, self.task, self.config)

    def find_thresholds(self, model: Model) -> dict[str, float]:
        """The slice thresholds of each class with the best F1 out of fold; empty without current scores."""
        from ichkit.stages.scores.book import SLICES, open_book
        from ichkit.validation.scores import THRESHOLD_OF
        from ichkit.validation.thresholds import F1_AIM

        if model.is_exported:
            from ichkit.stages.predict.thresholds import SLICE, read_thresholds

            return dict(read_thresholds(model, self.task).get(SLICE, {}).get(F1_AIM, {}))
        if not find_sources(self.work, self.task):
            return {}
        try:
            book = open_book(self.work, self.task)
        except ArtifactError:  # no scores, or old ones: thresholds are only shown
            return {}
        source = next((one for one in book.sources if one.name == model.name), None)
        if source is None:
            return {}
        metric = THRESHOLD_OF[F1_AIM]
        found = {name: book.find(source, metric, name, SLICES).value for name in self.task.classes}
        return {name: value for name, value in found.items() if value == value}

    @property
    def writes(self) -> tuple[Path, ...]:
        """The scores, where they are made again; the tables and the page."""
        scores = () if self.scoring is None else self.scoring.writes
        names = [f"{name}.csv" for name in ("slices", "studies", "rejected", "series_choice")]
        names += [] if self.labels is None else [f"{name}.csv" for name in JUDGED_TABLES]
        names += ["predictions.json", *(["predictions.html"] if self.options.has_page else [])]
        names += [] if self.gate is None else [GATE_NAME]
        names += ["dicom"] if self.options.has_dicom else []
        return (*scores, *(self.options.out / name for name in names))

    def forecast(self) -> Forecast:
        """The files, then the model."""
        chosen = "the best complete source, once it is scored"
        if self.model is not None:
            chosen = f"{self.model.name}: {sum(len(folds) for folds in self.model.runs.values())} networks"
        num_files, num_bytes = count_read(self.images)
        return Forecast((f"{num_files} files that may be images, {format_bytes(num_bytes)}", f"with {chosen}"))


def plan(config: Config, work: WorkFolder, options: PredictOptions) -> PredictPlan:
    """Lists the files and finds the model; writes nothing.

    Raises:
        DataError: nothing at the path, or an invalid override.
        ArtifactError, ConfigError: no such model, or none at all; it is not signed as asked; `out` has files that
            `predict` did not write.
    """
    task = find_task(config.task)
    _check_source(options)
    _check_signatures(options)
    refuse_foreign_files(options.out)
    if options.has_dicom:
        from ichkit.stages.predict.dicom_out import check_parts

        check_parts()
    files, refused = scan_files(options.path)
    override = None if options.series_override is None else read_override(options.series_override)
    scoring, model = None, None
    if options.model is not None:
        model = find_model(work, options.model, task)
    else:
        from ichkit.stages.scores.evaluate import plan_scores
        from ichkit.stages.scores.submit import choose_source

        if not find_sources(work, task):
            raise ConfigError(
                f"no model: expected a finished run below {work.runs}, found none. Train one, name an export with "
                "--model, or run `ichkit demo` for a small example model."
            )
        scoring = plan_scores(config, work)
        if scoring.is_current:
            model = model_of(work, choose_source(scoring, has_models=True))
    images, labels = image_files(files), _read_labels(options, config, task)
    if options.gate is None and options.gate_threshold is not None:
        raise ConfigError("--gate-threshold belongs to a first model: name it with --gate FOLDER.")
    gate = None if options.gate is None else find_gate(work, options.gate, options.gate_threshold)
    return PredictPlan(config, work, options, task, images, refused, override, scoring, model, labels, gate)


def _check_signatures(options: PredictOptions) -> None:
    """Checks the signatures of the models; of what they hold only the manifest was read before."""
    if options.verify is None:
        if options.requires_signature:
            raise ConfigError("--require-signature: name the public key of the model with --verify KEY.")
        return
    for option, folder in (("--model", options.model), ("--gate", options.gate)):
        if folder is None and option == "--gate":
            continue
        if folder is None or not is_export(Path(folder)):
            raise ConfigError(
                f"--verify: expected a folder written by `ichkit export` with {option}, found {folder or 'none'}: only "
                "exports are signed. Export it with `ichkit export NAME --sign KEY`."
            )
        check_signature(Path(folder), options.verify)
        logger.info("predict: %s is signed by the key of %s", folder, options.verify)


def _check_source(options: PredictOptions) -> None:
    names = [name for name, row in SOURCES.items() if row.plan_scans is not None]
    if options.source is not None and options.source not in names:
        raise ConfigError(
            f'predict --source: "{options.source}" has no rules of its own for scans. {nearest(options.source, names)}'
        )
    if options.source is not None and options.series_override is not None:
        raise ConfigError(f"predict --source {options.source} reads every series: leave out --series-override.")


def _read_labels(options: PredictOptions, config: Config, task: Task) -> "LabelFile | None":
    from ichkit.sources.labels import check_subgroups, read_folder_labels, read_subgroups
    from ichkit.stages.predict.judge import LabelFile

    if options.labels is None:
        if options.subgroups:
            raise ConfigError("--subgroup names columns of a label file: give it with --labels CSV.")
        return None
    by_part = config.prepare.parts.kind != WHOLE
    names = check_subgroups(options.subgroups, [options.labels], task)
    labels, key = read_folder_labels(options.labels, task, by_part=by_part, subgroups=names)
    groups = read_subgroups(options.labels, names)[0] if names else None
    return LabelFile(options.labels, labels, key, groups)
