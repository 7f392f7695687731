"""`predict --labels`: the statistics of an external set without a work folder, at the thresholds of the export."""

import html
import json
import re

import numpy as np
import pandas as pd
import pytest
from support.browsers import find_browser
from support.commands import call
from support.dicoms import write_series
from support.models import make_model, seal
from support.reports import CONFIG, Page, make_report_work
from support.simulated import TASK
from support.tab import open_tab

from ichkit.imaging.store import Prepared
from ichkit.stages.predict.judge import HERE, TRAINING
from ichkit.stages.predict.model import find_model
from ichkit.stages.predict.thresholds import measure_thresholds
from ichkit.stages.scores.score_source import read_out_of_fold
from ichkit.validation.catalog import find_sources, pick_source
from ichkit.validation.metrics import roc_auc_by_class, weighted_log_loss
from ichkit.validation.operating import OPERATING_POINTS, choose_operating_points
from ichkit.validation.scores import POOLED
from ichkit.validation.thresholds import F1_AIM, choose_thresholds
from ichkit.work.folder import WorkFolder

SMALL = ("--set", "prepare.workers=1", "--set", "evaluate.num_draws=60")
P = TASK.probability_columns


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six studies of two patients each, a model with thresholds, and labels per slice and per study."""
    root = tmp_path_factory.mktemp("labels")
    for i in range(6):
        study = f"1.4.{i}"
        tags = {"study_uid": study, "series_uid": f"{study}.1", "patient_id": f"PERSON {i // 2}"}
        write_series(root / "scans" / f"s{i}", 5 + i, **tags)
    model = make_model(root / "model")
    points = {name: dict.fromkeys(TASK.classes, 0.5) for name in (*OPERATING_POINTS, F1_AIM)}
    (model / "thresholds.json").write_text(json.dumps({"slice": points, "study": points}))
    seal(model)
    rows = [(f"1.4.{i}", f"1.4.{i}.1.{n + 1}", i, n) for i in range(6) for n in range(5 + i)]
    slices = pd.DataFrame(rows, columns=["study_id", "slice_id", "i", "n"])
    for c, name in enumerate(TASK.subtypes):
        slices[name] = ((slices["i"] + slices["n"] + c) % 7 == 0).astype(int)
    slices["any"] = slices[list(TASK.subtypes)].max(axis=1)
    slices.drop(columns=["study_id", "i", "n"]).to_csv(root / "slices.csv", index=False)
    studies = pd.DataFrame({"study_id": [f"1.4.{i}" for i in range(6)], "hospital": ["A", "B"] * 3})
    for name in TASK.classes:
        studies[name] = [0, 0, 1, 1, 0, 1]
    studies.to_csv(root / "studies.csv", index=False)
    return root, slices


def predict(root, out, *words, code=0):
    words = ("predict", root / "scans", "--model", root / "model", "--out", out, "--work", out / "w", *words)
    return call(*words, *SMALL, code=code)


def predict_page(root, out, *words):
    predict(root, out, *words)
    return (out / "predictions.html").read_text()


def scores_of(out, level):
    table = pd.read_csv(out / "scores.csv")
    own = table[(table.level == level) & (table.subgroup == "all")]
    return own.set_index(["metric", "class"])


def test_labels_per_slice_give_the_loss_and_aucs_of_the_predicted_slices(place, tmp_path):
    root, labels = place
    printed = predict(root, tmp_path, "--labels", root / "slices.csv")
    table = pd.read_csv(tmp_path / "slices.csv").merge(labels, on="slice_id")
    assert len(table) == len(labels)
    p, y = table[P].to_numpy(), table[list(TASK.classes)].to_numpy(float)
    scores = scores_of(tmp_path, "slice")
    # The CSV has the probabilities as float32.
    loss = weighted_log_loss(p, y, TASK.weight_array())
    assert scores.loc[("weighted_log_loss", "all"), "value"] == pytest.approx(loss, rel=1e-5)
    found = scores.loc["roc_auc"].loc[list(TASK.classes), "value"]
    np.testing.assert_allclose(found, roc_auc_by_class(p, y), atol=1e-6)
    assert (scores.loc["roc_auc"].loc[list(TASK.classes), "low"] <= found).all()
    assert "Against the labels, by slice" in printed
    assert "Against the labels, by study" in printed
    page = (tmp_path / "predictions.html").read_text()
    assert "Scores against the labels" in page
    assert "Decisions on any, by slice" in page
    viewers = [json.loads(html.unescape(text)) for text in re.findall('data-viewer="([^"]+)"', page)]
    in_order = labels.assign(study=labels.slice_id.str.extract(r"(1\.4\.\d+)")[0]).groupby("study")
    truths = [group[list(TASK.classes)].to_numpy().tolist() for _, group in in_order]
    assert len(viewers) == len(truths)
    assert all(viewer["truth"] in truths for viewer in viewers)
    assert "PERSON" not in "".join(path.read_text("latin-1") for path in tmp_path.glob("*.*"))


def test_labels_per_study_give_studies_and_subgroups_alone(place, tmp_path):
    root, _ = place
    predict(root, tmp_path, "--labels", root / "studies.csv", "--subgroup", "hospital", "--no-page")
    table = pd.read_csv(tmp_path / "scores.csv")
    assert set(table["level"]) == {"study"}
    assert {"all", "hospital=A", "hospital=B"} == set(table["subgroup"])
    page = Page(predict_page(root, tmp_path / "page", "--labels", root / "studies.csv", "--subgroup", "hospital"))
    shown = page.tables["Subgroups, by study"]
    assert [row[0] for row in shown[1:]] == ["hospital: A|small group", "hospital: B|small group"]  # three studies each
    assert "Small group: fewer than 10 positive or 10 negative rows" in page.text
    truth = np.array([0, 0, 1, 1, 0, 1.0])
    p = pd.read_csv(tmp_path / "studies.csv").sort_values("study_id")["p_any"].to_numpy()
    found = scores_of(tmp_path, "study").loc[("roc_auc", "any")]
    assert found["value"] == pytest.approx(roc_auc_by_class(p[:, None], truth[:, None])[0])
    assert (found["n"], found["n_positive"]) == (6, 3)


def test_thresholds_of_the_export_decide_and_those_chosen_here_are_marked(place, tmp_path):
    root, labels = place
    predict(root, tmp_path, "--labels", root / "slices.csv", "--no-page")
    points = pd.read_csv(tmp_path / "operating.csv")
    table = pd.read_csv(tmp_path / "slices.csv").merge(labels, on="slice_id")
    own = points[(points.level == "slice") & (points["class"] == "any") & (points.point == "sensitivity_95")]
    carried, here = (own[own.chosen_on == name].iloc[0] for name in (TRAINING, HERE))
    assert carried["threshold"] == 0.5
    assert carried["tp"] == int(((table["p_any"] >= 0.5) & (table["any"] == 1)).sum())
    assert carried["fp"] == int(((table["p_any"] >= 0.5) & (table["any"] == 0)).sum())
    assert here["sensitivity"] >= 0.95
    assert here["threshold"] != 0.5


def test_a_model_without_thresholds_is_judged_at_those_chosen_here(place, tmp_path):
    root, _ = place
    model = make_model(tmp_path / "plain")
    call(
        "predict", root / "scans", "--model", model, "--out", tmp_path / "out", "--labels", root / "studies.csv", *SMALL
    )
    assert set(pd.read_csv(tmp_path / "out" / "operating.csv")["chosen_on"]) == {HERE}


def test_the_page_says_first_what_is_doubtful_and_marks_what_reaches_its_threshold(place, tmp_path):
    root, _ = place
    page = predict_page(root, tmp_path / "whole")
    assert "5 studies of fewer than 10 slices" in page
    assert "doubtful for study 1, 2, 3, 4, 5, 6; the reasons are under Series selection" in page
    table = page[page.index("Studies by probability") : page.index("Each class has a threshold of its own")]
    cells = re.findall(r'<td class=" (bad|) p" style="--share: ([0-9.]+)"', table)
    assert len(cells) == 6 * len(TASK.classes)
    assert [tone == "bad" for tone, _ in cells] == [float(share) >= 0.5 for _, share in cells]
    assert {tone for tone, _ in cells} == {"bad", ""}
    for study, num_slices in (("1.5.1", 24), ("1.5.2", 26)):
        write_series(tmp_path / study, num_slices, study_uid=study, series_uid=f"{study}.1", patient_id="PERSON 9")
    sorted((tmp_path / "1.5.2").iterdir())[9].unlink()
    for expected, folder in (("no doubt about the selection", "1.5.1"), ("doubtful for study 1; the reasons", "1.5.2")):
        words = ("predict", tmp_path / folder, "--model", root / "model", "--out", tmp_path / f"out{folder}")
        call(*words, "--work", tmp_path / "w", *SMALL)
        page = (tmp_path / f"out{folder}" / "predictions.html").read_text()
        assert expected in page
        assert "10 or more of each study" in page


def test_every_error_is_listed_and_one_of_each_study_leads_to_its_slice(place, tmp_path):
    root, labels = place
    predict(root, tmp_path, "--labels", root / "slices.csv")
    table = pd.read_csv(tmp_path / "slices.csv").merge(labels, on="slice_id")
    errors = pd.read_csv(tmp_path / "errors.csv")
    for name in TASK.classes:
        p, y = table[f"p_{name}"], table[name]
        own = errors[(errors.level == "slice") & (errors["class"] == name)]
        missed, alarms = (own[own.error == kind] for kind in ("false negative", "false positive"))
        assert set(missed.slice_id) == set(table.slice_id[(y == 1) & (p < 0.5)])
        assert set(alarms.slice_id) == set(table.slice_id[(y == 0) & (p >= 0.5)])
        assert missed.probability.is_monotonic_increasing
        assert alarms.probability.is_monotonic_decreasing
        values = table.set_index("slice_id")[f"p_{name}"]
        np.testing.assert_allclose(own.probability, values.loc[own.slice_id], rtol=1e-6)
    assert len(errors)
    page = Page((tmp_path / "predictions.html").read_text())
    shown = page.tables["Errors on any, by slice"][1:]
    own = errors[(errors.level == "slice") & (errors["class"] == "any")].drop_duplicates(["error", "study_id"])
    numbers = {study: i + 1 for i, study in enumerate(pd.read_csv(tmp_path / "studies.csv").study_id)}
    at = table.set_index("slice_id").slice_index
    expected = [[row.error, str(numbers[row.study_id]), f"{at[row.slice_id] + 1} of"] for row in own.itertuples()]
    assert [[*cells[:2], cells[3][: len(want[2])]] for cells, want in zip(shown, expected, strict=True)] == expected
    section = page.raw[page.raw.index("Errors on any, by slice") :]
    links = re.findall(r'<a href="#study-(\d+)" data-slice="(\d+)">', section)[: len(own)]
    assert links == [(str(numbers[row.study_id]), str(at[row.slice_id])) for row in own.itertuples()]


def test_an_error_of_a_study_leads_to_the_slice_of_its_highest_probability(place, tmp_path):
    root, _ = place
    predict(root, tmp_path, "--labels", root / "studies.csv")
    errors, slices = pd.read_csv(tmp_path / "errors.csv"), pd.read_csv(tmp_path / "slices.csv")
    assert set(errors.level) == {"study"}
    assert errors.slice_id.isna().all()
    own = errors[errors["class"] == "any"].drop_duplicates(["error", "study_id"])
    assert len(own)
    raw = (tmp_path / "predictions.html").read_text()
    links = re.findall(r'data-slice="(\d+)">', raw[raw.index("Errors on any, by study") :])[: len(own)]
    highest = {study: of.sort_values("slice_index").p_any.argmax() for study, of in slices.groupby("study_id")}
    assert links == [str(highest[study]) for study in own.study_id]


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_an_error_is_looked_at_with_the_keyboard(place, tmp_path):
    root, _ = place
    predict(root, tmp_path, "--labels", root / "slices.csv")
    with open_tab(find_browser(), tmp_path / "predictions.html", tmp_path) as tab:
        link = "document.querySelector('section[aria-labelledby=errors] td a[data-slice]')"
        tab.follow_to_slice(link)
        assert tab.console == []


def test_labels_of_other_scans_are_refused_before_anything_is_predicted(place, tmp_path):
    root, labels = place
    other = labels.drop(columns=["study_id", "i", "n"]).assign(slice_id="9." + labels["slice_id"])
    other.to_csv(tmp_path / "other.csv", index=False)
    printed = predict(root, tmp_path / "out", "--labels", tmp_path / "other.csv", code=2)
    assert "45 of its 45 ids in column slice_id are not among" in printed
    assert not (tmp_path / "out" / "slices.csv").exists()
    assert "give it with --labels CSV" in predict(root, tmp_path / "out", "--subgroup", "hospital", code=2)


@pytest.mark.parametrize(
    ("name", "message"), [("any", '"any" cannot be a subgroup'), ("hospitl", 'Did you mean "hospital"')]
)
def test_subgroups_have_the_names_that_prepare_takes(place, tmp_path, name, message):
    asked = ("--labels", place[0] / "studies.csv", "--subgroup", name)
    assert message in predict(place[0], tmp_path / "out", *asked, code=2)


def test_scores_of_an_earlier_call_do_not_stay_beside_new_predictions(place, tmp_path):
    root, _ = place
    predict(root, tmp_path, "--labels", root / "studies.csv", "--no-page")
    predict(root, tmp_path, "--no-page")
    assert not (tmp_path / "scores.csv").exists()
    (tmp_path / "scores.csv").write_text("mine")
    assert "scores.csv" in predict(root, tmp_path, "--no-page", code=2)


def test_an_export_carries_the_thresholds_of_its_out_of_fold_rows(tmp_path):
    work = make_report_work(tmp_path / "work")
    source = pick_source(find_sources(work, TASK), "a")
    rows = read_out_of_fold(source, Prepared.open(work.prepared, TASK), CONFIG)
    found = measure_thresholds(work, find_model(work, "a", TASK), TASK, CONFIG)
    for point, values in choose_operating_points(rows.studies, rows.part_of_study, [POOLED])[POOLED].items():
        known = {label: value for label, value in zip(TASK.classes, values, strict=True) if np.isfinite(value)}
        assert found["study"][point] == known
    best = choose_thresholds(rows.slices.probabilities, rows.slices.labels, rows.slices.order, rows.part, [POOLED])
    assert found["slice"][F1_AIM]["any"] == best[POOLED][F1_AIM][-1]
    assert measure_thresholds(WorkFolder(tmp_path / "none"), find_model(work, "a", TASK), TASK, CONFIG) == {}
