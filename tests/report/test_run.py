"""The report: what it shows is what the tables say, what is not there is named, and nothing comes from elsewhere."""

import copy
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from support.commands import do
from support.reports import CONFIG, Page, explain_without_network, make_report_work
from support.simulated import TASK, make_stack, make_work, rewrite_prepared

from ichkit.cli.main import main
from ichkit.core.errors import ArtifactError
from ichkit.show.drawing import Series, draw_intervals
from ichkit.stages.report import gallery
from ichkit.stages.report import run as report
from ichkit.stages.report.curves import roc_points
from ichkit.stages.report.failures import make_failures
from ichkit.stages.report.gallery import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE, pick_judged
from ichkit.stages.report.overview import find_missing
from ichkit.stages.report.strips import pick_changes
from ichkit.validation.comparisons import holm
from ichkit.validation.published import PUBLISHED
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder

STUDY = {"design", "flow", "population", "reference", "sample-size", "methods", "limitations"}
"""Sections that describe the study, also before anything is trained."""


@pytest.fixture(scope="module", autouse=True)
def _no_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "explain_slices", explain_without_network)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_report_work(tmp_path_factory.mktemp("report") / "work", cq500_missing=2)


@pytest.fixture(scope="module")
def page(work):
    return Page(do(report, CONFIG, work, submissions=work.root / "submissions").read_text())


@pytest.fixture(scope="module")
def scores(work, page):
    table = read_table(work.scores / "scores.parquet")
    return table.set_index(
        ["source", "dataset", "level", "aggregation", "subgroup", "fold", "metric", "class"]
    ).sort_index()


def out_of_fold(scores, source, metric, name, level="slice", subgroup="all"):
    how = "none" if level == "slice" else "maximum"
    return scores.loc[(source, "rsna", level, how, subgroup, -1, metric, name)]


def cq500(scores, source, metric, name, how="maximum", subgroup="all"):
    return scores.loc[(source, "cq500", "study", how, subgroup, -1, metric, name)]


def cell(score, digits, small=None):
    small = small or digits
    interval = "" if np.isnan(score.low) else f"|{score.low:.{small}f}-{score.high:.{small}f}"
    return ("-" if np.isnan(score.value) else f"{score.value:.{digits}f}") + interval


def best_of(scores):
    losses = {
        name: out_of_fold(scores, name, "weighted_log_loss", "all").value for name in ("a", "a-fusion", "a-blend")
    }
    return min(losses, key=losses.get)


def by_name(rows):
    at = 1 if rows[0][0] == "#" else 0
    return {row[at].split("|")[0]: row[at + 1 :] for row in rows[1:]}


def counts_of(score):
    return f"{score.n_positive:,}|/ {score.n:,}"


def test_the_board_says_what_the_scores_say_best_first(page, scores):
    rows = by_name(page.tables["Leaderboard (data: phantom)"])
    losses = [out_of_fold(scores, name, "weighted_log_loss", "all").value for name in rows]
    assert losses == sorted(losses)
    for name, (loss, _, auc, outside, mean, counts) in rows.items():
        whole = out_of_fold(scores, name, "weighted_log_loss", "all")
        assert loss == cell(whole, 5, 4)
        assert auc == cell(out_of_fold(scores, name, "roc_auc", "any"), 4, 3)
        assert outside == cell(cq500(scores, name, "roc_auc", "any"), 3, 2)
        assert mean == f"{cq500(scores, name, 'roc_auc', 'mean').value:.3f}"
        assert counts == counts_of(whole)


def test_losses_by_class_and_stage_are_those_of_the_scores(page, scores):
    header, *rows = page.tables["Log loss per class and stage, out of fold"]
    assert header == [
        "class",
        *(row[1] for row in page.tables["Leaderboard (data: phantom)"][1:]),
    ]
    for row in rows[:-1]:
        assert row[1:] == [cell(out_of_fold(scores, name, "log_loss", row[0]), 4) for name in header[1:]]
    assert rows[-1][1:] == [cell(out_of_fold(scores, name, "weighted_log_loss", "all"), 5, 4) for name in header[1:]]


