"""Checklists: an item is answered by what the page shows, never by a promise; the rest is the authors'."""

import csv
import io
import re

import pytest
from support.commands import call, do
from support.reports import CONFIG, Page, explain_without_network, make_report_work

from ichkit.core.errors import ConfigError
from ichkit.show.blocks import Card, Chart, Charts, Gallery, Missing, Prose, Section, Subsection
from ichkit.show.table import BLANK, Cell, Table
from ichkit.stages.report import checklist_page, gallery
from ichkit.stages.report import run as report
from ichkit.stages.report.checklists import (
    CHECKLISTS,
    Answer,
    Item,
    Status,
    answer_items,
    find_checklist,
    read_items,
)

OF_AUTHORS = {"1", "2", "40", "41", "42"}
"""Items of CLAIM that no page can answer, not even in part."""


OF_PAGE = {str(n) for n in range(5, 40)} - {"8", "18", "30"}
"""Items of CLAIM that the page of scored work answers without the extra scores of readers and of robustness."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A work folder with the page and every checklist, and the sections they were made of."""
    work = make_report_work(tmp_path_factory.mktemp("checklists") / "work")
    submissions = work.root / "submissions"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "explain_slices", explain_without_network)
        do(report, CONFIG, work, submissions=submissions, checklists=tuple(CHECKLISTS))
        given = report.collect(report.plan(CONFIG, work, report.ReportOptions(submissions)))
        sections = report.make_sections(given)
    return work, sections


def rows_of(work, name):
    return list(csv.DictReader(io.StringIO(work.checklist(name).with_suffix(".csv").read_text())))


def item(evidence, left=""):
    """A row whose evidence is written as in the tables."""
    from ichkit.stages.report import checklists

    return Item("1", "Methods", "topic", checklists._read_evidence(evidence), left)


def answer(evidence, *sections, left=""):
    return answer_items([item(evidence, left)], sections)[0]


@pytest.mark.parametrize("name", CHECKLISTS)
def test_a_checklist_has_all_items_of_its_guideline_in_order_and_each_has_words(name):
    checklist, items = CHECKLISTS[name], read_items(CHECKLISTS[name])
    numbers = [int(re.fullmatch(r"(\d+)[a-h]?", one.number)[1]) for one in items]
    assert sorted(set(numbers)) == list(range(1, checklist.num_items + 1))
    assert numbers == sorted(numbers)
    assert len({one.number for one in items}) == len(items)
    assert all(one.topic and one.part for one in items)
    assert all(one.evidence or one.left for one in items)
    assert checklist.name == name
    assert re.search(r"doi 10\.\d{4}/\S+$", checklist.source)


def test_the_numbers_of_rows_are_those_of_the_guidelines():
    assert {name: len(read_items(row)) for name, row in CHECKLISTS.items()} == {
        "claim": 42,
        "tripod-ai": 52,
        "stard-ai": 48,
    }


def test_a_section_that_only_says_what_is_missing_answers_nothing():
    missing = Section("external", "External test", [Missing("No external set is prepared.", "ichkit prepare")])
    promised = Section("external", "External test", [Prose("Here will be the external test.")])
    assert answer("external", missing).status is Status.AUTHORS
    assert answer("external", promised).status is Status.AUTHORS
    assert answer("external").absent == ("external",)
    shown = Section("external", "External test", [*missing.blocks, Table("AUC", ("a",), [["0.9"]])])
    assert answer("external", shown) == Answer(item("external"), Status.ANSWERED, ("external",), ())


@pytest.mark.parametrize(
    ("block", "is_content"),
    [
        (Table("t", ("a",), []), False),
        (Table("t", ("a",), [["x"]]), True),
        (Charts([]), False),
        (Charts([Chart("", "caption")]), True),
        (Gallery("g", []), False),
        (Gallery("g", [Card("", (1, 1), "", "", "", ())]), True),
        (Subsection("s", [Prose("text")]), False),
        (Subsection("s", [Table("t", ("a",), [["x"]])]), True),
    ],
)
def test_content_is_what_has_rows_figures_or_pictures(block, is_content):
    status = answer("flow", Section("flow", "Flow", [block])).status
    assert (status is Status.ANSWERED) is is_content


def test_a_word_is_found_in_any_line_but_not_in_one_that_is_left_blank():
    rows = [["Aim", "To compare networks"], ["Series of patients", BLANK], ["Source", Cell("RSNA", "2019")]]
    design = Section("design", "Design", [Subsection("Study", [Table("Design", ("what", "value"), rows)])])
    assert answer("design[aim]", design).status is Status.ANSWERED
    assert answer("design[2019]", design).status is Status.ANSWERED
    assert answer("design[series of patients]", design).status is Status.AUTHORS
    assert answer("design[consecutive]", design).absent == ("design (consecutive)",)
    assert answer("design[works]", design).absent == ("design (works)",)  # a part of "networks" alone
    heading_alone = Section("design", "Aim", [Missing("No aim is stated.")])
    assert answer("design[aim]", heading_alone).status is Status.AUTHORS


