"""What a source costs: time of training and of prediction, size, and stack level, from the manifests of its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ichkit.stages.scores.book import ScoreBook
from ichkit.validation.catalog import HAND, Source
from ichkit.work.artifacts import Manifest, read_manifest, read_table
from ichkit.work.folder import CARD_NAME, WEIGHTS_NAME, WorkFolder
from ichkit.work.inventory import kinds_of

SECONDS_PER_STUDY = "seconds_per_study"
"""Fact of a fold or stack: the time of predicting a study, measured while its tables were made."""
_BLEND = "blend"
_TABLES = (".parquet", ".csv")


@dataclass(frozen=True)
class Cost:
    """The cost of one source; None where an artifact of an earlier version does not say.

    Attributes:
        level: 1 for a run, 2 for a second stage or an ensemble of runs, one more for each blend on top.
        hours: of training all its folds and fitting its second stage, one after another.
        seconds_per_study: of prediction by all its networks, on the machine that made its tables.
        num_bytes: of the files that prediction needs.
    """

    level: int
    hours: float | None
    seconds_per_study: float | None
    num_bytes: int


def measure_costs(work: WorkFolder, sources: Sequence[Source]) -> dict[str, Cost]:
    """Name to cost of every source.

    Raises:
        ArtifactError: a manifest or a history is damaged.
    """
    by_name = {source.name: source for source in sources}
    manifests: dict[Path, Manifest] = {}
    hours: dict[Path, float | None] = {}
    costs = {}
    for source in sources:
        parts = _parts(work, source, by_name)
        for folder in parts:
            if folder not in manifests:
                manifests[folder] = read_manifest(folder)
                hours[folder] = _hours(folder, manifests[folder])
        # A blend by hand is arithmetic: what it adds to its members was not timed and is next to nothing.
        paces = [manifests[folder].facts.get(SECONDS_PER_STUDY) for folder, kind in parts.items() if kind != HAND]
        costs[source.name] = Cost(
            level=_level(source, by_name),
            hours=_total([hours[folder] for folder in parts]),
            seconds_per_study=_total(paces),
            num_bytes=sum(_size(manifests[folder], kind) for folder, kind in parts.items()),
        )
    return costs


def choose_pareto(book: ScoreBook, costs: Mapping[str, Cost]) -> frozenset[str]:
    """The sources that no other of the same folds and classes beats in both loss and prediction time.

    One beats another if it is better in one of the two and at least as good in the other. A source without a loss or a
    time is beaten by none.
    """
    return frozenset(
        source.name for source in book.sources if not any(_beats(book, costs, other, source) for other in book.sources)
    )


def _beats(book: ScoreBook, costs: Mapping[str, Cost], one: Source, other: Source) -> bool:
    first, second = costs[one.name].seconds_per_study, costs[other.name].seconds_per_study
    if (one.folds, one.scope) != (other.folds, other.scope) or first is None or second is None:
        return False
    mine, its = (book.loss(one).value, first), (book.loss(other).value, second)
    return mine != its and mine[0] <= its[0] and mine[1] <= its[1]


def _parts(work: WorkFolder, source: Source, by_name: Mapping[str, Source]) -> dict[Path, str]:
    """Folder to kind of every artifact that a source is made of, each once."""
    found = {work.fold(run, fold): "base" for run in source.runs for fold in source.folds}
    if source.is_run:
        return found
    folder = (work.root / source.path).parent
    found[folder] = source.kind
    for member in _members(source, by_name):
        for part, kind in _parts(work, member, by_name).items():
            # Of two kinds of one stack both have files.
            found[part] = kind if found.get(part, kind) == kind else _BLEND
    return found


def _members(source: Source, by_name: Mapping[str, Source]) -> list[Source]:
    """The members of a blend by hand that are still there; no other source has members of its own."""
    return [by_name[name] for name in sorted(source.members) if name in by_name]


def _level(source: Source, by_name: Mapping[str, Source]) -> int:
    if source.is_run:
        return 1
    if source.kind != HAND:
        return 3 if source.kind == _BLEND else 2
    return 1 + max((_level(one, by_name) for one in _members(source, by_name)), default=1)


def _hours(folder: Path, manifest: Manifest) -> float | None:
    seconds = manifest.facts.get("seconds")
    if seconds is None:
        return 0.0 if manifest.kind == "stack" and "weights" in manifest.facts else None
    if "history.csv" in manifest.files:
        # If the tables of a fold were written again later, that took less time than training.
        history = read_table(folder / "history.csv", manifest.sha256_of("history.csv"))
        seconds = max(seconds, float(history["seconds"].sum()))
    return float(seconds) / 3600


def _size(manifest: Manifest, kind: str) -> int:
    """Bytes of the files of an artifact that prediction needs."""
    if manifest.kind != "stack":
        return sum(manifest.files[name].num_bytes for name in (WEIGHTS_NAME, CARD_NAME) if name in manifest.files)
    others = {one for one in kinds_of(manifest) if one != kind and kind != _BLEND}
    needed = (name for name in manifest.files if not name.endswith(_TABLES) and name.split("/")[0] not in others)
    return sum(manifest.files[name].num_bytes for name in needed)


def _total(values: Sequence[float | None]) -> float | None:
    """The sum; None if one is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
