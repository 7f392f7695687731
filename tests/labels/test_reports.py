"""`labels reports`: a draft of labels that is compared with labels by hand, and repeats no text."""

import pandas as pd
import pytest
from support.commands import call
from support.simulated import TASK

from ichkit.sources.labels import read_folder_labels

TEXTS = {
    "1.1": "No hemorrhage. Dictated by Dr. Secret.",
    "1.2": "Acute subdural hematoma.",
    "1.3": "Acute subdural hematoma, possibly epidural hematoma.",
    "1.4": "Normal.",
}


@pytest.fixture
def reports(tmp_path):
    pd.DataFrame({"study_id": list(TEXTS), "findings": list(TEXTS.values())}).to_csv(tmp_path / "r.csv", index=False)
    return tmp_path


def test_the_draft_is_a_label_file_and_warns_that_it_is_one(reports):
    out = reports / "labels.csv"
    printed = call("labels", "reports", reports / "r.csv", "--text-column", "findings", "--out", out)
    table, key = read_folder_labels(out, TASK)
    assert key == "study_id"
    assert table["subdural"].tolist() == [0, 1, 1, 0]
    assert table["epidural"].isna().tolist() == [False, False, True, False]
    assert "never validated" in printed
    assert "1 of 4 reports name no kind of blood" in " ".join(printed.split())
    assert "Secret" not in printed
    assert "Secret" not in out.read_text()


def test_labels_by_hand_give_sensitivity_specificity_and_what_was_left_open(reports):
    by_hand = pd.DataFrame({"study_id": ["1.1", "1.2", "1.3", "1.4"]})
    for name in TASK.classes:
        by_hand[name] = 0
    by_hand.loc[[1], ["subdural", "any"]] = 1
    by_hand.to_csv(reports / "hand.csv", index=False)
    asked = ("labels", "reports", reports / "r.csv", "--text-column", "findings", "--out", reports / "labels.csv")
    printed = call(*asked, "--check", reports / "hand.csv")
    rows = {line.split()[0]: line.split() for line in printed.split("Rules against")[1].splitlines() if line.split()}
    assert rows["subdural"][1:4] == ["4", "1", "1.000"]
    assert rows["subdural"][5] == "0.667"
    assert rows["epidural"][-1] == "1"
    assert "never validated" not in printed


def test_a_file_without_the_columns_or_with_a_study_twice_is_refused(reports):
    assert "found no report" in call("labels", "reports", reports / "r.csv", "--out", reports / "l.csv", code=2)
    twice = pd.DataFrame({"study_id": ["1.1", "1.1"], "report": ["a", "b"]})
    twice.to_csv(reports / "twice.csv", index=False)
    assert "1 rows have no study_id" in call(
        "labels", "reports", reports / "twice.csv", "--out", reports / "l.csv", code=2
    )
