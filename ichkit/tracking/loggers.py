"""The table of loggers, and the check that their packages are installed."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ichkit.core.errors import ConfigError
from ichkit.core.rows import find_row
from ichkit.tracking.event_files import EventFile
from ichkit.tracking.mlflow_runs import MlflowRun
from ichkit.tracking.tracker import Experiment, Tracker
from ichkit.tracking.wandb_runs import WandbRun

_SETTING = "tracking.loggers"


@dataclass(frozen=True)
class LoggerRow:
    """A row of `LOGGERS`.

    Attributes:
        name: key in the table.
        open: opens a new experiment or, with a token, an earlier one.
        packages: modules that must be importable.
        install: the command that installs them.
        description: one sentence.
        source: its documentation.
    """

    name: str
    open: Callable[[Experiment], Tracker]
    packages: tuple[str, ...]
    install: str
    description: str
    source: str


def check_loggers(names: Sequence[str]) -> list[LoggerRow]:
    """The rows of these loggers, each once.

    Raises:
        ConfigError: no such logger, or a package of it is not installed.

    Example:
        >>> check_loggers(["tensorbord"])
        Traceback (most recent call last):
            ...
        ichkit.core.errors.ConfigError: tracking.loggers: unknown "tensorbord". Did you mean "tensorboard"? \
Choices: mlflow, tensorboard, wandb.
    """
    rows = [find_row(LOGGERS, name, _SETTING) for name in dict.fromkeys(names)]
    for row in rows:
        missing = [name for name in row.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"{_SETTING}: {row.name} needs {', '.join(missing)}, not installed. Run {row.install}, or leave "
                f"{row.name} out; history.csv is always written."
            )
    return rows


LOGGERS: dict[str, LoggerRow] = {
    row.name: row
    for row in (
        LoggerRow(
            "tensorboard",
            EventFile,
            ("tensorboardX",),
            "pip install 'ichkit[tensorboard]'",
            "Event files in work/tracking/tensorboard.",
            "https://tensorboardx.readthedocs.io",
        ),
        LoggerRow(
            "mlflow",
            MlflowRun,
            ("mlflow", "sqlalchemy", "alembic", "cryptography"),
            "pip install 'ichkit[mlflow]'",
            "Runs in work/tracking/mlflow/mlflow.db, or on the server of MLFLOW_TRACKING_URI.",
            "https://mlflow.org/docs/latest/ml/tracking",
        ),
        LoggerRow(
            "wandb",
            WandbRun,
            ("wandb",),
            "pip install 'ichkit[wandb]'",
            "Offline runs in work/tracking/wandb for `wandb sync`; WANDB_MODE=online sends them at once.",
            "https://docs.wandb.ai/models/track",
        ),
    )
}
