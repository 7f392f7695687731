"""Settings that depend on the number of steps."""

import math

import pytest

from ichkit.core.config import load_config
from ichkit.core.train_config import CutMixConfig, MixupConfig, PhaseConfig, TrainConfig
from ichkit.engine.length import CUTMIX_STEPS, MIN_BLOCKS, MIN_STEPS, adapt_to_length
from ichkit.engine.sampling import count_blocks

SHIPPED = load_config("default").train


def test_without_the_setting_nothing_changes():
    config = TrainConfig(ema_decay=0.999, cutmix=CutMixConfig(probability=1.0))
    adapted = adapt_to_length(config, 300, 10)
    assert adapted.config is config
    assert adapted.changes == {}
    assert adapted.describe() == ""


def test_the_paper_keeps_its_numbers_whatever_the_length():
    paper = load_config("resnet50-midl").train
    assert adapt_to_length(paper, 300, 10).config is paper


def test_a_long_run_keeps_the_values_of_the_config():
    assert adapt_to_length(SHIPPED, 750_000, 21_000).config == SHIPPED


@pytest.mark.parametrize("num_studies", [1, 30, 65, 200, 1000, 5000, 20000])
def test_a_short_run_has_smaller_batches_and_no_run_has_larger_ones(num_studies):
    adapted = adapt_to_length(SHIPPED, 33 * num_studies, num_studies)
    blocks = count_blocks(SHIPPED, 33 * num_studies, num_studies)
    used = adapted.config.batch_blocks
    assert adapted.num_steps == SHIPPED.epochs * math.ceil(blocks / used)
    assert MIN_BLOCKS <= used <= SHIPPED.batch_blocks
    if used > MIN_BLOCKS:
        assert SHIPPED.epochs * blocks / used >= MIN_STEPS
    if used < SHIPPED.batch_blocks:
        assert SHIPPED.epochs * blocks / (used + 1) < MIN_STEPS


def test_phases_with_batches_of_their_own_are_counted_and_made_smaller_too():
    phases = (PhaseConfig(batch_blocks=4, epochs=1), PhaseConfig(epochs=2))
    config = TrainConfig(sampling="studies", batch_blocks=8, phases=phases)
    assert adapt_to_length(config, 600, 20).num_steps == 5 + 2 * 3
    short = adapt_to_length(config.model_copy(update={"adapts_to_length": True}), 600, 20)
    assert [phase.batch_blocks for phase in short.config.phases] == [1, None]
    assert short.num_steps == 20 + 2 * 20


def test_cutmix_is_for_long_runs():
    config = TrainConfig(adapts_to_length=True, epochs=1, sampling="slices", cutmix=CutMixConfig(probability=0.4))
    long = CUTMIX_STEPS * config.batch_blocks * config.block_size
    assert adapt_to_length(config, long, 1000).config.cutmix.probability == 0.4
    assert adapt_to_length(config, long - 112, 1000).config.cutmix.probability == 0


def test_weights_are_averaged_over_a_share_of_a_short_run_and_never_longer_than_configured():
    decays = [adapt_to_length(SHIPPED, 33 * n, n).config.ema_decay for n in (1, 30, 200, 1000, 20000)]
    assert decays == sorted(decays)
    assert decays[-1] == SHIPPED.ema_decay
    assert adapt_to_length(TrainConfig(adapts_to_length=True), 1000, 30).config.ema_decay is None


@pytest.mark.parametrize(("num_studies", "drop_rate", "mixup"), [(30, 0.5, 1.0), (99, 0.5, 1.0), (100, 0.0, 0.0)])
def test_few_studies_have_dropout_and_mixup(num_studies, drop_rate, mixup):
    adapted = adapt_to_length(SHIPPED, 33 * num_studies, num_studies)
    assert (adapted.config.drop_rate, adapted.config.mixup.probability) == (drop_rate, mixup)
    assert adapted.changes.get("drop_rate", 0.0) == drop_rate
    assert adapted.changes.get("mixup.probability", 0.0) == mixup


@pytest.mark.parametrize("own", [{"drop_rate": 0.2}, {"mixup": MixupConfig(probability=0.3)}])
def test_dropout_or_mixup_of_the_config_is_left_as_it_is(own):
    config = SHIPPED.model_copy(update=own)
    adapted = adapt_to_length(config, 1000, 30).config
    assert (adapted.drop_rate, adapted.mixup) == (config.drop_rate, config.mixup)


def test_every_process_gets_a_block_of_every_batch():
    assert adapt_to_length(SHIPPED, 1000, 30, world=9).config.batch_blocks == 9


def test_the_words_name_every_changed_value():
    adapted = adapt_to_length(SHIPPED, 1000, 30)
    assert all(f"{name} {value:g}" in adapted.describe() for name, value in adapted.changes.items())
    assert adapted.changes
