"""The slice viewers of the report: which studies, what they show, and how large they are together."""

import base64
import json

import cv2
import numpy as np
import pytest
from support.reports import CONFIG, explain_without_network, make_report_work

from ichkit.imaging.store import encode_volume
from ichkit.stages.report import gallery, viewers
from ichkit.stages.report import run as report
from ichkit.stages.report.gallery import FALSE_NEGATIVE, TRUE_POSITIVE, decision_thresholds, find_viewers, judge
from ichkit.stages.report.report_data import shorten
from ichkit.stages.report.viewers import Mark, StudyViewers


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("viewers")
    work = make_report_work(root / "work", cq500_missing=2)
    return report.collect(report.plan(CONFIG, work, report.ReportOptions(root / "submissions")))


@pytest.fixture(scope="module")
def made(given):
    judged = judge(given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "explain_slices", explain_without_network)
        section = gallery.make_galleries(given, judged)[-1]
    return judged, [block for block in section.blocks if block.kind == "viewer"]


def test_every_judged_slice_has_a_viewer_of_its_study_and_errors_of_the_headline_class_come_first(given, made):
    judged, blocks = made
    found = find_viewers(given, judged)
    assert [block.anchor for block in blocks] == [f"study-{i + 1}" for i in range(len(blocks))]
    for one in judged:
        name = given.rows.study_id.iloc[one.row]
        assert blocks[int(found.find(one.row).split("-")[1]) - 1].title == f"Study {shorten(name)}"
    errors = [one for one in judged if one.verdict != TRUE_POSITIVE and one.class_index == given.task.headline_index]
    errors.sort(key=lambda one: one.verdict != FALSE_NEGATIVE)
    first = list(dict.fromkeys(given.rows.study_id.iloc[one.row] for one in errors))
    assert found.studies[: len(first)] == first
    assert f"{FALSE_NEGATIVE}, any" in blocks[0].remark


def test_a_viewer_has_the_probabilities_labels_thresholds_and_marks_of_its_study(given, made):
    judged, blocks = made
    found = find_viewers(given, judged)
    for name, block in zip(found.studies, blocks, strict=True):
        rows = np.flatnonzero(given.rows.study_id == name)
        content = json.loads(block.content)
        np.testing.assert_allclose(content["probabilities"], given.scored.slices.probabilities[rows], atol=6e-5)
        np.testing.assert_array_equal(np.array(content["truth"], float), given.labels[rows])
        marked = {one.row - rows[0] for one in judged if one.row in rows}
        assert {content["shown"][key] for key in content["keys"]} == marked
        assert {content["shown"][int(at)] for at in content["heat_at"]} == marked
        limits = [decision_thresholds(given, c)[rows[0]] for c in range(6)]
        np.testing.assert_allclose([curve.threshold for curve in block.curves], limits)
        assert len(block.stills) == 1
        assert not block.is_open


def unpack(uri):
    return cv2.imdecode(np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR).astype(int)


def test_heat_is_faded_by_the_probability_in_viewers_and_galleries(given, made, monkeypatch):
    judged, blocks = made
    found = find_viewers(given, judged)
    marked = {(found.find(one.row), one.row) for one in judged}
    seen = []
    for block in blocks:
        content = json.loads(block.content)
        start = given.rows.index[given.rows.study_id == found.studies[int(block.anchor.split("-")[1]) - 1]][0]
        sheet, side = unpack(content["heat"])[..., 0], content["heat_side"]
        for at, number in content["heat_at"].items():
            row, name = start + content["shown"][int(at)], content["heat_class"][at]
            assert (block.anchor, row) in marked
            p = given.scored.slices.probabilities[row, given.task.classes.index(name)]
            tile = sheet[number // 8 * side :, number % 8 * side :][:side, :side]
            # The map rises to the right; the head ends a little before.
            assert 0.75 * 255 * p - 12 <= tile.max() <= 255 * p + 12
            seen.append(p)
    assert min(seen) < 0.2
    assert max(seen) > 0.8
    monkeypatch.setattr(gallery, "explain_slices", explain_without_network)
    cards = [card for block in gallery.make_galleries(given, judged) if block.kind == "subsection"
             for part in block.blocks if part.kind == "gallery" for card in part.cards]  # fmt: skip
    for card in cards:
        picture, p = unpack(card.picture), float(card.figure.split()[-1])
        colour = np.ptp(picture[168:, 168:], axis=2).max()
        assert p < 0.8 or colour > 50
        assert p > 0.1 or colour < 30


def test_all_viewers_of_a_page_share_its_budget(given, monkeypatch):
    rng = np.random.default_rng(0)
    rows = given.rows.drop_duplicates("study_id").index[:6].tolist()
    kept = {}
    for row in rows:
        path = given.prepared.folder / given.rows.volume[row]
        kept[path] = path.read_bytes()
        path.write_bytes(encode_volume(rng.normal(40, 40, (given.rows.num_slices[row], 96, 96)).astype(np.int16)))
    try:
        for budget in (600_000, 60_000):
            monkeypatch.setattr(viewers, "_SLICES_BYTES", budget)
            shown = StudyViewers(given, [Mark(row, 0, "x") for row in rows])
            made = shown.make(given.scored.slices.probabilities, np.full(given.labels.shape, np.nan), {})
            sizes = [len(json.loads(block.content)["sprite"]) * 3 // 4 for block in made]
            assert len(sizes) == 6
            assert sum(sizes) <= budget
        assert max(sizes) < 10_100
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_of_too_many_studies_the_last_have_no_viewer_and_no_link(given, monkeypatch):
    monkeypatch.setattr(viewers, "MOST_STUDIES", 2)
    rows = given.rows.drop_duplicates("study_id").index[:3].tolist()
    shown = StudyViewers(given, [Mark(row, 0, "x") for row in rows], prefix="s")
    assert [shown.find(row) for row in rows] == ["s-1", "s-2", ""]
