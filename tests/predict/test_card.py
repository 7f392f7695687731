"""The model card: every number is that of a manifest or a score, everything else is a mark, and ATLAS could read it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from support.commands import call, do
from support.reports import CONFIG
from support.scored import make_scored, pick, read
from support.simulated import TASK

from ichkit.core.errors import ArtifactError
from ichkit.show.table import BLANK
from ichkit.stages.predict import export
from ichkit.stages.predict.card import collect_card
from ichkit.stages.predict.card_files import BLANK_LINK, CARD_JSON, CARD_MARKDOWN, to_atlas, to_markdown
from ichkit.stages.predict.model import find_model
from ichkit.stages.report import run as report
from ichkit.work.artifacts import ArtifactWriter, read_manifest
from ichkit.work.folder import CARD_NAME, WEIGHTS_NAME, WorkFolder

ATLAS = json.loads((Path(__file__).parents[1] / "support" / "atlas_model.json").read_text())
NOWHERE = WorkFolder(Path("nowhere"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Three scored folds with facts of training, and files in the place of weights; never written to."""
    work = make_scored(tmp_path_factory.mktemp("card") / "work", ("base",), CONFIG)
    for k in range(3):
        folder = work.fold("base", k)
        old = read_manifest(folder)
        writer = ArtifactWriter(folder, old.kind)
        for name in old.files:
            writer.write_bytes(name, (folder / name).read_bytes())
        for name in (CARD_NAME, WEIGHTS_NAME):
            writer.write_bytes(name, name.encode())
        train = {"backbone": "resnet18", "pretrained": "hub", "image_size": 64, "epochs": 4}
        facts = {"backbone": "resnet18", "num_parameters": 11_200_000, "num_slices": 100 + k, "seconds": 1800 * k}
        settings = {**old.settings, "train": train}
        writer.commit(settings=settings, inputs=old.inputs, facts={**old.facts, **facts, "device": "cpu"})
    return work


