"""The commands as Python functions with the options of the command line."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ichkit.core.config import Config, load_config
from ichkit.core.tasks import find_task
from ichkit.work.folder import WorkFolder

if TYPE_CHECKING:
    import pandas as pd

    from ichkit.stages.scores.submit import Submission
    from ichkit.work.artifacts import Manifest

# Stages are imported inside functions: torch alone takes seconds, and reading a table does not need it.


def write_phantom(out: str | Path, config: str | Config = "default", **options: Any) -> None:
    """Writes synthetic head CT as DICOM to `out/rsna` and `out/cq500`.

    Args:
        options: attributes of `ichkit.phantom.writer.PhantomOptions`, such as `studies`, `size` (pixels) and `seed`.

    Raises:
        DataError: `out` has other content.
    """
    from ichkit.phantom import writer

    writer.run(writer.plan(_load(config), None, writer.PhantomOptions(Path(out), **options)))


def prepare(work: str | Path = "work", config: str | Config = "default", **options: Any) -> "Manifest":
    """Creates `work/prepared/` from DICOM or updates it with new files; returns its manifest.

    Args:
        options: attributes of `ichkit.stages.prepare.run.PrepareOptions`, such as `rsna`, `cq500`, `folder`.

    Raises:
        DataError, ConfigError, ArtifactError, FoldError: see the message.
    """
    from ichkit.stages.prepare import run as stage

    return stage.run(stage.plan(_load(config), _folder(work), stage.PrepareOptions(**_with_paths(options))))


def train(work: str | Path = "work", config: str | Config = "default", **options: Any) -> "list[Manifest]":
    """Trains the unfinished folds; returns the manifests of all requested folds.

    Args:
        options: attributes of `ichkit.stages.train.run.TrainOptions`, such as `folds`; `run_name` defaults to the name
            of the config, or "default" for a `Config` object.

    Raises:
        ArtifactError, FoldError, ConfigError: see the message.
    """
    from ichkit.stages.train import run as stage

    name = Path(config).stem if isinstance(config, str) else "default"
    return stage.run(stage.plan(_load(config), _folder(work), stage.TrainOptions(**{"run_name": name, **options})))


def stack(work: str | Path = "work", config: str | Config = "default", **options: Any) -> "Manifest":
    """Fits the stack of some runs unless it is up to date; returns its manifest.

    Args:
        options: attributes of `ichkit.stages.stack.run.StackOptions`: `runs` and `name`.

    Raises:
        ArtifactError, ContractError, ConfigError: see the message.
    """
    from ichkit.stages.stack import run as stage

    return stage.run(stage.plan(_load(config), _folder(work), stage.StackOptions(**options)))


def evaluate(work: str | Path = "work", config: str | Config = "default") -> "pd.DataFrame":
    """Scores all sources that are not up to date; returns the table of `scores`.

    Raises:
        ArtifactError, ContractError, FoldError: see the message.
    """
    from ichkit.stages.scores import evaluate as stage

    stage.make_current(stage.plan_scores(_load(config), _folder(work)))
    return scores(work)


def submit(work: str | Path = "work", config: str | Config = "default", **options: Any) -> "Submission":
    """Writes the submission of a source and the leaderboard; returns their paths and the source.

    Args:
        options: attributes of `ichkit.stages.scores.submit.SubmitOptions`: `source` and `submissions`.

    Raises:
        DataError, ConfigError, ContractError, ArtifactError: see the message.
    """
    from ichkit.stages.scores import submit as stage

    return stage.run(stage.plan(_load(config), _folder(work), stage.SubmitOptions(**_with_paths(options))))


@dataclass(frozen=True)
class LoadedModel:
    """A model for inference: a run, a stack or an export; see `load_model`."""

    path: Path
    config: Config

    def predict(self, path: str | Path, device: str = "auto") -> "pd.DataFrame":
        """Predicts every head CT below a folder or zip of DICOM; one row per slice: slice_id, study_id, p_any, ...

        The columns are those of `slices.csv`. Rejected files are omitted; `ichkit predict` lists them.

        Raises:
            DataError: nothing at the path, or no readable CT slice in it.
        """
        from ichkit.stages.predict import run as stage

        with tempfile.TemporaryDirectory() as out:
            options = stage.PredictOptions(Path(path), str(self.path), Path(out), has_page=False, device=device)
            return stage.run(stage.plan(self.config, WorkFolder(Path("work")), options)).slices


def load_model(path: str | Path, config: str | Config = "default") -> LoadedModel:
    """Loads the model in a folder: a run (`work/runs/NAME`), a stack (`work/stacks/NAME`) or an export.

    Args:
        config: a config with the task of the model.

    Raises:
        ConfigError, ArtifactError: there is no model in the folder, or it is damaged.

    Example::

        load_model("export/demo-blend").predict("scans/").p_any.max()
    """
    from ichkit.stages.predict.model import find_model

    loaded = _load(config)
    find_model(WorkFolder(Path("work")), str(path), find_task(loaded.task))
    return LoadedModel(Path(path), loaded)


def out_of_fold(work: str | Path, source: str, config: str | Config = "default") -> "pd.DataFrame":
    """Out-of-fold predictions of a run ("demo") or of one kind of a stack ("demo-blend"), one row per slice.

    Raises:
        ConfigError: no such source.
        ArtifactError, ContractError: a table is damaged.
    """
    from ichkit.validation.catalog import find_sources, load_out_of_fold, pick_source

    return load_out_of_fold(pick_source(find_sources(_folder(work), find_task(_load(config).task)), source))


def scores(work: str | Path = "work") -> "pd.DataFrame":
    """The last computed scores of every source: the rows of `scores.parquet` (docs/formats.md).

    Raises:
        ArtifactError: nothing is scored yet.
    """
    from ichkit.stages.scores.stored import SCORES_NAME
    from ichkit.work.artifacts import read_manifest, read_table

    folder = _folder(work).scores
    read_manifest(folder)
    return read_table(folder / SCORES_NAME)


def _load(config: str | Config) -> Config:
    return load_config(config) if isinstance(config, str) else config


def _folder(work: str | Path) -> WorkFolder:
    return WorkFolder(Path(work))


def _with_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Options with strings of paths converted to `Path`; names stay strings."""
    names = {"source", "backend"}
    return {
        name: Path(value) if isinstance(value, str) and name not in names else value for name, value in options.items()
    }
