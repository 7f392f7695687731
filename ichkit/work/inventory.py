"""The inventory of a work folder: every finished or unfinished artifact, from one pass that writes nothing.

`doctor`, `verify`, shell completion, the catalog of sources, plans and the second stage use it.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ichkit.core.errors import ArtifactError
from ichkit.work.artifacts import Manifest, digest_of, has_artifact, read_manifest
from ichkit.work.folder import WorkFolder, is_name
from ichkit.work.places import MANIFEST_NAME, final_of, partial_of

_OUT_OF_FOLD = "_oof.parquet"


@dataclass(frozen=True)
class Entry:
    """One artifact of a work folder.

    Attributes:
        folder: its folder, which exists only once it is finished.
        is_finished: it is complete; its manifest may still be unreadable.
        is_begun: there is unfinished work on it; also true while the tables of a finished artifact are made again.
    """

    folder: Path
    is_finished: bool
    is_begun: bool

    @property
    def manifest(self) -> Manifest:
        """Its manifest, read once.

        Raises:
            ArtifactError: missing or damaged.
        """
        if isinstance(self._read, ArtifactError):
            raise self._read
        return self._read

    @property
    def damage(self) -> str:
        """Why its manifest cannot be read; empty if it can."""
        return str(self._read) if isinstance(self._read, ArtifactError) else ""

    @cached_property
    def _read(self) -> Manifest | ArtifactError:
        try:
            return read_manifest(self.folder)
        except ArtifactError as error:
            return error
        except OSError as error:
            return ArtifactError(f"{self.folder / MANIFEST_NAME}: cannot be read ({error.strerror}).")


@dataclass(frozen=True)
class Inventory:
    """Every artifact of a work folder; folders with invalid names, such as manual copies, are ignored.

    Attributes:
        runs: by name and fold, both ascending; every run has at least one finished or unfinished fold.
        stacks: by name, ascending.
        derived: what is made of the others and read by no later command: proof, protocols, robustness, adversarial
            validation, tables and searches over settings.
    """

    work: WorkFolder
    prepared: Entry
    runs: dict[str, dict[int, Entry]]
    stacks: dict[str, Entry]
    scores: Entry
    derived: tuple[Entry, ...] = ()

    @property
    def finished_runs(self) -> dict[str, list[int]]:
        """Name to finished folds, for every run that has any."""
        folds = {name: [k for k, entry in run.items() if entry.is_finished] for name, run in self.runs.items()}
        return {name: finished for name, finished in folds.items() if finished}

    @property
    def finished_stacks(self) -> list[str]:
        """Names of the finished stacks."""
        return [name for name, entry in self.stacks.items() if entry.is_finished]

    @property
    def finished(self) -> list[Entry]:
        """Every finished artifact: the store, folds, stacks, scores, and what is derived from them."""
        folds = [entry for run in self.runs.values() for entry in run.values()]
        entries = [self.prepared, *folds, *self.stacks.values(), self.scores, *self.derived]
        return [entry for entry in entries if entry.is_finished]

    @property
    def source_names(self) -> list[str]:
        """Sources that can be scored and submitted: runs with a finished fold, then every kind of every stack."""
        stacks = {name: self.stacks[name] for name in self.finished_stacks if not self.stacks[name].damage}
        kinds = [f"{name}-{kind}" for name, entry in stacks.items() for kind in kinds_of(entry.manifest)]
        return [*self.finished_runs, *kinds]

    @cached_property
    def tables(self) -> dict[str, str]:
        """SHA-256 of every parquet table of the readable folds and stacks, by path relative to the work folder."""
        without = (self.prepared, self.scores, *self.derived)
        entries = [entry for entry in self.finished if entry not in without and not entry.damage]
        return {
            self.path_of(entry, name): file.sha256
            for entry in entries
            for name, file in entry.manifest.files.items()
            if name.endswith(".parquet")
        }

    @property
    def digest(self) -> str:
        """A digest of `tables`: it changes whenever a source appears, changes or goes."""
        return digest_of(self.tables)

    def path_of(self, entry: Entry, name: str = "") -> str:
        """The path of an artifact, or of a file of it, relative to the work folder."""
        return (entry.folder / name).relative_to(self.work.root).as_posix()

    def is_outdated(self, stack: str) -> bool:
        """True if the tables of its runs have changed since the stack was made.

        Raises:
            ArtifactError: the manifest of the stack cannot be read.
        """
        used = self.stacks[stack].manifest.inputs.items()
        # A blend may have stacks as members, whose paths begin with their folder.
        places = ((name if name.startswith("stacks/") else f"runs/{name}", digest) for name, digest in used)
        return any(self.tables.get(place, digest) != digest for place, digest in places)


def take_inventory(work: WorkFolder) -> Inventory:
    """Lists the artifacts of a work folder; writes nothing, and a damaged manifest raises nothing."""
    runs = {folder.name: _list_folds(folder) for folder in _list_artifacts(work.runs) if is_name(folder.name)}
    stacks = {folder.name: _look_at(folder) for folder in _list_artifacts(work.stacks) if is_name(folder.name)}
    begun = {name: run for name, run in runs.items() if run}
    derived = tuple(map(_look_at, (work.proof, work.protocols, work.robustness, work.adversarial, work.tables)))
    derived += tuple(_look_at(folder) for folder in _list_artifacts(work.searches) if is_name(folder.name))
    return Inventory(work, _look_at(work.prepared), begun, stacks, _look_at(work.scores), derived)


def kinds_of(stack: Manifest) -> list[str]:
    """The kinds of predictions that a stack holds, by name: "blend", "fusion", "lightgbm", ..."""
    return sorted(name.removesuffix(_OUT_OF_FOLD) for name in stack.files if name.endswith(_OUT_OF_FOLD))


def _list_folds(run: Path) -> dict[int, Entry]:
    folds = [folder for folder in _list_artifacts(run) if re.fullmatch(r"fold\d+", folder.name)]
    return dict(sorted((int(folder.name.removeprefix("fold")), _look_at(folder)) for folder in folds))


def _list_artifacts(parent: Path) -> list[Path]:
    """The artifact folders in a folder, by name, including those with only unfinished or set-aside work."""
    return sorted({final_of(path) for path in parent.iterdir() if path.is_dir()} if parent.is_dir() else ())


def _look_at(folder: Path) -> Entry:
    return Entry(folder, has_artifact(folder), partial_of(folder).is_dir())
