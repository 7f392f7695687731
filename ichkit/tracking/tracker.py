"""What a logger is given to open, and what it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Value = str | float | bool | None


@dataclass(frozen=True)
class Experiment:
    """One fold of a run, or the scores of one source, as a logger opens it.

    Attributes:
        project: W&B project or MLflow experiment.
        name: e.g. "default/fold0", with a number from the second training of the same fold on.
        folder: of this logger, in the work folder; for what it stores on this machine.
        token: what the logger returned as `Tracker.token` in an earlier call; empty in the first.
        config: setting to value.
    """

    project: str
    name: str
    folder: Path
    token: str
    config: Mapping[str, Value]


class Tracker(Protocol):
    """An open experiment of one logger; any exception switches the logger off for the rest of the command."""

    @property
    def token(self) -> str:
        """Finds the same experiment again in a later call."""

    def log(self, values: Mapping[str, float], axis: str, at: int) -> None:
        """Stores finite values at a point of an axis ("step", "epoch" or "version"), in ascending order."""

    def close(self, *, is_finished: bool) -> None:
        """Ends this call; the experiment is resumed by a later one unless it is finished."""
