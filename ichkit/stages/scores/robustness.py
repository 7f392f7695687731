"""`evaluate --robustness`: a run's networks on held-out patients whose scans are noisy, shifted, moved or coarser."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError
from ichkit.core.progress import Meter, StopFlag, format_count, logger, stop_on_signal
from ichkit.core.rows import find_row
from ichkit.core.seeding import derive_seed, make_generator
from ichkit.imaging.perturbations import PERTURBATIONS, Given
from ichkit.imaging.store import Prepared
from ichkit.show.plan import Forecast
from ichkit.stages.scores import evaluate
from ichkit.stages.scores.book import open_book
from ichkit.stages.scores.evaluate import EvaluateOptions, EvaluatePlan, ScoredPlan
from ichkit.validation.catalog import Source, pick_source
from ichkit.validation.robustness import compare_perturbed
from ichkit.validation.scope import label_array
from ichkit.validation.scores import LOG_LOSS, POOLED, ROC_AUC, WEIGHTED_LOG_LOSS
from ichkit.validation.tallies import ScoredRows
from ichkit.work.artifacts import ArtifactWriter, Manifest, find_current, has_artifact, read_manifest, read_table
from ichkit.work.folder import WEIGHTS_NAME, WorkFolder
from ichkit.work.locks import Look, alone, look_at
from ichkit.work.schemas import PROBABILITY_CLIP

if TYPE_CHECKING:
    from ichkit.engine.inference import Predictor

MADE_BY = "ichkit evaluate --robustness"
ROBUSTNESS_NAME, PREDICTIONS_NAME = "robustness.parquet", "predictions.parquet"
UNCHANGED = "none"
"""The `perturbation` of predictions of the scans as they are."""


@dataclass(frozen=True)
class RobustnessPlan(ScoredPlan):
    """What `--robustness` found.

    Attributes:
        source: the run whose networks are perturbed; None while it is not known, because scores are missing.
        settings, inputs: everything the result depends on; empty while the run is not known.
        current: the manifest of an up-to-date result, else None.
    """

    config: Config
    work: WorkFolder
    options: EvaluateOptions
    prepared: Prepared
    source: Source | None
    settings: dict[str, Any]
    inputs: dict[str, str]
    current: Manifest | None
    seen: Look

    @property
    def own_writes(self) -> tuple[Path, ...]:
        """The folder of the result."""
        return () if self.current is not None else (self.work.robustness,)

    def forecast(self) -> Forecast:
        """The missing scores, then the predictions of every perturbation."""
        name = "the best run" if self.source is None else self.source.name
        if self.current is not None:
            return self.after_scoring([f"robustness of {name}: up to date, nothing to do"])
        asked = self.config.robustness
        step = (
            f"predicts at most {format_count(asked.patients, 'held-out patient')} of each fold of {name} by the "
            f"network of that fold, as they are and with {format_count(len(find_names(self.config)), 'perturbation')}"
        )
        return self.after_scoring([step])


def plan(config: Config, work: WorkFolder, options: EvaluateOptions | None = None) -> RobustnessPlan:
    """The run and the sample, and whether that was done; writes nothing.

    Raises:
        ArtifactError: nothing is prepared or trained, or an artifact is damaged.
        ConfigError: an unknown source or perturbation, or a source that is a stack.
    """
    options, seen = options or EvaluateOptions(), look_at(work.robustness)
    names = find_names(config)
    scoring = evaluate.plan_scores(config, work, options)
    prepared, source = scoring.prepared, _find_run(scoring, options.source)
    if source is None:
        return RobustnessPlan(scoring, config, work, options, prepared, None, {}, {}, None, seen)
    asked = config.evaluate
    settings = {**config.robustness.settings(), "num_draws": asked.num_draws, "level": asked.level}
    settings |= {"perturbations": list(names), "seed": config.seed, "task": config.task}
    inputs = _inputs_of(work, prepared, source)
    current = find_current(work.robustness, settings, inputs)
    return RobustnessPlan(scoring, config, work, options, prepared, source, settings, inputs, current, seen)


def _plan_again(old: RobustnessPlan) -> RobustnessPlan:
    return plan(old.config, old.work, old.options)


@alone(lambda plan: plan.work.robustness, _plan_again)
def run(plan: RobustnessPlan) -> pd.DataFrame:
    """Predicts and scores the perturbed scans unless that was done, and returns `robustness.parquet`.

    Raises:
        ArtifactError: an artifact is damaged.
        Stopped: a stop signal arrived; nothing is stored.
    """
    evaluate.make_current(plan.scoring)
    return _execute(_plan_again(plan) if plan.source is None else plan)


def find_names(config: Config) -> tuple[str, ...]:
    """The perturbations that are asked for: those of the settings, or all.

    Raises:
        ConfigError: an unknown one.
    """
    asked = config.robustness.perturbations
    for name in asked:
        find_row(PERTURBATIONS, name, "robustness.perturbations")
    return asked or tuple(PERTURBATIONS)


def _execute(plan: RobustnessPlan) -> pd.DataFrame:
    """The stored result if it is up to date, else a new one."""
    if plan.current is not None:
        return read_table(plan.work.robustness / ROBUSTNESS_NAME, plan.current.sha256_of(ROBUSTNESS_NAME))
    source, prepared = plan.source, plan.prepared
    assert source is not None
    rows = pick_rows(prepared, source, plan.config)
    predictions = _predict(plan, source, rows)
    table = score_perturbed(predictions, rows, source, plan.config)
    writer = ArtifactWriter(plan.work.robustness, "robustness")
    writer.write_table(PREDICTIONS_NAME, predictions)
    writer.write_table(ROBUSTNESS_NAME, table)
    num_patients = int(rows.patient_id.nunique())
    facts = {"run": source.name, "data": source.data, "task": prepared.task.name, "num_patients": num_patients}
    writer.commit(settings=plan.settings, inputs=plan.inputs, facts=facts)
    return table


def pick_rows(prepared: Prepared, source: Source, config: Config) -> pd.DataFrame:
    """The rows of `slices.parquet` of the sampled patients of every fold of a run: the same ones in every call."""
    train = prepared.split("train")
    picked: list[str] = []
    for fold in source.folds:
        patients = np.sort(train.patient_id[train.fold == fold].unique())
        order = make_generator(config.seed, "robustness", fold).permutation(len(patients))
        picked.extend(patients[order[: config.robustness.patients]])
    return train[train.fold.isin(source.folds) & train.patient_id.isin(picked)].reset_index(drop=True)


def score_perturbed(predictions: pd.DataFrame, rows: pd.DataFrame, source: Source, config: Config) -> pd.DataFrame:
    """`robustness.parquet`: every score of every perturbation, before and after, with the paired difference.

    Args:
        predictions: `predictions.parquet`.
        rows: from `pick_rows`.
    """
    task, settings = source.task, config.evaluate
    labels = label_array(source.scope.mask(rows), task)
    patient, _ = pd.factorize(rows.patient_id, sort=True)
    place: dict[str, str | int] = {"dataset": "train", "fold": POOLED}
    metrics = (WEIGHTED_LOG_LOSS, LOG_LOSS, ROC_AUC) if source.scope.is_whole else (LOG_LOSS, ROC_AUC)
    of = {str(name): part.set_index("slice_id") for name, part in predictions.groupby("perturbation", sort=False)}
    table = []
    for name in find_names(config):
        is_read = rows.slice_id.isin(of[name].index).to_numpy()
        ids = rows.slice_id[is_read]
        own, other = (of[key].loc[ids, task.probability_columns].to_numpy(np.float64) for key in (UNCHANGED, name))
        before = ScoredRows(place, own, labels[is_read], patient[is_read])
        found = compare_perturbed(
            before,
            other,
            task,
            metrics,
            num_draws=settings.num_draws,
            level=settings.level,
            seed=derive_seed(config.seed, "robustness"),
        )
        num_patients = len(np.unique(before.members))
        for score in found:
            values = {("class" if key == "class_name" else key): value for key, value in asdict(score).items()}
            table.append({"run": source.name, "perturbation": name, **values, "num_patients": num_patients})
    return pd.DataFrame(table)


def read_robustness(work: WorkFolder, prepared: Prepared, sources: list[Source]) -> pd.DataFrame | None:
    """`robustness.parquet` if it is of the present networks of its run and of the present store; else None.

    Raises:
        ArtifactError: it is damaged.
    """
    if not has_artifact(work.robustness):
        return None
    manifest = read_manifest(work.robustness)
    own = [source for source in sources if source.name == manifest.facts["run"]]
    if not own or manifest.inputs != _inputs_of(work, prepared, own[0]):
        return None
    return read_table(work.robustness / ROBUSTNESS_NAME, manifest.sha256_of(ROBUSTNESS_NAME))


def _find_run(scoring: EvaluatePlan, name: str | None) -> Source | None:
    """The run of that name, else the best run on the leaderboard; None while there is none to know it by."""
    if name is not None:
        source = pick_source(scoring.sources, name)
        if not source.is_run:
            raise ConfigError(
                f'robustness: "{name}" is a stack; expected a run, whose networks see the pictures. Its runs: '
                f"{', '.join(source.runs)}."
            )
        return source
    runs = [source for source in scoring.sources if source.is_run]
    if len(runs) == 1:
        return runs[0]
    if not scoring.is_current:
        return None
    book = open_book(scoring.work, scoring.prepared.task)
    return next(source for source in book.sources if source.is_run)


def _inputs_of(work: WorkFolder, prepared: Prepared, source: Source) -> dict[str, str]:
    """SHA-256 of the weights of every fold, and of the table of slices."""
    weights = {
        f"runs/{source.name}/fold{fold}/{WEIGHTS_NAME}": read_manifest(work.fold(source.name, fold)).sha256_of(
            WEIGHTS_NAME
        )
        for fold in source.folds
    }
    return {"prepared/slices.parquet": prepared.manifest.sha256_of("slices.parquet"), **weights}


def _predict(plan: RobustnessPlan, source: Source, rows: pd.DataFrame) -> pd.DataFrame:
    """`predictions.parquet`: the probabilities of every slice, as it is and with every perturbation."""
    # Imported here: torch takes seconds, and the scores need none of it.
    from ichkit.engine.devices import torch_threads
    from ichkit.engine.inference import load_predictor

    device = "cpu" if plan.config.train.accelerator == "cpu" else "auto"
    parts: list[pd.DataFrame] = []
    num_studies = rows.volume.nunique()
    counted = format_count(num_studies, "study", "studies")
    logger.info("robustness: %s on %s of %d held-out patients", source.name, counted, rows.patient_id.nunique())
    with stop_on_signal() as stop, torch_threads(None), Meter("robustness", num_studies, "studies") as meter:
        for fold in source.folds:
            predictor = load_predictor(plan.work.fold(source.name, fold), device)
            for relative, own in rows[rows.fold == fold].groupby("volume", sort=False):
                parts += _predict_study(plan, predictor, str(relative), own, stop)
                meter.advance()
    return pd.concat(parts, ignore_index=True)


def _predict_study(
    plan: RobustnessPlan, predictor: "Predictor", relative: str, rows: pd.DataFrame, stop: StopFlag
) -> Iterator[pd.DataFrame]:
    """The rows of one study that are read, for every perturbation."""
    from ichkit.engine.inference import spread_positions

    volume, index = plan.prepared.read_volume(relative), rows.slice_index.to_numpy()
    low, high = plan.prepared.manifest.settings["hull_hu"]
    given = Given(volume, spread_positions(rows, len(volume)), int(low), int(high))
    columns = plan.prepared.task.probability_columns
    for name in (UNCHANGED, *find_names(plan.config)):
        stop.check("nothing is stored before all is predicted")
        if name == UNCHANGED:
            shown, positions, place = given.volume, given.positions_mm, np.arange(len(volume))
        else:
            rng = make_generator(plan.config.seed, "robustness", name, relative)
            changed = PERTURBATIONS[name].apply(given, rng)
            shown, positions, place = changed.volume, changed.positions_mm, changed.of_slice
        probabilities = predictor.spread(predictor.read_study(shown, positions).probabilities)
        is_read = place[index] >= 0
        values = np.clip(probabilities[place[index[is_read]]], *PROBABILITY_CLIP).astype(np.float32)
        keys = rows.loc[is_read, ["slice_id", "study_id", "slice_index", "fold"]].reset_index(drop=True)
        keys.insert(0, "perturbation", name)
        yield keys.assign(**dict(zip(columns, values.T, strict=True)))
