"""Work folders with prepared tables and finished runs, without pixels or networks: simulated descriptors.

For tests, benchmarks and whoever writes a stacker. In each study some classes bleed over an interval of slices. The
level of a class, the logit of its label's probability, rises and falls along the axis, and labels are drawn from it
slice by slice. A network sees the levels through noise, so neighbouring slices carry information that the slice's own
descriptor lacks.

`make_work` draws few studies, with the errors that are asked for. `make_competition` draws as many as RSNA 2019 had,
with a base and a gain of stacking as published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from ichkit.core.roles import LOCKED
from ichkit.core.seeding import make_generator
from ichkit.core.tasks import find_task
from ichkit.stacking.calibration import fit_calibration
from ichkit.stacking.neighbours import neighbour_stacks
from ichkit.validation.folds import assign_folds, tally_studies
from ichkit.work.artifacts import ArtifactWriter, digest_table, encode_json
from ichkit.work.folder import WorkFolder
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
_SUBTYPES = [TASK.classes.index(name) for name in TASK.subtypes]

COMPETITION_STUDIES, COMPETITION_SLICES, COMPETITION_PATIENTS = 21_744, 752_803, 18_938
COMPETITION_RUN = "simulated"
_TEST_STUDIES, _CQ500_STUDIES, _NUM_FOLDS = 3_502, 491, 5
# Share of positive slices by class in RSNA 2019: epidural .004, intraparenchymal .048, intraventricular .035,
# subarachnoid .048, subdural .063, any .144; 40.8 % of the studies are positive.
_POSITIVE_STUDIES = 0.46  # some are drawn without a class
_CLASS_SHARES = np.array([0.04, 0.41, 0.31, 0.41, 0.54])  # of the positive studies
_SPAN = (0.10, 0.54)  # share of a study's slices that a class covers, lowest and highest
_RAMP = 2.5  # slices over which a level rises
_QUIET_LEVEL, _RISE = -9.0, 12.5  # outside a bleed, and how much higher inside: these two give the labels
_LOOKALIKES = 0.4  # share of the studies in which a class is seen that is not there
# Mean and standard deviation of the rise that a network sees; gives a base loss of about 0.065.
_SEEN_RISE, _LOOKALIKE_RISE = (10.6, 2.7), (5.5, 2.7)
_NOISE_STD = 0.8
_READERS_DIFFER = 0.2


@dataclass(frozen=True)
class _Study:
    """One simulated study.

    Attributes:
        primary: number of the subtype that it was drawn for, -1 for none.
        posterior: (S, C) probabilities of its labels.
        seen: (S, C) logits that a network sees before noise.
    """

    study_id: str
    patient_id: str
    dataset: str
    split: str
    primary: int
    posterior: np.ndarray
    seen: np.ndarray


def make_work(
    root: Path,
    *,
    num_patients: int = 40,
    slices_per_study: tuple[int, int] = (8, 14),
    folds: tuple[int, ...] = (0, 1, 2, 3, 4),
    runs: tuple[str, ...] = ("base",),
    test_studies: int = 8,
    cq500_studies: int = 12,
    locked_studies: int = 0,
    seed: int = 0,
    num_folds: int = 5,
    positive_rate: float = 0.6,
    noise: float = 1.5,
    shared_noise: float = 0.5,
    slope: float = 1.0,
    offset: float = 0.0,
    contrast: float = 5.0,
    mistakes: float = 0.0,
    fold_spread: float = 0.0,
    data: str = "phantom",
    cq500_missing: int = 0,
    embedding_size: int = 0,
) -> WorkFolder:
    """Writes `prepared/` (tables only) and the finished folds of each run; returns the work folder.

    Args:
        num_patients: training patients; every eighth has two studies.
        slices_per_study: least and most slices of a study, both included.
        folds: the finished folds of every run, out of `num_folds`.
        locked_studies: studies of patients that nothing is fitted on, as `prepare --lock` takes them out.
        positive_rate: share of studies that bleed.
        noise: standard deviation of the noise on a descriptor's logit. With 0, and the other errors at their defaults,
            descriptors are the true posteriors, and a second stage can gain on them only by chance.
        shared_noise: share of the noise's variance that all runs and folds have in common.
        slope: what the true logit is multiplied by before the noise; above 1 a run is overconfident.
        offset: what is added to it then; below 0 a run says too little.
        contrast: height of a bleed in logits above and below even odds; large values make labels certain.
        mistakes: in this share of the studies a network underestimates a bleed along its whole length, and in a third
            of it sees a bleed of a class that is not there, as real networks do.
        fold_spread: the network of each fold has its own calibration, class by class: standard deviation of the log of
            its slope, and of half its offset.
        cq500_missing: CQ500 studies that have labels and no slices.
        embedding_size: columns of the embeddings beside the descriptors, none at 0: the true logits of the subtypes and
            noise, turned by a rotation of each fold's own.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     work = make_work(Path(folder) / "work", num_patients=10)
        ...     sorted(path.name for path in work.runs.iterdir())
        ['base']
    """
    work = WorkFolder(root)
    rng = make_generator(seed, "simulated")
    shape = (slices_per_study, positive_rate, contrast)
    train = _draw_studies(rng, [f"ID_p{i:06x}" for i in range(num_patients)], "rsna", "train", *shape)
    test = _draw_studies(rng, [f"ID_q{i:06x}" for i in range(test_studies)], "rsna", "test", *shape)
    external = _draw_studies(rng, [f"CQ500-CT-{i}" for i in range(cq500_studies)], "cq500", "external", *shape)
    locked = _draw_studies(rng, [f"ID_r{i:06x}" for i in range(locked_studies)], LOCKED, "external", *shape)
    studies = sorted([*train, *test, *external, *locked], key=lambda study: (study.dataset, study.study_id))
    posterior = np.concatenate([study.posterior for study in studies])
    labels = _draw_labels(rng, posterior)
    slices = _make_slices(studies, labels, _deal(train, num_folds), rng)
    missing = [f"CQ500-CT-{cq500_studies + i}" for i in range(cq500_missing)]
    _write_prepared(work, slices, _study_table(slices, labels, missing), _deal(train, num_folds), data)
    common = rng.standard_normal(posterior.shape)
    latent = _draw_latent(make_generator(seed, "simulated latent"), posterior, embedding_size)
    wrong = _draw_mistakes(make_generator(seed, "simulated mistakes"), studies, contrast, mistakes)
    for run in runs:
        for fold in folds:
            own = make_generator(seed, "simulated", run, fold).standard_normal(posterior.shape)
            mixed = np.sqrt(shared_noise) * common + np.sqrt(1 - shared_noise) * own
            spread = fold_spread * make_generator(seed, "simulated spread", run, fold).standard_normal(
                (2, TASK.num_classes)
            )
            is_exact = (noise, slope, offset, mistakes, fold_spread) == (0, 1, 0, 0, 0)
            logits = np.exp(spread[0]) * (slope * wrong + offset + noise * mixed) + 2 * spread[1]
            seen = posterior if is_exact else expit(logits)
            _write_fold(work, slices, seen, run, fold, data, latent if embedding_size else None)
    return work


def make_competition(work: WorkFolder, num_studies: int = COMPETITION_STUDIES, seed: int = 0) -> dict[str, float]:
    """Writes `prepared/` and five finished folds of one run, of the size of RSNA 2019; returns what was drawn.

    A network underestimates some bleeds and sees some that are not there, over intervals of the same shape, which no
    second stage can tell; and it sees each slice through noise, which a second stage can average away. What it sees is
    calibrated class by class.

    Args:
        num_studies: training studies; test and CQ500 studies are in proportion.
    """
    share = num_studies / COMPETITION_STUDIES
    rng = make_generator(seed, "descriptors")
    num_patients, num_slices = round(COMPETITION_PATIENTS * share), round(COMPETITION_SLICES * share)
    owners = np.concatenate([np.arange(num_patients), rng.integers(num_patients, size=num_studies - num_patients)])
    num_test, num_cq500 = (max(1, round(count * share)) for count in (_TEST_STUDIES, _CQ500_STUDIES))
    studies = [
        *_draw_competition(rng, "rsna", "train", [f"ID_p{i:06d}" for i in owners], num_slices),
        *_draw_competition(rng, "rsna", "test", [f"ID_q{i:06d}" for i in range(num_test)]),
        *_draw_competition(rng, "cq500", "external", [f"CQ500-CT-{i:06d}" for i in range(num_cq500)]),
    ]
    studies.sort(key=lambda study: (study.dataset, study.study_id))
    labels = _draw_labels(rng, np.concatenate([study.posterior for study in studies]))
    slices = _make_slices(studies, labels, None, rng)
    is_train = (slices.split == "train").to_numpy()
    folds = assign_folds(tally_studies(slices[is_train], TASK.classes), _NUM_FOLDS, TASK.classes, seed)
    slices["fold"] = slices.patient_id.map(folds.set_index("patient_id").fold).astype(slices.fold.dtype)
    table = _study_table(slices, labels, ())
    _write_prepared(work, slices, table, folds, "phantom")
    seen = np.concatenate([study.seen for study in studies])
    for fold in range(_NUM_FOLDS):
        noisy = seen + _NOISE_STD * rng.standard_normal(seen.shape)
        calibration = fit_calibration(noisy[is_train], labels[is_train].astype(np.float64))
        _write_fold(work, slices, expit(calibration.apply(noisy)), COMPETITION_RUN, fold, "phantom", None)
    prevalence = labels[is_train].mean(axis=0)
    positive = table.loc[table.split == "train", TASK.headline_class].astype(float).mean()
    return {
        "num_studies": num_studies,
        "num_slices": int(is_train.sum()),
        **{f"prevalence_{name}": float(prevalence[c]) for c, name in enumerate(TASK.classes)},
        "positive_studies": float(positive),
    }


def draw_rotation(seed: int, *place: str | int, size: int) -> np.ndarray:
    """(size, size) float64 orthogonal matrix: how the embeddings of one fold's network are turned."""
    rotation: np.ndarray = np.linalg.qr(make_generator(seed, "rotation", *place).standard_normal((size, size)))[0]
    return rotation


