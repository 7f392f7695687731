"""Pretraining by restoring distorted studies."""

import numpy as np
import pytest
import torch
from support.pixels import make_pixel_work
from support.simulated import TASK

from ichkit.core.config import ChannelsConfig
from ichkit.core.errors import ConfigError
from ichkit.core.progress import StopFlag
from ichkit.core.train_config import AugmentConfig, PhaseConfig, TrainConfig
from ichkit.engine.blocks import VolumeReader, stack_blocks
from ichkit.engine.devices import make_fabric
from ichkit.engine.phases import list_phases
from ichkit.engine.restoring import (
    RestoringDataset,
    RestoringNetwork,
    RestoringStepper,
    index_without_labels,
    restoration_loss,
)
from ichkit.imaging.store import Prepared
from ichkit.imaging.windows import make_rendering
from ichkit.models.descriptor import build_network

PLAIN = AugmentConfig(
    crop_probability=0,
    horizontal_flip_probability=0,
    rotation_probability=0,
    distortion_probability=0,
    noise_probability=0,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared.open(make_pixel_work(tmp_path_factory.mktemp("work")).prepared, TASK)


def make_stepper(prepared, slices=None):
    config = TrainConfig(
        backbone="unet3d",
        backbone_args={"width": 2},
        pretrained="none",
        image_size=32,
        sampling="studies",
        pool="mean",
        augment=PLAIN,
        batch_blocks=2,
        accelerator="cpu",
        learning_rate=0.01,
        phases=(PhaseConfig(kind="restore", epochs=4), PhaseConfig(epochs=1)),
    )
    index = index_without_labels(prepared.split("train") if slices is None else slices)
    dataset = RestoringDataset(
        index, VolumeReader(prepared.folder), make_rendering(ChannelsConfig()), config, seed=0, fold=0
    )
    torch.manual_seed(0)
    network = build_network(
        "unet3d", num_channels=3, num_classes=6, image_size=32, backbone_args={"width": 2}, pool=config.pool
    )
    phase = list_phases(config, TASK.classes)[0]
    return RestoringStepper(make_fabric(config), RestoringNetwork(network), dataset, restoration_loss, phase)


def do_epoch(stepper, epoch):
    """The mean loss of an epoch."""
    losses = []
    for step, numbers in enumerate(stepper.batches.numbers):
        batch = stack_blocks([stepper.dataset[epoch, int(number)] for number in numbers])
        losses.append(stepper.do(batch, epoch, step, StopFlag()))
    return np.mean([result.loss for result in [*losses[1:], stepper.finish()]])


def test_it_learns_to_restore_and_leaves_gates_and_head_as_they_are(prepared):
    stepper = make_stepper(prepared)
    before = {name: value.clone() for name, value in stepper.trained.state_dict().items()}
    losses = [do_epoch(stepper, epoch) for epoch in range(4)]
    assert losses[-1] < 0.8 * losses[0]
    changed = {name for name, value in stepper.trained.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("backbone.")} == {"levels"}
    assert any(name.startswith("decoder.") for name in changed)


def test_no_label_has_a_part_in_it(prepared):
    slices = prepared.split("train")
    turned = slices.assign(**{name: slices[name].where(slices[name] > 1) for name in TASK.classes})  # all unknown
    one, two = (do_epoch(make_stepper(prepared, of), 0) for of in (slices, turned))
    assert one == two


def test_the_loss_compares_with_the_study_before_the_distortion(prepared):
    stepper = make_stepper(prepared)
    batch = stepper.dataset[0, 0]
    rows = stepper.dataset.plan(0).rows[0][stepper.dataset.plan(0).is_real[0]]
    whole = super(RestoringDataset, stepper.dataset).__getitem__((0, 0)).images
    assert torch.equal(batch.labels, whole)
    assert len(whole) == len(rows)
    assert (batch.images != whole).float().mean() > 0.05
    assert restoration_loss(torch.full((2, 3), 0.5), torch.full((2, 3), 0.3)).item() == pytest.approx(0.04)


def test_the_cost_of_a_step_can_be_measured(prepared):
    cost = make_stepper(prepared).measure_cost()
    assert cost.seconds > 0
    assert cost.activation_bytes > 1000


def test_a_backbone_of_slices_is_refused():
    network = build_network("test_resnet", num_channels=3, num_classes=6, image_size=32)
    with pytest.raises(
        ConfigError, match=r"kind restore pretrains a backbone of volumes\. Use --set train\.backbone=unet3d"
    ):
        RestoringNetwork(network)
