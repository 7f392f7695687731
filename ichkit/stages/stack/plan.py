"""The plan of `stack`."""

from ichkit.core.config import Config
from ichkit.core.roles import title_of
from ichkit.core.tasks import find_task
from ichkit.show.plan import PREDICTION_BYTES, Plan, up_to_date
from ichkit.stacking.inputs import Inputs, plan_chains, read_inputs
from ichkit.stages.stack.run import MADE_BY, choose_stackers, find_standing, place_of, settings_of
from ichkit.work.artifacts import read_manifest
from ichkit.work.folder import WorkFolder

_BYTES_PER_FIT = 1_000_000
"""Of one model of one chain: 41 kB for the fusion network and up to 0.4 MB for the trees of the demo."""


def describe_plan(config: Config, work: WorkFolder, *, runs: list[str] | None = None, name: str | None = None) -> Plan:
    """What `stack.run` would do with the same arguments.

    The time goes by a stack that stands in the work folder, rows for rows and fits for fits.

    Raises:
        ArtifactError, ContractError, ConfigError, FoldError: as `stack.run` before it fits.
    """
    task = find_task(config.task)
    stackers = choose_stackers(config.stack)
    inputs = read_inputs(work, task, runs, config.stack.embeddings)
    final = place_of(work, inputs, name)
    if find_standing(final, settings_of(config, inputs), inputs) is not None:
        return up_to_date(f"stack {final.name}")
    chains = plan_chains(inputs, task, config.stack.num_parts, config.seed)
    num_fits, num_kinds = len(chains) * len(stackers), len(stackers) + 1
    num_rows = len(inputs.train) + sum(len(slices) for slices in inputs.unseen.values())
    outside = ", ".join(f"{len(slices)} {title_of(name)}" for name, slices in inputs.external.items())
    seconds, basis = _estimate_seconds(work, inputs, stackers, num_fits)
    return Plan(
        steps=(
            f"runs {', '.join(inputs.runs)}, folds {', '.join(map(str, inputs.folds))}: {len(inputs.train)} rows, "
            f"{len(inputs.test)} test, {outside}",
            f"{', '.join(stackers)} and their blend: {num_fits} fits in {len(chains)} chains",
        ),
        writes=(final,),
        num_bytes=num_rows * num_kinds * PREDICTION_BYTES + num_fits * _BYTES_PER_FIT,
        seconds=seconds,
        basis=basis,
    )


def _estimate_seconds(
    work: WorkFolder, inputs: Inputs, stackers: tuple[str, ...], num_fits: int
) -> tuple[float | None, str]:
    """Seconds of so many fits, by the first stack of the same stackers."""
    for name in work.finished_stacks():
        facts = read_manifest(work.stacks / name, made_by=MADE_BY).facts
        if "seconds" in facts and set(stackers) <= set(facts["kinds"]) and facts["num_slices"]:
            share = len(inputs.train) / facts["num_slices"] * num_fits / (len(facts["chains"]) * len(stackers))
            return facts["seconds"] * share, f"as {name} took"
    return None, "not known: no stack of these stackers stands here to go by"
