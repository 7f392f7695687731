"""The top of the page: key figures, what is missing, and the board."""

import shlex

from ichkit.show.blocks import Block, Cell, Chart, Charts, KeyFigure, KeyFigures, Missing, Section, Table
from ichkit.show.drawing import Series, draw_intervals, to_svg
from ichkit.show.terminal import NOTHING, format_interval, format_number
from ichkit.stages.doctor.holdings import RunState
from ichkit.stages.doctor.next_step import train_options
from ichkit.stages.prepare.audit import AUDIT_JSON
from ichkit.stages.report.material import CQ500, Material, Score
from ichkit.validation.catalog import Source
from ichkit.validation.scores import ALL_CLASSES, MEAN_CLASS, ROC_AUC, WEIGHTED_LOG_LOSS

_READING = (
    "Out of fold; intervals by resampling patients, for CQ500 by resampling studies. To the best: the difference in "
    "loss on the same draws of patients, in red with a star where its interval excludes 0, without correction for "
    "several comparisons. As in ordinary stacking, a second stage learns from descriptors of networks that saw the "
    "fold it is scored on, though it never sees that fold's labels."
)


def make_overview(material: Material) -> Section:
    """Key figures of the best source, and everything that is missing with the command that makes it."""
    blocks: list[Block] = [] if material.board is None else [KeyFigures(_key_figures(material))]
    return Section("overview", "At a glance", [*blocks, *find_missing(material)])


def find_missing(material: Material) -> list[Missing]:
    """What the page could show and has nothing of."""
    missing = []
    if material.board is None:
        missing.append(Missing("Nothing is trained yet: no scores, no curves, no pictures.", "ichkit train --fold 0"))
    else:
        missing += _missing_of_training(material)
    if not material.has_cq500:
        missing.append(Missing("No external test: CQ500 is not prepared.", "ichkit prepare --cq500 PATH"))
    if AUDIT_JSON not in material.prepared.manifest.files:
        missing.append(Missing("The store was prepared without an audit of the data.", "ichkit prepare --fresh"))
    return missing


def make_board(material: Material) -> Section:
    """Every source, best first, and their losses as a picture."""
    assert material.board is not None
    any_class = material.task.any_class
    columns = ["source", "weighted log loss", "to the best", f"AUC {any_class}", "slices"]
    if material.has_cq500:
        columns[4:4] = [f"CQ500 AUC {any_class}", "CQ500 mean"]
    sites = [_site(row) for row in material.board.to_dict("records")]
    if any(cell.text != NOTHING for cell in sites):
        columns.append("site: public")
    rows = []
    for source, site in zip(material.sources, sites, strict=True):
        rows.append([*_board_row(material, source), *([site] if columns[-1].startswith("site") else [])])
    caption = f"Every source, best first (data: {material.data})"
    table = Table(caption, tuple(columns), rows, best=0, after=_READING)
    return Section("board", "Board", [Charts([_draw_board(material)]), table])


def _missing_of_training(material: Material) -> list[Missing]:
    missing, everything = [], material.prepared.fold_numbers
    for source in (source for source in material.sources if source.kind == "base"):
        left = sorted(set(everything) - set(source.folds))
        if left:
            words = train_options(source.name, RunState(source.folds, ()), material.work, None)
            words = ["ichkit", "train", "--fold", ",".join(map(str, left)), *words]
            what = (
                f"Run {source.name} has {len(source.folds)} of {len(everything)} folds; its numbers are of these alone."
            )
            missing.append(Missing(what, shlex.join(words)))
    if material.second is None:
        missing.append(Missing("No second stage on these folds.", "ichkit stack"))
    for name in sorted({source.path.split("/")[1] for source in material.sources if source.is_outdated}):
        missing.append(Missing(f"Stack {name} was made from other descriptors than its runs have now.", "ichkit stack"))
    assert material.tables is not None
    without = material.tables.cq500_missing
    if without:
        missing.append(Missing(f"{len(without)} CQ500 studies have labels and no slices: {', '.join(without)}."))
    return missing


