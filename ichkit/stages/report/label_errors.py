"""`ichkit report --label-errors`: a page and a table of labels that the out-of-fold predictions contradict."""

from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.progress import logger
from ichkit.imaging.pictures import WINDOWS, fit_picture, picture_volume, tile_pictures, window_picture
from ichkit.show import page
from ichkit.show.blocks import Block, Card, Gallery, Prose, Section
from ichkit.show.page import encode_webp
from ichkit.show.table import Cell, Table, format_number
from ichkit.show.viewer import HOW_TO_SCROLL
from ichkit.stages.report.commands import missing_of_store
from ichkit.stages.report.report_data import ReportData, shorten
from ichkit.stages.report.viewers import Mark, StudyViewers
from ichkit.stages.scores.tables import data_note
from ichkit.validation.label_errors import Suspects, find_label_errors
from ichkit.work.artifacts import encode_table, write_bytes_atomically

_ROOM, _TEMPLATE = "ichkit.stages.report", "label_errors.html.j2"
_MOST_SHOWN = 48
_TILE, _QUALITY = 168, 70


def write_label_errors(report: ReportData, page_path: Path, table_path: Path) -> None:
    """Writes the page with pictures and the table of all suspected labels, from the best source.

    The columns of the table: rank (1 is the most suspicious), slice_id, study_id, class, label, probability (out of
    fold, of the class).
    """
    p = report.probabilities(report.best)
    suspects = find_label_errors(p, report.labels)
    table = make_table(report, p, suspects)
    write_bytes_atomically(table_path, encode_table(table, ".csv"))
    sections = [_make_summary(report, suspects), *_make_galleries(report, p, suspects)]
    values = {"task": report.task, "data": report.data, "notice": data_note(report.data), "inputs": ""}
    made = f"Out-of-fold predictions of {report.best.name}. All suspected labels: {table_path.name}."
    write_bytes_atomically(page_path, page.render(_ROOM, _TEMPLATE, sections=sections, made=made, **values).encode())
    logger.info("report: %d suspected labels in %s and %s", len(table), page_path, table_path.name)


def make_table(report: ReportData, p: np.ndarray, suspects: Suspects) -> pd.DataFrame:
    """The suspected labels, one per row, most suspicious first.

    Args:
        p: (N, C) out-of-fold probabilities that the suspects were found by.
    """
    rows, columns = suspects.rows, suspects.columns
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(rows) + 1),
            "slice_id": report.rows.slice_id.to_numpy()[rows],
            "study_id": report.rows.study_id.to_numpy()[rows],
            "class": np.array(report.task.classes, object)[columns],
            "label": report.labels[rows, columns].astype(np.int64),
            "probability": p[rows, columns].round(6),
        }
    )


def _make_summary(report: ReportData, suspects: Suspects) -> Section:
    """Suspected labels by class, and how to read them."""
    text = (
        "A label is suspected if the out-of-fold prediction contradicts it: the other label is more probable, and at "
        "least as probable as on average where it is given (confident learning, class by class). The network that "
        "predicted a slice was not trained on it. A suspected label may be right: models are wrong too, in particular "
        f"at the first and last slice of the {report.task.finding}. Review before changing a label."
    )
    lines = []
    for column, name in enumerate(report.task.classes):
        given = report.labels[:, column]
        own = given[suspects.rows[suspects.columns == column]]
        counts = [int((given == label).sum()) for label in (1, 0)]
        found = [int((own == label).sum()) for label in (1, 0)]
        shares = [f"{100 * one / max(of, 1):.2f} %" for one, of in zip(found, counts, strict=True)]
        lines.append([name, f"{found[0]:,}", shares[0], f"{found[1]:,}", shares[1]])
    headings = ("class", "positive labels suspected", "share", "negative labels suspected", "share of negative")
    return Section("summary", "Summary", [Prose(text), Table("Suspected labels by class", headings, lines)])


