"""The sections that say how well the best source works: what they show is what the rows and the scores say."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_curve
from support.reports import CONFIG, Page, explain_without_network, make_report_work
from support.simulated import TASK

from ichkit.show import page
from ichkit.show.table import format_number
from ichkit.stages.report import gallery
from ichkit.stages.report import robustness as robustness_section
from ichkit.stages.report import run as report
from ichkit.stages.report.calibration import make_calibration
from ichkit.stages.report.classes import make_roc
from ichkit.stages.report.curves import recall_points
from ichkit.stages.report.decisions import make_decisions
from ichkit.stages.report.failures import make_failures
from ichkit.stages.report.gallery import decision_thresholds
from ichkit.stages.report.operating import make_operating
from ichkit.stages.scores.book import SLICES, STUDIES, external_studies
from ichkit.validation.net_benefit import measure_net_benefit
from ichkit.validation.recalibration import measure_calibration
from ichkit.validation.scores import SENSITIVITY, SPECIFICITY


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("performance")
    work = make_report_work(root / "work", cq500_missing=2)
    return report.collect(report.plan(CONFIG, work, report.ReportOptions(root / "submissions")))


def show(section):
    """One section as a page."""
    values = {"task": TASK, "data": "phantom", "notice": "", "made": "", "inputs": ""}
    return Page(page.render("ichkit.stages.report", "report.html.j2", sections=[section], **values))


@pytest.fixture(scope="module")
def operating(given):
    return show(make_operating(given))


def by_first(rows):
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}


def test_decisions_at_youdens_threshold_are_those_of_the_scores(given, operating):
    groups = {
        "studies, out of fold": STUDIES,
        "slices, out of fold": SLICES,
        "studies of CQ500": external_studies("cq500"),
    }
    for name, group in groups.items():
        for label in TASK.classes:
            row = by_first(operating.tables[f"Decisions on {label}: {name}"])["Youden's J"]
            for column, metric in (("sensitivity", SENSITIVITY), ("specificity", SPECIFICITY)):
                score = given.scores.find(given.best, metric, label, group)
                cell = score.cell(3)
                assert row[column] == (f"{cell.text}|{cell.small}" if cell.small else cell.text)


def test_the_four_counts_are_all_rows_of_known_label_and_give_the_rates(given, operating):
    rows = given.scored.slices
    for c, label in enumerate(TASK.classes):
        for row in by_first(operating.tables[f"Decisions on {label}: slices, out of fold"]).values():
            tp, fp, fn, tn = (int(row[name].replace(",", "")) for name in ("TP", "FP", "FN", "TN"))
            assert tp + fn == (rows.labels[:, c] == 1).sum()
            assert fp + tn == (rows.labels[:, c] == 0).sum()
            assert row["sensitivity"].startswith(f"{tp / (tp + fn):.3f}")
            assert row["PPV"].startswith(f"{tp / (tp + fp):.3f}" if tp + fp else "-")


def test_an_external_set_is_decided_at_the_thresholds_of_the_training_studies(operating):
    own = by_first(operating.tables["Decisions on any: studies, out of fold"])
    outside = by_first(operating.tables["Decisions on any: studies of CQ500"])
    for name, row in outside.items():
        assert row["threshold"] == own[name]["threshold"].split("|")[0]


def test_predictive_values_are_given_at_every_prevalence_of_the_settings(given, operating):
    rows = by_first(operating.tables["Predictive values of any by prevalence: studies, out of fold"])
    decisions = by_first(operating.tables["Decisions on any: studies, out of fold"])
    for name, row in rows.items():
        found, kept = (float(decisions[name][rate].split("|")[0]) for rate in ("sensitivity", "specificity"))
        for share in given.config.report.prevalences:
            right = found * share
            expected = right / (right + (1 - kept) * (1 - share)) if right else np.nan
            shown = row[f"PPV\nat {100 * share:g} %"].split("|")[0]
            assert shown == "-" or float(shown) == pytest.approx(expected, abs=0.01)


def test_recall_points_are_those_of_scikit_learn_and_their_steps_the_average_precision():
    rng = np.random.default_rng(0)
    p, y = rng.integers(0, 12, 200) / 11, rng.integers(0, 2, 200)
    recall, precision = recall_points(y, p)
    expected = precision_recall_curve(y, p)
    np.testing.assert_allclose(recall[1:], expected[1][::-1][1:])
    np.testing.assert_allclose(precision[1:], expected[0][::-1][1:])
    assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(average_precision_score(y, p))


def test_a_precision_recall_curve_stands_beside_every_roc_curve_with_the_average_precision_of_the_scores(given):
    words = [drawing["aria-label"] for drawing in show(make_roc(given)).drawings]
    assert [text.split(" curves, ")[0] for text in words] == ["ROC", "Precision-recall"] * 3
    for text, group in zip(words[1::2], (STUDIES, SLICES, external_studies("cq500")), strict=True):
        score = given.scores.find(given.best, "average_precision", "any", group)
        assert f"any {score.value:.3f} ({score.n_positive / score.n:.3f})" in text


def test_calibration_is_that_of_the_rows_and_every_bin_of_the_scores_is_counted(given):
    shown = show(make_calibration(given))
    for name, rows in (("slices, out of fold", given.scored.slices), ("studies, out of fold", given.scored.studies)):
        table = by_first(shown.tables[f"Calibration: {name}"])
        for c, label in enumerate(TASK.classes):
            p, y = rows.probabilities[:, c], rows.labels[:, c]
            assert table[label]["Brier"].startswith(f"{brier_score_loss(y, p):.4f}|")
            found = measure_calibration(p, y, rows.members, num_draws=5, level=0.95, seed=0)
            shown_slope, shown_intercept = (table[label][name].split("|")[0] for name in ("slope", "intercept"))
            assert shown_slope.lstrip("+") == format_number(found.slope.value, 2)
            assert shown_intercept == f"{found.intercept.value:+z.2f}"
        counts = [row[2:4] for row in shown.tables[f"Bins: {name}"][1:]]
        totals = np.array([[int(text.replace(",", "")) for text in row] for row in counts]).sum(0)
        assert totals.tolist() == [rows.labels.size, int(rows.labels.sum())]
    words = [drawing["aria-label"] for drawing in shown.drawings]
    assert sum(text.startswith("Reliability curve of") for text in words) == len(words) == 3 * len(TASK.classes)


def test_the_gain_in_net_benefit_is_that_of_the_rows_for_every_class_and_set(given):
    shown = show(make_decisions(given))
    for group in (one for one in given.groups if one.unit == "studies"):
        table = by_first(shown.tables[f"Gain in net benefit: {group.name}"])
        for label, row in table.items():
            c = TASK.classes.index(label)
            columns = group.rows.probabilities[:, c], group.rows.labels[:, c], group.rows.members
            found = measure_net_benefit(*columns, np.array([0.1, 0.5]), num_draws=5, seed=0)
            assert row["at 10 %"].startswith(f"{100 * found.gain[0]:+z.2f}")
            assert row["at 50 %"].startswith(f"{100 * found.gain[1]:+z.2f}")
    drawn = {drawing["aria-label"] for drawing in shown.drawings}  # one of each pair of widths
    assert len(drawn) == sum(len(table) - 1 for table in shown.tables.values())


@pytest.fixture(scope="module")
def failures(given):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "explain_slices", explain_without_network)
        return show(make_failures(given))


def test_errors_by_subgroup_are_counted_on_the_rows_and_parts_of_a_partition_add_up(given, failures):
    rows, facts = given.scored.slices, given.scored.facts
    for c, label in enumerate(TASK.classes):
        yes, y = rows.probabilities[:, c] >= decision_thresholds(given, c), rows.labels[:, c] == 1
        table = by_first(failures.tables[f"Errors on {label} by subgroup"])
        is_edge = ((facts.slice_index == 0) | (facts.slice_index == facts.num_slices - 1)).to_numpy()
        inside = {"all slices": np.ones(len(y), bool), "edge: first or last": is_edge}
        for name, kept in inside.items():
            assert table[name]["false\nnegatives"] == f"{(y & ~yes & kept).sum()}|of {(y & kept).sum()}"
            share = (y & ~yes & kept).sum() / (y & kept).sum() if (y & kept).any() else None
            assert table[name]["share of\npositives"].split("|")[0] == format_number(share, 3)
            assert table[name]["false\npositives"] == f"{(~y & yes & kept).sum()}|of {(~y & kept).sum()}"
        thirds = [table[f"position: {part} third"]["false\npositives"] for part in ("lower", "middle", "upper")]
        total = sum(int(text.split("|")[0]) for text in thirds)
        assert total == int(table["all slices"]["false\npositives"].split("|")[0])


def test_the_most_confident_errors_come_first_one_of_each_study_with_their_labels_and_places(given, failures):
    rows, facts, c = given.scored.slices, given.scored.facts, TASK.classes.index("any")
    _, *shown = failures.tables["Most confident errors on any"]
    limits = decision_thresholds(given, c)
    for error, wanted, sign in (("false negative", 1, 1), ("false positive", 0, -1)):
        found = [row for row in shown if row[0] == error]
        p = [float(row[4].split("|")[0]) for row in found]
        assert p == sorted(p, key=lambda value: sign * value)
        assert len({row[3] for row in found}) == len(found)
        wrong = (rows.labels[:, c] == wanted) & ((rows.probabilities[:, c] >= limits) != wanted)
        first = np.flatnonzero(wrong)[np.argmin(sign * rows.probabilities[wrong, c])]
        assert p[0] == pytest.approx(rows.probabilities[first, c], abs=1e-4)
        row = facts.iloc[first]
        assert found[0][5].split("|")[0] == f"{row.slice_index + 1} of {row.num_slices}"
        labels = [name for name, value in zip(TASK.classes, rows.labels[first], strict=True) if value == 1]
        assert found[0][1] == (", ".join(labels) or "none")


def test_every_verdict_has_a_part_of_its_own_and_every_gallery_a_legend_with_the_scale_of_the_heat(failures):
    places = [failures.raw.index(f"<h3>{name}s</h3>") for name in ("True positive", "False positive", "False negative")]
    assert places == sorted(places)
    assert failures.raw.count('class="legend"') == failures.raw.count('<div class="cards">') > 6
    assert failures.raw.count("0 <i></i> 1") == failures.raw.count('class="legend"')
    alts = [picture["alt"] for picture in failures.pictures if picture["alt"].startswith("Slice ")]
    kinds = [next(kind for kind in ("true pos", "false pos", "false neg") if kind in alt) for alt in alts]
    assert kinds == sorted(kinds, key=["true pos", "false pos", "false neg"].index)


def test_robustness_shows_what_was_measured_or_the_command_that_measures_it(given, monkeypatch):
    missing = show(robustness_section.make_robustness(given))
    assert "Run ichkit evaluate --robustness" in missing.text
    places = [("weighted_log_loss", "all"), *((m, name) for m in ("log_loss", "roc_auc") for name in TASK.classes)]
    records = []
    for perturbation, worse in (("hu_plus_10", 0.02), ("dose_half", -0.001), ("mine", 0.3)):
        for metric, name in places:
            ends = {"difference": worse, "low": worse - 0.01, "high": worse + 0.01, "p_value": 0.01}
            counts = {"n": 50, "n_positive": 9, "num_patients": 7}
            place = {"run": "a", "perturbation": perturbation, "metric": metric, "class": name}
            records.append({**place, "before": 0.2, "after": 0.2 + worse, **ends, **counts})
    monkeypatch.setattr(robustness_section, "read_robustness", lambda *_: pd.DataFrame(records))
    shown = show(robustness_section.make_robustness(given))
    rows = {row[0]: row[1:] for row in shown.tables["a on perturbed scans, out of fold"]}
    assert rows["as they are"] == ["0.2000", "", "0.2000", "", "9|/ 50"]
    assert rows["+10 HU"][:2] == ["0.2200", "+0.0200*|+0.0100 to +0.0300"]
    assert rows["half dose"][1] == "-0.0010|-0.0110 to +0.0090"
    assert rows["mine"][0] == "0.5000"
    assert set(shown.tables) > {f"a on perturbed scans, out of fold: {name}" for name in TASK.subtypes}
    assert "+10 HU +0.0200" in shown.drawings[0]["aria-label"]
