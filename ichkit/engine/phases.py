"""The phases of a run, one after another."""

from collections.abc import Sequence
from dataclasses import dataclass

from ichkit.core.train_config import ResolvedPhase, TrainConfig


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        number: from 0.
        num_phases: of the run.
        first_epoch: epochs of the phases before, so that no two epochs of a run draw the same.
        total_epochs: of all phases.
        config: its values, none of them left open.
    """

    number: int
    num_phases: int
    first_epoch: int
    total_epochs: int
    config: ResolvedPhase


def list_phases(config: TrainConfig, classes: Sequence[str]) -> list[Phase]:
    """The phases of a run in their order; without `train.phases` there is one, the run itself.

    Args:
        classes: of the task, in order.

    Raises:
        ConfigError: a phase learns a class that the task has not.
    """
    resolved = config.resolve_phases(classes)
    epochs = [phase.epochs for phase in resolved]
    return [
        Phase(number, len(resolved), sum(epochs[:number]), sum(epochs), phase) for number, phase in enumerate(resolved)
    ]
