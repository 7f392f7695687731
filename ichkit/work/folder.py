"""Paths inside a work folder, and the names that runs and stacks may have."""

import re
from dataclasses import dataclass
from pathlib import Path

from ichkit.core.errors import ConfigError, shorten

# Inside the folder of a fold: weights, model card, and step log of the training.
WEIGHTS_NAME, CARD_NAME, STEP_LOG_NAME = "model.safetensors", "model.json", "steps.jsonl"
# Scores of the held-out fold after each epoch, where `train.curve` asked for them; no choice may read it.
HELDOUT_CURVE_NAME = "heldout_curve_for_display_only.csv"
# Thresholds of a fold, chosen on the validation patients of its training part.
THRESHOLDS_NAME = "thresholds.csv"
_MAX_NAME = 200
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
"""Names that are no files on Windows, with any suffix: a work folder may be copied there."""


def pooled_name(part: str) -> str:
    """Name of the table of pooled studies and the weights of their slices, in the folder of a fold."""
    return f"study_{part}.parquet"


def is_name(name: str) -> bool:
    """True for a valid name of a run or stack; see `check_name`.

    Example:
        >>> [is_name(name) for name in ("resnet50+demo", "../up", "=cmd", "demo.old")]
        [True, False, False, False]
    """
    is_plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name) is not None
    is_portable = _WINDOWS_DEVICES.fullmatch(name) is None and not name.endswith(".")
    return is_plain and is_portable and len(name) <= _MAX_NAME and not name.endswith((".partial", ".old"))


def check_name(name: str, what: str = "name") -> str:
    """The name of a run or stack, if it is valid.

    Args:
        what: the option or field, for the message, e.g. "--run".

    Raises:
        ConfigError: it is not.
    """
    if not is_name(name):
        raise ConfigError(
            f"{what}: expected a name of at most {_MAX_NAME} letters, digits, "
            f'"_", "+", "-" and ".", which begins with a letter, digit or "_", does not end in ".", .partial or .old, '
            f"and is no device of Windows (CON, NUL, ...), found {shorten(name)!r}. Give another name."
        )
    return name


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
    def searches(self) -> Path:
        """Searches over settings, one folder each."""
        return self.root / "tune"

    @property
    def scores(self) -> Path:
        """Scores of every source."""
        return self.root / "scores"

    @property
    def proof(self) -> Path:
        """The gains of second stages on locked patients."""
        return self.root / "proof"

    @property
    def protocols(self) -> Path:
        """The external sets scored under every protocol."""
        return self.root / "protocols"

    @property
    def robustness(self) -> Path:
        """Scores of a run's networks on perturbed scans."""
        return self.root / "robustness"

    @property
    def adversarial(self) -> Path:
        """How well the data sets are told apart."""
        return self.root / "adversarial"

    @property
    def looks(self) -> Path:
        """The log of every evaluation on an external set or on the locked patients."""
        return self.root / "looks.csv"

    @property
    def tracking(self) -> Path:
        """What loggers store on this machine, and what they were sent."""
        return self.root / "tracking"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def report_time(self) -> Path:
        """The time that the report took; not in the page, which is the same bytes from the same inputs."""
        return self.root / "report.json"

    @property
    def label_errors(self) -> Path:
        """The page of suspected label errors; their table is beside it."""
        return self.root / "label_errors.html"

    @property
    def tables(self) -> Path:
        """Every table of the report as CSV and LaTeX."""
        return self.root / "tables"

    @property
    def model_card(self) -> Path:
        """The model card of the best source as Markdown; its JSON is beside it."""
        return self.root / "model-card.md"

    def checklist(self, name: str) -> Path:
        """The page of a reporting guideline; its table is beside it."""
        return self.root / f"checklist-{name}.html"

    def fold(self, run: str, fold: int) -> Path:
        """The artifact of one fold of one run.

        Raises:
            ConfigError: the name is not valid.
        """
        return self.runs / check_name(run, "run") / f"fold{fold}"

    def stack_folder(self, name: str) -> Path:
        """The artifact of one stack.

        Raises:
            ConfigError: the name is not valid.
        """
        return self.stacks / check_name(name, "stack")

    def tune_folder(self, name: str) -> Path:
        """The artifact of one search over settings.

        Raises:
            ConfigError: the name is not valid.
        """
        return self.searches / check_name(name, "search")
