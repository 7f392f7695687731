"""The top of the page: key figures, missing parts, leaderboard."""

import shlex
from dataclasses import replace

from ichkit.core.roles import title_of
from ichkit.show.blocks import Block, Chart, Charts, KeyFigure, KeyFigures, Missing, Section, Subsection
from ichkit.show.drawing import chart_intervals
from ichkit.show.table import format_interval, format_number
from ichkit.stages.prepare.audit import AUDIT_JSON
from ichkit.stages.report.commands import missing_of_store
from ichkit.stages.report.report_data import ReportData, make_series
from ichkit.stages.report.sentences.counts import join_words, say_count
from ichkit.stages.scores import tables
from ichkit.stages.scores.book import Score, external_studies
from ichkit.stages.scores.tables import scored_classes_note
from ichkit.validation.catalog import HAND, Source
from ichkit.validation.scores import ROC_AUC

_WITHOUT_TRIALS = "without trials of searches (`ichkit tune`) that no stack or blend uses, which are below, folded."
_TRIALS = "trials that no stack or blend uses; other sections leave them out. `tune.html` of a search has all of its."


def make_overview(report: ReportData) -> Section:
    """Key figures of the best source, and every missing part with the command that creates it."""
    blocks: list[Block] = [] if report.book is None else [KeyFigures(_key_figures(report))]
    return Section("overview", "Summary", [*blocks, *find_missing(report)])


def find_missing(report: ReportData) -> list[Missing]:
    """Parts of the page that cannot be shown yet."""
    missing = []
    if report.book is None:
        missing.append(Missing("Nothing is trained yet.", "ichkit train --fold 0"))
    else:
        missing += _missing_of_training(report)
    if report.book is not None and not report.book.external_sets:
        missing.append(missing_of_store(report, "No external test: no external set is prepared.", "--cq500", "PATH"))
    if AUDIT_JSON not in report.prepared.manifest.files:
        missing.append(missing_of_store(report, "The prepared data have no audit.", "--fresh"))
    return missing


def make_board(report: ReportData) -> Section:
    """The shown sources, best first, with a figure of their losses, and trials that are left out, folded."""
    blocks: list[Block] = [Charts([_draw_board(report)])]
    if not report.left_out:
        return Section("board", "Leaderboard", [*blocks, tables.board(report.scores, report.sites)])
    shown = {source.name for source in report.shown}
    blocks.append(tables.board(report.scores, report.sites, chosen=shown, why=_WITHOUT_TRIALS))
    rest = tables.board(report.scores, report.sites, chosen=report.left_out, why=_TRIALS)
    title = say_count(len(report.left_out), "further trials")
    blocks.append(Subsection(title, [replace(rest, title=f"Leaderboard: {title}")], is_open=False))
    return Section("board", "Leaderboard", blocks)


def _missing_of_training(report: ReportData) -> list[Missing]:
    missing, everything = [], report.prepared.fold_numbers
    for source in (source for source in report.shown if source.is_run):
        left = sorted(set(everything) - set(source.folds))
        if left:
            config = report.work.fold(source.name, source.folds[0]) / "config.yaml"
            words = ["ichkit", "train", "--fold", ",".join(map(str, left))]
            words += ["--run", source.name, "--config", str(config)]
            what = f"Run {source.name} has {len(source.folds)} of {len(everything)} folds; its scores cover only these."
            missing.append(Missing(what, shlex.join(words)))
    if report.second is None:
        missing.append(Missing("No second stage on these folds.", "ichkit stack"))
    outdated = {source.path.split("/")[1]: source.remedy for source in report.sources if source.is_outdated}
    for name, remedy in sorted(outdated.items()):
        missing.append(Missing(f"Stack {name} is outdated: its runs have changed since.", remedy))
    for dataset, without in report.scores.tables.missing.items():
        if without:
            have = "study has" if len(without) == 1 else "studies have"
            what = f"{len(without)} {title_of(dataset)} {have} labels but no images"
            missing.append(Missing(f"{what}: {', '.join(without)}."))
    return missing


def _key_figures(report: ReportData) -> list[KeyFigure]:
    best, book, main = report.best, report.scores, report.task.headline_class
    loss = book.loss(best)
    figures = [
        KeyFigure("best source", best.name, f"{_kind(best)}, folds {best.folds_label}"),
        _figure("weighted log loss, out of fold", loss, 5, 4, _notes_of_loss(report)),
        _figure(f"AUC {main}, by slice", book.find(best, ROC_AUC, main), 3, 3),
    ]
    for name in book.external_sets:
        outside = book.find(best, ROC_AUC, main, external_studies(name))
        figures.append(_figure(f"AUC {main}, {report.name_set(name)} by study", outside, 3, 3))
    counts = f"{report.rows.study_id.nunique():,} studies, {report.rows.patient_id.nunique():,} patients"
    return [*figures, KeyFigure("slices scored", f"{loss.n:,}", f"{loss.n_positive:,} positive; {counts}")]


def _kind(source: Source) -> str:
    return f"blend by hand of {join_words(source.members)}" if source.kind == HAND else source.kind


def _notes_of_loss(report: ReportData) -> str:
    """The classes that were not scored, and the optimism of the choice of the best source."""
    choice = report.scores.choice(report.best)
    chosen = "" if choice is None or choice.num_sources < 2 else f"best of {choice.num_sources}"
    optimism = f"{chosen}, optimism {choice.optimism:+z.5f}" if choice is not None and chosen else ""
    return "; ".join(note for note in (scored_classes_note(report.scores, report.best), optimism) if note)


def _figure(label: str, score: Score, digits: int, small_digits: int, note: str = "") -> KeyFigure:
    interval = format_interval(score.low, score.high, small_digits) or "no interval"
    return KeyFigure(label, format_number(score.value, digits), f"{interval}; {note}" if note else interval)


def _draw_board(report: ReportData) -> Chart:
    losses = [report.scores.loss(source) for source in report.shown]
    names = [source.name for source in report.shown]
    series = make_series("weighted log loss", losses)
    alt = "Weighted log loss by source: " + ", ".join(
        f"{name} {format_number(loss.value, 4)}" for name, loss in zip(names, losses, strict=True)
    )
    caption = "Out-of-fold weighted log loss of each source with its confidence interval."
    return chart_intervals("board-loss", alt, caption, names, [series], "weighted log loss (nats), lower is better")
