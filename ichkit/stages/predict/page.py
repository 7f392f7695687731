"""`predictions.html`, a self-contained page: what to read first, the studies by probability, a viewer of each study."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.progress import Meter, format_count
from ichkit.core.tasks import Task
from ichkit.engine.heat import fade_heat, heat_maps
from ichkit.engine.inference import Predictor
from ichkit.imaging.pictures import brain_picture, fit_picture, paint_heat, picture_volume
from ichkit.imaging.steps import restore
from ichkit.imaging.windows import TABLE_LOW_HU
from ichkit.show.blocks import PASS, WARN, Block, Card, Check, Checks, Prose, Section, Subsection, Viewer
from ichkit.show.page import encode_webp, render
from ichkit.show.table import NOTHING, Cell, Table, format_number
from ichkit.show.viewer import HOW_TO_SCROLL, Viewed, make_viewer, name_windows
from ichkit.sources.series import is_doubtful
from ichkit.stages.explain.volumes import Volumes
from ichkit.stages.predict.errors import render_errors
from ichkit.stages.predict.gate import gate_section, score_section
from ichkit.stages.predict.judge import Judged
from ichkit.stages.predict.judge import render as render_judged
from ichkit.stages.predict.model import RESEARCH_NOTE
from ichkit.stages.predict.outcome import (
    NUM_KEY_SLICES,
    PAGE_NAME,
    Prediction,
    describe_pooling,
    find_headline,
    find_key_slices,
    find_series,
)
from ichkit.stages.predict.thresholds import SLICE, STUDY
from ichkit.validation.scope import label_array
from ichkit.work.artifacts import FileDigest, write_bytes_atomically

_ROOM, _TEMPLATE = "ichkit.stages.predict", "predictions.html.j2"
# More pictures make the page slow to open; the tables list every study.
_MAX_DRAWN_STUDIES = 50
_NUM_HEAT = 8  # slices of a study with a heat map; each takes a backward pass per network
_SIDE, _QUALITY = 192, 60
_FEW_SLICES = 10  # a head in slices of 15 mm or more, or a part of one


def write_page(
    out: Path,
    prediction: Prediction,
    networks: dict[str, dict[int, Predictor]],
    volumes: Volumes,
    task: Task,
    thresholds: Mapping[str, float],
) -> FileDigest:
    """Writes the page and returns its digest.

    Heat maps are the mean over all first-stage networks for the most probable subtype of the slice, times its
    probability. The second stage sees no pixels and has no heat maps.

    Args:
        out: the folder of the tables.
        networks: by run, then fold.
        volumes: the volumes of the studies in `prediction`.
        thresholds: class to threshold of a slice; empty if unknown.
    """
    studies = prediction.studies.assign(number=np.arange(1, len(prediction.studies) + 1))
    main = find_headline(prediction.studies, task)
    studies = studies.sort_values([f"p_{main}", "number"], ascending=[False, True])
    drawn = studies.head(_MAX_DRAWN_STUDIES)
    predictors = [predictor for of_run in networks.values() for predictor in of_run.values()]
    viewers: list[Block] = []
    with Meter("pictures", len(drawn), "studies") as meter:
        for number, study_id in zip(drawn["number"], drawn["study_id"], strict=True):
            rows = prediction.slices[prediction.slices["study_id"] == study_id].sort_values("slice_index")
            truth = _truth_of(prediction, rows, task)
            viewers.append(
                _draw_study(int(number), rows, truth, predictors, volumes, task, main, thresholds, len(drawn))
            )
            meter.advance()
    left = len(studies) - len(drawn)
    if left:
        viewers.append(
            Prose(f"{left} more studies without images: shown are the {len(drawn)} with the highest probability.")
        )
    against: list[Section] = []
    steps: list[Section] = []
    if prediction.gated is not None:
        steps.append(gate_section(prediction.gated))
    if prediction.region_scores is not None:
        steps.append(score_section(prediction.region_scores, task, prediction.region_threshold))
    if prediction.judged is not None:
        against.append(Section("labels", "Scores against the labels", [*render_judged(prediction.judged, task)]))
        against.append(_error_section(prediction, prediction.judged, studies, set(drawn["number"]), task, main))
    sections = [
        Section("first", "Read this first", [Checks(_check(prediction, thresholds, len(predictors)))]),
        *steps,
        Section("triage", "Studies", [_triage(prediction, studies, set(drawn["number"]), task, main, thresholds)]),
        Section("slices", "Slices", [Prose(_how_to_read(prediction)), *viewers]),
        *against,
        Section("series", "Series selection", [_series_table(prediction, studies)]),
        Section("rejected", "Rejected files", [_rejected(prediction)]),
    ]
    made = f"{format_count(len(studies), 'study', 'studies')}, by {prediction.model.name}."
    page = render(_ROOM, _TEMPLATE, sections=sections, made=made, notice=RESEARCH_NOTE)
    return write_bytes_atomically(out / PAGE_NAME, page.encode())


def _anchor(number: int) -> str:
    return f"study-{number}"


def _truth_of(prediction: Prediction, rows: pd.DataFrame, task: Task) -> np.ndarray | None:
    """(S, C) labels of the slices of a study, NaN where unknown; None without labels per slice."""
    if prediction.truth is None:
        return None
    known = prediction.truth.set_index("slice_id").reindex(rows["slice_id"])
    return label_array(known, task)


def _draw_study(
    number: int,
    rows: pd.DataFrame,
    truth: np.ndarray | None,
    predictors: list[Predictor],
    volumes: Volumes,
    task: Task,
    main: str,
    thresholds: Mapping[str, float],
    num_studies: int,
) -> Viewer:
    """The viewer of one study, in the source picture; `rows` are its slices from feet to head, `truth` their labels."""
    volume, origin = volumes.of_study(str(rows["study_id"].iloc[0]))
    p = rows[task.probability_columns].to_numpy(np.float64)
    positions_mm = rows["position_mm"].to_numpy(np.float64)
    top = p[:, task.classes.index(main)]
    hot = np.argsort(-top, kind="stable")[:_NUM_HEAT]
    known = [c for c in range(task.num_classes) if not np.isnan(p[:, c]).all()]
    drawn_classes = np.array([c for c in known if task.classes[c] != task.any_class] or known)
    best = drawn_classes[p[np.ix_(hot, drawn_classes)].argmax(axis=1)]
    wanted = sorted(set(best.tolist()))
    # A model may combine networks of different classes: each draws those it predicts.
    by_class: dict[int, list[np.ndarray]] = {c: [] for c in wanted}
    for predictor in predictors:
        own = [c for c in wanted if task.classes[c] in predictor.classes]
        drawn = heat_maps(predictor, volume, hot, own, positions_mm) if own else np.empty((0, 0))
        for place, c in enumerate(own):
            by_class[c].append(drawn[:, place])
    maps = np.stack([np.mean(of_class, axis=0) for of_class in by_class.values()], axis=1)
    whole, maps = restore(picture_volume(volume), origin, TABLE_LOW_HU), restore(maps, origin, 0.0)
    heat = {}
    for place, (index, c) in enumerate(zip(hot.tolist(), best.tolist(), strict=True)):
        heat[index] = task.classes[c], fade_heat(maps[place, wanted.index(c)], p[index, c])
    keys = find_key_slices(rows.assign(row=np.arange(len(rows))), task)["row"].tolist()[:NUM_KEY_SLICES]
    stills = [_still(number, index, whole[index], *heat[index], p[index], task, main) for index in keys]
    title = f"Study {number}: maximum {main} {top.max():.3f}"
    labels = None if truth is None else truth[:, known]
    study = Viewed(_anchor(number), title, whole, p[:, known], positions_mm, labels, heat, keys, stills)
    windows = name_windows(predictors[0].card.channels["windows"])
    return make_viewer(study, [task.classes[c] for c in known], thresholds, num_studies, windows=windows)


def _still(
    number: int, index: int, slice_hu: np.ndarray, shown: str, heat: np.ndarray, p: np.ndarray, task: Task, main: str
) -> Card:
    """A key slice in the brain window, and with its heat map."""
    pair = [fit_picture(picture, _SIDE) for picture in (brain_picture(slice_hu), paint_heat(slice_hu, heat))]
    picture = np.concatenate(pair, axis=1)
    alt = f"Slice {index} of study {number} in the brain window, and with the heat map for {shown}"
    facts = (f"heat map for {shown}: {p[task.classes.index(shown)]:.3f}",)
    figure = f"{main} {p[task.classes.index(main)]:.3f}"
    size = (picture.shape[1], picture.shape[0])
    return Card(encode_webp(picture, _QUALITY), size, alt, f"slice {index}", figure, facts)


def _check(prediction: Prediction, thresholds: Mapping[str, float], num_networks: int) -> list[Check]:
    model = prediction.model
    checks = []
    if "phantom" in model.data:
        found = "this model was trained on synthetic phantoms; its predictions for patient scans are meaningless"
        checks.append(Check(WARN, "Training data", found))
    else:
        checks.append(Check(PASS, "Training data", model.data))
    stack = "and a second stage" if _has_second_stage(prediction) else "without a second stage"
    checks.append(Check(PASS, "Model", f"{model.name}: {format_count(num_networks, 'network')} {stack}"))
    found = "of the model's out-of-fold slices (best F1)" if thresholds else "the model has none: no decision is shown"
    checks.append(Check(PASS if thresholds else WARN, "Thresholds", found))
    num_rejected = len(prediction.rejected)
    found = (
        f"{format_count(num_rejected, 'file')} rejected"
        if num_rejected
        else "none (files such as licences and read-me files are ignored)"
    )
    checks.append(Check(WARN if num_rejected else PASS, "Files", found))
    short = prediction.studies["num_slices"] < _FEW_SLICES
    found = f"{format_count(int(short.sum()), 'study', 'studies')} of fewer than {_FEW_SLICES} slices"
    checks.append(
        Check(WARN if short.any() else PASS, "Slices", found if short.any() else f"{_FEW_SLICES} or more of each study")
    )
    series = find_series(prediction)
    doubtful = [
        str(number)
        for number, name in enumerate(prediction.studies["study_id"], 1)
        if series[name].loc[series[name]["chosen"], "reason"].map(is_doubtful).any()
    ]
    found = f"doubtful for study {', '.join(doubtful)}; the reasons are under Series selection"
    checks.append(Check(WARN if doubtful else PASS, "Series", found if doubtful else "no doubt about the selection"))
    return checks


def _triage(
    prediction: Prediction,
    studies: pd.DataFrame,
    drawn: set[int],
    task: Task,
    main: str,
    thresholds: Mapping[str, float],
) -> Table:
    """The studies; a probability that is the maximum over the slices is marked where it reaches a slice's threshold."""
    limits = {} if prediction.is_pooled else thresholds
    rows: list[list[Cell | str]] = []
    for row in studies.to_dict("records"):
        number = int(row["number"])
        cells = []
        for name in task.classes:
            share = float(row[f"p_{name}"])
            tone = "bad" if share >= limits.get(name, np.inf) else ""
            cells.append(Cell(NOTHING) if np.isnan(share) else Cell(f"{share:.3f}", tone=tone, share=share))
        rows.append(
            [Cell(str(number), link=_anchor(number) if number in drawn else ""), str(row["num_slices"]), *cells]
        )
    note = (
        f"Probability of a study: {describe_pooling(prediction)}. Sorted by {main}, highest first. Study "
        "numbers are row numbers of `studies.csv`, which contains the IDs."
    )
    if limits:
        shown = ", ".join(f"{name} {limits[name]:.3f}" for name in task.classes if name in limits)
        note += (
            f" Red: at or above the threshold of a slice ({shown}). Each class has a threshold of its own, so another "
            f"class may reach its threshold where {main} does not."
        )
    return Table("Studies by probability", ("study", "slices", *task.classes), rows, note=note, descending=main)


