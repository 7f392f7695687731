"""Configurations made to harm or written in haste: one message at once, of the place where the user wrote it."""

import time
from pathlib import Path

import pytest

from ichkit.core.config import change_config, load_config
from ichkit.core.config_errors import short
from ichkit.core.errors import ConfigError

SECONDS = 2.0  # each of them took more than a minute, or ended in an internal error
MOST_LETTERS = 600


def alias_bomb(levels=9, width=10):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"train: {{epochs: *a{levels - 1}}}"])


HARMFUL = {
    "alias bomb": (alias_bomb(), "more than 20000 values when its aliases are written out"),
    "a list that holds itself": ("train: &a [*a]", "nested more than 16 levels deep"),
    "deep nesting": ("[" * 3000, "nested more than 16 levels deep"),
    "deep sections": ("".join(f"{' ' * i}a:\n" for i in range(300)), "nested more than 16 levels deep"),
    "a number of 5000 digits": (f"seed: {'9' * 5000}", "it has an invalid number or date"),
    "a number of 4000 digits": (
        f"seed: {'9' * 4000}",
        "seed: Input should be less than 9223372036854775808",
    ),
    "a date that is none": ("train: {epochs: 2020-99-99}", "it has an invalid number or date"),
    "a long text": (f"train: {{epochs: {'x' * 100_000}}}", "train.epochs: Input should be a valid integer"),
    "a long key": (f"{'x' * 1_000}: 1", "xxx: unknown key"),
    "many keys": ("\n".join(f"k{i}: 1" for i in range(5_000)), "; and 4995 more"),
    "a large file": (f"# {'x' * 300_000}\nseed: 1", "expected YAML of at most 256 kB, found more"),
    "no text": (b"\xff\xfe\x00", "it is not UTF-8 text"),
    "control characters": ("seed: \x01", "it has control characters"),
    "an object": ("train: !!python/object/apply:os.system [touch planted]", "could not determine a constructor"),
    "infinity": ("train: {learning_rate: .inf}", "train.learning_rate: Input should be a finite number, found inf"),
    "a key that stands twice": (
        "train: {epochs: 1, epochs: 2}",
        "duplicate key in one section (line 1, column 20)",
    ),
    "a key of another type": ("{1: 2, [a]: 3}", "not readable as YAML: found unhashable key"),
    "an extends of a book": (f"extends: {'x' * 50_000}", "is neither a shipped config nor a file"),
    "a number without end": (f"train: {{epochs: 1{'0' * 300}}}", "train.epochs: Input should be less than or equal to"),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_harmful_file_ends_at_once_in_one_short_message(what, tmp_path):
    content, message = HARMFUL[what]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert time.process_time() - began < SECONDS
    assert message in str(caught.value)
    assert len(str(caught.value).replace(str(path), "")) < MOST_LETTERS
    assert str(caught.value).count("Choices:") <= 1
    assert not Path("planted").exists()


@pytest.mark.parametrize("what", ["alias bomb", "deep nesting", "a number of 5000 digits"])
def test_the_same_behind_set(what):
    with pytest.raises(ConfigError) as caught:
        load_config("default", (f"train={{x: {HARMFUL[what][0]}",))
    assert str(caught.value).startswith("--set train: not readable as YAML: ")
    assert len(str(caught.value)) < MOST_LETTERS


def test_a_large_file_of_nothing_is_not_read_whole(tmp_path):
    with (tmp_path / "sparse.yaml").open("wb") as file:
        file.truncate(3 * 1024**3)
    with pytest.raises(ConfigError, match="at most 256 kB"):
        load_config(str(tmp_path / "sparse.yaml"))


OPTIONS = {
    "train.epoch=3": "--set train.epoch: unknown key, did you mean train.epochs?",
    "train.epochs=three": (
        "--set train.epochs: Input should be a valid integer, unable to parse string as an integer, found 'three'"
    ),
    "epochs=3": "--set epochs: unknown key, did you mean train.epochs?",
    "backbone=resnet18": "--set backbone: unknown key, did you mean train.backbone?",
    "train.alpha=2": "--set train.alpha: unknown key, did you mean train.cutmix.alpha?",
    "stack.lightgmb.window=3": "--set stack.lightgmb.window: unknown key, did you mean stack.lightgbm.window?",
    "train=3": "--set train: expected a section of keys and values, found 3",
    "train={epochs: three}": "--set train.epochs: Input should be a valid integer",
    "train.epochs.x=3": '--set train.epochs.x: "epochs" is not a section.',
    "train.block_size=6": "--set train.block_size: must be odd, so that there is a middle slice, found 6",
    "stack.fusion.window=8": "--set stack.fusion.window: must be odd, so that there is a middle slice, found 8",
    "task=strokes": '--set task: unknown task "strokes". Choices: hemorrhage',
    "train.schedule.kinds=step": "--set train.schedule.kinds: unknown key, did you mean train.schedule.kind?",
    "train.schedule=3": "--set train.schedule: expected a section of keys and values, found 3",
    "train.rate_factors.heads=2": "--set train.rate_factors.heads: unknown key, did you mean train.rate_factors.head?",
    "train.backbone_args.pretrained=true": '--set train.backbone_args.pretrained: "pretrained" is not an argument of',
    "train.backbone_args={depth: {a: 1}}": "--set train.backbone_args: expected a number up to 65536, a word, or a lis",
    "train.backbone_args.depth=.nan": "--set train.backbone_args.depth: expected a number up to 65536",
    "train.phases=[{epochs: x}]": "--set train.phases.0.epochs: Input should be a valid integer",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_named_as_it_was_typed_and_no_packaged_file_is(option):
    with pytest.raises(ConfigError) as caught:
        load_config("demo", (option,))
    assert str(caught.value).startswith(OPTIONS[option])
    assert ".yaml" not in str(caught.value)


def test_a_value_is_blamed_on_the_file_in_which_it_stands(tmp_path):
    base, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("extends: demo\ntrain:\n  epochs: three\n  cutmix: {alpah: 1}\n")
    mine.write_text(f"extends: {base}\ntrain:\n  learning_rate: -1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(mine), ("seed=x",))
    problems = str(caught.value).split("; ")
    assert sorted(problem.split(": ")[0] for problem in problems) == sorted(
        ["--set seed", str(base), str(base), str(mine)]
    )
    assert f"{base}: train.cutmix.alpah: unknown key, did you mean train.cutmix.alpha?" in problems
    assert f"{mine}: train.learning_rate: Input should be greater than 0, found -1" in problems
    base.write_text("extends: demo\n")
    mine.write_text(f"extends: {base}\ntrain: 5\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(mine))
    assert str(caught.value) == f"{mine}: train: expected a section of keys and values, found 5"


def test_an_option_hides_what_a_file_said_before_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {epochs: three}\n")
    assert load_config(str(path), ("train.epochs=3",)).train.epochs == 3


def test_values_are_never_printed_whole():
    assert short("x" * 1000) == "'" + "x" * 27 + "..." + "x" * 28 + "'"
    assert short(10**5000) == "a number of thousands of digits"
    assert short({"a": [[[[1]]]], "b": list(range(10_000))}) == "{'a': [[...]], 'b': [0, 1, 2, 3, ...]}"
    assert short("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"


def test_a_schedule_is_a_word_or_a_section_and_a_phase_may_have_its_own():
    word, section = (load_config("default", (f"train.schedule{text}",)) for text in ("=step", ".kind=step"))
    assert word.train.schedule == section.train.schedule
    assert word.train.schedule.kind == "step"
    phases = "train.phases=[{schedule: constant, optimizer: sgd, weight_decay: 0.0, rate_factors: {head: 2}}, {}]"
    first, last = load_config("default", ("train.weight_decay=0.1", phases)).train.resolve_phases(("any",))
    assert (first.schedule.kind, first.optimizer, first.weight_decay, first.rate_factors.head) == (
        "constant",
        "sgd",
        0.0,
        2.0,
    )
    assert (last.schedule.kind, last.optimizer, last.weight_decay, last.rate_factors.head) == (
        "cosine",
        "adam",
        0.1,
        1.0,
    )


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("prepare.size=190:20:30", "'190:20:30'"),
        ("train.learning_rate=1:30.5", "'1:30.5'"),
        ("prepare.size=true", "True"),
        ("train.workers=no", "False"),
        ("train.epochs=on", "True"),
    ],
)
def test_what_yaml_may_take_for_a_number_is_none(setting, found):
    with pytest.raises(ConfigError) as caught:
        load_config("default", (setting,))
    key = setting.partition("=")[0]
    assert str(caught.value).startswith(f"--set {key}: ")
    assert str(caught.value).endswith(f"found {found}")


def test_true_and_false_are_taken_where_they_are_meant():
    assert load_config("default", ("stack.calibrate=off",)).stack.calibrate is False
    assert load_config("default", ("evaluate.coherent_base=yes",)).evaluate.coherent_base is True


def test_a_phase_is_named_by_its_number_and_made_if_it_is_the_next_one():
    one = ("train.phases.0.frozen_stages=2", "train.phases.0.epochs=3", "train.phases.1.epochs=4")
    phases = load_config("default", one).train.phases
    assert [(phase.frozen_stages, phase.epochs) for phase in phases] == [(2, 3), (0, 4)]
    config = load_config("default", ("train.phases=[{epochs: 5}]",))
    assert [phase.epochs for phase in change_config(config, ("train.phases.0.epochs=6",)).train.phases] == [6]
    assert [phase.epochs for phase in config.train.phases] == [5]


@pytest.mark.parametrize("number", ["2", "x", "-1", "9" * 5000])
def test_an_item_that_is_not_there_is_refused(number):
    with pytest.raises(ConfigError, match=r"expected the number of one of 1 items, counted from 0, or 1 for a new one"):
        load_config("default", ("train.phases=[{}]", f"train.phases.{number}.epochs=3"))
    with pytest.raises(ConfigError, match="expected the number of one of 3 items"):
        load_config("default", ("channels.windows=[[1, 2], [1, 2], [1, 2]]", f"channels.windows.{number}x=3"))


def test_an_item_of_a_list_can_be_replaced():
    config = load_config("default", ("channels.windows=[[1, 2], [3, 4], [5, 6]]", "channels.windows.1=[7, 8]"))
    assert config.channels.windows == ((1, 2), (7, 8), (5, 6))