def test_all_of_the_evidence_is_needed_any_of_its_alternatives_and_what_is_left_keeps_an_item_open():
    flow, data = (Section(name, name, [Table("t", ("a",), [["x"]])]) for name in ("flow", "data"))
    assert answer("flow; data", flow, data).status is Status.ANSWERED
    assert answer("flow; data", flow).status is Status.IN_PART
    assert answer("flow; data", flow).absent == ("data",)
    assert answer("flow|data", data).anchors == ("data",)
    assert answer("flow", flow, left="places and dates").status is Status.IN_PART
    assert answer("", flow, left="funding").status is Status.AUTHORS


@pytest.mark.parametrize("name", CHECKLISTS)
def test_table_and_page_say_the_same_and_every_address_is_a_section_of_the_report(made, name):
    work, sections = made
    anchors = {section.anchor for section in sections}
    page = Page(work.checklist(name).read_text())
    shown = {row[0]: row[1:] for table in page.tables.values() for row in table[1:]}
    for row in rows_of(work, name):
        topic, status, _, left = shown[row["number"]]
        assert (topic, status, left) == (row["topic"], row["status"], row["left"])
        assert {address.partition("#")[2] for address in row["where"].split()} <= anchors
        assert (row["status"] == BLANK) == (row["where"] == "")
    links = [link for link in page.links if not link.startswith("#")]
    assert sorted(links) == sorted(address for row in rows_of(work, name) for address in row["where"].split())
    assert set(page.links) - set(links) <= {f"#{part}" for part in page.ids}
    figures = [int(re.search(rf"{re.escape(status)} (\d+) of {len(shown)}", page.text)[1]) for status in Status]
    assert figures == [sum(row["status"] == status for row in rows_of(work, name)) for status in Status]


def test_title_registration_and_funding_are_the_authors_and_scores_are_the_pages(made):
    status = {row["number"]: row["status"] for row in rows_of(made[0], "claim")}
    assert {number for number, found in status.items() if found == BLANK} >= OF_AUTHORS
    assert {number for number, found in status.items() if found == Status.ANSWERED} >= OF_PAGE


def test_an_external_test_counts_only_where_one_was_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "explain_slices", explain_without_network)
    work = make_report_work(tmp_path / "work", cq500_studies=0, is_stacked=False)
    do(report, CONFIG, work, submissions=tmp_path / "submissions", checklists=("claim",))
    found = {row["number"]: row for row in rows_of(work, "claim")}
    assert found["32"]["status"] == BLANK
    assert found["32"]["left"] == "not in this report: external"
    assert found["35"]["status"] == Status.ANSWERED


def test_a_checklist_of_the_same_inputs_is_kept_and_a_lost_table_is_written_again(made, monkeypatch):
    work, _ = made
    monkeypatch.setattr(report, "make_sections", lambda _: pytest.fail("made again"))
    path = work.checklist("claim")
    before = path.stat().st_mtime_ns
    do(report, CONFIG, work, submissions=work.root / "submissions", checklists=("claim",))
    assert path.stat().st_mtime_ns == before
    table = path.with_suffix(".csv").read_bytes()
    path.with_suffix(".csv").unlink()
    monkeypatch.undo()
    monkeypatch.setattr(gallery, "explain_slices", explain_without_network)
    do(report, CONFIG, work, submissions=work.root / "submissions", checklists=("claim",))
    assert path.with_suffix(".csv").read_bytes() == table


def test_a_dry_run_names_the_files_and_an_unknown_guideline_the_nearest(made):
    work, _ = made
    printed = call("report", "--work", work.root, "--checklist", "claim", "--checklist", "stard-ai", "--dry-run")
    for name in ("checklist-claim.html", "checklist-claim.csv", "checklist-stard-ai.csv"):
        assert name in printed.replace("\n", "")
    assert "checklist CLAIM 2020, 42 items" in printed
    with pytest.raises(ConfigError, match="claim"):
        find_checklist("clam")
    assert "tripod-ai" in call("report", "--work", work.root, "--checklist", "tripod", "--dry-run", code=2)


def test_hostile_titles_are_text_and_formulas_are_guarded():
    section = Section("flow", "<script>x</script>", [Table("t", ("a",), [["x"]])])
    one = Item("1", "=1+1", "@topic", item("flow").evidence, "+left")
    answers = answer_items([one], [section])
    frame = checklist_page.make_table(answers, "report.html")
    text = checklist_page.encode_table(frame, ".csv").decode()
    assert text.splitlines()[1] == "1,'=1+1,'@topic,in part,report.html#flow,'+left"
    shown = checklist_page._make_items(answers, "report.html", {"flow": section.title})
    from ichkit.show.page import to_html

    html = str(to_html(shown.blocks[0]))
    assert "<script>" not in html
    assert '<a href="report.html#flow">&lt;script&gt;' in html
