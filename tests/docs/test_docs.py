"""The pages: their commands run, their examples work, their columns, messages and figures are those of the code."""

import ast
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from support.commands import TINY
from support.dicoms import write_series
from support.simulated import TASK, make_stack, make_work

import ichkit
from ichkit.cli.main import main
from ichkit.core.config import load_config
from ichkit.engine.schedule import SCHEDULES
from ichkit.imaging.views import TTA_SETS
from ichkit.imaging.windows import CHANNELS
from ichkit.validation.scores import SCORE_DTYPES
from ichkit.work.schemas import (
    CROPS,
    FOLDS,
    REJECTED,
    SERIES_CHOICE,
    predictions_columns,
    slices_dtypes,
    studies_dtypes,
)

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"])
SMALL = [word for text in (*TINY, "prepare.size=null") for word in ("--set", text)]
NOT_OURS = {"git", "cd", "pip", "pytest", "ruff", "kaggle", "openssl", "export", "pyproject-build", "cyclonedx-py"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every line of the sh blocks, variables in front included."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]
    return [shlex.split(part) for line in lines for part in line.split("&&")]


def call(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="ichkit")
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_short_has_no_dead_link_and_no_em_dash(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    assert max(len(line) for line in text.splitlines() if not line.startswith(("|", "**`", "http"))) <= 200
    assert "\u2014" not in text
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link


def test_the_readme_links_every_page():
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"({page.relative_to(ROOT).as_posix()})" in read("README.md"), page.name


@pytest.fixture(scope="module")
def place(prepared_once, tmp_path_factory):
    """A folder with a store and, in it, simulated runs and a stack would be; each page's commands start here."""
    root = tmp_path_factory.mktemp("pages")
    shutil.copytree(prepared_once.root, root / "work")
    made = make_work(root / "made", num_patients=20, num_folds=3, folds=(0, 1, 2), cq500_studies=4)
    make_stack(made, runs=("base",))
    return root


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "extend.md"], ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page, place, monkeypatch):
    """Words and options exist; what reads runs, what writes is planned; the README's own test runs its commands."""
    monkeypatch.chdir(place)
    for words in commands(page):
        if words[0] == "python":
            assert words[1] == "-m" or (ROOT / words[1]).is_file()
        elif words[0] == "ichkit":
            name = words[1]
            takes_dry_run = any(option.name == "dry_run" for option in main.commands[name].params)
            with main.commands[name].make_context(name, [*words[2:], *(["--dry-run"] if takes_dry_run else [])]):
                pass
        else:
            assert words[0] in NOT_OURS, words


@pytest.mark.slow
def test_the_commands_of_the_model_card_run_on_finished_work(place, monkeypatch):
    monkeypatch.chdir(place)
    for words in commands(ROOT / "docs" / "model-card.md"):
        call(*words[1:], "--work", "made", "--set", "evaluate.num_draws=40")
    assert (place / "made" / "report.html").is_file()


# formats.md


def documented(heading: str) -> pd.DataFrame:
    """The table below a heading of formats.md."""
    section = read("docs/formats.md").split(f"### `{heading}`")[1].split("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return pd.DataFrame(rows[2:], columns=rows[0])


@pytest.mark.parametrize(
    ("heading", "dtypes"),
    [
        ("slices.parquet", slices_dtypes(TASK)),
        ("studies.parquet", studies_dtypes(TASK)),
        ("scores.parquet", SCORE_DTYPES),
        ("crops.parquet", CROPS),
        ("folds.csv", dict.fromkeys(FOLDS)),
        ("rejected.csv", dict.fromkeys(REJECTED)),
        ("series_choice.csv", dict.fromkeys(SERIES_CHOICE)),
        ("oof.parquet", dict.fromkeys(predictions_columns(TASK))),
    ],
)
def test_a_documented_table_has_the_columns_and_dtypes_of_the_code(heading, dtypes):
    table = documented(heading)
    assert table["column"].to_list() == list(dtypes)
    for name, dtype in zip(table["column"], table["dtype"], strict=True):
        assert dtypes[name] in (None, dtype), name
    assert all(table["unit"][table["column"].str.endswith("_mm")] == "mm")


@pytest.mark.parametrize(
    ("heading", "where"),
    [
        ("slices.parquet", "work/prepared"),
        ("studies.parquet", "work/prepared"),
        ("slice_facts.parquet", "work/prepared"),
        ("folds.csv", "work/prepared"),
        ("oof.parquet", "made/runs/base/fold0"),
    ],
)
def test_a_documented_table_is_what_lies_in_a_work_folder(place, heading, where):
    path = place / where / heading
    found = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"patient_id": "str"})
    assert {name: str(dtype) for name, dtype in found.dtypes.items()} == dict(
        documented(heading)[["column", "dtype"]].itertuples(index=False)
    )


