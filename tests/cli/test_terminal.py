"""What a person sees: progress, one message for every failure, the nearest spelling, and silence where it was asked."""

import errno
import logging
import shutil
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support.simulated import make_stack, make_work

import ichkit
from ichkit.cli import terminal
from ichkit.cli.main import main
from ichkit.core import progress
from ichkit.core.progress import Meter
from ichkit.stages.doctor import verify


def call(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="ichkit")
    assert result.exit_code == code, result.output
    return result.output


def every_command():
    for name, command in main.commands.items():
        yield from [[name, sub] for sub in command.commands] if hasattr(command, "commands") else [[name]]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def said(caplog, monkeypatch):
    # Commands that were called before have given the logger handlers of their own.
    monkeypatch.setattr(progress.logger, "handlers", [])
    monkeypatch.setattr(progress.logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="ichkit")
    return caplog


def test_a_plain_line_tells_rate_waiting_and_what_is_left(clock, said):
    meter = Meter("fold 0", 100, "steps")
    for _ in range(20):
        clock.now += 0.625
        meter.advance(1, "epoch 1 of 2", waited_seconds=0.125)
    assert said.messages == ["fold 0: 16 of 100, 1.6 steps/s, 20 % waiting for data, 52 s left, epoch 1 of 2"]


def test_a_slow_rate_is_told_by_the_minute(clock, said):
    meter = Meter("stack", 10, "fits")
    clock.now += 40
    meter.advance()
    assert said.messages == ["stack: 1 of 10, 1.5 fits/min, 6 min left"]


def test_what_was_finished_before_counts_as_done_and_not_as_speed(clock, said):
    meter = Meter("stack", 100, "fits")
    meter.skip(90)
    clock.now += 20
    meter.advance()
    assert said.messages == ["stack: 91 of 100, 3.0 fits/min, 3 min left"]


def test_a_terminal_shows_a_bar_with_the_same_figures(clock, said, monkeypatch):
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    with Meter("fold 0", 100, "steps") as meter:
        clock.now += 10
        meter.advance(20, waited_seconds=1.0)
        fields = meter._bar.tasks[0].fields
        assert (fields["figures"], fields["left"]) == ("2.0 steps/s, 10 % waiting for data", "40 s left")


def test_every_command_has_the_shared_options_and_an_example():
    for words in every_command():
        text = call(*words, "--help")
        for option in ("--config", "--set", "--work", "--quiet", "--debug"):
            assert option in text, words
        assert "Example:" in text
        assert f"ichkit {' '.join(words)}" in text


def fail(error):
    def run(*_args, **_options):
        raise error

    return run


def test_an_internal_error_is_one_message_without_values_that_says_where_to_report(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "run", fail(TypeError("patient ID_secret")))
    printed = call("verify", code=1)
    assert "internal error (a bug in ichkit): TypeError in" in printed
    assert "Please report it" in printed
    assert "--debug" in printed
    assert "Traceback" not in printed
    assert "ID_secret" not in printed


