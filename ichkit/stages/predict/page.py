"""`predictions.html`, a self-contained page: probabilities, series and most probable slices of every study."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.progress import Meter, logger
from ichkit.core.tasks import Task
from ichkit.engine.heat import heat_maps
from ichkit.engine.inference import Predictor
from ichkit.imaging.pictures import brain_picture, fit_picture, paint_heat
from ichkit.imaging.steps import Origin, restore
from ichkit.imaging.windows import TABLE_LOW_HU
from ichkit.show.page import encode_jpeg, render
from ichkit.stages.explain.volumes import Volumes
from ichkit.stages.predict.model import RESEARCH_NOTE
from ichkit.stages.predict.outcome import PAGE_NAME, Prediction, find_headline, find_key_slices, find_series
from ichkit.work.artifacts import FileDigest, write_bytes_atomically

_ROOM, _TEMPLATE = "ichkit.stages.predict", "predictions.html.j2"
# More pictures make the page slow to open; the tables list every study.
_MAX_DRAWN_STUDIES = 50
_SIDE, _JPEG_QUALITY = 256, 88


def write_page(
    out: Path,
    prediction: Prediction,
    networks: dict[str, dict[int, Predictor]],
    volumes: Volumes,
    task: Task,
) -> FileDigest:
    """Writes the page and returns its digest.

    Heat maps are the mean over all first-stage networks for the most probable subtype of the slice, times its
    probability. The second stage sees no pixels and has no heat maps.

    Args:
        out: the folder of the tables.
        networks: by run, then fold.
        volumes: the volumes of the studies in `prediction`.
    """
    studies = prediction.studies.assign(number=np.arange(1, len(prediction.studies) + 1))
    main = find_headline(prediction.studies, task)
    studies = studies.sort_values([f"p_{main}", "number"], ascending=[False, True])
    drawn = studies["study_id"].head(_MAX_DRAWN_STUDIES)
    key_slices = find_key_slices(prediction.slices[prediction.slices["study_id"].isin(drawn)], task)
    predictors = [predictor for of_run in networks.values() for predictor in of_run.values()]
    pictures = {}
    with Meter("pictures", len(drawn), "studies") as meter:
        for study_id, rows in key_slices.groupby("study_id", sort=False):
            of_study = prediction.slices[prediction.slices["study_id"] == study_id].sort_values("slice_index")
            positions_mm = of_study["position_mm"].to_numpy()
            volume, origin = volumes.of_study(str(study_id))
            pictures[study_id] = _draw_slices(predictors, volume, positions_mm, origin, rows, task)
            meter.advance()
    series = find_series(prediction)
    blocks = [
        {**row, "series": series[row["study_id"]].to_dict("records"), "key_slices": pictures.get(row["study_id"], [])}
        for row in studies.to_dict("records")
    ]
    page = render(
        _ROOM,
        _TEMPLATE,
        task=task,
        main=main,
        note=RESEARCH_NOTE,
        model=prediction.model,
        num_networks=len(predictors),
        studies=blocks,
        max_drawn=_MAX_DRAWN_STUDIES,
        rejected=prediction.rejected["reason"].value_counts().to_dict(),
    )
    logger.info("predict: the page is %s", out / PAGE_NAME)
    return write_bytes_atomically(out / PAGE_NAME, page.encode())


def _draw_slices(
    predictors: list[Predictor],
    volume: np.ndarray,
    positions_mm: np.ndarray,
    origin: Origin | None,
    rows: pd.DataFrame,
    task: Task,
) -> list[dict[str, Any]]:
    """Position, probabilities and two pictures (data URLs) of each key slice of a study, in the source picture."""
    positions = rows["slice_index"].to_numpy()
    known = [name for name in task.classes if rows[f"p_{name}"].notna().any()]
    shown_classes = [name for name in known if name != task.any_class] or known
    best = rows[[f"p_{name}" for name in shown_classes]].to_numpy().argmax(axis=1)
    names = [shown_classes[index] for index in best]
    wanted = sorted({task.classes.index(name) for name in names})
    # A model may combine networks of different classes: each draws those it predicts.
    maps: dict[int, list[np.ndarray]] = {index: [] for index in wanted}
    for predictor in predictors:
        own = [index for index in wanted if task.classes[index] in predictor.classes]
        drawn_maps = heat_maps(predictor, volume, positions, own, positions_mm) if own else np.empty((0, 0))
        for place, index in enumerate(own):
            maps[index].append(drawn_maps[:, place])
    heat = np.stack([np.mean(of_class, axis=0) for of_class in maps.values()], axis=1)
    shown_slices, heat = restore(volume[positions], origin, TABLE_LOW_HU), restore(heat, origin, 0.0)
    drawn = []
    for place, (row, name) in enumerate(zip(rows.to_dict("records"), names, strict=True)):
        slice_hu, of_class = shown_slices[place], heat[place, wanted.index(task.classes.index(name))]
        # Rescaled, because the mean of maps that disagree is low everywhere; times the probability, because every map
        # has a maximum, even that of an improbable class.
        shown = of_class / max(float(of_class.max()), 1e-6) * row[f"p_{name}"]
        pictures = {"brain": brain_picture(slice_hu), "heat": paint_heat(slice_hu, shown)}
        encoded = {key: encode_jpeg(fit_picture(image, _SIDE), _JPEG_QUALITY) for key, image in pictures.items()}
        drawn.append({**{str(key): value for key, value in row.items()}, "shown_class": name, **encoded})
    return drawn
