"""The tables of scores as data; the terminal and the report each print a selection."""

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import PurePosixPath

import pandas as pd

from ichkit.core.roles import is_transductive, title_of
from ichkit.core.tasks import Task
from ichkit.imaging.perturbations import PERTURBATIONS
from ichkit.show.table import NOTHING, Cell, Table, format_interval, format_number
from ichkit.stages.scores.book import (
    SLICES,
    STUDIES,
    Difference,
    Group,
    Score,
    ScoreBook,
    external_slices,
    external_studies,
)
from ichkit.stages.scores.costs import Cost
from ichkit.validation.catalog import Source
from ichkit.validation.comparisons import holm
from ichkit.validation.published import find_published
from ichkit.validation.scope import Scope
from ichkit.validation.scores import (
    ACCURACY_HALF,
    ALL_CLASSES,
    AVERAGE_PRECISION,
    CALIBRATION_ERROR,
    DELONG_AUC,
    F1_BEST,
    F1_HALF,
    LOG_LOSS,
    MEAN_CLASS,
    MICRO_CLASS,
    PRECISION_HALF,
    RECALL_HALF,
    ROC_AUC,
    SENSITIVITY,
    SPECIFICITY,
    THRESHOLD_OF,
    WEIGHTED_LOG_LOSS,
)
from ichkit.validation.studies import MAXIMUM
from ichkit.validation.subgroups import FEW, SLICE_PARTITIONS, STUDY_PARTITIONS

NOT_A_DEVICE = "Research use only, not a medical device."
_PHANTOMS = "Made from phantoms: the scores show that the pipeline works, not how it performs on patients."
_NOT_COMPARABLE = "These scores are of phantoms, the published ones of patients: they are not comparable."
_BOARD = (
    "Out-of-fold weighted log loss with bootstrap intervals over patients. As in ordinary stacking, the second stage "
    "is trained on predictions of networks that were trained with the fold it is scored on, but never on that fold's "
    "labels. Difference to the best: paired, to the best source on the same folds, on the same bootstrap samples; * "
    "if the interval excludes 0, not corrected for multiple comparisons. The loss of the best of many sources is "
    "slightly optimistic, because it was chosen by that loss."
)
_CHOSEN = (
    "F1 at the best F1 threshold of the other folds; sensitivity and specificity at their best Youden's J threshold."
)
_RAISED = "ECE: expected calibration error; small samples bias it upwards, and its interval corrects for that."
_MARKS_SOURCE = (
    "LightGBM's position features (padding, number of slices, gap, share of brain) identify the data source, and this "
    "one was not in its training data: compare fusion with the paper, not a model that uses them."
)
_STUDY_MAXIMUM = "Score of a study: the maximum over its slices."
_KEPT = "gain\nkept"
_KEPT_NOTE = (
    "Gain kept: the gain over the base on locked patients as a share of the gain out of fold; uncertain if "
    "the gain is small."
)
_COSTS = ("level", "train\nhours", "ms per\nstudy", "MB")
_COSTS_NOTE = (
    "Level: 1 is a network, 2 a second stage, 3 a blend. Train hours: all folds one after another. ms per study: "
    "prediction by all networks, where the tables were made. MB: the files that prediction needs."
)
_PARETO = "those that no other of the same folds beats in both log loss and prediction time."
_SURE = 0.05
_ROBUSTNESS_KEYS = ["perturbation", "metric", "class"]
_ROBUSTNESS_KEYS += ["before", "after", "difference", "low", "high", "p_value", "n", "n_positive"]
_ROBUSTNESS = (
    "A sample of the held-out patients of each fold, by the network of that fold, before the second stage. Difference "
    "to the scans as they are: the same slices, paired bootstrap over patients; * if the interval excludes 0, not "
    "corrected for the number of perturbations. Slices that a perturbation drops are left out of its difference."
)
_DIGITS = {LOG_LOSS: 4, CALIBRATION_ERROR: 4}
# Column to metric; four fit a terminal of 80 columns with their intervals.
BY_SLICE = {"log loss": LOG_LOSS, "AUC": ROC_AUC, "AP": AVERAGE_PRECISION, "ECE": CALIBRATION_ERROR}
BY_STUDY = {"AUC": ROC_AUC, "AP": AVERAGE_PRECISION, "ECE": CALIBRATION_ERROR}
DECISIONS = {"F1 at 0.5": F1_HALF, "F1": F1_BEST, "sensitivity": SENSITIVITY, "specificity": SPECIFICITY}


