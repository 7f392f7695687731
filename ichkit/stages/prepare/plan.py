"""The plans of `phantom`, `prepare` and `demo`."""

from collections.abc import Sequence
from pathlib import Path

from ichkit.core.config import Config
from ichkit.phantom.writer import find_missing, room_bytes
from ichkit.show.plan import Plan, format_bytes, up_to_date
from ichkit.stages.prepare.request import Needs, PrepareOptions, look
from ichkit.work.folder import WorkFolder

_DEMO_SECONDS = 237.0
"""Of the whole demo with its own settings on two cores: amid the last runs of `benchmarks/demo.py`, 205 to 266 s."""
_DEMO_COPIES = 1.5
"""Disk of the demo, in units of its phantom: beside the DICOM at most half as much again."""


def describe_phantom(
    out: Path, *, studies: int, test_studies: int, cq500_studies: int, size: int, seed: int, keep_masks: bool
) -> Plan:
    """What `write_phantom` would do with the same arguments.

    Raises:
        DataError: as `write_phantom` before it draws.
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
        return up_to_date(str(out))
    num_rsna = studies + test_studies if "rsna" in missing else 0
    num_cq500 = cq500_studies if "cq500" in missing else 0
    return Plan(
        steps=(f"draws {num_rsna} studies as RSNA 2019 and {num_cq500} as CQ500, {size} x {size} pixels, seed {seed}",),
        writes=tuple(out / name for name in missing),
        num_bytes=room_bytes(size, num_rsna, num_cq500),
        basis="not known before the first studies are drawn; the meter says it then",
    )


def describe_prepare(config: Config, work: WorkFolder, options: PrepareOptions) -> Plan:
    """What `prepare.run` would do; files are counted, and no header is read.

    Raises:
        DataError, ConfigError, ArtifactError, FoldError: as `prepare.run` before it reads a header.
    """
    found = look(config, work, options)
    if found.standing is not None:
        return up_to_date("prepare")
    needs = Needs.of(found.listings, config)
    steps = [
        f"{item.source.name}: {len(item.images)} files of {item.root}, {format_bytes(item.images['num_bytes'].sum())}"
        for item in found.listings
    ]
    if options.limit_studies is not None:
        steps.append(f"only {options.limit_studies} studies of each split: less disk and time than is said here")
    if found.folds is None:
        steps.append(f"deals the patients into {config.prepare.num_folds} folds")
    else:
        steps.append(f"keeps the folds of {len(found.folds)} patients; new ones are dealt beside them")
    if found.is_update:
        steps.append("the files have changed: what is prepared already is taken over")
    elif options.fresh and work.prepared.exists():
        steps.append(f"removes {work.prepared} first (--fresh)")
    return Plan(
        steps=tuple(steps),
        writes=(work.prepared,),
        num_bytes=needs.disk_bytes,
        seconds=needs.seconds,
        basis=f"on {needs.workers} processes, where the disk keeps up",
    )


def describe_demo(config: Config, folder: Path, commands: Sequence[Sequence[str]], *, is_as_shipped: bool) -> Plan:
    """What `demo` would do in a folder that is not there yet.

    Args:
        commands: those of its recipe.
        is_as_shipped: nothing is configured otherwise, so that the time is known.
    """
    made = config.phantom
    known = "on two cores, as measured" if is_as_shipped else "not known with other settings than the demo's own"
    return Plan(
        steps=tuple(f"ichkit {' '.join(words)}" for words in commands),
        writes=(folder,),
        num_bytes=_DEMO_COPIES * room_bytes(made.size, made.studies + made.test_studies, made.cq500_studies),
        seconds=_DEMO_SECONDS if is_as_shipped else None,
        basis=known,
    )
