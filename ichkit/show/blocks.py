"""What a section of the report is made of; the template knows one way to show each."""

from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from ichkit.show.table import Table


@dataclass(frozen=True)
class Chart:
    """A drawing, with what it shows in words.

    Attributes:
        svg: from `drawing.to_svg`.
        caption: stands below; plain text.
    """

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Charts:
    """Drawings side by side where there is room.

    Attributes:
        size: "thirds" for three in a row, "small" for two on a phone; else two in a row, a single one wider.
    """

    kind: ClassVar[str] = "charts"
    charts: list[Chart]
    size: str = ""


@dataclass(frozen=True)
class Prose:
    """A paragraph; `code` stands between backticks."""

    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True)
class Missing:
    """Something that is not there, and the command that makes it (empty where none does)."""

    kind: ClassVar[str] = "missing"
    what: str
    command: str = ""


@dataclass(frozen=True)
class Listing:
    """Text as it stands in a file."""

    kind: ClassVar[str] = "listing"
    title: str
    text: str


@dataclass(frozen=True)
class Strip:
    """Slices of one study from the feet to the head, and below them a drawing over the same places.

    Attributes:
        picture: data URI of the slices side by side.
        size: width and height of the picture in pixels.
        alt: what the picture shows, in words.
    """

    kind: ClassVar[str] = "strip"
    picture: str
    size: tuple[int, int]
    alt: str
    chart: Chart


@dataclass(frozen=True)
class Card:
    """One slice in its windows.

    Attributes:
        picture: data URI of square tiles.
        size: width and height of the picture in pixels.
        alt: what it shows, in words.
        name: the slice, shortened.
        figure: the probability, as text.
        facts: lines below.
    """

    picture: str
    size: tuple[int, int]
    alt: str
    name: str
    figure: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Slices that were judged alike."""

    kind: ClassVar[str] = "gallery"
    title: str
    cards: list[Card]


@dataclass(frozen=True)
class KeyFigure:
    """One number in large type: what it is, the number, and what it rests on."""

    label: str
    value: str
    small: str


@dataclass(frozen=True)
class KeyFigures:
    """The numbers that a reader looks for first."""

    kind: ClassVar[str] = "figures"
    figures: list[KeyFigure]


Block = Table | Charts | Prose | Missing | Listing | Strip | Gallery | KeyFigures


@dataclass(frozen=True)
class Section:
    """A heading of the table of contents with its blocks.

    Attributes:
        anchor: the id of its heading, unique in the page.
    """

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)