def test_every_file_that_prepare_leaves_is_documented(place):
    text = read("docs/formats.md")
    for path in (place / "work" / "prepared").iterdir():
        assert path.name in text, path.name


# troubleshooting.md


def spoken() -> list[str]:
    """Every text of the code, values as `…`."""
    texts = []
    for path in Path(ichkit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[-\w.]*[sdgf]", "…", node.value))
    return texts


def test_every_quoted_message_is_still_said():
    texts = spoken()
    page = read("docs/troubleshooting.md")
    quoted = re.findall(r"^(?:\*\*|- )`([^`]+)`", page, flags=re.MULTILINE)
    assert len(quoted) > 30
    for message in quoted:
        parts = [part for part in message.split("…") if part.strip(" .`")]
        pattern = ".*".join(re.escape(part) for part in parts)
        assert any(re.search(pattern, text, re.DOTALL) for text in texts), message


# coming-from.md


def inline(page: str, start: str) -> list[str]:
    """The pieces of code of a page that begin with a word."""
    return re.findall(rf"`({start} [^`]+)`", read(page))


@pytest.mark.parametrize("text", inline("docs/coming-from.md", "ichkit"))
def test_every_command_in_the_tables_of_other_tools_is_one(text, place, monkeypatch):
    monkeypatch.chdir(place)
    _, name, *words = shlex.split(text)
    command = main.commands[name]
    if isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    for word, following in itertools.pairwise(words):
        assert word != "--set" or load_config("default", (following,))
    with command.make_context(name, words):
        pass


@pytest.mark.parametrize("text", inline("docs/coming-from.md", "--set"))
def test_every_setting_in_the_tables_of_other_tools_is_one_with_that_value(text):
    words = [word for word in shlex.split(text) if word != "--set"]
    load_config("default", tuple(words))
    tables = {"train.tta": TTA_SETS, "channels.kind": CHANNELS, "train.schedule": SCHEDULES}
    for key, value in (word.split("=") for word in words):
        assert key not in tables or value in tables[key]


# costs.md and experiments.md, and what the README takes from them


def figures() -> list[tuple[str, str, str]]:
    """(value, file, key) of every row of these pages that names a file of results."""
    text = read("docs/costs.md") + read("docs/experiments.md") + read("README.md")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows if len(row) == len(("figure", "value", "file", "key"))]
    return [(value, file, key) for _, value, file, key in cells if file.endswith(".json")]


@pytest.mark.parametrize(("value", "file", "key"), figures(), ids=lambda text: text)
def test_a_figure_is_the_one_that_was_measured(value, file, key):
    found = json.loads(read(f"benchmarks/results/{file}"))
    for part in key.split(".", 1):
        found = found[part]
    if isinstance(found, str):
        assert value == found
        return
    number, unit = re.fullmatch(r"(-?[\d.,]+)\s*(\S*)", value).groups()
    number = number.replace(",", "")
    digits = len(number.partition(".")[2])
    scale = {"min": 60.0, "h": 3600.0, "%": 0.01, "ms": 1e-3}.get(unit, 1.0)
    assert float(number) == pytest.approx(found / scale, abs=0.5001 * 10**-digits)


def test_outside_its_tables_the_page_of_costs_has_no_figure():
    prose = re.sub(r"```.*?```", "", read("docs/costs.md"), flags=re.DOTALL)
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith("|"))
    assert not re.findall(r"\d", re.sub(r"`[^`]*`", "", prose))


# extend.md


@pytest.fixture
def bench(place, tmp_path, monkeypatch):
    """A folder with the modules of extend.md and small data; the tables are as they were afterwards."""
    from ichkit.core import tasks
    from ichkit.imaging import steps
    from ichkit.models import descriptor, losses
    from ichkit.sources import table as sources
    from ichkit.stacking import table as stackers

    tables = (tasks.TASKS, descriptor.BACKBONES, losses.LOSSES, steps.STEPS, sources.SOURCES, stackers.STACKERS)
    known = [dict(table) for table in tables]
    for block in blocks(ROOT / "docs" / "extend.md", "python"):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # The console script, as it is installed or as an installer would write it: it puts no folder on the path.
    if shutil.which("ichkit") is None:
        script = tmp_path / "bin" / "ichkit"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m ichkit "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", os.pathsep.join([str(script.parent), os.environ["PATH"]]))
    yield tmp_path
    for table, rows in zip(tables, known, strict=True):
        table.clear()
        table.update(rows)
    for path in tmp_path.glob("my_*.py"):
        sys.modules.pop(path.stem, None)


