"""Nothing is computed from a file that is not the one that was written: sizes always, digests where a file is used."""

import shutil

import pytest
from support.commands import do
from support.scored import make_scored
from support.simulated import TASK

from ichkit.core.config import Config, EvaluateConfig
from ichkit.core.errors import ArtifactError
from ichkit.engine.inference import load_predictor
from ichkit.imaging.store import Prepared
from ichkit.stages.predict.model import Model
from ichkit.stages.scores import evaluate, submit
from ichkit.stages.scores.stored import read_tables
from ichkit.stages.stack import run as stack
from ichkit.validation.catalog import find_sources, load_split
from ichkit.work.artifacts import ArtifactWriter
from ichkit.work.folder import CARD_NAME, WEIGHTS_NAME, WorkFolder

CONFIG = Config(evaluate=EvaluateConfig(num_draws=20))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> WorkFolder:
    return make_scored(tmp_path_factory.mktemp("digests") / "work", ("a", "b"), CONFIG)


@pytest.fixture
def work(made, tmp_path) -> WorkFolder:
    shutil.copytree(made.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


def flip_bit(path):
    """Changes one bit and not the size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("command", [evaluate, stack])
def test_a_table_with_one_other_bit_is_neither_scored_nor_stacked(work, command):
    flip_bit(work.fold("a", 0) / "oof.parquet")
    shutil.rmtree(work.scores)
    with pytest.raises(ArtifactError, match=r"a/fold0/oof\.parquet: changed since it was written .* `ichkit verify`"):
        do(command, CONFIG, work)


def test_a_test_table_with_one_other_bit_is_not_submitted(work, tmp_path):
    flip_bit(work.fold("a", 1) / "test.parquet")
    with pytest.raises(ArtifactError, match=r"a/fold1/test\.parquet: changed since it was written"):
        do(submit, CONFIG, work, source="a", submissions=tmp_path / "submissions")
    assert not list(tmp_path.glob("submissions/*.csv"))


@pytest.mark.parametrize("name", ["slices.parquet", "studies.parquet", "folds.csv"])
def test_tables_of_the_store_are_compared_with_their_digests(work, name):
    flip_bit(work.prepared / name)
    with pytest.raises(ArtifactError, match=rf"{name}: changed since it was written"):
        Prepared.open(work.prepared, TASK)


def test_any_file_of_another_size_is_noticed_wherever_its_artifact_is_used(work):
    spoilt = work.fold("b", 0) / "stacks_oof.npy"  # which no command reads
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"b/fold0/stacks_oof\.npy: \d+ bytes, expected \d+"):
        find_sources(work, TASK)
    with pytest.raises(ArtifactError, match=r"b/fold0/stacks_oof\.npy: \d+ bytes, expected \d+"):
        do(stack, CONFIG, work)


def test_scores_with_one_other_bit_are_not_quoted(work):
    flip_bit(work.scores / "scores.parquet")
    with pytest.raises(ArtifactError, match=r"scores\.parquet: changed since it was written"):
        read_tables(work, find_sources(work, TASK))


def test_a_table_that_changed_after_the_look_through_is_not_read(work):
    source = next(source for source in find_sources(work, TASK) if source.name == "a")
    flip_bit(work.fold("a", 0) / "test.parquet")
    with pytest.raises(ArtifactError, match=r"test\.parquet: changed since it was written"):
        load_split(source, "test")


@pytest.mark.parametrize("name", [WEIGHTS_NAME, CARD_NAME])
def test_weights_with_one_other_bit_do_not_predict(tmp_path, name):
    writer = ArtifactWriter(tmp_path / "fold0", "fold")
    for each in (WEIGHTS_NAME, CARD_NAME):
        writer.write_bytes(each, b"some bytes")
    writer.commit(settings={}, inputs={}, facts={})
    flip_bit(tmp_path / "fold0" / name)
    with pytest.raises(ArtifactError, match=rf"{name}: changed since it was written"):
        load_predictor(tmp_path / "fold0")


def test_a_second_stage_with_one_other_bit_does_not_predict(tmp_path):
    writer = ArtifactWriter(tmp_path / "demo", "stack")
    writer.write_json("blend.json", {})
    writer.commit(settings={}, inputs={}, facts={})
    model = Model("demo-blend", {"demo": {}}, tmp_path / "demo", "blend", "phantom")
    assert model.load_networks("cpu") == {"demo": {}}
    flip_bit(tmp_path / "demo" / "blend.json")
    with pytest.raises(ArtifactError, match=r"blend\.json: changed since it was written"):
        model.load_networks("cpu")
