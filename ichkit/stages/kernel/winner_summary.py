"""The model summary and README of a winner's archive: every figure is stored in the work folder, or said as unknown."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.roles import is_transductive
from ichkit.show.markdown import to_markdown
from ichkit.show.table import BLANK, Table, format_number
from ichkit.stacking.combine import COMBINERS
from ichkit.stages.predict.card import Card
from ichkit.stages.predict.model import RESEARCH_NOTE
from ichkit.stages.scores.book import ScoreBook
from ichkit.stages.scores.costs import Cost
from ichkit.validation.catalog import Source

UNKNOWN = "unknown"
GUIDELINES = "https://www.kaggle.com/WinningModelDocumentationGuidelines"
_SHOWN_FEATURES = 20
_COMPETITION = "RSNA Intracranial Hemorrhage Detection (2019)"


@dataclass(frozen=True)
class Winner:
    """What a work folder knows of a model.

    Attributes:
        card: of the model.
        source: the model on the leaderboard.
        book: the scores; None if there are none of the present tables.
        costs: name to cost of every source.
        note: of its submission; None if there is none of the present tables.
        combine: the row of `COMBINERS` that makes one base of several runs.
        weights: member to its mean weight in the blend; empty without one.
        features: importance of LightGBM's features, the largest first; empty without it.
        versions: packages that trained it.
        devices, threads: of the training.
    """

    card: Card
    source: Source
    book: ScoreBook | None
    costs: Mapping[str, Cost]
    note: Mapping[str, Any] | None
    combine: str
    weights: Mapping[str, float]
    features: pd.DataFrame
    versions: Mapping[str, str]
    devices: tuple[str, ...]
    threads: tuple[int, ...]

    @property
    def simple(self) -> Source | None:
        """The best single run of the same folds; None if the model is a run itself, or without scores."""
        if self.book is None or self.source.is_run:
            return None
        runs = [one for one in self.book.sources if one.is_run and one.folds == self.source.folds]
        return next((one for one in runs if one.scope.is_whole), None)

    def score(self, name: str) -> str:
        """A Kaggle score of the submission."""
        value = None if self.note is None else self.note[name]
        return UNKNOWN if value is None else f"{value:.5f}"


def read_weights(blend: bytes) -> dict[str, float]:
    """The mean weight of each member over fold models and classes, from `blend.json`."""
    stored = json.loads(blend)
    weights = np.array([chain["weights"] for chain in stored["chains"]])  # (fold models, members, C)
    return dict(zip(stored["members"], weights.mean(axis=(0, 2)).tolist(), strict=True))


def write_summary(winner: Winner) -> str:
    """Section A of Kaggle's guidelines, in their order; answers that only people know are marked.

    Source: see GUIDELINES (read in 2026).
    """
    parts = [
        f"# Model summary: {winner.card.name}",
        f"After [Kaggle's guidelines]({GUIDELINES}), which ask for Word or PDF: convert this file when it is complete, "
        f"e.g. with pandoc. Written by `ichkit winner` from stored results. {RESEARCH_NOTE} "
        f"Fields for people: {BLANK}.",
        *_team(winner),
        *_summary(winner),
        *_features(winner),
        *_training(winner),
        *_findings(winner),
        *_times(winner),
        *_references(winner),
    ]
    return "\n\n".join(parts) + "\n"


def write_readme(winner: Winner, configs: Sequence[str]) -> str:
    """Section B2 of the guidelines.

    Args:
        configs: the files in config/.
    """
    trained = ", ".join(f"{name} {version}" for name, version in winner.versions.items())
    listed = "\n".join(f"- `config/{name}`: all settings of one run, for `-c`" for name in configs)
    return f"""# {winner.card.name}

{winner.card.architecture} {RESEARCH_NOTE} See MODEL_SUMMARY.md for the method and the scores.

## Hardware of the training

- Device by the work folder: {_join(winner.devices)}; CPU threads: {_join(winner.threads)}
- Processor, number of cores, memory, GPU model and number of GPUs: {BLANK}

## Platform and software

