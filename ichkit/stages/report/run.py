"""`ichkit report`: one self-contained HTML page about a work folder: no network, images embedded."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError
from ichkit.core.progress import format_count, format_seconds, logger
from ichkit.core.roles import OUT_OF_FOLD
from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.show import page
from ichkit.show.blocks import Section
from ichkit.show.plan import Forecast, Plan
from ichkit.show.word import check_word
from ichkit.stages.predict.card import collect_card
from ichkit.stages.predict.card_files import encode_card
from ichkit.stages.predict.model import model_of
from ichkit.stages.report import table_files
from ichkit.stages.report.adversarial import make_adversarial
from ichkit.stages.report.calibration import make_calibration
from ichkit.stages.report.checklist_page import CHECKLIST_TEMPLATE, write_checklist
from ichkit.stages.report.checklists import Checklist, find_checklist, read_source
from ichkit.stages.report.checks import make_first
from ichkit.stages.report.classes import make_losses, make_roc
from ichkit.stages.report.commands import repeatable
from ichkit.stages.report.contrasts import make_pairs, make_subgroups
from ichkit.stages.report.decisions import make_decisions
from ichkit.stages.report.design import make_design
from ichkit.stages.report.external import make_external
from ichkit.stages.report.failures import make_failures
from ichkit.stages.report.flow import make_flow
from ichkit.stages.report.inner import make_inner
from ichkit.stages.report.label_errors import write_label_errors
from ichkit.stages.report.limitations import make_limitations
from ichkit.stages.report.methods import make_methods
from ichkit.stages.report.operating import make_operating
from ichkit.stages.report.overview import make_board, make_overview
from ichkit.stages.report.population import make_population
from ichkit.stages.report.proof import make_proof
from ichkit.stages.report.protocols import make_protocols
from ichkit.stages.report.provenance import make_data, make_repeat, make_training
from ichkit.stages.report.reference import make_reference
from ichkit.stages.report.region_scores import make_region_scores
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.report.robustness import make_robustness
from ichkit.stages.report.sample_size import make_sample_size
from ichkit.stages.report.second_stage import make_second_stage
from ichkit.stages.report.strips import make_strips
from ichkit.stages.scores import evaluate, leaderboard
from ichkit.stages.scores.book import open_book
from ichkit.stages.scores.evaluate import EvaluatePlan
from ichkit.stages.scores.tables import data_note
from ichkit.work.artifacts import (
    digest_of,
    encode_json,
    git_commit,
    has_artifact,
    package_versions,
    read_manifest,
    write_bytes_atomically,
)
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.locks import holding
from ichkit.work.looks import read_looks

_ROOM, _TEMPLATE = "ichkit.stages.report", "report.html.j2"
# In the order of the page; these need scores.
_SCORED = (
    make_board,
    make_losses,
    make_roc,
    make_operating,
    make_calibration,
    make_inner,
    make_region_scores,
    make_decisions,
    make_strips,
    make_failures,
    make_robustness,
    make_external,
    make_protocols,
    make_subgroups,
    make_pairs,
    make_second_stage,
    make_proof,
    make_training,
)
# Study and methods, in the order of an article; these need no scores.
_STUDY = (
    make_design,
    make_flow,
    make_population,
    make_adversarial,
    make_reference,
    make_sample_size,
    make_methods,
    make_limitations,
)


@dataclass(frozen=True)
class ReportOptions:
    """Options of `report`.

    Attributes:
        submissions: the folder of the submissions whose Kaggle scores are shown.
        label_errors: also write the page and the table of suspected label errors.
        checklists: reporting guidelines whose checklists are filled, names in `CHECKLISTS`.
        has_tables: also write every table of the page as CSV and LaTeX.
        has_word: also write them as a Word document.
    """

    submissions: Path = Path("submissions")
    label_errors: bool = False
    checklists: tuple[str, ...] = ()
    has_tables: bool = False
    has_word: bool = False


@dataclass(frozen=True)
class ReportPlan(Plan):
    """What `report` found before it writes.

    Attributes:
        scoring: the plan of the missing scores; None if nothing is trained yet.
        checklists: the guidelines whose checklists are filled.
    """

    config: Config
    work: WorkFolder
    options: ReportOptions
    prepared: Prepared
    scoring: EvaluatePlan | None
    checklists: tuple[Checklist, ...] = ()

    @property
    def writes(self) -> tuple[Path, ...]:
        """The scores, if they are out of date, and the page with what was asked for beside it."""
        pages = [self.work.label_errors] if self.options.label_errors else []
        pages += [self.work.checklist(checklist.name) for checklist in self.checklists]
        beside = [path for page_path in pages for path in (page_path, page_path.with_suffix(".csv"))]
        if self.scoring is not None:
            beside += [self.work.model_card, self.work.model_card.with_suffix(".json")]
        beside += [self.work.tables] if self.has_tables else []
        scores = () if self.scoring is None else self.scoring.writes
        return (*scores, self.work.report, self.work.report_time, *beside)

    @property
    def has_tables(self) -> bool:
        """Whether tables are written as files, in any format."""
        return self.options.has_tables or self.options.has_word

    def forecast(self) -> Forecast:
        """The missing scores, then the page; size and time of the existing page, with the time of the scores."""
        scoring, page = self.scoring, self.work.report
        missing = None if scoring is None or scoring.is_current else scoring.forecast()
        before = () if missing is None else missing.steps
        step = f"one page about {format_count(0 if scoring is None else len(scoring.sources), 'source')}"
        label_errors = ("suspected label errors of the best source",) if self.options.label_errors else ()
        filled = (f"checklist {checklist.title}, {checklist.num_items} items" for checklist in self.checklists)
        formats = "CSV and LaTeX, and as a Word document" if self.options.has_word else "CSV and LaTeX"
        tables = (f"every table of the page as {formats}",) if self.has_tables else ()
        steps = (*before, step, *label_errors, *filled, *tables)
        num_bytes = page.stat().st_size if not before and page.is_file() else None
        took = _read_seconds(self.work)
        if took is None:
            return Forecast(steps, num_bytes, basis="unknown: no report was made here yet")
        if missing is None:
            return Forecast(steps, num_bytes, took, "as the last report, if the inputs changed")
        total = None if missing.seconds is None else missing.seconds + took
        return Forecast(steps, num_bytes, total, f"the report as the last one; scores: {missing.basis}")


def plan(config: Config, work: WorkFolder, options: ReportOptions | None = None) -> ReportPlan:
    """The plan of a report; writes nothing.

    Raises:
        ConfigError: no such checklist, or python-docx is needed and not installed.
        ArtifactError: nothing is prepared, an artifact is damaged, or label errors are asked for before training.
    """
    options = options or ReportOptions()
    checklists = tuple(map(find_checklist, dict.fromkeys(options.checklists)))
    if options.has_word:
        check_word("report --word")
    prepared = Prepared.open(work.prepared, find_task(config.task))
    scoring = evaluate.plan_scores(config, work) if take_inventory(work).finished_runs else None
    if options.label_errors and scoring is None:
        raise ArtifactError(
            "report --label-errors: expected out-of-fold predictions, found no finished fold in runs/. "
            "Run `ichkit train` first."
        )
    return ReportPlan(config, work, options, prepared, scoring, checklists)


@holding(lambda given: given["plan"].work.report)
def run(plan: ReportPlan) -> Path:
    """Writes `work/report.html` and what was asked for beside it, and returns its path.

    Missing scores are computed, missing parts are named in the page.

    A page made from the same inputs, settings and versions is kept.

    Raises:
        ArtifactError: an artifact is damaged.
    """
    report, work = collect(plan), plan.work
    began, took = time.monotonic(), _read_seconds(work)
    if took is not None:
        logger.info("report: the last one took %s", format_seconds(took))
    if plan.options.label_errors:
        write_label_errors(report, work.label_errors, work.label_errors.with_suffix(".csv"))
    tables = take_inventory(work).digest
    outputs = Outputs(report, _digest(report, tables), tables)
    if outputs.write_page():
        seconds = round(time.monotonic() - began, 1)
        write_bytes_atomically(work.report_time, encode_json({"seconds": seconds}))
    outputs.write_card()
    for checklist in plan.checklists:
        outputs.write_checklist(checklist)
    if plan.has_tables:
        outputs.write_tables(has_word=plan.options.has_word)
    return work.report


@dataclass(frozen=True)
class Outputs:
    """The files that are made of the sections of one report; those made from the same inputs are kept.

    Attributes:
        inputs: digest of everything that the sections depend on.
        tables: digest of the tables of all sources, by which `doctor` knows an outdated page.
    """

    report: ReportData
    inputs: str
    tables: str

    @cached_property
    def sections(self) -> list[Section]:
        """The sections of the page, made once for all files and only if one of them is out of date."""
        return make_sections(self.report)

    def write_page(self) -> bool:
        """Writes `work/report.html`; False if it is up to date."""
        path = self.report.work.report
        if page.read_meta(path, "ichkit-inputs") == self.inputs:
            logger.info("report: %s is up to date", path)
            return False
        if path.exists():
            logger.info("report: the inputs changed; writing the page again")
        text = render(self.report, self.sections, self.inputs, self.tables)
        write_bytes_atomically(path, text.encode())
        logger.info("report: %s, %.1f MB", path, len(text) / 1e6)
        return True

    def write_card(self) -> None:
        """Writes the model card of the best source; without a source there is none."""
        report = self.report
        if report.sources:
            card = collect_card(report.work, model_of(report.work, report.best), report.task, report.scores)
            for name, data in encode_card(card).items():
                write_bytes_atomically(report.work.root / name, data)

    def write_checklist(self, checklist: Checklist) -> None:
        """Writes the page and the table of a guideline."""
        path = self.report.work.checklist(checklist.name)
        template = page.read_template(_ROOM, CHECKLIST_TEMPLATE)
        inputs = digest_of([self.inputs, vars(checklist), read_source(checklist), template])
        if page.read_meta(path, "ichkit-inputs") == inputs and path.with_suffix(".csv").is_file():
            logger.info("report: %s is up to date", path)
            return
        write_checklist(self.report, checklist, self.sections, path, inputs)

    def write_tables(self, *, has_word: bool) -> None:
        """Writes `work/tables`."""
        folder = self.report.work.tables
        if table_files.is_current(folder, self.inputs, has_word=has_word):
            logger.info("report: %s is up to date", folder)
            return
        table_files.write_tables(self.sections, folder, self.inputs, has_word=has_word)


def _read_seconds(work: WorkFolder) -> float | None:
    """The time that the last report took; None if it is not known."""
    try:
        return float(json.loads(work.report_time.read_bytes())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def collect(plan: ReportPlan) -> ReportData:
    """The input of the page, sources best first; missing scores are computed.

    Raises:
        ArtifactError: an artifact is damaged.
    """
    config, work, prepared, scoring = plan.config, plan.work, plan.prepared, plan.scoring
    data = str(prepared.manifest.facts["data"])
    if scoring is None:
        return ReportData(config, work, prepared, data, None, {})
    evaluate.make_current(scoring)
    book = open_book(work, prepared.task)
    sites = leaderboard.read_sites(leaderboard.build(work, plan.options.submissions, prepared.task))
    return ReportData(config, work, prepared, "+".join(sorted({data, *book.data.split("+")})), book, sites)


def render(report: ReportData, sections: Sequence[Section], inputs: str = "", tables: str = "") -> str:
    """The page as HTML.

    Args:
        sections: from `make_sections`.
        inputs: digest of the inputs, stored in the head of the page.
        tables: `Inventory.digest`, stored there too.
    """
    made = "Nothing is trained yet."
    if report.sources:
        made = f"Newest source created {max(source.created_utc for source in report.sources)}."
    notice = data_note(report.data)
    return page.render(
        _ROOM,
        _TEMPLATE,
        task=report.task,
        sections=sections,
        data=report.data,
        notice=notice,
        made=made,
        inputs=inputs,
        tables=tables,
    )


def make_sections(report: ReportData) -> list[Section]:
    """The sections of the page, in order."""
    scored = [section for make in _SCORED if (section := make(report))] if report.sources else []
    study = [make(report) for make in _STUDY]
    return [make_first(report), make_overview(report), *scored, *study, make_data(report), make_repeat(report)]


def _digest(report: ReportData, tables: str) -> str:
    """First 16 hex digits of the SHA-256 of everything that the page depends on."""
    manifests = [read_manifest(report.work.prepared)]
    for source in report.sources:
        folders = {path.parent for path in source.paths(OUT_OF_FOLD)}
        manifests += [read_manifest(folder) for folder in sorted(folders)]
    further = (report.work.proof, report.work.protocols, report.work.robustness, report.work.adversarial)
    manifests += [read_manifest(folder) for folder in further if has_artifact(folder)]
    manifests += report.searches.values()
    read = [
        {**manifest.inputs, **{name: file.sha256 for name, file in manifest.files.items()}} for manifest in manifests
    ]
    made = [tables, *(manifest.created_utc for manifest in manifests)]
    looks = read_looks(report.work).to_dict("records")
    sites = {name: list(map(str, scores)) for name, scores in report.sites.items()}
    templates = [page.read_template(_ROOM, name) for name in (*page.SHARED, _TEMPLATE)]
    return digest_of([read, made, looks, sites, templates, package_versions(), git_commit(), repeatable(report.config)])
