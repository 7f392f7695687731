"""Report section: from the image files found to the studies scored, with the number and reason of every loss."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd

from ichkit.core.roles import LOCKED, Role, title_of
from ichkit.imaging.parts import WHOLE
from ichkit.imaging.store import FLOW, Prepared
from ichkit.show.blocks import Block, Chart, Charts, Section, Subsection
from ichkit.show.flow import END, LOSS, STEP, FlowBox, draw_flow
from ichkit.show.table import NOTHING, Cell, Table
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.report.sentences.counts import say_count, say_counts
from ichkit.stages.scores.book import external_studies
from ichkit.validation.scores import ROC_AUC
from ichkit.work.artifacts import has_artifact

_UNITS = ("images", "series", "studies", "slices", "patients")
_SHOWN_REASONS = 5
_SHOWN_NAMES = 3


@dataclass(frozen=True)
class FlowStep:
    """One step of a data source: what it holds, or what is lost at it and why.

    Attributes:
        kind: "step", "loss" or "end", as in `show.flow`.
        counts: unit ("images", "series", "studies", "slices", "patients") to number.
        reasons: of a loss: (reason, unit, number), most frequent first.
        notes: further facts, as text.
    """

    kind: str
    title: str
    counts: Mapping[str, int]
    reasons: tuple[tuple[str, str, int], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flow:
    """The steps of one data source, in order."""

    source: str
    steps: list[FlowStep] = field(default_factory=list)


def make_flow(report: ReportData) -> Section:
    """A flow diagram and a table for each data source."""
    flows = find_flows(report)
    charts = [Chart(draw_flow([_box(step) for step in flow.steps], _describe(flow)), _caption(flow)) for flow in flows]
    blocks: list[Block] = [Charts(charts)]
    if flows:
        blocks.append(Subsection("Flow of the data as tables", [_table(flow) for flow in flows], is_open=False))
    return Section("flow", "Flow of the data", blocks)


def find_flows(report: ReportData) -> list[Flow]:
    """The flow of every data source of the store, training data first."""
    return [Flow(source, list(_steps(report, source))) for source in _list_sources(report.prepared)]


def _list_sources(prepared: Prepared) -> list[str]:
    """Training data, then external sets; locked patients belong to the source they were taken from."""
    slices = prepared.slices
    training = slices[slices.split != Role.EXTERNAL].dataset.drop_duplicates().tolist()
    prepared_sets = set(prepared.studies.dataset) | set(prepared.manifest.facts.get(FLOW, {}))
    return training + [name for name in prepared.external_sets() if name != LOCKED and name in prepared_sets]


def _steps(report: ReportData, source: str) -> Iterator[FlowStep]:
    """The steps of one source: images, losses, and what its splits are used for."""
    prepared = report.prepared
    own = _slices_of(prepared, source)
    flow = prepared.manifest.facts.get(FLOW, {}).get(source)
    rejected = prepared.rejected()
    reasons = rejected[rejected.dataset == source].reason.value_counts()
    if flow is not None:
        num_read = sum(flow["read"].values())
        yield FlowStep(STEP, f"{title_of(source)}: images found", {"images": flow["found"]})
        if len(reasons):
            of_reasons = tuple((str(reason), "images", int(count)) for reason, count in reasons.items())
            yield FlowStep(LOSS, "Rejected", {"images": int(reasons.sum())}, of_reasons)
        if flow["beyond_limit"]:
            limit = ("left out by --limit-studies",)
            yield FlowStep(LOSS, "Beyond the limit of studies", {"images": flow["beyond_limit"]}, notes=limit)
        unchosen = flow["found"] - int(reasons.sum()) - flow["beyond_limit"] - num_read
        if unchosen:
            yield _other_series(prepared, source, unchosen)
        yield FlowStep(STEP, "Images read", {"images": num_read})
        if num_read != len(own):
            yield FlowStep(STEP, "Slices stored", _count(own), notes=(_say_made(prepared),))
    elif len(reasons):
        of_reasons = tuple((str(reason), "images", int(count)) for reason, count in reasons.items())
        yield FlowStep(LOSS, "Rejected", {"images": int(reasons.sum())}, of_reasons)
    if flow is None and len(own):
        yield FlowStep(STEP, f"{title_of(source)}: slices stored", _count(own))
    for (dataset, split), rows in own.groupby(["dataset", "split"], sort=False):
        yield _end(report, str(dataset), str(split), rows)
    if not len(own):
        yield FlowStep(END, "Nothing stored", {"slices": 0})


def _slices_of(prepared: Prepared, source: str) -> pd.DataFrame:
    """The slices of a source, those of its locked patients last; the splits in the order train, test."""
    slices, training = prepared.slices, prepared.slices[prepared.slices.split == "train"].dataset
    is_own = slices.dataset == source
    if len(training) and source == training.iloc[0]:
        is_own |= slices.dataset == LOCKED
    own: pd.DataFrame = slices[is_own]
    order = own.split.map({"train": 0, "test": 1}).fillna(2)
    return own.iloc[order.argsort(kind="stable")]


def _other_series(prepared: Prepared, source: str, num_images: int) -> FlowStep:
    """The images of series that were not chosen, and why: by number of series."""
    own_choice = f"{source}_series_choice.csv"  # of a set with the scans of another one, by another series rule
    name = own_choice if own_choice in prepared.manifest.files else "series_choice.csv"
    choice = prepared.read_table(name, dtype={"study_id": str, "series_id": str, "reason": str})
    studies = prepared.studies[prepared.studies.dataset == source].study_id
    facts = prepared.manifest.facts.get(source, {})
    known = set(studies) | set(facts.get("missing_studies", ()))
    left = choice[choice.study_id.isin(known) & ~choice.chosen.astype(bool)]
    reasons = tuple((str(reason), "series", int(count)) for reason, count in left.reason.value_counts().items())
    return FlowStep(LOSS, "Other series than the chosen one", {"images": num_images, "series": len(left)}, reasons)


def _say_made(prepared: Prepared) -> str:
    """How the images that were read became another number of slices."""
    if prepared.parts.kind != WHOLE:
        return f"studies are cut into parts ({prepared.parts.kind})"
    return "thin series are averaged into slabs of about 5 mm"


def _end(report: ReportData, dataset: str, split: str, rows: pd.DataFrame) -> FlowStep:
    """What one split is used for, and how much of it is scored."""
    if split == "train":
        return FlowStep(END, "Training and cross-validation", _count(rows), notes=_of_training(report, rows))
    if split == "test":
        return FlowStep(END, "Test split", _count(rows), notes=("labels unknown: predicted, not scored",))
    if dataset == LOCKED:
        proven = "scored" if has_artifact(report.work.proof) else "not scored yet"
        return FlowStep(END, "Locked patients", _count(rows), notes=(f"{proven}; only --prove scores them",))
    return FlowStep(END, "External test", _count(rows), notes=_of_external(report, dataset, rows))


def _of_training(report: ReportData, rows: pd.DataFrame) -> tuple[str, ...]:
    """The folds, those that are scored, and slices without any label."""
    notes = [f"in {say_count(report.prepared.num_folds, 'folds')} by patient"]
    if report.sources:
        scored = report.rows
        is_unknown = scored[list(report.task.classes)].isna().all(axis=1)
        known = scored[~is_unknown]
        notes.append(f"scored out of fold: {say_counts(_count(known))}")
        left = rows[~rows.fold.isin(report.best.folds)]
        if len(left):
            untrained = sorted(set(report.prepared.fold_numbers) - set(report.best.folds))
            folds = f"fold{'s' if len(untrained) > 1 else ''} {', '.join(map(str, untrained))} not trained"
            notes.append(f"not scored: {say_count(len(left), 'slices')}, {folds}")
        if is_unknown.any():
            notes.append(f"not scored: {say_count(int(is_unknown.sum()), 'slices')} without a known label")
    return tuple(notes)


def _of_external(report: ReportData, dataset: str, rows: pd.DataFrame) -> tuple[str, ...]:
    """Studies with labels, those without images, and those that are scored."""
    names = find_missing_studies(report, dataset)
    notes = []
    if names:
        shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
        notes.append(f"{say_count(len(names), 'studies')} with labels but without images: {shown}")
    if report.sources:
        score = report.scores.find(report.best, ROC_AUC, report.task.headline_class, external_studies(dataset))
        notes.append(f"scored: {say_count(score.n, 'studies')}")
        unknown = rows.study_id.nunique() - score.n
        if unknown > 0:
            what = f"with unknown {report.task.headline_class} or without a prediction"
            notes.append(f"not scored: {say_count(unknown, 'studies')} {what}")
    return tuple(notes)


def find_missing_studies(report: ReportData, dataset: str) -> list[str]:
    """The labelled studies of an external set that have no usable images, by name."""
    if report.book is not None:
        return list(report.scores.tables.missing.get(dataset, ()))
    return list(report.prepared.manifest.facts.get(dataset, {}).get("missing_studies", ()))


def _count(rows: pd.DataFrame) -> dict[str, int]:
    """Slices, studies and patients of rows of `slices.parquet`."""
    return {"patients": rows.patient_id.nunique(), "studies": rows.study_id.nunique(), "slices": len(rows)}


def _say_reasons(step: FlowStep) -> list[str]:
    """The reasons of a loss with their counts; the rarest ones together."""
    shown = step.reasons if len(step.reasons) <= _SHOWN_REASONS + 1 else step.reasons[:_SHOWN_REASONS]
    lines = [f"{say_count(number, unit)}: {reason}" for reason, unit, number in shown]
    left = step.reasons[len(shown) :]
    if left:
        unit, number = left[0][1], sum(number for *_, number in left)
        lines.append(f"{say_count(number, unit)}: {len(left)} more reasons")
    return lines


def _box(step: FlowStep) -> FlowBox:
    counts = say_counts(step.counts)
    if step.kind == LOSS:
        return FlowBox(LOSS, f"{step.title}: {counts}", (*_say_reasons(step), *step.notes))
    return FlowBox(step.kind, step.title, (counts, *step.notes))


def _describe(flow: Flow) -> str:
    """The diagram in words."""
    told = [f"{step.title}: {'; '.join((say_counts(step.counts), *step.notes))}" for step in flow.steps]
    return f"Flow of {title_of(flow.source)}. {'. '.join(told)}."


def _caption(flow: Flow) -> str:
    return f"{title_of(flow.source)}: images, losses with their reasons, and what is scored."


def _table(flow: Flow) -> Table:
    rows: list[list[Cell | str]] = []
    for step in flow.steps:
        what = f"minus {step.title.lower()}" if step.kind == LOSS else step.title
        cells = [f"{step.counts[unit]:,}" if unit in step.counts else NOTHING for unit in _UNITS]
        rows.append([Cell(what, "; ".join(step.notes)), *cells])
        rows += [
            [f"- {reason}", *(f"{number:,}" if unit == counted else NOTHING for unit in _UNITS)]
            for reason, counted, number in step.reasons
        ]
    return Table(f"Flow of {title_of(flow.source)}", ("step", *_UNITS), rows)
