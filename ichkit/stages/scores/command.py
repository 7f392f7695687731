"""What `ichkit evaluate` plans by its options: scores, the score of a file, robustness, or adversarial validation."""

from ichkit.core.config import Config
from ichkit.stages.scores import adversarial, evaluate, robustness
from ichkit.stages.scores.adversarial import AdversarialPlan
from ichkit.stages.scores.evaluate import EvaluateOptions, EvaluatePlan, FilePlan
from ichkit.stages.scores.robustness import RobustnessPlan
from ichkit.work.folder import WorkFolder

__all__ = ["EvaluateOptions", "plan"]


def plan(
    config: Config, work: WorkFolder, options: EvaluateOptions
) -> EvaluatePlan | FilePlan | RobustnessPlan | AdversarialPlan:
    """The plan of the command; raises as the `plan` of its part."""
    if options.is_adversarial:
        return adversarial.plan(config, work, options.source)
    return robustness.plan(config, work, options) if options.perturbs else evaluate.plan(config, work, options)
