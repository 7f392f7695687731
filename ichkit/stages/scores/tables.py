"""The tables of scores, each once, as data; a terminal and the report print those they select."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from ichkit.core.roles import title_of
from ichkit.show.table import NOTHING, Cell, Table, format_interval, format_number
from ichkit.stages.scores.book import (
    SLICES,
    STUDIES,
    Group,
    ScoreBook,
    external_studies,
)
from ichkit.validation.catalog import Source
from ichkit.validation.published import find_published
from ichkit.validation.scores import (
    ALL_CLASSES,
    AVERAGE_PRECISION,
    CALIBRATION_ERROR,
    DELONG_AUC,
    F1_BEST,
    F1_HALF,
    LOG_LOSS,
    MEAN_CLASS,
    ROC_AUC,
    SENSITIVITY,
    SPECIFICITY,
    THRESHOLD_OF,
    WEIGHTED_LOG_LOSS,
)
from ichkit.validation.studies import MAXIMUM
from ichkit.validation.subgroups import SLICE_PARTITIONS, STUDY_PARTITIONS

NOT_A_DEVICE = "Research use only, not a medical device."
_PHANTOMS = "Made from phantoms: the numbers show that the pipeline works, not how well it would do on patients."
_FORM_ALONE = "Ours are phantoms, theirs patients: the published numbers stand here for the form alone."
_BOARD = (
    "Out-of-fold weighted log loss with its interval by resampling patients; as in ordinary stacking, a second stage "
    "learns from descriptors of networks that saw the fold it is scored on, though it never sees that fold's labels. "
    "To the best: the paired difference to the best of the same folds, on the same draws of patients; * where the "
    "interval excludes 0, not corrected for several comparisons. The loss of the best of many sources is a little "
    "optimistic, because it was chosen by that loss."
)
_CHOSEN = "F1, sensitivity and specificity at thresholds that were best on the other folds, for F1 and for Youden's J."
_RAISED = "ECE, the expected calibration error: chance alone raises it; its interval allows for that."
_MARKS_SOURCE = (
    "LightGBM's position features (padding, number of slices, gap, share of brain) tell data sources apart, and it "
    "never saw this one: where they are in use, fusion is what compares with the paper."
)
_DIGITS = {LOG_LOSS: 4, CALIBRATION_ERROR: 4}
# Column to metric; four fit a terminal of 80 columns with their intervals.
BY_SLICE = {"log loss": LOG_LOSS, "AUC": ROC_AUC, "AP": AVERAGE_PRECISION, "ECE": CALIBRATION_ERROR}
BY_STUDY = {"AUC": ROC_AUC, "AP": AVERAGE_PRECISION, "ECE": CALIBRATION_ERROR}
DECISIONS = {"F1 at 0.5": F1_HALF, "F1": F1_BEST, "sensitivity": SENSITIVITY, "specificity": SPECIFICITY}


def data_note(data: str) -> str:
    """What must stand below every table of numbers made from these data."""
    return f"{_PHANTOMS} {NOT_A_DEVICE}" if "phantom" in data else NOT_A_DEVICE


def scored_classes_note(book: ScoreBook, source: Source) -> str:
    """Which classes the headline loss says nothing of, e.g. "4 of 6 classes scored: ..."; empty where it has all."""
    without, classes = book.unscored_classes(source), book.task.classes
    if not without:
        return ""
    return f"{len(classes) - len(without)} of {len(classes)} classes scored: {', '.join(without)} without both labels"


def board(book: ScoreBook, sites: Mapping[str, tuple[float | None, float | None]] | None = None) -> Table:
    """Every source, best first, with its loss, the paired difference to the best, and the external sets.

    Args:
        sites: source to the public and the private score of the competition site; they never move a rank.
    """
    main, sites = book.task.headline_class, sites or {}
    has_groups = len({source.folds for source in book.sources}) > 1
    has_sites = any(score is not None for scores in sites.values() for score in scores)
    columns = ["#", "source", "log loss", "to the best", f"AUC {main}"]
    columns += [heading for name in book.external_sets for heading in _external_headings(name, main)]
    columns += ["positive", *(["public\nprivate"] if has_sites else [])]
    rows: list[list[Cell | str]] = []
    ranks: dict[tuple[int, ...], int] = {}
    for source in book.sources:
        ranks[source.folds] = ranks.get(source.folds, 0) + 1
        loss, best = book.loss(source), book.best_of_folds(source)
        row: list[Cell | str] = [
            str(ranks[source.folds]),
            Cell(source.name, f"folds {source.folds_label}" if has_groups else ""),
            loss.cell(5, 4),
            book.difference(source, best, WEIGHTED_LOG_LOSS, ALL_CLASSES).cell(5, 4),
            book.find(source, ROC_AUC, main).cell(4, 3),
        ]
        for name in book.external_sets:
            group = external_studies(name)
            row.append(book.find(source, ROC_AUC, main, group).cell(3, 2))
            row.append(format_number(book.find(source, ROC_AUC, MEAN_CLASS, group).value, 3))
        row += [loss.counts, *([_site(*sites.get(source.name, (None, None)))] if has_sites else [])]
        rows.append(row)
    notes = [_BOARD]
    if book.external_sets:
        shown = " and ".join(map(title_of, book.external_sets))
        notes.append(f"{shown}: AUC of the study maximum, and the mean over all classes.")
    notes += [f"{note}." for note in dict.fromkeys(scored_classes_note(book, one) for one in book.sources) if note]
    return Table(
        f"Leaderboard (data: {book.data})",
        tuple(columns),
        rows,
        note=" ".join(notes),
        best=frozenset(number for number, row in enumerate(rows) if row[0] == "1"),
        num_text=2,
        optional=(*(_external_headings(name, main)[1] for name in book.external_sets), "positive"),
    )


def by_class(book: ScoreBook, source: Source, group: Group, metrics: Mapping[str, str]) -> Table:
    """Some metrics of every class, values above intervals, out of fold.

    Args:
        group: SLICES or STUDIES.
        metrics: column to metric.
    """
    rows: list[list[Cell | str]] = []
    for name in book.task.classes:
        cells = [book.find(source, metric, name, group).cell(_DIGITS.get(metric, 3)) for metric in metrics.values()]
        rows.append([name, *cells, book.find(source, ROC_AUC, name, group).counts])
    notes = [_CHOSEN] if F1_BEST in metrics.values() else []
    notes += [_RAISED] if CALIBRATION_ERROR in metrics.values() else []
    how = {SLICES: "by slice", STUDIES: "highest slice of a study"}[group]
    return Table(f"{source.name}, out of fold, {how}", ("class", *metrics, "positive"), rows, note=" ".join(notes))


def external(book: ScoreBook, source: Source, dataset: str) -> Table:
    """The AUC of every class on an external set, beside what others published and the baseline's own scores of it."""
    group, shown = external_studies(dataset), title_of(dataset)
    published, baseline = find_published(dataset, book.task), book.baseline(source, dataset)
    columns = ["class", "AUC", "DeLong", *published, *(["baseline\nhere"] if len(baseline) else []), "positive"]
    rows: list[list[Cell | str]] = []
    for name in (*book.task.classes, MEAN_CLASS):
        score, delong = (book.find(source, metric, name, group) for metric in (ROC_AUC, DELONG_AUC))
        cells: list[Cell | str] = [score.cell(3), format_interval(delong.low, delong.high, 3) or NOTHING]
        cells += [format_number(row.roc_auc.get(name), 4) for row in published.values()]
        if len(baseline):
            own = baseline[baseline.index == name]
            tested = zip(own.other_value, own.p_value, strict=True)
            said = [Cell(format_number(value, 3), f"p {format_number(p_value, 3)}") for value, p_value in tested]
            cells += said or [NOTHING]
        rows.append([name, *cells, score.counts])
    num_studies, num_missing = book.find(source, ROC_AUC, MEAN_CLASS, group).n, len(book.tables.missing[dataset])
    notes = [f"{num_studies} studies, {num_missing} missing. AUC with the interval by resampling studies."]
    if published:
        notes.append("Published: " + "; ".join(f"{name}, {row.source}" for name, row in published.items()) + ".")
    if len(baseline):
        notes.append(
            f"Baseline here: the AUC of its own published probabilities of the same {baseline.n.max()} studies, and "
            "the p-value of DeLong's paired test."
        )
    notes += [_MARKS_SOURCE] if _has_position_features(book, source) else []
    notes += [_FORM_ALONE] if published and "phantom" in source.data else []
    return Table(f"{source.name} on {shown}, highest slice of a study", tuple(columns), rows, note=" ".join(notes))


