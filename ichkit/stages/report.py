"""One self-contained HTML page about a work folder: no network, no script, every picture inside."""

import base64
import io
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from ichkit.core.artifacts import package_versions, write_bytes_atomically
from ichkit.core.config import Config
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import logger
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.store import Prepared
from ichkit.stages import evaluate, leaderboard
from ichkit.validation.catalog import Source, find_sources, load_out_of_fold
from ichkit.validation.published import PUBLISHED
from ichkit.validation.scores import ALL_CLASSES, LOG_LOSS, MEAN_CLASS, POOLED, ROC_AUC, WEIGHTED_LOG_LOSS

_TEMPLATE = "report.html.j2"
_NUM_CURVE_POINTS = 400
_PUBLISHED = "MIDL 2020, one ResNet-50"


def run(config: Config, work: WorkFolder, submissions: Path) -> Path:
    """Writes `work/report.html` from the artifacts and returns its path; missing scores are computed.

    Raises:
        ArtifactError: nothing is prepared or trained, or an artifact is damaged.
    """
    task = find_task(config.task)
    evaluate.run(config, work)
    prepared = Prepared.open(work.prepared, task)
    sources = find_sources(work, task)
    scores = evaluate.read_scores(work, sources)
    best = leaderboard.build(work, submissions, task).iloc[0]
    page = (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            data=prepared.manifest.facts["data"],
            board=_board_rows(scores, sources),
            best=best["name"],
            classes=_class_rows(scores, best["name"], task),
            cq500=_cq500_rows(scores, best["name"]),
            published=_PUBLISHED,
            pictures={
                "Loss per class and stage": _draw_losses(scores, sources, task),
                f"ROC curves of {best['name']}, out of fold": _draw_roc(sources, best["name"], prepared, task),
                "Training curves of every fold": _draw_training(work, sources),
            },
            data_rows=_data_rows(prepared, task),
            rejected=prepared.rejected()["reason"].value_counts().items(),
            config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
            versions=package_versions(),
            created=max(source.created_utc for source in sources),
        )
    )
    write_bytes_atomically(work.report, page.encode())
    logger.info("report: %s", work.report)
    return work.report


def _environment() -> jinja2.Environment:
    template = resources.files("ichkit.stages").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return jinja2.Environment(
        loader=jinja2.DictLoader({_TEMPLATE: template}), autoescape=True, undefined=jinja2.StrictUndefined
    )


def _pooled(scores: pd.DataFrame, source: str, metric: str, dataset_is_cq500: bool) -> pd.DataFrame:
    """The scores of one source and metric over all its folds, by class."""
    rows = scores[(scores["source"] == source) & (scores["metric"] == metric) & (scores["fold"] == POOLED)]
    return rows[(rows["dataset"] == "cq500") == dataset_is_cq500].set_index("class")


def _interval(row: pd.Series, digits: int) -> str:
    if np.isnan(row["value"]):
        return "undefined"
    value = f"{row['value']:.{digits}f}"
    return value if np.isnan(row["low"]) else f"{value} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def _board_rows(scores: pd.DataFrame, sources: list[Source]) -> list[dict[str, str]]:
    rows = []
    for source in sources:
        loss = _pooled(scores, source.name, WEIGHTED_LOG_LOSS, False).loc[ALL_CLASSES]
        auc = _pooled(scores, source.name, ROC_AUC, False)
        outside = _pooled(scores, source.name, ROC_AUC, True)
        any_class = source.task.any_class
        rows.append(
            {
                "name": source.name,
                "kind": source.kind,
                "folds": source.folds_label,
                "loss": _interval(loss, 5),
                "auc": _interval(auc.loc[any_class], 4),
                "cq500": _interval(outside.loc[any_class], 3) if len(outside) else "no CQ500",
                "cq500_mean": f"{outside.loc[MEAN_CLASS, 'value']:.3f}" if len(outside) else "",
                "n": f"{int(loss['n'])} ({int(loss['n_positive'])})",
                "order": (-int(loss["n"]), source.folds_label, loss["value"]),
            }
        )
    return sorted(rows, key=lambda row: row["order"])


