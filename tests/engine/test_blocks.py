import pickle

import numpy as np
import pandas as pd
import pytest
from support.pixels import make_pixel_work
from support.simulated import TASK
from torch.utils.data import DataLoader

from ichkit.core.config import ChannelsConfig
from ichkit.core.train_config import AugmentConfig, TrainConfig
from ichkit.engine.blocks import BlockDataset, VolumeReader, stack_blocks
from ichkit.engine.sampling import EpochBatches, SliceIndex
from ichkit.imaging.store import Prepared
from ichkit.imaging.windows import make_rendering

PLAIN = AugmentConfig(
    crop_probability=0,
    horizontal_flip_probability=0,
    rotation_probability=0,
    distortion_probability=0,
    noise_probability=0,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    work = make_pixel_work(tmp_path_factory.mktemp("work"))
    return Prepared.open(work.prepared, TASK)


@pytest.fixture(scope="module")
def slices(prepared):
    return prepared.split("train")


def make_dataset(prepared, augment=PLAIN, kind="windows", **train):
    config = TrainConfig(image_size=32, augment=augment, **train)
    windows = ((40, 80),) if kind == "neighbours" else ((40, 80), (75, 215), (600, 2800))
    rendering = make_rendering(ChannelsConfig(kind=kind, windows=windows))
    index = SliceIndex.of(prepared.split("train"), TASK.classes)
    return BlockDataset(index, VolumeReader(prepared.folder), rendering, config, seed=1, fold=0)


@pytest.mark.parametrize("sampling", ["blocks", "slices"])
@pytest.mark.parametrize("kind", ["windows", "neighbours"])
def test_without_augmentation_a_block_holds_the_stored_slices_and_their_labels(prepared, slices, kind, sampling):
    dataset = make_dataset(prepared, kind=kind, sampling=sampling)
    plan = dataset.plan(0)
    for number in range(len(plan.rows)):
        block = dataset[0, number]
        for place, row in enumerate(plan.rows[number]):
            volume = prepared.read_volume(slices.volume[row])
            image = dataset.rendering.render(volume, np.array([slices.slice_index[row]]))[0]
            np.testing.assert_array_equal(block.images[place].numpy(), image)
        labels = slices.loc[plan.rows[number], list(TASK.classes)].to_numpy(np.float32)
        np.testing.assert_array_equal(block.labels.numpy(), labels)


@pytest.mark.parametrize("kind", ["windows", "neighbours"])
@pytest.mark.parametrize("augment", [{}, {"every_second_probability": 1.0}, {"reversed_probability": 1.0}])
def test_a_block_of_a_study_holds_its_stored_slices_in_the_order_of_the_plan(prepared, slices, kind, augment):
    dataset = make_dataset(prepared, PLAIN.model_copy(update=augment), kind, sampling="studies", max_slices=6)
    plan = dataset.plan(0)
    for number, length in enumerate(plan.lengths):
        block, rows = dataset[0, number], plan.rows[number, :length]
        assert len(block.images) == length <= 6
        volume, places = prepared.read_volume(slices.volume[rows[0]]), slices.slice_index[rows].to_numpy()
        images = dataset.rendering.render(volume, np.arange(len(volume)))[places]
        np.testing.assert_array_equal(block.images.numpy(), images)
        np.testing.assert_array_equal(block.labels.numpy(), slices.loc[rows, list(TASK.classes)].to_numpy(np.float32))
        np.testing.assert_array_equal(block.positions_mm.numpy(), dataset.index.position_mm[rows])


def test_a_batch_of_studies_is_padded_to_its_longest_with_the_last_slices(prepared):
    dataset = make_dataset(prepared, sampling="studies")
    lengths = dataset.plan(0).lengths
    numbers = [int(lengths.argmin()), int(lengths.argmax())]
    blocks = [dataset[0, number] for number in numbers]
    short, longest = (len(block.images) for block in blocks)
    assert short < longest
    for batched, parts in zip(stack_blocks(blocks), zip(*blocks, strict=True), strict=True):
        assert batched.shape[:2] == (2, longest)
        np.testing.assert_array_equal(batched[0, :short], parts[0])
        np.testing.assert_array_equal(batched[1], parts[1])
        for place in range(short, longest):
            np.testing.assert_array_equal(batched[0, place], parts[0][-1])


def test_the_slices_of_a_study_share_their_geometry(prepared):
    dataset = make_dataset(prepared, AugmentConfig(noise_probability=0), sampling="studies")
    same = np.repeat(prepared.read_volume(prepared.split("train").volume[0])[:1], 9, 0)
    dataset.reader.read = lambda _relative, first, last: same[first:last]
    # Four slices are warped as the channels of one image; OpenCV rounds one of two channels otherwise.
    assert all(len({image.numpy().tobytes() for image in dataset[0, n].images[:4]}) == 1 for n in range(3))


def test_the_same_key_gives_the_same_block_in_a_copy_that_went_through_pickle(prepared):
    dataset = make_dataset(prepared, AugmentConfig())
    copy = pickle.loads(pickle.dumps(dataset))
    last = len(dataset.plan(3).rows) - 1
    copy[0, 0]
    for ours, theirs in zip(dataset[3, last], copy[3, last], strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_epochs_and_blocks_never_repeat_an_augmentation(prepared):
    dataset = make_dataset(prepared, AugmentConfig())
    # The same slices at every key: what differs is the augmentation alone.
    plan = dataset.plan(0)
    fixed = type(plan)(np.repeat(plan.rows[:1], 3, 0), np.repeat(plan.is_real[:1], 3, 0))
    dataset.plan = lambda _epoch: fixed
    seen = [dataset[epoch, number].images.numpy().tobytes() for epoch in range(3) for number in range(3)]
    assert len(set(seen)) == 9


@pytest.mark.parametrize("per", ["block", "slice"])
def test_no_two_epochs_or_blocks_share_a_pattern_of_noise(prepared, per):
    noise = PLAIN.model_copy(update={"noise_probability": 1.0, "noise_hu": (20, 20), "per": per})
    dataset = make_dataset(prepared, noise)
    plan = dataset.plan(0)
    fixed = type(plan)(np.repeat(plan.rows[:1], 3, 0), np.repeat(plan.is_real[:1], 3, 0))
    dataset.plan = lambda _epoch: fixed
    images = [dataset[epoch, number].images.numpy() for epoch in range(3) for number in range(3)]
    assert len({image.tobytes() for image in images}) == 9


@pytest.mark.parametrize(("per", "num_different"), [("block", 1), ("slice", 5)])
def test_geometry_is_drawn_once_a_block_or_once_a_slice(prepared, per, num_different):
    dataset = make_dataset(prepared, AugmentConfig(per=per, noise_probability=0))
    same = np.repeat(prepared.read_volume(prepared.split("train").volume[0])[:1], 9, 0)
    dataset.reader.read = lambda _relative, first, last: same[first:last]
    number = int(np.flatnonzero(dataset.plan(0).is_real.sum(1) >= 5)[0])
    block = dataset[0, number]
    images = {image.numpy().tobytes() for image in block.images[dataset.plan(0).is_real[number]]}
    assert len(images) == 1 if num_different == 1 else len(images) >= num_different


def test_a_worker_process_makes_the_same_blocks_as_this_one(prepared):
    dataset = make_dataset(prepared, AugmentConfig())
    batches = EpochBatches(len(dataset.plan(0).rows), 2)
    batches.start(1, 1)
    spawned = DataLoader(
        dataset, batch_sampler=batches, num_workers=1, collate_fn=stack_blocks, multiprocessing_context="spawn"
    )
    here = DataLoader(dataset, batch_sampler=batches, collate_fn=stack_blocks)
    pairs = list(zip(spawned, here, strict=True))
    assert len(pairs) == batches.steps_per_epoch - 1
    for theirs, ours in pairs:
        for a, b in zip(theirs, ours, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_reader_without_room_reads_the_same_as_one_that_keeps_everything(prepared):
    relative = prepared.split("train").volume[0]
    volume = prepared.read_volume(relative)
    small, large = VolumeReader(prepared.folder, budget_bytes=0), VolumeReader(prepared.folder)
    for first, last in [(0, 2), (1, 4), (len(volume) - 1, len(volume) + 1)]:
        for reader in (small, large, large):
            np.testing.assert_array_equal(reader.read(relative, first, last), volume[first:last])


def test_the_index_keeps_no_python_objects(slices):
    index = SliceIndex.of(slices, TASK.classes)
    assert all(not array.dtype.hasobject for array in vars(index).values())
    assert index.paths[index.volume_of].tolist() == slices.volume.tolist()
    lengths = pd.Series(index.first).groupby(slices.study_id.to_numpy()).nunique()
    assert (lengths == 1).all()
