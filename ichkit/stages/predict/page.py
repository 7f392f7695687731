"""`predictions.html`, one self-contained page: of every study its classes, its series and its most probable slices."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.progress import Meter, logger
from ichkit.core.tasks import Task
from ichkit.engine.heat import heat_maps
from ichkit.engine.inference import Predictor
from ichkit.imaging.pictures import brain_picture, fit_picture, paint_heat
from ichkit.show.page import encode_jpeg, render
from ichkit.stages.explain.volumes import Volumes
from ichkit.stages.predict.model import RESEARCH_NOTE
from ichkit.stages.predict.outcome import PAGE_NAME, Prediction, find_key_slices
from ichkit.work.artifacts import FileDigest, write_bytes_atomically

_ROOM, _TEMPLATE = "ichkit.stages.predict", "predictions.html.j2"
# A page of more pictures is slow to open; the tables have every study.
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

    Heat is the mean over all networks of the first stage, for the most probable class of the slice beside the one that
    stands for any, times its probability; the second stage sees no pixels and so has none.

    Args:
        out: the folder of the tables.
        networks: by run, then fold.
        volumes: of the studies in `prediction`.
    """
    studies = prediction.studies.assign(number=np.arange(1, len(prediction.studies) + 1))
    studies = studies.sort_values([f"p_{task.any_class}", "number"], ascending=[False, True])
    drawn = studies["study_id"].head(_MAX_DRAWN_STUDIES)
    key_slices = find_key_slices(prediction.slices[prediction.slices["study_id"].isin(drawn)], task)
    predictors = [predictor for of_run in networks.values() for predictor in of_run.values()]
    pictures = {}
    with Meter("pictures", len(drawn), "studies") as meter:
        for study_id, rows in key_slices.groupby("study_id", sort=False):
            pictures[study_id] = _draw_slices(predictors, volumes.of_study(study_id), rows, task)
            meter.advance()
    choice = dict(list(prediction.series_choice.groupby("study_id")))
    blocks = [
        {**row, "series": choice[row["study_id"]].to_dict("records"), "key_slices": pictures.get(row["study_id"], [])}
        for row in studies.to_dict("records")
    ]
    page = render(
        _ROOM,
        _TEMPLATE,
        task=task,
        note=RESEARCH_NOTE,
        model=prediction.model,
        num_networks=len(predictors),
        studies=blocks,
        max_drawn=_MAX_DRAWN_STUDIES,
        rejected=prediction.rejected["reason"].value_counts().to_dict(),
    )
    logger.info("predict: look at %s", out / PAGE_NAME)
    return write_bytes_atomically(out / PAGE_NAME, page.encode())


def _draw_slices(
    predictors: list[Predictor], volume: np.ndarray, rows: pd.DataFrame, task: Task
) -> list[dict[str, Any]]:
    """For each key slice of a study its place, its probabilities, and two pictures as data URLs."""
    positions = rows["slice_index"].to_numpy()
    names = [column.removeprefix("p_") for column in rows[[f"p_{name}" for name in task.subtypes]].idxmax(axis=1)]
    wanted = sorted({task.classes.index(name) for name in names})
    heat = np.mean([heat_maps(predictor, volume, positions, wanted) for predictor in predictors], axis=0)
    drawn = []
    for place, (row, name) in enumerate(zip(rows.to_dict("records"), names, strict=True)):
        slice_hu, of_class = volume[row["slice_index"]], heat[place, wanted.index(task.classes.index(name))]
        # The mean of maps that agree nowhere is low everywhere, so the scale starts anew; times the probability,
        # because every map has a hottest place, also that of a class nobody believes in.
        shown = of_class / max(float(of_class.max()), 1e-6) * row[f"p_{name}"]
        pictures = {"brain": brain_picture(slice_hu), "heat": paint_heat(slice_hu, shown)}
        encoded = {key: encode_jpeg(fit_picture(image, _SIDE), _JPEG_QUALITY) for key, image in pictures.items()}
        drawn.append({**row, "shown_class": name, **encoded})
    return drawn
