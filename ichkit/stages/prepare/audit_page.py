"""The data audit as a self-contained HTML page: checks, tables, charts, and a few studies in three windows."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from ichkit.core.config import ChannelsConfig
from ichkit.core.roles import title_of
from ichkit.core.tasks import Task
from ichkit.imaging.pictures import picture_volume
from ichkit.imaging.store import open_volume
from ichkit.imaging.windows import TABLE_HIGH_HU, TABLE_LOW_HU, window_table
from ichkit.show import page
from ichkit.show.blocks import Block, Charts, Checks, Picture, Prose, Section, Subsection
from ichkit.show.table import NOTHING, Cell, Table
from ichkit.stages.prepare.audit_charts import chart_histogram, chart_positions
from ichkit.stages.prepare.audit_checks import find_checks

_ROOM, _TEMPLATE = "ichkit.stages.prepare", "audit.html.j2"
_NUM_STUDIES, _NUM_COLUMNS, _THUMB = 4, 10, 96
_JPEG_QUALITY = 85
_MAX_IDS = 200
_NOTICE = "Research use only, not a medical device."


def render_page(audit: dict[str, Any], sheet: str, task: Task, crop_sheet: str = "") -> str:
    """Renders the audit page as HTML.

    Args:
        audit: from `make_audit`.
        sheet: from `draw_contact_sheet`.
        crop_sheet: from `crop_audit.draw_crops`.
    """
    sections = [
        Section("first", "Read this first", [Checks(find_checks(audit, task))]),
        Section("splits", "Data sets and splits", [_splits(audit), _counts(audit)]),
        Section("examples", "Example studies", _examples(sheet)),
        Section("rejected", "Rejected files", [_rejected(audit)]),
        Section("labels", "Labels and folds", _labels(audit, task)),
        Section("position", "Prevalence by slice position", _position(audit)),
        Section("pixels", "Pixels", _pixels(audit)),
        Section("geometry", "Geometry", _geometry(audit)),
        *(
            [Section("crop", _title_of_crop(audit["crop"]), _crop(audit["crop"], crop_sheet))]
            if "crop" in audit
            else []
        ),
        *(
            Section(f"external-{name}", f"External set: {title_of(name)}", [_external(facts)])
            for name, facts in audit["external"].items()
        ),
    ]
    notice = f"These data are synthetic phantoms. {_NOTICE}" if audit["data"] == "phantom" else _NOTICE
    return page.render(_ROOM, _TEMPLATE, sections=sections, data=audit["data"], notice=notice)


def _splits(audit: dict[str, Any]) -> Table:
    rows = [
        [
            row["dataset"],
            row["split"],
            *(f"{row[key]:,}" for key in ("slices", "studies", "patients")),
            NOTHING if row["positive_studies"] is None else f"{row['positive_studies']:,}",
            _share(row["padded"]),
            _share(row["blank"]),
        ]
        for row in audit["splits"]
    ]
    columns = ("data set", "split", "slices", "studies", "patients", "positive studies", "padded slices")
    note = "Near-blank: fewer than 1 % of the pixels are between 0 and 80 HU."
    return Table("Data sets and splits", (*columns, "near-blank slices"), rows, note=note, num_text=2)


def _counts(audit: dict[str, Any]) -> Table:
    """Counts; of the competition's data beside the published ones."""
    has_expected = any(row["expected"] is not None for row in audit["counts"])
    rows: list[list[Cell | str]] = []
    for row in audit["counts"]:
        expected = row["expected"]
        tone = "bad" if expected not in (None, row["found"]) else ""
        published = [NOTHING if expected is None else f"{expected:,}"] if has_expected else []
        rows.append([row["what"], Cell(f"{row['found']:,}", tone=tone), *published])
    title = "Counts, compared with RSNA 2019, stage 2" if has_expected else "Counts"
    return Table(title, ("quantity", "found", *(("expected",) if has_expected else ())), rows)


def _examples(sheet: str) -> list[Block]:
    if not sheet:
        return [Prose("No study has images.")]
    text = (
        "From the feet (left) to the head; each study in the brain, subdural and bone window: two positive studies, "
        "one negative study and, if an external set is prepared, one of its studies."
    )
    size = page.size_of(sheet)
    return [Prose(text), Picture(sheet, size, "Contact sheet: slices of a few studies in three windows")]