_NO_INTERVAL = "No interval: the AUC is undefined (one label alone) in over 5 % of the samples."
SMALL_GROUP = f"Small group: fewer than {FEW} positive or {FEW} negative rows; its values say little."
AT_HALF = {"F1": F1_HALF, "precision": PRECISION_HALF, "recall": RECALL_HALF, "accuracy": ACCURACY_HALF}
_AT_HALF = "Macro: the mean over the classes. Micro: the decisions of all classes counted together."
_TRANSDUCTIVE = (
    "Transductive: networks were trained on predictions (pseudo-labels) of scans that they predict; scores on these "
    "scans do not hold for new ones."
)


def data_note(data: str) -> str:
    """The note that is shown with every table of scores of these data."""
    notes = [_PHANTOMS] if "phantom" in data else []
    notes += [_TRANSDUCTIVE] if is_transductive(data) else []
    return " ".join([*notes, NOT_A_DEVICE])


def why_no_interval(scores: Iterable[tuple[float, float]]) -> list[str]:
    """The note of a table of AUCs, each with the low end of its interval, if one of them has no interval."""
    is_missing = any(value == value and low != low for value, low in scores)
    return [_NO_INTERVAL] if is_missing else []


def describe_scope(scope: Scope) -> str:
    """What a source predicts, e.g. "subdural, given any"."""
    asked = "" if scope.given is None else f", given {scope.given}"
    return f"{', '.join(scope.classes)}{asked}"


def scored_classes_note(book: ScoreBook, source: Source) -> str:
    """The classes missing from the headline loss, e.g. "4 of 6 classes scored: ..."; empty if none is."""
    without, classes = book.unscored_classes(source), book.task.classes
    if not without or not source.scope.is_whole:
        return ""
    scored = f"{len(classes) - len(without)} of {len(classes)} classes scored"
    return f"{scored}: {', '.join(without)} without both positives and negatives"


def say_choice(book: ScoreBook, source: Source) -> str:
    """How optimistic the loss of a source is for having been chosen as the best; empty for another, or a single one."""
    choice = book.choice(source)
    if choice is None or choice.num_sources < 2:
        return ""
    return (
        f"{source.name}, the best of {choice.num_sources} on its folds: optimism of the choice "
        f"{choice.optimism:+z.5f}, corrected loss {choice.corrected:.5f} (nested resampling of patients; chosen in "
        f"{choice.share:.0%} of the samples)."
    )


def board(
    book: ScoreBook,
    sites: Mapping[str, tuple[float | None, float | None]] | None = None,
    costs: Mapping[str, Cost] | None = None,
    chosen: Container[str] | None = None,
    why: str = _PARETO,
) -> Table:
    """The leaderboard: every source, best first, with its loss, the paired difference to the best, and external AUCs.

    Args:
        sites: source to its public and private Kaggle score; they do not affect the rank.
        costs: source to its cost; None leaves these columns out.
        chosen: the sources to show, with their ranks among all; None for all.
        why: what those are, for the note.
    """
    main, sites = book.task.headline_class, sites or {}
    has_groups = len({source.folds for source in book.sources}) > 1
    has_sites = any(score is not None for scores in sites.values() for score in scores)
    columns = ["#", "source", "log loss", "difference\nto the best", f"AUC {main}"]
    columns += [heading for name in book.external_sets for heading in _external_headings(name, main)]
    columns += [*([_KEPT] if book.kept else []), "positive", *(["public\nprivate"] if has_sites else [])]
    columns += _COSTS if costs else ()
    rows: list[list[Cell | str]] = []
    ranks: dict[tuple[int, ...], int] = {}
    outside: list[Score] = []
    for source in book.sources:
        is_ranked = source.scope.is_whole
        ranks[source.folds] = ranks.get(source.folds, 0) + is_ranked
        if chosen is not None and source.name not in chosen:
            continue
        loss, best = book.loss(source), book.best_of_folds(source)
        row: list[Cell | str] = [
            str(ranks[source.folds]) if is_ranked else "",
            Cell(source.name, f"folds {source.folds_label}" if has_groups else ""),
            loss.cell(5, 4),
            book.difference(source, best, WEIGHTED_LOG_LOSS, ALL_CLASSES).cell(5, 4),
            book.find(source, ROC_AUC, main).cell(4, 3),
        ]
        for name in book.external_sets:
            group = external_studies(name)
            found = [book.find(source, ROC_AUC, label, group) for label in (main, MEAN_CLASS)]
            row += [score.cell(3, 2) for score in found]
            outside += found
        row += [format_number(book.kept.get(source.name), 2)] if book.kept else []
        row += [loss.counts, *([_site(*sites.get(source.name, (None, None)))] if has_sites else [])]
        row += _cost_cells(costs[source.name]) if costs else []
        rows.append(row)
    notes = [_BOARD, *([said] if (said := say_choice(book, book.sources[0])) else [])]
    if book.external_sets:
        shown = " and ".join(map(title_of, book.external_sets))
        notes.append(f"{shown}: AUC by study (maximum over its slices) of {main}, and the mean over all classes.")
    notes += why_no_interval((score.value, score.low) for score in outside)
    notes += [_KEPT_NOTE] if book.kept else []
    notes += [_COSTS_NOTE] if costs else []
    if chosen is not None:
        notes.append(f"{len(rows)} of {len(book.sources)} sources, {why}")
    partial = [f"{one.name}: {describe_scope(one.scope)}." for one in book.sources if not one.scope.is_whole]
    notes += ["Not ranked: sources that predict only some of the classes. " + " ".join(partial)] if partial else []
    notes += [f"{note}." for note in dict.fromkeys(scored_classes_note(book, one) for one in book.sources) if note]
    return Table(
        f"Leaderboard (data: {book.data})",
        tuple(columns),
        rows,
        note=" ".join(notes),
        best=frozenset(number for number, row in enumerate(rows) if row[0] == "1"),
        num_text=2,
        optional=(
            *(_external_headings(name, main)[1] for name in book.external_sets),
            "positive",
            *([_COSTS] if costs else []),
        ),
    )


