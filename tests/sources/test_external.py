"""External sets of a user: their names, and whose label file is which."""

from pathlib import Path

import pytest

from ichkit.core.errors import ConfigError
from ichkit.core.roles import Role, order_external
from ichkit.sources.external import ExternalSet, find_external_source, pair_labels
from ichkit.sources.table import SOURCES, external_sources

A, B, CSV, OTHER = Path("a"), Path("b"), Path("l.csv"), Path("m.csv")


@pytest.mark.parametrize(
    ("external", "labels", "has_folder", "expected"),
    [
        ([], [], False, ((), None)),
        ([], ["l.csv"], True, ((), CSV)),
        ([], ["l.csv"], False, ((), CSV)),
        (["s=a"], ["l.csv"], False, ((ExternalSet("s", A, CSV),), None)),
        (["s=a"], ["s=l.csv", "folder=m.csv"], True, ((ExternalSet("s", A, CSV),), OTHER)),
        (["s=a"], ["m.csv", "s=l.csv"], True, ((ExternalSet("s", A, CSV),), OTHER)),
        (["s=a", "t=b"], ["l.csv", "m.csv"], False, ((ExternalSet("s", A, CSV), ExternalSet("t", B, OTHER)), None)),
        (["s=a", "t=b"], ["t=l.csv"], False, ((ExternalSet("s", A, None), ExternalSet("t", B, CSV)), None)),
        (["s=a"], ["u=l.csv"], False, ((ExternalSet("s", A, Path("u=l.csv")),), None)),
    ],
)
def test_label_files_go_to_the_set_that_is_named_or_to_the_only_ones_that_lack_one(
    external, labels, has_folder, expected
):
    assert pair_labels(external, labels, has_folder=has_folder) == expected


def test_the_scans_of_cq500_by_another_rule_need_no_labels_and_are_not_looked_for():
    given = pair_labels(["cq500-thin=a", "s=b"], ["l.csv"], has_folder=False)
    assert given == ((ExternalSet("cq500-thin", A), ExternalSet("s", B, CSV)), None)
    row = find_external_source("cq500-thin")
    assert (row.name, row.role, row.folders) == ("cq500-thin", Role.EXTERNAL, ())
    assert "cq500-thin" not in external_sources()


@pytest.mark.parametrize(
    ("external", "labels", "has_folder", "message"),
    [
        (["site"], [], False, 'expected NAME=PATH, e.g. site=scans/, found "site"'),
        (["s=a", "s=b"], [], False, '"s" is given twice'),
        (["s=a"], ["s=l.csv", "s=m.csv"], False, '"s" has two label files'),
        (["s=a"], ["l.csv"], True, "found 1 label files without a name for s, folder. Name the set of each"),
        (["s=a", "t=b"], ["l.csv"], False, "found 1 label files without a name for s, t"),
        (["s=a"], ["s=l.csv", "m.csv"], False, "found 1 label files without a name for no set"),
    ],
)
def test_label_files_whose_set_is_not_clear_are_refused(external, labels, has_folder, message):
    with pytest.raises(ConfigError) as caught:
        pair_labels(external, labels, has_folder=has_folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../up", "expected a name of at most 64 letters"),
        ("a.b", "expected a name of at most 64 letters"),
        ("", "expected a name of at most 64 letters"),
        ("cq500", 'the name "cq500" is reserved'),
        ("oof", 'the name "oof" is reserved'),
        ("train", 'the name "train" is reserved'),
    ],
)
def test_a_name_that_cannot_name_tables_is_refused(name, message):
    with pytest.raises(ConfigError) as caught:
        find_external_source(name)
    assert message in str(caught.value)


def test_a_row_of_the_table_is_the_source_of_its_name_unless_it_brings_training_data(monkeypatch):
    own = find_external_source("site")
    assert (own.name, own.role, own.keeps_index) == ("site", Role.EXTERNAL, False)
    monkeypatch.setitem(SOURCES, "site", own)
    assert find_external_source("site") is own
    assert external_sources() == ["cq500", "site"]
    monkeypatch.setitem(SOURCES, "sorted", SOURCES["folder"])
    with pytest.raises(ConfigError, match='"sorted" is a source of training data'):
        find_external_source("sorted")


def test_external_sets_are_ordered_by_name_behind_the_standard_one():
    assert order_external({"site", "abc"}) == ("cq500", "abc", "site")
    assert order_external([]) == ("cq500",)
