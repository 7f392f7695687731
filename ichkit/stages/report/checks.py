"""Report section: what was checked about data, folds, leaks, calibration and small classes, with the verdict."""

from collections.abc import Iterator

import numpy as np

from ichkit.core.roles import LOCKED, is_transductive
from ichkit.show.blocks import FAIL, PASS, WARN, Check, Checks, Section
from ichkit.show.table import format_interval, format_number
from ichkit.stages.report.limitations import FEW_POSITIVES
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.report.sample_size import count_studies
from ichkit.stages.report.sentences.counts import join_words, say_count
from ichkit.stages.scores.adversarial import is_told_apart, read_adversarial, say_features, say_pair
from ichkit.stages.scores.book import STUDIES, external_studies, read_proof
from ichkit.stages.scores.prove import MADE_BY
from ichkit.stages.scores.score_source import seed_of_rows
from ichkit.stages.scores.study_features import TRAIN
from ichkit.validation.recalibration import Estimate, measure_calibration
from ichkit.validation.scores import ROC_AUC

_MANY_REJECTED = 0.01


def make_first(report: ReportData) -> Section:
    """What to read first: every check with its verdict."""
    checks = [*_of_data(report), *_of_folds(report), *_of_leaks(report), *_of_shift(report)]
    if report.sources:
        checks += [*_of_second_stage(report), *_of_calibration(report), *_of_external(report)]
    return Section("first", "Read this first", [Checks([*checks, *_of_classes(report)])])


def _of_data(report: ReportData) -> Iterator[Check]:
    train = report.prepared.split("train")
    counts = f"{say_count(len(train), 'slices')} of {say_count(train.patient_id.nunique(), 'patients')}"
    if "phantom" in report.data:
        found = f"synthetic phantoms, {counts}: scores show that the pipeline works, not how it performs on patients"
        yield Check(WARN, "Data", found)
    elif is_transductive(report.data):
        yield Check(WARN, "Data", f"networks learnt from predictions of scans that they are scored on; {counts}")
    else:
        yield Check(PASS, "Data", f"{report.data}, {counts}")
    rejected, kept = len(report.prepared.rejected()), len(report.prepared.slices)
    share = rejected / max(rejected + kept, 1)
    found = f"{rejected:,} rejected, {kept:,} slices kept; reasons in section Data"
    yield Check(WARN if share > _MANY_REJECTED else PASS, "Files", found)


def _of_folds(report: ReportData) -> Iterator[Check]:
    prepared, train = report.prepared, report.prepared.split("train")
    num_split = int((train.groupby("patient_id").fold.nunique() > 1).sum())
    if num_split:
        yield Check(FAIL, "Folds", f"patients with slices in more than one fold: {num_split:,}")
        return
    without = [
        f"{name} (fold {fold})"
        for name in report.task.classes
        for fold, own in train.groupby("fold")
        if own[name].notna().any() and not (own[name] == 1).any()
    ]
    left = sorted(set(prepared.fold_numbers) - set(report.best.folds)) if report.sources else []
    found = f"{say_count(prepared.num_folds, 'folds')}, each patient in one of them"
    notes = [f"not trained: {', '.join(map(str, left))}"] if left else []
    notes += [f"no positive slices of {join_words(without)}"] if without else []
    yield Check(WARN if notes else PASS, "Folds", "; ".join([found, *notes]))


def _of_leaks(report: ReportData) -> Iterator[Check]:
    """Training scans that occur again in another fold, the test split or an external set, by digests of volumes."""
    digests = {name: file.sha256 for name, file in report.prepared.manifest.files.items()}
    scans = report.prepared.slices.drop_duplicates(["dataset", "split", "volume"])
    known = scans.assign(digest=scans.volume.map(digests)).dropna(subset="digest")
    train, others = known[known.split == "train"], known[known.split != "train"]
    num_folds = train.groupby("digest").fold.nunique()
    shared = set(num_folds.index[num_folds > 1]) | (set(train.digest) & set(others.digest))
    what = "Leak canary: scans"
    if shared:
        found = (
            f"{say_count(len(shared), 'scans')} of the training data are also in another fold or set: remove the copies"
        )
        yield Check(FAIL, what, found)
    else:
        found = f"{say_count(len(known), 'scans')} compared: no training scan is also in another fold or set"
        yield Check(PASS if len(known) else WARN, what, found)
    if report.sources:
        rows = report.rows
        fold = report.scored.facts.fold.to_numpy()
        num_wrong = int((fold != rows.fold.to_numpy()).sum())
        found = f"{len(rows):,} slices of {report.best.name}: each predicted by the models of its own fold"
        wrong = f"{num_wrong:,} of {len(rows):,} slices of {report.best.name} were predicted by models of another fold"
        yield Check(FAIL if num_wrong else PASS, "Leak canary: predictions", wrong if num_wrong else found)


