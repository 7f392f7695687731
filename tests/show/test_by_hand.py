"""Pages used with a real keyboard, wheel and mouse in Chromium: viewer, tables, folding, and without scripts."""

import pytest
from support.browsers import find_browser
from support.tab import open_tab
from support.viewers import make_page

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no chromium or google-chrome on PATH")
FOCUS = "document.activeElement"


@pytest.fixture
def tab(request, tmp_path):
    """The page, at the width that a test names."""
    options = getattr(request, "param", {})
    path = tmp_path / "page.html"
    path.write_text(make_page(is_open=options.get("is_open", True)), encoding="utf-8")
    with open_tab(find_browser(), path, tmp_path, **{k: v for k, v in options.items() if k != "is_open"}) as found:
        found.run("document.documentElement.style.scrollBehavior = 'auto'")
        yield found
    assert found.console == []


def drawn(tab, name="s1"):
    return tab.run(f"document.getElementById('{name}').dataset.drawn")


def tab_to(tab, selector):
    """Presses the tabulator until the focus is there."""
    for _ in range(60):
        if tab.run(f"{FOCUS}.matches({selector!r})"):
            return
        tab.press("Tab")
    raise AssertionError(f"the tabulator does not reach {selector}")


def test_a_study_is_scrolled_by_the_keyboard_alone(tab):
    tab_to(tab, "#s1 .panes")
    tab.wait_for("document.getElementById('s1').dataset.drawn")
    found = [drawn(tab)]
    for key in ("ArrowUp", "ArrowDown", "PageUp", "Home", "End", "k", "k"):
        tab.press(key)
        found.append(drawn(tab))
    assert found == ["3", "4", "3", "5", "0", "5", "3", "2"]
    tab_to(tab, "#s1 input[type=range]")
    tab.press("ArrowRight")
    assert drawn(tab) == "3"


def test_windows_and_heat_are_changed_by_keys_and_by_clicks(tab):
    shown = "[...document.querySelectorAll('#s1 .panes > div')].map(pane => !pane.hidden)"
    tab_to(tab, "#s1 .panes")
    assert tab.run(shown) == [True, True, True]
    tab.press("w")
    tab.press("w")
    assert tab.run(shown) == [False, True, False]
    colour = "(i => { const c = document.querySelectorAll('#s1 canvas')[i], p = document.createElement('canvas');"
    colour += "const d = p.getContext('2d', { willReadFrequently: true }); d.drawImage(c, -c.width / 2, -c.height / 2);"
    colour += "return [...d.getImageData(0, 0, 1, 1).data].slice(0, 3); })(%d)"
    tab.wait_for("document.getElementById('s1').dataset.drawn")
    tab.wait_for(f"new Set({colour % 1}).size > 1")  # the heat is over the window that is shown alone
    tab.press("h")
    assert len(set(tab.run(colour % 1))) == 1
    tab.press("w")
    tab.press("w")
    tab.click("#s1 .choices button:nth-child(4)")
    assert tab.run(shown) == [False, False, True]


def test_the_wheel_scrolls_the_page_until_the_images_are_clicked_and_then_the_study(tab):
    tab.run("document.querySelector('#s1').scrollIntoView({ block: 'start', behavior: 'instant' })")
    tab.wait_for("document.getElementById('s1').dataset.drawn")
    start = tab.run("scrollY")
    tab.wheel("#s1 .panes", -200)
    tab.wait_for(f"scrollY !== {start}")
    tab.wait_for_rest()
    assert drawn(tab) == "3"
    tab.click("#s1 .panes")
    before = tab.run("scrollY")
    tab.wheel("#s1 .panes", -100)
    tab.wait_for("document.getElementById('s1').dataset.drawn === '4'")
    assert tab.run("scrollY") == before


