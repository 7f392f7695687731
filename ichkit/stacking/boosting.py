"""LightGBM on the descriptors of neighbouring slices: one regularised booster per class, on top of the calibrated base.

LightGBM is imported only for fitting; `stacking.trees` evaluates its models.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ichkit.core.errors import ArtifactError, ConfigError, nearest
from ichkit.core.seeding import derive_seed
from ichkit.core.stack_config import LightgbmConfig, StackConfig
from ichkit.core.tasks import Task, find_task
from ichkit.stacking.features import feature_names, make_features
from ichkit.stacking.inner import Training
from ichkit.stacking.rows import Rows, log_losses_of_logits
from ichkit.stacking.strengths import STRENGTHS, Strength
from ichkit.stacking.trees import read_trees
from ichkit.work.artifacts import encode_json

if TYPE_CHECKING:
    import lightgbm

BASE = "base"
_NOTE = "lightgbm.json"
_CHECK_EVERY = 5
_MAX_WINDOW = 4096
# With more rows, trees use the rows with large gradients and a sample of the others (GOSS): at 600,000 rows and 200
# columns that took a quarter less time at the same loss.
_MANY_ROWS = 100_000


@dataclass(frozen=True)
class BoostedModel:
    """Fitted boosters.

    Attributes:
        task: what they predict.
        names: the columns of the features, in order.
        window: number of slices that the features span.
        groups: names of the feature groups.
        texts: per class, the booster as LightGBM text; empty if the calibrated base was chosen.
        strengths: per class, the chosen preset; `base` without trees.
        shares: (C,) float64 in [0, 1], the share of the trees of each class.
    """

    task: Task
    names: tuple[str, ...]
    window: int
    groups: tuple[str, ...]
    texts: tuple[str, ...]
    strengths: tuple[str, ...]
    shares: np.ndarray

    def predict(self, rows: Rows, base_logits: np.ndarray) -> np.ndarray:
        """(N, C) float64 logits: the calibrated base plus each class's share of its trees."""
        logits = np.array(base_logits, np.float64)
        if not any(self.texts) or not len(rows):
            return logits
        features = make_features(rows, self.task, self.window, self.groups)
        for column, text in enumerate(self.texts):
            if text:
                trees = read_trees(text, f"booster of class {column}")
                logits[:, column] += self.shares[column] * trees.predict(features)
        return logits

    def importance(self) -> np.ndarray:
        """(F, C) float64: the share of a class's gain in loss by splits on each column; 0 without trees."""
        gains = np.zeros((len(self.names), len(self.texts)))
        for column, text in enumerate(self.texts):
            if text:
                gains[:, column] = read_trees(text, f"booster of class {column}").gains(len(self.names))
        totals = gains.sum(axis=0)
        shares: np.ndarray = np.divide(gains, totals, out=np.zeros_like(gains), where=totals > 0)
        return shares

    def encode(self) -> dict[str, bytes]:
        """File names to bytes, as `load_boosted` reads them."""
        files = {f"class{column}.txt": text.encode() for column, text in enumerate(self.texts) if text}
        note = {
            "task": self.task.name,
            "window": self.window,
            "groups": self.groups,
            "strengths": self.strengths,
            "shares": self.shares.tolist(),
            "features": self.names,
        }
        return files | {_NOTE: encode_json(note)}