def _draw_studies(
    rng: np.random.Generator,
    patients: Sequence[str],
    dataset: str,
    split: str,
    slices_per_study: tuple[int, int],
    positive_rate: float,
    contrast: float,
) -> list[_Study]:
    studies: list[_Study] = []
    for number, patient in enumerate(patients):
        for _ in range(2 if split == "train" and number % 8 == 7 else 1):
            num_slices = int(rng.integers(slices_per_study[0], slices_per_study[1] + 1))
            bleeds = int((len(studies) + 1) * positive_rate) > int(len(studies) * positive_rate)
            # Classes take turns, so that small folders hold each of them.
            primary = int(len(studies) * positive_rate) % len(TASK.subtypes) if bleeds else -1
            second = int(rng.integers(len(TASK.subtypes))) if bleeds and rng.random() < 0.4 else -1
            study_id = patient if dataset == "cq500" else f"ID_{rng.integers(16**9):09x}{len(studies):x}"
            posterior = _draw_posterior(rng, num_slices, {primary, second} - {-1}, contrast)
            studies.append(_Study(study_id, patient, dataset, split, primary, posterior, logit(posterior)))
    return studies


def _draw_posterior(rng: np.random.Generator, num_slices: int, bleeding: set[int], contrast: float) -> np.ndarray:
    """(S, C) probabilities: a smooth interval of at least two slices for each class that bleeds."""
    levels = np.full((num_slices, len(TASK.subtypes)), -contrast)
    for column in bleeding:
        levels[:, column] = contrast * (2 * _draw_interval(rng, num_slices) - 1)
    probabilities: np.ndarray = expit(_with_headline(levels + 0.3 * rng.standard_normal(levels.shape)))
    return probabilities


