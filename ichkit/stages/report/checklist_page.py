"""`ichkit report --checklist`: a guideline's items with their answers, as a page and as CSV beside the report."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from ichkit.core.progress import logger
from ichkit.show import page
from ichkit.show.blocks import Block, KeyFigure, KeyFigures, Prose, Section
from ichkit.show.table import Cell, Table
from ichkit.stages.report.checklists import Answer, Checklist, Status, answer_items, read_items
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.scores.tables import data_note
from ichkit.work.artifacts import encode_table, write_bytes_atomically

CHECKLIST_TEMPLATE = "checklist.html.j2"
_ROOM = "ichkit.stages.report"
_TONES = {Status.ANSWERED: "good", Status.IN_PART: "warn", Status.AUTHORS: "bad"}
_COLUMNS = ("item", "topic", "status", "where", "left to the authors")
_HOW = (
    "An item is answered if the report has the section with its content. Topics are in words of this project; submit "
    "the guideline's own form, whose wording counts. A complete report is not yet a good study."
)


def write_checklist(
    report: ReportData, checklist: Checklist, sections: Sequence[Section], page_path: Path, inputs: str
) -> None:
    """Writes the page, and the table of the same name as CSV.

    The columns of the table: number, part, topic, status, where (addresses of the sections), left.

    Args:
        sections: those of the report, `work/report.html`.
        inputs: digest of the inputs, stored in the head of the page.
    """
    answers = answer_items(read_items(checklist), sections)
    address = report.work.report.name
    table = make_table(answers, address)
    write_bytes_atomically(page_path.with_suffix(".csv"), encode_table(table, ".csv"))
    titles = {section.anchor: section.title for section in sections}
    shown = [_make_summary(checklist, answers), _make_items(answers, address, titles)]
    values = {"task": report.task, "data": report.data, "notice": data_note(report.data), "inputs": inputs}
    made = f"{checklist.title}: {checklist.description}"
    text = page.render(_ROOM, CHECKLIST_TEMPLATE, title=checklist.title, sections=shown, made=made, **values)
    write_bytes_atomically(page_path, text.encode())
    counts = ", ".join(f"{_count(answers, status)} {status}" for status in Status)
    logger.info("report: %s: %s; %s", checklist.title, counts, page_path)


def make_table(answers: Sequence[Answer], address: str) -> pd.DataFrame:
    """The items, one per row, in the order of the guideline.

    Args:
        address: file name of the report.
    """
    return pd.DataFrame(
        {
            "number": [answer.item.number for answer in answers],
            "part": [answer.item.part for answer in answers],
            "topic": [answer.item.topic for answer in answers],
            "status": [str(answer.status) for answer in answers],
            "where": [" ".join(f"{address}#{anchor}" for anchor in answer.anchors) for answer in answers],
            "left": [_left(answer) for answer in answers],
        }
    )


def _make_summary(checklist: Checklist, answers: Sequence[Answer]) -> Section:
    figures = [KeyFigure(status, str(_count(answers, status)), f"of {len(answers)}") for status in Status]
    source = f"{checklist.title}, {checklist.num_items} items"
    parts = "" if len(answers) == checklist.num_items else f", {len(answers)} with their parts"
    blocks: list[Block] = [KeyFigures(figures), Prose(f"{source}{parts}: {checklist.source}."), Prose(_HOW)]
    return Section("summary", "Summary", blocks)


def _make_items(answers: Sequence[Answer], address: str, titles: dict[str, str]) -> Section:
    tables: list[Block] = []
    for part, of_part in groupby(answers, lambda answer: answer.item.part):
        rows = [_row(answer, address, titles) for answer in of_part]
        tables.append(Table(part, _COLUMNS, rows, num_text=len(_COLUMNS)))
    return Section("items", "Items", tables)


def _row(answer: Answer, address: str, titles: dict[str, str]) -> list[Cell | str]:
    links = tuple((titles[anchor], f"{address}#{anchor}") for anchor in answer.anchors)
    where = Cell(", ".join(text for text, _ in links), links=links)
    return [
        answer.item.number,
        answer.item.topic,
        Cell(answer.status, tone=_TONES[answer.status]),
        where,
        _left(answer),
    ]


def _left(answer: Answer) -> str:
    """What the authors still have to say, and which sections the report lacks; empty for an answered item."""
    absent = [f"not in this report: {', '.join(answer.absent)}"] if answer.absent else []
    return "; ".join([*([answer.item.left] if answer.item.left else []), *absent])


def _count(answers: Sequence[Answer], status: Status) -> int:
    return sum(answer.status is status for answer in answers)
