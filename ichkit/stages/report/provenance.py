"""Report sections: training, data, and how to reproduce the results."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ichkit.show.blocks import Block, Chart, Charts, Listing, Prose, Section
from ichkit.show.drawing import WIDE, to_svg
from ichkit.show.table import NOTHING, Cell, Table, format_number
from ichkit.stages.prepare.audit import AUDIT_JSON, AUDIT_PAGE
from ichkit.stages.report.commands import CONFIG_FILE, list_commands, list_run_differences, repeatable
from ichkit.stages.report.curves import draw_training
from ichkit.stages.report.report_data import ReportData
from ichkit.work.artifacts import (
    Manifest,
    package_versions,
    read_manifest,
    read_table,
)
from ichkit.work.folder import HELDOUT_CURVE_NAME


def make_training(report: ReportData) -> Section:
    """The training curves of every fold of every run; of trials, of those that are used."""
    charts, rows = [], []
    runs = [source for source in report.shown if source.is_run]
    for number, run in enumerate(runs):
        histories = {k: _read_history(report, run.name, k) for k in run.folds}
        last = {k: history.loss.iloc[-1] for k, history in histories.items()}
        ends = ", ".join(f"fold {k} {format_number(loss, 4)}" for k, loss in last.items())
        alt = f"Training loss of {run.name} by epoch; after the last: {ends}."
        heldout = {k: read_table(path) for k in run.folds if (path := _heldout_curve(report, run.name, k)).is_file()}
        name, caption = f"training-{number}", f"{run.name}, loss by epoch."
        wide = to_svg(draw_training(histories, heldout, WIDE), f"{name}-wide", alt) if len(runs) == 1 else None
        charts.append(Chart(to_svg(draw_training(histories, heldout), name, alt), caption, wide))
        rows += [_training_row(report, run.name, k, history) for k, history in histories.items()]
    losses = ("last training loss", "last validation loss", "weights of epoch")
    columns = ("run and fold", "network", "epochs", "images per epoch", *losses, "minutes", "device")
    note = (
        "Training loss is measured on augmented training images, validation loss on patients of the training part that "
        "were held out from training. A curve of the held-out fold is for display only: no choice uses it."
    )
    table = Table("Training, fold by fold", columns, rows, note=note, num_text=2)
    return Section("training", "Training curves", [Charts(charts), table])


def make_data(report: ReportData) -> Section:
    """The prepared data: counts, folds, rejected files and findings of the audit."""
    prepared, task = report.prepared, report.task
    rows = []
    for (dataset, split), slices in prepared.slices.groupby(["dataset", "split"]):
        studies = prepared.studies[(prepared.studies.dataset == dataset) & (prepared.studies.split == split)]
        positive = [NOTHING if studies[name].isna().all() else f"{int(studies[name].sum()):,}" for name in task.classes]
        counts = [f"{number:,}" for number in (len(slices), len(studies), slices.patient_id.nunique())]
        rows.append([f"{dataset} {split}", *counts, *positive])
    columns = ("part", "slices", "studies", "patients", *task.classes)
    note = "Class columns: number of positive studies, or a dash if the labels are unknown."
    blocks: list[Block] = [Table(f"Prepared (data: {report.data})", columns, rows, note=note)]
    if AUDIT_JSON in prepared.manifest.files:
        blocks += _audit_tables(json.loads((prepared.folder / AUDIT_JSON).read_text(encoding="utf-8")))
        blocks.append(Prose(f"Complete audit with images: `prepared/{AUDIT_PAGE}` in the work folder."))
    rejected = prepared.rejected().reason.value_counts()
    if len(rejected):
        lines = [[str(reason), f"{count:,}"] for reason, count in rejected.items()]
        blocks.append(Table("Rejected files", ("reason", "files"), lines))
    else:
        blocks.append(Prose("No file was rejected."))
    return Section("data", "Data", blocks)


def make_repeat(report: ReportData) -> Section:
    """Commands, configuration, provenance of every artifact, and package versions."""
    runs = [source for source in report.shown if source.is_run and source.name not in report.trials]
    commands, config = "\n".join(list_commands(report)), repeatable(report.config)
    text = (
        f"Save the configuration below as `{CONFIG_FILE}`, and put your own paths for the words in capitals. Runs and "
        "searches with other settings have their own configuration in the work folder, as named. With the same data, "
        "package versions and number of threads, these commands reproduce the results: exactly on a CPU, nearly on a "
        "GPU."
    )
    differences = [f"{run.name}: {line}" for run in runs for line in list_run_differences(report, run)]
    blocks: list[Block] = [Prose(text), Listing("Commands", commands)]
    if differences:
        blocks.append(
            Prose("Settings of a run that differ from those below (run, now here): " + "; ".join(differences))
        )
    blocks.append(
        Listing("Configuration: every setting that affects a result", yaml.safe_dump(config, sort_keys=False))
    )
    blocks.append(_artifacts_table(report))
    versions = "\n".join(f"{name} {version}" for name, version in package_versions().items())
    return Section("repeat", "How to reproduce", [*blocks, Listing("Installed package versions", versions)])


def _training_row(report: ReportData, run: str, fold: int, history: pd.DataFrame) -> list[Cell | str]:
    facts = read_manifest(report.work.fold(run, fold)).facts
    images = f"{int(history.num_images.iloc[-1]):,}" if "num_images" in history else NOTHING
    minutes = format_number(facts["seconds"] / 60, 1) if "seconds" in facts else NOTHING
    losses = [history[name].iloc[-1] if name in history else None for name in ("loss", "validation_loss")]
    shown = [NOTHING if loss is None else format_number(loss, 4) for loss in losses]
    network, kept = str(facts.get("backbone", NOTHING)), str(facts.get("kept_epoch", len(history)))
    device = str(facts.get("device", NOTHING))
    return [f"{run} {fold}", network, str(len(history)), images, *shown, kept, minutes, device]


def _heldout_curve(report: ReportData, run: str, fold: int) -> Path:
    return report.work.fold(run, fold) / HELDOUT_CURVE_NAME


def _audit_tables(audit: dict[str, Any]) -> list[Table]:
    """Key figures of the audit, and the share of positive slices in each fold."""
    is_real = audit["data"] == "rsna"
    rows: list[list[Cell | str]] = []
    for row in audit["counts"]:
        tone = "bad" if row["expected"] not in (None, row["found"]) else ""
        expected = [NOTHING if row["expected"] is None else f"{row['expected']:,}"] if is_real else []
        rows.append([row["what"], Cell(f"{row['found']:,}", tone=tone), *expected])
    geometry, padding = audit["geometry"], audit["padding"]
    facts = {
        "slices with padding outside the scan circle, training": _share(padding["share"]),
        "positive among slices with padding": _share(padding["positive_rate_with"]),
        "positive among slices without padding": _share(padding["positive_rate_without"]),
        "studies with uneven slice gaps": f"{geometry['studies_of_uneven_gaps']:,}",
        "largest slice gap": NOTHING if geometry["largest_gap_mm"] is None else f"{geometry['largest_gap_mm']:.1f} mm",
        "slices with a non-square matrix or non-square pixels": f"{geometry['not_square']:,}",
    }
    rows += [[what, value, *([NOTHING] if is_real else [])] for what, value in facts.items()]
    columns = ("quantity", "here", *(("RSNA 2019, stage 2",) if is_real else ()))
    names = list(audit["folds"][0]["prevalence"]) if audit["folds"] else []
    folds = [
        [str(fold["fold"]), *(f"{fold[key]:,}" for key in ("slices", "studies", "patients"))]
        + [_share(fold["prevalence"][name]) for name in names]
        for fold in audit["folds"]
    ]
    of_folds = ("fold", "slices", "studies", "patients", *names)
    return [
        Table("Key figures of the audit", columns, rows),
        Table("Patient-wise folds and share of positive slices", of_folds, folds),
    ]


def _read_history(report: ReportData, run: str, fold: int) -> pd.DataFrame:
    folder = report.work.fold(run, fold)
    return read_table(folder / "history.csv", read_manifest(folder).sha256_of("history.csv"))


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.2f} %"


def _artifacts_table(report: ReportData) -> Table:
    """Creation time, settings digest, commit and versions of each artifact."""
    work, rows = report.work, []
    folders = {"prepared": work.prepared}
    for source in report.shown:
        if source.is_run:
            folders |= {f"{source.name} {k}": work.fold(source.name, k) for k in source.folds}
        else:
            folders[f"stack {source.path.split('/')[1]}"] = (work.root / source.path).parent
    folders |= {f"search {name}": work.tune_folder(name) for name in report.searches}
    if report.sources:
        folders["scores"] = work.scores
    for name, folder in folders.items():
        manifest: Manifest = read_manifest(folder)
        packages = [f"{key} {manifest.versions[key]}" for key in ("python", "torch") if key in manifest.versions]
        commit = manifest.git_commit[:10] or NOTHING
        rows.append([name, manifest.created_utc, manifest.settings_digest, commit, ", ".join(packages)])
    columns = ("artifact", "created (UTC)", "settings digest", "commit", "versions")
    return Table("Provenance of each artifact", columns, rows, num_text=5)
