"""One step of training: accumulation, clipping, freezing."""

import copy
import math

import numpy as np
import pytest
import torch
from support.pixels import make_pixel_work
from support.simulated import TASK

from ichkit.core.config import ChannelsConfig
from ichkit.core.errors import ConfigError
from ichkit.core.progress import StopFlag
from ichkit.core.seeding import make_generator
from ichkit.core.train_config import CutMixConfig, HeadsConfig, PhaseConfig, TrainConfig
from ichkit.engine import step_cost
from ichkit.engine.blocks import BlockDataset, VolumeReader, stack_blocks
from ichkit.engine.devices import make_fabric, memory_advice
from ichkit.engine.mixes import apply_mix, draw_mix
from ichkit.engine.phases import list_phases
from ichkit.engine.sampling import SliceIndex
from ichkit.engine.step import Stepper
from ichkit.imaging.store import Prepared
from ichkit.imaging.windows import make_rendering
from ichkit.models.descriptor import build_network
from ichkit.models.freezing import list_stages
from ichkit.models.losses import make_loss

WITHOUT_BATCH_STATISTICS = "test_convnext"
EXACT = {"backbone": WITHOUT_BATCH_STATISTICS, "precision": "64", "optimizer": "sgd", "learning_rate": 0.1}
BLOCKS = {
    "transformer": {"context": {"kind": "transformer", "width": 16, "dropout": 0.0}},
    "gru": {"context": {"kind": "gru", "width": 16, "dropout": 0.0}},
    "attention": {"context": {"kind": "conv", "width": 16, "dropout": 0.0}, "pool": "attention"},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared.open(make_pixel_work(tmp_path_factory.mktemp("work")).prepared, TASK)


def make_stepper(prepared, heads=None, **train):
    settings = {"backbone": "test_byobnet", "image_size": 32, "batch_blocks": 2, "accelerator": "cpu", "epochs": 2}
    config = TrainConfig(**{**settings, "pretrained": "none", "ema_decay": None, **train})
    index = SliceIndex.of(prepared.split("train"), TASK.classes)
    reader, rendering = VolumeReader(prepared.folder), make_rendering(ChannelsConfig())
    dataset = BlockDataset(index, reader, rendering, config, seed=0, fold=0)
    torch.manual_seed(0)
    parts = {"context": config.context, "pool": config.pool}
    network = build_network(config.backbone, num_channels=3, num_classes=6, image_size=32, **parts)
    loss = make_loss("weighted-bce", TASK.weight_array(), np.full(6, 0.1))
    return Stepper(make_fabric(config), network, dataset, loss, list_phases(config, TASK.classes)[0], heads)


def do_steps(stepper, count):
    """The losses of the first steps of an epoch."""
    results = []
    for step in range(count):
        keys = [(0, int(number)) for number in stepper.batches.numbers[step]]
        results.append(stepper.do(stack_blocks([stepper.dataset[key] for key in keys]), 0, step, StopFlag()))
    return [result.loss for result in [*results[1:], stepper.finish()]]


def weights_of(stepper):
    return {name: value.clone() for name, value in stepper.trained.state_dict().items()}


@pytest.mark.parametrize("sampling", ["blocks", "studies"])
def test_a_network_of_single_slices_is_trained_as_before_there_were_others(prepared, sampling):
    """The step of version 0.1.0, written out: pixels mixed, flattened, padding left out, one loss."""
    stepper = make_stepper(prepared, batch_blocks=3, accumulate=2, sampling=sampling)
    torch.manual_seed(0)
    network = build_network("test_byobnet", num_channels=3, num_classes=6, image_size=32).train()
    backbone, optimizer = network.backbone, torch.optim.Adam(network.parameters(), foreach=True)
    network.to(memory_format=torch.channels_last)
    losses, expected = do_steps(stepper, 3), []
    plan = stepper.dataset.plan(0)
    for step, numbers in enumerate(stepper.batches.numbers[:3]):
        blocks = stack_blocks([stepper.dataset[0, int(number)] for number in numbers])
        images, labels = blocks.images, blocks.labels
        mix = draw_mix(len(numbers), 32, 32, stepper.config, make_generator(0, "cutmix", 0, 0, step))
        if mix is not None:
            images, labels = apply_mix(images, labels, mix)
        is_real = torch.from_numpy(plan.is_real[numbers, : images.shape[1]])
        images, labels = images[is_real], labels[is_real]
        optimizer.zero_grad()
        rate = 0.5 * (1 + math.cos(math.pi * step / stepper.total_steps))
        optimizer.param_groups[0]["lr"] = stepper.phase.config.learning_rate * rate
        found = []
        for some, wanted in zip(images.chunk(2), labels.chunk(2), strict=True):
            logits = backbone.forward_head(backbone.forward_features(network.normalise(some)))
            loss = stepper.loss_function(logits, wanted) * (len(some) / len(images))
            loss.backward()
            found.append(loss.detach())
        optimizer.step()
        expected.append(torch.stack(found).sum().item())
    assert losses == expected
    own = network.state_dict()
    same = {name: torch.equal(value, own[name]) for name, value in weights_of(stepper).items()}
    assert same == dict.fromkeys(own, True)


def test_the_labels_of_studies_are_mixed_by_the_share_of_their_pixels(prepared):
    options = {**BLOCKS["attention"], "sampling": "studies", "batch_blocks": 4, "cutmix": CutMixConfig(probability=1)}
    stepper = make_stepper(prepared, **options)
    for step, numbers in enumerate(stepper.batches.numbers[:2]):
        blocks = stack_blocks([stepper.dataset[0, int(number)] for number in numbers])
        mix = draw_mix(len(numbers), 32, 32, stepper.config, make_generator(0, "cutmix", 0, 0, step))
        is_real = stepper.dataset.plan(0).is_real[numbers, : blocks.images.shape[1]]
        found = stepper._mix(blocks, (0, 0, step), is_real).study_labels
        highest = torch.stack([labels[real].amax(0) for labels, real in zip(blocks.labels, is_real, strict=True)])
        changed = (apply_mix(blocks.images, blocks.labels, mix)[0] != blocks.images).float().mean()
        assert changed <= 1 - mix.share + 1e-6
        torch.testing.assert_close(found, highest * mix.share + highest[mix.partners] * (1 - mix.share))
        assert abs(mix.share - 0.5) > 0.05  # the two shares could be exchanged


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_loss_of_a_padded_batch_is_that_of_its_studies_read_alone(prepared, kind):
    options = {**EXACT, **BLOCKS[kind], "sampling": "studies", "batch_blocks": 4, "cutmix": CutMixConfig(probability=0)}
    stepper = make_stepper(prepared, **options)
    for parameter in stepper.trained.parameters():  # a context starts at zero
        torch.nn.init.normal_(parameter, std=0.05)
    network = copy.deepcopy(stepper.trained).double()
    (loss,) = do_steps(stepper, 1)
    numbers = stepper.batches.numbers[0]
    lengths = stepper.dataset.plan(0).lengths[numbers]
    assert len(set(lengths.tolist())) > 1
    alone, studies, weigh = [], [], stepper.loss_function
    for number in numbers:
        block = stepper.dataset[0, int(number)]
        with torch.no_grad():
            logits = network(block.images[None], None, block.positions_mm[None].double())
        alone.append([len(block.images) * weigh(each[0], block.labels) for each in (logits.slices, logits.series)])
        if logits.study is not None:
            studies.append(weigh(logits.study.logits, block.labels.amax(0, keepdim=True)))
    of_slices, of_series = (sum(each) / lengths.sum() for each in zip(*alone, strict=True))
    expected = (of_slices + 2 * of_series) / 3
    if studies:
        expected = (of_slices + 2 * of_series + sum(studies) / len(studies)) / 4
    assert loss == pytest.approx(float(expected), rel=1e-6)


def test_a_head_of_weight_zero_has_no_part_in_the_loss_and_every_parameter_a_gradient(prepared):
    options = {**EXACT, **BLOCKS["attention"], "sampling": "studies", "cutmix": CutMixConfig(probability=0)}
    stepper = make_stepper(prepared, HeadsConfig(slices=0, series=0), **options)
    torch.nn.init.normal_(stepper.trained.series.weight)
    seen, calculate = [], stepper.loss_function
    stepper.loss_function = lambda logits, labels: seen.append(calculate(logits, labels)) or seen[-1]
    (loss,) = do_steps(stepper, 1)
    assert len({value.item() for value in seen}) == 3
    assert loss == pytest.approx(seen[2].item())
    assert all(parameter.grad is not None for parameter in stepper.trained.parameters())
    assert stepper.trained.pool.score.weight.grad.any()


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_step_of_studies_in_parts_is_the_step_of_all(prepared, kind):
    options = {**EXACT, **BLOCKS[kind], "sampling": "studies", "batch_blocks": 4}
    whole, divided = (make_stepper(prepared, **options, accumulate=number) for number in (1, 3))
    np.testing.assert_allclose(do_steps(divided, 2), do_steps(whole, 2), rtol=1e-6)
    ours, theirs = weights_of(divided), weights_of(whole)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_the_cost_of_studies_is_the_memory_of_the_longest_and_the_time_of_the_mean(prepared, monkeypatch):
    seen = {}

    def record(_fabric, _network, _loss, _config, *, shape, **_others):
        seen["shape"] = shape
        return step_cost.StepCost(10.0, 1000)

    monkeypatch.setattr("ichkit.engine.step.measure_step_cost", record)
    stepper = make_stepper(prepared, sampling="studies", batch_blocks=4, **BLOCKS["gru"])
    plan, numbers = stepper.dataset.plan(0), stepper.batches.numbers
    cost = stepper.measure_cost()
    assert math.prod(seen["shape"]) == max(len(own) * plan.lengths[own].max() for own in numbers)
    mean = plan.lengths.sum() / len(numbers)
    assert mean < math.prod(seen["shape"])
    assert cost == step_cost.StepCost(pytest.approx(10.0 * mean / math.prod(seen["shape"])), 1000)


@pytest.mark.parametrize("kind", BLOCKS)
def test_measuring_a_step_of_studies_counts_their_slices_and_the_context(prepared, kind):
    stepper = make_stepper(prepared, sampling="studies", batch_blocks=4, **BLOCKS[kind])
    before = weights_of(stepper)
    whole = stepper.measure_cost()
    assert all(torch.equal(value, before[name]) for name, value in weights_of(stepper).items())
    single = make_stepper(prepared, sampling="studies", batch_blocks=4).measure_cost()
    assert single.activation_bytes < whole.activation_bytes < 1.5 * single.activation_bytes


def test_a_step_in_parts_is_the_step_of_the_whole_batch(prepared):
    whole, divided = (make_stepper(prepared, **EXACT, accumulate=number) for number in (1, 3))
    # The library hands logits on as float32 whatever the network computes in.
    np.testing.assert_allclose(do_steps(divided, 2), do_steps(whole, 2), rtol=1e-6)
    ours, theirs = weights_of(divided), weights_of(whole)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_padding_is_neither_trained_on_nor_counted_in_batch_statistics(prepared):
    stepper = make_stepper(prepared, batch_blocks=4, sampling="blocks", cutmix=CutMixConfig(probability=0))
    plan, learnt = stepper.dataset.plan(0), stepper.loss_function
    padded = [step for step, numbers in enumerate(stepper.batches.numbers) if not plan.is_real[numbers].all()]
    assert padded
    seen = []

    def record(logits, labels):
        seen.append((len(logits), labels.clone()))
        return learnt(logits, labels)

    stepper.loss_function = record
    do_steps(stepper, padded[0] + 1)
    numbers = stepper.batches.numbers[padded[0]]
    rows, is_real = plan.rows[numbers], plan.is_real[numbers]
    num_images, labels = seen[padded[0]]
    assert num_images == is_real.sum() < is_real.size
    np.testing.assert_array_equal(labels.numpy(), stepper.dataset.index.labels[rows[is_real]])


def test_a_batch_of_one_slice_is_trained_on_with_the_loss_of_that_slice(prepared):
    stepper = make_stepper(prepared, batch_blocks=1, sampling="blocks", epochs=40, cutmix=CutMixConfig(probability=0))
    epoch, step = next(
        (epoch, step)
        for epoch in range(40)
        for step, numbers in enumerate(stepper.batches.numbers)
        if stepper.dataset.plan(epoch).is_real[numbers].sum() == 1
    )
    keys = [(epoch, int(number)) for number in stepper.batches.numbers[step]]
    calculate, seen = stepper.loss_function, []

    def record(logits, labels):
        seen.append(calculate(logits, labels))
        return seen[0]

    stepper.loss_function = record
    stepper.do(stack_blocks([stepper.dataset[key] for key in keys]), epoch, step, StopFlag())
    result = stepper.finish()
    assert result.loss == pytest.approx(seen[0].item(), rel=1e-6)
    assert result.num_images == 1


def test_the_norm_of_the_gradient_is_clipped(prepared):
    stepper = make_stepper(prepared, clip_norm=1e-3, optimizer="sgd", learning_rate=1.0)
    before = weights_of(stepper)
    do_steps(stepper, 1)
    trained = [name for name, _ in stepper.trained.named_parameters()]
    after = weights_of(stepper)
    change = torch.sqrt(sum(((after[name] - before[name]) ** 2).sum() for name in trained)).item()
    # timm's "sgd" has Nesterov momentum 0.9: the first step is 1.9 times the gradient.
    assert change == pytest.approx(1.9e-3, rel=1e-3)


def test_frozen_stages_keep_their_weights_and_statistics_and_the_others_learn(prepared):
    stepper = make_stepper(prepared, phases=(PhaseConfig(frozen_stages=2),), learning_rate=0.01)
    stages = list_stages(stepper.trained)
    frozen = {f"backbone.{name}" for stage in stages[:2] for name in stage.parameters}
    before = weights_of(stepper)
    do_steps(stepper, 2)
    after, parameters = weights_of(stepper), dict(stepper.trained.named_parameters())
    for name in parameters:
        assert torch.equal(before[name], after[name]) == (name in frozen), name
        assert (parameters[name].grad is None) == (name in frozen), name
    held = tuple(f"backbone.{stage.name}." for stage in stages[:2])
    statistics = [name for name in after if "running" in name]
    assert any(name.startswith(held) for name in statistics)
    for name in statistics:
        assert torch.equal(before[name], after[name]) == name.startswith(held), name
    assert "frozen: stem, stages.0 (0.0" in stepper.frozen.describe()


def test_parts_frozen_by_name_keep_every_byte_and_the_others_learn(prepared):
    parts = ("context", "backbone.head.fc.weight")
    stepper = make_stepper(
        prepared, phases=(PhaseConfig(frozen=parts),), learning_rate=0.01, sampling="studies", **BLOCKS["transformer"]
    )
    torch.nn.init.normal_(stepper._network.module.series.weight)  # starts at zero and would hold back the context
    before = weights_of(stepper)
    do_steps(stepper, 2)
    after = weights_of(stepper)
    held = {name for name in before if name.startswith("context.") or name == "backbone.head.fc.weight"}
    assert held
    for name, _ in stepper.trained.named_parameters():
        assert torch.equal(before[name], after[name]) == (name in held), name
    assert "frozen: context, backbone.head.fc.weight (0.0" in stepper.frozen.describe()


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        ("gates", r'frozen names "gates"\. Expected parts with weights: backbone\.'),
        ("backbone.heads", r'frozen names "backbone\.heads"\. .*backbone\.stages, .*backbone\.head'),
        ("backbone", r"nothing is left to train with backbone frozen"),
    ],
)
def test_frozen_parts_that_do_not_exist_or_are_everything_are_refused(prepared, frozen, message):
    with pytest.raises(ConfigError, match=message):
        make_stepper(prepared, phases=(PhaseConfig(frozen=(frozen,)),))


