"""Synthetic head CT as DICOM files in the layouts of both data sets, ready for `ichkit prepare`."""

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ichkit.core.config import Config
from ichkit.core.errors import DataError, DiskFullError
from ichkit.core.progress import Meter, logger, stop_on_signal
from ichkit.core.rows import find_row
from ichkit.engine.parallel import WorkerDied, count_cores, run_tasks
from ichkit.phantom.confounders import finish_slice
from ichkit.phantom.difficulty import DEMO, DIFFICULTIES
from ichkit.phantom.head import draw_head
from ichkit.phantom.kinds import KINDS, DataSet, Drawing
from ichkit.phantom.study import draw_scene, draw_slices, draw_stack
from ichkit.show.plan import Forecast, Plan
from ichkit.work.artifacts import encode_json, write_bytes_atomically
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import holding
from ichkit.work.places import disk_full, is_private, open_partial, partial_of, put_in_place, settle

FACTS_NAME = "phantom.json"
_VERSION = 1
_USUAL_KIND = "hemorrhage"
_LOST = "{} starts over, finished data sets are kept"
_DATA_SETS = {one.name: one for kind in KINDS.values() for one in kind.data_sets}
_MASKS = "masks"


@dataclass(frozen=True)
class PhantomOptions:
    """Options of `ichkit phantom`; None for the value of the config.

    Attributes:
        out: a new or empty folder, or that of an earlier call with the same settings.
        studies, test_studies: RSNA studies with and without published labels; about 32 slices each.
        cq500_studies: studies in the CQ500 layout, one to five series each; 0 for no such folder.
        size: rows and columns of a slice, at least 64; of MR FLAIR has half of them, DWI and b0 a quarter.
        kind: a row of `kinds.KINDS`; of "ischemia", `test_studies` are those of its external set.
        difficulty: a row of `difficulty.DIFFICULTIES`.
        keep_masks: also write `out/masks/<data set>/*.npz`, slice id to (H, W) uint8, bit c for class c of
            `bleeds.SUBTYPES`, or as `ischemia` says; for MR a NIfTI file per sequence with the acute lesion.
        workers: number of processes; None for the value of the config, else one per core.
    """

    out: Path
    studies: int | None = None
    test_studies: int | None = None
    cq500_studies: int | None = None
    size: int | None = None
    seed: int | None = None
    kind: str | None = None
    difficulty: str | None = None
    keep_masks: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class PhantomPlan(Plan):
    """The plan of `ichkit phantom`.

    Attributes:
        missing: name and settings of every unfinished data set.
        workers: number of processes; None for one per core.
    """

    out: Path
    missing: dict[str, dict[str, Any]]
    workers: int | None

    @property
    def writes(self) -> tuple[Path, ...]:
        """The unfinished data sets."""
        return tuple(self.out / name for name in self.missing)

    def forecast(self) -> Forecast:
        """The studies to draw, and the size of their slices."""
        if not self.missing:
            return Forecast((f"{self.out}: up to date, nothing to do",), 0)
        numbers = {name: sum(part[key] for key in _DATA_SETS[name].counts) for name, part in self.missing.items()}
        settings = next(iter(self.missing.values()))
        size, seed, difficulty = settings["size"], settings["seed"], settings.get("difficulty", DEMO.name)
        counts = " and ".join(f"{number} {_DATA_SETS[name].title}" for name, number in numbers.items())
        step = f"draws studies, {counts}, {size} x {size} pixels, seed {seed}, difficulty {difficulty}"
        num_slices = sum(_DATA_SETS[name].slices_per_study * number for name, number in numbers.items())
        return Forecast((step,), num_slices * 2 * size * size)


def plan(config: Config, _work: WorkFolder | None, options: PhantomOptions) -> PhantomPlan:
    """The data sets that are missing in `out`; writes nothing.

    Raises:
        DataError: `out` has foreign files or a phantom of other settings, or a count is too small.
    """
    counts = {name: getattr(options, name) for name in ("studies", "test_studies", "cq500_studies", "size")}
    counts = {name: getattr(config.phantom, name) if value is None else value for name, value in counts.items()}
    size, seed = counts.pop("size"), config.seed if options.seed is None else options.seed
    _check_counts(size, counts)
    _check_folder(options.out)
    common = {"version": _VERSION, "size": size, "seed": seed, "keep_masks": options.keep_masks}
    kind = find_row(KINDS, options.kind or config.phantom.kind, "phantom.kind")
    if kind.name != _USUAL_KIND:
        common["kind"] = kind.name
    difficulty = options.difficulty or config.phantom.difficulty
    if find_row(DIFFICULTIES, difficulty, "phantom.difficulty") != DEMO:
        common["difficulty"] = difficulty
    asked = {
        one.name: {
            **common,
            **{key: counts[key] for key in one.counts},
            **{key: getattr(config.phantom, key) for key in one.extras},
        }
        for one in kind.data_sets
    }
    asked = {name: part for name, part in asked.items() if not _is_empty(_DATA_SETS[name], part)}
    missing = {name: part for name, part in asked.items() if not _is_finished(options.out / name, part)}
    return PhantomPlan(options.out, missing, options.workers or config.prepare.workers)


