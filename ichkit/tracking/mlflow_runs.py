"""MLflow runs, in a SQLite file of the work folder or on the server of `MLFLOW_TRACKING_URI`."""

import importlib
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from ichkit.tracking.tracker import Experiment

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
_NO_PATH = "mlflow-artifacts:/ichkit"
"""Where artifacts would be; none is stored. Without it MLflow records the absolute path of the working directory."""
_LIMITS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # a server that does not answer must not hold up training
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_LONGEST_VALUE = 500


class MlflowRun:
    """One MLflow run.

    The client interface records no user, no source file and no commit, which `mlflow.start_run` does.
    """

    def __init__(self, experiment: Experiment) -> None:
        for name, value in _LIMITS.items():
            os.environ.setdefault(name, value)
        uri, place = os.environ.get(URI_VARIABLE), None
        if not uri:
            experiment.folder.mkdir(parents=True, exist_ok=True)
            uri, place = f"sqlite:///{(experiment.folder / DATABASE).absolute()}", _NO_PATH
            os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", _NO_PATH)
        mlflow = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client: Any = mlflow.MlflowClient(uri)
        self._id = self._find(experiment.token, mlflow.exceptions.MlflowException)
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment.project)
        number = self._client.create_experiment(experiment.project, place) if found is None else found.experiment_id
        self._id = self._client.create_run(number, run_name=experiment.name).info.run_id
        settings = [
            self._entities.Param(name, str(value)[:_LONGEST_VALUE]) for name, value in experiment.config.items()
        ]
        for first in range(0, len(settings), 100):  # the most that a request may have
            self._client.log_batch(self._id, params=settings[first : first + 100])

    @property
    def token(self) -> str:
        """The id of the run."""
        return str(self._id)

    def log(self, values: Mapping[str, float], axis: str, at: int) -> None:
        """One metric for each value, with `at` as its step."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, at) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, is_finished: bool) -> None:
        """Sets the status of the run."""
        self._client.set_terminated(self._id, "FINISHED" if is_finished else "KILLED")

    def _find(self, token: str, missing: type[Exception]) -> str:
        """The id of an earlier call, if the run still exists."""
        try:
            return str(self._client.get_run(token).info.run_id) if token else ""
        except missing:
            return ""
