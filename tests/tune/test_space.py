"""The space of a search: what `--try` and a space file mean, and what they refuse."""

import pytest

from ichkit.core.config import change_config, load_config
from ichkit.core.errors import ConfigError
from ichkit.stages.tune.space import Choice, Range, read_space

REFUSED = {
    (): "expected settings to vary, found none",
    ("train.epochs",): "--try: expected section.key=value,value",
    ("train.epochs=",): "--try: expected section.key=value,value",
    ("=1,2",): "--try: expected section.key=value,value",
    ("train.epochs=8..4",): "expected low below high",
    ("train.learning_rate=0..1:log",): "expected low below high",
    ("train.epochs=1..4:9",): "expected low below high",
    ("train.epochs=1,2", "train.epochs=3,4"): "train.epochs is varied twice",
    ("train.epochs=1,1",): "1 is listed twice",
    ("stack.num_inner=2,3",): "expected settings of training",
    ("prepare.size=64,128",): "expected settings of training",
    ("train.classes=[[any]]",): "decides what a run predicts",
    ("train.epochs=[1, 2",): "not readable as YAML",
}


@pytest.mark.parametrize("tries", REFUSED)
def test_a_space_that_is_none_is_refused_with_what_was_expected(tries):
    with pytest.raises(ConfigError) as caught:
        read_space(tries, None)
    assert REFUSED[tries] in str(caught.value)


def test_the_values_of_a_list_become_those_of_the_config():
    space = read_space(["train.learning_rate=1e-4,3e-4", "train.backbone=resnet18,resnet34"], None)
    configs = [change_config(load_config("default"), space.overrides(params)) for params in space.grid()]
    found = [(config.train.learning_rate, config.train.backbone) for config in configs]
    assert found == [(1e-4, "resnet18"), (1e-4, "resnet34"), (3e-4, "resnet18"), (3e-4, "resnet34")]
    assert space.num_points == 4


def test_a_list_of_lists_is_a_list_of_values():
    space = read_space(["channels.windows=[[40, 80], [80, 200], [40, 380]], [[40, 80], [75, 215], [600, 2800]]"], None)
    windows = [
        change_config(load_config("default"), space.overrides(params)).channels.windows for params in space.grid()
    ]
    assert windows == [((40, 80), (80, 200), (40, 380)), ((40, 80), (75, 215), (600, 2800))]


def test_a_range_has_its_integers_or_no_list_of_values():
    whole, steps, real, log = (
        read_space([f"train.x={text}"], None).dimensions[0]
        for text in ("0..5", "2..10:4", "0.1..0.3", "1e-5..1e-3:log")
    )
    assert [whole.values, steps.values, real.values, log.values] == [(0, 1, 2, 3, 4, 5), (2, 6, 10), (), ()]
    assert (real.low, real.high, real.step, real.is_log, log.is_log) == (0.1, 0.3, None, False, True)
    assert read_space(["train.a=0..5", "train.b=0.1..0.3"], None).num_points is None


def test_a_file_has_lists_ranges_and_groups_of_settings(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "train.epochs: {low: 4, high: 8, step: 2}\n"
        "train.weight_decay: {low: 1.0e-5, high: 1.0e-2, log: true}\n"
        "rates:\n"
        "  - {train.phases.0.epochs: 150, train.phases.0.learning_rate: 1.0e-4}\n"
        "  - {train.phases.0.epochs: 50, train.phases.0.learning_rate: 1.0e-2}\n"
    )
    epochs, decay, rates = read_space([], path).dimensions
    assert isinstance(decay, Range)
    assert decay.is_log
    assert epochs.values == (4, 6, 8)
    assert isinstance(rates, Choice)
    phases = [change_config(load_config("default"), rates.overrides(value)).train.phases for value in rates.values]
    assert [(one.epochs, one.learning_rate) for (one,) in phases] == [(150, 1e-4), (50, 1e-2)]
    path.write_text("rates: [{train.epochs: 3}, 4]\n")
    with pytest.raises(ConfigError, match="found both"):
        read_space([], path)
    path.write_text("train.epochs: 3\n")
    with pytest.raises(ConfigError, match="expected a list of values, or"):
        read_space([], path)
    with pytest.raises(ConfigError, match="is not a file"):
        read_space([], tmp_path / "none.yaml")
