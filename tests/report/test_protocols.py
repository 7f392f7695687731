"""The report's section of protocols: what it shows is what the table says, or what to run."""

import pytest
from support.commands import do
from support.reports import CONFIG, Page, make_report_work
from support.scored import pick

from ichkit.stages.report import run as report
from ichkit.stages.report.protocols import make_protocols
from ichkit.stages.scores import protocols
from ichkit.validation.published import REPORTED


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_report_work(tmp_path_factory.mktemp("protocols") / "work", cq500_missing=1)


def page_of(work, monkeypatch):
    monkeypatch.setattr(report, "_SCORED", (make_protocols,))
    return Page(do(report, CONFIG, work, submissions=work.root).read_text())


def test_the_section_shows_the_best_source_beside_what_papers_report(work, monkeypatch):
    asked = page_of(work, monkeypatch)
    assert "Run ichkit evaluate --protocols" in asked.text
    table = protocols.run(protocols.plan(CONFIG, work))
    page = page_of(work, monkeypatch)  # made again, because the protocols are an input of the page
    (name, rows), *_ = [(name, rows) for name, rows in page.tables.items() if "under every protocol" in name]
    source = name.split(" on CQ500")[0]
    shown = {row[0]: row for row in rows[1:]}
    for words, reference in (("as in the paper", "labels"), ("reference: unanimity", "unanimity")):
        place = {"studies": "scanned", "aggregation": "maximum", "series": "cq500", "reference": reference}
        own = pick(table, source=source, class_="any", **place)
        assert shown[words][1].split("|")[0] == f"{own.value:.3f}"
        assert shown[words][2] == f"{own.n_positive}|/ {own.n}"
    assert "CQ500-CT-20" in page.text
    for one in REPORTED.values():
        assert one.source in page.text
    assert "? studies" not in page.text  # of a paper that does not say how many
    readers = protocols.read_readers(work)
    kappa = pick(readers, class_="any", measure="fleiss_kappa")
    rows = {row[0]: row for row in page.tables["Agreement of the readers of CQ500"][1:]}
    assert rows["any"][1] == f"{kappa.value:.3f}|{kappa.low:.3f}-{kappa.high:.3f}"
    hit = pick(readers, class_="any", measure="sensitivity", reader=2).value
    shown = [row for row in page.tables["Each reader of CQ500 against the others"] if row[:2] == ["any", "reader 2"]]
    assert shown[0][2].split("|")[0] == f"{hit:.3f}"
    alarm = 1 - pick(readers, class_="any", measure="specificity", reader=2).value
    assert any(
        "any, with" in one["aria-label"] and f"reader 2 {hit:.3f} at {alarm:.3f}" in one["aria-label"]
        for one in page.drawings
    )
