"""The pages in a browser: pictures load, links work, nothing sticks out on a phone, the console is silent."""

import pytest
from support.browsers import find_browser, look_at
from support.commands import do
from support.reports import CONFIG, explain_without_network, make_report_work
from support.simulated import TASK
from support.tab import open_tab

from ichkit.imaging.store import Prepared
from ichkit.show.viewer import PAGE_BYTES
from ichkit.stages.report import gallery
from ichkit.stages.report import run as report

DESKTOP, PHONE = 1280, 390
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no chromium, chromium-browser or google-chrome on PATH"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    work = make_report_work(root / "work", cq500_missing=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "explain_slices", explain_without_network)
        return do(report, CONFIG, work, submissions=root / "submissions").read_text()


@pytest.fixture(scope="module")
def seen(page, tmp_path_factory):
    return look_at(find_browser(), page, (DESKTOP, PHONE), tmp_path_factory.mktemp("seen"))


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_every_picture_loads_every_link_works_and_nothing_sticks_out(seen, width):
    found = seen[0][width]
    assert found["inner_width"] == width
    assert found["scroll_width"] <= width
    assert found["wide"] == []
    assert found["pictures"] > 20
    assert (found["broken_pictures"], found["empty_drawings"]) == (0, 0)
    assert found["links"] > len(report._SCORED) + len(report._STUDY) + 4 + 20  # contents, and errors
    assert found["dead_links"] == []
    assert found["elsewhere"] == []


def test_the_console_is_silent(seen):
    assert seen[1] == []


def test_the_page_is_small_enough_to_mail(page):
    assert len(page.encode()) <= PAGE_BYTES


def test_an_error_of_a_table_is_looked_at_with_the_keyboard_and_the_way_back_is_a_key(page, tmp_path):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with open_tab(find_browser(), tmp_path / "page.html", tmp_path) as tab:
        tab.run("document.documentElement.style.scrollBehavior = 'auto'")
        link = "document.querySelector('td a[data-slice]')"
        tab.follow_to_slice(link)
        tab.run("new Promise(done => { onpopstate = () => setTimeout(done, 50); history.back(); })")
        assert tab.run(f"Math.abs({link}.getBoundingClientRect().top - innerHeight / 2) < innerHeight")
        assert tab.console == []


def test_the_audit_is_as_well_behaved(prepared_once, tmp_path):
    store = Prepared.open(prepared_once.prepared, TASK)
    page = (store.folder / "audit.html").read_text()
    findings, console = look_at(find_browser(), page, (DESKTOP, PHONE), tmp_path)
    assert console == []
    for width, found in findings.items():
        assert (found["inner_width"], found["wide"], found["broken_pictures"]) == (width, [], 0)
        assert found["scroll_width"] <= width


def test_a_page_that_misbehaves_is_caught(tmp_path):
    page = """<!doctype html><meta charset="utf-8"><body><a href="#nowhere">x</a><img src="data:image/png;base64,AA==">
    <div style="width:900px">wide</div><script>console.error("loud"); nothing();</script>"""
    findings, console = look_at(find_browser(), page, (PHONE,), tmp_path)
    found = findings[PHONE]
    assert found["inner_width"] == PHONE
    assert found["scroll_width"] > PHONE
    assert found["wide"] == ["DIV."]
    assert found["dead_links"] == ["#nowhere"]
    assert found["broken_pictures"] == 1
    assert "loud" in console[0]
    assert "nothing is not defined" in console[1]
