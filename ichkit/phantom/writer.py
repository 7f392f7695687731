"""Synthetic head CT as real DICOM in the layouts of both data sets, ready for `ichkit prepare`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ichkit.core.errors import DataError, DiskFullError
from ichkit.core.progress import Meter, logger, stop_on_signal
from ichkit.engine.parallel import WorkerDied, count_cores, run_tasks
from ichkit.phantom import cq500, rsna
from ichkit.phantom.confounders import finish_slice
from ichkit.phantom.head import draw_head
from ichkit.phantom.plan import StudyToDraw, plan_part
from ichkit.phantom.study import draw_scene, draw_slices, draw_stack
from ichkit.work.artifacts import disk_full, encode_json, partial_of, write_bytes_atomically

FACTS_NAME = "phantom.json"
_VERSION = 1
_ROOTS = ("rsna", "cq500")
_MASKS = "masks"


def write_phantom(
    out: Path,
    *,
    studies: int = 60,
    test_studies: int = 15,
    cq500_studies: int = 20,
    size: int = 512,
    seed: int = 0,
    keep_masks: bool = False,
    workers: int | None = None,
) -> None:
    """Writes `out/rsna` and `out/cq500`, the same bytes for the same arguments whatever the number of workers.

    A finished root with the same settings is left as it is; an unfinished one is begun again.

    Args:
        out: a new or empty folder, or one of an earlier call with the same settings.
        studies, test_studies: RSNA studies with and without published labels; about 32 slices each.
        cq500_studies: studies in the CQ500 layout, one to five series each; 0 for no such folder.
        size: rows and columns of a slice, at least 64.
        keep_masks: also write `out/masks/<data set>/*.npz`, slice id to (H, W) uint8, bit c for class c of
            `bleeds.SUBTYPES`.
        workers: processes; None for one a core.

    Raises:
        DataError: `out` holds something else, or a phantom of other settings, or a worker died.
        DiskFullError: too little room.
        Stopped: a signal asked for a stop.
    """
    missing = find_missing(
        out,
        studies=studies,
        test_studies=test_studies,
        cq500_studies=cq500_studies,
        size=size,
        seed=seed,
        keep_masks=keep_masks,
    )
    if not missing:
        logger.info("phantom: %s is finished; nothing to do.", out)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        _check_room(out, size, studies + test_studies, cq500_studies)
        _compile_kernels()
        for name, settings in missing.items():
            _write_root(out, name, settings, workers)
    except OSError as error:
        raise disk_full(out, error) from error


def find_missing(
    out: Path, *, studies: int, test_studies: int, cq500_studies: int, size: int, seed: int, keep_masks: bool
) -> dict[str, dict[str, Any]]:
    """Name and settings of every root that is not finished yet; arguments as for `write_phantom`.

    Raises:
        DataError: `out` holds something else, or a phantom of other settings, or a count is too small.
    """
    common = {"version": _VERSION, "size": size, "seed": seed, "keep_masks": keep_masks}
    settings = {
        "rsna": {**common, "studies": studies, "test_studies": test_studies},
        "cq500": {**common, "cq500_studies": cq500_studies},
    }
    _check_counts(size, {"studies": studies, "test-studies": test_studies, "cq500-studies": cq500_studies})
    _check_folder(out)
    wanted = _ROOTS if cq500_studies else ("rsna",)
    return {name: settings[name] for name in wanted if not _is_finished(out / name, settings[name])}


def room_bytes(size: int, num_rsna: int, num_cq500: int) -> int:
    """Disk that so many studies take: about 33 slices each, and about 80 in CQ500 with its other series."""
    return (33 * num_rsna + 80 * num_cq500) * 2 * size * size


def _check_counts(size: int, counts: dict[str, int]) -> None:
    if size < 64:
        raise DataError(f"phantom: expected a size of at least 64, found {size}.")
    for name, count in counts.items():
        least = 1 if name == "studies" else 0
        if count < least:
            raise DataError(f"phantom: expected --{name} of at least {least}, found {count}.")


def _check_folder(out: Path) -> None:
    """Refuses a folder that holds anything a phantom did not write."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"phantom: expected a folder, {out} is a file. Choose another folder.")
    known = {_MASKS, *_ROOTS, *(partial_of(Path(name)).name for name in _ROOTS)}
    foreign = sorted(item.name for item in out.iterdir() if item.name not in known)
    unsigned = [name for name in _ROOTS if (out / name).exists() and not (out / name / FACTS_NAME).is_file()]
    if foreign or unsigned:
        raise DataError(
            f"phantom: expected a new or empty folder or an earlier phantom, found {', '.join([*foreign, *unsigned])} "
            f"in {out}. Choose another folder."
        )


