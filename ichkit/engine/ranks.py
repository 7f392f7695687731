"""Which of the processes that train one network together this is."""

import os
from dataclasses import dataclass

from ichkit.core.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that `torchrun` started, or alone.

    Attributes:
        rank: 0 leads: it alone writes and reports.
        world: processes on all machines.
        local_world: processes on this machine.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1

    @classmethod
    def of_environment(cls) -> "Ranks":
        """As `torchrun` says in the environment; alone without it.

        Raises:
            ConfigError: the environment contradicts itself.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        if "RANK" not in os.environ or "LOCAL_WORLD_SIZE" not in os.environ:
            return cls()
        try:
            return cls(*(int(os.environ[name]) for name in names))
        except (KeyError, ValueError) as error:
            found = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
            raise ConfigError(f"torchrun: expected three numbers in the environment, found {found}.") from error

    @property
    def leads(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """Machines."""
        return self.world // self.local_world


ALONE = Ranks()