def _draw_interval(rng: np.random.Generator, num_slices: int) -> np.ndarray:
    """(S,) in [0, 1]: 1 inside an interval of at least two slices, falling to 0 within a slice and a half."""
    half = rng.uniform(1.0, max(num_slices / 4, 1.5))
    centre = rng.uniform(half, max(num_slices - 1 - half, half + 0.1))
    distance = np.abs(np.arange(num_slices) - centre)
    depth: np.ndarray = (np.clip((half + 1 - distance) / 1.5, -1, 1) + 1) / 2
    return depth


def _with_headline(levels: np.ndarray) -> np.ndarray:
    """(S, C) levels of all classes from those of the subtypes, which are independent of each other given everything."""
    whole = np.empty((len(levels), TASK.num_classes))
    whole[:, _SUBTYPES] = levels
    whole[:, TASK.headline_index] = logit(1 - np.prod(1 - expit(levels), axis=1))
    return whole


def _draw_mistakes(rng: np.random.Generator, studies: Sequence[_Study], contrast: float, mistakes: float) -> np.ndarray:
    """(N, C) levels of all studies as a network sees them: bleeds underestimated, and others where there are none."""
    seen = []
    for study in studies:
        levels = study.seen[:, _SUBTYPES].copy()
        for column in range(levels.shape[1]):
            bleeds = bool((levels[:, column] > 0).any())
            if bleeds and rng.random() < mistakes:
                levels[:, column] = (levels[:, column] + contrast) * rng.uniform(0.2, 0.9) - contrast
            elif not bleeds and rng.random() < mistakes / 3:
                levels[:, column] += contrast * rng.uniform(0.5, 1.75) * _draw_interval(rng, len(levels))
        seen.append(_with_headline(levels) if mistakes else study.seen)
    return np.concatenate(seen)


