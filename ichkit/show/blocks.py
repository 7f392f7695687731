"""Building blocks of a report section; `report.html.j2` renders each kind."""

from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from ichkit.show.table import Table


@dataclass(frozen=True)
class Chart:
    """A figure with its caption.

    Attributes:
        svg: from `drawing.to_svg`.
        caption: plain text below the figure.
        wide: the same figure for the whole width of a large screen, where `svg` is hidden; None to show `svg` always.
    """

    svg: Markup
    caption: str
    wide: Markup | None = None


@dataclass(frozen=True)
class Charts:
    """Figures in columns, as many as fit the page.

    Attributes:
        size: "thirds" for three in a row, "small" for two on a phone; by default two in a row, a single one wider.
    """

    kind: ClassVar[str] = "charts"
    charts: list[Chart]
    size: str = ""


@dataclass(frozen=True)
class Prose:
    """A paragraph; text between backticks is code."""

    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True)
class Missing:
    """A missing part, and the command that creates it (may be empty)."""

    kind: ClassVar[str] = "missing"
    what: str
    command: str = ""


@dataclass(frozen=True)
class Listing:
    """Preformatted text, e.g. the content of a file."""

    kind: ClassVar[str] = "listing"
    title: str
    text: str


@dataclass(frozen=True)
class Strip:
    """Slices of one study from the feet to the head, above a chart with the same horizontal axis.

    Attributes:
        picture: data URI of the slices side by side.
        size: width and height of the picture in pixels.
        alt: alternative text of the picture.
    """

    kind: ClassVar[str] = "strip"
    picture: str
    size: tuple[int, int]
    alt: str
    chart: Chart


@dataclass(frozen=True)
class Picture:
    """A picture with a caption.

    Attributes:
        picture: data URI.
        size: width and height in pixels.
        alt: alternative text.
    """

    kind: ClassVar[str] = "picture"
    picture: str
    size: tuple[int, int]
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """One slice in several windows; its picture is a link where there is a viewer.

    Attributes:
        picture: data URI of square tiles.
        size: width and height of the picture in pixels.
        alt: alternative text of the picture.
        name: shortened slice_id.
        figure: the probability, as text.
        facts: further lines.
        link: anchor of the viewer of its study, empty for none.
        slice_index: the slice that the viewer shows.
        full: the whole ID that `name` is the end of, shown on a click; empty for none.
    """

    picture: str
    size: tuple[int, int]
    alt: str
    name: str
    figure: str
    facts: tuple[str, ...]
    link: str = ""
    slice_index: int = 0
    full: str = ""


@dataclass(frozen=True)
class Legend:
    """What the tiles of a picture are, row by row, and whether the last one has the colours of heat."""

    tiles: tuple[str, ...]
    has_heat: bool = False


@dataclass(frozen=True)
class Gallery:
    """Cards of one class and verdict, with a title."""

    kind: ClassVar[str] = "gallery"
    title: str
    cards: list[Card]
    legend: Legend | None = None


@dataclass(frozen=True)
class KeyFigure:
    """One number in large type: its label, its value, and small text below, e.g. its interval."""

    label: str
    value: str
    small: str


@dataclass(frozen=True)
class KeyFigures:
    """The most important numbers, in a row."""

    kind: ClassVar[str] = "figures"
    figures: list[KeyFigure]


@dataclass(frozen=True)
class Curve:
    """The probability of one class along a study.

    Attributes:
        colour: number of its colour, 0 to 5.
        dash: SVG dash pattern, empty for a solid line.
        points: of an SVG polyline, 1 wide per slice and 100 high.
        highest, at: the maximum and its slice.
        threshold: None if unknown.
        truth: (first, number) of each run of positive slices.
        has_truth: labels are known.
    """

    name: str
    colour: int
    dash: str
    points: str
    highest: float
    at: int
    threshold: float | None
    truth: tuple[tuple[int, int], ...]
    has_truth: bool


@dataclass(frozen=True)
class Viewer:
    """A slice viewer of one study, from `viewer.make_viewer`.

    Attributes:
        anchor: its id, unique in the page.
        content: JSON for the script.
        num_slices: width of the chart.
        keys: positions of the key slices in per cent of the width.
        ticks: (slice, position in per cent) of the marks of the chart's axis.
        stills: shown without scripts.
        remark: of the first key slice; the script replaces it by that of the shown slice.
        is_open: False folds it; a link to it opens it.
    """

    kind: ClassVar[str] = "viewer"
    anchor: str
    title: str
    content: str
    curves: list[Curve]
    num_slices: int
    keys: tuple[float, ...]
    ticks: tuple[tuple[int, float], ...]
    stills: list[Card]
    caption: str = ""
    is_open: bool = True
    remark: str = ""


PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """One check: PASS, WARN or FAIL, and the finding."""

    verdict: str
    what: str
    found: str


@dataclass(frozen=True)
class Checks:
    """The list of checks at the top of a page."""

    kind: ClassVar[str] = "checks"
    checks: list[Check]


@dataclass(frozen=True)
class Subsection:
    """Blocks below a heading of their own that can be folded."""

    kind: ClassVar[str] = "subsection"
    title: str
    blocks: list["Block"]
    is_open: bool = True


Block = (
    Table | Charts | Prose | Missing | Listing | Strip | Picture | Gallery | KeyFigures | Viewer | Checks | Subsection
)


@dataclass(frozen=True)
class Section:
    """A section of the page, listed in its table of contents.

    Attributes:
        anchor: id of its heading, unique in the page.
    """

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)
