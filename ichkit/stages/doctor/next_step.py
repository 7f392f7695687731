"""The next command to run, chosen from the data and the work folder."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ichkit.core.config import DEFAULT, load_config, shipped_names
from ichkit.core.errors import ConfigError
from ichkit.sources.table import SOURCES, training_sources
from ichkit.stages.doctor.found_data import DataState
from ichkit.stages.doctor.found_work import PreparedState, RunState, WorkState
from ichkit.validation.catalog import HAND
from ichkit.work.folder import WorkFolder

_DEFAULT_WORK = Path("work")
_WORK_VARIABLE = "ICHKIT_WORK"
_Words = list[str]


@dataclass(frozen=True)
class Step:
    """The next command as it would be typed, and the reason for it."""

    command: str
    reason: str


def choose_step(
    data: Mapping[str, DataState],
    inventory: WorkState,
    work: WorkFolder,
    config_name: str | None = None,
    *,
    has_gpu: bool = True,
) -> Step:
    """The next command: data, then `prepare`, a fold, a stack, a submission, the other folds, the report.

    Args:
        config_name: the config that it should name; None for the one that the store or a run was made with.
        has_gpu: False where training takes the processor and its memory.
    """
    if inventory.prepared is None:
        words, reason = _before_training(data, inventory, config_name)
    elif not inventory.runs:
        words = ["train", "--fold", "0", *_named(config_name or inventory.prepared.config)]
        reason = "Everything is prepared, and one fold is enough for a first submission."
        if not has_gpu:
            reason += " There is no GPU: with --dry-run it first shows how long it takes and whether memory suffices."
    else:
        words, reason = _after_training(inventory, inventory.prepared, work, config_name)
    # `demo` has a work folder of its own.
    is_implied = words[0] == "demo" or work.root == Path(os.environ.get(_WORK_VARIABLE) or _DEFAULT_WORK)
    return Step(shlex.join(["ichkit", *words, *([] if is_implied else ["--work", str(work.root)])]), reason)


def _before_training(
    data: Mapping[str, DataState], inventory: WorkState, config_name: str | None
) -> tuple[_Words, str]:
    found = next((name for name in training_sources() if data[name].is_found), None)
    if found is None:
        rsna = SOURCES["rsna"]
        return ["demo"], (
            "No data found: the demo runs the whole pipeline on synthetic scans. The competition data are at "
            f"{rsna.source}; set {rsna.variable}=PATH to where they are."
        )
    own = [] if found == training_sources()[0] else ["--source", found, "--labels", "labels.csv"]
    state = "`prepare` was interrupted and will resume" if inventory.is_prepare_unfinished else "nothing is prepared"
    return ["prepare", *own, *_named(config_name)], f"Data are at {data[found].where}, and {state}."


def _after_training(
    inventory: WorkState, prepared: PreparedState, work: WorkFolder, config_name: str | None
) -> tuple[_Words, str]:
    for name, run in inventory.runs.items():
        if run.unfinished:
            k = run.unfinished[0]
            words = ["train", "--fold", str(k), *train_options(name, run, work, config_name)]
            return words, f"Fold {k} of {name} is unfinished: the same settings resume it, unless it is running now."
    name, run = max(inventory.runs.items(), key=lambda item: len(item[1].folds))
    # The config of what follows is that of the run, where its name still says which.
    options = _named(config_name or (name if name in shipped_names("configs") else None))
    count = f"{len(run.folds)} of {len(prepared.folds)} folds of {name}"
    current = [stack for stack in inventory.stacks.values() if stack.folds == run.folds and not stack.is_outdated]
    stacked = {name for stack in current for name in stack.runs}
    alone = [name for name, other in inventory.runs.items() if other.folds == run.folds and name not in stacked]
    if alone:
        return ["stack", *options], f"{count} are trained, and no stack uses the current predictions of {alone[0]}."
    if not prepared.has_sample:
        if not inventory.has_scores:
            return [
                "evaluate",
                *options,
            ], "The stack is finished. These data have no test split to submit; they can be scored."
    elif not any(sent.folds == run.folds and not sent.is_outdated for sent in inventory.submissions.values()):
        return ["submit", *options], f"The stack of {count} is finished and not yet submitted."
    if len(run.folds) < len(prepared.folds):
        return ["train", *train_options(name, run, work, config_name)], f"{count} are trained; the others remain."
    if not inventory.has_report:
        return ["report", *options], "Every fold is trained, stacked and scored; the report shows the results."
    if inventory.is_report_outdated:
        return ["report", *options], "Runs or stacks were made or changed since the report was written."
    reason = "Everything is finished. The leaderboard shows the best model, which `ichkit predict` uses."
    if any(HAND in stack.kinds for stack in inventory.stacks.values()):
        reason = (
            "Everything is finished. The leaderboard shows the best model; `ichkit predict` uses the best one that has "
            f"networks, which a blend by hand (kind {HAND}) has not."
        )
    return ["leaderboard", *options], reason


def train_options(name: str, run: RunState, work: WorkFolder, config_name: str | None) -> _Words:
    """The options with which `train` resumes a run: other settings would be refused."""
    written = next((path for k in run.folds if (path := work.fold(name, k) / "config.yaml").is_file()), None)
    if config_name is None and name in shipped_names("configs") and (written is None or _is_shipped(written, name)):
        return _named(name)
    words = _named(config_name or (None if written is None else str(written)))
    # A run is called after its config unless it is told otherwise.
    is_implied = config_name is not None and Path(config_name).stem == name
    return words if is_implied else [*words, "--run", name]


def _is_shipped(written: Path, name: str) -> bool:
    """True where a fold was trained with the shipped config of that name as it is now."""
    try:
        used, shipped = load_config(str(written)), load_config(name)
    except ConfigError:
        return False
    sections = [(config.channels.settings(), config.train.settings()) for config in (used, shipped)]
    return (used.task, used.seed, sections[0]) == (shipped.task, shipped.seed, sections[1])


def _named(config_name: str | None) -> _Words:
    return [] if config_name in (None, DEFAULT) else ["-c", str(config_name)]
