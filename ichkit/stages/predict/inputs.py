"""What `predict` reads: the slices of CT, or several sequences where the config names them."""

import json
from functools import partial

import pandas as pd

from ichkit.core.errors import ArtifactError
from ichkit.engine.parallel import run_tasks
from ichkit.imaging.sequences import SequenceSettings
from ichkit.sources import bids
from ichkit.sources.folder import plan_folder
from ichkit.sources.index import MR, check_decoders, read_index, refuse_raw
from ichkit.sources.plan import Found, SourcePlan
from ichkit.stages.predict.plan import PredictPlan


def plan_inputs(plan: PredictPlan, salt: bytes) -> tuple[pd.DataFrame, SourcePlan, SequenceSettings | None]:
    """The index of the files, the plan of their studies, and how their sequences become one volume; None for CT.

    Raises:
        ArtifactError: the config names sequences, the model has one, or its networks differ.
        ConfigError: the config names another template or command than the model was trained with.
    """
    options = plan.options
    run = partial(run_tasks, workers=plan.config.prepare.workers)
    if not plan.config.prepare.sequences.names:
        index = read_index(plan.images, None, run=run)
        index = check_decoders(refuse_raw(index) if plan.judges_hu else index, skip=options.skip_undecodable)
        if plan.source is not None and plan.source.plan_scans is not None:
            return index, plan.source.plan_scans(index, salt), None
        return index, plan_folder(index, salt, plan.override, judges_hu=plan.judges_hu), None
    settings = _find_sequences(plan)
    files = bids.image_files(plan.images)
    index = read_index(files, None, run=run, modality=MR)
    found = Found(files, files, index, plan.task, salt=salt, sequences=settings)
    return index, bids.plan_sequences(found), settings


def _find_sequences(plan: PredictPlan) -> SequenceSettings:
    """Those of the model, with the files that the config names."""
    from ichkit.engine.inference import read_card

    model = plan.find_model()
    cards = [read_card(folder) for of_run in model.runs.values() for folder in of_run.values()]
    ways = {json.dumps(card.sequences, sort_keys=True) for card in cards}
    settings = SequenceSettings.from_json(cards[0].sequences) if len(ways) == 1 else None
    if settings is None:
        raise ArtifactError(
            f"{model.name}: expected networks trained on the same sequences, found {len(ways)} settings or none. "
            "Use the config the model was trained with."
        )
    return settings.with_files(plan.config.prepare.sequences)
