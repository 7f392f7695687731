"""One experiment in all loggers: resumed where an earlier call stopped, and never able to stop the command."""

import contextlib
import json
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ichkit.core.config import TrackingConfig
from ichkit.core.errors import Stopped, shorten
from ichkit.core.progress import logger
from ichkit.tracking.loggers import LoggerRow, check_loggers
from ichkit.tracking.tracker import Experiment, Tracker, Value
from ichkit.work.artifacts import encode_json, write_bytes_atomically
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import hold

STEP, EPOCH, VERSION = "step", "epoch", "version"
_LONGEST_ERROR = 200
_PLACES = ("/", "\\")


@dataclass
class State:
    """What one logger was sent, so that a later call neither repeats nor loses a point.

    Attributes:
        identity: of the settings and inputs; others begin a new experiment.
        attempt: number of the experiment, from 1.
        token: see `Tracker.token`.
        reached: the last point of each axis.
        scores: the values of the last version.
        is_finished: the experiment is over.
    """

    identity: str = ""
    attempt: int = 0
    token: str = ""
    reached: dict[str, int] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    is_finished: bool = False


class Channel:
    """One logger in a session; an error of the logger is logged once and switches it off.

    Args:
        row: the logger.
        config: names the project.
        work: its folder `tracking` holds what is stored on this machine.
        name: of the experiment.
        identity: see `State`.
        values: settings.
        restarts: the work begins at its start: an experiment that is finished stays, and a new one begins.
    """

    def __init__(
        self,
        row: LoggerRow,
        config: TrackingConfig,
        work: WorkFolder,
        name: str,
        identity: str,
        values: Mapping[str, Value],
        *,
        restarts: bool,
    ) -> None:
        self._row, self._name = row, name
        self._path = work.tracking / "state" / row.name / f"{name}.json"
        self.state = _read_state(self._path)
        if self.state.identity != identity or (self.state.is_finished and restarts):
            self.state = State(identity, self.state.attempt + 1)
        number = "" if self.state.attempt == 1 else f"-{self.state.attempt}"
        experiment = Experiment(config.project, f"{name}{number}", work.tracking / row.name, self.state.token, values)
        self._tracker: Tracker | None = None
        # One at a time, because MLflow creates its database when the first fold opens it.
        with hold(experiment.folder):
            self._guard(lambda: self._open(experiment))

    def log(self, values: Mapping[str, Any], axis: str, at: int) -> None:
        """Sends the finite ones of these values, unless an earlier call has."""
        finite = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
        if self._tracker is None or at <= self.state.reached.get(axis, 0) or not finite:
            return
        tracker = self._tracker
        if self._guard(lambda: tracker.log(finite, axis, at)):
            self.state.reached[axis] = at
            self._save()

    def log_scores(self, values: Mapping[str, Any]) -> None:
        """Sends the values that have changed as a new version."""
        finite = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
        changed = {name: value for name, value in finite.items() if self.state.scores.get(name) != value}
        if changed:
            version = self.state.reached.get(VERSION, 0) + 1
            self.state.scores |= changed
            self.log(changed, VERSION, version)

    def close(self, *, is_finished: bool) -> None:
        """Ends the call."""
        if self._tracker is None:
            return
        tracker, self._tracker = self._tracker, None
        if self._guard(lambda: tracker.close(is_finished=is_finished)):
            self.state.is_finished = is_finished
            self._save()

    def _open(self, experiment: Experiment) -> None:
        self._tracker = self._row.open(experiment)
        self.state.token = self._tracker.token
        self._save()

    def _save(self) -> None:
        self._guard(lambda: _write_state(self._path, self.state))

    def _guard(self, call: Callable[[], None]) -> bool:
        """Calls a logger; False if it failed, which is logged once."""
        try:
            with warnings.catch_warnings(), _random_numbers_kept():
                warnings.simplefilter("ignore")
                call()
        except Stopped:
            raise
        # A logger may raise anything, and training must go on.
        except Exception as error:
            self._tracker = None
            logger.warning(
                "%s: %s failed (%s: %s) and is switched off until the next command; results are not affected",
                self._name,
                self._row.name,
                type(error).__name__,
                shorten(str(error), _LONGEST_ERROR),
            )
            return False
        return True


class Session:
    """One experiment in every logger of the config; without loggers it does nothing.

    As a context manager it closes the experiment as unfinished unless `finish` was called.

    Args:
        config: the loggers and the project.
        work: the work folder.
        name: of the experiment, e.g. "default/fold0".
        identity: digest of settings and inputs; an experiment with another one begins anew under a new number.
        values: settings to store with it, see `describe`.
        restarts: the work begins at its start, so that a finished experiment stays as it is.

    Raises:
        ConfigError: a logger does not exist or is not installed.
        Stopped: a stop signal arrived while another process was opening the same logger.
    """

    def __init__(
        self,
        config: TrackingConfig,
        work: WorkFolder,
        name: str,
        identity: str,
        values: Mapping[str, Value],
        *,
        restarts: bool = False,
    ) -> None:
        self.channels = [
            Channel(row, config, work, name, identity, values, restarts=restarts)
            for row in check_loggers(config.loggers)
        ]
        self._is_finished = False

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self.channels:
            channel.close(is_finished=self._is_finished)

    def log_step(self, step: int, row: Mapping[str, float]) -> None:
        """Sends a row of the step log.

        Args:
            step: optimizer steps of the run so far, from 1.
        """
        self._log(row, STEP, step)

    def log_epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        """Sends a row of `history.csv`.

        Args:
            epoch: of the run, from 1.
        """
        self._log(row, EPOCH, epoch)

    def log_scores(self, values: Mapping[str, float | None]) -> None:
        """Sends the scores of a source that differ from those sent before."""
        for channel in self.channels:
            channel.log_scores(values)

    def finish(self) -> None:
        """Says that the work of the experiment is done."""
        self._is_finished = True

    def _log(self, row: Mapping[str, float], axis: str, at: int) -> None:
        for channel in self.channels:
            channel.log({f"{axis}/{name}": value for name, value in row.items() if name not in (STEP, EPOCH)}, axis, at)


def describe(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested settings as one level of dotted keys; a value with a slash may be a path and is replaced.

    Example:
        >>> describe({"train": {"epochs": 3, "pretrained": "model:/home/me/export"}, "seed": 0})
        {'train.epochs': 3, 'train.pretrained': '(path)', 'seed': 0}
    """
    flat: dict[str, Value] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= describe(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            flat |= describe({str(number): item for number, item in enumerate(value)}, f"{prefix}{name}.")
        else:
            plain = json.dumps(value) if isinstance(value, list | tuple) else value
            is_path = isinstance(plain, str) and any(mark in plain for mark in _PLACES)
            flat[f"{prefix}{name}"] = "(path)" if is_path else plain
    return flat


def _read_state(path: Path) -> State:
    """The state of an earlier call; of a file that cannot be read, none."""
    try:
        return State(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return State()


def _write_state(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, encode_json(asdict(state)))


@contextlib.contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Restores the global random states, which a logger may use for its ids."""
    torch = sys.modules.get("torch")
    python, drawn = random.getstate(), torch and torch.get_rng_state()
    legacy = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        if torch is not None:
            torch.set_rng_state(drawn)
