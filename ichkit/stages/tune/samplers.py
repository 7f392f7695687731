"""How a search chooses the settings of the next trial, and when it ends a trial early: tables over Optuna.

A study of Optuna is made again from the finished trials before each trial, with a seed of its own. So a search that was
killed and goes on chooses the same settings as one that ran through, and nothing but the trials has to be kept.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ichkit.core.errors import ConfigError
from ichkit.core.seeding import derive_seed
from ichkit.stages.tune.space import Params, Range, Space
from ichkit.stages.tune.trials import COMPLETE, PRUNED, Trial

if TYPE_CHECKING:
    import optuna

_SEEDS = 2**32
GRID = "grid"


@dataclass(frozen=True)
class Sampler:
    """A row of `SAMPLERS`.

    Attributes:
        name: key in the table.
        make: a seed to the sampler of Optuna; None for the grid, which needs none.
        is_adaptive: a choice depends on the values of earlier trials.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    make: "Callable[[int], optuna.samplers.BaseSampler] | None"
    is_adaptive: bool
    description: str
    source: str


@dataclass(frozen=True)
class Pruner:
    """A row of `PRUNERS`: it decides after each fold whether a trial goes on to the next one.

    Attributes:
        name: key in the table.
        make: the pruner of Optuna; None never ends a trial.
        reports_mean: it is told the mean over the folds so far; otherwise the value of each fold.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    make: "Callable[[], optuna.pruners.BasePruner] | None"
    reports_mean: bool
    description: str
    source: str


def import_optuna() -> None:
    """Checks that Optuna is installed, and silences its own log.

    Raises:
        ConfigError: it is not.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("tune: needs Optuna. Install it: pip install 'ichkit[tune]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggest(space: Space, sampler: Sampler, trials: Sequence[Trial], seed: int, *, is_higher_better: bool) -> Params:
    """The settings of the next trial.

    Args:
        trials: all earlier ones, in order.
        seed: of the configuration; the seed of the trial is derived from it.
    """
    number = len(trials)
    if sampler.make is None:
        return list(space.grid())[number]
    import optuna

    with _quietly():
        own = sampler.make(derive_seed(seed, "tune", number) % _SEEDS)
        study = optuna.create_study(direction=_direction(is_higher_better), sampler=own)
        study.add_trials([_freeze(trial, space) for trial in trials])
        return dict(study.ask(_distributions(space)).params)


def is_hopeless(pruner: Pruner, trials: Sequence[Trial], so_far: Sequence[float], *, is_higher_better: bool) -> bool:
    """Whether a trial with these values of its first folds shall end here.

    Args:
        trials: all earlier ones, in order.
        so_far: the objective on each fold that is finished, in the order they were trained.
    """
    if pruner.make is None:
        return False
    import optuna

    with _quietly():
        study = optuna.create_study(direction=_direction(is_higher_better), pruner=pruner.make())
        for trial in trials:
            known = [trial.values[fold] for fold in trial.folds]
            study.add_trial(_with_steps(trial, _steps(pruner, known)))
        asked = study.ask()
        for step, value in enumerate(_steps(pruner, so_far)):
            asked.report(value, step)
        return bool(asked.should_prune())


def _steps(pruner: Pruner, values: Sequence[float]) -> list[float]:
    if not pruner.reports_mean:
        return list(values)
    return [sum(values[: count + 1]) / (count + 1) for count in range(len(values))]


def _direction(is_higher_better: bool) -> Literal["maximize", "minimize"]:
    return "maximize" if is_higher_better else "minimize"


def _freeze(trial: Trial, space: Space) -> "optuna.trial.FrozenTrial":
    """A finished trial as Optuna knows it; a pruned one has the value of its finished folds as its last report."""
    import optuna

    states = optuna.trial.TrialState
    state = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED}.get(trial.state, states.FAIL)
    return optuna.trial.create_trial(
        state=state,
        value=trial.value if state is states.COMPLETE else None,
        params=dict(trial.params),
        distributions=_distributions(space),
        intermediate_values={} if state is states.FAIL else {0: trial.value},
    )


def _with_steps(trial: Trial, steps: Sequence[float]) -> "optuna.trial.FrozenTrial":
    """A finished trial without its settings, which a pruner does not look at."""
    import optuna

    states = optuna.trial.TrialState
    state = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED}.get(trial.state, states.FAIL)
    value = trial.value if state is states.COMPLETE else None
    return optuna.trial.create_trial(state=state, value=value, intermediate_values=dict(enumerate(steps)))


def _distributions(space: Space) -> "dict[str, optuna.distributions.BaseDistribution]":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for one in space.dimensions:
        if not isinstance(one, Range):
            found[one.name] = CategoricalDistribution(one.values)
        elif one.is_integer:
            found[one.name] = IntDistribution(int(one.low), int(one.high), log=one.is_log, step=int(one.step or 1))
        else:
            found[one.name] = FloatDistribution(one.low, one.high, log=one.is_log, step=one.step)
    return found


class _quietly(warnings.catch_warnings):  # noqa: N801
    """Without the notes of Optuna that a sampler or pruner is experimental."""

    def __enter__(self) -> None:
        import optuna

        super().__enter__()
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def _make_random(seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    return optuna.samplers.RandomSampler(seed=seed)


def _make_tpe(seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    return optuna.samplers.TPESampler(seed=seed)


def _make_gp(seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    return optuna.samplers.GPSampler(seed=seed)


def _make_median() -> "optuna.pruners.BasePruner":
    import optuna

    return optuna.pruners.MedianPruner()


def _make_wilcoxon() -> "optuna.pruners.BasePruner":
    import optuna

    return optuna.pruners.WilcoxonPruner()


SAMPLERS = {
    GRID: Sampler(
        name=GRID,
        make=None,
        is_adaptive=False,
        description="Every combination, in the order they are written.",
        source="the tables of the papers",
    ),
    "random": Sampler(
        name="random",
        make=_make_random,
        is_adaptive=False,
        description="Independent draws, evenly over each dimension.",
        source="Bergstra and Bengio, JMLR 13, 2012; RandomSampler of Optuna",
    ),
    "tpe": Sampler(
        name="tpe",
        make=_make_tpe,
        is_adaptive=True,
        description="Tree-structured Parzen estimator; the first 10 trials are random.",
        source="Bergstra et al., NeurIPS 2011; TPESampler of Optuna",
    ),
    "gp": Sampler(
        name="gp",
        make=_make_gp,
        is_adaptive=True,
        description="Gaussian process with expected improvement, for few, costly trials; the first 10 are random.",
        source="Jones et al., Journal of Global Optimization 13, 1998; GPSampler of Optuna",
    ),
}

PRUNERS = {
    "none": Pruner(
        name="none",
        make=None,
        reports_mean=True,
        description="Every trial trains all folds.",
        source="cross-validation",
    ),
    "median": Pruner(
        name="median",
        make=_make_median,
        reports_mean=True,
        description="Ends a trial whose mean so far is worse than the median of earlier trials, after 5 trials.",
        source="Golovin et al., KDD 2017, section 3.4.2; MedianPruner of Optuna",
    ),
    "wilcoxon": Pruner(
        name="wilcoxon",
        make=_make_wilcoxon,
        reports_mean=False,
        description="Ends a trial that is worse than the best one by a signed rank test over the same folds (p < 0.1).",
        source="Wilcoxon, Biometrics Bulletin 1, 1945; WilcoxonPruner of Optuna",
    ),
}
