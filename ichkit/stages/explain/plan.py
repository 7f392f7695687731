"""The plan of `explain`."""

from pathlib import Path

from ichkit.core.config import Config
from ichkit.show.plan import Plan
from ichkit.stages.explain import run as explain
from ichkit.work.folder import WorkFolder

_PICTURE_BYTES = 600_000  # of one slice with the heat of six classes; those of the demo took up to 595 kB
_NOT_TIMED = "not known; a gradient of each slice"


def describe_explain(
    config: Config, work: WorkFolder, out: Path, choice: explain.Choice, *, run_name: str | None, fold: int | None
) -> Plan:
    """What `explain.run` would do with the same arguments.

    Raises:
        ConfigError, DataError, ArtifactError, ContractError: as `explain.run` before it draws.
    """
    _, name, chosen = explain.choose(config, work, choice, run_name=run_name, fold=fold)
    folds = ", ".join(map(str, sorted(chosen["fold"].unique())))
    return Plan(
        steps=(f"{len(chosen)} held-out slices of {name}, by the networks of folds {folds}",),
        writes=(out,),
        num_bytes=len(chosen) * _PICTURE_BYTES,
        basis=_NOT_TIMED,
    )
