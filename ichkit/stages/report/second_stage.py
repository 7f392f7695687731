"""Report section: optimism of the in-sample score, calibration and feature importance of the second stage."""

from pathlib import Path

import numpy as np

from ichkit.show.blocks import Block, Chart, Charts, Missing, Prose, Section
from ichkit.show.drawing import Series, chart_intervals
from ichkit.show.table import Cell, Table, format_number
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.stack.facts import IMPORTANCE_FILE, render
from ichkit.work.artifacts import Manifest, read_manifest, read_table

_NUM_FEATURES = 12


def make_second_stage(report: ReportData) -> Section:
    """Diagnostics of the stack that holds the best second stage."""
    anchor, title = "second-stage", "Second stage in detail"
    if report.second is None:
        return Section(anchor, title, [Missing("No second stage on these folds.", "ichkit stack")])
    folder = report.work.root / report.second.path
    manifest = read_manifest(folder.parent)
    blocks: list[Block] = []
    facts = manifest.facts
    if facts.get("optimism"):
        blocks.append(Charts([_draw_optimism(facts["optimism"])]))
    blocks += render(manifest)
    blocks += [_importance_table(folder.parent / name, name) for name in _importance_files(manifest)]
    if not blocks:
        blocks.append(Missing(f"Stack {folder.parent.name} has no recorded diagnostics.", "ichkit stack"))
    return Section(anchor, title, blocks)


def _draw_optimism(optimism: dict[str, dict[str, float]]) -> Chart:
    names = list(optimism)
    series = [
        Series(words, np.array([optimism[name][key] for name in names]))
        for words, key in (("out of fold", "out_of_fold"), ("in sample", "in_sample"))
    ]
    alt = "Weighted log loss by kind: " + "; ".join(
        f"{name} {format_number(found['out_of_fold'], 4)} out of fold, {format_number(found['in_sample'], 4)} in sample"
        for name, found in optimism.items()
    )
    caption = "The gap is the optimism of an in-sample evaluation."
    return chart_intervals("optimism", alt, caption, names, series, "weighted log loss (nats)")


def _importance_files(manifest: Manifest) -> list[str]:
    return [name for name in manifest.files if name.endswith(f"/{IMPORTANCE_FILE}")]


def _importance_table(path: Path, name: str) -> Table | Prose:
    table, stacker = read_table(path), name.split("/")[0]
    table = table[table["mean"] > 0].head(_NUM_FEATURES)
    if table.empty:
        return Prose(f"{stacker}: no tree has a split, so no feature is important.")
    classes = [column for column in table.columns if column not in ("feature", "mean")]
    rows: list[list[Cell | str]] = []
    for row in table.to_dict("records"):
        shares = [f"{100 * row[column]:.1f} %" for column in ("mean", *classes)]
        rows.append([str(row["feature"]).replace("_", " "), *shares])
    caption = f"{stacker}: the {len(rows)} most important features, by share of the total gain"
    return Table(caption, ("feature", "mean", *classes), rows)