def _make_galleries(report: ReportData, p: np.ndarray, suspects: Suspects) -> list[Section]:
    """The most suspicious labels, one slice for each study and class: table, pictures, and viewers."""
    if not len(suspects.rows):
        return [Section("none", "Nothing suspected", [Prose("No label is contradicted.")])]
    shown = _pick(report, suspects)
    if not all((report.prepared.folder / report.rows.volume[row]).is_file() for row, _ in shown):
        missing = missing_of_store(report, "The images are not in this work folder.", "--fresh")
        return [Section("pictures", "Most suspicious", [missing])]
    marks = [Mark(row, c, f"{report.task.classes[c]} {_say(report, row, c, p[row, c])}") for row, c in shown]
    viewers = StudyViewers(report, marks)
    table = _list(report, p, shown, viewers)
    sections = [Section("list", "Most suspicious labels", [table])]
    titles = {0: "Labelled negative, predicted positive", 1: "Labelled positive, predicted negative"}
    windows = ", ".join(f"{name} {level:g}/{width:g}" for name, (level, width) in WINDOWS)
    for label, title in titles.items():
        own = [(row, column) for row, column in shown if report.labels[row, column] == label]
        blocks: list[Block] = [Prose("None among the most suspicious.")]
        if own:
            cards = [_card(report, row, column, p[row, column], viewers) for row, column in own]
            blocks = [
                Prose(f"Windows from left to right (level/width in {report.pixel_unit}): {windows}."),
                Gallery("Most suspicious first, one slice per study and class", cards),
            ]
        sections.append(Section(f"label-{label}", title, blocks))
    text = f"{HOW_TO_SCROLL} Slice 0 is at the feet. Bars below the curves: slices labelled positive."
    slices = viewers.make(p, np.full(p.shape, np.nan), {})
    return [*sections, Section("slices", "Studies slice by slice", [Prose(text), *slices])]


def _list(report: ReportData, p: np.ndarray, shown: list[tuple[int, int]], viewers: StudyViewers) -> Table:
    """The shown labels, each with a link to its slice."""
    rows: list[list[Cell | str]] = []
    for row, column in shown:
        facts, viewer = report.rows.iloc[row], viewers.find(row)
        place = f"{facts.slice_index + 1} of {facts.num_slices}"
        ids = [Cell(shorten(facts[name]), full=report.full_id(row, name)) for name in ("slice_id", "study_id")]
        link = Cell(place, link=viewer, slice_index=int(facts.slice_index) if viewer else None)
        label = f"{report.labels[row, column]:.0f}"
        rows.append([report.task.classes[column], *ids, label, format_number(float(p[row, column]), 4), link])
    columns = ("class", "slice", "study", "label", "probability", "slice from\nthe feet")
    return Table("Most suspicious labels, one slice per study, class and label", columns, rows, num_text=3)


def _say(report: ReportData, row: int, column: int, probability: float) -> str:
    return f"labelled {report.labels[row, column]:.0f}, predicted {format_number(probability, 3)}"


def _pick(report: ReportData, suspects: Suspects) -> list[tuple[int, int]]:
    """(row, class) of the most suspicious labels, one for each study, class and label."""
    studies = pd.factorize(report.rows.study_id)[0]
    seen: set[tuple[int, int, float]] = set()
    picked: list[tuple[int, int]] = []
    for row, column in zip(suspects.rows.tolist(), suspects.columns.tolist(), strict=True):
        key = (int(studies[row]), column, float(report.labels[row, column]))
        if key not in seen and len(picked) < _MOST_SHOWN:
            picked.append((row, column))
        seen.add(key)
    return picked


def _card(report: ReportData, number: int, column: int, probability: float, viewers: StudyViewers) -> Card:
    row = report.rows.iloc[number]
    hounsfield = picture_volume(report.prepared.read_slices(row.volume, row.slice_index, row.slice_index + 1))[0]
    tiles = [fit_picture(window_picture(hounsfield, *window), _TILE) for _, window in WINDOWS]
    picture = tile_pictures(tiles, len(tiles))
    truth = [report.task.classes[c] for c in np.flatnonzero(report.labels[number] == 1)]
    name, place = report.task.classes[column], f"slice {row.slice_index} ({row.slice_index + 1} of {row.num_slices})"
    label = int(report.labels[number, column])
    return Card(
        encode_webp(picture, _QUALITY),
        (picture.shape[1], picture.shape[0]),
        f"Slice {shorten(row.slice_id)}, {place}, labelled {label} for {name}, in {len(WINDOWS)} windows",
        shorten(row.slice_id),
        f"{name}: {_say(report, number, column, probability)}",
        (f"{place}, study {shorten(row.study_id)}", f"labels: {', '.join(truth) or 'none'}"),
        link=viewers.find(number),
        slice_index=int(row.slice_index),
        full=report.full_id(number, "slice_id"),
    )
