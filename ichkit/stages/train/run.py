"""`ichkit train`: trains stage 1 fold by fold; finished folds are skipped, interrupted ones resumed."""

from ichkit.core.progress import logger, stop_on_signal
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.lanes import do_folds
from ichkit.stages.train.plan import TrainOptions, TrainPlan, plan
from ichkit.tracking.loggers import check_loggers
from ichkit.work.artifacts import Manifest, read_manifest
from ichkit.work.locks import hold
from ichkit.work.places import discard, partial_of

__all__ = ["TrainOptions", "TrainPlan", "plan", "run"]


def run(plan: TrainPlan) -> list[Manifest]:
    """Trains the unfinished folds and writes their predictions; returns the manifests of all folds of the plan.

    With `torchrun`, only the main process returns manifests.

    Raises:
        ArtifactError: the store is damaged, or a worker died twice.
        ConfigError: a loss, optimizer or device cannot be used.
        Stopped: a stop signal arrived; the next call resumes at the same step.
    """
    if plan.fit is not None:
        logger.info("%s (%s)", plan.fit.text, plan.fit.basis)
    if plan.tasks:
        for row in check_loggers(plan.config.tracking.loggers):
            logger.info("%s: %s", row.name, row.description.replace("work/", f"{plan.work.root}/"))
    final = [plan.work.fold(plan.options.run_name, fold) for fold in plan.folds]
    is_main = plan.ranks.is_main
    if is_main:
        begun = {task.folder for task in plan.tasks}
        for folder in final:
            if plan.options.fresh or folder not in begun:
                with hold(folder):  # also cleans up after a killed process
                    if plan.options.fresh:
                        discard(folder)
                        discard(partial_of(folder))
    if plan.ranks.world > 1:
        with stop_on_signal() as stop:
            for task in plan.tasks:
                if task.trains or is_main:
                    do_fold(task, stop)
    elif plan.tasks:
        do_folds(list(plan.tasks), plan.config.train)
    return [read_manifest(folder) for folder in final] if is_main else []