def test_more_frozen_stages_than_there_are_is_refused_with_their_names(prepared):
    with pytest.raises(ConfigError, match=r"frozen_stages is 9, but this backbone has 5 stages.*stem, stages\.0"):
        make_stepper(prepared, phases=(PhaseConfig(frozen_stages=9),))


def test_recomputed_activations_give_the_same_losses(prepared):
    options = {"backbone": WITHOUT_BATCH_STATISTICS, "precision": "64"}
    plain, recomputed = (make_stepper(prepared, **options, grad_checkpointing=on) for on in (False, True))
    np.testing.assert_allclose(do_steps(recomputed, 2), do_steps(plain, 2), rtol=1e-6)


def test_measuring_a_step_leaves_the_network_unchanged_and_counts_its_activations(prepared):
    stepper = make_stepper(prepared, batch_blocks=4)
    before = weights_of(stepper)
    whole = stepper.measure_cost()
    assert all(torch.equal(value, before[name]) for name, value in weights_of(stepper).items())
    assert all(parameter.grad is None for parameter in stepper.trained.parameters())
    assert whole.seconds > 0
    # The first layer alone keeps its input, 28 images of 3 x 32 x 32 in 4 bytes.
    assert whole.activation_bytes > 28 * 3 * 32 * 32 * 4
    divided = make_stepper(prepared, batch_blocks=4, accumulate=4).measure_cost()
    assert divided.activation_bytes == pytest.approx(whole.activation_bytes / 4, rel=0.05)


def test_the_cost_of_many_images_is_scaled_from_a_few(prepared, monkeypatch):
    counts = []
    monkeypatch.setattr(step_cost, "_SHORT_SECONDS", 0.0)
    stepper = make_stepper(prepared, batch_blocks=4)
    stepper.loss_function = lambda logits, labels: (counts.append(len(logits)), (logits - labels).square().mean())[1]
    stepper.measure_cost()
    assert counts == [7, 7]


def test_memory_that_runs_out_is_explained_and_other_errors_are_not(prepared):
    stepper = make_stepper(prepared)
    stepper.loss_function = lambda logits, labels: logits.sum() * torch.empty(10**15)[0]
    said = r"out of memory on this machine: .*can't allocate.* Do less\."
    with pytest.raises(ConfigError, match=said), memory_advice("Do less."):
        do_steps(stepper, 1)
    said = r"out of memory on the GPU: CUDA out of memory\. Do less\."
    with pytest.raises(ConfigError, match=said), memory_advice("Do less."):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore words")
    with pytest.raises(RuntimeError, match="something else"), memory_advice("Do less."):
        raise RuntimeError("something else")
