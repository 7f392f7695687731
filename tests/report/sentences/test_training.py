"""The sentences about images, network, training and second stage say what a config says, for four configs."""

import pytest
import timm

from ichkit.core.config import load_config
from ichkit.core.tasks import find_task
from ichkit.engine.inference import ModelCard
from ichkit.engine.network_cost import count_cost
from ichkit.stages.report.sentences.images import say_augmentation, say_images, say_store
from ichkit.stages.report.sentences.stacking import say_first_stage_alone, say_second_stage
from ichkit.stages.report.sentences.training import find_weights, say_network, say_selection, say_training, say_weights


def tell(name, *overrides, adapted=None):
    """Every sentence about a run with this config, as one text."""
    facts = {"adapted": adapted}
    config = load_config(name, overrides)
    train = config.train
    known = find_task(config.task).classes
    classes = tuple(train.classes or known)
    said = [
        *say_images(config.channels, train),
        *say_network(train, classes, None),
        *say_weights(train, classes, known),
    ]
    said += [*say_training(train, classes, config.seed, facts, known), *say_augmentation(train, facts)]
    return " ".join([*said, *say_selection(train), *say_second_stage(config.stack, ("a", "b"), 5)])


def test_the_recipe_of_the_paper_is_told_number_for_number():
    text = tell("resnet50-midl")
    for part in (
        "level 40, width 80; level 75, width 215; level 600, width 2800",
        "512 x 512 pixels",
        "resnet50 as built by timm",
        "A batch is 16 blocks of 7 adjacent slices",
        "20 epochs with adam, learning rate 0.0005; cosine annealing to 0 of it; weight decay 0.",
        "crops of 70 to 100 % of the area (p = 1)",
        "rotations up to 20 degrees and shifts up to 5 % of the side (p = 0.7)",
        "Gaussian noise of 1 to 4 HU (p = 0.2)",
        "CutMix between blocks in 50% of the batches (alpha 1)",
        "The weights after the last epoch are kept",
        "fusion (7 slices, 32 and 64 channels)",
        "lightgbm (a window of 19 slices",
        "the 5 probabilities are averaged",
    ):
        assert part in text
    assert "moving average" not in text
    assert "vertical flips" not in text


def test_the_default_differs_from_it_where_its_config_does():
    text = tell("default")
    assert "A batch is 112 slices; an epoch draws single slices (uniform)" in text
    assert "Exponential moving average of the weights, decay 0.999" in text
    assert "The exponential moving averages of the weights after the last epoch are kept" in text
    assert "the bias of the last layer starts at the prevalence of each class" in text.lower()


def test_a_run_is_told_with_the_mixes_and_the_dropout_it_had():
    long = tell("default", adapted={})
    assert "CutMix between blocks in 50% of the batches (alpha 1)." in long
    assert "Mixup in" not in long
    few = tell("default", adapted={"cutmix.probability": 0.0, "mixup.probability": 1.0, "drop_rate": 0.5})
    assert "CutMix between" not in few
    assert "Mixup in 100% of the batches (alpha 0.2)." in few
    assert "Dropout 0.5, exponential moving average" in few


def test_a_conditional_run_of_another_recipe_is_told_with_its_classes_and_choices():
    text = tell("fiit2021-which")
    subtypes = "epidural, intraparenchymal, intraventricular, subarachnoid, subdural"
    assert f"5 classes: {subtypes}." in text
    assert "The other classes are conditional on any" in text
    assert "multiplied by 0.1 after more than 2 epochs without a better value" in text
    assert "10% of the patients of the training part were held out" in text
    assert "crops of 76.5625 % of the area" in text
    assert text.endswith("There is no second stage after that.")


def test_a_recipe_of_another_task_never_names_a_class_that_it_does_not_have():
    text = tell("dlmi2021")
    assert "5 classes: epidural, intraparenchymal, intraventricular, subarachnoid, subdural." in text
    assert "of each of 5 classes" in text
    assert " any." not in text
    assert "Each image is scaled from its own lowest" in text
    assert "multiplied by 0.412 at 50% of the steps" in text
    assert "The runs a and b are combined (mean-probability)" in text


def test_every_phase_is_told_and_where_its_weights_come_from():
    phases = "train.phases=[{epochs: 2, frozen_stages: 1}, {weights: 'run:first', learning_rate: 0.01}]"
    text = tell("default", phases)
    assert "Phase 1 of 2: 2 epochs" in text
    assert "1 stage frozen" in text
    assert "Phase 2 of 2: 20 epochs with adam, learning rate 0.01" in text
    assert "Initial weights of phase 1: pretrained, timm/resnet50" in text
    assert "Initial weights of phase 2: those of the same fold of run first." in text