- Operating system of the training: {BLANK}. These files were written on {platform.system()} {platform.release()}.
- Recorded by the training: {trained or UNKNOWN}
- `pip install -r requirements.txt && pip install --no-deps code/*.whl`

## How to train, how to predict

See entry_points.md. Put the competition data where SETTINGS.json says; it is the only place with paths.

## Configuration files

{listed}

They stay where they are; the scripts name them. A path of another model's weights is reduced to its last name.

## Side effects and assumptions

- The scripts write WORK_DIR and SUBMISSION_DIR; input data are never changed. Finished work is skipped, unfinished work
  is resumed.
- `prepare_data.py` deals the folds by patient from the seed in the config; other data give other folds.
- Results are the same bytes on the same machine, versions and number of threads on a CPU; on a GPU they may differ
  slightly.
- Initial weights from a hub are downloaded by `train.py` if they are not cached; `predict.py` needs no network.
- MODEL_DIR holds weights and no data of patients; it contains salted digests of the patients it has learnt from.
"""


def _team(winner: Winner) -> list[str]:
    is_rsna = winner.source.data == "rsna"
    return [
        "## A1. Background on you/your team",
        "\n".join(
            [
                f"- Competition name: {_COMPETITION if is_rsna else BLANK}",
                f"- Team name: {BLANK}",
                f"- Private leaderboard score: {winner.score('private_score')}",
                f"- Public leaderboard score: {winner.score('public_score')}",
                f"- Private leaderboard place: {BLANK}",
                f"- Names, locations, e-mail addresses: {BLANK}",
            ]
        ),
        "## A2. Background on you/your team",
        f"Academic and professional background, prior experience, why you entered, time spent, who did what: {BLANK}.",
    ]


def _summary(winner: Winner) -> list[str]:
    cost, said = winner.costs[winner.source.name], [winner.card.architecture]
    said.append(f"Training data: {winner.card.data}.")
    said.append(f"Out-of-fold weighted log loss: {_loss(winner, winner.source)}.")
    said.append(f"Training took {_hours(cost)} in all, one fold after another; predicting a study takes {_pace(cost)}.")
    said.append("Tools: PyTorch, timm, LightGBM and ichkit.")
    lines = ["## A3. Summary", " ".join(said)]
    if winner.book is not None and (choice := winner.book.choice(winner.source)) is not None:
        lines.append(
            f"It was the best of {choice.num_sources} sources on its folds; the optimism of that choice is "
            f"{choice.optimism:.5f}, which gives a loss of {choice.corrected:.5f} for new patients."
        )
    if winner.card.scores:
        rows = [[one.of, one.metric, one.name, one.value, one.interval, one.counts] for one in winner.card.scores]
        columns = ("of", "metric", "class", "value", "95 % interval", "counts")
        lines.append(to_markdown(Table("Scores", columns, rows, num_text=3)))
    else:
        lines.append(f"Scores: {UNKNOWN}; `ichkit evaluate` computes them.")
    return lines


def _features(winner: Winner) -> list[str]:
    lines = ["## A4. Features selection / engineering"]
    if len(winner.features):
        top = winner.features.head(_SHOWN_FEATURES)
        shares = zip(top["feature"].astype(str), top["mean_gain"].to_numpy(np.float64), strict=True)
        rows = [[name, f"{100 * share:.1f}"] for name, share in shares]
        lines.append("The networks learn features from the images. Of the second stage, by LightGBM:")
        lines.append(to_markdown(Table("Share of the gain in training loss", ("feature", "%"), rows)))
    else:
        lines.append("The networks learn features from the images; there is no table of hand-made features.")
    external = ["No external images were used for training."]
    if is_transductive(winner.source.data):
        external = ["Networks were also trained on their predictions of unlabelled scans (pseudo-labels)."]
    starts = "; ".join(f"{network.run}: {network.initial_weights}" for network in winner.card.networks)
    lines.append(f"External data: {external[0]} Initial weights: {starts}. External sets are only scored.")
    return lines


def _training(winner: Winner) -> list[str]:
    rows = [
        [
            network.run,
            network.backbone,
            str(len(network.folds)),
            _known(network.num_parameters),
            _known(network.image_size),
            _known(network.epochs),
            _known(network.num_slices),
            UNKNOWN if network.hours is None else f"{network.hours:.2f}",
        ]
        for network in winner.card.networks
    ]
    columns = ("run", "network", "folds", "parameters", "px", "epochs", "slices", "hours")
    lines = [
        "## A5. Training method(s)",
        f"{winner.card.architecture} The networks of each fold are trained without its patients; the second stage is "
        "trained on predictions for held-out patients only.",
        to_markdown(Table("Networks", columns, rows, num_text=2)),
    ]
    runs = [network.run for network in winner.card.networks]
    if len(runs) > 1:
        rule = COMBINERS[winner.combine].description if winner.combine in COMBINERS else UNKNOWN
        lines.append(f"The runs {_join(runs)} are combined into one base ({winner.combine}): {rule}")
    if winner.weights:
        weights = ", ".join(f"{name} {weight:.3f}" for name, weight in winner.weights.items())
        lines.append(f"Ensemble: the mean weight of each member over fold models and classes is {weights}.")
    else:
        of_runs = f" of {_join(runs)}" if len(runs) > 1 else ""
        lines.append(f"Ensemble: the mean over the networks{of_runs} of all folds; nothing else is blended.")
    return lines


def _findings(winner: Winner) -> list[str]:
    lines = [
        "## A6. Interesting findings",
        f"The most important trick, what set you apart, relationships in the data: {BLANK}.",
        "## A7. Simple features and methods",
    ]
    simple = winner.simple
    if simple is None:
        return [*lines, f"A simpler model that was scored on the same folds: {UNKNOWN}."]
    return [
        *lines,
        f"The best single run, {simple.name}, without second stage and blend: weighted log loss "
        f"{_loss(winner, simple)}, against {_loss(winner, winner.source)} of the whole model.",
    ]


def _times(winner: Winner) -> list[str]:
    rows = [["whole model", winner.source.name, *_costs(winner.costs[winner.source.name])]]
    if winner.simple is not None:
        rows.append(["simplified model (A7)", winner.simple.name, *_costs(winner.costs[winner.simple.name])])
    note = (
        "Hours of all folds one after another; prediction by all networks, measured while the tables were made, "
        "without reading DICOM files."
    )
    columns = ("model", "source", "to train", "to predict a study", "MB")
    return ["## A8. Model execution time", to_markdown(Table("Times", columns, rows, note=note, num_text=2))]


def _references(winner: Winner) -> list[str]:
    names = sorted({network.backbone for network in winner.card.networks})
    return [
        "## A9. References",
        f"Data, papers and code that you used ({', '.join(names)}; LightGBM; the competition's data): {BLANK}. "
        "`ichkit report` writes the method in sentences with their sources.",
    ]


def _costs(cost: Cost) -> list[str]:
    return [_hours(cost), _pace(cost), format_number(cost.num_bytes / 1e6, 1)]


def _hours(cost: Cost) -> str:
    return UNKNOWN if cost.hours is None else f"{cost.hours:.3g} hours"


def _pace(cost: Cost) -> str:
    return UNKNOWN if cost.seconds_per_study is None else f"{1000 * cost.seconds_per_study:.0f} ms"


def _loss(winner: Winner, source: Source) -> str:
    score = None if winner.book is None else winner.book.loss(source)
    if score is None or score.value != score.value:
        return UNKNOWN
    return f"{score.value:.5f} [{score.low:.5f}, {score.high:.5f}] on {score.n:,} slices"


def _known(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _join(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or UNKNOWN


def read_features(path: Path) -> pd.DataFrame:
    """Columns feature and mean_gain of the importance of LightGBM; no rows if there is none, or no tree has a split."""
    if not path.is_file():
        return pd.DataFrame(columns=["feature", "mean_gain"])
    table = pd.read_csv(path)[["feature", "mean"]].rename(columns={"mean": "mean_gain"})
    return table[table["mean_gain"] > 0].reset_index(drop=True)
