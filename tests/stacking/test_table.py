"""The contract of every row of `STACKERS`, and of the inner splits they all choose on."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from support.simulated import TASK, make_work

from ichkit.core.errors import ArtifactError, ConfigError, ContractError
from ichkit.core.stack_config import LightgbmConfig, StackConfig
from ichkit.stacking import choice
from ichkit.stacking import inner as inner_module
from ichkit.stacking.calibration import fit_calibration
from ichkit.stacking.inner import make_training_part
from ichkit.stacking.rows import log_losses_of_logits, make_rows
from ichkit.stacking.sequence import WidenedModel
from ichkit.stacking.table import STACKERS, find_stacker
from ichkit.work.artifacts import read_table
from ichkit.work.schemas import KEY

CONFIG = StackConfig.model_validate(
    {
        "fusion": {"epochs": 4, "num_seeds": 2, "learning_rate": 0.01, "channels": [8, 8]},
        "lightgbm": {"max_rounds": 40},
        "sequence": {"epochs": 6, "num_seeds": 1, "learning_rate": 0.03, "hidden": 8, "weight_decay": [0.01]},
    }
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Rows and slices of folds 1 to 4 to learn from, and the rows of fold 0 to predict."""
    work = make_work(tmp_path_factory.mktemp("table") / "work", num_patients=60, noise=3.0, runs=("a", "b"))
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.split == "train"].sort_values(KEY, ignore_index=True)
    tables = [pd.concat([read_table(work.fold(run, fold) / "oof.parquet") for fold in range(5)]) for run in ("a", "b")]
    rows, held = make_rows(tables, slices, TASK), (slices.fold == 0).to_numpy()
    return rows.take(~held), slices[~held].reset_index(drop=True), rows.take(held), slices[held]


@pytest.fixture(scope="module")
def training(parts):
    return make_training_part(parts[0], parts[1], TASK, 3, seed=0)


WIDE = CONFIG.model_validate(
    CONFIG.model_dump(mode="json")
    | {
        "sequence": {
            **CONFIG.sequence.model_dump(mode="json"),
            "wide": {"units": 24, "epochs": 8, "learning_rate": 0.01},
        }
    }
)
FITS = {name: (STACKERS[name], CONFIG) for name in sorted(STACKERS)} | {"wide": (STACKERS["sequence"], WIDE)}


@pytest.fixture(scope="module", params=FITS)
def fitted(request, training):
    stacker, config = FITS[request.param]
    return stacker, *stacker.fit(training, TASK, config, 5)


@pytest.fixture
def config(fitted):
    return WIDE if isinstance(fitted[1], WidenedModel) else CONFIG


def test_a_row_says_what_it_is(fitted):
    stacker, _, _ = fitted
    assert STACKERS[stacker.name] is stacker
    assert stacker.description.endswith(".")
    assert stacker.source


def test_inner_logits_are_there_for_inner_patients_and_gain_on_the_base(fitted, training):
    _, _, inner = fitted
    rows = training.chosen_rows()
    assert np.isfinite(inner[rows]).all()
    base = log_losses_of_logits(training.inner_base_logits()[rows], training.labels[rows]).mean(axis=0)
    assert (log_losses_of_logits(inner[rows], training.labels[rows]).mean(axis=0) <= base).all()


def test_a_model_gains_on_rows_it_never_saw(fitted, training, parts):
    _, model, _ = fitted
    labels = parts[3][list(TASK.classes)].to_numpy(float)
    base = training.calibration.apply(parts[2].combined_logits())
    weights = TASK.weight_array()
    before = log_losses_of_logits(base, labels).mean(axis=0) @ weights
    assert log_losses_of_logits(model.predict(parts[2], base), labels).mean(axis=0) @ weights < 0.95 * before


def test_a_model_read_back_predicts_the_same_bytes(fitted, training, parts, tmp_path):
    stacker, model, _ = fitted
    for name, data in model.encode().items():
        (tmp_path / name).write_bytes(data)
    base = training.calibration.apply(parts[2].combined_logits())
    assert stacker.load(tmp_path).predict(parts[2], base).tobytes() == model.predict(parts[2], base).tobytes()


def test_a_model_that_is_not_there_is_an_artifact_error(fitted, tmp_path):
    with pytest.raises(ArtifactError, match="Run `ichkit stack` again"):
        fitted[0].load(tmp_path / "nowhere")


def test_the_same_inputs_fit_the_same_bytes(fitted, training, config):
    stacker, model, inner = fitted
    torch.rand(3)  # whatever state torch's generator is in
    again, inner_again = stacker.fit(training, TASK, config, 5)
    assert again.encode() == model.encode()
    assert inner_again.tobytes() == inner.tobytes()