def _cost_cells(cost: Cost) -> list[Cell | str]:
    milliseconds = None if cost.seconds_per_study is None else 1000 * cost.seconds_per_study
    hours = NOTHING if cost.hours is None else f"{cost.hours:.2g}" if cost.hours < 1 else f"{cost.hours:.1f}"
    return [str(cost.level), hours, format_number(milliseconds, 0), format_number(cost.num_bytes / 1e6, 1)]


def by_class(book: ScoreBook, source: Source, group: Group, metrics: Mapping[str, str]) -> Table:
    """Metrics of every class, values above intervals.

    Args:
        group: SLICES or STUDIES out of fold, or the slices of an external set.
        metrics: column to metric.
    """
    rows: list[list[Cell | str]] = []
    for name in source.scope.classes:
        cells = [book.find(source, metric, name, group).cell(_DIGITS.get(metric, 3)) for metric in metrics.values()]
        rows.append([name, *cells, book.find(source, ROC_AUC, name, group).counts])
    notes = [_CHOSEN] if F1_BEST in metrics.values() else []
    notes += [_RAISED] if CALIBRATION_ERROR in metrics.values() else []
    notes += [_STUDY_MAXIMUM] if group == STUDIES else []
    where = f" on {title_of(group.dataset)}" if group.dataset else ", out of fold"
    title = f"{source.name}{where}, by {group.level}"
    return Table(title, ("class", *metrics, "positive"), rows, note=" ".join(notes))


def at_half(book: ScoreBook, source: Source, group: Group) -> Table:
    """Decisions at a probability of 0.5: of every class, their mean (macro) and of all classes together (micro).

    Args:
        group: SLICES or STUDIES.
    """
    names = {name: name for name in source.scope.classes}
    if len(names) > 1:
        names |= {MEAN_CLASS: "macro", MICRO_CLASS: "micro"}
    rows: list[list[Cell | str]] = []
    for name, shown in names.items():
        found = [book.find(source, metric, name, group) for metric in AT_HALF.values()]
        rows.append([shown, *(score.cell(3) for score in found), found[0].counts])
    how = {SLICES: "by slice", STUDIES: "by study"}[group]
    notes = [_AT_HALF, *([_STUDY_MAXIMUM] if group == STUDIES else [])]
    title = f"{source.name}, out of fold, {how}: positive from 0.5"
    return Table(title, ("class", *AT_HALF, "positive"), rows, note=" ".join(notes))