def _of_shift(report: ReportData) -> Iterator[Check]:
    """Whether a classifier tells another set from the training data; nothing if it was not tried."""
    found = read_adversarial(report.work, report.prepared)
    if found is None:
        return
    pairs, features = found
    own = pairs[pairs.set == TRAIN]
    for other, rows in own.groupby("other", sort=False):
        lines, is_told = [], False
        for row in rows.to_dict("records"):
            between = format_interval(row["low"], row["high"], 2) or "too few patients"
            by = say_features(features, row) if is_told_apart(row) else ""
            lines.append(f"{row['features']} AUC {format_number(row['value'], 2)} ({between}){f': {by}' if by else ''}")
            is_told = is_told or is_told_apart(row)
        verdict = "told apart" if is_told else "not told apart"
        what = f"Adversarial validation: {say_pair(TRAIN, str(other))}"
        yield Check(WARN if is_told else PASS, what, f"{verdict}; {', '.join(lines)}")


def _of_second_stage(report: ReportData) -> Iterator[Check]:
    """Whether the gain of the second stage is confirmed on patients that no model was trained on."""
    if report.second is None:
        return
    what, table = "Leak canary: second stage", read_proof(report.work, report.sources)
    own = None if table is None else table[table.source == report.second.name]
    if own is None or own.empty:
        is_locked = LOCKED in report.prepared.external_sets()
        remedy = MADE_BY if is_locked else "ichkit prepare --lock 0.15"
        found = f"the gain of {report.second.name} was not measured on locked patients (`{remedy}`)"
        yield Check(WARN, what, found)
        return
    row = own.iloc[0]
    between = f"{row.difference_low:+.4f} to {row.difference_high:+.4f}"
    found = (
        f"gain of {report.second.name} {row.oof_gain:+.4f} out of fold, {row.locked_gain:+.4f} on locked patients; "
        f"difference {row.difference:+.4f} ({between})"
    )
    is_lost = row.difference_high < 0 if row.oof_gain > 0 else False
    yield Check(FAIL if is_lost else PASS, what, found)


def _of_calibration(report: ReportData) -> Iterator[Check]:
    """Intercept and slope of the headline class, by slice."""
    settings, c = report.config.evaluate, report.task.headline_index
    rows = report.scored.slices
    found = measure_calibration(
        rows.probabilities[:, c],
        rows.labels[:, c],
        rows.members,
        num_draws=settings.num_draws,
        level=settings.level,
        seed=seed_of_rows(rows, report.config),
    )
    slope, intercept = found.slope, found.intercept
    name = f"Calibration of {report.task.headline_class}"
    if np.isnan(slope.value):
        yield Check(WARN, name, "no slope: the classes are separated, or one is missing")
        return
    is_good = _covers(slope, 1.0) and _covers(intercept, 0.0)
    text = (
        f"slope {_say(slope)}, 1 is best; intercept {_say(intercept)}, 0 is best (slices, out of fold)"
        if is_good
        else f"not calibrated: slope {_say(slope)} instead of 1, intercept {_say(intercept)} instead of 0"
    )
    yield Check(PASS if is_good else WARN, name, text)


def _covers(estimate: Estimate, value: float) -> bool:
    """Whether an interval contains a value; an undefined one contains none."""
    return bool(estimate.low <= value <= estimate.high)


def _say(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _of_external(report: ReportData) -> Iterator[Check]:
    sets = report.scores.external_sets
    if not sets:
        yield Check(WARN, "External test", "none: no scans of another source were scored")
    for name in sets:
        score = report.scores.find(report.best, ROC_AUC, report.task.headline_class, external_studies(name))
        between = format_interval(score.low, score.high, 3) or "no interval"
        found = f"AUC of {report.task.headline_class} {format_number(score.value, 3)} ({between}), {score.n:,} studies"
        few = min(score.n_positive, score.n - score.n_positive) < FEW_POSITIVES
        found += "; few positives or negatives" * few
        yield Check(WARN if few else PASS, f"External test: {report.name_set(name)}", found)


def _of_classes(report: ReportData) -> Iterator[Check]:
    """Classes with too few positive studies for a narrow interval."""
    counts = {name: count_studies(report, STUDIES, name) for name in report.task.classes}
    one_sided = [name for name, (positive, known) in counts.items() if not 0 < positive < known]
    few = [
        f"{name} ({positive})"
        for name, (positive, known) in counts.items()
        if name not in one_sided and positive < FEW_POSITIVES
    ]
    if one_sided:
        yield Check(FAIL, "Small classes", f"without positive or negative studies, not scored: {join_words(one_sided)}")
    if few:
        found = f"fewer than {FEW_POSITIVES} positive studies, so intervals are wide: {', '.join(few)}"
        yield Check(WARN, "Small classes", found)
    if not one_sided and not few:
        least = min(positive for positive, _ in counts.values())
        yield Check(
            PASS, "Small classes", f"every class has {FEW_POSITIVES} or more positive studies, at least {least:,}"
        )
