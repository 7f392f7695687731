"""Sentences about the second stage and what is averaged, from the settings of a stack."""

from collections.abc import Mapping, Sequence

from ichkit.core.stack_config import FusionConfig, LightgbmConfig, SequenceConfig, StackConfig
from ichkit.stacking.combine import COMBINERS
from ichkit.stacking.table import STACKERS
from ichkit.stacking.weighting import METHODS
from ichkit.stages.report.sentences.counts import join_words, say_count
from ichkit.validation.coherence import say_coherence
from ichkit.validation.scope import Scope


def say_second_stage(stack: StackConfig, runs: Sequence[str], num_folds: int) -> list[str]:
    """How the descriptors of runs become final probabilities.

    Args:
        runs: first-stage runs of the stack.
        num_folds: folds that it was made from.
    """
    said = []
    if len(runs) > 1:
        rule = COMBINERS[stack.combine].description if stack.combine in COMBINERS else stack.combine
        said.append(f"The runs {join_words(runs)} are combined ({stack.combine}): {rule}")
    if not stack.stackers:
        return [*said, "There is no second stage after that."]
    said += [_say_stacker(name, stack) for name in stack.stackers]
    if num_folds == 1:
        said.append(f"One fold is trained: its patients are split into {stack.num_parts} parts, which serve as folds.")
    said.append(
        "Each model of fold k is fitted on the out-of-fold descriptors of the other folds; regularization and numbers "
        f"of rounds or epochs are chosen on {say_count(stack.num_inner, 'parts')} of inner patients of these."
    )
    if stack.calibrate:
        said.append(
            "Members are calibrated by Platt scaling per class, shrunk towards the identity, on inner patients."
        )
    if len(stack.stackers) > 1:
        said.append("The blend is a weighted mean of the members' logits per class, fitted on inner patients.")
    said.append(
        "Test split and external sets are predicted by the pipeline of each fold"
        + (f"; the {num_folds} probabilities are averaged." if num_folds > 1 else ".")
    )
    return said


def say_blend(method: str, weights: Mapping[str, Mapping[str, float]], scope: Scope, *, selects: bool) -> list[str]:
    """How a blend by hand is made of its members.

    Args:
        method: a row of `METHODS`.
        weights: fold to the weight of each member.
        selects: they were chosen on the other folds; otherwise all folds have the same.
    """
    of_folds = {fold: ", ".join(f"{name} {one:.3f}" for name, one in own.items()) for fold, own in weights.items()}
    names = list(next(iter(weights.values())))
    rule = METHODS[method].description if method in METHODS else method
    said = [f"It is a blend by hand of {join_words(names)} (`ichkit blend`, {method}): {rule}"]
    if selects:
        listed = "; ".join(f"fold {fold}: {own}" for fold, own in of_folds.items())
        said.append(
            f"Its weights were chosen by hill climbing, for each fold on the labels of the other folds: {listed}."
        )
    else:
        said.append(
            f"Its weights were given by hand: {next(iter(of_folds.values()))}. No label was used for them, unless they "
            "were tried on these scores, which makes its score optimistic."
        )
    return [*said, *filter(None, [say_coherence(scope)])]


def say_first_stage_alone(num_folds: int) -> list[str]:
    """What is averaged where a run is scored by itself."""
    return [
        "There is no second stage.",
        "Test split and external sets are predicted by the network of each fold"
        + (f"; the {num_folds} probabilities are averaged." if num_folds > 1 else "."),
    ]


def _say_stacker(name: str, stack: StackConfig) -> str:
    description = STACKERS[name].description if name in STACKERS else ""
    settings = getattr(stack, name, None)
    more = ""
    if isinstance(settings, FusionConfig):
        more = f" ({settings.window} slices, {join_words([str(count) for count in settings.channels])} channels)"
    elif isinstance(settings, LightgbmConfig):
        more = f" (a window of {settings.window} slices, at most {settings.max_rounds} rounds)"
    elif isinstance(settings, SequenceConfig):
        more = f" (at most {settings.epochs} epochs)"
    return f"{name}{more}: {description[:1].lower()}{description[1:]}"
