"""Slices for a page: small enough to mail, right in every window, and scrolled with mouse, slider and keys."""

import base64
import json
import re

import cv2
import numpy as np
import pytest
from support.browsers import act_on, find_browser
from support.viewers import ROOM, TEMPLATE, head, make_page, view

from ichkit.imaging.pictures import CODE_KNOTS, WINDOWS, encode_hounsfield, head_mask, paint_heat, window_picture
from ichkit.show.blocks import Section
from ichkit.show.page import render
from ichkit.show.viewer import PAGE_BYTES


def unpack(uri):
    return cv2.imdecode(np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_GRAYSCALE)


def to_hounsfield(codes):
    hounsfield, code = np.array(CODE_KNOTS, float).T
    return np.interp(codes, code, hounsfield).round().astype(np.int16)


@pytest.mark.parametrize(("name", "window"), WINDOWS)
def test_codes_give_every_window_back_within_two_grey_levels(name, window):
    level, width = window
    hounsfield = np.arange(int(level - width / 2) - 20, int(level + width / 2) + 20)[None].astype(np.int16)
    shown = window_picture(to_hounsfield(encode_hounsfield(hounsfield)), *window).astype(int)
    most = {"brain": 2, "subdural": 4, "bone": 12}[name]
    assert np.abs(shown - window_picture(hounsfield, *window)).max() <= most


