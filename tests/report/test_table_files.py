"""`report --tables`: every table of the page is a file, with the cells of the page."""

import csv
import io
import shutil
import subprocess

import pytest
from docx import Document
from support.commands import call, do
from support.reports import CONFIG, Page, explain_without_network, make_report_work

from ichkit.core.errors import ConfigError
from ichkit.show import word
from ichkit.show.blocks import Prose, Section, Subsection
from ichkit.show.table import Table
from ichkit.stages.doctor import verify
from ichkit.stages.report import gallery, table_files
from ichkit.stages.report import run as report
from ichkit.work.artifacts import read_manifest


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder with the page and its tables as CSV, LaTeX and Word."""
    made = make_report_work(tmp_path_factory.mktemp("tables") / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "explain_slices", explain_without_network)
        do(report, CONFIG, made, submissions=made.root / "submissions", has_word=True)
    return made


def read(path):
    return list(csv.reader(io.StringIO(path.read_text())))


def test_every_table_of_the_page_is_a_csv_with_its_cells(work):
    tables = list(Page(work.report.read_text()).tables.values())
    files = sorted(work.tables.glob("*.csv"))
    assert len(files) == len(tables) == read_manifest(work.tables).facts["num_tables"]
    for path, shown in zip(files, tables, strict=True):
        found = read(path)
        assert [len(row) for row in found] == [len(row) for row in shown], path.name
        for row, of_page in zip(found, shown, strict=True):
            for cell, text in zip(row, of_page, strict=True):
                main, _, small = text.partition("|")
                expected = f"{main.strip()} ({small})" if small and main.strip() else main.strip() or small
                # A shortened ID has both in the page.
                assert cell.removeprefix("'") in (" ".join(expected.split()), text) or text.endswith(cell)


def test_every_table_is_a_tex_file_and_part_of_the_word_document(work):
    names = [path.stem for path in sorted(work.tables.glob("*.csv"))]
    assert [path.stem for path in sorted(work.tables.glob("[0-9]*.tex"))] == names
    everything = (work.tables / table_files.ALL_NAME).read_text()
    assert [everything.index(f"\\input{{{name}.tex}}") for name in names] == sorted(
        everything.index(f"\\input{{{name}.tex}}") for name in names
    )
    assert len(Document(work.tables / table_files.WORD_NAME).tables) == len(names)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_tables_of_a_report_compile(work, tmp_path):
    shutil.copytree(work.tables, tmp_path / "tables")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", table_files.ALL_NAME]
    done = subprocess.run(
        command, cwd=tmp_path / "tables", capture_output=True, text=True, timeout=120, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-1500:]


def test_current_tables_are_kept_and_verified_and_a_format_that_is_new_is_added(work, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "make_sections", lambda _: pytest.fail("made again"))
    before = read_manifest(work.tables)
    do(report, CONFIG, work, submissions=work.root / "submissions", has_tables=True)
    assert read_manifest(work.tables) == before
    assert table_files.is_current(work.tables, before.inputs["report"], has_word=True)
    assert not table_files.is_current(work.tables, "other", has_word=False)
    table_files.write_tables([], tmp_path / "t", "x", has_word=False)
    assert not table_files.is_current(tmp_path / "t", "x", has_word=True)
    path = next(work.tables.glob("*.csv"))
    text = path.read_bytes()
    path.write_bytes(text + b"x")
    assert any(path.name in line for line in verify.run(work, tmp_path))
    path.write_bytes(text)


def test_tables_of_subsections_are_numbered_with_the_others():
    one, other = Table("Élan & vital: 50 %", ("a",), [["x"]]), Table("***", ("a",), [["y"]])
    sections = [Section("flow", "F", [Subsection("s", [Prose("p"), one])]), Section("data", "D", [other])]
    assert table_files.name_tables(sections) == {"01-flow-lan-vital-50": one, "02-data-table": other}


def test_more_than_99_tables_sort_by_name_as_they_stand():
    tables = [Table(f"t{number}", ("a",), [["x"]]) for number in range(120)]
    names = list(table_files.name_tables([Section("data", "D", tables)]))
    assert (names[0], names[99]) == ("001-data-t0", "100-data-t99")
    assert sorted(names) == names


def test_a_dry_run_names_the_folder_and_word_needs_its_package(work, monkeypatch):
    printed = call("report", "--work", work.root, "--tables", "--dry-run").replace("\n", "")
    assert "every table of the page as CSV and LaTeX" in printed
    assert str(work.tables) in "".join(printed.split())
    assert str(work.tables) not in "".join(call("report", "--work", work.root, "--dry-run").split())
    monkeypatch.setattr(word, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ichkit\[word\]"):
        report.plan(CONFIG, work, report.ReportOptions(has_word=True))
