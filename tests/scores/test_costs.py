"""What sources cost: by hand for a run, its second stages and a blend on top, and who is beaten by whom."""

import re

import pytest
from support.commands import call, do
from support.simulated import TASK, make_stack, make_work
from support.trained import CONFIG, make_trained_work

from ichkit.core.config import change_config
from ichkit.stages.scores import costs, evaluate, leaderboard
from ichkit.stages.scores.book import open_book
from ichkit.stages.scores.costs import Cost, choose_pareto, measure_costs
from ichkit.stages.stack import blend
from ichkit.stages.stack import run as stack
from ichkit.validation.catalog import find_sources
from ichkit.work.artifacts import read_manifest

FEW = change_config(CONFIG, ("evaluate.num_draws=20",))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A trained run of two folds, its stack, and a blend by hand of the run and of the stack's blend."""
    work = make_trained_work(tmp_path_factory.mktemp("costs") / "work")
    do(stack, FEW, work, runs=["demo"])
    do(blend, FEW, work, sources=("demo", "demo-lightgbm"), name="mine")
    do(evaluate, FEW, work)
    return work


def test_a_source_costs_what_its_parts_cost(work):
    found = measure_costs(work, find_sources(work, TASK))
    folds = [read_manifest(work.fold("demo", fold)) for fold in (0, 1)]
    second = read_manifest(work.stack_folder("demo"))
    assert {name: cost.level for name, cost in found.items()} == {
        "demo": 1, "demo-fusion": 2, "demo-lightgbm": 2, "demo-blend": 3, "mine-hand": 3,
    }  # fmt: skip
    pace = sum(fold.facts["seconds_per_study"] for fold in folds)
    assert 0 < pace < 60
    assert found["demo"].seconds_per_study == pytest.approx(pace)
    assert found["demo-blend"].seconds_per_study == pytest.approx(pace + second.facts["seconds_per_study"])
    assert found["mine-hand"].seconds_per_study == found["demo-lightgbm"].seconds_per_study
    hours = sum(fold.facts["seconds"] for fold in folds) / 3600
    assert found["demo"].hours == pytest.approx(hours)
    assert found["demo-blend"].hours == pytest.approx(hours + second.facts["seconds"] / 3600)
    size = sum(
        (work.fold("demo", k) / name).stat().st_size for k in (0, 1) for name in ("model.safetensors", "model.json")
    )
    assert found["demo"].num_bytes == size
    below = {
        name: sum(
            path.stat().st_size
            for path in (work.stack_folder("demo") / name).rglob("*")
            if path.is_file() and path.suffix != ".csv"
        )
        for name in ("fusion", "lightgbm")
    }
    note = (work.stack_folder("demo") / "blend.json").stat().st_size
    assert found["demo-fusion"].num_bytes == size + note + below["fusion"]
    assert found["demo-blend"].num_bytes == size + note + sum(below.values())


def test_an_artifact_of_an_earlier_version_has_an_unknown_time_and_nothing_is_guessed(work, monkeypatch):
    def without(folder):
        manifest = read_manifest(folder)
        manifest.facts.pop("seconds_per_study", None)
        return manifest

    monkeypatch.setattr(costs, "read_manifest", without)
    found = measure_costs(work, find_sources(work, TASK))
    assert {cost.seconds_per_study for cost in found.values()} == {None}
    assert choose_pareto(open_book(work, TASK), found) == set(found)


def test_only_sources_that_none_beats_in_loss_and_time_are_on_the_front(tmp_path):
    work = make_work(tmp_path, runs=("a",), num_patients=12, num_folds=2, folds=(0, 1), cq500_studies=2)
    make_stack(work, runs=("a",))
    do(evaluate, FEW, work)
    book = open_book(work, TASK)
    names = [source.name for source in book.sources]  # by loss, the best first
    assert len({book.loss(source).value for source in book.sources}) == 4

    def front(*seconds):
        return choose_pareto(book, {name: Cost(1, 1.0, s, 1) for name, s in zip(names, seconds, strict=True)})

    assert front(1, 2, 3, 4) == {names[0]}
    assert front(4, 3, 2, 1) == set(names)
    assert front(3, 4, 2, 2) == {names[0], names[2]}
    assert front(2, 1, None, 3) == {names[0], names[1], names[2]}


def test_the_board_shows_the_columns_the_front_and_the_export_and_the_file_stays_as_it_was(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["leaderboard", "--work", work.root, "--set", "evaluate.num_draws=20"]
    printed = call(*words)
    header = printed[: printed.index("─")]
    for heading in ("level", "train", "hours", "ms per", "MB"):
        assert heading in header
    assert "of 5 sources" not in " ".join(printed.split())  # that is said of the front alone
    before = (tmp_path / "submissions" / "leaderboard.csv").read_bytes()
    assert b"level" not in before.splitlines()[0]
    front = " ".join(call(*words, "--pareto", "--export", "board.md").split())
    kept = re.search(r"(\d) of 5 sources", front)[1]
    table = [line for line in (tmp_path / "board.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + int(kept)
    assert "ms per study" in table[0].replace("<br>", " ")
    assert (tmp_path / "submissions" / "leaderboard.csv").read_bytes() == before


def test_a_narrow_terminal_drops_all_four_or_none(work):
    from rich.console import Console

    from ichkit.show.terminal import Printable

    board = leaderboard.build(work, work.root / "none", TASK)
    seen = set()
    for width in range(70, 150):
        console = Console(width=width, record=True, file=None, quiet=False)
        with console.capture() as capture:
            console.print(Printable(leaderboard.render(work, board, TASK)))
        header = capture.get().split("─")[0]
        seen.add(tuple(name in header for name in ("level", "hours", "ms per", "MB")))
    assert seen == {(True,) * 4, (False,) * 4}