def _is_finished(root: Path, settings: dict[str, Any]) -> bool:
    """Whether a root of these settings is there; refuses one of others."""
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
        f"{name} is {found.get(name)}, asked {settings.get(name)}"
        for name in names
        if found.get(name) != settings.get(name)
    ]
    if differences:
        raise DataError(
            f"phantom: {root} was made from other settings: {'; '.join(differences)}. Choose another folder."
        )
    return True


def _check_room(out: Path, size: int, num_rsna: int, num_cq500: int) -> None:
    needed = room_bytes(size, num_rsna, num_cq500)
    free = shutil.disk_usage(out).free
    logger.info("phantom: needs about %.1f GB, %.1f GB are free.", needed / 1e9, free / 1e9)
    if needed > free:
        raise DiskFullError(
            f"phantom: {out} has {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB are needed. "
            "Choose another disk, a smaller --size, or fewer studies."
        )


def _compile_kernels() -> None:
    """Compiles once here, so that the workers find the machine code in numba's cache."""
    generator = np.random.default_rng(0)
    scene = draw_scene(generator, draw_head(generator), ("subdural",))
    stack = draw_stack(generator, scene.pose, (64, 64), np.array([60.0]), 5.0, 0.0)
    one = draw_slices(scene, stack)[0]
    finish_slice(generator, one.hounsfield, stack.grids[0], scene.pose, scene.scan)


def _write_root(out: Path, name: str, settings: dict[str, Any], workers: int | None) -> None:
    """Writes one data set beside its final place and renames it."""
    final = out / name
    partial = partial_of(final)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    masks = out / _MASKS / name if settings["keep_masks"] else None
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
    size, seed = settings["size"], settings["seed"]
    parts = {"rsna": ("train", "test"), "cq500": ("cq500",)}[name]
    counts = {"train": "studies", "test": "test_studies", "cq500": "cq500_studies"}
    plans = [plan for part in parts for plan in plan_part(part, settings[counts[part]], seed)]
    tasks = [StudyToDraw(plan, partial, masks, size, seed) for plan in plans]
    if name == "rsna":
        for folder in rsna.FOLDERS.values():
            (partial / folder).mkdir()
        facts = _run(name, rsna.write_study, tasks, workers)
        rsna.write_tables(partial, facts, seed)
    else:
        numbers = cq500.choose_numbers(len(plans), seed)
        facts = _run(name, cq500.write_study, list(zip(tasks, numbers, strict=True)), workers)
        cq500.write_reads(partial, facts, seed)
    write_bytes_atomically(
        partial / FACTS_NAME, encode_json({"kind": "phantom", "settings": settings, "studies": facts})
    )
    partial.rename(final)
    logger.info("phantom: %s holds %d studies.", final, len(facts))


def _run(
    name: str, function: Callable[[Any], dict[str, Any]], tasks: list[Any], workers: int | None
) -> list[dict[str, Any]]:
    """The facts of every study, in the order of the tasks."""
    facts: list[dict[str, Any]] = [{}] * len(tasks)
    with stop_on_signal() as stop, Meter(f"phantom {name}", len(tasks), "studies") as meter:
        for position, result in run_tasks(function, tasks, workers=workers or count_cores()):
            if isinstance(result, WorkerDied):
                raise DataError(
                    f"phantom: study {position} of {name} could not be drawn: {result.reason}. Try fewer workers."
                )
            facts[position] = result
            meter.advance()
            stop.check(f"{name} begins again, what was finished before it stays")
    return facts