def run_lines(module: str, *more) -> list[str]:
    """What the commands of extend.md print that name this module: as printed, by the shell, at toy size."""
    printed = [line for block in blocks(ROOT / "docs" / "extend.md", "sh") for line in block.splitlines()]
    lines = [line for line in printed if re.search(rf"\b{module}\b", line)]
    assert lines
    said = []
    for line in lines:
        command = f"{line} {shlex.join(map(str, more))}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    return said


@pytest.mark.slow
def test_the_network_of_the_page_trains(place, bench):
    shutil.copytree(place / "work", bench / "work")
    run_lines("my_network", "-c", "demo", *SMALL)
    card = json.loads((bench / "work" / "runs" / "narrow" / "fold0" / "model.json").read_text())
    assert card["backbone"] == "narrow"


def test_the_loss_of_the_page_is_the_squared_error_and_trains(place, bench, monkeypatch):
    import torch

    from ichkit.core.plugins import load_plugins
    from ichkit.models.losses import make_loss

    shutil.copytree(place / "work", bench / "work")
    run_lines("my_loss", "-c", "demo", *SMALL)
    assert "loss: brier" in (bench / "work" / "runs" / "brier" / "fold0" / "config.yaml").read_text()
    monkeypatch.setenv("ICHKIT_PLUGINS", "my_loss")
    load_plugins()
    loss = make_loss("brier", np.array([0.5, 0.5]), np.array([0.1, 0.1]))
    assert loss(torch.zeros(3, 2), torch.ones(3, 2)).item() == pytest.approx(0.25)


@pytest.mark.slow
def test_the_second_stage_of_the_page_is_fitted_in_its_workers_scored_and_no_worse_than_its_base(bench):
    make_work(bench / "work", num_patients=30, num_folds=3, folds=(0, 1, 2), cq500_studies=4)
    printed = run_lines("my_stacker", "--set", "evaluate.num_draws=40")
    assert "smoothed-smooth" in printed[1]
    scores = pd.read_parquet(bench / "work" / "scores" / "scores.parquet")
    pooled = scores[(scores.metric == "weighted_log_loss") & (scores.fold == -1) & (scores.subgroup == "all")]
    loss = pooled[(pooled.level == "slice")].set_index("source").value
    assert loss["smoothed-smooth"] < loss["base"]


def write_scans(folder: Path, count: int) -> None:
    for i in range(count):
        write_series(folder / str(i), 4, study_uid=f"1.2.{i}", series_uid=f"1.2.{i}.1", patient_id=f"p{i}")


def test_the_step_of_the_page_stores_the_middle_of_every_picture(bench):
    write_scans(bench / "scans", 6)
    labels = pd.DataFrame({"study_id": [f"1.2.{i}" for i in range(6)]})
    labels.assign(**{name: [0, 1] * 3 for name in TASK.subtypes}).to_csv(bench / "labels.csv", index=False)
    run_lines("my_step", *SMALL)
    crops = pd.read_parquet(bench / "middle" / "prepared" / "crops.parquet")
    assert crops[["top", "left", "height", "width"]].drop_duplicates().to_numpy().tolist() == [[2, 2, 4, 4]]


def test_the_source_of_the_page_takes_its_labels_from_the_folders(bench):
    for number, name in enumerate(("none", "subdural", "epidural")):
        for i in range(2):
            uid = f"1.2.{number}{i}"
            target = bench / "data" / "sorted" / name / str(i)
            write_series(target, 4, study_uid=uid, series_uid=f"{uid}.1", patient_id=f"p{uid}")
    run_lines("my_source", *SMALL)
    slices = pd.read_parquet(bench / "sorted" / "prepared" / "slices.parquet")
    assert set(slices["dataset"]) == {"sorted"}
    assert slices.groupby("study_id")[["subdural", "epidural", "any"]].max().sum().to_list() == [2, 2, 4]
    assert not slices["patient_id"].str.startswith("p").any()


def test_the_task_of_the_page_reads_labels_of_its_own_classes(bench):
    write_scans(bench / "scans", 6)
    labels = pd.DataFrame({"study_id": [f"1.2.{i}" for i in range(6)], "left": [1, 0] * 3, "right": [0, 0, 1] * 2})
    labels.to_csv(bench / "sides.csv", index=False)
    run_lines("my_task", *SMALL)
    slices = pd.read_parquet(bench / "sides" / "prepared" / "slices.parquet")
    top = slices.groupby("study_id")[["left", "right", "any"]].max()
    assert top["left"].to_list() == [1, 0] * 3
    assert top["right"].to_list() == [0, 0, 1] * 2
    assert top["any"].to_list() == [1, 0, 1, 0, 1, 1]


def test_a_module_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("ICHKIT_PLUGINS", "no_such_rows")
    assert "on PYTHONPATH, found no_such_rows. Check the name" in call("config", "show", code=2)


# what people cite and install


def test_the_citation_names_the_version_that_is_installed():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == ichkit.__version__
    assert citation["license"] == "MIT"
