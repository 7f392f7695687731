"""`ichkit tune`: a search over settings; every trial is a run, chosen by patients that its scores do not come from."""

from collections.abc import Sequence
from dataclasses import replace

from ichkit.core.errors import ConfigError
from ichkit.core.progress import StopFlag, logger, stop_on_signal
from ichkit.stages.train import run as train
from ichkit.stages.train.fold_inputs import find_scope
from ichkit.stages.tune.choose import choose, copy_chosen
from ichkit.stages.tune.outcome import Outcome, facts_of, write_outcome
from ichkit.stages.tune.plan import TuneOptions, TunePlan, describe_params, inputs_of, plan, run_name
from ichkit.stages.tune.samplers import is_hopeless
from ichkit.stages.tune.space import Params
from ichkit.stages.tune.trials import FAILED, PRUNED, TRIALS_NAME, Saved, Trial, read_trials
from ichkit.work.artifacts import ArtifactWriter, write_bytes_atomically
from ichkit.work.inventory import take_inventory
from ichkit.work.locks import alone, hold
from ichkit.work.places import discard, partial_of

__all__ = ["TuneOptions", "TunePlan", "plan", "run"]


@alone(lambda plan: plan.folder, lambda old: plan(old.config, old.work, old.options))
def run(plan: TunePlan) -> Outcome:
    """Trains the trials that are left, chooses, and writes `work/tune/NAME/`; returns what was found.

    Raises:
        Stopped: a stop was requested; the next call goes on with the same trial.
        ConfigError: no trial could be trained.
        ArtifactError, ContractError, FoldError, DiskFullError: see the message.
    """
    if plan.is_current:
        logger.info("tune: the search %s is up to date", plan.options.name)
        return Outcome(plan, plan.trials, choose(plan, plan.trials))
    if plan.options.fresh:
        _discard(plan)
    writer = ArtifactWriter(plan.folder, "tune", resume=True)
    with stop_on_signal() as stop:
        trials = _do_trials(plan, writer, stop)
    choice = choose(plan, trials)
    outcome = Outcome(plan, tuple(trials), choice)
    if plan.is_nested:
        copy_chosen(plan, trials, choice)
    writer.write_bytes(TRIALS_NAME, _save(plan, trials))
    write_outcome(writer, outcome)
    writer.commit(settings=plan.settings, inputs=inputs_of(plan, trials), facts=facts_of(outcome))
    return outcome


def _do_trials(plan: TunePlan, writer: ArtifactWriter, stop: StopFlag) -> list[Trial]:
    """Every trial in order; those that ended before are not trained again, unless the data are others."""
    trials: list[Trial] = []
    for number in range(plan.num_trials):
        stop.check("finished trials are kept")
        known = plan.trials[number] if number < len(plan.trials) else None
        if known is not None and known.is_whole(plan.folds) and not plan.is_stale:
            trials.append(known)
            continue
        params = known.params if known is not None else plan.next_params(trials)
        trials.append(_do_trial(plan, number, params, trials))
        write_bytes_atomically(writer.folder / TRIALS_NAME, _save(plan, [*trials, *plan.trials[number + 1 :]]))
    if all(trial.state == FAILED for trial in trials):
        raise ConfigError(f"tune: every trial failed; the first: {trials[0].reason}")
    return trials


def _do_trial(plan: TunePlan, number: int, params: Params, earlier: Sequence[Trial]) -> Trial:
    """Trains one trial; one with the settings of an earlier trial has its run and its values."""
    config = plan.config_of(params)
    same = next((trial for trial in earlier if plan.config_of(trial.params) == config), None)
    if same is not None:
        logger.info("tune: trial %d has the settings of %s: %s", number + 1, same.run, describe_params(params))
        return replace(same, number=number, params=dict(params))
    name = run_name(plan.options.name, number)
    logger.info("tune: %s, trial %d of %d: %s", name, number + 1, plan.num_trials, describe_params(params))
    trial, scope, is_pruned = Trial(number, dict(params), name), find_scope(config), False
    measured = trial
    for position, group in enumerate(plan.groups, 1):
        try:
            train.run(train.plan(config, plan.work, train.TrainOptions(name, group)))
        except ConfigError as error:
            logger.warning("tune: %s failed: %s", name, error)
            return replace(measured, state=FAILED, reason=str(error))
        measured = plan.measure.trial(trial, scope)
        if measured.state == FAILED:
            break
        values = list(measured.values.values())
        is_higher = plan.objective.is_higher_better
        if position < len(plan.groups) and is_hopeless(plan.pruner, earlier, values, is_higher_better=is_higher):
            is_pruned = True
            break
    measured = replace(measured, state=PRUNED) if is_pruned else measured
    logger.info(
        "tune: %s: %s %.5f%s",
        name,
        plan.objective.name,
        measured.value,
        f", ended after {len(measured.folds)} of {len(plan.folds)} folds" if is_pruned else "",
    )
    return measured


def _save(plan: TunePlan, trials: Sequence[Trial]) -> bytes:
    return Saved(plan.settings, plan.data, trials).encode()


def _discard(plan: TunePlan) -> None:
    """Removes the search, the runs of its trials, and the run that it has chosen."""
    found = read_trials(plan.folder)
    runs = {trial.run for trial in found.trials} if found is not None else set()
    if plan.is_nested:
        runs.add(plan.options.name)
    for run, folds in take_inventory(plan.work).runs.items():
        for fold in folds if run in runs else ():
            folder = plan.work.fold(run, fold)
            with hold(folder):
                discard(folder)
                discard(partial_of(folder))
    discard(plan.folder)
    discard(partial_of(plan.folder))