def test_every_metric_of_the_best_source_is_that_of_the_scores(page, scores):
    best = best_of(scores)
    metrics = ["roc_auc", "average_precision", "f1_at_best", "sensitivity_at_youden", "specificity_at_youden"]
    slices = by_name(page.tables[f"{best}, out of fold, by slice"])
    studies = by_name(page.tables[f"{best}, out of fold, by study"])
    for label in TASK.classes:
        found = [cell(out_of_fold(scores, best, metric, label), 3) for metric in metrics]
        assert slices[label][0] == cell(out_of_fold(scores, best, "log_loss", label), 4)
        assert slices[label][1:-2] == found
        assert slices[label][-2] == cell(out_of_fold(scores, best, "calibration_error", label), 4)
        auc = out_of_fold(scores, best, "roc_auc", label, "study")
        assert studies[label][0] == cell(auc, 3)
        assert studies[label][-1] == counts_of(auc)


def test_cq500_stands_beside_the_published_numbers(page, scores):
    best = best_of(scores)
    rows = by_name(page.tables[f"{best} on CQ500, by study"])
    for label, (auc, delong, *published, counts) in rows.items():
        score = cq500(scores, best, "roc_auc", label)
        assert auc == cell(score, 3)
        assert published == [f"{row.roc_auc[label]:.4f}" for row in PUBLISHED.values()]
        assert counts == counts_of(score)
        if label != "mean":
            own = cq500(scores, best, "roc_auc_delong", label)
            assert delong == ("-" if np.isnan(own.low) else f"{own.low:.3f}-{own.high:.3f}")
    assert "20 studies, 2 missing" in page.text
    assert "they are not comparable" in page.text
    others = by_name(page.tables[f"{best} on CQ500: AUC by slice-to-study aggregation"])
    for label, cells in others.items():
        assert cells[:-1] == [
            cell(cq500(scores, best, "roc_auc", label, how), 3) for how in ("maximum", "top_mean", "noisy_or")
        ]


def test_subgroups_and_pairs_are_those_of_their_tables(page, scores, work):
    best = best_of(scores)
    for name, of, loss, auc, counts in page.tables[f"{best}: performance by subgroup"][1:]:
        name, _, mark = name.partition("|")
        subgroup = name.replace(": ", "=").replace("pixel format", "pixel_format").replace("gap mm", "gap_mm")
        find = cq500 if of == "CQ500" else out_of_fold
        score = find(scores, best, "roc_auc", "any", subgroup=subgroup)
        assert auc == cell(score, 3)
        assert counts == counts_of(score)
        assert (mark == "small group") == (min(score.n_positive, score.n - score.n_positive) < 10)
        if of != "CQ500":
            assert loss == cell(out_of_fold(scores, best, "weighted_log_loss", "all", subgroup=subgroup), 4)
    pairs = read_table(work.scores / "comparisons.parquet").set_index(
        ["source", "other", "dataset", "level", "metric", "class"]
    )
    rows = page.tables["Differences between sources"][1:]
    assert len(rows) == 3
    names = [tuple(row[0].split("|minus ")) for row in rows]
    losses = [pairs.loc[(*pair, "rsna", "slice", "weighted_log_loss", "all")] for pair in names]
    corrected = holm([row.p_value for row in losses])
    for (one, other), row, p, (_, loss, p_value, auc, *_) in zip(names, losses, corrected, rows, strict=True):
        star = "*" if p < 0.05 else ""
        assert loss == f"{row.difference:+.5f}{star}|{row.low:+.5f} to {row.high:+.5f}"
        assert p_value == f"{p:.3f}"
        assert auc.startswith(f"{pairs.loc[(one, other, 'rsna', 'slice', 'roc_auc', 'any')].difference:+.4f}")


