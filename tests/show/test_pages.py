"""Script or HTML from outside (series descriptions, names of runs, ids, reasons) is text in every page."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.browsers import find_browser, look_at

import ichkit
from ichkit.core.tasks import find_task
from ichkit.show import page
from ichkit.show.blocks import (
    WARN,
    Card,
    Chart,
    Charts,
    Check,
    Checks,
    Gallery,
    KeyFigure,
    KeyFigures,
    Listing,
    Missing,
    Prose,
    Section,
    Strip,
    Subsection,
)
from ichkit.show.drawing import Series, draw_intervals, to_svg
from ichkit.show.page import encode_jpeg
from ichkit.show.table import Cell, Table
from ichkit.show.viewer import Viewed, make_viewer

SCRIPT = """<script>console.error("obeyed")</script>"""
HOSTILE = f"""</title></style></pre></svg>{SCRIPT}"'><img src=x onerror='console.error("obeyed")'>"""
HOSTILE += "<a href='javascript:alert(1)'>$x$ ${7*7} {{7*7}}</a>"
PICTURE = encode_jpeg(np.zeros((8, 8), np.uint8), 80)


def report_page():
    figure = draw_intervals([SCRIPT], [Series(SCRIPT, np.array([0.5])), Series("b", np.array([0.2]))], SCRIPT)
    chart = Chart(to_svg(figure, "hostile", HOSTILE), HOSTILE)
    blocks = [
        Table(HOSTILE, (HOSTILE,), [[Cell(HOSTILE, HOSTILE)]], note=HOSTILE),
        Charts([chart]),
        Prose(HOSTILE),
        Missing(HOSTILE, HOSTILE),
        Listing(HOSTILE, HOSTILE),
        Strip(PICTURE, (8, 8), HOSTILE, chart),
        Gallery(HOSTILE, [Card(PICTURE, (8, 8), HOSTILE, HOSTILE, HOSTILE, (HOSTILE,))]),
        KeyFigures([KeyFigure(HOSTILE, HOSTILE, HOSTILE)]),
    ]
    values = dict.fromkeys(("data", "notice", "made", "inputs"), HOSTILE)
    values["task"] = replace(find_task("hemorrhage"), title=HOSTILE)
    return page.render("ichkit.stages.report", "report.html.j2", sections=[Section("a", HOSTILE, blocks)], **values)


def viewer_block(anchor="study-1", num_slices=4):
    volume = np.full((num_slices, 16, 16), 40, np.int16)
    heat = {1: (HOSTILE, np.ones((16, 16)))}
    still = Card(PICTURE, (8, 8), HOSTILE, HOSTILE, HOSTILE, (HOSTILE,))
    p, mm = np.full((num_slices, 2), 0.25), np.full(num_slices, np.nan)
    study = Viewed(anchor, HOSTILE, volume, p, mm, np.eye(num_slices, 2), heat, (1,), [still])
    return make_viewer(study, (HOSTILE, "b"), {HOSTILE: 0.5}, 1, HOSTILE)


def predictions_page():
    cell = Cell(HOSTILE, HOSTILE, share=0.5, link="study-1", slice_index=2)
    blocks = [
        Checks([Check(WARN, HOSTILE, HOSTILE)]),
        Table(HOSTILE, (HOSTILE,), [[cell], [Cell(HOSTILE, full=HOSTILE)]]),
        Subsection(HOSTILE, [viewer_block()]),
    ]
    sections = [Section("a", HOSTILE, blocks)]
    return page.render("ichkit.stages.predict", "predictions.html.j2", sections=sections, made=HOSTILE, notice=HOSTILE)


PAGES = {"report": report_page, "predictions": predictions_page}


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


@pytest.mark.parametrize("name", PAGES)
def test_no_tag_and_no_handler_from_outside_stands_in_a_page(name):
    text = PAGES[name]()
    tags = Tags(text).tags
    own = page.read_template("ichkit.show", page.SCRIPT)
    assert [tag for tag, _ in tags].count("script") == 1
    assert text.count(f"<script>{own}</script>") == 1
    assert not [key for _, attributes in tags for key in attributes if key.startswith("on")]
    assert {attributes["src"] for tag, attributes in tags if tag == "img"} == {PICTURE}
    assert all(attributes["href"].startswith("#") for tag, attributes in tags if tag == "a")
    assert "${7*7} {{7*7}}" in text


@pytest.mark.parametrize("name", PAGES)
def test_the_policy_of_a_page_allows_its_own_script_alone_and_nothing_from_elsewhere(name):
    text = PAGES[name]()
    (policy,) = [found["content"] for tag, found in Tags(text).tags if found.get("http-equiv")]
    script = re.search("<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert not re.search(r"\b(fetch|XMLHttpRequest|eval|innerHTML|import)\b", script)


def test_a_dollar_in_a_name_is_no_formula_of_a_drawing():
    assert "cost $5 and $6" in to_svg(draw_intervals(["cost $5 and $6"], [Series("a", np.array([0.5]))], "x"), "a", "b")


def test_no_template_takes_text_as_safe():
    templates = list(Path(ichkit.__file__).parent.rglob("*.j2"))
    assert len(templates) >= 5
    for template in templates:
        text = template.read_text(encoding="utf-8")
        assert "safe" not in text, template
        assert "autoescape" not in text, template


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no chromium, chromium-browser or google-chrome on PATH")
@pytest.mark.parametrize("name", PAGES)
def test_a_browser_obeys_nothing_from_outside(name, tmp_path):
    findings, console = look_at(find_browser(), PAGES[name](), (1280,), tmp_path)
    assert console == []
    assert (findings[1280]["elsewhere"], findings[1280]["broken_pictures"]) == ([], 0)
    assert findings[1280]["dead_links"] == []
