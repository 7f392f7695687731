"""Report section: a proposed title, kind of study, data sources, objective, and what only the authors can say."""

from ichkit.core.errors import ConfigError
from ichkit.core.roles import LOCKED, title_of
from ichkit.show.blocks import Section
from ichkit.show.table import BLANK, NOTHING, Cell, Table
from ichkit.show.words import start_sentence
from ichkit.sources.external import find_external_source
from ichkit.sources.table import SOURCES, DataSource
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.report.sentences.counts import join_words, say_count

AUTHOR_FIELDS = {
    "abstract": "structured summary of design, methods, results and conclusions",
    "background": "scientific and clinical background; intended role of the model",
    "hypotheses": "study hypotheses",
    "setting": "centres and dates of the scans; how patients were chosen (consecutive, random, convenience)",
    "ethics": "approval by a review board, or why none was needed; consent",
    "registration": "number and name of the registry",
    "protocol": "where the study protocol can be read",
    "funding": "sources of funding, role of the funders, interests of the authors",
    "data and code": "where data, code and weights of this study are available, and under which terms",
}
"""What this page cannot know, to its description."""
_PHANTOM = "synthetic scans of `ichkit phantom` in this layout; labels are known by construction"


def make_design(report: ReportData) -> Section:
    """Tables of the design, of the data sources, and of the fields that authors fill in."""
    rows: list[list[Cell | str]] = [
        ["proposed title", propose_title(report)],
        ["kind of study", say_kind(report)],
        ["aim", say_aim(report)],
        ["evaluation", say_evaluation(report)],
        ["updating", "A changed model is a new run with scores of its own: no model was updated after it was scored."],
    ]
    design = Table("Study design", ("", ""), rows, num_text=2, is_wrapped=True)
    fields: list[list[Cell | str]] = [[name, what, Cell(BLANK, tone="warn")] for name, what in AUTHOR_FIELDS.items()]
    note = "No section of this page answers these."
    authors = Table("For the authors", ("field", "content", "state"), fields, note=note, num_text=3, is_wrapped=True)
    return Section("design", "Design and data sources", [design, _sources(report), authors])


def propose_title(report: ReportData) -> str:
    """A title that names the technology, the task in its own words, and the kind of validation."""
    outside = _tested_sets(report)
    external = f", external test on {join_words(outside)}" if outside else ""
    return f"{report.task.title} by deep learning: development and cross-validation{external}"


def say_kind(report: ReportData) -> str:
    """Retrospective, and what was done with the data."""
    done = ["development of a prediction model with cross-validation by patient"]
    done += [f"external test on {join_words(outside)}"] if (outside := _tested_sets(report)) else []
    done += ["patients locked away from development"] if LOCKED in report.prepared.external_sets() else []
    return f"Retrospective: existing scans with their labels. {start_sentence(join_words(done))}."


def say_aim(report: ReportData) -> str:
    """The aim: input, predicted classes, and level."""
    task = report.task
    levels = f"each slice and each study: {', '.join(task.classes)}"
    return f"To estimate from axial slices the probability of {say_count(task.num_classes, 'classes')} for {levels}."


def say_evaluation(report: ReportData) -> str:
    """Folds, the score that ranks, and the intervals."""
    config, folds = report.config.evaluate, report.prepared.num_folds
    ranked = "Models are ranked by the weighted log loss, out of fold"
    intervals = f"{config.level:.0%} intervals resample patients ({config.num_draws:,} samples)"
    return f"{say_count(folds, 'folds')}, split by patient and balanced by class. {ranked}; {intervals}."


def find_source(name: str) -> DataSource | None:
    """The row of a data source or of an external set of the user; None for the locked patients."""
    if name in SOURCES:
        return SOURCES[name]
    try:
        return find_external_source(name)
    except ConfigError:
        return None


def say_use(report: ReportData, name: str) -> str:
    """What a data set is used for."""
    own = report.prepared.studies[report.prepared.studies.dataset == name]
    uses = {"train": "training and cross-validation", "test": "predicted, labels unknown", "external": "external test"}
    found = [f"{uses[str(split)]} ({say_count(int(n), 'studies')})" for split, n in own.split.value_counts().items()]
    return "; ".join(sorted(found)) or NOTHING


def _sources(report: ReportData) -> Table:
    """Every data set with its terms and address."""
    rows: list[list[Cell | str]] = []
    for name in report.prepared.studies.dataset.drop_duplicates():
        source = find_source(str(name))
        if source is None:
            continue
        is_phantom, own = report.is_phantom(str(name)), not source.licence
        described = _PHANTOM.replace("`", "") if is_phantom else source.description
        blank = Cell(BLANK, tone="warn")
        terms = NOTHING if is_phantom else blank if own else source.licence
        where = NOTHING if is_phantom else blank if own else _without_scheme(source.source)
        rows.append([title_of(str(name)), described, say_use(report, str(name)), terms, where])
    columns = ("data set", "description", "use", "licence", "published at")
    return Table("Data sources", columns, rows, num_text=5, is_wrapped=True)


def _tested_sets(report: ReportData) -> list[str]:
    """External sets with studies, as text shows them."""
    studies = report.prepared.studies
    with_slices = set(studies[studies.num_slices > 0].dataset)
    return [title_of(name) for name in report.prepared.external_sets() if name in with_slices and name != LOCKED]


def _without_scheme(text: str) -> str:
    """An address as text: a page holds no link to elsewhere."""
    return text.replace("https://", "").replace("http://", "")
