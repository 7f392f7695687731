"""`submit`: the CSV against the source's tables, what is filled in, what is refused, and the note beside it."""

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from support.coherent import count_incoherent
from support.commands import do
from support.scored import headlines
from support.simulated import TASK, make_stack, make_work, rewrite_prepared, rewrite_tables

from ichkit.core.config import Config, EvaluateConfig
from ichkit.core.errors import ArtifactError, ConfigError, ContractError, DataError
from ichkit.stages.scores import evaluate, leaderboard, submit
from ichkit.validation.catalog import find_sources, load_split, pick_source
from ichkit.validation.coherence import make_coherent
from ichkit.validation.notes import read_note, record_scores, write_note
from ichkit.work.artifacts import digest_file, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import REJECTED

CONFIG = Config(evaluate=EvaluateConfig(num_draws=40))


def choose_source(work):
    """The source that `submit` takes, once everything is scored."""
    scoring = evaluate.plan_scores(CONFIG, work)
    evaluate.make_current(scoring)
    return submit.choose_source(scoring)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> WorkFolder:
    root = tmp_path_factory.mktemp("submit") / "work"
    knobs = {"num_patients": 20, "num_folds": 3, "cq500_studies": 4}
    work = make_work(root, runs=("a",), folds=(0, 1, 2), **knobs)
    make_stack(work, runs=("a",), kinds=("fusion",))
    make_work(root, runs=("part",), folds=(1,), noise=0.1, **knobs)
    do(evaluate, CONFIG, work)
    return work