def test_settings_that_were_adapted_to_the_length_of_a_run_are_those_told():
    config = load_config("default")
    facts = {"adapted": {"batch_blocks": 5, "ema_decay": 0.9828}, "num_steps": 1240}
    text = " ".join(say_training(config.train, ("left",), 3, facts))
    assert "A batch is 35 slices" in text
    assert "decay 0.9828" in text
    assert "These are 1,240 steps in the first fold." in text
    assert "The random seed is 3" in text


def test_the_store_is_told_from_its_settings():
    text = " ".join(say_store({"hull_hu": [-800, 2000], "size": 256, "steps": ["head"]}, 3, 40))
    assert "clipped to -800 to 2000 HU" in text
    assert 'Step "head": keeps the square around the head' in text
    assert "The intercept of 3 slices" in text
    assert "40 images of thin series were averaged" in text
    assert "stored at 256 x 256 pixels" in text
    plain = " ".join(say_store({"size": None, "parts": {"kind": "hemispheres"}}, 0, 0))
    assert "kept the size of their source" in plain
    assert 'cut into parts ("hemispheres")' in plain
    assert "intercept of 0" not in plain
    assert "averaged" not in plain


def test_without_a_second_stage_nothing_of_one_is_told():
    assert say_first_stage_alone(1)[-1].endswith("the network of each fold.")
    assert "5 probabilities" in say_first_stage_alone(5)[-1]
    assert "its patients are split into 5 parts" in " ".join(say_second_stage(load_config().stack, ("a",), 1))


def test_weights_come_with_name_and_licence_and_an_unknown_backbone_has_none():
    assert find_weights("resnet50") == {
        "name": timm.get_pretrained_cfg("resnet50").hf_hub_id,
        "licence": "apache-2.0",
        "paper": "arXiv:2110.00476",
    }
    assert find_weights("no_such_network") == {}


@pytest.mark.parametrize(("side", "channels"), [(64, 3), (96, 1)])
def test_operations_are_two_for_each_multiplication_of_a_convolution_or_a_matrix(side, channels):
    windows = [[40, 80]] * channels
    overrides = (f"train.image_size={side}", f"channels.windows={windows}", "train.backbone=resnet18")
    card = ModelCard.of(load_config("default", overrides), None, (-800, 2000))
    cost, network = count_cost(card), card.build()
    assert cost.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.input_shape == (side, side, channels)
    # ResNet-18 by hand: a 7 x 7 stem at half the side, then stages of two blocks of two 3 x 3 convolutions each.
    at = side // 2
    expected = at * at * 64 * 49 * channels
    at //= 2
    expected += 4 * at * at * 64 * 64 * 9
    for wide in (128, 256, 512):
        at //= 2
        expected += at * at * wide * (wide // 2) * (9 + 1) + 3 * at * at * wide * wide * 9
    assert cost.flops == 2 * (expected + 512 * 6)


def test_phases_say_what_each_learns_what_is_frozen_and_what_its_optimizer_gets():
    text = tell("onset2021")
    for part in (
        "Phase 1 of 4: learns stroke; batches of 16; 100 epochs with adabound, learning rate 0.0005;",
        "final rate 0.01; backbone.gates frozen.",
        "Phase 2 of 4: learns tss3; 100 epochs",
        "final rate 0.001; 2 stages frozen; backbone.gates frozen.",
        "Phase 4 of 4: 100 epochs",
    ):
        assert part in text, part
    assert "Phase 1 of 5: restores distorted studies of the training part, without labels; batches" in tell(
        "onset2021-3d"
    )


def test_a_store_of_several_sequences_has_no_hounsfield_units():
    facts = {"names": ["dwi", "flair"], "steps": ["register", "strip"], "shape": [26, 224, 224]}
    text = " ".join(say_store({"hull_hu": [0, 3000], "sequences": facts}, 0, 0))
    assert "The sequences dwi and flair of a study were brought to one grid of 26 x 224 x 224 voxels" in text
    assert "steps: register and strip." in text
    for whole in (text, tell("onset2021")):
        assert "Hounsfield" not in whole
        assert "HU" not in whole
    assert "Windows in HU" in tell("default")
