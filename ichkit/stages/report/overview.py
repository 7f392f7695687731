"""The top of the page: key figures, missing parts, leaderboard."""

import shlex

from ichkit.core.roles import title_of
from ichkit.show.blocks import Block, Chart, Charts, KeyFigure, KeyFigures, Missing, Section
from ichkit.show.drawing import chart_intervals
from ichkit.show.table import format_interval, format_number
from ichkit.stages.prepare.audit import AUDIT_JSON
from ichkit.stages.report.report_data import ReportData, make_series
from ichkit.stages.scores import tables
from ichkit.stages.scores.book import Score, external_studies
from ichkit.stages.scores.tables import scored_classes_note
from ichkit.validation.scores import ROC_AUC


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
        missing.append(Missing("No external test: no external set is prepared.", "ichkit prepare --cq500 PATH"))
    if AUDIT_JSON not in report.prepared.manifest.files:
        missing.append(Missing("The prepared data have no audit.", "ichkit prepare --fresh"))
    return missing


def make_board(report: ReportData) -> Section:
    """Every source, best first, and a figure of their losses."""
    table = tables.board(report.scores, report.sites)
    return Section("board", "Leaderboard", [Charts([_draw_board(report)]), table])


def _missing_of_training(report: ReportData) -> list[Missing]:
    missing, everything = [], report.prepared.fold_numbers
    for source in (source for source in report.sources if source.is_run):
        left = sorted(set(everything) - set(source.folds))
        if left:
            config = report.work.fold(source.name, source.folds[0]) / "config.yaml"
            words = ["ichkit", "train", "--fold", ",".join(map(str, left))]
            words += ["--run", source.name, "--config", str(config)]
            what = f"Run {source.name} has {len(source.folds)} of {len(everything)} folds; its scores cover only these."
            missing.append(Missing(what, shlex.join(words)))
    if report.second is None:
        missing.append(Missing("No second stage on these folds.", "ichkit stack"))
    for name in sorted({source.path.split("/")[1] for source in report.sources if source.is_outdated}):
        missing.append(Missing(f"Stack {name} is outdated: its runs have changed since.", "ichkit stack"))
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
        KeyFigure("best source", best.name, f"{best.kind}, folds {best.folds_label}"),
        _figure("weighted log loss, out of fold", loss, 5, 4, _notes_of_loss(report)),
        _figure(f"AUC {main}, by slice", book.find(best, ROC_AUC, main), 3, 3),
    ]
    for name in book.external_sets:
        outside = book.find(best, ROC_AUC, main, external_studies(name))
        figures.append(_figure(f"AUC {main}, {title_of(name)} by study", outside, 3, 3))
    counts = f"{report.rows.study_id.nunique():,} studies, {report.rows.patient_id.nunique():,} patients"
    return [*figures, KeyFigure("slices scored", f"{loss.n:,}", f"{loss.n_positive:,} positive; {counts}")]


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
    losses = [report.scores.loss(source) for source in report.sources]
    names = [source.name for source in report.sources]
    series = make_series("weighted log loss", losses)
    alt = "Weighted log loss by source: " + ", ".join(
        f"{name} {format_number(loss.value, 4)}" for name, loss in zip(names, losses, strict=True)
    )
    caption = "Out-of-fold weighted log loss of each source with its confidence interval."
    return chart_intervals("board-loss", alt, caption, names, [series], "weighted log loss (nats), lower is better")
