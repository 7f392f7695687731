"""Facts of headers: what is kept is a word of a list, a number or a decade, and nothing that was not asked for."""

import numpy as np
import pytest
from support.dicoms import make_dataset, write_slice

from ichkit.imaging.header_facts import HEADER_FACTS, read_facts, read_kernel, read_number, read_vendor

TAGS = {
    "Manufacturer": "SIEMENS",
    "ConvolutionKernel": ["H31s", "H30f"],
    "KVP": "120",
    "SliceThickness": "4.8",
    "PatientAge": "067Y",
    "PatientSex": "F",
    "PatientName": "PERSON^A",
    "InstitutionName": "PLACE",
}


def test_every_fact_of_a_header_is_read_and_no_other(tmp_path):
    head = write_slice(tmp_path / "a.dcm", **TAGS).read_bytes()
    assert read_facts(head, HEADER_FACTS) == {
        "manufacturer": "siemens",
        "kernel": "H31s",
        "kvp": 120.0,
        "thickness": 4.8,
        "age": "60-69",
        "sex": "female",
    }
    assert read_facts(head, ["kernel"]) == {"kernel": "H31s"}


def test_missing_tags_and_hostile_bytes_are_unknown(tmp_path):
    nothing = dict.fromkeys(HEADER_FACTS)
    assert read_facts(write_slice(tmp_path / "a.dcm").read_bytes(), HEADER_FACTS) == nothing
    rng = np.random.default_rng(0)
    whole = write_slice(tmp_path / "b.dcm", **TAGS).read_bytes()
    for length in (0, 100, 132, 300, 401):
        assert set(read_facts(whole[:length], HEADER_FACTS)) == set(HEADER_FACTS)
    for _ in range(30):
        broken = bytearray(whole)
        for place in rng.integers(132, len(whole), 8):
            broken[place] = rng.integers(256)
        assert set(read_facts(bytes(broken), HEADER_FACTS)) == set(HEADER_FACTS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("GE MEDICAL SYSTEMS", "ge"), ("Philips", "philips"), ("Dr. General Person", "other"), ("  ", None)],
)
def test_a_manufacturer_is_a_word_of_the_list(value, expected):
    assert read_vendor(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("FC26", "FC26"), ("BONEPLUS", "BONEPLUS"), ("", None), ("read by Dr. Person, 12 May", None), ("a^b", None)],
)
def test_a_kernel_is_short_and_plain(value, expected):
    assert read_kernel(value) == expected


@pytest.mark.parametrize("value", ["", "abc", "-1", "nan", "inf", "0", "1e9", None, ["1", "2"]])
def test_what_is_no_positive_number_is_unknown(value):
    assert read_number(value) is None


@pytest.mark.parametrize(
    ("age", "expected"), [("089Y", "80-89"), ("090Y", "90 and over"), ("120Y", "90 and over"), ("009W", "0-9")]
)
def test_ages_are_decades_and_the_oldest_are_one_group(age, expected):
    dataset = make_dataset(np.zeros((8, 8), np.uint16), PatientAge=age)
    assert HEADER_FACTS["age"].read(dataset.PatientAge) == expected
