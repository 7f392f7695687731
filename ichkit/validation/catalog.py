"""The sources of a work folder: every first- or second-stage predictor that can be scored and submitted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError, ConfigError, ContractError, nearest
from ichkit.core.roles import OUT_OF_FOLD, STANDARD_EXTERNAL, TEST, order_external
from ichkit.core.tasks import Task
from ichkit.validation.scope import Scope
from ichkit.work.artifacts import Manifest, check_sizes, digest_of, read_table
from ichkit.work.folder import WorkFolder, pooled_name
from ichkit.work.inventory import Inventory, kinds_of, take_inventory
from ichkit.work.looks import Scored
from ichkit.work.schemas import check_predictions, make_predictions, sort_rows

HAND = "hand"
"""Kind of a blend with given weights (`ichkit blend`), which has tables and no models."""


@dataclass(frozen=True)
class Source:
    """One predictor: the folds of a run, or one kind of prediction of a stack.

    Attributes:
        name: `<run>` for a run, else `<stack>-<kind>`.
        kind: "base" for a run or an ensemble of runs, else "fusion", "lightgbm", "blend", ...
        runs: its first-stage runs.
        folds: the first-stage folds it was scored on, ascending.
        path: its run folder or out-of-fold table, relative to the work folder.
        tables: "oof", "test" and every external set, the standard one first, to its tables: one per fold of a run, one
            for a stack.
        digests: SHA-256 of each table, keyed by its path relative to the work folder.
        data: origin of the scans: "rsna", "phantom", "folder".
        config_digest: digest of its settings.
        created_utc: creation time of its newest part.
        git_commit: the commit of its newest part; empty outside a checkout.
        is_outdated: True for a stack whose runs have changed since it was made.
        scope: the classes it predicts.
        members: of a blend by hand, the sources that it blends.
    """

    name: str
    kind: str
    runs: tuple[str, ...]
    folds: tuple[int, ...]
    path: str
    tables: Mapping[str, tuple[Path, ...]]
    digests: dict[str, str]
    data: str
    config_digest: str
    created_utc: str
    git_commit: str
    is_outdated: bool
    scope: Scope
    members: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """The task that it predicts, wholly or in part."""
        return self.scope.task

    @property
    def is_run(self) -> bool:
        """True for a first-stage run, False for a stack."""
        return self.path.startswith("runs/")

    @property
    def folds_label(self) -> str:
        """The folds as the leaderboard writes them, e.g. "0+1+2"."""
        return "+".join(map(str, self.folds))

    @property
    def remedy(self) -> str:
        """The command that updates its tables."""
        return "ichkit train" if self.is_run else "ichkit blend" if self.kind == HAND else "ichkit stack"

    def paths(self, split: str) -> tuple[Path, ...]:
        """The tables of "oof", "test" or an external set; empty for a set without predictions."""
        return self.tables.get(split, ())

    def read(self, path: Path) -> pd.DataFrame:
        """One of its tables, unchanged since the sources were listed.

        Raises:
            ArtifactError: it cannot be read, or has changed.
        """
        names = (name for name in self.digests if path.as_posix().endswith(name))
        return read_table(path, self.digests[next(names)])

    def digests_of(self, work: WorkFolder, split: str) -> dict[str, str]:
        """The part of `digests` for one split."""
        names = [path.relative_to(work.root).as_posix() for path in self.paths(split)]
        return {name: self.digests[name] for name in names}


class _Identity(NamedTuple):
    """Name and parts of a source; see `Source`."""

    name: str
    kind: str
    runs: tuple[str, ...]
    folds: tuple[int, ...]
    path: str
    is_outdated: bool
    members: tuple[str, ...] = ()


def looked_at(work: WorkFolder, source: Source, split: str, command: str) -> Scored:
    """The row of `looks.csv` for a source that is scored on an external set or on the locked patients."""
    digest = digest_of(source.digests_of(work, split))
    return Scored(split, source.name, source.config_digest, digest, command)


def find_sources(work: WorkFolder, task: Task) -> list[Source]:
    """Every finished run, then every kind of every finished stack, each by name.

    Raises:
        ArtifactError: a manifest is damaged, lacks a table, or was made for another task.
        ContractError: two sources would have the same name.
    """
    inventory = take_inventory(work)
    sources = [_run_source(inventory, run, folds, task) for run, folds in inventory.finished_runs.items()]
    for stack in inventory.finished_stacks:
        sources += _stack_sources(inventory, stack, task)
    seen: dict[str, Source] = {}
    for source in sources:
        if source.name in seen:
            raise ContractError(
                f'work: {seen[source.name].path} and {source.path} are both named "{source.name}"; names must be '
                "unique. Rename the folder of the run, or remove one of the two."
            )
        seen[source.name] = source
    return sources


def pick_source(sources: Sequence[Source], name: str) -> Source:
    """The source of that name.

    Raises:
        ConfigError: there is none; the message lists the choices.
    """
    for source in sources:
        if source.name == name:
            return source
    raise ConfigError(
        f'source: "{name}" is not a finished run or stack. {nearest(name, [source.name for source in sources])}'
    )


def load_out_of_fold(source: Source) -> pd.DataFrame:
    """The out-of-fold predictions of all folds, sorted by study_id and slice_index, each row with its fold.

    Raises:
        ArtifactError: a table cannot be read.
        ContractError: a table breaks the contract of predictions.
    """
    table = sort_rows(pd.concat([source.read(path) for path in source.paths(OUT_OF_FOLD)]))
    check_predictions(table, source.task, f"{source.path} (out of fold)")
    return table


def load_split(source: Source, split: str) -> pd.DataFrame:
    """The predictions for "test" or an external set, fold = -1: for a run the arithmetic mean over its fold models.

    Args:
        split: "test", or an external set among `source.tables`.

    Raises:
        ArtifactError: a table cannot be read.
        ContractError: a table breaks the contract, or the tables of the folds have different slices.
    """
    paths = source.paths(split)
    tables = [source.read(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        check_predictions(table, source.task, str(path))
        if not table.slice_id.equals(tables[0].slice_id):
            raise ContractError(
                f"{path}: expected the same slices as {paths[0]}, found others ({len(table)} and {len(tables[0])} "
                f"rows). Run `{source.remedy}` again to update the tables."
            )
    columns = source.task.probability_columns
    mean = np.mean([table[columns].to_numpy(np.float64) for table in tables], axis=0)
    return make_predictions(tables[0], mean, source.task, fold=-1)


def load_pooled(source: Source, dataset: str) -> pd.DataFrame | None:
    """study_id and p_<class> of an external set by the pool of a run, the mean over its folds; None without a pool.

    Raises:
        ArtifactError: a table cannot be read.
        ContractError: the tables of the folds have different studies.
    """
    paths = source.paths(pooled_name(dataset).removesuffix(".parquet"))
    tables = [source.read(path).drop_duplicates("study_id").sort_values("study_id") for path in paths]
    if not tables:
        return None
    for path, table in zip(paths, tables, strict=True):
        if table.study_id.tolist() != tables[0].study_id.tolist():
            raise ContractError(
                f"{path}: expected the same studies as {paths[0]}. Run `{source.remedy}` again to update the tables."
            )
    columns = source.task.probability_columns
    mean = np.mean([table[columns].to_numpy(np.float64) for table in tables], axis=0)
    return pd.DataFrame(mean, columns=columns).assign(study_id=tables[0].study_id.to_numpy())


def _run_source(inventory: Inventory, run: str, folds: list[int], task: Task) -> Source:
    manifests = {entry.folder: entry.manifest for entry in (inventory.runs[run][k] for k in folds)}
    for folder, manifest in manifests.items():
        _check_artifact(folder, manifest, task)
    splits = _sets_of_all(_tables_behind("", held) for held in manifests.values())
    tables = {split: tuple(folder / f"{split}.parquet" for folder in manifests) for split in splits}
    identity = _Identity(run, "base", (run,), tuple(folds), f"runs/{run}", is_outdated=False)
    return _make_source(inventory.work, task, manifests, tables, identity)


def _stack_sources(inventory: Inventory, stack: str, task: Task) -> list[Source]:
    """The sources of a stack, one for each kind."""
    folder, manifest = inventory.stacks[stack].folder, inventory.stacks[stack].manifest
    kinds = kinds_of(manifest)
    try:
        runs, folds = tuple(manifest.facts["runs"]), tuple(sorted(manifest.facts["folds"]))
    except KeyError as error:
        raise ArtifactError(
            f"{folder}: its manifest lacks {error}. Remove the folder and run its command again."
        ) from error
    is_outdated, members = inventory.is_outdated(stack), tuple(manifest.settings.get("blend", ()))
    _check_artifact(folder, manifest, task)
    splits = _sets_of_all(_tables_behind(f"{kind}_", manifest) for kind in kinds)
    sources = []
    for kind in kinds:
        tables = {split: (folder / f"{kind}_{split}.parquet",) for split in splits}
        path = f"stacks/{stack}/{kind}_oof.parquet"
        identity = _Identity(f"{stack}-{kind}", kind, runs, folds, path, is_outdated, members)
        sources.append(_make_source(inventory.work, task, {folder: manifest}, tables, identity))
    return sources


def _sets_of_all(tables: Iterable[set[str]]) -> tuple[str, ...]:
    """Out of fold, test, and the external sets that every fold or every kind has a table of.

    The standard external set is always among them.
    """
    groups = list(tables)
    external = order_external(set.intersection(*groups) - {OUT_OF_FOLD, TEST}) if groups else (STANDARD_EXTERNAL,)
    return (OUT_OF_FOLD, TEST, *external)


def _tables_behind(prefix: str, manifest: Manifest) -> set[str]:
    """Names of the parquet tables of an artifact that begin with `prefix`, with the prefix removed."""
    names = {name.removesuffix(".parquet") for name in manifest.files if name.endswith(".parquet") and "/" not in name}
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _make_source(
    work: WorkFolder,
    task: Task,
    manifests: dict[Path, Manifest],
    tables: Mapping[str, tuple[Path, ...]],
    identity: _Identity,
) -> Source:
    """A source with the facts from its manifests.

    Args:
        manifests: by artifact folder.
        tables: by split; each is directly in one of those folders.
    """
    digests = {}
    for path in (path for group in tables.values() for path in group):
        held = manifests[path.parent].files
        if path.name not in held:
            raise ArtifactError(
                f"{path.parent}: expected {path.name}, its manifest does not list it. `ichkit verify` lists what is "
                "damaged."
            )
        digests[path.relative_to(work.root).as_posix()] = held[path.name].sha256
    newest = max(manifests.values(), key=lambda manifest: manifest.created_utc)
    settings = sorted({manifest.settings_digest for manifest in manifests.values()})
    folder, first = next(iter(manifests.items()))
    return Source(
        **identity._asdict(),
        tables=tables,
        digests=digests,
        data="+".join(sorted({str(manifest.facts["data"]) for manifest in manifests.values()})),
        config_digest=settings[0] if len(settings) == 1 else digest_of(settings),
        created_utc=newest.created_utc,
        git_commit=newest.git_commit,
        scope=Scope.of_facts(task, first.facts, str(folder)),
    )


def _check_artifact(folder: Path, manifest: Manifest, task: Task) -> None:
    """Raises if an artifact has damaged files or an incomplete manifest, or is of another task."""
    check_sizes(folder, manifest)
    lacking = {"data", "task"} - manifest.facts.keys()
    if lacking:
        raise ArtifactError(
            f"{folder}: its manifest lacks {sorted(lacking)}. Remove the folder and run its command again."
        )
    if manifest.facts["task"] != task.name:
        raise ArtifactError(
            f'{folder}: expected the task "{task.name}", found "{manifest.facts["task"]}". Use the config it was made '
            "with, or another --work folder."
        )