def _error_section(
    prediction: Prediction, judged: Judged, studies: pd.DataFrame, drawn: set[int], task: Task, main: str
) -> Section:
    """The most confident errors, the headline class first, with links to their slices."""
    numbers = dict(zip(studies["study_id"], studies["number"], strict=True))
    rows = prediction.slices.sort_values(["study_id", "slice_index"])
    of_study = {name: own.reset_index(drop=True) for name, own in rows.groupby("study_id")}

    def place(study_id: str, slice_id: str, label: str) -> tuple[int, str, int, int, float]:
        own, number = of_study[study_id], int(numbers[study_id])
        at = own.index[own["slice_id"] == slice_id][0] if slice_id else own[f"p_{label}"].argmax()
        anchor = _anchor(number) if number in drawn else ""
        return number, anchor, int(at), len(own), float(own["position_mm"].iloc[at])

    level = SLICE if SLICE in judged.calibration else STUDY
    known = [name for name in task.classes if studies[f"p_{name}"].notna().any()]
    order = sorted(known, key=lambda name: name != main)
    first, *others = [render_errors(judged.errors, level, name, place) for name in order]
    folded = [Subsection("Errors of the other classes", [*others], is_open=False)] if others else []
    return Section("errors", "Errors", [first, *folded])


def _has_second_stage(prediction: Prediction) -> bool:
    """True unless the model is a run, or a stack that only combines runs."""
    return bool(prediction.model.stack) and prediction.model.kind != "base"


