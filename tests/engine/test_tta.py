"""Test-time augmentation: every set against a loop over slices and views."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from support.models import FOLD, make_model

from ichkit.core.config import load_config
from ichkit.core.errors import ConfigError
from ichkit.engine.inference import ModelCard, Predictor, read_card, read_predictor
from ichkit.imaging.views import TTA_SETS
from ichkit.imaging.windows import resize_volume

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "export") / FOLD


@pytest.fixture(scope="module")
def predictor(folder):
    made = read_predictor(folder, "cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        made.network.backbone.get_classifier().weight.normal_(0, 0.5)  # random weights say nearly the same of all
    return made


@pytest.fixture(scope="module")
def volume():
    coarse = np.random.default_rng(0).normal(40, 60, (11, 8, 8))
    return coarse.repeat(5, 1).repeat(5, 2).round().astype(np.int16)


def with_card(predictor, **changes):
    """The same network with another card; the fixture's stays as it is."""
    changed = object.__new__(type(predictor))
    changed.__dict__.update(predictor.__dict__, card=replace(predictor.card, **changes))
    return changed


def logits_of(predictor, slices_hu):
    """(S, K) float64 logits of each slice alone."""
    images = [predictor.rendering.render(slices_hu, np.array([i])) for i in range(len(slices_hu))]
    with torch.inference_mode():
        return np.concatenate([predictor.network.encode(torch.from_numpy(image))[1].double() for image in images])


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("average", ["probability", "logit"])
@pytest.mark.parametrize("name", TTA_SETS)
def test_each_set_is_the_mean_over_its_views(predictor, volume, name, average):
    shown = resize_volume(volume, predictor.card.image_size)
    logits = [logits_of(predictor, view.show(shown)) for view in TTA_SETS[name].views]
    wanted = sigmoid(np.mean(logits, 0)) if average == "logit" else np.mean([sigmoid(one) for one in logits], 0)
    found = with_card(predictor, tta=name, tta_average=average).predict_volume(volume)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_the_two_means_and_the_sets_differ(predictor, volume):
    means = [
        with_card(predictor, tta="hflip", tta_average=how).predict_volume(volume) for how in ("probability", "logit")
    ]
    assert abs(means[0] - means[1]).max() > 1e-4
    sets = {with_card(predictor, tta=name).predict_volume(volume).tobytes() for name in TTA_SETS}
    assert len(sets) == len(TTA_SETS) - 1  # without a context the phases change nothing


def test_no_augmentation_and_a_mirrored_image_give_the_bytes_of_the_first_version(predictor, volume):
    shown, size = resize_volume(volume, predictor.card.image_size), predictor.card.batch_size
    plain, both = [], []
    for first in range(0, len(shown), size):
        batch = torch.from_numpy(predictor.rendering.render(shown, np.arange(len(shown))[first : first + size]))
        with torch.inference_mode():
            own, mirrored = (predictor.network.encode(images)[1].sigmoid() for images in (batch, batch.flip(2)))
        plain.append(own.numpy())
        both.append(((own + mirrored) / 2).numpy())
    assert with_card(predictor, tta="none").predict_volume(volume).tobytes() == np.concatenate(plain).tobytes()
    assert with_card(predictor, tta="hflip").predict_volume(volume).tobytes() == np.concatenate(both).tobytes()


def test_a_card_without_the_kind_of_mean_is_read_as_probabilities(folder, tmp_path):
    raw = json.loads((folder / "model.json").read_text())
    del raw["tta_average"]
    (tmp_path / "model.json").write_text(json.dumps(raw))
    card = read_card(tmp_path)
    assert card.tta_average == "probability"
    assert asdict(card) == asdict(read_card(folder))


def test_the_card_carries_the_set_and_an_unknown_one_is_refused_before_training():
    config = load_config("demo", ("train.tta=rotate", "train.tta_average=logit"))
    card = ModelCard.of(config, None, (-800, 2000))
    assert (card.tta, card.tta_average) == ("rotate", "logit")
    with pytest.raises(ConfigError, match=r'train\.tta: unknown "rotates".*rotate'):
        ModelCard.of(load_config("demo", ("train.tta=rotates",)), None, (-800, 2000))


def test_phases_add_the_mean_of_readings_of_every_second_slice(tmp_path, volume):
    folder = make_model(tmp_path / "export") / FOLD
    card = read_card(folder)
    card = replace(card, tta="phases", context={**card.context, "kind": "transformer", "width": 16}, window=40)
    card = replace(card, pool={**card.pool, "kind": "attention"})
    torch.manual_seed(2)
    network = card.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # a new context is the identity
    both, plain = Predictor(card, network, CPU), Predictor(replace(card, tta="none"), network, CPU)
    # The gaps differ, so that the positions of the parts are not those of a study with a slice less.
    positions = np.cumsum([0.0, 5, 5, 4, 6, 5, 7, 5, 5, 5, 3])
    whole, found = plain.read_study(volume, positions), both.read_study(volume, positions)
    centred = plain.centre(len(volume), positions)
    features, logits = plain.encode_study(volume, TTA_SETS["none"].views[0])
    series, study, weights = torch.empty_like(logits), [], torch.empty_like(logits)
    for first in (0, 1):
        own = slice(first, None, 2)
        block = features[own][None], logits[own][None], torch.ones(1, len(logits[own]), dtype=torch.bool)
        with torch.inference_mode():
            read = network.combine(*block, centred[own][None])
        series[own], weights[own] = read.descriptor[0], read.study.weights[0] / 2
        study.append(read.study.logits[0])
    mean = torch.stack(study).mean(0)
    np.testing.assert_allclose(found.probabilities, (whole.probabilities + sigmoid(series.numpy())) / 2, atol=1e-5)
    np.testing.assert_allclose(found.of_study, (whole.of_study + sigmoid(mean.numpy())) / 2, atol=1e-5)
    np.testing.assert_allclose(found.weights, (whole.weights + weights.numpy()) / 2, atol=1e-5)
    np.testing.assert_allclose(found.weights.sum(0), 1, atol=1e-5)
    assert abs(found.probabilities - whole.probabilities).max() > 1e-3
    np.testing.assert_array_equal(found.of_slices, whole.of_slices)
    assert both.read_study(volume[:1]).probabilities.shape == (1, 6)