def test_the_curves_carry_the_numbers_of_the_scores_in_words(page, scores):
    best = best_of(scores)
    words = {drawing["aria-label"] for drawing in page.drawings}
    for label in TASK.classes:
        auc = out_of_fold(scores, best, "roc_auc", label)
        assert any(f"{label} {auc.value:.3f} ({auc.n_positive:,})" in text for text in words)
        error = out_of_fold(scores, best, "calibration_error", label)
        assert any(
            text.startswith(f"Reliability curve of {label}") and f"{error.value:.4f} (" in text for text in words
        )


def test_every_part_has_a_name_and_every_link_an_end(page):
    assert len(page.ids) == len(set(page.ids))
    anchors = [link.removeprefix("#") for link in page.links]
    assert set(anchors) <= set(page.ids)
    contents = re.findall('href="#([^"]+)"', re.search("<nav.*?</nav>", page.raw, re.DOTALL)[0])
    assert len(contents) == len(page.headings)
    assert set(page.ids) >= STUDY
    assert {name for pair in page.references for name in pair if name} <= set(page.ids)
    assert all(picture["alt"] and picture["src"].startswith("data:image/") for picture in page.pictures)
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.drawings)
    assert len(page.tables) == page.raw.count("<table>")
    assert all(page.tables)


def test_nothing_comes_from_elsewhere_and_the_page_says_what_the_data_are(page):
    assert not re.search(r'(src|href)="(?!data:|#)', page.raw)
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.raw)  # a picture may spell four letters
    assert "http" not in words.replace("http-equiv", "")
    assert page.raw.count("<script") == 1  # the one that the policy of the page names
    assert "Made from phantoms" in page.text
    assert "Research use only, not a medical device" in page.text


def test_slices_and_studies_are_named_by_the_ends_of_their_ids_and_public_ones_in_full_on_a_click(page, work):
    slices = read_table(work.prepared / "slices.parquet")
    own = slices[slices.dataset != "cq500"]
    on_click = '<details class="id.*?</details>'
    clicked, rest = "".join(re.findall(on_click, page.raw, re.DOTALL)), re.sub(on_click, "", page.raw, flags=re.DOTALL)
    for column in ("slice_id", "study_id"):
        assert sum(name in clicked for name in own[column].unique()) > 10
        assert not [name for name in own[column].unique() if name in rest]
    assert not [name for name in own.patient_id.unique() if name in page.raw]
    assert sum("Slice …" in picture["alt"] for picture in page.pictures) > 10


def test_the_ids_of_a_users_own_scans_are_never_shown_in_full(work, tmp_path):
    shutil.copytree(work.root, tmp_path / "work")
    copied = WorkFolder(tmp_path / "work")
    slices = read_table(copied.prepared / "slices.parquet")
    rewrite_prepared(copied, {"slices.parquet": slices.assign(dataset=slices.dataset.replace("rsna", "folder"))})
    given = report.collect(report.plan(CONFIG, copied, report.ReportOptions(tmp_path / "submissions")))
    section = make_failures(given)
    text = "\n".join(str(block) for block in section.blocks)
    own = slices[slices.dataset != "cq500"]
    assert "false negative" in text
    for column in ("slice_id", "study_id", "patient_id"):
        assert not [name for name in own[column].unique() if name in text]


def test_every_error_of_a_table_leads_to_its_slice_in_a_viewer(page, work):
    slices = read_table(work.prepared / "slices.parquet").set_index("slice_id")
    rows = re.findall(r"<tr>.*?</tr>", page.raw, re.DOTALL)
    errors = [row for row in rows if "false negative<" in row or "false positive<" in row]
    assert len(errors) > 20
    viewers = dict(re.findall(r'<figure class="viewer" id="([^"]+)" data-title="Study …([^:"]+)', page.raw))
    for row in errors:
        anchor, index = re.search('href="#([^"]+)" data-slice="([^"]+)"', row).groups()
        slice_id, study_id = re.findall('data-full="([^"]+)"', row)
        assert slices.slice_index[slice_id] == int(index)
        assert slices.study_id[slice_id] == study_id
        assert study_id.endswith(viewers[anchor])


