"""The flow of the data adds up, and each of its numbers is that of a table of the store."""

import pandas as pd
import pytest
from support.commands import do, phantom_options
from support.reports import CONFIG, make_report_work
from support.simulated import TASK, rewrite_prepared

from ichkit.imaging.store import Prepared
from ichkit.stages.prepare import run as prepare
from ichkit.stages.report import run as report
from ichkit.stages.report.flow import find_flows, make_flow
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder


def collect(work, config=CONFIG):
    return report.collect(report.plan(config, work, report.ReportOptions(work.root / "submissions")))


def counts_of(flow):
    """Title to the counts of each step."""
    return {step.title: dict(step.counts) for step in flow.steps}


def check_sum(flow):
    """Images found are images read and the images of every loss; returns them."""
    (found,) = (step.counts["images"] for step in flow.steps if step.title.endswith("images found"))
    lost = sum(step.counts["images"] for step in flow.steps if step.kind == "loss")
    assert found == lost + counts_of(flow)["Images read"]["images"]
    for step in flow.steps:
        for unit in {unit for _, unit, _ in step.reasons}:
            assert sum(number for _, counted, number in step.reasons if counted == unit) == step.counts[unit]
    return found


@pytest.fixture(scope="module", params=[{}, {"limit_studies": 6, "lock": 0.25}], ids=["whole", "limited and locked"])
def stored(request, phantom_root, tiny_config, tmp_path_factory):
    work = WorkFolder(tmp_path_factory.mktemp("flow") / "work")
    do(prepare, tiny_config, work, phantom_options(phantom_root, **request.param))
    return collect(work, tiny_config)


def test_images_found_are_those_read_and_those_lost_for_a_reason(stored, phantom_root):
    for flow in find_flows(stored):
        pattern = "*.dcm" if flow.source == "rsna" else "CT*"
        files = [path for path in (phantom_root / flow.source).rglob(pattern) if path.is_file()]
        assert check_sum(flow) == len(files)


def test_rejected_files_and_series_left_out_are_those_of_the_tables(stored):
    rejected, choice = (read_table(stored.prepared.folder / name) for name in ("rejected.csv", "series_choice.csv"))
    studies = set(stored.prepared.studies.study_id)
    for flow in find_flows(stored):
        steps = {step.title: step for step in flow.steps}
        reasons = rejected[rejected.dataset == flow.source].reason.value_counts().to_dict()
        assert {reason: number for reason, _, number in steps["Rejected"].reasons} == reasons if reasons else True
        left = choice[~choice.chosen & choice.study_id.isin(studies)] if flow.source == "cq500" else choice[:0]
        if len(left):
            other = steps["Other series than the chosen one"]
            assert other.counts == {"images": left.num_slices.sum(), "series": len(left)}
            assert {reason: number for reason, _, number in other.reasons} == left.reason.value_counts().to_dict()
        else:
            assert "Other series than the chosen one" not in steps


def test_the_ends_hold_every_stored_slice_once(stored):
    slices = read_table(stored.prepared.folder / "slices.parquet")
    ends = [step for flow in find_flows(stored) for step in flow.steps if step.kind == "end"]
    assert sum(step.counts["slices"] for step in ends) == len(slices)
    by_title = {step.title: step.counts for step in ends}
    parts = {
        "Training and cross-validation": slices[slices.split == "train"],
        "Test split": slices[slices.split == "test"],
        "External test": slices[slices.dataset == "cq500"],
        "Locked patients": slices[slices.dataset == "locked"],
    }
    for title, part in parts.items():
        expected = {"patients": part.patient_id.nunique(), "studies": part.study_id.nunique(), "slices": len(part)}
        assert by_title.get(title, dict.fromkeys(expected, 0)) == expected


def test_folds_that_were_not_trained_and_unknown_labels_are_not_scored(tmp_path):
    work = make_report_work(tmp_path / "work", num_patients=27, folds=(0,), cq500_missing=2, is_stacked=False)
    slices = read_table(work.prepared / "slices.parquet")
    unknown = slices.index[slices.fold == 0][:7]
    slices.loc[unknown, list(TASK.classes)] = pd.NA
    rewrite_prepared(work, {"slices.parquet": slices})
    rsna, cq500 = find_flows(collect(work))
    (training,) = (step for step in rsna.steps if step.title.startswith("Training"))
    assert (slices.fold == 0).sum() != (slices.fold == 1).sum()
    first = slices[slices.fold == 0].drop(index=unknown)
    assert f"{first.study_id.nunique():,} studies, {len(first):,} slices" in training.notes[1]
    assert f"not scored: {(slices.fold == 1).sum():,} slices, fold 1 not trained" in training.notes
    assert "not scored: 7 slices without a known label" in training.notes
    (external,) = (step for step in cq500.steps if step.kind == "end")
    missing = Prepared.open(work.prepared, TASK).studies
    names = missing[(missing.dataset == "cq500") & (missing.num_slices == 0)].study_id
    assert external.notes[0] == f"2 studies with labels but without images: {', '.join(sorted(names))}"
    assert external.notes[1] == "scored: 20 studies"


def test_the_diagram_says_every_number_of_its_table_and_so_do_its_words(stored):
    section = make_flow(stored)
    charts, tables = section.blocks
    for flow, chart, table in zip(find_flows(stored), charts.charts, tables.blocks, strict=True):
        alt = chart.svg[: chart.svg.index(">")]
        for step in flow.steps:
            for number in step.counts.values():
                assert f">{number:,} " in chart.svg or f" {number:,} " in chart.svg
                assert f"{number:,} " in alt
        assert [row[0].text for row in table.lines if not row[0].text.startswith("-")] == [
            f"minus {step.title.lower()}" if step.kind == "loss" else step.title for step in flow.steps
        ]
