"""Checklists of reporting guidelines, and which of their items a report answers.

The items are tables in `checklists/`, in words of this project: number, part, topic, evidence, left. `evidence` names
what the page must show, all of it: sections by their anchor, `|` between alternatives, and in square brackets words
that a line of the section must have. `left` is what no page can say; an item that has it is answered in part at best.
"""

import csv
import importlib.resources
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ichkit.core.rows import find_row
from ichkit.show.blocks import Section
from ichkit.show.table import BLANK
from ichkit.show.words import has_content, lines_of

_ROOM = "ichkit.stages.report"
_ONE = re.compile(r"(?P<anchor>[a-z0-9-]+)(?:\[(?P<word>[^\]]+)\])?")


class Status(StrEnum):
    """How far a page answers an item."""

    ANSWERED = "answered by the page"
    IN_PART = "in part"
    AUTHORS = BLANK


@dataclass(frozen=True)
class Checklist:
    """A guideline whose items are in `checklists/<name>.csv`.

    Attributes:
        title: as authors cite it.
        num_items: numbered items; some have parts, such as 3a and 3b, each a row of its own.
    """

    name: str
    description: str
    source: str
    title: str
    num_items: int


CHECKLISTS = {
    "claim": Checklist(
        "claim",
        "Checklist for Artificial Intelligence in Medical Imaging, 42 items.",
        "Mongan, Moy, Kahn, Radiology: Artificial Intelligence 2020, doi 10.1148/ryai.2020200029",
        "CLAIM 2020",
        42,
    ),
    "tripod-ai": Checklist(
        "tripod-ai",
        "Prediction models by regression or machine learning, 27 items, some of them in parts.",
        "Collins et al., BMJ 2024, doi 10.1136/bmj-2023-078378",
        "TRIPOD+AI 2024",
        27,
    ),
    "stard-ai": Checklist(
        "stard-ai",
        "Diagnostic accuracy of artificial intelligence, 40 items, some of them in parts.",
        "Sounderajah et al., Nature Medicine 2025, doi 10.1038/s41591-025-03953-8",
        "STARD-AI 2025",
        40,
    ),
}
"""Guidelines by the name that `report --checklist` takes."""


@dataclass(frozen=True)
class Evidence:
    """What a page must show: any of these sections, each with a word that one of its lines must have, or empty."""

    alternatives: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The first of them, e.g. "design (aim)"."""
        anchor, word = self.alternatives[0]
        return f"{anchor} ({word})" if word else anchor


@dataclass(frozen=True)
class Item:
    """One row of a checklist.

    Attributes:
        number: as in the guideline, e.g. "3a".
        part: heading of the guideline.
        topic: what it asks for, in words of this project.
        evidence: what the page must show for an answer, all of it.
        left: what only the authors can say.
    """

    number: str
    part: str
    topic: str
    evidence: tuple[Evidence, ...]
    left: str


@dataclass(frozen=True)
class Answer:
    """An item with its status.

    Attributes:
        anchors: the sections that answer it.
        absent: what else would: sections that the page lacks, or has without the words in brackets.
    """

    item: Item
    status: Status
    anchors: tuple[str, ...]
    absent: tuple[str, ...]


def find_checklist(name: str) -> Checklist:
    """The guideline of that name.

    Raises:
        ConfigError: no such guideline; the message lists the choices and the nearest spelling.
    """
    return find_row(CHECKLISTS, name, "report --checklist")


def read_items(checklist: Checklist) -> list[Item]:
    """The items of a guideline, in its order.

    Example:
        >>> len(read_items(CHECKLISTS["claim"]))
        42
    """
    return [
        Item(row["number"], row["part"], row["topic"], _read_evidence(row["evidence"]), row["left"])
        for row in csv.DictReader(io.StringIO(read_source(checklist)))
    ]


def read_source(checklist: Checklist) -> str:
    """The table of its items as CSV."""
    return (importlib.resources.files(_ROOM) / "checklists" / f"{checklist.name}.csv").read_text(encoding="utf-8")


def answer_items(items: Sequence[Item], sections: Sequence[Section]) -> list[Answer]:
    """Which items a page of these sections answers."""
    shown = {section.anchor: _Shown.of(section) for section in sections}
    return [_answer(item, shown) for item in items]


@dataclass(frozen=True)
class _Shown:
    """What a section shows: whether it has content, and its lines in lower case without those that are left blank."""

    has_content: bool
    lines: tuple[str, ...]

    @classmethod
    def of(cls, section: Section) -> "_Shown":
        lines = (line.lower() for line in lines_of(section))
        return cls(has_content(section), tuple(line for line in lines if BLANK not in line))

    def answers(self, word: str) -> bool:
        """Whether it has content, or if a word is asked for, a line with a word that begins like it."""
        pattern = re.compile(rf"\b{re.escape(word)}")
        return any(map(pattern.search, self.lines)) if word else self.has_content


def _answer(item: Item, shown: dict[str, _Shown]) -> Answer:
    found = [_find(evidence, shown) for evidence in item.evidence]
    anchors = tuple(dict.fromkeys(anchor for anchor in found if anchor))
    pairs = zip(item.evidence, found, strict=True)
    absent = tuple(dict.fromkeys(evidence.name for evidence, anchor in pairs if not anchor))
    if not anchors:
        return Answer(item, Status.AUTHORS, (), absent)
    is_whole = not absent and not item.left
    return Answer(item, Status.ANSWERED if is_whole else Status.IN_PART, anchors, absent)


def _find(evidence: Evidence, shown: dict[str, _Shown]) -> str:
    """The first of the sections that the page shows; empty if it shows none."""
    found = (anchor for anchor, word in evidence.alternatives if anchor in shown and shown[anchor].answers(word))
    return next(found, "")


def _read_evidence(text: str) -> tuple[Evidence, ...]:
    return tuple(Evidence(tuple(map(_read_one, part.split("|")))) for part in text.split(";") if part.strip())


def _read_one(text: str) -> tuple[str, str]:
    """Anchor and word of one alternative, e.g. "design[aim]"."""
    found = _ONE.fullmatch(text.strip())
    assert found is not None, text
    return found["anchor"], (found["word"] or "").lower()