def _rejected(audit: dict[str, Any]) -> Block:
    if not audit["rejected"]:
        return Prose("None.")
    rows = [[reason, f"{count:,}"] for reason, count in audit["rejected"].items()]
    note = "Each file is listed in `rejected.csv`."
    return Table("Rejected files by reason", ("reason", "files"), rows, note=note)


def _labels(audit: dict[str, Any], task: Task) -> list[Block]:
    rows = [
        [
            str(row["fold"]),
            *(f"{row[key]:,}" for key in ("slices", "studies", "patients")),
            *(_share(row["prevalence"][name], 2) for name in task.classes),
        ]
        for row in audit["folds"]
    ]
    labels = audit["labels"]
    note = (
        f"Class columns: share of positive slices. Labels are given per {labels['given_per']}. Duplicate label rows "
        f"merged: {labels['merged_rows']}. Labels without an image: {labels['without_image']}."
    )
    blocks: list[Block] = [
        Table("Folds", ("fold", "slices", "studies", "patients", *task.classes), rows, note=note),
    ]
    contradicting = labels["any_differs_from_subtypes"]
    if task.covers:
        text = f"Slices whose `{', '.join(task.covers)}` contradicts the other classes: {len(contradicting)}."
        blocks.append(Prose(text))
    return [*blocks, *_list_ids("Slices with contradicting labels", contradicting)]


def _position(audit: dict[str, Any]) -> list[Block]:
    found = audit["positives_by_position"]
    text = f"Positive among first and last slices: {_share(found['first_and_last'])}."
    return [Charts([chart_positions(found["places"], found["prevalence"])]), Prose(text)]


def _pixels(audit: dict[str, Any]) -> list[Block]:
    splits = ("train", "test", "external")
    rows = [[row["value"], *(f"{row.get(split, 0):,}" for split in splits)] for row in audit["pixel_formats"]]
    columns = ("BitsStored, PixelRepresentation, RescaleIntercept", *splits)
    padding = audit["padding"]
    text = (
        f"Slices with a repaired RescaleIntercept: {len(audit['repaired'])}. Padding outside the scan circle is "
        f"typical of some scanners: {_share(padding['share'])} of the training slices have it, of which "
        f"{_share(padding['positive_rate_with'])} are positive, against {_share(padding['positive_rate_without'])} of "
        "the others. A network can learn this shortcut: compare the scores of both groups."
    )
    blocks: list[Block] = [Table("Slices by pixel format", columns, rows), Prose(text)]
    return [*blocks, *_list_ids("Slices with a repaired RescaleIntercept", audit["repaired"])]


def _geometry(audit: dict[str, Any]) -> list[Block]:
    geometry = audit["geometry"]
    charts = [
        chart_histogram("length", audit["slices_per_study"], "slices per study", "studies"),
        chart_histogram("gap", geometry["gap_mm"], "distance to the next slice (mm)", "slices"),
        chart_histogram("tilt", geometry["tilt_degrees"], "tilt against the axial plane (degrees)", "slices"),
    ]
    largest = geometry["largest_gap_mm"]
    facts = {
        "largest gap": NOTHING if largest is None else f"{largest:.1f} mm",
        "studies whose gaps vary by more than 0.5 mm": f"{geometry['studies_of_uneven_gaps']:,}",
        "slices at the position of another slice of their series (ordered by slice_id)": f"{geometry['tied_slices']:,}",
        "slices with a non-square matrix or non-square pixels": f"{geometry['not_square']:,}",
        "studies with mixed matrix sizes": f"{geometry['studies_of_mixed_matrices']:,}",
        **{f"studies of {count} series": f"{number:,}" for count, number in geometry["series_per_study"].items()},
        **{f"slices of {name} pixels": f"{count:,}" for name, count in geometry["matrices"].items()},
    }
    return [Charts(charts), Table("Geometry", ("quantity", "found"), [list(item) for item in facts.items()])]


def _title_of_crop(crop: dict[str, Any]) -> str:
    return "Parts of the picture" if crop.get("parts") else "Crop to the head"