def load_boosted(folder: Path) -> BoostedModel:
    """The boosters that `BoostedModel.encode` wrote.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    try:
        note = json.loads((folder / _NOTE).read_text())
        if not 1 <= note["window"] <= _MAX_WINDOW:
            raise ValueError(f"window must be 1 to {_MAX_WINDOW}")
        texts = tuple(
            "" if strength == BASE else (folder / f"class{column}.txt").read_text()
            for column, strength in enumerate(note["strengths"])
        )
        return BoostedModel(
            task=find_task(note["task"]),
            names=tuple(note["features"]),
            window=int(note["window"]),
            groups=tuple(note["groups"]),
            texts=texts,
            strengths=tuple(note["strengths"]),
            shares=np.array(note["shares"], np.float64),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder}: no readable boosters ({error}). Run `ichkit stack` again.") from error


def fit_boosted(training: Training, task: Task, config: StackConfig, seed: int) -> tuple[BoostedModel, np.ndarray]:
    """Boosters for every class, and their logits for the training part's own inner patients.

    Preset and number of rounds are those with the lowest loss on inner patients; then the trees of each class are
    shrunk by the significance of their gain over the calibrated base on these patients.

    Returns:
        The model, and (n, C) float64 logits of the inner models; NaN for rows that are not used for choices.

    Raises:
        ConfigError: an unknown preset.
    """
    settings = config.lightgbm
    candidates = _candidates(settings.strengths, len(training.rows))
    names = feature_names(task, training.rows.num_runs, settings.window, settings.features)
    features = make_features(training.rows, task, settings.window, settings.features)
    whole = _dataset(features, names, settings)
    held = [features[split.held] for split in training.splits()]
    del features  # binned by now; of 600,000 rows half a gigabyte
    corrections = np.zeros(training.labels.shape)
    found: list[tuple[str, int]] = []
    search = _Search(training, whole, held, settings)
    for column, name in enumerate(task.classes):
        tried = candidates if training.is_supported[column] else []
        strength, num_rounds, corrections[:, column] = search.choose(column, tried, _class_seed(seed, name))
        found.append((strength, num_rounds))
    shares = training.choose_shares(corrections)
    base = training.base_logits()
    texts = [""] * task.num_classes
    for column, name in enumerate(task.classes):
        if shares[column] > 0:
            rows = _known(training.labels[:, column], np.arange(len(base)))
            dataset = whole if len(rows) == len(base) else whole.subset(rows.tolist()).construct()
            dataset.set_label(training.labels[rows, column]).set_init_score(base[rows, column])
            strength, num_rounds = found[column]
            booster = _booster(dataset, STRENGTHS[strength], settings, _class_seed(seed, name))
            _boost(booster, num_rounds)
            texts[column] = booster.model_to_string(importance_type="gain")
    model = BoostedModel(
        task=task,
        names=tuple(names),
        window=settings.window,
        groups=settings.features,
        texts=tuple(texts),
        strengths=tuple(found[column][0] if text else BASE for column, text in enumerate(texts)),
        shares=shares,
    )
    return model, training.inner_base_logits() + shares * corrections


@dataclass(frozen=True)
class _Target:
    """Number of an inner split, and its data sets with the labels of one class.

    Attributes:
        num_held: rows of `held`.
    """

    split: int
    num_held: int
    fitting: "lightgbm.Dataset"
    held: "lightgbm.Dataset"


def _known(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The ascending rows whose label is known."""
    known: np.ndarray = rows[~np.isnan(labels[rows])]
    return known


