"""The methods of a page are those of the artifacts: config and card of each run, settings of the stack, seconds."""

import json

import pytest
import yaml
from support.reports import CONFIG, make_report_work
from support.simulated import rewrite_fold

from ichkit.core.config import load_config
from ichkit.engine.inference import ModelCard
from ichkit.imaging.tags import WANTED_NAMES
from ichkit.stages.report import run as report
from ichkit.stages.report.methods import config_of, cost_of, make_methods
from ichkit.work.artifacts import ArtifactWriter, read_manifest

USED = load_config("default", ("train.backbone=resnet18", "train.image_size=64", "train.epochs=3", "seed=7"))


def write_config(folder):
    """Puts the config and the card of a real run into a simulated fold."""
    old = read_manifest(folder)
    contents = {name: (folder / name).read_bytes() for name in old.files}
    used = {"task": USED.task, "seed": USED.seed, "channels": USED.channels.settings(), "train": USED.train.settings()}
    contents["config.yaml"] = yaml.safe_dump(used).encode()
    contents["model.json"] = json.dumps(vars(ModelCard.of(USED, None, (-800, 2000)))).encode()
    writer = ArtifactWriter(folder, "fold")
    for name, data in contents.items():
        writer.write_bytes(name, data)
    writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


def collect(work):
    return report.collect(report.plan(CONFIG, work, report.ReportOptions(work.root / "submissions")))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    work = make_report_work(tmp_path_factory.mktemp("methods") / "work")
    for k in (0, 1):
        write_config(work.fold("a", k))
        rewrite_fold(work.fold("a", k), {}, seconds=1800.0 * (k + 1), device="cpu", num_steps=40)
    return collect(work)


def texts(section):
    """Title of each subsection to its text."""
    return {
        block.title: " ".join(one.text for one in block.blocks) for block in section.blocks if hasattr(block, "blocks")
    }


def test_a_run_is_told_from_its_own_config_not_from_that_of_the_report(given):
    (run,) = (source for source in given.stages if source.is_run)
    assert config_of(given, run).train == USED.train
    told = texts(make_methods(given))["Run a: network and training"]
    assert "resnet18 as built by timm" in told
    assert "3 epochs with adam" in told
    assert "The random seed is 7" in told
    assert "40 steps" in told
    cost = cost_of(given, run)
    assert f"{cost.num_parameters / 1e6:.2f} million parameters" in told
    assert "Initial weights: pretrained, timm/resnet18" in told
    assert "licence" in told


def test_how_the_model_was_chosen_and_how_headers_were_treated_is_told(given):
    told = texts(make_methods(given))
    assert (
        f"chosen among {len(given.sources)} by its out-of-fold weighted log loss" in told["Second stage and ensembling"]
    )
    assert f"allow-list of {len(WANTED_NAMES)} tags" in told["Preprocessing"]
    assert "de-identif" in told["Preprocessing"].lower()


def test_hours_are_the_seconds_of_the_manifests_by_device_and_energy_is_said_not_to_be_measured(given):
    (table,) = (block for block in make_methods(given).blocks if block.kind == "table")
    rows = [[cell.text for cell in row] for row in table.lines]
    assert rows[0] == ["run a", "2 folds", "cpu", "1.50"]
    assert rows[1][-1] == "-"  # a simulated stack has no seconds
    assert table.note.startswith("Energy was not measured")


def test_before_training_the_methods_are_those_of_the_config(tmp_path):
    given = collect(make_report_work(tmp_path / "work", folds=(), is_stacked=False))
    told = texts(make_methods(given))
    assert set(told) == {"Preprocessing", "Network and training, as configured"}
    assert "resnet50 as built by timm" in told["Network and training, as configured"]


def test_a_network_that_cannot_be_built_is_not_counted(tmp_path):
    given = collect(make_report_work(tmp_path / "work", folds=(0, 1)))
    (run,) = (source for source in given.stages if source.is_run)
    assert cost_of(given, run) is None
    assert "operations were not counted" in texts(make_methods(given))["Run a: network and training"]
