"""The rank of this process in distributed training."""

import os
from dataclasses import dataclass

from ichkit.core.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among those that `torchrun` started; rank 0 of 1 without it.

    Attributes:
        rank: index of this process; only rank 0, the main process, writes and logs.
        world: number of processes on all machines.
        local_world: number of processes on this machine.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1

    @classmethod
    def of_environment(cls) -> "Ranks":
        """The ranks that `torchrun` set in the environment; a single process without it.

        Raises:
            ConfigError: the environment variables are incomplete or not numbers.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        if "RANK" not in os.environ or "LOCAL_WORLD_SIZE" not in os.environ:
            return cls()
        try:
            return cls(*(int(os.environ[name]) for name in names))
        except (KeyError, ValueError) as error:
            found = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
            raise ConfigError(
                f"torchrun: expected three numbers in the environment, found {found}. Start training with `torchrun`."
            ) from error

    @property
    def is_main(self) -> bool:
        """True in the process that writes and logs."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self.world // self.local_world


ALONE = Ranks()