class _Search:
    """The search for preset and number of rounds, one class after another, on the inner patients only.

    Args:
        whole: the binned features of all rows; inner parts share its bins, which do not depend on labels.
        held: per split, the features of its held rows.
    """

    def __init__(
        self, training: Training, whole: "lightgbm.Dataset", held: Sequence[np.ndarray], settings: LightgbmConfig
    ) -> None:
        self.training, self.settings, self.held = training, settings, held
        self.rows = training.chosen_rows()
        self.mean, self.inner = training.rows.combined_logits(), training.inner_base_logits()
        self.splits = list(training.splits())
        self.whole = whole
        self.sets = [[self._subset(rows) for rows in (split.fitting, split.held)] for split in self.splits]
        self.targets: list[_Target] = []

    def choose(self, column: int, candidates: Sequence[str], seed: int) -> tuple[str, int, np.ndarray]:
        """For one class: the preset with the lowest loss, its number of rounds, and the (n,) inner corrections."""
        rows = _known(self.training.labels[:, column], self.rows)
        base, labels = self.inner[rows, column], self.training.labels[rows, column]
        self.targets = self._find_targets(column)
        best, best_loss = (
            (BASE, 0, np.zeros(len(self.training.labels))),
            float(log_losses_of_logits(base, labels).mean()) if len(rows) else np.inf,
        )
        before = np.inf
        for name in candidates if self.targets else ():
            num_rounds, corrections = self._boost(STRENGTHS[name], seed)
            loss = float(log_losses_of_logits(base + corrections[rows], labels).mean())
            if loss < best_loss:
                best, best_loss = (name, num_rounds, corrections), loss
            # Weaker presets are tried as long as the loss decreases: each costs a fit per split.
            if loss >= before:
                break
            before = loss
        return best

    def _subset(self, rows: np.ndarray) -> "lightgbm.Dataset":
        return self.whole.subset(rows.tolist()).construct()

    def _find_targets(self, column: int) -> "list[_Target]":
        """The data sets of each split with the labels of one class, and the base calibrated without held-out patients.

        Rows whose label is unknown are left out, and splits without known labels on either side.
        """
        targets = []
        for number, (split, sets) in enumerate(zip(self.splits, self.sets, strict=True)):
            start, made = split.calibration.apply(self.mean)[:, column], []
            known = [_known(self.training.labels[:, column], rows) for rows in (split.fitting, split.held)]
            if not all(map(len, known)):
                continue
            for dataset, rows, whole in zip(sets, known, (split.fitting, split.held), strict=True):
                own = dataset if len(rows) == len(whole) else self._subset(rows)
                made.append(own.set_label(self.training.labels[rows, column]).set_init_score(start[rows]))
            targets.append(_Target(number, len(known[1]), *made))
        return targets

    def _boost(self, strength: Strength, seed: int) -> tuple[int, np.ndarray]:
        """Boosts all splits in parallel until their pooled loss on held-out patients no longer decreases.

        Returns:
            The number of rounds with the lowest pooled loss, and the (n,) sums of the trees for held-out patients.
        """
        boosters = [_booster(target.fitting, strength, self.settings, seed) for target in self.targets]
        for booster, target in zip(boosters, self.targets, strict=True):
            booster.add_valid(target.held, "held")
        sizes = np.array([target.num_held for target in self.targets])
        step = min(_CHECK_EVERY, self.settings.max_rounds)
        best_loss, best_rounds, num_trees = np.inf, 0, [0] * len(boosters)
        for num_rounds in range(step, self.settings.max_rounds + 1, step):
            grown = [_boost(booster, step) for booster in boosters]
            loss = float(sizes @ [booster.eval_valid()[0][2] for booster in boosters] / sizes.sum())
            if loss < best_loss:
                best_loss, best_rounds = loss, num_rounds
                num_trees = [booster.num_trees() for booster in boosters]
            if num_rounds - best_rounds >= self.settings.patience or not any(grown):
                break
        corrections = np.zeros(len(self.training.labels))
        for booster, target, count in zip(boosters, self.targets, num_trees, strict=True):
            trees, held = read_trees(booster.model_to_string(), "booster"), self.held[target.split]
            corrections[self.splits[target.split].held] = trees.predict(held, count)
        return best_rounds, corrections


def _class_seed(seed: int, name: str) -> int:
    return derive_seed(seed, "lightgbm", name) % 2**31


def _candidates(names: Sequence[str], num_rows: int) -> list[str]:
    """The configured presets without the base that suit this many rows, from the strongest to the weakest."""
    for name in names:
        if name != BASE and name not in STRENGTHS:
            raise ConfigError(
                f'config: unknown preset "{name}" in stack.lightgbm.strengths. {nearest(name, [BASE, *STRENGTHS])}'
            )
    asked = [name for name in STRENGTHS if name in names]
    fitting = [name for name in asked if (STRENGTHS[name].most_rows or num_rows) >= num_rows]
    return fitting or asked


def _dataset(features: np.ndarray, names: Sequence[str], settings: LightgbmConfig) -> "lightgbm.Dataset":
    """Binned features; labels and starting logits are set later, class by class."""
    import lightgbm

    dataset = lightgbm.Dataset(
        features, label=np.zeros(len(features)), feature_name=list(names), params=_shared_settings(settings)
    )
    return dataset.construct()


def _booster(
    dataset: "lightgbm.Dataset", strength: Strength, settings: LightgbmConfig, seed: int
) -> "lightgbm.Booster":
    import lightgbm

    own: dict[str, str | float] = {**_shared_settings(settings), **strength.settings}
    own |= {"learning_rate": settings.learning_rate, "seed": seed}
    if dataset.num_data() > _MANY_ROWS:
        own["data_sample_strategy"] = "goss"
    return lightgbm.Booster(own, dataset)


def _boost(booster: "lightgbm.Booster", num_rounds: int) -> bool:
    """Adds a tree per round, unless no split is possible; False if no round added one."""
    return sum(not booster.update() for _ in range(num_rounds)) > 0


def _shared_settings(settings: LightgbmConfig) -> dict[str, str | int | bool]:
    """The parameters of every data set and booster; they give the same bytes for any number of threads."""
    return {
        "objective": "binary",
        "metric": "binary_logloss",
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": settings.num_threads or 1,
        "max_bin": 63,
        # Rows for choosing the 63 bins; LightGBM copies them as float64, and its default of 200,000 took 0.3 GB.
        "bin_construct_sample_cnt": 50_000,
        "feature_pre_filter": False,
        "verbosity": -1,
    }