def aggregations(book: ScoreBook, source: Source, dataset: str) -> Table:
    """The AUC of every class on an external set by each way to score a study."""
    names = book.aggregations(source, dataset)
    rows: list[list[Cell | str]] = []
    for label in (*book.task.classes, MEAN_CLASS):
        scores = [book.find(source, ROC_AUC, label, external_studies(dataset, name)) for name in names]
        counts = book.find(source, ROC_AUC, label, external_studies(dataset, MAXIMUM)).counts
        rows.append([label, *(score.cell(3) for score in scores), counts])
    columns = ("class", *(name.replace("_", " ") for name in names), "positive")
    return Table(f"{source.name} on {title_of(dataset)}: AUC by slice-to-study aggregation", columns, rows)


def subgroups(book: ScoreBook, source: Source) -> Table:
    """The loss and the AUC of the first class in every subgroup, out of fold and on the external sets."""
    main = book.task.headline_class
    rows: list[list[Cell | str]] = []
    groups = {SLICES: "out of fold", **{external_studies(name): title_of(name) for name in book.external_sets}}
    for group, of in groups.items():
        for name in book.subgroups(source, group):
            loss = book.find(source, WEIGHTED_LOG_LOSS, ALL_CLASSES, group, name)
            auc = book.find(source, ROC_AUC, main, group, name)
            rows.append([subgroup_name(name), of, loss.cell(4), auc.cell(3), auc.counts])
    partitions = {**SLICE_PARTITIONS, **STUDY_PARTITIONS}.values()
    note = " ".join(f"{one.name.replace('_', ' ')}: {one.description}" for one in partitions)
    columns = ("subgroup", "of", "log loss", f"AUC {main}", "positive")
    return Table(f"{source.name}: performance by subgroup", columns, rows, note=note, num_text=2)


