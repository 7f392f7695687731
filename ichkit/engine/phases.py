"""The phases of a run, one after another."""

from dataclasses import dataclass

from ichkit.core.train_config import PhaseConfig, TrainConfig


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        number: from 0.
        num_phases: of the run.
        first_epoch: epochs of the phases before, so that no two epochs of a run draw the same.
        total_epochs: of all phases.
        config: with nothing left open but `classes`, where None is every class.
    """

    number: int
    num_phases: int
    first_epoch: int
    total_epochs: int
    config: PhaseConfig


def list_phases(config: TrainConfig) -> list[Phase]:
    """The phases of a run in their order; without `train.phases` there is one, the run itself."""
    resolved = config.resolved_phases()
    epochs = [phase.epochs for phase in resolved]
    return [
        Phase(number, len(resolved), sum(epochs[:number]), sum(epochs), phase) for number, phase in enumerate(resolved)
    ]
