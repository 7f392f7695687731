"""The plan of `watch`: the folder, the model, and the folder of the results."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError, DataError
from ichkit.show.plan import Forecast, Plan
from ichkit.stages.predict.model import Model
from ichkit.stages.predict.run import PredictOptions, PredictPlan
from ichkit.stages.predict.run import plan as plan_prediction
from ichkit.work.artifacts import digest_of, encode_json, has_artifact, list_differences, read_manifest
from ichkit.work.artifacts import write_bytes_atomically as write_atomically
from ichkit.work.folder import WorkFolder
from ichkit.work.places import is_empty

STATE_NAME, SUMMARY_NAME, LOOSE_NAME = "watch.json", "watched.csv", "unassigned.csv"
STUDY_PREFIX = "study-"


@dataclass(frozen=True)
class WatchOptions:
    """Options of `watch`.

    Attributes:
        path: the folder that files arrive in.
        model: a run, a stack or an export, by name or folder.
        out: the output folder, one folder per study in it.
        settle_seconds: a study is complete when none of its files was added or changed for so long.
        poll_seconds: time between two looks at the folder.
        is_once: predict what is complete and end.
        accept_raw, skip_undecodable, has_page, has_dicom, device, verify, requires_signature: as in `PredictOptions`.
    """

    path: Path
    model: str
    out: Path = Path("watched")
    settle_seconds: float = 30.0
    poll_seconds: float = 5.0
    is_once: bool = False
    accept_raw: bool = False
    skip_undecodable: bool = False
    has_page: bool = True
    has_dicom: bool = False
    device: str = "auto"
    verify: Path | None = None
    requires_signature: bool = False


@dataclass(frozen=True)
class WatchPlan(Plan):
    """What `watch` found.

    Attributes:
        base: the plan of `predict` for all files that are there; that of one study is made from it.
        model: the model.
    """

    options: WatchOptions
    base: PredictPlan
    model: Model

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the predictions; an output folder has those of one model."""
        given = self.options
        return {
            "model": self.model.name,
            "weights": _digest_model(self.model, Path(given.model)),
            "task": self.base.task.name,
            "accept_raw": given.accept_raw,
            "page": given.has_page,
            "dicom": given.has_dicom,
        }

    def of_study(self, files: pd.DataFrame, out: Path) -> PredictPlan:
        """The plan of `predict` for the files of one study."""
        return replace(
            self.base, images=files, refused=self.base.refused.iloc[:0], options=replace(self.base.options, out=out)
        )

    @property
    def writes(self) -> tuple[Path, ...]:
        """The tables and the folders of the studies."""
        return tuple(self.options.out / name for name in (SUMMARY_NAME, LOOSE_NAME, STATE_NAME, f"{STUDY_PREFIX}*"))

    def forecast(self) -> Forecast:
        """The files that are there, the model, and how long a study is waited for."""
        given = self.options
        way = "ends then" if given.is_once else f"looks every {given.poll_seconds:g} s until it is stopped"
        waits = f"predicts each study of whose files none has changed for {given.settle_seconds:g} s; {way}"
        return Forecast((*self.base.forecast().steps, waits))


def plan(config: Config, work: WorkFolder, options: WatchOptions) -> WatchPlan:
    """Checks the folders and finds the model; writes nothing.

    Raises:
        DataError: no folder at the path.
        ConfigError, ArtifactError: no such model; it reads several sequences; the output folder is inside the watched
            one, has other content, or was made with other settings.
    """
    if not options.path.is_dir():
        raise DataError(f"watch: expected a folder at {options.path}, found none. Check the path.")
    inside, outside = options.out.resolve(), options.path.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ConfigError(
            f"watch: expected an output folder outside {options.path} and not around it, found {options.out}: what is "
            "written there would be read as new files. Choose another folder with --out."
        )
    if config.prepare.sequences.names:
        raise ConfigError(
            "watch: expected a config of CT, found one that reads several sequences of a study as NIfTI files. Predict "
            "such studies with `ichkit predict`."
        )
    base = plan_prediction(
        config,
        work,
        PredictOptions(
            options.path,
            options.model,
            options.out,
            has_page=options.has_page,
            device=options.device,
            accept_raw=options.accept_raw,
            skip_undecodable=options.skip_undecodable,
            has_dicom=options.has_dicom,
            verify=options.verify,
            requires_signature=options.requires_signature,
        ),
    )
    made = WatchPlan(options, base, base.find_model())
    check_output(options.out, made.settings)
    return made


def check_output(out: Path, settings: dict[str, Any]) -> None:
    """Checks that an output folder is new or was made by `watch` with these settings.

    Raises:
        ConfigError: it has other content, or the settings differ.
        ArtifactError: its file of settings is damaged.
    """
    if is_empty(out):
        return
    path = out / STATE_NAME
    if not path.is_file():
        raise ConfigError(
            f"watch: expected a new folder at {out}, or one that `ichkit watch` has written, found other content. "
            "Choose another folder with --out."
        )
    try:
        found = json.loads(path.read_bytes())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a file of `ichkit watch`. Choose another folder with --out.") from error
    if differences := list_differences(found, settings):
        raise ConfigError(
            f"watch: {out} was made with other settings ({'; '.join(differences)}). Use those, or choose another "
            "folder with --out."
        )


def begin_output(out: Path, settings: dict[str, Any]) -> None:
    """Writes the settings into a new output folder; for the holder of its lock.

    Raises:
        ConfigError, ArtifactError: as `check_output`.
    """
    check_output(out, settings)
    if not (out / STATE_NAME).is_file():
        write_atomically(out / STATE_NAME, encode_json({"settings": settings}))


def _digest_model(model: Model, named: Path) -> str:
    """A digest of the files of a model, by their manifests."""
    if model.is_exported:
        folders = [named]
    else:
        folders = [folder for of_run in model.runs.values() for folder in of_run.values()]
        folders += [] if model.stack is None else [model.stack]
    manifests = [read_manifest(folder) for folder in folders if has_artifact(folder)]
    return digest_of([{name: one.sha256 for name, one in found.files.items()} for found in manifests])