def _draw_competition(
    rng: np.random.Generator, dataset: str, split: str, patients: Sequence[str], num_slices: int | None = None
) -> list[_Study]:
    """One study per entry of `patients`, of 20 to 60 slices; with `num_slices` their sum is exactly that."""
    mean = COMPETITION_SLICES / COMPETITION_STUDIES
    lengths = np.clip(rng.normal(mean, 6, len(patients)).round().astype(int), 20, 60)
    while num_slices is not None and (short := num_slices - lengths.sum()):
        movable = np.flatnonzero((lengths + np.sign(short) >= 20) & (lengths + np.sign(short) <= 60))
        lengths[rng.choice(movable, min(abs(short), len(movable)), replace=False)] += np.sign(short)
    studies = []
    for number, (patient, length) in enumerate(zip(patients, lengths, strict=True)):
        levels, seen = _draw_levels(rng, length)
        study_id = patient if dataset == "cq500" else f"ID_{split[:2]}{number:06d}"
        studies.append(_Study(study_id, patient, dataset, split, -1, expit(levels), seen))
    return studies


def _draw_levels(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(length, C) levels of one study and (length, C) levels as they are seen, before the noise of slices."""
    bleeds = (rng.random(len(_CLASS_SHARES)) < _CLASS_SHARES) & (rng.random() < _POSITIVE_STUDIES)
    resembles = rng.random(len(_CLASS_SHARES)) < _LOOKALIKES * _CLASS_SHARES
    levels, seen = np.full((2, length, len(_CLASS_SHARES)), _QUIET_LEVEL)
    centre = rng.uniform(0.3, 0.75)  # what bleeds together lies together
    for column in np.flatnonzero(bleeds | resembles):
        middle, half = (centre + 0.08 * rng.standard_normal()) * length, rng.uniform(*_SPAN) * length / 2
        depth = (np.clip((half - np.abs(np.arange(length) - middle)) / _RAMP, -1, 1) + 1) / 2
        levels[:, column] += bleeds[column] * _RISE * depth
        seen[:, column] += rng.normal(*(_SEEN_RISE if bleeds[column] else _LOOKALIKE_RISE)) * depth
    return _with_headline(levels), _with_headline(seen)


def _draw_labels(rng: np.random.Generator, posterior: np.ndarray) -> np.ndarray:
    """(N, C) of 0 and 1, drawn slice by slice; the class `any` is the maximum of the others."""
    labels = (rng.random(posterior.shape) < posterior).astype(np.int8)
    labels[:, TASK.headline_index] = labels[:, _SUBTYPES].max(axis=1)
    return labels


def _deal(train: Sequence[_Study], num_folds: int) -> pd.DataFrame:
    """Folds by patient, assigned in turn to the patients sorted by their subtypes."""
    first: dict[str, int] = {}
    for study in train:
        first.setdefault(study.patient_id, study.primary)
    order = sorted(first, key=lambda patient: (first[patient], patient))
    frame = pd.DataFrame({"patient_id": order, "fold": [i % num_folds for i in range(len(order))]})
    return frame.sort_values("patient_id", ignore_index=True)[FOLDS]


def _make_slices(
    studies: Sequence[_Study], labels: np.ndarray, dealt: pd.DataFrame | None, rng: np.random.Generator
) -> pd.DataFrame:
    """`slices.parquet` of studies sorted by dataset and study_id; folds and labels are missing outside training."""
    lengths = np.array([len(study.posterior) for study in studies])
    index = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    of_study = pd.DataFrame(
        {
            "dataset": [study.dataset for study in studies],
            "split": [study.split for study in studies],
            "study_id": [study.study_id for study in studies],
            "patient_id": [study.patient_id for study in studies],
            "num_slices": lengths,
            "gap_mm": np.where(rng.random(len(studies)) < 0.8, 5.0, 2.5),
            "prefix": [
                f"1.2.{study.study_id.rpartition('-')[2]}." if study.dataset == "cq500" else f"{study.study_id}s"
                for study in studies
            ],
        }
    )
    slices = of_study.loc[np.repeat(np.arange(len(studies)), lengths)].reset_index(drop=True)
    is_train = slices.split == "train"
    known = is_train | (slices.dataset == LOCKED)
    fold = np.nan if dealt is None else slices.patient_id.map(dealt.set_index("patient_id").fold).where(is_train)
    slices = slices.assign(
        slice_id=slices.prefix + pd.Series(index).astype(str),
        series_id=slices.study_id + "-1",
        slice_index=index,
        position_mm=slices.gap_mm * index,
        gap_mm=slices.gap_mm.where(index < slices.num_slices - 1),
        rows=512,
        columns=512,
        spacing_row_mm=0.488,
        spacing_col_mm=0.488,
        pixel_format="16,1,-1024",
        hu_repaired=False,
        padded=False,
        volume="volumes/simulated/" + slices.study_id + ".b2nd",
        fold=fold,
        **{name: np.where(known, labels[:, column], np.nan) for column, name in enumerate(TASK.classes)},
    )
    return conform(slices, slices_dtypes(TASK))


def _study_table(slices: pd.DataFrame, labels: np.ndarray, missing: Sequence[str]) -> pd.DataFrame:
    """`studies.parquet`: the maxima of the slices' labels, unknown for the test split; `missing` have no slices."""
    keys = ["study_id", "dataset", "split", "patient_id", "num_slices"]
    known = slices[keys].assign(**dict(zip(TASK.classes, labels.T, strict=True)))
    table = known.groupby(keys, sort=False)[list(TASK.classes)].max().reset_index().astype({"num_slices": int})
    for name in TASK.classes:
        table[name] = table[name].astype(float).where(table.split != "test")
    none = dict.fromkeys(TASK.classes, 0.0)
    empty = [{"study_id": name, "dataset": "cq500", "split": "external", "patient_id": name} for name in missing]
    table = pd.concat([table, pd.DataFrame([row | {"num_slices": 0} | none for row in empty])])
    return conform(table, studies_dtypes(TASK)).sort_values(["dataset", "study_id"], ignore_index=True)


def _write_prepared(
    work: WorkFolder, slices: pd.DataFrame, studies: pd.DataFrame, dealt: pd.DataFrame, data: str
) -> None:
    writer = ArtifactWriter(work.prepared, "prepared")
    writer.write_table("slices.parquet", slices)
    writer.write_table("studies.parquet", studies)
    writer.write_table("folds.csv", dealt)
    test = slices.slice_id[slices.split == "test"].sort_values()
    ids = [f"{slice_id}_{name}" for slice_id in test for name in TASK.classes]
    writer.write_table("sample_ids.csv", pd.DataFrame({"ID": pd.Series(ids, dtype="str")}))
    cq500 = studies[(studies.dataset == "cq500") & (studies.num_slices > 0)]
    choice = pd.DataFrame({"study_id": cq500.study_id, "series_id": cq500.study_id + "-1", "series": "Plain"})
    choice = choice.assign(num_slices=cq500.num_slices, coverage_mm=100.0, gap_mm=5.0, chosen=True, reason="only one")
    writer.write_table("series_choice.csv", choice[SERIES_CHOICE])
    writer.write_table("cq500_reads.csv", _draw_reads(studies[studies.dataset == "cq500"]))
    writer.write_table("rejected.csv", pd.DataFrame(columns=REJECTED))
    facts = {"data": data, "task": TASK.name, "num_slices": len(slices)}
    writer.commit(settings={"task": TASK.name, "simulated": True}, inputs={}, facts=facts)


def _draw_reads(studies: pd.DataFrame) -> pd.DataFrame:
    """study_id, reader and labels: three readers, of whom one in each study and class is wrong now and then."""
    rng = make_generator(len(studies), "simulated reads")
    labels = studies[list(TASK.classes)].to_numpy(np.int64, na_value=0)
    wrong = np.where(rng.random(labels.shape) < _READERS_DIFFER, rng.integers(1, 4, labels.shape), 0)
    parts = []
    for reader in (1, 2, 3):
        own = pd.DataFrame(labels ^ (wrong == reader), columns=list(TASK.classes)).astype("int8")
        own.insert(0, "study_id", studies.study_id.to_numpy())
        own.insert(1, "reader", reader)
        parts.append(own)
    return pd.concat(parts).sort_values(["study_id", "reader"], ignore_index=True)


def _write_fold(
    work: WorkFolder,
    slices: pd.DataFrame,
    seen: np.ndarray,
    run: str,
    fold: int,
    data: str,
    latent: np.ndarray | None,
) -> None:
    """One finished fold: its three tables and everything beside them except the weights."""
    parts = {
        "oof": (slices.fold == fold).fillna(False).to_numpy(bool),
        "test": (slices.split == "test").to_numpy(bool),
        "cq500": (slices.dataset == "cq500").to_numpy(bool),
    }
    if (slices.dataset == LOCKED).any():
        parts[LOCKED] = (slices.dataset == LOCKED).to_numpy(bool)
    writer = ArtifactWriter(work.fold(run, fold), "fold")
    for name, rows in parts.items():
        table = make_predictions(slices[rows], seen[rows], TASK, fold)
        writer.write_table(f"{name}.parquet", table)
        if name == "oof":
            codes, _ = pd.factorize(table.study_id)
            descriptors = table[TASK.probability_columns].to_numpy(np.float32)
            writer.write_array("stacks_oof.npy", neighbour_stacks(descriptors, codes.astype(np.int64)))
        if latent is not None:
            order = slices[rows].reset_index(drop=True).sort_values(KEY).index
            turned = latent[rows] @ draw_rotation(0, run, fold, size=latent.shape[1])
            writer.write_array(f"embeddings_{name}.npy", turned[order].astype(np.float16))
    writer.write_table("history.csv", pd.DataFrame({"epoch": [0], "loss": [0.5], "seconds": [1.0]}))
    writer.write_bytes("config.yaml", b"seed: 0\n")
    writer.write_bytes("model.json", encode_json({"backbone": "simulated", "task": TASK.name}))
    digests = {
        "train_slices": digest_table(slices[slices.split == "train"].sort_values(KEY)),
        "test_slices": digest_table(slices[slices.split == "test"].sort_values(KEY)),
        "cq500_slices": digest_table(slices[slices.dataset == "cq500"].sort_values(KEY)),
    }
    facts = {"run": run, "fold": fold, "data": data, "num_slices": int(parts["oof"].sum()), "task": TASK.name}
    facts["initial_weights"] = "simulated"
    writer.commit(settings={"run": run, "backbone": "simulated"}, inputs=digests, facts=facts)


def _draw_latent(rng: np.random.Generator, posterior: np.ndarray, size: int) -> np.ndarray:
    """(N, size) float64: latent features of a network that its descriptors do not contain."""
    latent = rng.standard_normal((len(posterior), size))
    kept = min(size, len(TASK.subtypes))
    latent[:, :kept] = logit(posterior[:, :kept]) + 0.3 * latent[:, :kept]
    return latent