def external(book: ScoreBook, source: Source, dataset: str) -> Table:
    """The AUC of every class on an external set, beside published AUCs and the baseline's own predictions."""
    group, shown = external_studies(dataset), title_of(dataset)
    published, baseline = find_published(dataset, book.task), book.baseline(source, dataset)
    columns = ["class", "AUC", "DeLong", *published, *(["baseline\nsame studies"] if len(baseline) else []), "positive"]
    rows: list[list[Cell | str]] = []
    shown_scores = []
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
        shown_scores.append(score)
    num_studies, num_missing = book.find(source, ROC_AUC, MEAN_CLASS, group).n, len(book.tables.missing[dataset])
    notes = [f"{num_studies} studies, {num_missing} missing. {_STUDY_MAXIMUM} Bootstrap intervals over patients."]
    notes += why_no_interval((score.value, score.low) for score in shown_scores)
    if published:
        notes.append("Published: " + "; ".join(f"{name}, {row.source}" for name, row in published.items()) + ".")
    if len(baseline):
        notes.append(
            f"Baseline, same studies: AUC of its own published probabilities of the same {baseline.n.max()} studies, "
            "with the p-value of DeLong's paired test."
        )
    notes += [_MARKS_SOURCE] if _has_position_features(book, source) else []
    notes += [_NOT_COMPARABLE] if published and "phantom" in source.data else []
    return Table(f"{source.name} on {shown}, by study", tuple(columns), rows, note=" ".join(notes))


def aggregations(book: ScoreBook, source: Source, dataset: str) -> Table:
    """The AUC of every class on an external set by slice-to-study aggregation."""
    names = book.aggregations(source, dataset)
    rows: list[list[Cell | str]] = []
    every: list[Score] = []
    for label in (*book.task.classes, MEAN_CLASS):
        scores = [book.find(source, ROC_AUC, label, external_studies(dataset, name)) for name in names]
        counts = book.find(source, ROC_AUC, label, external_studies(dataset, MAXIMUM)).counts
        rows.append([label, *(score.cell(3) for score in scores), counts])
        every += scores
    columns = ("class", *(name.replace("_", " ") for name in names), "positive")
    note = " ".join(why_no_interval((score.value, score.low) for score in every))
    return Table(f"{source.name} on {title_of(dataset)}: AUC by slice-to-study aggregation", columns, rows, note=note)


def subgroups(book: ScoreBook, source: Source) -> Table:
    """The loss and the AUC of the headline class in every subgroup, out of fold and on the external sets."""
    main = book.task.headline_class
    rows: list[list[Cell | str]] = []
    groups = {SLICES: "out of fold", **{external_studies(name): title_of(name) for name in book.external_sets}}
    groups |= {external_slices(name): f"{title_of(name)}, slices" for name in book.external_sets}
    for group, of in groups.items():
        for name in book.subgroups(source, group):
            loss = book.find(source, WEIGHTED_LOG_LOSS, ALL_CLASSES, group, name)
            auc = book.find(source, ROC_AUC, main, group, name)
            rows.append([subgroup_cell(name, auc.n, auc.n_positive), of, loss.cell(4), auc.cell(3), auc.counts])
    partitions = {**SLICE_PARTITIONS, **STUDY_PARTITIONS}.values()
    note = " ".join([*(f"{one.name.replace('_', ' ')}: {one.description}" for one in partitions), SMALL_GROUP])
    columns = ("subgroup", "data", "log loss", f"AUC {main}", "positive")
    return Table(f"{source.name}: performance by subgroup", columns, rows, note=note, num_text=2)


def thresholds(book: ScoreBook, source: Source) -> Table:
    """The thresholds of every class chosen on all folds, above the range of those used to score each fold."""
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
    note = "Chosen on all rows, for new scans; below, the range used to score the folds, each chosen on the others."
    return Table(f"{source.name}, thresholds", ("class", *chosen), rows, note=note)


