"""The plans of `predict` and `export`."""

from pathlib import Path

from ichkit.core.config import Config
from ichkit.core.tasks import find_task
from ichkit.show.plan import PREDICTION_BYTES, Plan, format_bytes
from ichkit.sources.files import scan_files
from ichkit.sources.folder import image_files
from ichkit.stages.predict import export
from ichkit.stages.predict.model import find_model
from ichkit.stages.scores import evaluate
from ichkit.work.folder import WorkFolder


def describe_predict(
    config: Config, work: WorkFolder, path: Path, *, model: str | None, out: Path, has_page: bool = True
) -> Plan:
    """What `predict.run` would do; files are counted and none is read.

    Raises:
        DataError: nothing at the path.
        ArtifactError, ConfigError: no such model.
    """
    task = find_task(config.task)
    if model is None and not evaluate.look(config, work).is_current:
        chosen, writes = "the best complete source, which the scores will tell", (work.scores,)
    else:
        found = find_model(config, work, model, task)
        num_networks = sum(len(folds) for folds in found.runs.values())
        chosen, writes = f"{found.name}: {num_networks} networks", ()
    files = image_files(scan_files(path)[0])
    size = format_bytes(files["num_bytes"].sum())
    names = [f"{name}.csv" for name in ("slices", "studies", "rejected", "series_choice")]
    names += ["predictions.json", *(["predictions.html"] if has_page else [])]
    tables = tuple(out / name for name in names)
    return Plan(
        steps=(f"{len(files)} files that may be images, {size}", f"with {chosen}"),
        writes=(*writes, *tables),
        num_bytes=len(files) * 4 * PREDICTION_BYTES,
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
