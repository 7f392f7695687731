"""A work folder with prepared tables and finished runs, made in a second: no DICOM, no network, descriptors with a law.

The model behind it: in each study some classes bleed over an interval of slices; `q`, the probability of a label given
everything, rises and falls smoothly along the axis; labels are drawn from `q` slice by slice. A run sees logit(q)
through noise of its own, so neighbours carry information that the slice's own descriptor lacks; with `noise=0` the
descriptors are the true posteriors, and no second stage can gain on them but by chance.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from ichkit.core.seeding import make_generator
from ichkit.core.tasks import Task, find_task
from ichkit.work.artifacts import ArtifactWriter, digest_file, digest_table, encode_json, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.schemas import (
    FOLDS,
    KEY,
    REJECTED,
    SERIES_CHOICE,
    conform,
    make_predictions,
    slices_dtypes,
    studies_dtypes,
)

TASK = find_task("hemorrhage")
BLOCK = 7


@dataclass(frozen=True)
class _Study:
    """One simulated study: who, where, and the (S, C) true probabilities of its labels."""

    study_id: str
    patient_id: str
    dataset: str
    split: str
    primary: int
    posterior: np.ndarray


def make_work(
    root: Path,
    *,
    num_patients: int = 40,
    slices_per_study: tuple[int, int] = (8, 14),
    folds: tuple[int, ...] = (0, 1, 2, 3, 4),
    runs: tuple[str, ...] = ("base",),
    test_studies: int = 8,
    cq500_studies: int = 12,
    seed: int = 0,
    num_folds: int = 5,
    positive_rate: float = 0.6,
    noise: float = 1.5,
    shared_noise: float = 0.5,
    slope: float = 1.0,
    offset: float = 0.0,
    contrast: float = 5.0,
    data: str = "phantom",
    cq500_missing: int = 0,
    embedding_size: int = 0,
) -> WorkFolder:
    """Writes `prepared/` (tables only) and the finished folds of each run; returns the work folder.

    Args:
        num_patients: training patients; every eighth has two studies.
        slices_per_study: least and most slices of a study, both included.
        folds: the finished folds of every run, out of `num_folds`.
        positive_rate: share of studies that bleed.
        noise: standard deviation of the noise on a descriptor's logit; 0 gives the true posteriors.
        shared_noise: share of the noise's variance that all runs and folds have in common.
        slope: what the true logit is multiplied by before the noise; above 1 a run is overconfident.
        offset: what is added to it then; below 0 a run says too little.
        contrast: height of a bleed in logits above and below even odds; large values make labels certain.
        cq500_missing: CQ500 studies that have labels and no slices.
        embedding_size: columns of the embeddings beside the descriptors, none at 0: the true logits of the subtypes and
            noise, turned by a rotation of each fold's own.
    """
    work = WorkFolder(root)
    rng = make_generator(seed, "simulated")
    bounds = (slices_per_study, positive_rate, contrast)
    train = _draw_studies(rng, [f"ID_p{i:06x}" for i in range(num_patients)], "rsna", "train", *bounds)
    test = _draw_studies(rng, [f"ID_q{i:06x}" for i in range(test_studies)], "rsna", "test", *bounds)
    external = _draw_studies(rng, [f"CQ500-CT-{i}" for i in range(cq500_studies)], "cq500", "external", *bounds)
    studies = sorted([*train, *test, *external], key=lambda study: (study.dataset, study.study_id))
    dealt = _deal(train, num_folds)
    fold_of = dict(zip(dealt.patient_id, dealt.fold, strict=True))
    labels = {study.study_id: _draw_labels(rng, study.posterior) for study in studies}
    parts = [_slices_of(study, labels[study.study_id], fold_of, rng) for study in studies]
    slices = conform(pd.concat(parts, ignore_index=True), slices_dtypes(TASK))
    missing = [f"CQ500-CT-{cq500_studies + i}" for i in range(cq500_missing)]
    _write_prepared(work, slices, _study_table(studies, labels, missing), dealt, data, seed)
    posterior = np.concatenate([study.posterior for study in studies])
    common = rng.standard_normal(posterior.shape)
    latent = _draw_latent(make_generator(seed, "simulated latent"), posterior, embedding_size)
    for run in runs:
        for fold in folds:
            own = make_generator(seed, "simulated", run, fold).standard_normal(posterior.shape)
            mixed = np.sqrt(shared_noise) * common + np.sqrt(1 - shared_noise) * own
            sees_all = noise == 0 and slope == 1 and offset == 0
            seen = posterior if sees_all else expit(slope * logit(posterior) + offset + noise * mixed)
            _write_fold(work, slices, seen, run, fold, data, seed)
            if embedding_size:
                _write_embeddings(work, slices, latent, run, fold)
    return work


def make_stack(
    work: WorkFolder, *, runs: tuple[str, ...] = ("base",), kinds: tuple[str, ...] = ("fusion", "lightgbm", "blend")
) -> str:
    """Writes a finished stack of those runs and returns its name: not a trained one, its kinds smooth more and more."""
    folds = sorted(set.intersection(*(set(take_inventory(work).finished_runs[run]) for run in runs)))
    name = "+".join(sorted(runs))
    manifest = read_manifest(work.fold(runs[0], folds[0]))
    writer = ArtifactWriter(work.stacks / name, "stack")
    for split in ("oof", "test", "cq500"):
        tables = [[read_table(work.fold(run, k) / f"{split}.parquet") for k in folds] for run in runs]
        whole = [pd.concat(of_run).sort_values(KEY, ignore_index=True) for of_run in tables]
        groups = whole if split == "oof" else [table for of_run in tables for table in of_run]
        windows = np.mean([stack_windows(table) for table in groups], axis=0)
        for number, kind in enumerate(kinds):
            near = windows[:, BLOCK // 2 - number - 1 : BLOCK // 2 + number + 2].mean(1)
            fold = None if split == "oof" else -1
            writer.write_table(f"{kind}_{split}.parquet", make_predictions(groups[0], near, TASK, fold))
    facts = {"name": name, "runs": list(runs), "folds": folds, "data": manifest.facts["data"], "task": TASK.name}
    used = [f"{run}/fold{k}/{split}.parquet" for run in runs for k in folds for split in ("oof", "test", "cq500")]
    inputs = {table: digest_file(work.runs / table) for table in used}
    writer.commit(settings={"stackers": list(kinds)}, inputs=inputs, facts=facts)
    return name


def true_posteriors(work: WorkFolder, run: str, fold: int) -> pd.DataFrame:
    """The out-of-fold table of a run made with `noise=0`: each row's probabilities given everything."""
    return read_table(work.fold(run, fold) / "oof.parquet")


