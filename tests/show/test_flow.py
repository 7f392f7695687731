"""The flow diagram: every word is inside its box, nothing from outside is markup, and it is a picture with a text."""

import html
import re

from ichkit.show.flow import END, LOSS, STEP, FlowBox, draw_flow

BOXES = [
    FlowBox(STEP, "Images found", ("5,578 images",)),
    FlowBox(LOSS, "Rejected: 2 images", ("2 images: <b>cut</b> in the middle of a rather long line of pixel data",)),
    FlowBox(STEP, "Images read", ("5,576 images",)),
    FlowBox(END, "External test", ("40 studies",)),
]


def parts(svg):
    """(rectangle, its texts) in the order of the drawing."""
    found = []
    for tag in re.findall(r"<rect[^>]*>|<text[^>]*>[^<]*</text>", svg):
        numbers = {name: float(value) for name, value in re.findall(r' (x|y|width|height)="([\d.]+)"', tag)}
        if tag.startswith("<rect"):
            found.append((numbers, []))
        else:
            found[-1][1].append((numbers, html.unescape(re.sub(r"<[^>]+>", "", tag))))
    return found


def test_every_line_is_inside_its_box_and_boxes_follow_each_other():
    svg = str(draw_flow(BOXES, "words"))
    drawn = parts(svg)
    assert len(drawn) == len(BOXES)
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    below = 0.0
    for frame, texts in drawn:
        assert frame["y"] >= below
        below = frame["y"] + frame["height"]
        assert frame["x"] + frame["width"] <= width
        for place, text in texts:
            assert frame["y"] < place["y"] < below
            # 13 units high, at most 0.53 of that wide on average in common system fonts.
            assert place["x"] + 0.53 * 13 * len(text) <= frame["x"] + frame["width"] + 1
    assert below <= height


def test_the_words_of_the_boxes_are_all_there_escaped_and_wrapped():
    drawn = parts(str(draw_flow(BOXES, "words")))
    for box, (_, texts) in zip(BOXES, drawn, strict=True):
        shown = " ".join(text for _, text in texts)
        assert shown.split() == " ".join((box.title, *box.lines)).split()
    assert len(drawn[1][1]) == 3


def test_the_picture_has_its_text_alternative_escaped():
    svg = str(draw_flow(BOXES, 'a "b" <c>'))
    assert svg.startswith("<svg ")
    assert 'role="img" aria-label="a &#34;b&#34; &lt;c&gt;"' in svg
    assert "<b>" not in svg
