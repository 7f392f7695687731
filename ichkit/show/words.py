"""The text of a report section, line by line, and whether it has content."""

from collections.abc import Iterator

from ichkit.show.blocks import Block, Charts, Checks, Gallery, KeyFigures, Listing, Prose, Section, Subsection, Viewer
from ichkit.show.table import Table, cell_text


def has_content(section: Section) -> bool:
    """Whether a section has content other than paragraphs and notes about missing parts.

    Example:
        >>> has_content(Section("flow", "Flow", [Prose("Nothing is prepared yet.")]))
        False
    """
    return any(_is_content(block) for block in section.blocks)


def start_sentence(text: str) -> str:
    """The text with a capital at its start.

    Example:
        >>> start_sentence("AUC and loss of every fold"), start_sentence("loss"), start_sentence("")
        ('AUC and loss of every fold', 'Loss', '')
    """
    return text[:1].upper() + text[1:]


def lines_of(section: Section) -> list[str]:
    """The text of a section's blocks: a line for each paragraph, caption, title, note and row of a table.

    What is missing has no line, and a cell stands with the heading of its column.
    """
    return [line for block in section.blocks for line in _lines(block) if line]


def tables_of(section: Section) -> list[Table]:
    """The tables of a section and its subsections, in the order of the page."""
    return [table for block in section.blocks for table in _tables(block)]


def _is_content(block: Block) -> bool:
    if isinstance(block, Table):
        return bool(block.rows)
    if isinstance(block, Charts):
        return bool(block.charts)
    if isinstance(block, Gallery):
        return bool(block.cards)
    if isinstance(block, Subsection):
        return any(map(_is_content, block.blocks))
    return block.kind not in ("prose", "missing")


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Prose):
        yield block.text
    elif isinstance(block, Table):
        yield from (block.title, block.note, *map(str, block.columns))
        yield from (": ".join(filter(None, map(cell_text, row))) for row in block.lines)
    elif isinstance(block, Charts):
        yield from (chart.caption for chart in block.charts)
    elif isinstance(block, Listing):
        yield from (block.title, *block.text.splitlines())
    elif isinstance(block, Gallery | Viewer):
        yield block.title
    elif isinstance(block, KeyFigures):
        yield from (f"{one.label}: {one.value}: {one.small}" for one in block.figures)
    elif isinstance(block, Checks):
        yield from (f"{one.what}: {one.found}" for one in block.checks)
    elif isinstance(block, Subsection):
        yield block.title
        for inner in block.blocks:
            yield from _lines(inner)


def _tables(block: Block) -> Iterator[Table]:
    if isinstance(block, Table):
        yield block
    elif isinstance(block, Subsection):
        for inner in block.blocks:
            yield from _tables(inner)
