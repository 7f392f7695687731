"""Where the best source does better and worse, and which differences between sources are real."""

import pandas as pd

from ichkit.show.blocks import Cell, Chart, Charts, Missing, Section, Table
from ichkit.show.drawing import Series, draw_intervals, to_svg
from ichkit.show.terminal import NOTHING, format_number
from ichkit.stages.report.material import CQ500, SLICES, Material
from ichkit.validation.comparisons import BASELINE, BOOTSTRAP, DELONG
from ichkit.validation.scores import ALL_CLASSES, ROC_AUC, WEIGHTED_LOG_LOSS
from ichkit.validation.subgroups import SLICE_PARTITIONS, STUDY_PARTITIONS


def make_subgroups(material: Material) -> Section:
    """The loss and AUC of the best source in every subgroup, out of fold and on CQ500."""
    book, best, any_class = material.book, material.best, material.task.any_class
    own = book.subgroups(best.name, SLICES)
    rows = []
    for place, names in ((SLICES, own), (CQ500, book.subgroups(best.name, CQ500))):
        for name in names:
            loss = book.find(best.name, WEIGHTED_LOG_LOSS, ALL_CLASSES, place, name)
            auc = book.find(best.name, ROC_AUC, any_class, place, name)
            rows.append(
                [_readable(name), "CQ500" if place == CQ500 else "out of fold", loss.cell(4), auc.cell(3), auc.counts]
            )
    columns = ("subgroup", "of", "weighted log loss", f"AUC {any_class}", "positive")
    partitions = {**SLICE_PARTITIONS, **STUDY_PARTITIONS}.values()
    after = " ".join(f"{one.name.replace('_', ' ')}: {one.description}" for one in partitions)
    table = Table(f"{best.name} in parts of the data", columns, rows, after=after, num_text=2)
    losses = [book.find(best.name, WEIGHTED_LOG_LOSS, ALL_CLASSES, SLICES, name) for name in own]
    series = Series(best.name, *([getattr(loss, end) for loss in losses] for end in ("value", "low", "high")))
    alt = f"Weighted log loss of {best.name} in {len(own)} subgroups with intervals; numbers in the table."
    figure = draw_intervals([_readable(name) for name in own], [series], "weighted log loss (nats)")
    chart = Chart(to_svg(figure, "subgroup-loss", alt), "Loss by subgroup, out of fold. Rates of bleeds differ too.")
    return Section("subgroups", "Subgroups", [Charts([chart]), table])


def make_pairs(material: Material) -> Section:
    """Every pair of the sources that were scored on the same folds."""
    assert material.tables is not None
    title = "Paired comparisons"
    pairs = material.tables.comparisons
    pairs = pairs[pairs.other != BASELINE]
    peers = [source.name for source in material.peers]
    rows = [
        [_pair_name(one, other), *_pair_cells(material, pairs[(pairs.source == one) & (pairs.other == other)])]
        for number, one in enumerate(peers)
        for other in peers[number + 1 :]
    ]
    if not rows:
        return Section(
            "pairs", title, [Missing("A single source: there is nothing to compare it with.", "ichkit stack")]
        )
    any_class = material.task.any_class
    columns = ["pair", "weighted log loss", "p", f"AUC {any_class}", "p"]
    columns += [f"CQ500 AUC {any_class}", "p"] if material.has_cq500 else []
    after = (
        "The first source less the second. By slice on the same draws of patients, on CQ500 by DeLong's paired test; "
        "green where the interval says that the first is better, red where it is worse. Not corrected for several "
        "comparisons."
    )
    return Section("pairs", title, [Table("Differences between sources", tuple(columns), rows, after=after)])


def _pair_name(one: str, other: str) -> Cell:
    return Cell(one, f"less {other}")


def _pair_cells(material: Material, rows: pd.DataFrame) -> list[Cell | str]:
    any_class = material.task.any_class
    own, outside = rows[(rows.dataset != "cq500") & (rows.level == "slice")], rows[rows.dataset == "cq500"]
    cells = _difference(own, WEIGHTED_LOG_LOSS, ALL_CLASSES, BOOTSTRAP, 5, is_lower_better=True)
    cells += _difference(own, ROC_AUC, any_class, BOOTSTRAP, 4)
    return cells + (_difference(outside, ROC_AUC, any_class, DELONG, 3) if material.has_cq500 else [])


def _difference(
    rows: pd.DataFrame, metric: str, name: str, method: str, digits: int, *, is_lower_better: bool = False
) -> list[Cell | str]:
    """A difference with its interval, and its p-value; dashes where it is not known."""
    found = rows[(rows.metric == metric) & (rows["class"] == name) & (rows.method == method)]
    if not len(found):
        return [NOTHING, NOTHING]
    row = found.iloc[0]
    if pd.isna(row.difference):
        return [NOTHING, NOTHING]
    interval = "" if pd.isna(row.low) else f"{row.low:+.{digits}f} to {row.high:+.{digits}f}"
    is_better = row.high < 0 if is_lower_better else row.low > 0
    is_worse = row.low > 0 if is_lower_better else row.high < 0
    tone = "good" if is_better else "bad" if is_worse else ""
    return [Cell(f"{row.difference:+.{digits}f}", interval, tone), format_number(row.p_value, 3)]


def _readable(subgroup: str) -> str:
    """E.g. "padded=yes" to "padded: yes"."""
    name, _, value = subgroup.partition("=")
    return f"{name.replace('_', ' ')}: {value}"
