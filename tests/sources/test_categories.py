"""Label files with one column of categories in place of a column per class."""

import pandas as pd
import pytest

from ichkit.core.errors import ConfigError, DataError
from ichkit.core.tasks import Task, find_task
from ichkit.sources.labels import read_folder_labels

TASK = find_task("ischemia")


def write(path, *rows):
    pd.DataFrame(rows, columns=["study_id", "side", "region", "category"]).to_csv(path, index=False)
    return path


def test_categories_become_labels_of_both_classes_unknown_where_the_task_leaves_them_out(tmp_path):
    rows = [("1", "left", f"M{k}", name) for k, name in enumerate(TASK.categories, 1)]
    table, key = read_folder_labels(write(tmp_path / "a.csv", *rows), TASK, by_part=True)
    assert key == "study_id"
    found = table.set_index("study_id")
    assert list(found.index) == [f"1:left-M{k}" for k in range(1, 7)]
    assert found.early.astype(object).where(found.early.notna(), None).tolist() == [0, None, None, 1, 1, None]
    assert found.old.astype(object).where(found.old.notna(), None).tolist() == [0, 1, None, None, None, None]


def test_spelling_of_a_category_is_free_and_another_category_is_refused_by_row(tmp_path):
    table, _ = read_folder_labels(
        write(tmp_path / "a.csv", ("1", "left", "C", " Frank_Hypodensity ")), TASK, by_part=True
    )
    assert table.early.tolist() == [1]
    rows = ("1", "left", "C", "intact"), ("1", "left", "L", "abscess")
    with pytest.raises(DataError, match="expected a category among intact, old infarction.*row 3") as caught:
        read_folder_labels(write(tmp_path / "b.csv", *rows), TASK, by_part=True)
    assert "abscess" not in str(caught.value)


def test_a_task_whose_categories_leave_out_a_class_is_refused():
    with pytest.raises(ConfigError, match="categories"):
        Task("t", ("a", "b"), (0.5, 0.5), None, "d", "s", categories={"x": {"a": 1}})
    with pytest.raises(ConfigError, match="counted_class"):
        Task("t", ("a", "b"), (0.5, 0.5), None, "d", "s", counted_class="c")
