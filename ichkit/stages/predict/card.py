"""The model card of a model, from its manifests and scores; missing fields are marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ichkit
from ichkit.core.errors import ArtifactError
from ichkit.core.roles import title_of
from ichkit.core.tasks import Task
from ichkit.show.table import BLANK, format_interval, format_number
from ichkit.stacking.combine import MEAN_LOGIT
from ichkit.stacking.table import BASE
from ichkit.stages.predict.model import Model, model_of
from ichkit.stages.scores.book import SLICES, STUDIES, Group, Score, ScoreBook, external_studies, open_book
from ichkit.validation.catalog import Source
from ichkit.validation.scores import LOG_LOSS, ROC_AUC, THRESHOLD_OF
from ichkit.validation.thresholds import F1_AIM
from ichkit.work.artifacts import Manifest, digest_of, read_manifest
from ichkit.work.folder import WorkFolder

INTENDED_USE = (
    "Research on detection methods: comparing networks, second stages and statistics on public or own data. Not a "
    "medical device: not for diagnosis, triage or any decision about a patient."
)
_DATA = {
    "rsna": "RSNA 2019 Intracranial Hemorrhage Detection, labelled slices of several institutions",
    "phantom": "synthetic images (phantoms): the scores show that the pipeline works and nothing about patients",
    "folder": f"a folder of scans: {BLANK}",
}
_LIMITS = (
    "Scores are those of the data named here: other scanners, protocols and prevalences were tested only where an "
    "external set is listed.",
    "Labels mark slices or studies, not lesions: a heat map is not a segmentation.",
    "Probabilities are calibrated at the prevalence of the training data and too high where fewer are positive.",
    "Inputs that are not axial head CT are rejected by their header alone; nothing recognizes a head in the image.",
    "Performance by age, sex and ethnicity is unknown unless the report shows it.",
)


@dataclass(frozen=True)
class Network:
    """The networks of one run, one for each fold.

    Attributes:
        num_parameters: of one network; None in manifests of earlier versions.
        initial_weights: where training started.
        num_slices: labelled slices in all folds.
        hours, device: of training and predicting all folds; None and empty if unknown.
    """

    run: str
    backbone: str
    folds: tuple[int, ...]
    num_parameters: int | None
    image_size: int | None
    epochs: int | None
    initial_weights: str
    num_slices: int | None
    hours: float | None
    device: str


@dataclass(frozen=True)
class Measured:
    """One score: what it is of, the metric, the class, and value, interval and counts as text."""

    of: str
    metric: str
    name: str
    value: str
    interval: str
    counts: str


@dataclass(frozen=True)
class Card:
    """The content of a model card.

    Attributes:
        kind: which predictions of the stack are used; "base" without a stack.
        data: training data in words.
        created: date of the newest part, ISO.
        settings_digest: of the settings of all parts.
        second_stage: in words.
        thresholds: class to the slice threshold with the best F1 out of fold; empty without scores.
        scores: empty without current scores.
        limits: one sentence each.
    """

    name: str
    kind: str
    task: Task
    data: str
    created: str
    settings_digest: str
    networks: tuple[Network, ...]
    second_stage: str
    thresholds: dict[str, str]
    scores: tuple[Measured, ...]
    limits: tuple[str, ...] = _LIMITS

    @property
    def version(self) -> str:
        """The software and the settings that made the model."""
        return f"ichkit {ichkit.__version__}, settings {self.settings_digest}"

    @property
    def architecture(self) -> str:
        """Networks and second stage in one sentence."""
        is_one = len(self.networks) == 1
        networks = ", ".join(
            f"{len(network.folds)} x {network.backbone}{'' if is_one else f' of run {network.run}'}"
            + ("" if network.num_parameters is None else f" ({network.num_parameters:,} parameters)")
            for network in self.networks
        )
        return f"One 2D network per fold{'' if is_one else ' and run'}: {networks}; {self.second_stage}."


def collect_card(work: WorkFolder, model: Model, task: Task, book: ScoreBook | None = None) -> Card:
    """The card of a model.

    Args:
        work: the work folder whose scores are quoted, if they are current and of this model.
        book: its scores, if they are open already.

    Raises:
        ArtifactError: a manifest of the model is missing or damaged.
    """
    runs = {name: [read_manifest(folder) for folder in of_run.values()] for name, of_run in model.runs.items()}
    stack = None if model.stack is None else read_manifest(model.stack)
    manifests = [*(one for of_run in runs.values() for one in of_run), *([] if stack is None else [stack])]
    book, source = _find_scores(work, model, task, book)
    return Card(
        name=model.name,
        kind=model.kind,
        task=task,
        data="; ".join(_DATA.get(part, part) for part in model.data.split("+")),
        created=max(manifest.created_utc for manifest in manifests)[:10],
        settings_digest=digest_of([manifest.settings for manifest in manifests]),
        networks=tuple(_describe_run(name, model.folds, of_run) for name, of_run in runs.items()),
        second_stage=_describe_stack(model, stack),
        thresholds={} if book is None or source is None else _thresholds(book, source),
        scores=() if book is None or source is None else tuple(_scores(book, source)),
    )


def _find_scores(
    work: WorkFolder, model: Model, task: Task, book: ScoreBook | None
) -> tuple[ScoreBook | None, Source | None]:
    """The scores of this model; none if they are not current, or of another model of the same name."""
    try:
        book = book or open_book(work, task)
    except ArtifactError:
        return None, None
    for source in book.sources:
        if source.name == model.name and _folders(model_of(work, source)) == _folders(model):
            return book, source
    return None, None


def _folders(model: Model) -> list[Path]:
    """The folders of its networks and its stack, absolute."""
    folds = [folder for of_run in model.runs.values() for folder in of_run.values()]
    return [folder.resolve() for folder in (*folds, *([] if model.stack is None else [model.stack]))]


def _describe_run(name: str, folds: tuple[int, ...], manifests: Sequence[Manifest]) -> Network:
    facts, settings = manifests[0].facts, manifests[0].settings
    train = settings.get("train", {})
    seconds = [manifest.facts.get("seconds") for manifest in manifests]
    slices = [manifest.facts.get("num_slices") for manifest in manifests]
    return Network(
        run=name,
        backbone=str(facts.get("backbone", train.get("backbone", BLANK))),
        folds=folds,
        num_parameters=facts.get("num_parameters"),
        image_size=train.get("image_size"),
        epochs=train.get("epochs"),
        initial_weights=_initial_weights(train),
        num_slices=_total(slices),
        hours=None if (total := _total(seconds)) is None else total / 3600,
        device=", ".join(sorted({str(one.facts["device"]) for one in manifests if "device" in one.facts})),
    )


def _total(values: Sequence[Any]) -> Any:
    """The sum; None if one is unknown."""
    return None if any(value is None for value in values) else sum(values)


def _initial_weights(train: dict[str, Any]) -> str:
    """The initial weights, without the path of a file."""
    known = {"hub": f"{train.get('backbone')} from timm's hub", "none": "random", None: BLANK}
    return known.get(train.get("pretrained"), f"a file: {BLANK}")


def _describe_stack(model: Model, stack: Manifest | None) -> str:
    if stack is None:
        return "the mean of their probabilities"
    if "blend" in stack.settings:
        return f"a blend by hand ({stack.settings['method']}) of {_weights(stack)}"
    combine = stack.settings.get("stack", {}).get("combine", MEAN_LOGIT)
    combined = f"combined into one base ({combine}); " if len(model.runs) > 1 else ""
    kinds = ", ".join(map(str, stack.facts.get("kinds", [model.kind])))
    if kinds == BASE:
        return f"{combined}no second stage"
    second = "second stage on the descriptors of adjacent slices, fitted fold by fold"
    return f"{combined}{second} ({kinds}); {model.kind} is used"


def _weights(blend: Manifest) -> str:
    """Members with their weights, of a blend by hand the mean over the folds."""
    of_folds = list(blend.facts["weights"].values())
    means = {name: sum(own[name] for own in of_folds) / len(of_folds) for name in of_folds[0]}
    return ", ".join(f"{name} {weight:.3f}" for name, weight in means.items())


def _thresholds(book: ScoreBook, source: Source) -> dict[str, str]:
    found = {name: book.find(source, THRESHOLD_OF[F1_AIM], name).value for name in source.scope.classes}
    return {name: format_number(value, 3) for name, value in found.items() if value == value}


def _scores(book: ScoreBook, source: Source) -> list[Measured]:
    """Loss by slice, AUC by slice and by study, and AUC of every external set."""
    names = source.scope.classes
    outside = {title_of(name): external_studies(name) for name in book.external_sets}
    asked: list[tuple[str, str, str, Group, int]] = [
        ("slices, out of fold", "log loss", LOG_LOSS, SLICES, 4),
        ("slices, out of fold", "AUC", ROC_AUC, SLICES, 3),
        ("studies, out of fold", "AUC", ROC_AUC, STUDIES, 3),
    ]
    asked += [(f"studies of {title}", "AUC", ROC_AUC, group, 3) for title, group in outside.items()]
    return [
        _measure(of, metric, name, book.find(source, key, name, group), digits)
        for of, metric, key, group, digits in asked
        for name in names
    ]


def _measure(of: str, metric: str, name: str, score: Score, digits: int) -> Measured:
    value, interval = format_number(score.value, digits), format_interval(score.low, score.high, digits)
    return Measured(of, metric, name, value, interval, f"{score.n_positive:,} of {score.n:,} positive")
