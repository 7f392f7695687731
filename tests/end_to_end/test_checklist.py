"""The page of a small demo answers what a journal asks for: at least 33 of the 42 items of CLAIM, by the page alone."""

import csv
import io
import re
import shutil
import subprocess

import pytest
from support.commands import FAST_STACK, SMALL, call
from support.reports import Page

from ichkit.stages.report.checklists import CHECKLISTS, Status, read_items
from ichkit.work.folder import WorkFolder

LEAST = 33
OF_AUTHORS = {"1", "2", "40", "41", "42"}
# Minutes of training.
pytestmark = pytest.mark.slow


def options(*words):
    return [*words, "-c", "demo", *SMALL, *FAST_STACK]


@pytest.fixture(scope="module")
def work(prepared_once, tmp_path_factory):
    """The commands of the demo behind `prepare`, at the size of a test, and everything that a report can write."""
    root = tmp_path_factory.mktemp("journal")
    shutil.copytree(prepared_once.root, root / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for words in (["train"], ["stack"], ["evaluate", "--protocols"], ["evaluate", "--robustness"]):
            call(*options(*words))
        names = [word for name in CHECKLISTS for word in ("--checklist", name)]
        call(*options("report", *names, "--word"))
    return WorkFolder(root / "work")


def test_the_page_answers_33_of_the_42_items_of_claim_and_leaves_the_authors_theirs(work):
    rows = list(csv.DictReader(io.StringIO(work.checklist("claim").with_suffix(".csv").read_text())))
    assert [row["number"] for row in rows] == [item.number for item in read_items(CHECKLISTS["claim"])]
    answered = {row["number"] for row in rows if row["status"] == Status.ANSWERED}
    assert len(answered) >= LEAST, [(row["number"], row["left"]) for row in rows if row["number"] not in answered]
    assert {row["number"] for row in rows if row["status"] == Status.AUTHORS} >= OF_AUTHORS


def test_every_address_is_a_heading_of_the_report_and_its_section_has_content(work):
    page = Page(work.report.read_text())
    for name in CHECKLISTS:
        for row in csv.DictReader(io.StringIO(work.checklist(name).with_suffix(".csv").read_text())):
            for address in row["where"].split():
                file, _, anchor = address.partition("#")
                assert file == work.report.name
                section = re.search(rf'<section aria-labelledby="{anchor}">(.*?)</section>', page.raw, re.DOTALL)
                assert re.search("<table|<svg|<img|<pre|<p>", section[1]), address


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_tables_of_the_page_compile(work, tmp_path):
    shutil.copytree(work.tables, tmp_path / "tables")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"]
    done = subprocess.run(
        command, cwd=tmp_path / "tables", capture_output=True, text=True, timeout=120, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-1500:]
