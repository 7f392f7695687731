"""`ichkit train`: stage 1 for each fold, every fold skipped, resumed, refused or trained on its own merits."""

from ichkit.core.progress import stop_on_signal
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.lanes import do_folds
from ichkit.stages.train.plan import TrainOptions, TrainPlan, plan
from ichkit.work.artifacts import Manifest, read_manifest
from ichkit.work.locks import hold
from ichkit.work.places import discard, partial_of

__all__ = ["TrainOptions", "TrainPlan", "plan", "run"]


def run(plan: TrainPlan) -> list[Manifest]:
    """Trains the folds that are not finished yet and writes their descriptors; returns the manifests of all asked for.

    Of several processes that `torchrun` started, only the first one returns any.

    Raises:
        ArtifactError: what is prepared is damaged, or a worker died twice.
        ConfigError: a loss, optimizer or device that cannot be used here.
        Stopped: a stop signal; the next call goes on from the same step.
    """
    final = [plan.work.fold(plan.run_name, fold) for fold in plan.folds]
    leads = plan.ranks.leads
    if leads:
        begun = {task.folder for task in plan.tasks}
        for folder in final:
            if plan.options.fresh or folder not in begun:
                with hold(folder):  # which also settles what a killed process left beside a finished fold
                    if plan.options.fresh:
                        discard(folder)
                        discard(partial_of(folder))
    if plan.ranks.world > 1:
        with stop_on_signal() as stop:
            for task in plan.tasks:
                if task.trains or leads:
                    do_fold(task, stop)
    elif plan.tasks:
        do_folds(list(plan.tasks), plan.config.train)
    return [read_manifest(folder) for folder in final] if leads else []
