"""CQ500, the external test, beside the published numbers."""

import numpy as np

from ichkit.show.blocks import Cell, Chart, Charts, Missing, Section, Table
from ichkit.show.drawing import Series, draw_intervals, to_svg
from ichkit.show.terminal import NOTHING, format_interval, format_number
from ichkit.stages.report.material import CQ500, Material
from ichkit.validation.comparisons import BASELINE
from ichkit.validation.published import PUBLISHED, published_auc
from ichkit.validation.scores import DELONG_AUC, MEAN_CLASS, ROC_AUC

_FORM_ALONE = " Ours are phantoms, theirs patients: the published numbers stand here for the form alone."


def make_external(material: Material) -> Section:
    """The AUC of every class by study, ours and the published ones, and by each way to score a study."""
    if not material.has_cq500:
        missing = Missing("CQ500 is not prepared, so there is no external test.", "ichkit prepare --cq500 PATH")
        return Section("cq500", "CQ500", [missing])
    blocks = [Charts([_draw(material)]), _published_table(material), _aggregations_table(material)]
    return Section("cq500", "CQ500", blocks)


def _draw(material: Material) -> Chart:
    names = (*material.task.classes, MEAN_CLASS)
    scores = [material.book.find(material.best.name, ROC_AUC, name, CQ500) for name in names]
    series = [Series(material.best.name, *([getattr(s, end) for s in scores] for end in ("value", "low", "high")))]
    for key in PUBLISHED:
        others = [published_auc(key, name, material.task) for name in names]
        if any(value is not None for value in others):
            series.append(Series(key, np.array(others, np.float64)))
    figure = draw_intervals(names, series, "AUC per study, higher is better")
    alt = "AUC on CQ500 by class, ours with intervals and the published values; numbers in the table."
    caption = f"{material.best.name} with intervals by resampling studies, beside the published values."
    return Chart(to_svg(figure, "cq500-auc", alt), caption)


def _published_table(material: Material) -> Table:
    assert material.tables is not None
    best, book = material.best, material.book
    pairs = material.tables.comparisons
    paired = pairs[(pairs.source == best.name) & (pairs.other == BASELINE)].set_index("class")
    columns = ["class", "AUC", "DeLong", *PUBLISHED, *(("baseline here", "p") if len(paired) else ()), "positive"]
    rows = []
    for name in (*material.task.classes, MEAN_CLASS):
        delong = book.find(best.name, DELONG_AUC, name, CQ500)
        cells: list[Cell | str] = [book.find(best.name, ROC_AUC, name, CQ500).cell(3)]
        cells.append(format_interval(delong.low, delong.high, 3) or NOTHING)
        cells += [format_number(published_auc(other, name, material.task), 4) for other in PUBLISHED]
        if len(paired):
            own = paired.loc[name] if name in paired.index else {"other_value": None, "p_value": None}
            cells += [format_number(own["other_value"], 3), format_number(own["p_value"], 3)]
        rows.append([name, *cells, book.find(best.name, ROC_AUC, name, CQ500).counts])
    whole = book.find(best.name, ROC_AUC, MEAN_CLASS, CQ500)
    after = f"{whole.n} studies, {len(material.tables.cq500_missing)} missing. Published: "
    after += "; ".join(f"{name}, {row.source}" for name, row in PUBLISHED.items()) + "."
    if len(paired):
        after += f" Baseline here: its own probabilities, DeLong's paired test on {paired.n.max()} studies."
    after += _FORM_ALONE if "phantom" in material.data else ""
    return Table(f"{best.name} on CQ500, highest slice of a study", tuple(columns), rows, after=after)


def _aggregations_table(material: Material) -> Table:
    best, book = material.best, material.book
    places = book.aggregations(best.name)
    names = [place.removeprefix(CQ500).strip().replace("_", " ") or "maximum" for place in places]
    rows = []
    for name in (*material.task.classes, MEAN_CLASS):
        rows.append([name, *(book.find(best.name, ROC_AUC, name, place).cell(3) for place in places)])
    return Table(f"{best.name} on CQ500: AUC by how slices make a study", ("class", *names), rows)
