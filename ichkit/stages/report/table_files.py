"""`ichkit report --tables`: every table of the page as CSV and LaTeX, and with `--word` in one Word document."""

import re
from collections.abc import Sequence
from pathlib import Path

from ichkit.core.progress import format_count, logger
from ichkit.show.blocks import Section
from ichkit.show.latex import to_document, to_latex
from ichkit.show.spreadsheet import to_csv
from ichkit.show.table import Table
from ichkit.show.word import to_word
from ichkit.show.words import tables_of
from ichkit.work.artifacts import ArtifactWriter, has_artifact, read_manifest

ALL_NAME, WORD_NAME = "all.tex", "tables.docx"
_KIND = "tables"
_SLUG_CHARACTERS = 50


def write_tables(sections: Sequence[Section], folder: Path, inputs: str, *, has_word: bool) -> None:
    """Writes the tables of these sections, numbered in the order of the page, as an artifact.

    ::

        FOLDER/manifest.json               digests of the files below
            01-board-leaderboard.csv .tex  number, section and title
            all.tex                        a document that shows every .tex
            tables.docx                    with `has_word`

    Args:
        inputs: digest of what the sections depend on, for the manifest.
    """
    tables = name_tables(sections)
    writer = ArtifactWriter(folder, _KIND)
    for name, table in tables.items():
        writer.write_bytes(f"{name}.csv", to_csv(table))
        writer.write_bytes(f"{name}.tex", to_latex(table, f"tab:{name}").encode())
    writer.write_bytes(ALL_NAME, to_document([f"{name}.tex" for name in tables]).encode())
    if has_word:
        writer.write_bytes(WORD_NAME, to_word(list(tables.values())))
    writer.commit(settings={"has_word": has_word}, inputs={"report": inputs}, facts={"num_tables": len(tables)})
    logger.info("report: %s in %s", format_count(len(tables), "table"), folder)


def is_current(folder: Path, inputs: str, *, has_word: bool) -> bool:
    """Whether the folder has the tables of these inputs, and the Word document if asked for."""
    if not has_artifact(folder):
        return False
    manifest = read_manifest(folder)
    return manifest.inputs.get("report") == inputs and (manifest.settings["has_word"] or not has_word)


def name_tables(sections: Sequence[Section]) -> dict[str, Table]:
    """Every table by a name of its number, its section and its title; names sort as the tables stand."""
    found = [(section.anchor, table) for section in sections for table in tables_of(section)]
    width = max(2, len(str(len(found))))
    return {
        f"{number:0{width}d}-{anchor}-{_slug(table.title)}": table for number, (anchor, table) in enumerate(found, 1)
    }


def _slug(title: str) -> str:
    """Letters and digits of a title, joined by "-"."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower())[:_SLUG_CHARACTERS].strip("-") or "table"