def _crop(crop: dict[str, Any], crop_sheet: str) -> list[Block]:
    parts, missed = crop.get("parts"), crop["not_found"]
    what = "their part of the picture" if parts else "the square around the head"
    start = f"Studies are cut into parts ({parts}); each is a study of its patient, with its name after the id. "
    kept = "parts" if parts else "studies"
    text = (
        f"{start if parts else ''}{crop['studies'] - missed:,} of {crop['studies']:,} {kept} are stored as {what}, "
        "the same in all slices of a study."
    )
    if missed:
        text += f" No head was found in {missed:,}: their whole picture is stored."
    if crop["median_side_mm"] is not None:
        text += (
            f" Median side: {crop['median_side_mm']:.0f} mm; median share of the picture: "
            f"{_share(crop['median_share'])}; median distance from the centre of the picture: "
            f"{crop['median_off_centre_mm']:.0f} mm."
        )
    blocks: list[Block] = [Prose(f"{text} `crops.parquet` has every box.")]
    blocks.append(Charts([chart_histogram("side", crop["side_mm"], "side of the box (mm)", "studies")]))
    if crop_sheet:
        caption = (
            "The whole picture and the box at a quarter, half and three quarters of the slices. Check that no brain is "
            "outside."
        )
        alt = "Slices of the smallest, largest and most off-centre box"
        blocks.append(Picture(crop_sheet, page.size_of(crop_sheet), alt, caption))
    return blocks


def _external(facts: dict[str, Any]) -> Prose:
    of = f" of {facts['labelled']}" if facts["labelled"] is not None else ""
    missing = f" Missing: {', '.join(facts['missing'])}." if facts["missing"] else ""
    return Prose(
        f"{facts['prepared']}{of} labelled studies have a usable series; `series_choice.csv` gives the reason for "
        f"every candidate series.{missing}"
    )


def _list_ids(title: str, names: list[str]) -> list[Block]:
    """A folded list of ids, at most `_MAX_IDS` of them; none for an empty list."""
    if not names:
        return []
    left = len(names) - _MAX_IDS
    more = f" and {left} more (audit.json has all)" if left > 0 else ""
    return [Subsection(title, [Prose(f"`{', '.join(names[:_MAX_IDS])}`{more}")], is_open=False)]


def _share(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def draw_contact_sheet(folder: Path, slices: pd.DataFrame, studies: pd.DataFrame, task: Task) -> str:
    """A JPEG data URL: slices of a few studies from feet to head, one row per window.

    Args:
        folder: the folder of the volumes.
    """
    tables = [window_table(level, width) for level, width in ChannelsConfig().windows]
    rows = []
    for volume in _pick_volumes(slices, studies, task):
        array = open_volume(folder / volume)
        chosen = np.unique(np.linspace(0, len(array) - 1, min(_NUM_COLUMNS, len(array))).round().astype(int))
        images = [picture_volume(array[int(i) : int(i) + 1])[0] for i in chosen]
        thumbs = [cv2.resize(image, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA) for image in images]
        thumbs += [np.full((_THUMB, _THUMB), TABLE_LOW_HU, np.int16)] * (_NUM_COLUMNS - len(thumbs))
        strip = np.clip(np.concatenate(thumbs, axis=1), TABLE_LOW_HU, TABLE_HIGH_HU) - TABLE_LOW_HU
        rows += [table[strip] for table in tables]
    if not rows:
        return ""
    return page.encode_jpeg(np.concatenate(rows), _JPEG_QUALITY)


def _pick_volumes(slices: pd.DataFrame, studies: pd.DataFrame, task: Task) -> list[str]:
    """Volume paths of the first two positive, one negative and one external study by id."""
    train = studies[studies["split"] == "train"]
    positive = train[train[task.headline_class] == 1]
    negative, external = train[train[task.headline_class] == 0], studies[studies["split"] == "external"]
    picked = pd.concat([positive.head(2), negative.head(1), external.head(1)]).head(_NUM_STUDIES)
    volumes = slices.drop_duplicates(["dataset", "study_id"])[["dataset", "study_id", "volume"]]
    return picked.merge(volumes, on=["dataset", "study_id"], how="left")["volume"].to_list()
