"""Report section: what limits the conclusions, found in the data and scores, and what the models are for."""

from collections.abc import Iterator

from ichkit.core.roles import LOCKED, is_transductive, title_of
from ichkit.show.blocks import Prose, Section
from ichkit.show.table import BLANK, Cell, Table
from ichkit.stages.report.flow import find_missing_studies
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.report.sample_size import count_studies
from ichkit.stages.report.sentences.counts import join_words, say_count
from ichkit.stages.scores.book import STUDIES, external_studies
from ichkit.work.artifacts import has_artifact
from ichkit.work.looks import read_looks

FEW_POSITIVES = 30
"""With fewer, the 95 % interval of an AUC of .9 is wider than about +-.08 (Hanley & McNeil 1982)."""
FEW_PATIENTS = 100
_UNLIKE = 1.5
"""Ratio of the shares of positives with and without padding from which padding is a shortcut worth a warning."""
Limitation = tuple[str, str]


def make_limitations(report: ReportData) -> Section:
    """The limitations found, each with its figures, and the intended use."""
    rows: list[list[Cell | str]] = [list(one) for one in find_limitations(report)]
    rows.append(["further limitations", Cell(BLANK, tone="warn")])
    table = Table("Limitations found", ("limitation", "here"), rows, num_text=2, is_wrapped=True)
    return Section("limitations", "Limitations and intended use", [table, *(Prose(text) for text in say_use(report))])


def say_use(report: ReportData) -> list[str]:
    """The intended use, in the words of the task."""
    return [
        f"Intended use: research on methods that detect {report.task.finding} on data such as these, by researchers "
        "who know how the data were made and labelled. Predictions are to be read with the intervals of this page.",
        "Not a medical device. Not for diagnosis, triage or any decision about a patient: no regulator has reviewed "
        "it, and its effect on readers and patients is unknown. Its role in clinical practice, if any, is for a "
        "further study to define.",
    ]


def find_limitations(report: ReportData) -> list[Limitation]:
    """Every limitation that the artifacts show, with its figures."""
    return [
        *_of_data(report),
        *_of_labels(report),
        *(_of_training(report) if report.sources else ()),
        *_of_tests(report),
    ]


def _of_data(report: ReportData) -> Iterator[Limitation]:
    train = report.prepared.split("train")
    patients = train.patient_id.nunique()
    if "phantom" in report.data:
        yield "synthetic scans", "the scores show that the pipeline works, not how it performs on patients"
    if patients < FEW_PATIENTS:
        yield "few patients", f"{say_count(patients, 'patients')} in the training data"
    sources = train.dataset.drop_duplicates().tolist()
    if len(sources) == 1:
        yield "training data of one source", f"{sources[0]}: scanners and patients of other institutions may differ"
    main = report.task.headline_class
    positive, known = count_studies(report, STUDIES, main)
    if known:
        share = f"{positive / known:.0%} of the studies are positive ({main})"
        yield (
            "prevalence of the data set",
            f"{share}; at a lower prevalence probabilities are too high and PPV is lower",
        )
    rates = {bool(is_padded): own[main].dropna().astype(float) for is_padded, own in train.groupby("padded")}
    if len(rates) == 2 and all(len(rate) for rate in rates.values()):
        with_padding, without = rates[True].mean(), rates[False].mean()
        low, high = sorted((with_padding, without))
        if high > _UNLIKE * low:
            what = f"{with_padding:.1%} of the slices are positive with padding, {without:.1%} without"
            yield "padding marks a group of scanners", f"{what}: a network may use it as a shortcut"
    unknown = [name for name in ("age", "sex") if name not in report.prepared.header_facts()]
    yield "unknown subgroups", f"performance by {join_words([*unknown, 'ethnicity'])} is unknown"


def _of_labels(report: ReportData) -> Iterator[Limitation]:
    facts = report.prepared.manifest.facts
    for name in report.prepared.studies.dataset.drop_duplicates():
        if facts.get(str(name), {}).get("labels") == "study" and name in set(report.prepared.split("train").dataset):
            yield "weak labels", f"{title_of(str(name))}: labels of studies are copied to all their slices"
    yield (
        "one labelling process",
        "each data set was labelled once; label errors count as errors of the model",
    )
    one_sided, few = [], []
    for name in report.task.classes:
        positive, known = count_studies(report, STUDIES, name)
        if not 0 < positive < known:
            one_sided.append(name)
        elif positive < FEW_POSITIVES:
            few.append(f"{name} ({positive})")
    if one_sided:
        yield "classes without positives and negatives", f"{join_words(one_sided)}: not scored"
    if few:
        yield "few positive studies", f"{', '.join(few)}: intervals are wide"


def _of_training(report: ReportData) -> Iterator[Limitation]:
    left = sorted(set(report.prepared.fold_numbers) - set(report.best.folds))
    if left:
        numbers = ", ".join(map(str, left))
        yield (
            "folds not trained",
            f"{numbers}: scores cover {len(report.best.folds)} of {report.prepared.num_folds} folds",
        )
    if len(report.sources) > 1:
        yield (
            "choice among models",
            f"the best of {len(report.sources)} was chosen by the score shown, which is slightly optimistic",
        )
    outdated = sorted({source.name for source in report.sources if source.is_outdated})
    if outdated:
        yield "outdated stacks", f"{join_words(outdated)}: their runs have changed since"
    if is_transductive(report.data):
        yield "pseudo-labels", "networks were trained on predictions of scans that they are scored on (transductive)"
    if not has_artifact(report.work.proof):
        what = (
            "no patients are locked"
            if LOCKED not in report.prepared.external_sets()
            else "locked patients are not scored"
        )
        yield "gains not confirmed on locked patients", what


def _of_tests(report: ReportData) -> Iterator[Limitation]:
    studies = report.prepared.studies
    sets = [name for name in report.prepared.external_sets() if name != LOCKED]
    tested = [name for name in sets if (studies[studies.dataset == name].num_slices > 0).any()]
    if not tested:
        yield "no external test", "no scans of another source were scored"
    for name in tested:
        few = []
        for label in report.task.classes:
            positive, known = count_studies(report, external_studies(name), label)
            few += [f"{label} ({positive})"] if known > 0 and positive < FEW_POSITIVES else []
        if few:
            yield f"few positive studies in {title_of(name)}", f"{', '.join(few)}: intervals are wide"
        if missing := find_missing_studies(report, name):
            yield (
                f"missing studies of {title_of(name)}",
                f"{say_count(len(missing), 'studies')} with labels have no usable images",
            )
    looks = read_looks(report.work)
    for looked_at, of_set in looks.groupby("set", sort=True):
        if len(of_set) > 1:
            what = f"{len(of_set)} sets of predictions were scored on it; each one makes the test less independent"
            yield f"repeated evaluation on {title_of(str(looked_at))}", what
    yield "no prospective study", "existing scans alone; no reader worked with the model"
