"""Script or HTML from outside (series descriptions, names of runs, ids, reasons) is text in every page."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.browsers import find_browser, look_at
from support.simulated import TASK

import ichkit
from ichkit.show import page
from ichkit.show.blocks import (
    Card,
    Chart,
    Charts,
    Gallery,
    KeyFigure,
    KeyFigures,
    Listing,
    Missing,
    Prose,
    Section,
    Strip,
)
from ichkit.show.drawing import Series, draw_intervals, to_svg
from ichkit.show.page import encode_jpeg
from ichkit.show.table import Cell, Table
from ichkit.stages.predict.model import Model

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
    return page.render("ichkit.stages.report", "report.html.j2", sections=[Section("a", HOSTILE, blocks)], **values)


def predictions_page():
    series = {"series": HOSTILE, "num_slices": 1, "coverage_mm": 1.0, "gap_mm": 1.0, "chosen": True, "reason": HOSTILE}
    probabilities = dict.fromkeys(TASK.probability_columns, 0.5)
    drawn = {"slice_index": 0, "position_mm": 1.0, "shown_class": "subdural", "brain": PICTURE, "heat": PICTURE}
    study = {"number": 1, "study_id": HOSTILE, "num_slices": 1, "series": [series]}
    study |= {"key_slices": [{**drawn, **probabilities}], **probabilities}
    return page.render(
        "ichkit.stages.predict",
        "predictions.html.j2",
        task=TASK,
        note=HOSTILE,
        model=Model(HOSTILE, {}, None, "base", "phantom"),
        num_networks=1,
        studies=[study],
        max_drawn=1,
        rejected={HOSTILE: 3},
    )


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
    assert "script" not in {tag for tag, _ in tags}
    assert not [key for _, attributes in tags for key in attributes if key.startswith("on")]
    assert {attributes["src"] for tag, attributes in tags if tag == "img"} == {PICTURE}
    assert all(attributes["href"].startswith("#") for tag, attributes in tags if tag == "a")
    assert "${7*7} {{7*7}}" in text


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