def robustness(table: pd.DataFrame, task: Task, name: str | None = None) -> Table:
    """A run's scores on perturbed scans of held-out patients, with the paired difference to the scans as they are.

    Args:
        table: `robustness.parquet`.
        name: the class whose scores are shown; None for the weighted log loss and the AUC of the headline class.
    """
    label = name or task.headline_class
    losses = (WEIGHTED_LOG_LOSS, ALL_CLASSES) if name is None else (LOG_LOSS, name)
    if not (table.metric == losses[0]).any():  # a run of some classes
        losses = (LOG_LOSS, label)
    asked = ((losses, True), ((ROC_AUC, label), False))
    columns = ["scans", f"{losses[0].replace('_', ' ')}", "difference", f"AUC {label}", "difference", "positive"]
    scores = {row[:3]: row[3:] for row in table[_ROBUSTNESS_KEYS].itertuples(index=False, name=None)}
    names = list(dict.fromkeys(table.perturbation))
    widest = max(names, key=lambda name: scores[name, ROC_AUC, label][-2])  # some perturbations drop slices
    first = [scores[widest, *key] for key, _ in asked]
    unchanged: list[Cell | str] = ["as they are"]
    for before, *_ in first:
        unchanged += [format_number(before, 4), ""]
    rows: list[list[Cell | str]] = [[*unchanged, _counts_of(first[1])]]
    for perturbation in names:
        cells: list[Cell | str] = [PERTURBATIONS[perturbation].title if perturbation in PERTURBATIONS else perturbation]
        for key, is_lower_better in asked:
            found = scores[perturbation, *key]
            _, after, value, low, high, p_value = found[:6]
            cells += [format_number(after, 4), Difference(value, low, high, p_value, is_lower_better).cell(4)]
        rows.append([*cells, _counts_of(found)])
    title = f"{table.run.iloc[0]} on perturbed scans, out of fold" + (f": {name}" if name else "")
    return Table(title, tuple(columns), rows, note=f"{table.num_patients.max()} patients. {_ROBUSTNESS}")


def _counts_of(found: tuple[float, ...]) -> Cell:
    n, n_positive = found[-2:]
    return Cell(f"{n_positive:,.0f}", f"/ {n:,.0f}")


def pairs(book: ScoreBook, sources: Sequence[Source]) -> Table:
    """The paired difference of every two of these sources, which were scored on the same folds; p-values by Holm."""
    main = book.task.headline_class
    groups = {SLICES: "", **{external_studies(name): f"{title_of(name)} " for name in book.external_sets}}
    columns = ["pair", "log loss", "p"]
    for of in groups.values():
        columns += [f"{of}AUC {main}", "p"]
    shown = list(combinations(sources, 2))
    asked = [[book.difference(*pair, WEIGHTED_LOG_LOSS, ALL_CLASSES) for pair in shown]]
    asked += [[book.difference(*pair, ROC_AUC, main, group) for pair in shown] for group in groups]
    corrected = [holm([found.p_value for found in column]) for column in asked]
    rows: list[list[Cell | str]] = []
    for number, (one, other) in enumerate(shown):
        row: list[Cell | str] = [Cell(one.name, f"minus {other.name}")]
        for digits, column, p_values in zip((5, 4, *(3 for _ in book.external_sets)), asked, corrected, strict=True):
            p_value = float(p_values[number])
            row += [column[number].cell(digits, is_sure=p_value < _SURE), format_number(p_value, 3)]
        rows.append(row)
    note = (
        "First source minus second. Slices: paired bootstrap over patients; external studies: DeLong's paired test. "
        f"p: corrected by Holm's method for the {len(shown)} {'pair' if len(shown) == 1 else 'pairs'} of its column; "
        f"* if it is below {_SURE}: green if the first source is better, red if it is worse. Intervals are of each "
        "pair alone, not corrected."
    )
    return Table("Differences between sources", tuple(columns), rows, note=note)


def subgroup_cell(subgroup: str, n: int, n_positive: int) -> Cell:
    """The name of a subgroup, marked if it is small; see `SMALL_GROUP`."""
    is_small = min(n_positive, n - n_positive) < FEW
    return Cell(subgroup_name(subgroup), "small group" if is_small else "", "warn" if is_small else "")


def subgroup_name(subgroup: str) -> str:
    """E.g. "padded=yes" to "padded: yes"."""
    name, _, value = subgroup.partition("=")
    return f"{name.replace('_', ' ')}: {value}"


def _external_headings(dataset: str, main: str) -> tuple[str, str]:
    return f"{title_of(dataset)}\n{main}", f"{title_of(dataset)}\nmean"


def _site(public: float | None, private: float | None) -> Cell:
    """The Kaggle scores, public above private."""
    return Cell(format_number(public, 5), format_number(private, 5))


def _has_position_features(book: ScoreBook, source: Source) -> bool:
    """True for LightGBM and for a blend that may contain it."""
    stack = PurePosixPath(source.path).parent
    kinds = {one.kind for one in book.sources if PurePosixPath(one.path).parent == stack}
    return source.kind == "lightgbm" or (source.kind == "blend" and "lightgbm" in kinds)
