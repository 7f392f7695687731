"""A network that reads blocks, at inference: windows, views, heat maps and cards."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from ichkit.core.config import load_config
from ichkit.core.errors import IchkitError
from ichkit.engine.heat import find_layer, heat_maps
from ichkit.engine.inference import ModelCard, Predictor, encode_weights, read_predictor, window_starts
from ichkit.imaging.views import View
from ichkit.models.context import CONTEXTS, centre_positions

KINDS = [name for name in CONTEXTS if name != "none"]
SETTINGS = ("train.backbone=test_resnet", "train.image_size=32", "train.pretrained=none", "train.sampling=studies")


def make_predictor(kind, *changes, **card):
    config = load_config("default", (*SETTINGS, f"train.context={kind}", "train.context.width=16", *changes))
    made = replace(ModelCard.of(config, None, (-800, 2000)), **card)
    torch.manual_seed(0)
    network = made.build()
    if network.series is not None:  # it starts at zero
        torch.nn.init.normal_(network.series.weight)
    return Predictor(made, network, torch.device("cpu"))


def make_volume(num_slices, seed=0):
    noise = np.random.default_rng(seed).normal(40, 40, (num_slices, 8, 8))
    return noise.repeat(4, 1).repeat(4, 2).round().astype(np.int16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_is_read_as_the_network_reads_a_block(kind):
    predictor, volume = make_predictor(kind, batch_size=4), make_volume(10)
    positions = np.arange(10) * 3.0 + 100
    images = predictor.rendering.render(volume, np.arange(10))
    block = torch.from_numpy(images)[None]
    with torch.inference_mode():
        logits = predictor.network(block, None, torch.from_numpy(centre_positions(positions))[None])
    read = predictor.read_study(volume, positions)
    np.testing.assert_allclose(read.probabilities, logits.series[0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(read.of_slices, logits.slices[0].sigmoid(), atol=1e-5)
    np.testing.assert_array_equal(predictor.predict_volume(volume, positions), read.probabilities)
    np.testing.assert_array_equal(predictor.describe_volume(volume, positions)[0], read.probabilities)
    # Without positions the slices are 5 mm apart, so twice as near is another study.
    assert np.abs(predictor.predict_volume(volume) - read.probabilities).max() > 1e-4
    np.testing.assert_array_equal(predictor.predict_volume(volume), predictor.predict_volume(volume, np.arange(10) * 5))


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_of_a_long_study_are_the_mean_over_windows_that_overlap(kind):
    predictor, volume = make_predictor(kind, window=6), make_volume(14)
    positions = centre_positions(np.arange(14) * 5.0)
    features, logits = predictor.encode_study(volume, View())
    sums, counts, everywhere = np.zeros((14, 6)), np.zeros(14), torch.ones(1, 6, dtype=torch.bool)
    for start in (0, 3, 6, 8):
        own = slice(start, start + 6)
        with torch.inference_mode():
            places = torch.from_numpy(positions[own])[None]
            found = predictor.network.combine(features[None, own], logits[None, own], everywhere, places)
        sums[own] += found.series[0].double().numpy()
        counts[own] += 1
    assert window_starts(14, 6).tolist() == [0, 3, 6, 8]
    assert counts.min() >= 1
    expected = 1 / (1 + np.exp(-sums / counts[:, None]))
    np.testing.assert_allclose(predictor.predict_volume(volume), expected, atol=1e-5)


def test_views_are_averaged_and_a_mirrored_study_reads_the_same():
    plain, mirrored = (make_predictor("transformer", tta=tta) for tta in ("none", "hflip"))
    volume = make_volume(5)
    other = volume[:, :, ::-1].copy()
    mean = (plain.predict_volume(volume) + plain.predict_volume(other)) / 2
    np.testing.assert_allclose(mirrored.predict_volume(volume), mean, atol=1e-6)
    np.testing.assert_allclose(mirrored.predict_volume(other), mean, atol=1e-6)


def test_a_pooled_study_has_the_weights_of_its_window_and_none_elsewhere():
    predictor = make_predictor("gru", "train.pool=top-mean", "train.pool.top=2", window=6)
    read = predictor.read_study(make_volume(14))
    assert read.of_study.shape == (6,)
    np.testing.assert_allclose(read.weights.sum(0), 1, atol=1e-6)
    assert ((read.weights > 0).sum(0) == 2).all()
    # Two slices of the best window carry the study: its probability is at most that of the best slice of a window.
    spread = [np.ptp(np.flatnonzero(read.weights[:, k])) for k in range(6)]
    assert max(spread) < 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_heat_of_a_slice_is_what_it_adds_to_its_own_logit_with_the_rest_fixed(kind):
    predictor, volume = make_predictor(kind), make_volume(9)
    positions, row, k = np.arange(9) * 4.0, 3, 2
    study = predictor.encode_study(volume, View())
    centred = predictor.centre(9, positions)
    with torch.enable_grad():
        own = tuple(part[[row]].clone().requires_grad_() for part in study)
        found = predictor.attend(own, study, np.array([row]), centred)
        (gradient,) = torch.autograd.grad(found[0, k], own[0])
    read = predictor.predict_volume(volume, positions)
    np.testing.assert_allclose(found[0].sigmoid().detach(), read[row], atol=1e-5)
    # By finite differences of the whole network, features of that slice alone moved.
    step = torch.zeros_like(own[0])
    step[0, 5] = 1e-2
    up, down = (
        predictor.attend((own[0] + sign * step, own[1]), study, np.array([row]), centred)[0, k] for sign in (1, -1)
    )
    assert gradient[0, 5].item() == pytest.approx((up - down).item() / 2e-2, rel=0.05, abs=1e-4)
    heat = heat_maps(predictor, volume, np.array([row, 7]), [k], positions)
    assert heat.shape == (2, 1, 32, 32)
    np.testing.assert_allclose(heat_maps(predictor, volume, np.array([7]), [k], positions)[0], heat[1], atol=1e-5)


def test_the_heat_of_a_slice_depends_on_its_study_where_slices_see_each_other():
    volume, other = make_volume(5), make_volume(5, seed=1)
    other[2] = volume[2]
    seen = make_predictor("gru")
    alone = make_predictor("none")
    rows = np.array([2])
    assert np.abs(heat_maps(seen, volume, rows, range(6)) - heat_maps(seen, other, rows, range(6))).max() > 1e-4
    np.testing.assert_array_equal(heat_maps(alone, volume, rows, range(6)), heat_maps(alone, other, rows, range(6)))


def save(folder, predictor, **changes):
    (folder / "model.json").write_text(json.dumps({**asdict(predictor.card), **changes}))
    (folder / "model.safetensors").write_bytes(encode_weights(predictor.network))


def test_a_network_comes_back_with_its_context_and_a_card_of_an_earlier_version_without(tmp_path):
    predictor, volume = make_predictor("gru", "train.pool=attention"), make_volume(5)
    save(tmp_path, predictor)
    again = read_predictor(tmp_path, "cpu")
    np.testing.assert_array_equal(again.predict_volume(volume), predictor.predict_volume(volume))
    np.testing.assert_array_equal(again.read_study(volume).weights, predictor.read_study(volume).weights)
    old = make_predictor("none")
    save(tmp_path, old)
    card = json.loads((tmp_path / "model.json").read_text())
    for name in ("context", "pool", "window"):
        del card[name]
    (tmp_path / "model.json").write_text(json.dumps(card))
    np.testing.assert_array_equal(read_predictor(tmp_path, "cpu").predict_volume(volume), old.predict_volume(volume))


@pytest.mark.parametrize(
    "changes",
    [
        {"context": {"kind": "gru", "layers": 10**6}},
        {"context": {"kind": "gru", "width": 10**9}},
        {"context": {"kind": "os.system"}},
        {"context": {"kind": "gru", "extra": 1}},
        {"context": [1]},
        {"context": "gru"},
        {"pool": {"kind": "attention", "width": 10**9}},
        {"pool": {"kind": "slice-weights", "positions": -1}},
        {"window": 10**9},
        {"window": "60"},
        {"window": 0},
    ],
)
def test_a_card_that_no_training_writes_is_refused(tmp_path, changes):
    save(tmp_path, make_predictor("gru"))
    read_predictor(tmp_path, "cpu")
    save(tmp_path, make_predictor("gru"), **changes)
    with pytest.raises(IchkitError, match=r'the description of a network|tensors are missing|unknown "os\.system"'):
        read_predictor(tmp_path, "cpu")


def test_a_pool_may_write_the_probability_of_the_study_for_every_slice():
    of_slices = make_predictor("none", "train.pool=slice-weights", window=9)
    of_study = make_predictor("none", "train.pool={kind: slice-weights, writes: study}", window=9)
    volume = make_volume(9)
    own, whole = of_slices.read_study(volume), of_study.read_study(volume)
    assert np.ptp(own.probabilities, 0).min() > 0
    assert np.array_equal(whole.probabilities, np.tile(whole.of_study, (9, 1)))
    np.testing.assert_array_equal(own.of_study, whole.of_study)
    np.testing.assert_array_equal(own.of_slices, whole.of_slices)


VOLUME = ("train.backbone=unet3d", "train.backbone_args={width: 2}", "train.pool={kind: mean, writes: study}")


def test_a_network_of_volumes_reads_a_study_as_one_also_in_small_batches():
    predictor, volume = make_predictor("none", *VOLUME, window=20, batch_size=4), make_volume(13)
    images = torch.from_numpy(predictor.rendering.render(volume, np.arange(13)))
    with torch.inference_mode():
        logits = predictor.network(images[None])
    read = predictor.read_study(volume)
    np.testing.assert_allclose(read.of_study, logits.study.logits[0].sigmoid(), atol=1e-6)
    np.testing.assert_allclose(read.of_slices, logits.slices[0].sigmoid(), atol=1e-6)
    assert np.array_equal(read.probabilities, np.tile(read.of_study, (13, 1)))


def test_the_heat_of_a_volume_is_every_map_weighted_with_what_raising_all_of_it_does():
    predictor, volume = make_predictor("none", *VOLUME, window=20), make_volume(8)
    layer, num_channels = find_layer(predictor.network.backbone, predictor.card.image_size)
    raised, seen = torch.zeros(num_channels, requires_grad=True), []

    def raise_maps(_module, _inputs, output):
        seen.append(output.detach()[0])  # (channels, planes, h, w)
        return output + raised[:, None, None, None]

    handle = layer.register_forward_hook(raise_maps)
    images = torch.from_numpy(predictor.rendering.render(volume, np.arange(8)))
    predictor.network.encode(images)[1][:, 0].mean().backward()
    handle.remove()
    plane = torch.einsum("c,cphw->phw", raised.grad, seen[0]).clamp(min=0)[0]
    wanted = torch.nn.functional.interpolate((plane / plane.max())[None, None], (32, 32), mode="bilinear")[0, 0]
    np.testing.assert_allclose(heat_maps(predictor, volume, np.array([1]), [0])[0, 0], wanted, atol=1e-3)


def test_heat_maps_of_a_volume_are_those_of_its_planes():
    predictor, volume = make_predictor("none", *VOLUME, window=20), make_volume(8)
    predictor.network.backbone.fc.weight[1] = 0
    maps = heat_maps(predictor, volume, np.array([1, 6]), [0, 1])
    assert maps.shape == (2, 2, 32, 32)
    assert (maps[:, 1] == 0).all()
    assert np.ptp(maps[:, 0]) > 0.5
    assert not np.allclose(maps[0, 0], maps[1, 0])
    # The deepest stage with 7 x 7 cells is halved twice: four slices of eight share a plane.
    both = heat_maps(predictor, volume, np.array([2, 3, 4]), [0])
    assert np.array_equal(both[0], both[1])
    assert not np.array_equal(both[1], both[2])
