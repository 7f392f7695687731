"""The plans of what is done with finished models: `explain` and `export`."""

from pathlib import Path

from ichkit.core.config import Config
from ichkit.core.layout import WorkFolder
from ichkit.stages import explain, export
from ichkit.stages.plans.plan import Plan

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


def describe_export(config: Config, work: WorkFolder, named: str, out: Path | None) -> Plan:
    """What `export.run` would do with the same arguments.

    Raises:
        ConfigError, ArtifactError: as `export.run` before it copies.
    """
    model, folder = export.look(config, work, named, out)
    parts = export.list_parts(model)
    sizes = [
        part.manifest.files[name].num_bytes for part in parts for name in part.names if name in part.manifest.files
    ]
    return Plan(
        steps=(f"{model.name}: {len(sizes)} files of {len(parts)} folders",),
        writes=(folder,),
        num_bytes=sum(sizes),
        seconds=0,
        basis="files are copied",
    )
