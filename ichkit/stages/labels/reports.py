"""`ichkit labels reports`: a draft of study labels from radiology reports in English, and its check by hand labels."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError, DataError
from ichkit.core.progress import logger
from ichkit.core.tasks import Task, find_task
from ichkit.show.plan import Forecast, Plan
from ichkit.show.table import Table, format_number
from ichkit.sources.labels import read_folder_labels
from ichkit.sources.report_text import TERMS, find_mentions, label_report
from ichkit.stages.labels.label_file import STUDY, refuse_existing, write_labels
from ichkit.validation.agreement import wilson_interval
from ichkit.work.folder import WorkFolder

_ID = "study_id"
_LEVEL = 0.95
_CHECK = (
    "By these rules against the labels by hand, on the studies of both files. Sensitivity and specificity with "
    "Wilson's interval; studies that the rules leave open are not in them."
)


@dataclass(frozen=True)
class ReportOptions:
    """Options of `labels reports`.

    Attributes:
        path: CSV with study_id and a column of report texts, one row per study.
        text_column: the name of that column.
        check: a label file made by hand, for some of the studies.
        out: the label file.
    """

    path: Path
    text_column: str = "report"
    check: Path | None = None
    out: Path = Path("labels.csv")


@dataclass(frozen=True)
class ReportLabelPlan(Plan):
    """What `labels reports` found: reports by study, and the labels by hand."""

    task: Task
    options: ReportOptions
    reports: pd.Series
    by_hand: pd.DataFrame | None

    @property
    def writes(self) -> tuple[Path, ...]:
        """The label file."""
        return (self.options.out,)

    def forecast(self) -> Forecast:
        """The number of reports."""
        return Forecast((f"{len(self.reports)} reports to labels per study",), 100.0 * len(self.reports))


def plan(config: Config, _work: WorkFolder, options: ReportOptions) -> ReportLabelPlan:
    """Reads the reports; writes nothing.

    Raises:
        DataError: no such columns, or two reports of one study.
        ConfigError: a class without terms, or a label file that exists.
    """
    task = find_task(config.task)
    refuse_existing(options.out)
    if unknown := [name for name in task.subtypes if name not in TERMS]:
        raise ConfigError(
            f"labels: there are no report terms for {', '.join(unknown)} of the task {task.name}, only for "
            f"{', '.join(TERMS)}. Write the label file by hand."
        )
    try:
        table = pd.read_csv(options.path, dtype="str", keep_default_na=False)
    except (OSError, ValueError) as error:
        # The message of the parser contains text of the reports.
        raise DataError(
            f"{options.path}: expected a CSV of reports in UTF-8, it cannot be read ({type(error).__name__})."
        ) from None
    missing = [name for name in (_ID, options.text_column) if name not in table]
    if missing:
        raise DataError(
            f"{options.path}: expected the columns {_ID} and {options.text_column}, found no "
            f"{' and no '.join(missing)}. Name the column of the texts with --text-column."
        )
    repeated = table[_ID].duplicated() | (table[_ID] == "")
    if repeated.any():
        raise DataError(
            f"{options.path}: {int(repeated.sum())} rows have no {_ID} or that of an earlier row. Join the texts of a "
            "study, or keep the final report."
        )
    by_hand = None
    if options.check is not None:
        by_hand, key = read_folder_labels(options.check, task)
        if key != _ID:
            raise DataError(f"{options.check}: expected labels per study ({_ID}), found {key}.")
    return ReportLabelPlan(task, options, table.set_index(_ID)[options.text_column], by_hand)


def run(plan: ReportLabelPlan) -> pd.DataFrame:
    """Writes the label file and returns its table; nothing of the texts is written or logged."""
    task = plan.task
    found = [label_report(text, task.classes, task.any_class) for text in plan.reports]
    num_silent = sum(not find_mentions(text) for text in plan.reports)
    if num_silent:
        logger.warning(
            "labels: %d of %d reports name no kind of blood, neither to find nor to deny it: they are 0, or unknown if "
            "they have no findings. Read some of them; the rules know English alone",
            num_silent,
            len(plan.reports),
        )
    table = pd.DataFrame(found, columns=list(task.classes)).astype("Int8")
    table.insert(0, _ID, plan.reports.index.to_numpy())
    write_labels(plan.options.out, table, task, STUDY)
    if plan.by_hand is None:
        logger.warning(
            "labels: these rules were never validated on your reports. Label about 100 studies by hand and give them "
            "with --check before you use these labels"
        )
    return table


def check(table: pd.DataFrame, by_hand: pd.DataFrame, task: Task) -> Table:
    """The labels of the rules against those by hand, by class.

    Args:
        table: from `run`.
        by_hand: study_id and a column per class.

    Raises:
        DataError: no study is in both.
    """
    both = table.merge(by_hand, on=_ID, suffixes=("", "_by_hand"))
    if both.empty:
        raise DataError("labels --check: expected labels of some of the studies with reports, found none of them.")
    rows = []
    for name in task.classes:
        true = both[f"{name}_by_hand"].astype("Int8")
        known = both[true.notna()]
        true = true[true.notna()]
        said = known[name]
        rates = []
        for value in (1, 0):
            asked = said[(true == value) & said.notna()]
            num_right = int((asked == value).sum())
            low, high = wilson_interval(num_right, len(asked), _LEVEL)
            rate = num_right / len(asked) if len(asked) else float("nan")
            between = f" ({low:.2f}-{high:.2f})" if len(asked) else ""
            rates.append(f"{format_number(rate, 3)}{between}")
        rows.append([name, f"{len(known)}", f"{int((true == 1).sum())}", *rates, f"{int(said.isna().sum())}"])
    columns = ("class", "studies", "positive", "sensitivity", "specificity", "left open")
    return Table("Rules against labels by hand", columns, rows, note=_CHECK)
