"""The plan of `tune`: the search, the trials that are left, and the time they need."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ichkit.core.config import Config, change_config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.progress import format_count
from ichkit.core.rows import find_row
from ichkit.core.tasks import find_task
from ichkit.engine.ranks import Ranks
from ichkit.imaging.store import Prepared
from ichkit.show.plan import NOT_KNOWN, Forecast, Plan
from ichkit.stages.train import run as train
from ichkit.stages.train.fold_inputs import find_scope
from ichkit.stages.tune.samplers import GRID, PRUNERS, SAMPLERS, Pruner, Sampler, import_optuna, suggest
from ichkit.stages.tune.space import Params, Space, read_space
from ichkit.stages.tune.trials import Measure, Trial, read_trials
from ichkit.validation.objectives import OBJECTIVES, VALIDATION, Objective
from ichkit.work.artifacts import digest_table, has_artifact, list_differences, read_manifest
from ichkit.work.folder import WorkFolder, check_name
from ichkit.work.locks import Look, look_at

CHOSEN_BY = "chosen_by"
"""Fact of a fold that a search has chosen."""
_SHOWN_TRIALS = 24
_SAME_COST = frozenset(
    {"epochs", "phases", "learning_rate", "weight_decay", "weight_decay_on", "layer_decay", "rate_factors", "schedule"}
    | {"warmup_epochs", "clip_norm", "drop_rate", "ema_decay", "label_prior_bias", "cutmix", "mixup", "loss"}
)
"""Settings of training that do not change the time of a step."""


@dataclass(frozen=True)
class TuneOptions:
    """Options of `tune`.

    Attributes:
        tries: dimensions as `section.key=value,value` or `section.key=low..high[:log|:step]`.
        space: YAML file of further dimensions.
        name: of the search: `work/tune/NAME`, the runs `NAME-0`, `NAME-1`, ... of its trials, and the run `NAME` of the
            settings that were chosen for each fold.
        objective: a row of `OBJECTIVES`.
        sampler: a row of `SAMPLERS`.
        pruner: a row of `PRUNERS`.
        trials: number of trials; None for every combination of a grid.
        folds: folds to train; None for every fold of `folds.csv`.
        fresh: discard the search with the runs of its trials, and start over.
    """

    tries: Sequence[str] = ()
    space: Path | None = None
    name: str = "tune"
    objective: str = "loss"
    sampler: str = GRID
    pruner: str = "none"
    trials: int | None = None
    folds: Sequence[int] | None = None
    fresh: bool = False


@dataclass(frozen=True)
class TunePlan(Plan):
    """What `tune` found.

    Attributes:
        folder: of the search.
        num_trials: trials when it is finished.
        trials: earlier ones, with their values.
        settings: everything that the search depends on.
        data: digest of the slices and labels that runs are trained and scored on.
        is_stale: the earlier trials were trained or scored on other data.
        is_current: the search is finished, and its tables are of the present runs.
    """

    config: Config
    work: WorkFolder
    options: TuneOptions
    prepared: Prepared
    folder: Path
    space: Space
    objective: Objective
    sampler: Sampler
    pruner: Pruner
    folds: tuple[int, ...]
    num_trials: int
    trials: tuple[Trial, ...]
    settings: dict[str, Any]
    data: str
    is_stale: bool
    is_current: bool
    seen: Look

    @property
    def measure(self) -> Measure:
        """Reads the values of trials."""
        return Measure(self.work, self.prepared, self.objective, self.folds)

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Folds of a trial that are trained at once; one after another where a trial may end between them."""
        return [self.folds] if self.pruner.make is None else [(fold,) for fold in self.folds]

    @property
    def is_nested(self) -> bool:
        """Whether the choice for a fold uses nothing of its held-out patients.

        The objective must be of validation patients, and the trials must not depend on the values of other folds,
        whose networks were trained on the held-out patients of this one.
        """
        is_fixed = not self.sampler.is_adaptive and self.pruner.make is None
        return self.objective.of == VALIDATION and (is_fixed or len(self.folds) == 1)

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folder of the search, the runs of its trials, and the run of the chosen settings."""
        if self.is_current:
            return ()
        runs = [
            self.work.runs / run_name(self.options.name, number) for number in range(len(self.trials), self.num_trials)
        ]
        return (self.folder, *runs, *((self.work.runs / self.options.name,) if self.is_nested else ()))

    def config_of(self, params: Params) -> Config:
        """The configuration of a trial.

        Raises:
            ConfigError: a value is out of range.
        """
        return change_config(self.config, self.space.overrides(params))

    def next_params(self, trials: Sequence[Trial]) -> Params:
        """The settings of the trial after these."""
        return suggest(
            self.space, self.sampler, trials, self.config.seed, is_higher_better=self.objective.is_higher_better
        )

    def forecast(self) -> Forecast:
        """The trials that are left; time by the first of those that cost the same, scaled by its epochs."""
        left = self.num_trials - len(self.trials)
        whole = f"{format_count(self.num_trials, 'trial')} by {self.sampler.name}"
        if self.is_current:
            return Forecast((f"{whole}: up to date, nothing to do",))
        steps = [f"{whole}, {len(self.trials)} of them finished; {self.objective.name}: {self.objective.description}"]
        steps += [f"varies {one.name}: {one.describe()}" for one in self.space.dimensions]
        steps.append(f"each trial trains fold{'s' * (len(self.folds) > 1)} {', '.join(map(str, self.folds))}")
        steps.append(describe_choice(is_nested=self.is_nested, name=self.options.name))
        if not left:
            return Forecast((*steps, "every trial is finished: writes the tables again"))
        known = list(self.space.grid())[len(self.trials) : self.num_trials] if self.sampler.make is None else []
        shown = known[:_SHOWN_TRIALS]
        steps += [
            f"{run_name(self.options.name, number)}: {describe_params(one)}"
            for number, one in enumerate(shown, len(self.trials))
        ]
        steps += [f"and {len(known) - len(shown)} more"] if len(known) > len(shown) else []
        configs = [self.config_of(params) for params in known or [self.next_params(self.trials)]]
        num_bytes, seconds, basis = self._cost(configs, left)
        return Forecast(tuple(steps), num_bytes, seconds, basis)

    def _cost(self, configs: list[Config], num_left: int) -> tuple[float | None, float | None, str]:
        """Disk space and time of the trials that are left; one of each cost is measured."""
        measured: dict[str, tuple[float, Forecast]] = {}
        num_bytes, seconds = 0.0, 0.0
        for number, config in enumerate(configs, len(self.trials)):
            settings = config.train.settings()
            key = repr({name: value for name, value in settings.items() if name not in _SAME_COST})
            if key not in measured:
                options = train.TrainOptions(run_name(self.options.name, number), self.groups[0])
                measured[key] = (config.train.total_epochs, train.plan(config, self.work, options).forecast())
            epochs, forecast = measured[key]
            num_bytes += forecast.num_bytes or 0.0
            seconds += (forecast.seconds or 0.0) * config.train.total_epochs / epochs
        repeats = num_left / len(configs) * len(self.groups)
        basis = "; ".join(dict.fromkeys(forecast.basis for _, forecast in measured.values())) or NOT_KNOWN
        more = f"; {num_left} trials as long as the next one" if num_left > len(configs) else ""
        return num_bytes * repeats, seconds * repeats, f"all trials together, one after another: {basis}{more}"


def run_name(name: str, number: int) -> str:
    """The run of a trial.

    Example:
        >>> run_name("depth", 3)
        'depth-3'
    """
    return f"{name}-{number}"


def describe_params(params: Params) -> str:
    """The settings of a trial on one line."""
    return ", ".join(
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items()
    )


def describe_choice(*, is_nested: bool, name: str) -> str:
    """How the settings are chosen, and what that means for the score."""
    if is_nested:
        return (
            f"chooses settings for each fold by patients of its training part: the run {name} has them, and its "
            "out-of-fold score is not optimistic"
        )
    return "chooses one trial for all folds: its out-of-fold score is optimistic, because it was chosen"


def plan(config: Config, work: WorkFolder, options: TuneOptions) -> TunePlan:
    """The search and its finished trials; writes nothing.

    Raises:
        ConfigError: no settings to vary, an unknown row, an objective without validation patients, Optuna is missing.
        ArtifactError: nothing is prepared, or a search of that name varies other settings.
        FoldError: a fold does not exist.
    """
    check_name(options.name, "tune --name")
    space = read_space(options.tries, options.space)
    objective = find_row(OBJECTIVES, options.objective, "tune --objective")
    sampler = find_row(SAMPLERS, options.sampler, "tune --sampler")
    pruner = find_row(PRUNERS, options.pruner, "tune --pruner")
    import_optuna()
    num_trials = _count_trials(options.trials, space, sampler)
    if Ranks.of_environment().world > 1:
        raise ConfigError("tune: expected one process, found torchrun. Each GPU of this machine trains a fold.")
    first = change_config(config, space.overrides(suggest(space, sampler, (), config.seed, is_higher_better=False)))
    if objective.of == VALIDATION and not config.train.validation.share and not first.train.validation.share:
        raise ConfigError(
            f"tune --objective {objective.name}: needs validation patients, who are held out from the training part of "
            "each fold; train.validation.share is 0. Use --set train.validation.share=0.15, or --objective oof-loss."
        )
    prepared = Prepared.open(work.prepared, find_task(config.task))
    asked = train.TrainOptions(run_name(options.name, 0), options.folds, fresh=options.fresh)
    folds = train.plan(first, work, asked).folds
    if pruner.make is not None and len(folds) < 2:
        raise ConfigError(
            f"tune --pruner {pruner.name}: ends a trial between folds, found one fold. Use --pruner none or more folds."
        )
    settings = {
        "config": _searched(config),
        "space": space.settings(),
        "objective": objective.name,
        "sampler": sampler.name,
        "pruner": pruner.name,
        "folds": list(folds),
    }
    folder = work.tune_folder(options.name)
    made = TunePlan(
        config, work, options, prepared, folder, space, objective, sampler, pruner, folds, num_trials, (), settings,
        _digest_data(prepared), is_stale=False, is_current=False, seen=look_at(folder),
    )  # fmt: skip
    _refuse_foreign_run(made)
    if options.fresh:
        return made
    return _with_trials(made)


def _with_trials(made: TunePlan) -> TunePlan:
    """The plan with the finished trials of an earlier call."""
    found = read_trials(made.folder)
    if found is None:
        return made
    if differences := list_differences(found.settings, made.settings):
        raise ArtifactError(
            f"{made.folder}: a search with other settings ({'; '.join(differences)}). Use the same settings, another "
            "--name, or start it over with --fresh."
        )
    measure = made.measure
    read = tuple(measure.trial(trial, find_scope(made.config_of(trial.params))) for trial in found.trials)
    made = replace(made, trials=read, num_trials=max(made.num_trials, len(read)), is_stale=found.data != made.data)
    if len(read) < made.num_trials or not has_artifact(made.folder):
        return made
    return replace(made, is_current=read_manifest(made.folder).inputs == inputs_of(made, read))


def inputs_of(made: TunePlan, trials: Sequence[Trial]) -> dict[str, str]:
    """What the tables of a search are made of."""
    tables = {name: digest for trial in trials for name, digest in made.measure.digests(trial).items()}
    return {"prepared/labels": made.data, **tables}


def _digest_data(prepared: Prepared) -> str:
    train_slices = prepared.split("train")
    return digest_table(train_slices[["slice_id", "volume", "patient_id", "fold", *prepared.task.classes]])


def _count_trials(asked: int | None, space: Space, sampler: Sampler) -> int:
    if sampler.make is not None:
        if asked is None:
            raise ConfigError(f"tune --sampler {sampler.name}: needs a number of trials, e.g. --trials 20.")
        return asked
    if space.num_points is None:
        raise ConfigError(
            "tune --sampler grid: expected lists of values or ranges of integers, found a range of real numbers. List "
            "the values, or use --sampler tpe --trials 20."
        )
    return min(asked or space.num_points, space.num_points)


def _searched(config: Config) -> dict[str, Any]:
    """The settings that runs depend on."""
    used = {"task": config.task, "seed": config.seed, "channels": config.channels.settings()}
    return used | {"train": config.train.settings()}


def _refuse_foreign_run(made: TunePlan) -> None:
    """Refuses a name that another run has.

    Raises:
        ConfigError: there is one.
    """
    if not made.is_nested:
        return
    for fold in made.folds:
        folder = made.work.fold(made.options.name, fold)
        if has_artifact(folder) and CHOSEN_BY not in read_manifest(folder).facts:
            raise ConfigError(
                f"tune --name: {made.options.name} is a run that was trained by itself; the settings that are chosen "
                "would take its place. Give the search another name."
            )
