"""Report section: how well the data sets are told apart, and by what (adversarial validation)."""

import numpy as np
import pandas as pd

from ichkit.show.blocks import Block, Chart, Charts, Missing, Section, Subsection
from ichkit.show.drawing import Series, chart_intervals
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.scores.adversarial import MADE_BY, is_told_apart, read_adversarial, render, render_features, say_pair

_TITLE = "Differences between the data sets"


def make_adversarial(report: ReportData) -> Section:
    """Adversarial validation of every two sets, if it was done with the present store and network."""
    found = read_adversarial(report.work, report.prepared)
    if found is None:
        missing = "How well a classifier tells training data, test split and external sets apart was not measured."
        return Section("adversarial", _TITLE, [Missing(missing, MADE_BY)])
    pairs, features = found
    blocks: list[Block] = [Charts([_draw(pairs)]), render(pairs, features, report.data)]
    tables = [
        render_features(features, (row["set"], row["other"]), row["features"])
        for row in pairs.to_dict("records")
        if is_told_apart(row) and row["features"] in set(features.features)
    ]
    if tables:
        blocks.append(Subsection("Features of the sets that are told apart", [*tables], is_open=False))
    return Section("adversarial", _TITLE, blocks)


def _draw(pairs: pd.DataFrame) -> Chart:
    """The AUC of every pair by every kind of features."""
    places = list(dict.fromkeys(zip(pairs.set, pairs.other, strict=True)))
    series = []
    for kind, own in pairs.groupby("features", sort=False):
        own = own.set_index(["set", "other"]).reindex(places)
        series.append(Series(str(kind), *(own[name].to_numpy(np.float64) for name in ("value", "low", "high"))))
    names = [say_pair(*place) for place in places]
    alt = "AUC of telling sets apart: " + ", ".join(
        f"{say_pair(row['set'], row['other'])} by {row['features']} {row['value']:.2f}"
        for row in pairs.to_dict("records")
    )
    caption = (
        "AUC of a classifier that tells the studies of two sets apart, with intervals by patients; 0.5: it cannot."
    )
    return chart_intervals("adversarial-auc", alt, caption, names, series, "AUC of telling them apart")
