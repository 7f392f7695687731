"""`report --label-errors`: the table and the page show the labels that were turned round."""

import pytest
from support.commands import call, do
from support.reports import CONFIG, Page, explain_without_network, make_report_work, write_volumes
from support.simulated import TASK, rewrite_slices

from ichkit.core.errors import ArtifactError
from ichkit.stages.report import gallery
from ichkit.stages.report import run as report
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import KEY

COLUMNS = ["rank", "slice_id", "study_id", "class", "label", "probability"]


@pytest.fixture(scope="module", autouse=True)
def _no_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "explain_slices", explain_without_network)
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A work folder of sure descriptors in which one label of every study is wrong; (slice_id, class) of those."""
    folder = tmp_path_factory.mktemp("label errors") / "work"
    work = make_report_work(folder, is_stacked=False, noise=0.5, contrast=8.0)
    slices = read_table(work.prepared / "slices.parquet")
    train = slices[slices.split == "train"].sort_values(KEY)
    wrong = set()
    for number, (_, study) in enumerate(train.groupby("study_id", sort=True)):
        row, name = study.index[len(study) // 2], TASK.classes[number % 6]
        slices.loc[row, name] = 1 - slices.loc[row, name]
        wrong.add((slices.slice_id[row], name))
    rewrite_slices(work, slices)
    write_volumes(work)
    return work, wrong


@pytest.fixture(scope="module")
def made(planted):
    work, _ = planted
    do(report, CONFIG, work, submissions=work.root / "submissions", label_errors=True)
    return read_table(work.root / "label_errors.csv"), Page((work.root / "label_errors.html").read_text())


def test_the_table_lists_the_wrong_labels_first_with_what_was_predicted(planted, made):
    (work, wrong), (table, _) = planted, made
    assert list(table.columns) == COLUMNS
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    first = set(zip(table.slice_id[: len(wrong)], table["class"][: len(wrong)], strict=True))
    assert len(first & wrong) > 0.8 * len(wrong)
    slices = read_table(work.prepared / "slices.parquet").set_index("slice_id")
    oof = {row.slice_id: row for k in (0, 1) for row in read_table(work.fold("a", k) / "oof.parquet").itertuples()}
    for row in table.itertuples():
        assert slices.loc[row.slice_id, row[4]] == row.label
        assert slices.study_id[row.slice_id] == row.study_id
        assert row.probability == pytest.approx(getattr(oof[row.slice_id], f"p_{row[4]}"), abs=1e-6)
        assert (row.probability > 0.5) == (row.label == 0)


def test_the_page_counts_by_class_and_shows_one_picture_per_study_class_and_label(made):
    table, page = made
    lines = page.tables["Suspected labels by class"]
    by_class = {line[0].strip(): line for line in lines}
    for name in TASK.classes:
        own = table[table["class"] == name]
        assert [by_class[name][1], by_class[name][3]] == [str((own.label == label).sum()) for label in (1, 0)]
    shown = table.drop_duplicates(["study_id", "class", "label"])
    cards = [picture for picture in page.pictures if picture["alt"].startswith("Slice ")]
    assert len(cards) == min(len(shown), 48)
    assert len([link for link in page.links if link.startswith("#study-")]) >= 2 * len(cards)  # table and picture
    assert all(picture["src"].startswith("data:image/") for picture in page.pictures)


def test_without_the_option_neither_is_written(tmp_path):
    work = make_report_work(tmp_path / "work", is_stacked=False)
    do(report, CONFIG, work, submissions=tmp_path)
    assert not list(work.root.glob("label_errors*"))
    words = call("report", "--work", work.root, "--submissions", tmp_path, "--label-errors", "--dry-run")
    assert "label_errors.csv" in words
    assert not list(work.root.glob("label_errors*"))


def test_before_training_there_is_nothing_to_compare_labels_with(tmp_path):
    work = make_report_work(tmp_path / "work", folds=(), is_stacked=False)
    with pytest.raises(ArtifactError, match="Run `ichkit train` first"):
        do(report, CONFIG, WorkFolder(work.root), submissions=tmp_path, label_errors=True)