def _key_figures(material: Material) -> list[KeyFigure]:
    best, any_class = material.best, material.task.any_class
    loss = material.book.find(best.name, WEIGHTED_LOG_LOSS, ALL_CLASSES)
    figures = [
        KeyFigure("best source", best.name, f"{best.kind}, folds {best.folds_label}"),
        _figure("weighted log loss, out of fold", loss, 5, 4),
        _figure(f"AUC {any_class}, by slice", material.book.find(best.name, ROC_AUC, any_class), 3, 3),
    ]
    if material.has_cq500:
        outside = material.book.find(best.name, ROC_AUC, any_class, CQ500)
        figures.append(_figure(f"AUC {any_class}, CQ500 by study", outside, 3, 3))
    counts = f"{material.rows.study_id.nunique():,} studies, {material.rows.patient_id.nunique():,} patients"
    return [*figures, KeyFigure("slices scored", f"{loss.n:,}", f"{loss.n_positive:,} positive; {counts}")]


def _figure(label: str, score: Score, digits: int, small_digits: int) -> KeyFigure:
    interval = format_interval(score.low, score.high, small_digits)
    return KeyFigure(label, format_number(score.value, digits), interval or "no interval")


def _board_row(material: Material, source: Source) -> list[Cell | str]:
    book, any_class = material.book, material.task.any_class
    loss = book.find(source.name, WEIGHTED_LOG_LOSS, ALL_CLASSES)
    outside = []
    if material.has_cq500:
        mean = book.find(source.name, ROC_AUC, MEAN_CLASS, CQ500)
        outside = [book.find(source.name, ROC_AUC, any_class, CQ500).cell(3), format_number(mean.value, 3)]
    return [
        Cell(source.name, f"{source.kind}, folds {source.folds_label}"),
        loss.cell(5, 4),
        _to_the_best(material, source),
        book.find(source.name, ROC_AUC, any_class).cell(4, 3),
        *outside,
        Cell(f"{loss.n:,}", f"{loss.n_positive:,} positive"),
    ]


def _to_the_best(material: Material, source: Source) -> Cell:
    """The loss less that of the best source of the same folds; a dash for the best itself."""
    assert material.tables is not None
    best = next(other for other in material.sources if other.folds == source.folds)
    pairs = material.tables.comparisons
    asked = (pairs.source == source.name) & (pairs.other == best.name) & (pairs.metric == WEIGHTED_LOG_LOSS)
    if not asked.any():
        return Cell(NOTHING)
    row = pairs[asked].iloc[0]
    is_real = row.low > 0 or row.high < 0
    return Cell(
        f"{row.difference:+.5f}{'*' if is_real else ''}", f"{row.low:+.4f} to {row.high:+.4f}", "bad" if is_real else ""
    )


def _site(row: dict[str, object]) -> Cell:
    """What the competition site said; it never moves a rank."""
    private = format_number(row["private_score"], 5)
    return Cell(format_number(row["public_score"], 5), "" if private == NOTHING else f"private {private}")


def _draw_board(material: Material) -> Chart:
    losses = [material.book.find(source.name, WEIGHTED_LOG_LOSS, ALL_CLASSES) for source in material.sources]
    names = [source.name for source in material.sources]
    values = ([getattr(loss, end) for loss in losses] for end in ("value", "low", "high"))
    series = Series("weighted log loss", *values)
    alt = "Weighted log loss by source: " + ", ".join(
        f"{name} {format_number(loss.value, 4)}" for name, loss in zip(names, losses, strict=True)
    )
    figure = draw_intervals(names, [series], "weighted log loss (nats), lower is better")
    return Chart(to_svg(figure, "board-loss", alt), "Weighted log loss of each source with its interval.")
