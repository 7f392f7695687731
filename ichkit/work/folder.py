"""Where everything lies inside a work folder."""

import re
from dataclasses import dataclass
from pathlib import Path

from ichkit.work.artifacts import has_artifact

# Inside the folder of a fold: weights, what rebuilds their network, and how each step of training went.
WEIGHTS_NAME, CARD_NAME, JOURNAL_NAME = "model.safetensors", "model.json", "steps.jsonl"


@dataclass(frozen=True)
class WorkFolder:
    """The paths of one work folder; see the README for what each holds."""

    root: Path

    @property
    def prepared(self) -> Path:
        """The Hounsfield store and its tables."""
        return self.root / "prepared"

    @property
    def runs(self) -> Path:
        """First-stage runs, one folder each."""
        return self.root / "runs"

    @property
    def stacks(self) -> Path:
        """Second-stage artifacts, one folder each."""
        return self.root / "stacks"

    @property
    def scores(self) -> Path:
        """Scores of every source."""
        return self.root / "scores"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    def fold(self, run: str, fold: int) -> Path:
        """The artifact of one fold of one run."""
        return self.runs / run / f"fold{fold}"

    def finished_folds(self, run: str) -> list[int]:
        """Folds of a run that are whole, ascending."""
        return [k for k, folder in _numbered(self.runs / run) if has_artifact(folder)]

    def finished_runs(self) -> dict[str, list[int]]:
        """Name to finished folds of every run with at least one, by name."""
        if not self.runs.is_dir():
            return {}
        found = {
            folder.name: self.finished_folds(folder.name) for folder in sorted(self.runs.iterdir()) if folder.is_dir()
        }
        return {name: folds for name, folds in found.items() if folds}

    def finished_stacks(self) -> list[str]:
        """Names of whole stacks, by name."""
        if not self.stacks.is_dir():
            return []
        names = {re.sub(r"\.(partial|old)$", "", folder.name) for folder in self.stacks.iterdir() if folder.is_dir()}
        return sorted(name for name in names if has_artifact(self.stacks / name))


def _numbered(run: Path) -> list[tuple[int, Path]]:
    """(fold, folder) for every fold of a run that was begun, ascending."""
    if not run.is_dir():
        return []
    names = {
        match.group(1)
        for folder in run.iterdir()
        if (match := re.fullmatch(r"fold(\d+)(\.partial|\.old)?", folder.name))
    }
    return [(k, run / f"fold{k}") for k in sorted(map(int, names))]