def test_the_picture_of_a_study_shows_its_slices_in_order():
    volume = head()
    content = json.loads(view(volume).content)
    sprite, side = unpack(content["sprite"]), content["side"]
    middles = [to_hounsfield(sprite[side // 2, i * side + side // 2]) for i in range(len(volume))]
    assert np.abs(np.array(middles) - volume[:, 32, 32]).max() <= 3
    assert content["shown"] == list(range(6))


def test_heat_outside_the_head_is_not_painted():
    slice_hu = head()[0]
    mask = head_mask(slice_hu)
    assert mask[32, 32]
    assert not mask[2, 2]
    painted = paint_heat(slice_hu, np.ones(slice_hu.shape))
    assert (painted[2, 2] == 0).all()
    assert len(set(painted[32, 32].tolist())) > 1
    content = json.loads(view(head()).content)
    heat, side = unpack(content["heat"]), content["heat_side"]
    assert heat[side // 2, side // 2] > 200
    assert heat[1, 1] < 20


def test_thirty_noisy_studies_fit_the_budget_of_a_page_and_long_ones_are_thinned():
    still = view(head(36, 256, noise=12.0), num_studies=30)
    others = [view(head(6, 32, noise=12.0, seed=i), f"s{i}", 30) for i in range(2)]
    blocks = [*others, *[still] * 28]
    page = render(ROOM, TEMPLATE, sections=[Section("a", "a", blocks)], made="", notice="")
    assert len(page.encode()) <= PAGE_BYTES
    long = json.loads(view(head(200, 16), keys=(151, 3)).content)
    assert len(long["shown"]) <= 66
    assert {0, 3, 151, 199} <= set(long["shown"])
    assert len(long["probabilities"]) == 200


needs_browser = pytest.mark.skipif(find_browser() is None, reason="no chromium or google-chrome on PATH")
ACTIONS = """
  const found = {}, one = root.getElementById("s1"), panes = one.querySelector(".panes");
  const slider = one.querySelector("input[type=range]"), drawn = () => one.dataset.drawn;
  one.scrollIntoView({ behavior: "instant" });
  found.canvases = one.querySelectorAll("canvas").length;
  const probe = root.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const middle = () => {
    probe.drawImage(one.querySelector("canvas"), 0, 0);
    return [...probe.getImageData(128, 128, 1, 1).data];
  };
  // Both pictures are decoded beside the script: the heat map is coloured, everything else is grey.
  await until(() => drawn() && new Set(middle().slice(0, 3)).size > 1);
  found.first = drawn();
  const heading = () => one.parentElement.querySelector("h3").textContent;
  const headings = found.headings = [heading()];
  found.hot = middle(); press(panes, "h"); found.cold = middle(); press(panes, "h");
  const steps = {};
  press(panes, "ArrowUp"); headings.push(heading()); one.parentElement.open = false; await wait(50);
  headings.push(heading()); one.parentElement.open = true; await wait(50); headings.push(heading()); press(panes, "k");
  for (const key of ["ArrowUp", "ArrowDown", "ArrowDown", "Home", "PageUp", "End", "k", "k"]) {
    press(panes, key);
    (steps[key] ??= []).push(drawn());
  }
  found.steps = steps;
  slider.value = 1; slider.dispatchEvent(new view.Event("input")); found.slid = drawn();
  const wheel = by => panes.dispatchEvent(new view.WheelEvent("wheel", { deltaY: by, cancelable: true }));
  wheel(-1); found.wheel_before_focus = drawn(); panes.focus(); wheel(-1); found.wheel = drawn();
  found.now = [...one.querySelectorAll("[data-now]")].map(cell => cell.textContent);
  root.querySelector("a[href='#s1'][data-slice='4']").click(); found.linked = drawn();
  const table = root.querySelector("#errors").closest("section").querySelector("table");
  const names = () => [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].textContent.trim());
  found.sorted_first = [...table.tHead.rows[0].cells].map(cell => cell.getAttribute("aria-sort"));
  const sort = table.tHead.rows[0].cells[1].querySelector("button");
  sort.click(); found.up = names(); sort.click(); found.down = names();
  found.sorted = table.tHead.rows[0].cells[1].getAttribute("aria-sort");
  const filter = table.closest("section").querySelector("input[type=search]");
  filter.value = "whole-c3"; filter.dispatchEvent(new view.Event("input")); found.filtered = names();
  const texts = []; view.URL.createObjectURL = blob => { texts.push(blob.text()); return "#"; };
  view.HTMLAnchorElement.prototype.click = () => {};
  [...table.closest("section").querySelectorAll(".tools button")].at(-1).click();
  found.csv = await texts[0];
  root.querySelector("[data-fold-all]").click();
  found.open = [...root.querySelectorAll("section > details")].map(part => part.open);
  const planted = root.createElement("script"); planted.textContent = "window.planted = 1"; root.body.append(planted);
  found.planted = view.planted ?? 0;
  return found;
"""


@pytest.fixture(scope="module")
def acted(tmp_path_factory):
    return act_on(find_browser(), make_page(), ACTIONS, tmp_path_factory.mktemp("acted"))


@needs_browser
def test_a_study_is_scrolled_with_keys_slider_and_wheel(acted):
    found = acted[0]
    assert "error" not in found
    assert (found["first"], found["canvases"]) == ("3", 3)
    steps = {"ArrowUp": ["4"], "ArrowDown": ["3", "2"], "Home": ["0"], "PageUp": ["5"], "End": ["5"], "k": ["3", "2"]}
    assert found["steps"] == steps
    assert (found["slid"], found["wheel_before_focus"], found["wheel"]) == ("1", "1", "2")
    assert found["now"] == ["0.360 (truth: positive)", "0.250 (truth: negative)"]


@needs_browser
def test_the_heading_says_which_slice_is_shown_and_of_a_folded_study_why_it_is_listed(acted):
    error = "Study s1: slice 3, false negative, left 0.540"
    assert acted[0]["headings"] == [error, "Study s1: slice 4", error, "Study s1: slice 4"]


def test_without_a_script_the_heading_names_the_slice_of_the_error_and_a_heading_of_the_study_stays():
    assert "Study s1<span data-remark>: slice 3, false negative, left 0.540</span>" in make_page()
    assert view(head(), remarks={}).remark == ""


def test_the_chart_has_at_most_eight_marks_of_round_slices_in_the_middle_of_their_slices():
    for num_slices, expected in ((6, [0, 1, 2, 3, 4, 5]), (31, [0, 5, 10, 15, 20, 25, 30]), (200, [0, 50, 100, 150])):
        ticks = view(head(num_slices, 16), keys=(3,)).ticks
        assert [index for index, _ in ticks] == expected
        np.testing.assert_allclose([at for _, at in ticks], [100 * (i + 0.5) / num_slices for i in expected])


@needs_browser
def test_heat_is_switched_with_a_key_and_a_link_goes_to_its_slice(acted):
    found = acted[0]
    assert found["cold"][0] == found["cold"][1] == found["cold"][2]
    assert len(set(found["hot"][:3])) > 1
    assert found["linked"] == "4"


@needs_browser
def test_a_table_is_sorted_by_number_filtered_by_whole_ids_and_downloaded(acted):
    found = acted[0]
    numbers = ["c0", "c1", "b", "c2", "c3", "c4", "c6", "c7", "a"]
    assert [re.split("whole|-1", name)[0] for name in found["up"]] == [*numbers, "c5"]
    assert [re.split("whole|-1", name)[0] for name in found["down"]] == [*reversed(numbers), "c5"]
    assert found["sorted_first"] == [None, "descending"]
    assert found["sorted"] == "descending"
    assert found["csv"] == "name,number\r\n'-1|whole-c3,3.5\r\n"
    assert found["open"] == [False, False]


@needs_browser
def test_a_planted_script_is_refused_and_nothing_else_is_said(acted):
    assert acted[0]["planted"] == 0
    assert len(acted[1]) == 1
    assert "Content Security Policy" in acted[1][0]
