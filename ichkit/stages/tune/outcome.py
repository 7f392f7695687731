"""The outcome of a search: its tables, for the terminal and as CSV, and the settings that were chosen."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ichkit.core.progress import format_seconds
from ichkit.show.table import NOTHING, Cell, Table, format_interval, format_number
from ichkit.stages.tune.choose import Choice
from ichkit.stages.tune.page import CURVES_PREFIX, render_page
from ichkit.stages.tune.plan import TunePlan, describe_choice
from ichkit.stages.tune.trials import COMPLETE, Trial, read_history
from ichkit.validation.objectives import VALIDATION
from ichkit.work.artifacts import ArtifactWriter, read_manifest

TABLE_NAME, VALUES_NAME, EPOCHS_NAME, BEST_NAME, PAGE_NAME = (
    "trials.csv",
    "values.csv",
    "epochs.csv",
    "best.yaml",
    "tune.html",
)
_DIGITS = 5


@dataclass(frozen=True)
class Outcome:
    """A finished search.

    Attributes:
        trials: all of them, with their values.
    """

    plan: TunePlan
    trials: tuple[Trial, ...]
    choice: Choice

    def chosen_for(self, trial: Trial) -> list[int]:
        """The folds whose settings are those of a trial."""
        return [fold for fold, number in self.choice.of_folds.items() if number == trial.number]


def write_outcome(writer: ArtifactWriter, outcome: Outcome) -> None:
    """Writes the tables, the chosen settings and the page into the folder of the search."""
    epochs = make_epochs(outcome)
    writer.write_table(TABLE_NAME, make_trials(outcome))
    writer.write_table(VALUES_NAME, make_values(outcome))
    if epochs is not None:
        writer.write_table(EPOCHS_NAME, epochs)
    writer.write_bytes(BEST_NAME, _write_best(outcome))
    page = render_page(
        outcome.plan,
        outcome.trials,
        outcome.choice,
        render(outcome, has_times=False),
        describe_outcome(outcome),
        epochs,
    )
    writer.write_bytes(PAGE_NAME, page.encode())


def facts_of(outcome: Outcome) -> dict[str, Any]:
    """What the manifest of the search says."""
    plan, choice, best = outcome.plan, outcome.choice, outcome.trials[outcome.choice.best]
    facts: dict[str, Any] = {
        "data": str(plan.prepared.manifest.facts["data"]),
        "task": plan.prepared.task.name,
        "num_trials": len(outcome.trials),
        "best": best.run,
        "value": best.value,
        "is_nested": plan.is_nested,
        "chosen": {str(fold): outcome.trials[number].run for fold, number in choice.of_folds.items()},
    }
    if choice.selection is not None:
        facts["optimism"] = choice.selection.optimism
    return facts


def make_trials(outcome: Outcome) -> pd.DataFrame:
    """One row per trial: its settings, its value with the interval out of fold, and what it was chosen for."""
    rows = []
    for trial in outcome.trials:
        interval = outcome.choice.intervals.get(trial.number)
        rows.append(
            {
                "trial": trial.number,
                "run": trial.run,
                "state": trial.state,
                **trial.params,
                "value": trial.value,
                "low": np.nan if interval is None else interval.low,
                "high": np.nan if interval is None else interval.high,
                "is_best": trial.number == outcome.choice.best,
                "chosen_for": "+".join(map(str, outcome.chosen_for(trial))),
                "reason": trial.reason,
            }
        )
    return pd.DataFrame(rows)


def make_values(outcome: Outcome) -> pd.DataFrame:
    """One row per trial and fold: the objective on it, and whether the trial was chosen for it."""
    rows = [
        {"trial": trial.number, "fold": fold, "value": value, "is_chosen": fold in outcome.chosen_for(trial)}
        for trial in outcome.trials
        for fold, value in trial.values.items()
    ]
    return pd.DataFrame(rows, columns=["trial", "fold", "value", "is_chosen"])


def make_epochs(outcome: Outcome) -> pd.DataFrame | None:
    """The validation scores after every epoch of every trial and fold; None without validation patients."""
    plan = outcome.plan
    if plan.objective.of != VALIDATION:
        return None
    tables = []
    for trial in outcome.trials:
        for fold in trial.folds:
            folder = plan.work.fold(trial.run, fold)
            history = read_history(folder, read_manifest(folder))
            kept = ["phase", "epoch", *(name for name in map(str, history) if name.startswith(CURVES_PREFIX))]
            tables.append(history[kept].assign(trial=trial.number, fold=fold)[["trial", "fold", *kept]])
    return pd.concat(tables, ignore_index=True)


def render(outcome: Outcome, *, has_times: bool = True) -> Table:
    """The trials, best first.

    Args:
        has_times: with the time that the run of each took; without it the same search gives the same table.
    """
    plan, choice = outcome.plan, outcome.choice
    names = [dimension.name for dimension in plan.space.dimensions]
    shown = sorted(outcome.trials, key=lambda trial: _rank(outcome, trial))
    rows: list[list[Cell | str]] = []
    for trial in shown:
        interval = choice.intervals.get(trial.number)
        small = "" if interval is None else format_interval(interval.low, interval.high, _DIGITS)
        if interval is None and len(trial.values) > 1:
            low, high = min(trial.values.values()), max(trial.values.values())
            small = f"folds {format_interval(low, high, _DIGITS - 1)}"
        value = Cell(format_number(trial.value, _DIGITS), small)
        state = "" if trial.state == COMPLETE else trial.state
        rows.append(
            [
                Cell(trial.run, state, tone="warn" if state else ""),
                *(_show(trial.params[name]) for name in names),
                value,
                "+".join(map(str, outcome.chosen_for(trial))) or NOTHING if plan.is_nested else _mark(outcome, trial),
                *([format_seconds(trial.seconds)] if has_times else []),
            ]
        )
    chosen = "chosen\nfor folds" if plan.is_nested else "chosen"
    return Table(
        f"Search {plan.options.name}: {plan.objective.name} of each trial",
        ("run", *names, plan.objective.name, chosen, *(["time"] if has_times else [])),
        rows,
        note=describe_outcome(outcome),
        best=frozenset(number for number, trial in enumerate(shown) if trial.number == choice.best),
        num_text=1 + len(names),
    )


def describe_outcome(outcome: Outcome) -> str:
    """What was chosen, and what its score is worth."""
    plan, choice = outcome.plan, outcome.choice
    best, name = outcome.trials[choice.best], plan.options.name
    notes = [f"{plan.objective.description} The best of {len(outcome.trials)} trials: {best.run}."]
    if plan.is_nested:
        notes.append(f"The search {describe_choice(is_nested=True, name=name)}.")
    elif choice.selection is not None:
        corrected = choice.selection.value + choice.selection.optimism
        notes.append(
            f"The score of {best.run} was chosen and is optimistic: optimism of the choice "
            f"{choice.selection.optimism:+z.5f}, corrected loss {corrected:.5f} (nested resampling of patients; chosen "
            f"in {choice.selection.shares.max():.0%} of the samples). Trials that were removed are not covered."
        )
    else:
        notes.append(
            "One trial was chosen for all folds, by networks that were trained on the held-out patients of the others: "
            f"the out-of-fold score of {best.run} is slightly optimistic. Use --sampler grid or random and --pruner "
            "none, or one fold, for a choice within each fold."
        )
    return " ".join(notes)


def _rank(outcome: Outcome, trial: Trial) -> tuple[bool, float, int]:
    value = outcome.plan.objective.turn(trial.value)
    return trial.state != COMPLETE, value if np.isfinite(value) else np.inf, trial.number


def _mark(outcome: Outcome, trial: Trial) -> str:
    return "yes" if trial.number == outcome.choice.best else NOTHING


def _show(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_best(outcome: Outcome) -> bytes:
    """The training settings of the best trial, as a config."""
    best = outcome.trials[outcome.choice.best]
    config = outcome.plan.config_of(best.params)
    tree = {"task": config.task, "seed": config.seed, "channels": config.channels.settings()}
    head = f"# Training settings of {best.run}, the best trial by {outcome.plan.objective.name}.\n"
    return (head + yaml.safe_dump({**tree, "train": config.train.model_dump(mode="json")}, sort_keys=False)).encode()