def _is_empty(data_set: DataSet, settings: dict[str, Any]) -> bool:
    return data_set.is_optional and not any(settings[key] for key in data_set.counts)


@holding(lambda given: given["plan"].out)
def run(plan: PhantomPlan) -> None:
    """Writes the data sets of a kind, such as `out/rsna` and `out/cq500`.

    The same settings give the same bytes with any number of workers.

    A finished data set with the same settings is kept; an unfinished one is started over.

    Raises:
        DataError: a worker died.
        DiskFullError: too little disk space.
        Stopped: a signal requested a stop.
    """
    for name in _DATA_SETS:
        settle(plan.out / name)
    if not plan.missing:
        logger.info("phantom: %s is up to date; nothing to do.", plan.out)
        return
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
        _check_room(plan)
        _compile_kernels()
        for name, settings in plan.missing.items():
            if not _is_finished(plan.out / name, settings):  # another process may have written it since
                _write_root(plan.out, name, settings, plan.workers)
    except OSError as error:
        raise disk_full(plan.out, error) from error


def _check_counts(size: int, counts: dict[str, int]) -> None:
    if size < 64:
        raise DataError(f"phantom: expected a size of at least 64, found {size}.")
    for name, count in counts.items():
        least = 1 if name == "studies" else 0
        if count < least:
            raise DataError(f"phantom: expected --{name.replace('_', '-')} of at least {least}, found {count}.")


def _check_folder(out: Path) -> None:
    """Refuses a folder with files that `ichkit phantom` did not write."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"phantom: expected a folder, {out} is a file. Choose another folder.")
    known = {_MASKS, *_DATA_SETS, *(partial_of(Path(name)).name for name in _DATA_SETS)}
    foreign = sorted(item.name for item in out.iterdir() if item.name not in known and not is_private(item))
    unsigned = [name for name in _DATA_SETS if (out / name).exists() and not (out / name / FACTS_NAME).is_file()]
    if foreign or unsigned:
        raise DataError(
            f"phantom: expected a new or empty folder or an earlier phantom, found {', '.join([*foreign, *unsigned])} "
            f"in {out}. Choose another folder."
        )


def _is_finished(root: Path, settings: dict[str, Any]) -> bool:
    """True if a data set with these settings is finished; refuses one with other settings."""
    if not root.exists():
        return False
    try:
        found = json.loads((root / FACTS_NAME).read_text())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"phantom: {root / FACTS_NAME} is not readable. Remove {root} or choose another folder."
        ) from error
    names = sorted({*settings, *found})
    differences = [
        f"{name} is {found.get(name)}, requested {settings.get(name)}"
        for name in names
        if found.get(name) != settings.get(name)
    ]
    if differences:
        raise DataError(
            f"phantom: {root} was made from other settings: {'; '.join(differences)}. Choose another folder."
        )
    return True


def _check_room(plan: PhantomPlan) -> None:
    needed, free = plan.forecast().num_bytes or 0, shutil.disk_usage(plan.out).free
    logger.info("phantom: needs about %.2f GB, %.2f GB are free.", needed / 1e9, free / 1e9)
    if needed > free:
        raise DiskFullError(
            f"phantom: expected about {needed / 1e9:.1f} GB of free space at {plan.out}, found {free / 1e9:.1f} GB. "
            "Choose another disk, a smaller --size, or fewer studies."
        )


def _compile_kernels() -> None:
    """Compiles the kernels once, so that the workers load them from numba's cache."""
    generator = np.random.default_rng(0)
    scene = draw_scene(generator, draw_head(generator), ("subdural",))
    stack = draw_stack(generator, scene.pose, (64, 64), np.array([60.0]), 5.0, 0.0)
    one = draw_slices(scene, stack)[0]
    finish_slice(generator, one.hounsfield, stack.grids[0], scene.pose, scene.scan)


def _write_root(out: Path, name: str, settings: dict[str, Any], workers: int | None) -> None:
    """Writes one data set beside its final place and renames it."""
    final = out / name
    partial = open_partial(final, resume=False)
    masks = out / _MASKS / name if settings["keep_masks"] else None
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
    facts = _DATA_SETS[name].write(Drawing(partial, masks, settings, functools.partial(_run, name, workers)))
    write_bytes_atomically(
        partial / FACTS_NAME, encode_json({"kind": "phantom", "settings": settings, "studies": facts})
    )
    put_in_place(final)
    logger.info("phantom: %s has %d studies.", final, len(facts))


def _run(
    name: str, workers: int | None, function: Callable[[Any], dict[str, Any]], tasks: Sequence[Any]
) -> list[dict[str, Any]]:
    """The description of every study, in the order of the tasks."""
    facts: list[dict[str, Any]] = [{}] * len(tasks)
    with stop_on_signal() as stop, Meter(f"phantom {name}", len(tasks), "studies") as meter:
        for position, result in run_tasks(function, tasks, workers=workers or count_cores(), stop=stop):
            if isinstance(result, WorkerDied):
                raise DataError(
                    f"phantom: study {position} of {name} could not be drawn: {result.reason}. Try fewer workers."
                )
            facts[position] = result
            meter.advance()
            stop.check(_LOST.format(name))
        stop.check(_LOST.format(name))
    return facts