def flip_labels(work: WorkFolder, fold: int) -> None:
    """Turns every label of one fold round in `prepared/slices.parquet`; descriptors stay as they are."""
    slices = read_table(work.prepared / "slices.parquet")
    rows = (slices.fold == fold).fillna(False).to_numpy(bool)
    for name in TASK.classes:
        slices.loc[rows, name] = 1 - slices.loc[rows, name]
    rewrite_slices(work, slices)


def rewrite_slices(work: WorkFolder, slices: pd.DataFrame) -> None:
    """Puts another `slices.parquet` in place of the prepared one, manifest included."""
    rewrite_prepared(work, {"slices.parquet": conform(slices, slices_dtypes(TASK))})


def rewrite_prepared(work: WorkFolder, tables: dict[str, pd.DataFrame]) -> None:
    """Puts other tables in place of prepared ones, by file name, manifest included."""
    rewrite_tables(work.prepared, tables)


def rewrite_tables(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Puts other tables in place of those of an artifact, by file name, manifest included."""
    old = read_manifest(folder)
    writer = ArtifactWriter(folder, old.kind)
    for name in old.files:
        if name in tables:
            writer.write_table(name, tables[name])
        else:
            writer.write_bytes(name, (folder / name).read_bytes())
    writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


def add_external_set(work: WorkFolder, name: str) -> None:
    """A second external set in the store and in every finished fold and stack: CQ500's rows under other ids."""
    tables = {}
    for file in ("slices.parquet", "studies.parquet"):
        table = read_table(work.prepared / file)
        tables[file] = pd.concat([table, _renamed(table[table.dataset == "cq500"], name)], ignore_index=True)
    rewrite_prepared(work, tables)
    folds = [work.fold(run, fold) for run, folds in take_inventory(work).finished_runs.items() for fold in folds]
    for folder in (*folds, *(work.stacks / stack for stack in take_inventory(work).finished_stacks)):
        old = read_manifest(folder)
        writer = ArtifactWriter(folder, old.kind)
        for file in old.files:
            writer.write_bytes(file, (folder / file).read_bytes())
            if file.endswith("cq500.parquet"):
                writer.write_table(
                    file.removesuffix("cq500.parquet") + f"{name}.parquet", _renamed(read_table(folder / file), name)
                )
        writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


def _renamed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of CQ500 as rows of another external set."""
    ids = [column for column in ("slice_id", "study_id", "series_id", "patient_id") if column in table]
    renamed = table.assign(**{column: f"{name}-" + table[column] for column in ids})
    return renamed.assign(dataset=name) if "dataset" in table else renamed


def stack_windows(table: pd.DataFrame, task: Task = TASK) -> np.ndarray:
    """(N, 7, C) float32: the descriptors around each row, ends repeated; the plain twin of what the runs store."""
    p = table[task.probability_columns].to_numpy(np.float32)
    study = pd.factorize(table.study_id)[0]
    row = np.arange(len(table))
    first, last = (pd.Series(row).groupby(study).transform(end).to_numpy(int) for end in ("min", "max"))
    return np.stack([p[np.clip(row + d, first, last)] for d in range(-(BLOCK // 2), BLOCK // 2 + 1)], axis=1)


def _draw_studies(
    rng: np.random.Generator,
    patients: list[str],
    dataset: str,
    split: str,
    slices_per_study: tuple[int, int],
    positive_rate: float,
    contrast: float,
) -> list[_Study]:
    studies = []
    for number, patient in enumerate(patients):
        for _ in range(2 if split == "train" and number % 8 == 7 else 1):
            num_slices = int(rng.integers(slices_per_study[0], slices_per_study[1] + 1))
            bleeds = int((len(studies) + 1) * positive_rate) > int(len(studies) * positive_rate)
            # Classes take turns, so that small folders hold each of them.
            primary = int(len(studies) * positive_rate) % len(TASK.subtypes) if bleeds else -1
            second = int(rng.integers(len(TASK.subtypes))) if bleeds and rng.random() < 0.4 else -1
            study_id = patient if dataset == "cq500" else f"ID_{rng.integers(16**9):09x}{len(studies):x}"
            posterior = _draw_posterior(rng, num_slices, {primary, second} - {-1}, contrast)
            studies.append(_Study(study_id, patient, dataset, split, primary, posterior))
    return studies


def _draw_posterior(rng: np.random.Generator, num_slices: int, bleeding: set[int], contrast: float) -> np.ndarray:
    """(S, C) probabilities: a smooth interval of at least two slices for each class that bleeds."""
    position = np.arange(num_slices)[:, None]
    levels = np.full((num_slices, len(TASK.subtypes)), -contrast)
    for column in bleeding:
        half = rng.uniform(1.0, max(num_slices / 4, 1.5))
        centre = rng.uniform(half, max(num_slices - 1 - half, half + 0.1))
        distance = np.abs(position[:, 0] - centre)
        levels[:, column] = contrast * np.clip((half + 1 - distance) / 1.5, -1, 1)
    subtypes = expit(levels + 0.3 * rng.standard_normal(levels.shape))
    whole = np.empty((num_slices, TASK.num_classes))
    whole[:, [TASK.classes.index(name) for name in TASK.subtypes]] = subtypes
    whole[:, TASK.headline_index] = 1 - np.prod(1 - subtypes, axis=1)
    return whole


def _draw_labels(rng: np.random.Generator, posterior: np.ndarray) -> np.ndarray:
    """(S, C) of 0 and 1, drawn slice by slice; the class `any` is the maximum of the others."""
    labels = (rng.random(posterior.shape) < posterior).astype(np.int8)
    others = [i for i in range(TASK.num_classes) if i != TASK.headline_index]
    labels[:, TASK.headline_index] = labels[:, others].max(1)
    return labels


def _deal(train: list[_Study], num_folds: int) -> pd.DataFrame:
    """Folds by patient, dealt in turn along the patients sorted by what bleeds."""
    first: dict[str, int] = {}
    for study in train:
        first.setdefault(study.patient_id, study.primary)
    order = sorted(first, key=lambda patient: (first[patient], patient))
    frame = pd.DataFrame({"patient_id": order, "fold": [i % num_folds for i in range(len(order))]})
    return frame.sort_values("patient_id", ignore_index=True)[FOLDS]


def _slices_of(study: _Study, labels: np.ndarray, dealt: dict[str, int], rng: np.random.Generator) -> pd.DataFrame:
    """The rows of one study in `slices.parquet`; labels and fold are NaN where there are none."""
    index = np.arange(len(labels))
    gap_mm = 5.0 if rng.random() < 0.8 else 2.5
    prefix = f"1.2.{study.study_id.rpartition('-')[2]}." if study.dataset == "cq500" else f"{study.study_id}s"
    known = study.split == "train"
    columns = {
        "slice_id": [f"{prefix}{i}" for i in index],
        "dataset": study.dataset,
        "split": study.split,
        "study_id": study.study_id,
        "series_id": f"{study.study_id}-1",
        "patient_id": study.patient_id,
        "slice_index": index,
        "num_slices": len(index),
        "position_mm": gap_mm * index,
        "gap_mm": np.where(index < index[-1], gap_mm, np.nan),
        "rows": 512,
        "columns": 512,
        "spacing_row_mm": 0.488,
        "spacing_col_mm": 0.488,
        "pixel_format": "16,1,-1024",
        "hu_repaired": False,
        "padded": False,
        "volume": f"volumes/simulated/{study.study_id}.b2nd",
        **{name: labels[:, column] if known else np.nan for column, name in enumerate(TASK.classes)},
        "fold": dealt[study.patient_id] if known else np.nan,
    }
    return pd.DataFrame(columns)


def _study_table(studies: list[_Study], labels: dict[str, np.ndarray], missing: list[str]) -> pd.DataFrame:
    rows = []
    for study in studies:
        known = labels[study.study_id].max(0) if study.split != "test" else [pd.NA] * TASK.num_classes
        facts = (study.study_id, study.dataset, study.split, study.patient_id, len(study.posterior))
        rows.append([*facts, *known])
    rows += [[name, "cq500", "external", name, 0, *[0] * TASK.num_classes] for name in missing]
    table = conform(pd.DataFrame(rows, columns=list(studies_dtypes(TASK))), studies_dtypes(TASK))
    return table.sort_values(["dataset", "study_id"], ignore_index=True)


def _write_prepared(
    work: WorkFolder, slices: pd.DataFrame, studies: pd.DataFrame, dealt: pd.DataFrame, data: str, seed: int
) -> None:
    writer = ArtifactWriter(work.prepared, "prepared")
    writer.write_table("slices.parquet", slices)
    writer.write_table("studies.parquet", studies)
    writer.write_table("folds.csv", dealt)
    test = slices[slices.split == "test"].sort_values("slice_id")
    ids = [f"{slice_id}_{name}" for slice_id in test.slice_id for name in TASK.classes]
    writer.write_table("sample_ids.csv", pd.DataFrame({"ID": pd.Series(ids, dtype="str")}))
    cq500 = studies[(studies.dataset == "cq500") & (studies.num_slices > 0)]
    choice = pd.DataFrame({"study_id": cq500.study_id, "series_id": cq500.study_id + "-1", "series": "Plain"})
    choice = choice.assign(num_slices=cq500.num_slices, coverage_mm=100.0, gap_mm=5.0, chosen=True, reason="only one")
    writer.write_table("series_choice.csv", choice[SERIES_CHOICE])
    writer.write_table("rejected.csv", pd.DataFrame(columns=REJECTED))
    facts = {"data": data, "task": TASK.name, "num_slices": len(slices)}
    writer.commit(settings={"task": TASK.name, "seed": seed, "simulated": True}, inputs={}, facts=facts)


def _write_fold(
    work: WorkFolder, slices: pd.DataFrame, seen: np.ndarray, run: str, fold: int, data: str, seed: int
) -> None:
    """One finished fold: its three tables and everything beside them, the weights left out."""
    parts = {
        "oof": (slices.fold == fold).fillna(False).to_numpy(bool),
        "test": (slices.split == "test").to_numpy(bool),
        "cq500": (slices.dataset == "cq500").to_numpy(bool),
    }
    writer = ArtifactWriter(work.fold(run, fold), "fold")
    for name, rows in parts.items():
        table = make_predictions(slices[rows], seen[rows], TASK, fold)
        writer.write_table(f"{name}.parquet", table)
        if name == "oof":
            writer.write_array("stacks_oof.npy", stack_windows(table))
    writer.write_table("history.csv", pd.DataFrame({"epoch": [0], "loss": [0.5], "seconds": [1.0]}))
    writer.write_bytes("config.yaml", f"seed: {seed}\n".encode())
    writer.write_bytes("model.json", encode_json({"backbone": "simulated", "task": TASK.name}))
    digests = {
        "train_slices": digest_table(slices[slices.split == "train"].sort_values(KEY)),
        "test_slices": digest_table(slices[slices.split == "test"].sort_values(KEY)),
        "cq500_slices": digest_table(slices[slices.dataset == "cq500"].sort_values(KEY)),
    }
    facts = {"run": run, "fold": fold, "data": data, "num_slices": int(parts["oof"].sum()), "task": TASK.name}
    facts["initial_weights"] = "simulated"
    writer.commit(settings={"seed": seed, "run": run, "backbone": "simulated"}, inputs=digests, facts=facts)


def rewrite_fold(folder: Path, arrays: dict[str, np.ndarray], **facts: object) -> None:
    """Puts arrays and facts into a finished fold, manifest included."""
    old = read_manifest(folder)
    contents = {name: (folder / name).read_bytes() for name in old.files}
    writer = ArtifactWriter(folder, "fold")
    for name, data in contents.items():
        writer.write_bytes(name, data)
    for name, array in arrays.items():
        writer.write_array(name, array)
    writer.commit(settings=old.settings, inputs=old.inputs, facts={**old.facts, **facts})


def draw_rotation(seed: int, *place: str | int, size: int) -> np.ndarray:
    """(size, size) float64 orthogonal matrix."""
    return np.linalg.qr(make_generator(seed, "rotation", *place).standard_normal((size, size)))[0]


def _draw_latent(rng: np.random.Generator, posterior: np.ndarray, size: int) -> np.ndarray:
    """(N, size) float64: what a network could see that its descriptors no longer show."""
    latent = rng.standard_normal((len(posterior), size))
    kept = min(size, len(TASK.subtypes))
    latent[:, :kept] = logit(posterior[:, :kept]) + 0.3 * latent[:, :kept]
    return latent


def _write_embeddings(work: WorkFolder, slices: pd.DataFrame, latent: np.ndarray, run: str, fold: int) -> None:
    parts = {
        "oof": (slices.fold == fold).fillna(False).to_numpy(bool),
        "test": (slices.split == "test").to_numpy(bool),
        "cq500": (slices.dataset == "cq500").to_numpy(bool),
    }
    turned = latent @ draw_rotation(0, run, fold, size=latent.shape[1])
    arrays = {}
    for name, rows in parts.items():
        order = slices[rows].reset_index(drop=True).sort_values(KEY).index
        arrays[f"embeddings_{name}.npy"] = turned[rows][order].astype(np.float16)
    rewrite_fold(work.fold(run, fold), arrays)