@pytest.mark.parametrize("name", ["history.csv", "config.yaml"])
def test_training_files_with_one_other_bit_are_not_shown(work, tmp_path, name):
    shutil.copytree(work.root, tmp_path / "work")
    copied = WorkFolder(tmp_path / "work")
    copied.report.unlink(missing_ok=True)
    path = next(copied.root.glob(f"runs/*/fold0/{name}"))
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(ArtifactError, match=rf"{name}: changed since it was written"):
        do(report, CONFIG, copied, submissions=tmp_path / "submissions")


def test_the_same_inputs_leave_the_page_alone_and_other_ones_make_it_anew(work, page, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_SCORED", ())  # one page of all sections is enough for a quick suite
    shutil.copytree(work.root, tmp_path / "work")
    copied, submissions = WorkFolder(tmp_path / "work"), tmp_path / "submissions"
    copied.report.write_text(copied.report.read_text() + "<!-- mine -->")
    assert "<!-- mine -->" in do(report, CONFIG, copied, submissions=submissions).read_text()
    facts = read_table(copied.prepared / "rejected.csv")
    facts.loc[0] = {"dataset": "rsna", "split": "train", "reason": "not <script>alert(1)</script> DICOM"}
    rewrite_prepared(copied, {"rejected.csv": facts})
    text = do(report, CONFIG, copied, submissions=submissions).read_text()
    assert "<!-- mine -->" not in text
    assert "not &lt;script&gt;alert(1)&lt;/script&gt; DICOM" in text
    assert text.count("<script") == 1


def test_the_stages_of_the_best_source_are_its_stack_and_its_runs_and_no_others(tmp_path):
    work = make_report_work(tmp_path / "work", runs=("a", "b", "c"))
    make_stack(work, runs=("b", "c"), kinds=("fusion", "blend"))
    given = report.collect(report.plan(CONFIG, work, report.ReportOptions(tmp_path / "submissions")))
    of_stack = {"a": {"a", "a-fusion", "a-blend"}, "b+c": {"b", "c", "b+c-fusion", "b+c-blend"}}
    for source in given.peers:
        book = copy.copy(given.scores)
        book.sources = [source, *(other for other in given.sources if other != source)]
        mine = replace(given, book=book)
        names = {one.name for one in mine.stages}
        assert names == (
            {one.name for one in given.peers} if source.kind == "base" else of_stack[source.name.rpartition("-")[0]]
        )


@pytest.mark.parametrize("names", [("a", "b"), tuple(f"a-name-of-some-length-{i}" for i in range(6)), ("x" * 60, "y")])
def test_the_legend_below_a_figure_is_as_wide_as_the_figure_or_narrower(names):
    series = [Series(name, np.array([0.1, 0.2])) for name in names]
    figure = draw_intervals(["epidural", "any"], series, "loss")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
    assert len({line.get_color() for line in figure.axes[0].lines}) == len(names)


@pytest.mark.slow
def test_two_pages_of_the_same_inputs_are_the_same_bytes(work, page):
    work.report.unlink()
    assert do(report, CONFIG, work, submissions=work.root / "submissions").read_text() == page.raw


def test_what_is_not_there_is_named_with_the_command_that_makes_it(tmp_path):
    work = make_report_work(tmp_path / "work", folds=(0,), cq500_studies=0, is_stacked=False)
    missing = find_missing(report.collect(report.plan(CONFIG, work, report.ReportOptions(tmp_path / "submissions"))))
    assert "Run a has 1 of 2 folds" in missing[0].what
    commands = [one.command for one in missing]
    assert commands[0].startswith("ichkit train --fold 1")
    prepare = [f"ichkit prepare --rsna RSNA {more} --config report.yaml" for more in ("--cq500 PATH", "--fresh")]
    assert commands[1:] == ["ichkit stack", *prepare]


@pytest.mark.slow
def test_one_fold_without_stack_and_cq500_makes_a_whole_page(tmp_path):
    work = make_report_work(tmp_path / "work", folds=(0,), cq500_studies=0, is_stacked=False)
    page = Page(do(report, CONFIG, work, submissions=tmp_path / "submissions").read_text())
    for command in ("ichkit train --fold 1", "ichkit stack", "ichkit prepare --rsna RSNA --cq500 PATH"):
        assert f"Run {command}" in page.text
    assert set(page.tables) >= {"Log loss per class and stage, out of fold", "a, out of fold, by slice"}
    commands = re.findall(r"ichkit (?:(?!ichkit).)*? --config report\.yaml", page.text)
    assert "ichkit prepare --rsna RSNA --config report.yaml" in commands
    for command in commands:
        name, *words = shlex.split(command)[1:]
        main.commands[name].make_context(name, words)
    # All sections but two: a run has patients for validation only if it asks for them, and regions have a score.
    assert not {"inner", "regions"} & set(page.ids)
    assert len(page.headings) == len(report._SCORED) - 2 + len(report._STUDY) + 4


def test_without_training_the_page_shows_the_data_and_says_what_comes_next(tmp_path):
    work = make_work(tmp_path / "work", num_patients=6, folds=())
    page = Page(do(report, CONFIG, work, submissions=tmp_path / "submissions").read_text())
    assert set(page.ids) >= STUDY | {"overview", "data", "repeat"}
    assert not set(page.ids) & {"board", "roc"}
    assert "Run ichkit train --fold 0" in page.text
    rows = by_name(page.tables["Prepared (data: phantom)"])
    assert rows["rsna train"][0] == f"{(read_table(work.prepared / 'slices.parquet').split == 'train').sum():,}"
    with pytest.raises(ArtifactError, match="ichkit prepare"):
        do(report, CONFIG, WorkFolder(tmp_path / "nothing"), submissions=tmp_path / "submissions")


def test_roc_points_are_those_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    p, y = rng.integers(0, 12, 200) / 11, rng.integers(0, 2, 200)
    alarms, hits = roc_points(y, p)
    expected = roc_curve(y, p, drop_intermediate=False)
    np.testing.assert_allclose(alarms, expected[0])
    np.testing.assert_allclose(hits, expected[1])
    assert np.trapezoid(hits, alarms) == pytest.approx(roc_auc_score(y, p))


def test_a_gallery_holds_the_most_confident_slices_in_order_and_one_of_each_study():
    p = np.array([0.9, 0.95, 0.7, 0.6, 0.8, 0.1, 0.2, 0.3])
    y = np.array([1, 1, 1, 0, 0, 1, 1, np.nan])
    studies = np.array([0, 0, 1, 2, 3, 4, 4, 5])
    picked = pick_judged(p, y, np.full(8, 0.5), studies, 2)
    assert picked == {TRUE_POSITIVE: [1, 2], FALSE_POSITIVE: [4, 3], FALSE_NEGATIVE: [5]}
    assert pick_judged(p, y, np.full(8, 0.99), studies, 9)[TRUE_POSITIVE] == []


def test_the_studies_that_changed_most_come_first_and_the_spoilt_one_last():
    before, after = np.full((6, 2), 0.5), np.full((6, 2), 0.5)
    after[0:2, 1], after[2:4, 0], after[4:6, 1] = 0.1, 0.4, 0.9
    changes = pick_changes(before, after, np.array([0, 2, 4]), 2, 1)
    assert [(change.rows, change.class_index) for change in changes] == [((0, 2), 1), ((2, 4), 0), ((4, 6), 1)]
    assert [round(change.after, 6) for change in changes] == [0.1, 0.4, 0.9]
    assert pick_changes(before, before, np.array([0, 2, 4]), 2, 1) == []


def test_pictures_follow_the_windows_and_the_heat(page):
    frame = pd.DataFrame(page.pictures)
    cards = frame[frame.alt.str.startswith("Slice")]
    assert (cards.alt.str.endswith("in 4 images")).all()
    assert set(zip(cards.width, cards.height, strict=True)) == {("336", "336")}
