"""W&B runs: stored in the work folder for `wandb sync`, or sent at once with `WANDB_MODE=online`."""

import importlib
import os
import secrets
from collections.abc import Mapping
from typing import Any

from ichkit.tracking.tracker import Experiment

MODE_VARIABLE = "WANDB_MODE"
_SECONDS = 30.0
"""For the service and the server to answer; training starts without W&B after that."""


class WandbRun:
    """One W&B run, offline unless `WANDB_MODE` says otherwise.

    Git, code, console, host, user, command line, hardware and packages are switched off.
    """

    def __init__(self, experiment: Experiment) -> None:
        wandb: Any = importlib.import_module("wandb")
        experiment.folder.mkdir(parents=True, exist_ok=True)
        self._id = experiment.token or secrets.token_hex(8)
        settings = wandb.Settings(
            mode=os.environ.get(MODE_VARIABLE) or "offline",
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            program="ichkit",
            host="",
            username="",
            email="",
            init_timeout=_SECONDS,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_service_wait=_SECONDS,
        )
        self._run: Any = wandb.init(
            project=experiment.project,
            name=experiment.name,
            id=self._id,
            resume="allow",
            dir=str(experiment.folder),
            config=dict(experiment.config),
            settings=settings,
        )
        for axis in ("step", "epoch", "version"):
            self._run.define_metric(f"{axis}/*", step_metric=axis)

    @property
    def token(self) -> str:
        """The id of the run."""
        return self._id

    def log(self, values: Mapping[str, float], axis: str, at: int) -> None:
        """One row of the history with the values and their point of the axis."""
        self._run.log({**values, axis: at})

    def close(self, *, is_finished: bool) -> None:
        """Ends the run; the exit code tells whether it is finished."""
        self._run.finish(exit_code=0 if is_finished else 1)
