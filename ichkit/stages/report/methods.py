"""Report section: preprocessing, network, training, selection, second stage and computing, as sentences."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import find_task
from ichkit.engine.inference import read_card
from ichkit.engine.network_cost import NetworkCost, count_cost
from ichkit.imaging.parts import WHOLE
from ichkit.imaging.store import FLOW, Prepared
from ichkit.imaging.tags import WANTED_NAMES
from ichkit.show.blocks import Block, Prose, Section, Subsection
from ichkit.show.table import NOTHING, Table, format_number
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.report.sentences.images import say_augmentation, say_images, say_store
from ichkit.stages.report.sentences.stacking import say_blend, say_first_stage_alone, say_second_stage
from ichkit.stages.report.sentences.training import say_network, say_selection, say_training, say_weights
from ichkit.validation.catalog import HAND, Source
from ichkit.work.artifacts import read_bytes, read_manifest

_OWN_KEYS = ("task", "seed", "channels", "prepare", "train")
_ENERGY = (
    "Energy was not measured. Hours are those of training and predicting all folds, and of fitting the second stage, "
    "on the device named."
)
_DE_IDENTIFICATION = [
    f"De-identification: of a DICOM header only an allow-list of {len(WANTED_NAMES)} tags is read.",
    "No name, date or institution is stored. Patient IDs and file names of scans that are not of a public data set are "
    "replaced by salted hashes; pixels are not changed.",
]


def make_methods(report: ReportData) -> Section:
    """Every run and the second stage of the best source in words, and what they cost."""
    store = report.prepared.manifest.settings
    num_repaired = int(report.prepared.slices.hu_repaired.sum())
    said = say_store(store, num_repaired, count_slabs(report.prepared))
    blocks: list[Block] = [Subsection("Preprocessing", [_prose(said), _prose(_DE_IDENTIFICATION)])]
    runs = [source for source in report.stages if source.is_run] if report.sources else []
    if not runs:
        blocks.append(_describe_config(report.config))
    blocks += [_describe_run(report, run) for run in runs]
    if report.sources:
        blocks.append(Subsection("Second stage and ensembling", [_prose(_second_stage(report))]))
        blocks.append(_costs(report))
    return Section("methods", "Methods", blocks)


def count_slabs(prepared: Prepared) -> int | None:
    """Images that were averaged with others; None if the store has no counts of images, or is one of parts."""
    flow = prepared.manifest.facts.get(FLOW)
    if flow is None or prepared.parts.kind != WHOLE:
        return None
    return sum(sum(one["read"].values()) for one in flow.values()) - len(prepared.slices)


def config_of(report: ReportData, run: Source) -> Config:
    """The config that a run was trained with; what it does not record is as in the config of the report.

    Raises:
        ArtifactError: its config cannot be read.
    """
    folder = report.work.fold(run.name, run.folds[0])
    data = read_bytes(folder / "config.yaml", read_manifest(folder).sha256_of("config.yaml"))
    used = yaml.safe_load(data) or {}
    own = {name: used[name] for name in _OWN_KEYS if name in used}
    return Config.model_validate({**report.config.model_dump(), **own})


def cost_of(report: ReportData, run: Source) -> NetworkCost | None:
    """The cost of the network of a run; None if its card names no network that can be built here."""
    try:
        return count_cost(read_card(report.work.fold(run.name, run.folds[0])))
    except (ArtifactError, ConfigError, RuntimeError):
        return None


def _describe_config(config: Config) -> Subsection:
    """What a run with this config would be; nothing is trained."""
    return Subsection("Network and training, as configured", list(_say_run(config, None, {})))


def _describe_run(report: ReportData, run: Source) -> Subsection:
    config = config_of(report, run)
    facts = read_manifest(report.work.fold(run.name, run.folds[0])).facts
    title = f"Run {run.name}: network and training"
    return Subsection(title, list(_say_run(config, cost_of(report, run), facts, run.scope.classes)))


def _say_run(
    config: Config, cost: NetworkCost | None, facts: dict[str, object], classes: tuple[str, ...] = ()
) -> Iterator[Block]:
    """One paragraph each about images, network, weights, training and selection."""
    train = config.train
    known = classes or tuple(train.classes or find_task(config.task).classes)
    yield _prose(say_images(config.channels, train))
    of_task = find_task(config.task).classes
    yield _prose([*say_network(train, known, cost), *say_weights(train, known, of_task)])
    yield _prose(say_training(train, known, config.seed, facts, of_task))
    yield _prose(say_augmentation(train, facts))
    yield _prose(say_selection(train))


def _second_stage(report: ReportData) -> list[str]:
    """The second stage of the best source, and how that one was chosen."""
    best = report.best
    among = f"This page describes {best.name}, chosen among {len(report.sources)} by its out-of-fold weighted log loss."
    if best.is_run:
        return [among, *say_first_stage_alone(len(best.folds))]
    said = [among]
    if best.kind == HAND:
        manifest = read_manifest((report.work.root / best.path).parent)
        method, selects = str(manifest.settings["method"]), bool(manifest.settings["selects"])
        said += say_blend(method, manifest.facts["weights"], best.scope, selects=selects)
    stacks = _stacks(report)
    for folder, source in stacks.items():
        settings = read_manifest(folder).settings
        try:
            stack = StackConfig.model_validate(settings.get("stack", report.config.stack.model_dump()))
        except ValueError:  # of an earlier version
            stack = report.config.stack
        said += [f"Its member {folder.name} is a stack."] if best.kind == HAND else []
        said += say_second_stage(stack, source.runs, len(source.folds))
    return said if stacks else [*said, *say_first_stage_alone(len(best.folds))]


def _stacks(report: ReportData) -> dict[Path, Source]:
    """Folder to a source of every stack with models that the best source is made of; none for a run."""
    own = [] if report.best.is_run else [one for one in report.stages if not one.is_run and one.kind != HAND]
    return {(report.work.root / one.path).parent: one for one in own}


def _costs(report: ReportData) -> Table:
    """Hours by part and device."""
    rows = []
    for run in (source for source in report.stages if source.is_run):
        facts = [read_manifest(report.work.fold(run.name, k)).facts for k in run.folds]
        devices = sorted({str(one["device"]) for one in facts if "device" in one})
        rows.append([f"run {run.name}", f"{len(facts)} folds", ", ".join(devices) or NOTHING, _hours(facts)])
    for folder in _stacks(report):
        rows.append([f"stack {folder.name}", "second stage", "cpu", _hours([read_manifest(folder).facts])])
    return Table("Computing", ("part", "", "device", "hours"), rows, note=_ENERGY, num_text=3)


def _hours(facts: list[dict[str, object]]) -> str:
    """The sum of the seconds of manifests in hours; a dash if one does not have them."""
    if not all("seconds" in one for one in facts):
        return NOTHING
    return format_number(sum(float(str(one["seconds"])) for one in facts) / 3600, 2)


def _prose(said: list[str]) -> Prose:
    return Prose(" ".join(said))
