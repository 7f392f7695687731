"""A submission file against a label file: scikit-learn's numbers, or the first row that is wrong."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from support.simulated import TASK

from ichkit.core.errors import ContractError, DataError
from ichkit.stages.scores import evaluate


def pick(scores: pd.DataFrame, metric: str, class_: str) -> pd.Series:
    rows = scores[(scores.metric == metric) & (scores["class"] == class_)]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture
def files(tmp_path):
    """(submission, truth): 300 slices, probabilities down to 1e-12, in files of different order."""
    rng = np.random.default_rng(0)
    ids = [f"ID_{i:04x}_{name}" for i in range(300) for name in TASK.classes]
    p = np.clip(1 / (1 + np.exp(-25 * rng.standard_normal(len(ids)))), 1e-12, 1 - 1e-12)
    truth = pd.DataFrame({"ID": ids, "Label": (rng.random(len(ids)) < 0.3).astype(int)})
    submission = pd.DataFrame({"ID": ids, "Label": [repr(float(value)) for value in p]})
    truth.to_csv(tmp_path / "truth.csv", index=False)
    submission.sample(frac=1, random_state=0).to_csv(tmp_path / "submission.csv", index=False)
    return tmp_path / "submission.csv", tmp_path / "truth.csv", p.reshape(-1, 6), truth.Label.to_numpy().reshape(-1, 6)


def test_a_submission_scores_as_in_scikit_learn_to_nine_digits(files):
    submission, truth, p, y = files
    scores = evaluate.score_submission(submission, truth, TASK)
    losses = [sklearn.metrics.log_loss(y[:, c], p[:, c]) for c in range(6)]
    assert scores.value[0] == pytest.approx(np.dot(losses, TASK.weights), abs=1e-9)
    for c, name in enumerate(TASK.classes):
        loss, auc = (pick(scores, metric=metric, class_=name) for metric in ("log_loss", "roc_auc"))
        assert loss.value == pytest.approx(losses[c], abs=1e-9)
        assert auc.value == pytest.approx(sklearn.metrics.roc_auc_score(y[:, c], p[:, c]), abs=1e-9)
        assert (loss.n, loss.n_positive) == (300, y[:, c].sum())


def test_rows_that_say_the_same_twice_count_once(files):
    submission, truth, _, _ = files
    once = evaluate.score_submission(submission, truth, TASK)
    for path in (submission, truth):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines, *lines[1:60]]) + "\n")
    pd.testing.assert_frame_equal(evaluate.score_submission(submission, truth, TASK), once)


def change(path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def line_of(path, name: str) -> str:
    return next(line for line in path.read_text().splitlines() if line.startswith(f"{name},"))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("many", '"many", which is not a number'),
        ("", '"", which is not a number'),
        ("nan", "which is not a number"),
        ("0_1", '"0_1", which is not a number'),
        ("1.5", r"expected a Label in \[0, 1\], found 1.5. Give probabilities"),
        ("-0.1", r"expected a Label in \[0, 1\], found -0.1"),
        ("inf", r"expected a Label in \[0, 1\], found inf"),
    ],
)
def test_a_label_that_is_no_probability_is_refused_with_its_row(files, label, words):
    submission, truth, _, _ = files
    number = submission.read_text().splitlines().index(line_of(submission, "ID_0007_subdural")) + 1
    change(submission, line_of(submission, "ID_0007_subdural"), f"ID_0007_subdural,{label}")
    with pytest.raises(ContractError, match=rf"submission.csv: row {number} \(ID_0007_subdural\).*{words}"):
        evaluate.score_submission(submission, truth, TASK)


def test_a_missing_row_and_a_missing_slice_are_refused_by_name(files):
    submission, truth, _, _ = files
    change(submission, line_of(submission, "ID_0007_any") + "\n", "")
    with pytest.raises(ContractError, match=r"6 rows for each of 300 slices, 1 are missing, e.g. ID_0007_any"):
        evaluate.score_submission(submission, truth, TASK)
    for name in TASK.subtypes:
        change(submission, line_of(submission, f"ID_0007_{name}") + "\n", "")
    with pytest.raises(ContractError, match=r"exactly the 300 slices .* found 299: 1 are missing .* e.g. ID_0007"):
        evaluate.score_submission(submission, truth, TASK)


def test_a_slice_that_the_truth_lacks_is_refused(files):
    submission, truth, _, _ = files
    submission.write_text(submission.read_text() + "".join(f"ID_ffff_{name},0.5\n" for name in TASK.classes))
    with pytest.raises(ContractError, match=r"0 are missing and 1 are not in the truth, e.g. ID_ffff"):
        evaluate.score_submission(submission, truth, TASK)


def test_an_id_with_two_labels_is_refused(files):
    submission, truth, _, _ = files
    submission.write_text(submission.read_text() + "ID_0007_any,0.123\n")
    with pytest.raises(ContractError, match=r"ID_0007_any has the labels .* and 0.123; an ID has one"):
        evaluate.score_submission(submission, truth, TASK)


def test_an_unknown_class_is_refused_with_the_nearest(files):
    submission, truth, _, _ = files
    change(submission, "ID_0007_subdural", "ID_0007_subdurall")
    with pytest.raises(ContractError, match=r'found "ID_0007_subdurall". Did you mean "subdural"'):
        evaluate.score_submission(submission, truth, TASK)


def test_probabilities_in_place_of_labels_are_refused(files):
    submission, _, _, _ = files
    with pytest.raises(ContractError, match=r"expected the Label 0 or 1, found .* Give the labels with --truth"):
        evaluate.score_submission(submission, submission, TASK)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, DataError, "found none. Check the path"),
        ("", DataError, "it cannot be read"),
        ("ID,Label\n", ContractError, "expected a row for each slice and class, found none"),
        ("Id,Probability\nx,1\n", ContractError, "expected the columns ID and Label, found Id, Probability"),
        ("ID,Label\nwhat,1\n", ContractError, 'expected an ID such as "<slice>_epidural", found "what"'),
    ],
)
def test_a_file_that_is_no_submission_is_refused(files, tmp_path, content, error, words):
    path = tmp_path / "other.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=words):
        evaluate.score_submission(path, files[1], TASK)