def thresholds(book: ScoreBook, source: Source) -> Table:
    """The thresholds of every class chosen on all folds, above the range of those that each fold was scored at."""
    chosen = {
        f"{group.level}\n{aim.replace('_', ' ')}": (group, metric)
        for group in (SLICES, STUDIES)
        for aim, metric in THRESHOLD_OF.items()
    }
    rows: list[list[Cell | str]] = []
    for name in book.task.classes:
        cells = []
        for group, metric in chosen.values():
            for_new, of_folds = book.thresholds(source, group, metric, name)
            known = [value for value in of_folds if value == value]
            between = format_interval(min(known), max(known), 4) if known else ""
            cells.append(Cell(format_number(for_new, 4), between))
        rows.append([name, *cells])
    note = "Chosen on all rows, for new scans; below, what the folds were scored at, each chosen on the others."
    return Table(f"{source.name}, thresholds", ("class", *chosen), rows, note=note)


def pairs(book: ScoreBook, sources: Sequence[Source]) -> Table:
    """Every pair of sources that were scored on the same folds, in that order."""
    main = book.task.headline_class
    groups = {SLICES: "", **{external_studies(name): f"{title_of(name)} " for name in book.external_sets}}
    columns = ["pair", "log loss", "p"]
    for of in groups.values():
        columns += [f"{of}AUC {main}", "p"]
    rows: list[list[Cell | str]] = []
    for number, one in enumerate(sources):
        for other in sources[number + 1 :]:
            asked = [book.difference(one, other, WEIGHTED_LOG_LOSS, ALL_CLASSES)]
            asked += [book.difference(one, other, ROC_AUC, main, group) for group in groups]
            row: list[Cell | str] = [Cell(one.name, f"minus {other.name}")]
            for digits, found in zip((5, 4, *(3 for _ in book.external_sets)), asked, strict=True):
                row += [found.cell(digits), format_number(found.p_value, 3)]
            rows.append(row)
    note = (
        "The first source minus the second. By slice on the same draws of patients, on external studies by DeLong's "
        "paired test; * and green where the interval says that the first is better, * and red where it is worse. Not "
        "corrected for several comparisons."
    )
    return Table("Differences between sources", tuple(columns), rows, note=note)


def subgroup_name(subgroup: str) -> str:
    """E.g. "padded=yes" to "padded: yes"."""
    name, _, value = subgroup.partition("=")
    return f"{name.replace('_', ' ')}: {value}"


def _external_headings(dataset: str, main: str) -> tuple[str, str]:
    return f"{title_of(dataset)}\n{main}", f"{title_of(dataset)}\nmean"


def _site(public: float | None, private: float | None) -> Cell:
    """What the competition site said, the public score above the private one."""
    return Cell(format_number(public, 5), format_number(private, 5))


def _has_position_features(book: ScoreBook, source: Source) -> bool:
    """True for LightGBM and for the blends that may hold it."""
    stack = PurePosixPath(source.path).parent
    kinds = {one.kind for one in book.sources if PurePosixPath(one.path).parent == stack}
    return source.kind == "lightgbm" or (source.kind == "blend" and "lightgbm" in kinds)