def _class_rows(scores: pd.DataFrame, name: str, task: Task) -> list[dict[str, str]]:
    losses, aucs = _pooled(scores, name, LOG_LOSS, False), _pooled(scores, name, ROC_AUC, False)
    return [
        {
            "class": label,
            "loss": _interval(losses.loc[label], 5),
            "auc": _interval(aucs.loc[label], 4),
            "n": f"{int(losses.loc[label, 'n'])} ({int(losses.loc[label, 'n_positive'])})",
        }
        for label in task.classes
    ]


def _cq500_rows(scores: pd.DataFrame, name: str) -> list[dict[str, str]]:
    """CQ500 beside the published numbers, each with its interval and counts."""
    rows = _pooled(scores, name, ROC_AUC, True)
    return [
        {
            "class": label,
            "auc": _interval(rows.loc[label], 3),
            "n": f"{int(rows.loc[label, 'n'])} ({int(rows.loc[label, 'n_positive'])})",
            "earlier": f"{PUBLISHED['baseline'].roc_auc[label]:.4f}",
            "paper": f"{PUBLISHED['paper'].roc_auc[label]:.4f}",
        }
        for label in PUBLISHED["paper"].roc_auc
        if label in rows.index
    ]


def _data_rows(prepared: Prepared, task: Task) -> list[dict[str, object]]:
    rows = []
    for (dataset, split), slices in prepared.slices.groupby(["dataset", "split"]):
        studies = prepared.studies[(prepared.studies["dataset"] == dataset) & (prepared.studies["split"] == split)]
        positive = {name: "" if studies[name].isna().all() else int(studies[name].sum()) for name in task.classes}
        rows.append({"part": f"{dataset} {split}", "slices": len(slices), "studies": len(studies), **positive})
    return rows


def _draw_losses(scores: pd.DataFrame, sources: list[Source], task: Task) -> str:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(sources)
    for i, source in enumerate(sources):
        values = _pooled(scores, source.name, LOG_LOSS, False).loc[list(task.classes)]
        below, above = values["value"] - values["low"], values["high"] - values["value"]
        at = np.arange(task.num_classes) + (i - (len(sources) - 1) / 2) * width
        axes.bar(at, values["value"], width, yerr=[below, above], capsize=2, label=source.name, error_kw={"lw": 0.8})
    axes.set_xticks(range(task.num_classes), task.classes, rotation=15)
    axes.set_ylabel("log loss (nats)")
    axes.legend(fontsize=7)
    return _encode(figure)


def _draw_roc(sources: list[Source], name: str, prepared: Prepared, task: Task) -> str:
    source = next(source for source in sources if source.name == name)
    table = load_out_of_fold(source)
    labels = prepared.split("train").set_index("slice_id").loc[table["slice_id"], list(task.classes)]
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, column in zip(task.classes, task.probability_columns, strict=True):
        y = labels[label].to_numpy(np.int64)
        if 0 < y.sum() < len(y):
            order = np.argsort(-table[column].to_numpy(), kind="stable")
            hits, misses = np.cumsum(y[order]) / y.sum(), np.cumsum(1 - y[order]) / (len(y) - y.sum())
            keep = np.linspace(0, len(y) - 1, min(len(y), _NUM_CURVE_POINTS)).astype(int)
            axes.plot(np.append(0, misses[keep]), np.append(0, hits[keep]), lw=1.2, label=f"{label} ({y.sum()})")
    axes.plot([0, 1], [0, 1], color="gray", lw=0.6)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("sensitivity")
    axes.legend(fontsize=7, title="class (positive slices)", title_fontsize=7)
    return _encode(figure)


def _draw_training(work: WorkFolder, sources: list[Source]) -> str:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    for source in sources:
        for fold in source.folds if source.kind == "base" else ():
            history = pd.read_csv(work.fold(source.name, fold) / "history.csv")
            axes.plot(history["epoch"], history["loss"], lw=1, label=f"{source.name} fold {fold}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.legend(fontsize=7)
    return _encode(figure)


def _encode(figure: Figure) -> str:
    """The figure as a data URI; no date or version inside, so that the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
