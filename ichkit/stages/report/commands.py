"""The commands that make again what a report shows: prepared data, runs, searches, stacks, blends and scores."""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from ichkit.core.config import Config
from ichkit.show.blocks import Missing
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.stack.blend import GIVEN
from ichkit.validation.catalog import HAND, Source
from ichkit.work.artifacts import Manifest, has_artifact, list_differences, read_bytes, read_manifest

CONFIG_FILE = "report.yaml"
"""The name under which the commands expect the configuration of the report."""
_WORK = "work"
_COMPARED = ("task", "seed", "channels", "train")
_DATA = {"rsna": "--rsna RSNA", "cq500": "--cq500 CQ500", "folder": "--folder SCANS --labels LABELS"}


def list_commands(report: ReportData) -> list[str]:
    """The commands in an order in which they can be run; a search makes the runs of its trials."""
    lines = [prepare_command(report)]
    made_by_search = report.trials | {name for name, one in report.searches.items() if one.facts["is_nested"]}
    sources = sorted(report.sources, key=lambda source: source.created_utc)
    lines += [_train(report, source) for source in sources if source.is_run and source.name not in made_by_search]
    lines += [_tune(report, name, search) for name, search in report.searches.items()]
    stacks = {(report.work.root / one.path).parent: one for one in sources if not one.is_run}
    lines += [_stack(report, folder, source) for folder, source in stacks.items() if source.kind != HAND]
    lines += [_blend(folder) for folder, source in stacks.items() if source.kind == HAND]
    if sources:
        further = (report.work.protocols, report.work.robustness, report.work.adversarial)
        options = [[], *([f"--{folder.name}"] for folder in further if has_artifact(folder))]
        lines += [*(_line("evaluate", *own) for own in options), _line("submit"), _line("report")]
    return lines


def prepare_command(report: ReportData, *more: str) -> str:
    """`prepare` with the data and settings of the store; the paths of the data are not recorded.

    Args:
        more: further options; settings among them replace those of the store.
    """
    settings, now = report.prepared.manifest.settings, report.config.prepare.settings()
    datasets = set(report.prepared.studies["dataset"])
    external = [name for name in report.prepared.external_sets() if name in datasets]
    source = str(settings.get("source", "rsna"))
    data = [_DATA.get(source, f"--source {source}")]
    data += [_DATA.get(name, f"--external {name}=SCANS --labels {name}=LABELS") for name in external]
    used: dict[str, Any] = {name: settings[name] for name in ("size", "num_folds") if name in settings}
    used |= {"crop": settings.get("steps", ["none"])[0], "header_facts": settings.get("header_facts", [])}
    now |= {"header_facts": sorted(now["header_facts"])}
    lock = ["--lock", str(settings["lock"])] if "lock" in settings else []
    return _line("prepare", *" ".join(data).split(), *lock, *_set(_overrides(used, now, "prepare")), *more)


def missing_of_store(report: ReportData, what: str, *more: str) -> Missing:
    """A part that `prepare` adds, with its whole command: other settings would make another store."""
    where = f"({CONFIG_FILE}: the configuration at the end of report.html.)"
    return Missing(f"{what} {where}", prepare_command(report, *more))


def repeatable(config: Config) -> dict[str, Any]:
    """All settings that results depend on, with those of training that only change the last digits."""
    return {**config.settings(), "train": config.train.model_dump(mode="json")}


def list_run_differences(report: ReportData, run: Source) -> list[str]:
    """Settings of a run that differ from the configuration of the report."""
    folder = report.work.fold(run.name, run.folds[0])
    used = yaml.safe_load(read_bytes(folder / "config.yaml", read_manifest(folder).sha256_of("config.yaml"))) or {}
    return _differences(report, used)


def _train(report: ReportData, run: Source) -> str:
    own = report.work.fold(run.name, run.folds[0]) / "config.yaml"
    config = _path(report, own) if list_run_differences(report, run) else CONFIG_FILE
    return _line("train", "--run", run.name, "--fold", ",".join(map(str, run.folds)), config=config)


def _tune(report: ReportData, name: str, search: Manifest) -> str:
    settings = search.settings
    tries = [_try(dimension, values) for dimension, values in settings["space"].items()]
    words = [word for one in tries if one is not None for word in ("--try", one)]
    words += ["--space", "SPACE"] if None in tries else []
    usual = {"objective": "loss", "sampler": "grid", "pruner": "none"}
    words += [word for key, value in usual.items() if settings[key] != value for word in (f"--{key}", settings[key])]
    words += ["--trials", str(search.facts["num_trials"]), "--fold", ",".join(map(str, settings["folds"]))]
    own = report.work.tune_folder(name) / "best.yaml"
    config = _path(report, own) if _differences(report, settings["config"]) else CONFIG_FILE
    return _line("tune", "--name", name, *words, config=config)


def _try(name: str, values: dict[str, Any]) -> str | None:
    """A dimension of a search as `--try` takes it; None for settings that change together, which need a file."""
    if values.keys() == {"low", "high", "step", "log"}:
        # Ends without a decimal point would make integers of a range of real numbers.
        is_real = values["step"] is None and not values["log"]
        low, high = (repr(values[end]) if is_real else _number(values[end]) for end in ("low", "high"))
        scale = ":log" if values["log"] else "" if values["step"] in (None, 1) else f":{_number(values['step'])}"
        return f"{name}={low}..{high}{scale}"
    if any(overrides != [f"{name}={label}"] for label, overrides in values.items()):
        return None
    return f"{name}={','.join(values)}"


def _stack(report: ReportData, folder: Path, stack: Source) -> str:
    settings, now = read_manifest(folder).settings, report.config
    used = {name: settings[name] for name in ("seed", "stack") if name in settings}
    changes = _overrides(used, {"seed": now.seed, "stack": now.stack.settings()})
    return _line("stack", "--runs", ",".join(stack.runs), "--name", folder.name, *_set(changes))


def _blend(folder: Path) -> str:
    manifest = read_manifest(folder)
    settings = manifest.settings
    given = manifest.facts.get(GIVEN) or (settings["weights"] if GIVEN not in manifest.facts else None)
    words = ["--select"] if settings["selects"] else []
    words += ["--weights", ",".join(map(_number, given))] if given else []
    return _line("blend", *settings["blend"], *words, "--method", settings["method"], "--name", folder.name)


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _line(command: str, *words: str, config: str = CONFIG_FILE) -> str:
    return shlex.join(["ichkit", command, *words, "--config", config])


def _path(report: ReportData, path: Path) -> str:
    """A file of the work folder as the commands find it, which take the usual folder."""
    return (_WORK / path.relative_to(report.work.root)).as_posix()


def _set(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def _differences(report: ReportData, used: dict[str, Any]) -> list[str]:
    config = repeatable(report.config)
    shared = {name: used[name] for name in _COMPARED if name in used}
    return list_differences(shared, {name: _same_keys(shared[name], config[name]) for name in shared})


def _same_keys(old: Any, new: Any) -> Any:
    """`new` without the keys that `old` lacks."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: _same_keys(value, new.get(key)) for key, value in old.items()}
    return new


def _overrides(used: Any, now: Any, place: str = "") -> list[str]:
    """`section.key=value` of every setting that was used and differs from what it is now."""
    if isinstance(used, dict) and isinstance(now, dict):
        return [text for key in used for text in _overrides(used[key], now.get(key), f"{place}.{key}".lstrip("."))]
    old = json.dumps(used, default=str)
    return [] if old == json.dumps(now, default=str) else [f"{place}={old}"]
