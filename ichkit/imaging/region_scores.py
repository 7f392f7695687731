"""Scores of a patient from the regions of the brain: the regions of one side less those with a finding."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ichkit.imaging.parts import SIDES, whole_id
from ichkit.imaging.regions import ASPECTS, Region

SCORE_COLUMNS = ["study_id", *SIDES, "score", "unknown", *(f"{side}_regions" for side in SIDES)]


def score_regions(table: pd.DataFrame, regions: Sequence[Region]) -> pd.DataFrame:
    """The score of each study: by side, the number of regions of the group "aspects" less those with a finding.

    Args:
        table: study_id, ids of parts such as "1.2:left-M1", and has_finding: 1, 0, or NaN for unknown, which takes no
            point off.
        regions: those that studies are cut into.

    Returns:
        `SCORE_COLUMNS`, one row per study: the score of each side, the lower one, how many regions are unknown, and the
        regions with a finding of each side. A region without a row is unknown.

    Source: ten points less one for each of ten regions with early ischemic change, Barber et al., Lancet 2000.

    Example:
        >>> from ichkit.imaging.regions import REGIONS
        >>> table = pd.DataFrame({"study_id": ["1:left-M1", "1:left-C", "1:right-C"], "has_finding": [1, 1, 0]})
        >>> score_regions(table, REGIONS)[["right", "left", "score"]].to_numpy().tolist()
        [[10, 8, 8]]
    """
    names = [region.name for region in regions if region.group == ASPECTS]
    part = table["study_id"].str.rpartition(":")[2]
    side, region = part.str.partition("-")[0], part.str.partition("-")[2]
    counted = table.assign(study_id=table["study_id"].map(whole_id), side=side, region=region)[
        region.isin(names) & side.isin(SIDES)
    ]
    rows = []
    for study, own in counted.groupby("study_id", sort=True):
        found = {name: own["has_finding"][own["side"] == name].to_numpy(np.float64) for name in SIDES}
        scores = [len(names) - int(np.nansum(found[name])) for name in SIDES]
        known = sum(int((~np.isnan(values)).sum()) for values in found.values())
        hit = own[own["has_finding"] == 1]
        shown = [" ".join(name for name in names if name in set(hit["region"][hit["side"] == side])) for side in SIDES]
        rows.append((study, *scores, min(scores), len(SIDES) * len(names) - known, *shown))
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)
