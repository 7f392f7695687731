"""What a stack says of itself: how much better it looks in sample, its calibration, what its trees look at."""

from pathlib import Path
from typing import Any

from ichkit.show.blocks import Block, Chart, Charts, Missing, Section, Table
from ichkit.show.drawing import Series, draw_intervals, to_svg
from ichkit.show.terminal import format_number
from ichkit.stages.report.material import Material
from ichkit.stages.stack.facts import IMPORTANCE_FILE
from ichkit.work.artifacts import Manifest, read_manifest, read_table

_NUM_FEATURES = 12


def make_second_stage(material: Material) -> Section:
    """Facts of the stack that holds the best second stage."""
    anchor, title = "second-stage", "Inside the second stage"
    if material.second is None:
        return Section(anchor, title, [Missing("Nothing is stacked on these folds.", "ichkit stack")])
    folder = material.work.root / material.second.path
    manifest = read_manifest(folder.parent, made_by="ichkit stack")
    blocks: list[Block] = []
    facts = manifest.facts
    if facts.get("optimism"):
        blocks += [Charts([_draw_optimism(facts["optimism"])]), _optimism_table(facts)]
    if facts.get("calibration"):
        blocks.append(_calibration_table(facts, material))
    if facts.get("embeddings"):
        blocks.append(_embeddings_table(facts["embeddings"]))
    blocks += [_importance_table(folder.parent / name, name) for name in _importance_files(manifest)]
    if not blocks:
        blocks.append(Missing(f"Stack {folder.parent.name} was made without facts about itself.", "ichkit stack"))
    return Section(anchor, title, blocks)


def _draw_optimism(optimism: dict[str, dict[str, float]]) -> Chart:
    names = list(optimism)
    series = [
        Series(words, [optimism[name][key] for name in names])
        for words, key in (("out of fold", "out_of_fold"), ("in sample", "in_sample"))
    ]
    alt = "Weighted log loss by kind: " + "; ".join(
        f"{name} {format_number(found['out_of_fold'], 4)} out of fold, {format_number(found['in_sample'], 4)} in sample"
        for name, found in optimism.items()
    )
    figure = draw_intervals(names, series, "weighted log loss (nats)")
    return Chart(to_svg(figure, "optimism", alt), "The gap is what a careless second stage would have boasted with.")


def _optimism_table(facts: dict[str, Any]) -> Table:
    rows = []
    for kind, losses in facts["optimism"].items():
        better = 1 - losses["in_sample"] / losses["out_of_fold"]
        numbers = [format_number(losses[name], 5) for name in ("out_of_fold", "in_sample")]
        rows.append([kind, *numbers, f"{100 * better:.1f} %"])
    after = "In sample: the same rows by the models that learnt from them. No score on this page is made that way."
    columns = ("kind", "out of fold", "in sample", "would look better by")
    return Table(f"{facts['name']}: weighted log loss out of fold and in sample", columns, rows, after=after)


def _calibration_table(facts: dict[str, Any], material: Material) -> Table:
    rows = []
    for name, found in facts["calibration"].items():
        errors = [
            f"{found['error_before'][label]:.4f} → {found['error_after'][label]:.4f}" for label in material.task.classes
        ]
        rows.append([name, f"{found['loss_before']:.5f} → {found['loss_after']:.5f}", *errors])
    after = "Fitted on inner patients of the training part. Where it would not have helped them, it changes nothing."
    caption = f"{facts['name']}: loss and calibration error, out of fold, before → after calibration"
    return Table(caption, ("stacker", "log loss", *material.task.classes), rows, after=after)


def _embeddings_table(embeddings: dict[str, dict[str, float]]) -> Table:
    rows = [
        [name, *(format_number(losses[key], 5) for key in ("without", "with"))] for name, losses in embeddings.items()
    ]
    return Table("Embeddings: out-of-fold log loss before calibration", ("stacker", "without", "with"), rows)


def _importance_files(manifest: Manifest) -> list[str]:
    return [name for name in manifest.files if name.endswith(f"/{IMPORTANCE_FILE}")]


def _importance_table(path: Path, name: str) -> Table:
    table = read_table(path).head(_NUM_FEATURES)
    classes = [column for column in table if column not in ("feature", "mean")]
    rows = []
    for row in table.to_dict("records"):
        shares = [f"{100 * row[column]:.1f} %" for column in ("mean", *classes)]
        rows.append([row["feature"].replace("_", " "), *shares])
    caption = f"{name.split('/')[0]}: the {len(rows)} features that gain most, as a share of the gain in training loss"
    return Table(caption, ("feature", "mean", *classes), rows)