@pytest.fixture(scope="module")
def exported(work, tmp_path_factory):
    """The fusion of the base, exported; never written to."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    do(export, CONFIG, work, model="base-fusion", out=folder)
    return folder


@pytest.fixture(scope="module")
def card(work):
    return collect_card(work, find_model(work, "base-fusion", TASK), TASK)


def test_both_forms_are_files_of_the_export_with_digests_and_a_changed_one_is_refused(exported, tmp_path):
    manifest = read_manifest(exported)
    for name in (CARD_MARKDOWN, CARD_JSON):
        assert name in manifest.files
        shutil.copytree(exported, tmp_path / name)
        find_model(NOWHERE, str(tmp_path / name), TASK)
        (tmp_path / name / name).write_bytes((exported / name).read_bytes() + b"x")
        with pytest.raises(ArtifactError, match=re.escape(name)):
            find_model(NOWHERE, str(tmp_path / name), TASK)


def test_an_export_without_a_card_is_still_a_model(exported, tmp_path):
    writer = ArtifactWriter(tmp_path / "old", "export")
    manifest = read_manifest(exported)
    for name in set(manifest.files) - {CARD_MARKDOWN, CARD_JSON}:
        writer.write_bytes(name, (exported / name).read_bytes())
    writer.commit(settings=manifest.settings, inputs=manifest.inputs, facts=manifest.facts)
    assert find_model(NOWHERE, str(tmp_path / "old"), TASK).name == "base-fusion"


def test_the_json_follows_the_schema_of_atlas(exported):
    made = json.loads((exported / CARD_JSON).read_text())
    jsonschema.Draft202012Validator.check_schema(ATLAS)
    jsonschema.validate(made, ATLAS)
    for change in ({"Name": "abc"}, {"Link": ""}, {"Price": "0"}, {"Imaging": {"Modalities": []}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**made, "Model": {**made["Model"], **change}}, ATLAS)


def test_every_score_is_that_of_the_table(work, card):
    scores = read(work)
    found = {(one.of, one.metric, one.name): one for one in card.scores}
    assert len(found) == 4 * TASK.num_classes
    places = {
        ("slices, out of fold", "log loss"): {"split": "train", "level": "slice", "metric": "log_loss"},
        ("slices, out of fold", "AUC"): {"split": "train", "level": "slice", "metric": "roc_auc"},
        ("studies, out of fold", "AUC"): {"split": "train", "level": "study", "metric": "roc_auc"},
        ("studies of CQ500", "AUC"): {"dataset": "cq500", "aggregation": "maximum", "metric": "roc_auc"},
    }
    for (of, metric), place in places.items():
        digits = 4 if metric == "log loss" else 3
        for name in TASK.classes:
            row = pick(scores, source="base-fusion", fold=-1, class_=name, **place)
            one = found[of, metric, name]
            assert one.value == f"{row.value:.{digits}f}"
            assert one.interval == f"{row.low:.{digits}f}-{row.high:.{digits}f}"
            assert one.counts == f"{row.n_positive:,} of {row.n:,} positive"
    text, comments = to_markdown(card), to_atlas(card)["Model"]["Model performance"]["Comments"]
    assert all(one.value in text and one.value in comments for one in card.scores)


def test_networks_are_those_of_the_manifests(card):
    (network,) = card.networks
    assert (network.run, network.backbone, network.folds) == ("base", "resnet18", (0, 1, 2))
    assert (network.num_parameters, network.num_slices, network.hours) == (11_200_000, 303, 1.5)
    assert network.initial_weights == "resnet18 from timm's hub"
    assert "3 x resnet18 (11,200,000 parameters)" in card.architecture


def test_what_is_unknown_is_marked_and_never_a_number(work, tmp_path):
    model = find_model(work, "base", TASK)
    unscored = collect_card(WorkFolder(tmp_path), model, TASK)
    assert unscored.scores == ()
    assert f"Scores: {BLANK}" in to_markdown(unscored)
    made = to_atlas(unscored)
    jsonschema.validate(made, ATLAS)
    assert made["Model"]["Model performance"] == {"Metrics": [], "Comments": BLANK}
    assert made["Model"]["Link"] == BLANK_LINK
    assert made["Model"]["Model properties"]["Decision threshold"] == BLANK
    old = replace(unscored.networks[0], num_parameters=None, image_size=None, epochs=None, num_slices=None, hours=None)
    row = next(line for line in to_markdown(replace(unscored, networks=(old,))).splitlines() if "| resnet18" in line)
    assert row.count(BLANK) == 5
    assert to_atlas(replace(unscored, networks=(old,)))["Model"]["Model properties"]["Sustainability"] == BLANK


def test_scores_of_another_model_of_the_same_name_are_not_quoted(work, tmp_path):
    shutil.copytree(work.root, tmp_path / "other")
    model = find_model(NOWHERE, str(tmp_path / "other" / "runs" / "base"), TASK)
    assert model.name == "base"
    assert collect_card(work, model, TASK).scores == ()
    assert collect_card(WorkFolder(tmp_path / "other"), model, TASK).scores


def test_the_path_of_initial_weights_is_not_told(work, tmp_path):
    from ichkit.stages.predict import card

    assert card._initial_weights({"pretrained": "/home/jane/weights.safetensors"}) == f"a file: {BLANK}"
    assert card._initial_weights({"pretrained": "none"}) == "random"
    assert card._initial_weights({}) == BLANK


def test_hostile_names_are_printed_and_not_obeyed(card):
    hostile = "<img src=x onerror=alert(1)> | `x` [a](javascript:b) #\n# heading"
    text = to_markdown(replace(card, name=hostile, task=replace(TASK, title=hostile)))
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "\n# heading" not in text
    rows = [line for line in text.splitlines() if line.startswith("| task")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3]
    jsonschema.validate(to_atlas(replace(card, task=replace(TASK, title=hostile * 3))), ATLAS)


def test_the_report_has_the_card_of_the_best_source_beside_it(work, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_SCORED", ())
    copy = WorkFolder(tmp_path / "work")
    shutil.copytree(work.root, copy.root)
    do(report, CONFIG, copy, submissions=tmp_path / "submissions")
    best = report.collect(report.plan(CONFIG, copy, report.ReportOptions(tmp_path / "submissions"))).best
    made = json.loads(copy.model_card.with_suffix(".json").read_text())
    assert made["Model"]["Name"] == f"ichkit {best.name}"
    assert copy.model_card.read_text() == to_markdown(collect_card(copy, find_model(copy, best.name, TASK), TASK))
    printed = "".join(call("report", "--work", copy.root, "--dry-run").split())
    assert str(copy.model_card) in printed