def _how_to_read(prediction: Prediction) -> str:
    second = ""
    if _has_second_stage(prediction):
        second = (
            " The probabilities are those of the second stage, which combines the networks' probabilities of adjacent "
            "slices; the heat map is of the networks."
        )
    return (
        f"{HOW_TO_SCROLL} Slice 0 is at the feet. The heat map (Grad-CAM, averaged over all stage 1 networks) is faded "
        f"by the probability and limited to the head; it is coarse and does not outline a finding.{second}"
    )


def _series_table(prediction: Prediction, studies: pd.DataFrame) -> Table:
    series = find_series(prediction)
    of_studies = [
        series[name].assign(number=number) for name, number in zip(studies["study_id"], studies["number"], strict=True)
    ]
    chosen = pd.concat(of_studies, ignore_index=True) if of_studies else prediction.series_choice.assign(number=0)
    rows: list[list[Cell | str]] = []
    best = set()
    for row in chosen.sort_values("number", kind="stable").to_dict("records"):
        if row["chosen"]:
            best.add(len(rows))
        verdict = "selected" if row["chosen"] else "not selected"
        sizes = [format_number(row[name], 1) for name in ("coverage_mm", "gap_mm")]
        name = str(row["series"]) if pd.notna(row["series"]) else NOTHING
        rows.append([str(row["number"]), name, f"{verdict}: {row['reason']}", str(row["num_slices"]), *sizes])
    columns = ("study", "series", "decision", "slices", "coverage (mm)", "slice gap (mm)")
    return Table("Series of every study", columns, rows, best=frozenset(best), num_text=3)


def _rejected(prediction: Prediction) -> Block:
    counts = prediction.rejected["reason"].value_counts()
    if not len(counts):
        return Prose("None.")
    rows = [[str(reason), f"{count:,}"] for reason, count in counts.items()]
    note = "Each file is listed in `rejected.csv`, its name replaced by a digest."
    return Table("Rejected files by reason", ("reason", "files"), rows, note=note)