@pytest.fixture
def work(made, tmp_path) -> WorkFolder:
    shutil.copytree(made.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


def reject(work: WorkFolder, slice_id: str, **known) -> pd.DataFrame:
    """Takes one test slice out of the prepared data and of every table, as if its file had been unreadable."""
    slices = read_table(work.prepared / "slices.parquet")
    row = slices[slices.slice_id == slice_id].iloc[0]
    facts = {"dataset": "rsna", "split": "test", "slice_id": slice_id, "file": "x.dcm", "reason": "truncated", **known}
    rejected = pd.concat([read_table(work.prepared / "rejected.csv"), pd.DataFrame([facts], columns=REJECTED)])
    rewrite_prepared(work, {"slices.parquet": slices[slices.slice_id != slice_id], "rejected.csv": rejected})
    for path in [*work.root.glob("runs/*/fold*/test.parquet"), *work.root.glob("stacks/*/*_test.parquet")]:
        table = read_table(path)
        rewrite_tables(path.parent, {path.name: table[table.slice_id != slice_id]})
    return row


def labels_of(path) -> pd.DataFrame:
    """(slices, classes) of a submission."""
    rows = pd.read_csv(path)
    rows[["slice_id", "class"]] = rows.ID.str.rsplit("_", n=1, expand=True).to_numpy()
    return rows.pivot_table(index="slice_id", columns="class", values="Label")[list(TASK.classes)]


def test_the_file_holds_the_samples_ids_in_their_order_and_the_coherent_mean_of_the_folds(work, tmp_path):
    sample = pd.read_csv(work.prepared / "sample_ids.csv").sample(frac=1, random_state=0)
    rewrite_prepared(work, {"sample_ids.csv": sample})
    made = do(submit, CONFIG, work, submissions=tmp_path / "out", source="a")
    rows = pd.read_csv(made.csv_path)
    assert list(rows.columns) == ["ID", "Label"]
    assert rows.ID.tolist() == sample.ID.tolist()
    table = load_split(pick_source(find_sources(work, TASK), "a"), "test").set_index("slice_id")
    raw = table[TASK.probability_columns].to_numpy(np.float64)
    coherent = make_coherent(raw, TASK)
    assert count_incoherent(raw, TASK) > 0
    found = labels_of(made.csv_path).loc[table.index].to_numpy(np.float32)
    np.testing.assert_array_equal(found, coherent.astype(np.float32))
    assert count_incoherent(found, TASK) == 0


def test_the_note_says_what_the_file_was_made_from(work, tmp_path):
    made = do(submit, CONFIG, work, submissions=tmp_path / "out", source="a-fusion")
    note = json.loads(made.note_path.read_text())
    assert note["sha256"] == digest_file(made.csv_path)
    assert note["tables"] == {"stacks/a/fusion_test.parquet": digest_file(work.stacks / "a" / "fusion_test.parquet")}
    assert (note["csv"], note["source"], note["kind"]) == ("a-fusion.csv", "stacks/a/fusion_oof.parquet", "fusion")
    assert (note["data"], note["folds"], note["imputed"]) == ("phantom", [0, 1, 2], [])
    assert note["public_score"] is note["private_score"] is None


def test_the_same_inputs_change_no_byte_at_any_later_time(work, tmp_path, monkeypatch):
    out = tmp_path / "out"
    do(submit, CONFIG, work, submissions=out, source="a")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert before.keys() == {"a.csv", "a.json", "leaderboard.csv"}
    monkeypatch.setattr("ichkit.validation.notes._now", lambda: "2099-01-01T00:00:00Z")
    do(submit, CONFIG, work, submissions=out, source="a")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_best_complete_source_is_taken_even_when_a_partial_one_has_a_lower_loss(work):
    scores = headlines(read_table(work.scores / "scores.parquet"))
    pooled = scores[(scores.metric == "weighted_log_loss") & (scores.fold == -1)].set_index("source").value
    assert pooled["part"] < min(pooled["a"], pooled["a-fusion"])
    best = choose_source(work)
    assert best.name == pooled[["a", "a-fusion"]].idxmin()


def test_without_a_complete_source_the_best_there_is_is_taken_and_said_plainly(work, caplog):
    shutil.rmtree(work.stacks)
    shutil.rmtree(work.fold("a", 2))
    with caplog.at_level(logging.WARNING, logger="ichkit"):
        chosen = choose_source(work)
    assert chosen.name == "a"  # two folds; "part" has one and a lower loss
    assert "no source has all 3 folds; taking the best incomplete one: a, folds 0+1" in caplog.text


def test_missing_scores_are_computed(work, tmp_path):
    shutil.rmtree(work.scores)
    assert do(submit, CONFIG, work, submissions=tmp_path / "out").csv_path.exists()
    assert (work.scores / "manifest.json").exists()


def test_an_unknown_source_is_refused_with_the_choices(work, tmp_path):
    with pytest.raises(ConfigError, match=r'"a-fusoin" is not a finished run or stack. Did you mean "a-fusion"'):
        do(submit, CONFIG, work, submissions=tmp_path / "out", source="a-fusoin")
    assert not (tmp_path / "out").exists()


def test_a_rejected_slice_gets_the_mean_of_its_neighbours_and_is_named(work, tmp_path, caplog):
    slices = read_table(work.prepared / "slices.parquet")
    study = slices[slices.split == "test"].groupby("study_id").get_group(slices[slices.split == "test"].study_id.min())
    middle, first = study.iloc[4], study.iloc[0]
    for row in (middle, first):
        reject(work, row.slice_id, study_id=row.study_id, series_id=row.series_id, position_mm=row.position_mm)
    # The same slice may stand in a second file, whose header could not be read.
    rejected = read_table(work.prepared / "rejected.csv")
    unplaced = rejected.assign(study_id=None, series_id=None, position_mm=None, file="y.dcm")
    rewrite_prepared(work, {"rejected.csv": pd.concat([unplaced.astype("object"), rejected.astype("object")])})
    with caplog.at_level(logging.WARNING, logger="ichkit"):
        made = do(submit, CONFIG, work, submissions=tmp_path / "out", source="a")
    labels = labels_of(made.csv_path).to_dict("index")
    neighbours = [labels[study.slice_id.iloc[i]] for i in (3, 5)]
    for name in TASK.classes:
        mean = (neighbours[0][name] + neighbours[1][name]) / 2
        assert labels[middle.slice_id][name] == pytest.approx(mean, rel=1e-6)
        assert labels[first.slice_id][name] == pytest.approx(labels[study.slice_id.iloc[1]][name], rel=1e-6)
    told = {row["slice_id"]: row for row in json.loads(made.note_path.read_text())["imputed"]}
    assert told.keys() == {middle.slice_id, first.slice_id}
    assert told[middle.slice_id]["neighbours"] == [study.slice_id.iloc[3], study.slice_id.iloc[5]]
    assert told[middle.slice_id]["method"] == "neighbours"
    assert "filled in: 2" in caplog.text
    assert middle.slice_id not in caplog.text


@pytest.mark.parametrize("known", ["nothing", "a study without a position", "a study that is not there"])
def test_a_rejected_slice_without_a_place_gets_the_training_prevalence(work, tmp_path, known):
    slices = read_table(work.prepared / "slices.parquet")
    row = slices[slices.split == "test"].iloc[3]
    facts = {
        "nothing": {},
        "a study without a position": {"study_id": row.study_id, "series_id": row.series_id},
        "a study that is not there": {"study_id": "ID_gone", "series_id": "ID_gone-1", "position_mm": 3.0},
    }
    reject(work, row.slice_id, **facts[known])
    made = do(submit, CONFIG, work, submissions=tmp_path / "out", source="a")
    train = slices[slices.split == "train"]
    for name in TASK.classes:
        assert labels_of(made.csv_path).loc[row.slice_id, name] == pytest.approx(train[name].mean(), rel=1e-6)
    assert made.imputed[0].method == "prevalence"
    assert made.imputed[0].neighbours == ()


def test_a_gap_that_no_rejected_file_explains_is_refused_and_writes_nothing(work, tmp_path):
    sample = pd.read_csv(work.prepared / "sample_ids.csv")
    extra = pd.DataFrame({"ID": [f"ID_lost_{name}" for name in TASK.classes]})
    rewrite_prepared(work, {"sample_ids.csv": pd.concat([sample, extra])})
    with pytest.raises(ContractError, match=r"1 are missing although their files were not rejected, e.g. ID_lost"):
        do(submit, CONFIG, work, submissions=tmp_path / "out", source="a")
    assert not (tmp_path / "out").exists()


def test_data_without_a_test_split_are_refused(work, tmp_path):
    rewrite_prepared(work, {"sample_ids.csv": pd.DataFrame({"ID": []})})
    with pytest.raises(DataError, match=r"these data have no test split"):
        do(submit, CONFIG, work, submissions=tmp_path / "out")


def test_an_earlier_score_is_kept_with_the_digest_of_its_file_and_comes_back_with_it(tmp_path):
    def write(content: str) -> dict:
        (tmp_path / "x.csv").write_text(content)
        facts = {"csv": "x.csv", "sha256": digest_file(tmp_path / "x.csv"), "tables": {"t": content}}
        return write_note(tmp_path, "x", facts)

    first = write("one")
    record_scores(tmp_path, "x", 0.1, 0.2)
    second = write("two")
    assert (second["public_score"], second["private_score"]) == (None, None)
    assert [(row["sha256"], row["public_score"]) for row in second["earlier_scores"]] == [(first["sha256"], 0.1)]
    record_scores(tmp_path, "x", 0.3, None)
    back = write("one")
    assert (back["public_score"], back["private_score"]) == (0.1, 0.2)
    assert [(row["sha256"], row["public_score"]) for row in back["earlier_scores"]] == [(second["sha256"], 0.3)]
    assert write("one") == back == read_note(tmp_path, "x")


def test_a_score_can_only_be_recorded_for_the_file_that_was_submitted(work, tmp_path):
    out = tmp_path / "out"
    made = do(submit, CONFIG, work, submissions=out, source="a")
    with pytest.raises(ConfigError, match=r'holds no submission "b". .*Choices: a'):
        record_scores(out, "b", 0.1, None)
    with pytest.raises(ConfigError, match=r"--public, --private or both, .* found neither"):
        record_scores(out, "a", None, None)
    with pytest.raises(ConfigError, match=r"each a loss of 0 or more"):
        record_scores(out, "a", -0.1, None)
    made.csv_path.write_text(made.csv_path.read_text() + "\n")
    with pytest.raises(ArtifactError, match=r"it has changed or is missing, so the score cannot be assigned to it"):
        record_scores(out, "a", 0.1, None)


@pytest.mark.parametrize("name", ["a.csv", "leaderboard.csv"])
def test_files_of_other_origin_are_not_written_over(work, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("ID,Label\nmine,0.5\n")
    with pytest.raises(ConfigError, match=rf"{name}: expected no file or .* left unchanged\. Move it away"):
        do(submit, CONFIG, work, submissions=out, source="a")
    assert (out / name).read_text() == "ID,Label\nmine,0.5\n"
    assert [path.name for path in out.iterdir()] == [name]


def test_what_submit_wrote_is_written_again_with_its_note_or_without_it_after_a_kill(work, tmp_path):
    made = do(submit, CONFIG, work, submissions=tmp_path / "out", source="a")
    written = made.csv_path.read_bytes()
    made.note_path.unlink()  # killed before the note
    do(submit, CONFIG, work, submissions=tmp_path / "out", source="a")
    made.csv_path.write_text("edited by hand")
    do(submit, CONFIG, work, submissions=tmp_path / "out", source="a")
    assert made.csv_path.read_bytes() == written


def test_a_leaderboard_of_other_origin_is_not_written_over(work, tmp_path):
    (tmp_path / "leaderboard.csv").write_text("team,score\n")
    with pytest.raises(ConfigError, match=r"leaderboard\.csv: expected no file or the leaderboard of ichkit"):
        do(leaderboard, CONFIG, work, submissions=tmp_path)
    assert (tmp_path / "leaderboard.csv").read_text() == "team,score\n"


def test_a_file_that_is_no_note_is_not_written_over(work, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for content, words in (("[1]", "found no JSON object"), ('{"mine": 1}', "it lacks .*'csv'")):
        (out / "a.json").write_text(content)
        with pytest.raises(ArtifactError, match=words):
            do(submit, CONFIG, work, submissions=out, source="a")
        assert (out / "a.json").read_text() == content
