"""The phases of a run, one after another."""

from collections.abc import Sequence
from dataclasses import dataclass

from ichkit.core.train_config import ResolvedPhase, TrainConfig
from ichkit.engine.schedule import find_schedule


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        number: index of the phase, from 0.
        num_phases: number of phases of the run.
        first_epoch: epochs of all earlier phases, so that each epoch of a run has its own random numbers.
        total_epochs: epochs of all phases.
        config: the settings of the phase.
    """

    number: int
    num_phases: int
    first_epoch: int
    total_epochs: int
    config: ResolvedPhase


def list_phases(config: TrainConfig, classes: Sequence[str], known: Sequence[str] = ()) -> list[Phase]:
    """The phases of a run, in order; see `TrainConfig.resolve_phases` for arguments and errors.

    Raises:
        ConfigError: no such schedule.
    """
    resolved = config.resolve_phases(classes, known)
    for phase in resolved:
        find_schedule(phase.schedule)
    epochs = [phase.epochs for phase in resolved]
    return [
        Phase(number, len(resolved), sum(epochs[:number]), sum(epochs), phase) for number, phase in enumerate(resolved)
    ]
