"""Facts of DICOM headers that `prepare` keeps on request alone, in a form that identifies nobody."""

import io
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pydicom

FACT_BYTES = 1024**2
"""Bytes at the beginning of a file that are read for its facts; pixels follow after them."""
_VENDORS = ("siemens", "ge", "philips", "toshiba", "canon", "hitachi", "neusoft", "united imaging", "samsung")
_KERNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _+./-]{0,15}")
_SEXES = {"M": "male", "F": "female", "O": "other"}
_OLDEST = 90
"""Ages above 89 are one group, because few people are so old (HIPAA, 45 CFR 164.514(b)(2)(i)(C))."""


@dataclass(frozen=True)
class HeaderFact:
    """A row of `HEADER_FACTS`.

    Attributes:
        name: its column.
        keyword: of the DICOM tag.
        read: value of the tag to what is kept; None if it is unknown or not as expected.
        is_number: a number, not a word.
        description: one sentence.
        source: of the tag.
    """

    name: str
    keyword: str
    read: Callable[[Any], str | float | None]
    is_number: bool
    description: str
    source: str


def read_vendor(value: Any) -> str | None:
    """The manufacturer in one spelling; "other" for one that is not in the list, because the tag is free text.

    Example:
        >>> read_vendor("GE MEDICAL SYSTEMS"), read_vendor("Dr. A. Person")
        ('ge', 'other')
    """
    words = str(value).lower().replace("_", " ").strip()
    if not words:
        return None
    return next((name for name in _VENDORS if re.search(rf"\b{name}\b", words)), "other")


def read_kernel(value: Any) -> str | None:
    """The convolution kernel, or the first of several; None for text that no kernel has."""
    first = value if isinstance(value, str) else next(iter(value), "") if isinstance(value, Iterable) else value
    found = _KERNEL.fullmatch(str(first).strip())
    return found[0] if found else None


def read_number(value: Any) -> float | None:
    """A positive number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < 1e4 else None


def read_age(value: Any) -> str | None:
    """The age in decades.

    Example:
        >>> read_age("067Y"), read_age("011M"), read_age("103Y"), read_age("?")
        ('60-69', '0-9', '90 and over', None)
    """
    found = re.fullmatch(r"(\d{3})([DWMY])", str(value).strip())
    if not found:
        return None
    decade = int(found[1]) // 10 * 10 if found[2] == "Y" else 0
    return f"{_OLDEST} and over" if decade >= _OLDEST else f"{decade}-{decade + 9}"


def read_sex(value: Any) -> str | None:
    """The sex in the header: male, female or other."""
    return _SEXES.get(str(value).strip().upper())


HEADER_FACTS = {
    "manufacturer": HeaderFact(
        "manufacturer", "Manufacturer", read_vendor, False, "Maker of the scanner, in one spelling.", "PS3.3 C.7.5.1"
    ),
    "kernel": HeaderFact(
        "kernel",
        "ConvolutionKernel",
        read_kernel,
        False,
        "Reconstruction kernel, by its maker's name.",
        "PS3.3 C.8.2.1",
    ),
    "kvp": HeaderFact("kvp", "KVP", read_number, True, "Peak tube voltage in kV.", "PS3.3 C.8.2.1"),
    "thickness": HeaderFact(
        "thickness", "SliceThickness", read_number, True, "Nominal slice thickness in mm.", "PS3.3 C.7.6.2.1"
    ),
    "age": HeaderFact("age", "PatientAge", read_age, False, "Age of the patient in decades.", "PS3.3 C.7.2.2"),
    "sex": HeaderFact("sex", "PatientSex", read_sex, False, "Sex of the patient.", "PS3.3 C.7.1.1"),
}
"""What may be kept of a header beside the allow-list of `imaging.tags`; nothing of it unless it is named."""


def read_facts(head: bytes, names: Iterable[str]) -> dict[str, str | float | None]:
    """The facts in the first bytes of a file; None where a tag is missing or the header cannot be read."""
    rows = [HEADER_FACTS[name] for name in names]
    keywords = [row.keyword for row in rows]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(head), stop_before_pixels=True, specific_tags=keywords, force=True)
            values = {keyword: dataset.get(keyword) for keyword in keywords}
    except Exception:  # a hostile header makes pydicom raise anything; its study then has no facts
        values = dict.fromkeys(keywords)
    return {row.name: None if values[row.keyword] is None else row.read(values[row.keyword]) for row in rows}