@pytest.mark.parametrize("tab", [{"is_open": False}], indirect=True)
def test_a_click_on_an_error_opens_its_folded_study_at_the_slice_and_takes_the_keyboard_there(tab):
    assert tab.run("document.getElementById('s2').closest('details').open") is False
    tab.click("a[href='#s2'][data-slice='1']")
    tab.wait_for("document.getElementById('s2').dataset.drawn === '1'")
    assert tab.run("document.getElementById('s2').closest('details').open") is True
    assert tab.run("document.getElementById('s1').closest('details').open") is False
    box = tab.run("(b => [b.top, innerHeight])(document.querySelector('#s2 .panes').getBoundingClientRect())")
    assert 0 <= box[0] < box[1] / 2
    tab.press("ArrowUp")
    assert drawn(tab, "s2") == "2"


@pytest.mark.parametrize("tab", [{"is_open": False}], indirect=True)
def test_a_link_opens_a_folded_study_also_in_a_browser_that_does_not(tab):
    tab.run("document.addEventListener('click', event => event.preventDefault())")
    tab.click("a[href='#s2'][data-slice='1']")
    assert tab.run("document.getElementById('s2').closest('details').open") is True


def test_a_table_is_sorted_filtered_and_its_ids_shown_by_the_keyboard(tab):
    names = "[...document.querySelectorAll('#errors-rows tr')].filter(row => !row.hidden)"
    names += ".map(row => row.cells[1].textContent)"
    tab.run("document.querySelector('.scroll > table').tBodies[0].id = 'errors-rows'")
    tab_to(tab, "th:nth-child(2) button.sort")
    tab.press("Enter")
    assert tab.run(names) == ["0.5", "1.5", "2", "2.5", "3.5", "4.5", "6.5", "7.5", "10", "-"]
    tab.press("Enter")
    assert tab.run(names)[:3] == ["10", "7.5", "6.5"]
    tab_to(tab, "details.id summary")
    tab.press("Enter")
    assert tab.run(f"{FOCUS}.parentElement.querySelector('code').getBoundingClientRect().height") > 5
    tab.click("input[type=search]")
    for key in "whole-c7":
        tab.press(key)
    assert tab.run(names) == ["7.5"]
    tab.run("navigator.clipboard.writeText = async text => { window.copied = text; }")
    tab.click(".tools button")
    tab.wait_for("window.copied")
    assert tab.run("window.copied") == "name\tnumber\nwhole-c7\t7.5"
    tab.wait_for("document.querySelector('.tools button').textContent === 'copied'")


def test_sections_and_studies_are_folded_by_the_keyboard(tab):
    tab_to(tab, "section:first-child summary")
    tab.press("Enter")
    assert tab.run("document.querySelector('section details').open") is False
    tab.press("Enter")
    assert tab.run("document.querySelector('section details').open") is True
    tab_to(tab, "details.fold > summary")
    tab.press("Enter")
    assert tab.run(f"{FOCUS}.parentElement.open") is False


@pytest.mark.parametrize("tab", [{"width": 390, "is_dark": True}], indirect=True)
def test_a_phone_shows_one_window_and_does_not_scroll_sideways(tab):
    tab.run("document.querySelector('#s1').scrollIntoView({ behavior: 'instant' })")
    tab.wait_for("document.getElementById('s1').dataset.drawn")
    widths = "[...document.querySelectorAll('#s1 canvas')].map(canvas => canvas.getBoundingClientRect().width)"
    first, *others = tab.run(widths)
    assert first > 300
    assert others == [0, 0]
    assert tab.run("document.documentElement.scrollWidth") == 390
    assert tab.run("getComputedStyle(document.querySelector('.scroll tbody th')).position") == "sticky"
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"


def test_without_scripts_the_key_slices_and_the_table_are_there(tab):
    tab.send("Emulation.setScriptExecutionDisabled", value=True)
    tab.reload()
    text = tab.read()
    assert "<canvas" not in text
    assert text.count("a key slice") == 2
    assert "<polyline" in text
    assert text.count("<tr") > 10
