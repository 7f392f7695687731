"""The second stage's networks and how they are trained: against plain twins, and by laws."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from support.simulated import TASK, make_work
from torch import nn

from ichkit.core.errors import ConfigError
from ichkit.core.stack_config import FusionConfig, SequenceConfig, StackConfig, WideConfig
from ichkit.models.axial import AxialFusion
from ichkit.models.recurrent import SequenceNetwork
from ichkit.stacking.fusion import fit_fusion
from ichkit.stacking.inner import make_training_part
from ichkit.stacking.networks import _Fit, standardisation
from ichkit.stacking.rows import make_rows
from ichkit.stacking.sequence import _Studies, fit_sequence, load_sequence
from ichkit.work.artifacts import read_table
from ichkit.work.schemas import KEY

LENGTHS = torch.tensor([5, 1, 9, 3])


def wake(network):
    """A network whose every weight counts; the last layer starts at zero."""
    torch.manual_seed(3)
    for p in network.parameters():
        nn.init.normal_(p, std=0.4)
    return network


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    work = make_work(tmp_path_factory.mktemp("networks") / "work", num_patients=40, noise=3.0)
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.split == "train"].sort_values(KEY, ignore_index=True)
    table = pd.concat([read_table(work.fold("base", fold) / "oof.parquet") for fold in range(5)])
    return make_training_part(make_rows([table], slices, TASK), slices, TASK, 2, seed=0)


def make_batch(seed=0, channels=4):
    generator = torch.Generator().manual_seed(seed)
    slices = torch.randn(len(LENGTHS), 9, channels, generator=generator)
    return slices, torch.randn(int(LENGTHS.sum()), TASK.num_classes, generator=generator)


def test_the_sequence_network_is_a_packed_bidirectional_gru():
    network = wake(SequenceNetwork(4, TASK.num_classes, hidden=8))
    twin = nn.GRU(8, 8, batch_first=True, bidirectional=True)
    halves = {"": network.upward, "_reverse": network.downward}
    twin.load_state_dict({f"{k}{end}": v for end, gru in halves.items() for k, v in gru.state_dict().items()})
    slices, base = make_batch()
    with torch.inference_mode():
        entered = torch.relu(network.entry(slices))
        packed = nn.utils.rnn.pack_padded_sequence(entered, LENGTHS, batch_first=True, enforce_sorted=False)
        read, _ = nn.utils.rnn.pad_packed_sequence(twin(packed)[0], batch_first=True)
        rows = [torch.cat([entered[i, :n], read[i, :n]], dim=1) for i, n in enumerate(LENGTHS.tolist())]
        torch.testing.assert_close(network(slices, LENGTHS, base), base + network.last(torch.cat(rows)))


def test_padding_and_the_other_studies_have_no_influence():
    network = wake(SequenceNetwork(4, TASK.num_classes, hidden=8))
    slices, base = make_batch()
    spoilt = slices.clone()
    for study, length in enumerate(LENGTHS.tolist()):
        spoilt[study, length:] = 1e6
    with torch.inference_mode():
        torch.testing.assert_close(network(spoilt, LENGTHS, base), network(slices, LENGTHS, base))
        alone = network(slices[2:3], LENGTHS[2:3], base[6:15])
        torch.testing.assert_close(alone, network(slices, LENGTHS, base)[6:15])


@pytest.mark.parametrize("make", [lambda: SequenceNetwork(4, 6, 8), lambda: AxialFusion(4, 6, 9, (5, 7))])
def test_an_untrained_network_is_the_base_and_every_parameter_gets_a_gradient(make):
    slices, base = make_batch()
    network = make()
    given = (slices, LENGTHS) if isinstance(network, SequenceNetwork) else (slices.transpose(1, 2),)
    base = base if isinstance(network, SequenceNetwork) else base[: len(slices)]
    torch.testing.assert_close(network(*given, base), base, rtol=0, atol=0)
    wake(network)(*given, base).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def drawn_studies(training, **settings):
    """Row numbers of every study of an epoch, in the order they are read."""
    rows = training.rows
    center, scale = standardisation(rows.logits.reshape(len(rows), -1))
    studies = _Studies(rows, center, scale, SequenceConfig(**settings))
    found = []
    for batch in studies.draw_batches(np.arange(len(rows)), 4, np.random.default_rng(0)):
        slices, lengths = batch.inputs
        ends = np.cumsum(lengths.numpy())
        for number, own in enumerate(np.split(batch.rows, ends[:-1])):
            torch.testing.assert_close(slices[number, : len(own)], studies.slices[own])
            found.append(own)
    return studies, found


def test_an_epoch_reads_every_study_once_in_another_order(training):
    studies, found = drawn_studies(training, reversal_probability=0.0, thinning_probability=0.0)
    assert sorted(np.concatenate(found)) == list(range(len(training.rows)))
    assert all((np.diff(own) == 1).all() for own in found)
    assert [own[0] for own in found] != studies.starts.tolist()


def test_augmentation_turns_studies_round_and_leaves_out_every_second_slice(training):
    _, turned = drawn_studies(training, reversal_probability=1.0, thinning_probability=0.0)
    assert sorted(np.concatenate(turned)) == list(range(len(training.rows)))
    assert all((np.diff(own) == -1).all() for own in turned)
    studies, thinned = drawn_studies(training, reversal_probability=0.0, thinning_probability=1.0)
    assert all((np.diff(own) == 2).all() for own in thinned)
    offsets = {int(own[0] - studies.starts[np.searchsorted(studies.starts, own[0], "right") - 1]) for own in thinned}
    assert offsets == {0, 1}
    _, some = drawn_studies(training)
    assert {int(np.sign(np.diff(own)[0])) for own in some} == {-1, 1}


@pytest.mark.parametrize(
    ("section", "fit"), [("fusion", fit_fusion), ("sequence", fit_sequence)], ids=["fusion", "sequence"]
)
def test_several_seeds_are_averaged(training, section, fit):
    settings = {"epochs": 3, "num_seeds": 2, "learning_rate": 0.02, "weight_decay": [0.01]}
    model, _ = fit(training, TASK, StackConfig.model_validate({section: settings}), 5)
    assert len(model.states) == 2
    base = training.base_logits()
    single = [dataclasses.replace(model, states=(state,)).predict(training.rows, base) - base for state in model.states]
    assert np.abs(single[0] - single[1]).max() > 1e-3
    np.testing.assert_allclose(model.predict(training.rows, base) - base, np.mean(single, axis=0), atol=1e-6)


@pytest.mark.parametrize("window", [3, 9, 21])
@pytest.mark.parametrize("channels", [(4, 6)])
def test_windows_and_widths_are_those_of_the_config(training, window, channels):
    settings = {"window": window, "channels": channels, "epochs": 2, "num_seeds": 1, "learning_rate": 0.02}
    model, _ = fit_fusion(training, TASK, StackConfig.model_validate({"fusion": settings}), 5)
    assert model.window == window
    assert model.states[0]["first.weight"].shape == (4, 2 * TASK.num_classes, 3)
    assert model.states[0]["last.weight"].shape == (TASK.num_classes, 6 * window)
    # The window's reach is the network's: a slice further away changes nothing, one inside it does.
    base, rows = training.base_logits(), training.rows
    starts = np.flatnonzero(np.diff(rows.study_codes, prepend=-1))
    longest = starts[np.argmax(np.diff([*starts, len(rows)]))]
    for reach, differs in ((window // 2, True), (window // 2 + 1, False)):
        if longest + reach >= len(rows) or rows.study_codes[longest + reach] != rows.study_codes[longest]:
            continue
        logits = rows.logits.copy()
        logits[longest + reach] += 5
        moved = model.predict(dataclasses.replace(rows, logits=logits), base)[longest]
        assert (np.abs(moved - model.predict(rows, base)[longest]).max() > 1e-6) == differs


@pytest.mark.parametrize("window", [1, 4, 23])
def test_a_window_outside_three_to_twenty_one_or_even_is_refused(window):
    with pytest.raises(ValidationError, match="window"):
        FusionConfig(window=window)


def test_many_rows_are_passed_over_no_more_often_than_the_visits_allow(training):
    def fit(**settings):
        config = SequenceConfig(num_seeds=1, hidden=4, **settings)
        rows = training.rows
        center, scale = standardisation(rows.logits.reshape(len(rows), -1))
        inputs = _Studies(rows, center, scale, config)
        plan = _Fit(inputs, training.base_logits(), training.labels, TASK.weight_array(), config, 0.1)
        *_, network = plan.run(np.arange(len(rows)), (8,), seed=1)
        return network.state_dict()

    few = fit(epochs=2)
    capped = fit(epochs=8, max_visits=2 * len(training.rows) + 5)
    assert all(torch.equal(few[name], capped[name]) for name in few)
    assert not torch.equal(few["last.weight"], fit(epochs=8)["last.weight"])


def make_wide(**options):
    return SequenceNetwork(4, TASK.num_classes, hidden=8, num_differenced=3, **options)


def test_the_wide_network_also_reads_the_differences_to_both_neighbours():
    network, plain = wake(make_wide()), SequenceNetwork(10, TASK.num_classes, hidden=8)
    plain.load_state_dict(network.state_dict())
    slices, base = make_batch()
    widened = torch.zeros(len(LENGTHS), 9, 10)
    widened[:, :, :4] = slices
    for study, length in enumerate(LENGTHS.tolist()):
        for place in range(length):
            own = slices[study, place, :3]
            before = own - slices[study, place - 1, :3] if place > 0 else torch.zeros(3)
            after = own - slices[study, place + 1, :3] if place < length - 1 else torch.zeros(3)
            widened[study, place, 4:] = torch.cat([before, after])
    with torch.inference_mode():
        torch.testing.assert_close(network(slices, LENGTHS, base), plain(widened, LENGTHS, base))
        spoilt = slices.clone()
        for study, length in enumerate(LENGTHS.tolist()):
            spoilt[study, length:] = 1e6
        torch.testing.assert_close(network(spoilt, LENGTHS, base), network(slices, LENGTHS, base))


def states_after(training, config, ends):
    rows = training.rows
    center, scale = standardisation(rows.logits.reshape(len(rows), -1))
    inputs = _Studies(rows, center, scale, SequenceConfig(), config)
    plan = _Fit(inputs, training.base_logits(), training.labels, TASK.weight_array(), config, 0.1)
    found = plan.run(np.arange(len(rows)), ends, seed=1)
    return [{name: value.clone() for name, value in network.state_dict().items()} for network in found]


def test_the_weights_kept_are_the_mean_of_the_last_epochs(training):
    settings = {"units": 12, "epochs": 6, "learning_rate": 0.02, "accelerator": "cpu"}
    each = states_after(training, WideConfig(averaged_epochs=1, **settings), range(1, 7))
    early, late = states_after(training, WideConfig(averaged_epochs=3, **settings), (2, 6))
    for name in late:
        torch.testing.assert_close(early[name], torch.stack([state[name] for state in each[:2]]).mean(dim=0))
        torch.testing.assert_close(late[name], torch.stack([state[name] for state in each[3:]]).mean(dim=0))
    assert not torch.equal(late["last.weight"], each[-1]["last.weight"])


def test_dropout_is_drawn_from_the_seed_alone_and_only_in_training(training):
    settings = {"units": 12, "epochs": 2, "learning_rate": 0.02, "accelerator": "cpu", "averaged_epochs": 1}
    (first,) = states_after(training, WideConfig(dropout=0.5, **settings), (2,))
    torch.rand(7)
    (again,) = states_after(training, WideConfig(dropout=0.5, **settings), (2,))
    (without,) = states_after(training, WideConfig(dropout=0.0, **settings), (2,))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["last.weight"], without["last.weight"])
    config = StackConfig.model_validate({"sequence": {"epochs": 2, "wide": settings | {"dropout": 0.5}}})
    model, _ = fit_sequence(training, TASK, config, 5)
    base = training.base_logits()
    wide = dataclasses.replace(model.wide, shares=np.ones(TASK.num_classes))
    kept = dataclasses.replace(model, wide=wide) if wide.states else pytest.fail("expected wide networks")
    assert kept.predict(training.rows, base).tobytes() == kept.predict(training.rows, base).tobytes()


def test_classes_whose_inner_patients_do_not_support_the_wide_network_keep_the_small_one(training):
    settings = {"epochs": 16, "num_seeds": 1, "learning_rate": 0.03, "hidden": 8}
    config = StackConfig.model_validate({"sequence": {**settings, "wide": {"units": 16, "learning_rate": 1e-12}}})
    alone, alone_inner = fit_sequence(training, TASK, StackConfig.model_validate({"sequence": settings}), 5)
    spoilt, inner = fit_sequence(training, TASK, config, 5)
    assert alone.shares.all()
    assert not spoilt.wide.shares.any()  # networks that learn nothing are the base, which the small one gains on
    base = training.base_logits()
    assert spoilt.predict(training.rows, base).tobytes() == alone.predict(training.rows, base).tobytes()
    assert inner.tobytes() == alone_inner.tobytes()


def test_a_share_of_one_takes_the_wide_network_whole_and_shares_between_lie_between(training, tmp_path):
    config = StackConfig.model_validate(
        {"sequence": {"epochs": 4, "hidden": 8, "wide": {"units": 16, "epochs": 8, "learning_rate": 0.01}}}
    )
    model, _ = fit_sequence(training, TASK, config, 5)
    assert model.wide.shares.any()
    base, rows = training.base_logits(), training.rows
    small, wide = model.small.predict(rows, base), base + model.wide.correction(rows, TASK.num_classes)
    np.testing.assert_allclose(model.predict(rows, base), small + model.wide.shares * (wide - small), atol=1e-9)
    whole = dataclasses.replace(model, wide=dataclasses.replace(model.wide, shares=np.ones(TASK.num_classes)))
    np.testing.assert_allclose(whole.predict(rows, base), wide, atol=1e-9)
    for name, data in model.encode().items():
        (tmp_path / name).write_bytes(data)
    assert load_sequence(tmp_path).predict(rows, base).tobytes() == model.predict(rows, base).tobytes()


def test_a_gpu_that_is_asked_for_and_missing_is_said(training, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = StackConfig.model_validate({"sequence": {"epochs": 1, "wide": {"units": 8, "accelerator": "cuda"}}})
    with pytest.raises(ConfigError, match="finds no GPU"):
        fit_sequence(training, TASK, config, 5)


@pytest.mark.parametrize(("section", "value"), [("wide", {"units": 1025}), ("wide", {"units": -1})])
def test_more_than_1024_units_are_refused(section, value):
    with pytest.raises(ValidationError, match="units"):
        SequenceConfig.model_validate({section: value})