def test_a_package_that_is_not_installed_is_something_to_mend(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for module, package in (("no_such_module.part", "no_such_module"), ("no_such_module", "no-such-package")):
        monkeypatch.setattr(verify, "run", fail(ModuleNotFoundError("No module", name=module)))
        printed = " ".join(call("verify", code=2).split())
        assert f"ichkit: {package} is not installed. Run `pip install {package}`." in printed
        assert f"`ichkit kernel MODEL --with {package}`" in printed
        monkeypatch.setitem(terminal._PACKAGES, "no_such_module", "no-such-package")
    for name in ("json.no_such_part", None):  # not a package that could be installed
        monkeypatch.setattr(verify, "run", fail(ModuleNotFoundError("No module", name=name)))
        assert "internal error (a bug in ichkit): ModuleNotFoundError" in call("verify", code=1)


def test_debug_shows_the_traceback_of_an_internal_error_and_of_a_user_error(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "ArtifactError" in call("stack", "--debug", code=2)
    monkeypatch.setattr(verify, "run", fail(TypeError("what went wrong")))
    printed = call("verify", "--debug", code=1)
    assert "Traceback" in printed
    assert "TypeError: what went wrong" in printed


def test_a_file_that_may_not_be_read_is_something_to_mend(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "run", fail(PermissionError(errno.EACCES, "Permission denied", "work/runs")))
    assert "ichkit: work/runs: permission denied. Check the path" in call("verify", code=2)


def test_quiet_leaves_warnings_and_results(prepared_once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prepared_once.root, tmp_path / "work")
    assert call("verify", "--quiet") == "every artifact is unchanged since it was written\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sumbit"], 'Did you mean "submit"?'),
        (["config", "shwo"], 'Did you mean "show"?'),
        (["submit", "--uplod"], "--upload"),
        (["train", "--dryrun"], "--dry-run"),
        (["prepare", "--source", "foldr"], 'Did you mean "folder"?'),
        (["train", "--set", "trian.epochs=1"], "--set trian.epochs: unknown key, did you mean train.epochs?"),
        (["train", "--set", "train.augment.crop_scal=1"], "did you mean train.augment.crop_scale?"),
        (["config", "show", "resnet50"], 'Did you mean "resnet50-midl"?'),
        (["config", "diff", "demo", "defualt"], 'Did you mean "default"?'),
        (["run", "dmo"], 'Did you mean "demo"?'),
        (["train", "--set", "task=hemorhage"], 'Did you mean "hemorrhage"?'),
    ],
)
def test_an_unknown_word_gets_the_nearest_spelling(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in call(*words, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--epochs", "3"], "--set train.epochs=3"),
        (["train", "--epochs=3"], "--set train.epochs=3"),
        (["train", "--lr", "0.01", "--fold", "0"], "--set train.learning_rate=0.01"),
        (["train", "--backbone", "resnet18"], "--set train.backbone=resnet18"),
        (["train", "--backbone"], "--set train.backbone=VALUE"),
        (["prepare", "--num-folds", "3"], "--set prepare.num_folds=3"),
        (["prepare", "--workers", "3"], "--set prepare.workers=3"),
        (["train", "--workers", "3"], "--set train.workers=3"),
        (["phantom", "out", "--workers", "1"], "--set prepare.workers=1"),
        (["predict", "in", "--workers=1"], "--set prepare.workers=1"),
        (["train", "--runn", "a"], "'--run'"),
    ],
)
def test_an_option_that_is_a_setting_is_answered_with_the_words_that_set_it(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in call(*words, code=2)


LONG = "x" * 3000


@pytest.mark.parametrize(
    "words",
    [
        [LONG],
        [f"--{LONG}"],
        ["train", f"--{LONG}"],
        ["train", "--fold", LONG],
        ["train", LONG],
        ["prepare", "--source", LONG],
        ["predict", LONG],
        ["evaluate", "--submission", LONG, "--truth", LONG],
        ["config", "show", LONG],
    ],
)
def test_a_word_of_thousands_of_letters_is_not_printed_whole(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "xxx...xxx" in call(*words, code=2)
    assert len(call(*words, code=2)) < 600


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../up", "/abs", "a/b", "a\nb", "=cmd", "<b>", "CON", "nul.txt", "Com1", "demo.", "demo.old"],
)
@pytest.mark.parametrize("words", [["train", "--fold", "0", "--run"], ["stack", "--name"]])
def test_a_name_that_can_be_no_folder_everywhere_is_refused(words, name, work_with_scores, monkeypatch):
    monkeypatch.chdir(work_with_scores)
    before = sorted(work_with_scores.rglob("*"))
    assert "expected a name of at most 200 letters" in call(*words, name, code=2)
    assert sorted(work_with_scores.rglob("*")) == before


def test_help_and_version_are_words_too_and_say_what_the_options_say():
    assert call("help") == call("--help")
    assert call("help", "train") == call("train", "--help")
    assert call("help", "config", "show") == call("config", "show", "--help")
    assert call("version") == call("--version") == f"ichkit, version {ichkit.__version__}\n"
    assert 'Did you mean "train"' in call("help", "trian", code=2)


def test_the_help_lists_every_command_once_with_its_whole_summary():
    listed = [name for names in main.sections.values() for name in names]
    assert sorted(listed) == sorted(main.commands)
    text = "".join(call("--help").split())  # lines also break at hyphens
    assert "..." not in text.partition("Options:")[2]
    for name, command in main.commands.items():
        summary = command.help.splitlines()[0].rstrip(".").split(". ")[0]
        assert "".join(f"{name} {summary}".split()) in text


def test_scores_that_are_up_to_date_are_said_by_evaluate_alone(work_with_scores, monkeypatch):
    monkeypatch.chdir(work_with_scores)
    options = ["--work", "work", "--set", "evaluate.num_draws=40"]
    call("evaluate", *options)
    assert "evaluate: the scores of 3 sources are up to date" in call("evaluate", *options)
    for words, code in (
        (["submit"], 0),
        (["submit", "--source", "nosuch"], 2),
        (["leaderboard"], 0),
        (["report"], 0),
        (["predict", "nosuch"], 2),
    ):
        assert "evaluate:" not in call(*words, *options, code=code), words


@pytest.fixture
def work_with_scores(tmp_path):
    work = make_work(tmp_path / "work", num_patients=20, num_folds=3, folds=(0, 1, 2), cq500_studies=4)
    make_stack(work, runs=("base",), kinds=("lightgbm", "blend"))
    return tmp_path