def test_a_study_is_predicted_the_same_among_others_and_alone(fitted, training, parts):
    _, model, _ = fitted
    rows = parts[2]
    base = training.calibration.apply(rows.combined_logits())
    alone = rows.study_codes == rows.study_codes[len(rows) // 2]
    together = model.predict(rows, base)[alone]
    np.testing.assert_allclose(model.predict(rows.take(alone), base[alone]), together, rtol=0, atol=1e-5)


def test_a_training_part_without_a_positive_raises_no_probability(fitted, training, config):
    stacker, _, _ = fitted
    silent = dataclasses.replace(training, labels=np.zeros_like(training.labels))
    model, inner = stacker.fit(silent, TASK, config, 5)
    base = silent.base_logits()
    assert np.isfinite(inner[silent.chosen_rows()]).all()
    assert (model.predict(silent.rows, base).mean(axis=0) <= base.mean(axis=0)).all()


def test_inner_parts_hold_whole_patients_and_every_row_once(training):
    owners = pd.DataFrame({"patient": training.patients, "part": training.parts}).groupby("patient").part.nunique()
    assert (owners == 1).all()
    splits = list(training.splits())
    assert sorted(np.concatenate([split.held for split in splits])) == training.chosen_rows().tolist()
    for split in splits:
        assert not set(training.patients[split.fitting]) & set(training.patients[split.held])


def test_a_held_inner_part_is_calibrated_by_the_others_alone(parts, monkeypatch):
    rows, slices = parts[:2]
    monkeypatch.setattr(choice, "choose_share", lambda *_: 1.0)
    training = make_training_part(rows, slices, TASK, 3, seed=0)
    mean, inner = rows.combined_logits(), training.inner_base_logits()
    for split in training.splits():
        by_hand = fit_calibration(mean[split.fitting], training.labels[split.fitting])
        np.testing.assert_array_equal(inner[split.held], by_hand.apply(mean[split.held]))


def test_a_base_that_is_calibrated_already_is_left_alone(tmp_path):
    work = make_work(tmp_path / "work", num_patients=60, noise=0.0)
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.split == "train"].sort_values(KEY, ignore_index=True)
    rows = make_rows([pd.concat([read_table(work.fold("base", k) / "oof.parquet") for k in range(5)])], slices, TASK)
    change = (
        make_training_part(rows, slices, TASK, 3, seed=0).calibration.apply(rows.combined_logits())
        - rows.combined_logits()
    )
    by_fit = fit_calibration(rows.combined_logits(), slices[list(TASK.classes)].to_numpy(float))
    plain = by_fit.apply(rows.combined_logits()) - rows.combined_logits()
    assert np.abs(change).mean() < 0.5 * np.abs(plain).mean()


def test_choices_are_made_on_drawn_patients_where_there_are_many(parts, monkeypatch):
    monkeypatch.setattr(inner_module, "MAX_INNER_ROWS", 150)
    training = make_training_part(parts[0], parts[1], TASK, 3, seed=0)
    chosen = training.chosen_rows()
    assert 100 < len(chosen) <= 150
    assert not set(training.patients[chosen]) & set(training.patients[training.parts < 0])
    model, inner = STACKERS["lightgbm"].fit(training, TASK, CONFIG, 5)
    assert np.isnan(inner[training.parts < 0]).all()
    assert np.isfinite(inner[chosen]).all()
    assert np.isfinite(model.predict(parts[2], parts[2].combined_logits())).all()


def test_a_stacker_or_strength_that_does_not_exist_is_refused_with_the_nearest(training):
    with pytest.raises(ConfigError, match='Did you mean "fusion"'):
        find_stacker("fusoin")
    config = CONFIG.model_copy(update={"lightgbm": LightgbmConfig(strengths=("stronk",))})
    with pytest.raises(ConfigError, match='unknown preset "stronk".*Did you mean "strong"'):
        STACKERS["lightgbm"].fit(training, TASK, config, 5)


def test_with_the_base_as_the_only_strength_boosting_returns_it(training, parts):
    config = CONFIG.model_copy(update={"lightgbm": LightgbmConfig(strengths=("base",))})
    model, inner = STACKERS["lightgbm"].fit(training, TASK, config, 5)
    base = parts[2].combined_logits()
    np.testing.assert_array_equal(model.predict(parts[2], base), base)
    np.testing.assert_array_equal(inner, training.inner_base_logits())


def test_descriptors_of_other_slices_are_refused(parts):
    _, slices, _, other = parts
    table = slices[["slice_id", *KEY]].assign(**dict.fromkeys(TASK.probability_columns, 0.5))
    with pytest.raises(ContractError, match="expected exactly the"):
        make_rows([table], other, TASK)
