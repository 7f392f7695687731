"""Names, kernels, agents and body parts as they stand in real headers, each with the decision that is right for it.

The table beside this file was written by hand: the folders of CQ500, words of the RadLex playbook, what the kernels of
GE, Siemens (before and since 2013), Philips, Canon (Toshiba) and United Imaging are for, and negations in several
languages.
"""

import csv
from pathlib import Path

import pytest

from ichkit.imaging.dicom import KIND_SEPARATOR
from ichkit.sources.series_names import (
    NO_HU,
    SEVERITIES,
    names_an_agent,
    says_no_contrast,
    why_dropped_by_header,
    why_dropped_by_name,
)

ROWS = list(csv.DictReader(Path(__file__).with_name("series_names.csv").read_text().splitlines()))
BONE = "bone or high-resolution kernel"
WORDS = {"head": "", "bone": BONE, "part of the head": "not a plain head"}


def name_row(row):
    return " ".join(value for key, value in row.items() if key not in ("source", "decision") and value) or "nothing"


def kind_of(row):
    order = ("image_type", "name", "protocol", "kernel", "maker", "agent", "body_part")
    return KIND_SEPARATOR.join(row.get(name, "").lower() for name in order)


@pytest.mark.parametrize("row", ROWS, ids=name_row)
def test_every_name_kernel_agent_and_body_part_of_the_table_gets_its_decision(row):
    expected = WORDS.get(row["decision"], row["decision"])
    assert why_dropped_by_header(kind_of(row)) == expected
    if row["source"] in ("CQ500", "RadLex", "negation", "languages"):
        assert why_dropped_by_name(row["name"]) == expected


def test_the_table_is_as_long_as_it_claims():
    assert len({tuple(row.values()) for row in ROWS}) == len(ROWS) > 300
    by_name = {"", *SEVERITIES} - {NO_HU}  # values are seen in the pixels, not in a name
    assert {WORDS.get(row["decision"], row["decision"]) for row in ROWS} == by_name


def test_a_protocol_counts_only_where_there_is_no_description():
    assert why_dropped_by_header(kind_of({"protocol": "CTA HEAD", "name": "Head 5.0"})) == ""
    assert why_dropped_by_header(kind_of({"protocol": "CTA HEAD"})) == "contrast"


def test_of_several_reasons_the_one_furthest_from_a_plain_head_is_given():
    assert why_dropped_by_header(kind_of({"name": "POST CONTRAST", "kernel": "BONE"})) == BONE
    assert why_dropped_by_header(kind_of({"name": "CHEST WITH CONTRAST", "kernel": "LUNG"})) == "another body part"


def test_contrast_stands_before_bone_and_both_before_another_body_part():
    order = ["derived", "contrast", BONE, "not a plain head", "another body part", "localizer"]
    severities = [SEVERITIES[reason] for reason in order]
    assert severities == sorted(severities)
    assert len(set(severities)) == len(severities)


def test_a_name_says_that_there_was_no_contrast_only_where_it_does():
    assert says_no_contrast("HEAD W/O")
    assert says_no_contrast("CT-Plain")
    assert not says_no_contrast("HEAD 5.0")
    assert not says_no_contrast("W AND WO CONTRAST")
    assert not names_an_agent("None")
    assert names_an_agent("Omnipaque")
