"""A work folder of the competition's size, made in half a minute: descriptors with a law, no pixels.

In a bleeding study the level of each class, the logit of its label's probability, rises and falls over an interval of
slices; labels are drawn from it slice by slice. A network takes some bleeds for less than they are and sees some where
none is, over intervals of the same shape, which no second stage can tell; and it sees each slice through noise, which
a second stage can average away. What it sees is calibrated class by class.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from ichkit.core.seeding import make_generator
from ichkit.core.tasks import find_task
from ichkit.stacking.calibration import fit_calibration
from ichkit.validation.folds import assign_folds, tally_studies
from ichkit.work.artifacts import ArtifactWriter, digest_table, encode_json
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import KEY, REJECTED, SERIES_CHOICE, conform, make_predictions, slices_dtypes, studies_dtypes

TASK = find_task("hemorrhage")
STUDIES, SLICES, PATIENTS = 21_744, 752_803, 18_938
TEST_STUDIES, CQ500_STUDIES = 3_502, 491
RUN, NUM_FOLDS = "simulated", 5
# Share of positive slices by class (FACTS of the training data): epidural .004, intraparenchymal .048,
# intraventricular .035, subarachnoid .048, subdural .063, any .144; 40.8 % of the studies are positive.
POSITIVE_STUDIES = 0.46  # some are drawn without a class
CLASS_SHARES = (0.04, 0.41, 0.31, 0.41, 0.54)  # of the positive studies
SPAN = (0.10, 0.54)  # share of a study's slices that a class covers, lowest and highest
RAMP = 2.5  # slices over which a level rises
QUIET_LEVEL, RISE = -9.0, 12.5  # outside a bleed, and how much higher inside; these two are the law of the labels
LOOKALIKES = 0.4  # share of the studies in which a class is seen that is not there
SEEN_RISE, LOOKALIKE_RISE = (10.6, 2.7), (5.5, 2.7)  # mean and standard deviation; gives a base loss of about 0.065
NOISE_STD = 0.8


@dataclass(frozen=True)
class _Split:
    """Slices of one split, their (N, C) labels, and the (N, C) levels that a network sees through noise."""

    slices: pd.DataFrame
    labels: np.ndarray
    seen: np.ndarray


def make_folder(work: WorkFolder, num_studies: int, seed: int = 0) -> dict[str, float]:
    """Writes `prepared/` and five finished folds of one run; returns what was drawn, as figures."""
    share = num_studies / STUDIES
    rng = make_generator(seed, "descriptors")
    train = _draw_split(rng, "rsna", "train", num_studies, round(SLICES * share), round(PATIENTS * share))
    test = _draw_split(rng, "rsna", "test", max(1, round(TEST_STUDIES * share)))
    cq500 = _draw_split(rng, "cq500", "external", max(1, round(CQ500_STUDIES * share)))
    folds = assign_folds(tally_studies(train.slices, TASK.classes), NUM_FOLDS, TASK.classes, seed)
    train.slices["fold"] = train.slices.patient_id.map(folds.set_index("patient_id").fold)
    _write_prepared(work, (train, test, cq500), folds)
    seen = _draw_descriptors(rng, train)
    own = train.slices.fold.to_numpy()
    for fold in range(NUM_FOLDS):
        tables = {"oof": (train.slices[own == fold], seen[own == fold], None)}
        for name, split in (("test", test), ("cq500", cq500)):
            tables[name] = (split.slices, _draw_descriptors(rng, split), fold)
        _write_fold(work, fold, tables, train)
    prevalence = train.labels.mean(axis=0)
    positive = train.slices.groupby("study_id")[TASK.headline_class].max().mean()
    return {
        "num_studies": num_studies,
        "num_slices": len(train.slices),
        **{f"prevalence_{name}": float(prevalence[c]) for c, name in enumerate(TASK.classes)},
        "positive_studies": float(positive),
    }


def _draw_split(
    rng: np.random.Generator,
    dataset: str,
    split: str,
    num_studies: int,
    num_slices: int | None = None,
    num_patients: int | None = None,
) -> _Split:
    """Studies of 20 to 60 slices, sorted by study_id; with `num_slices` their sum is exactly that."""
    lengths = np.clip(rng.normal(SLICES / STUDIES, 6, num_studies).round().astype(int), 20, 60)
    while num_slices is not None and (short := num_slices - lengths.sum()):
        movable = np.flatnonzero((lengths + np.sign(short) >= 20) & (lengths + np.sign(short) <= 60))
        lengths[rng.choice(movable, min(abs(short), len(movable)), replace=False)] += np.sign(short)
    levels, seen = (np.concatenate(parts) for parts in zip(*[_draw_levels(rng, n) for n in lengths], strict=True))
    labels = (rng.random(levels.shape) < expit(levels)).astype(np.int8)
    subtypes = [TASK.classes.index(name) for name in TASK.subtypes]
    labels[:, TASK.headline_index] = labels[:, subtypes].max(axis=1)
    study = np.repeat(np.arange(num_studies), lengths)
    index = np.arange(len(study)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    owner = np.arange(num_studies)
    if num_patients is not None:
        owner[num_patients:] = rng.integers(num_patients, size=num_studies - num_patients)
    prefix = "CQ500-CT-" if dataset == "cq500" else f"ID_{split[:2]}"
    gap_mm = rng.choice([5.0, 2.5, 4.0], p=[0.86, 0.09, 0.05], size=num_studies)[study]
    last = index == lengths[study] - 1
    names = pd.Series([f"{prefix}{i:06d}" for i in range(num_studies)], dtype="str").take(study).reset_index(drop=True)
    known = split == "train"
    slices = pd.DataFrame(
        {
            "slice_id": names + "_" + pd.Series(index, dtype="str"),
            "dataset": dataset,
            "split": split,
            "study_id": names,
            "series_id": names + "-1",
            "patient_id": pd.Series([f"{prefix}p{i:06d}" for i in owner], dtype="str").take(study).to_numpy(),
            "slice_index": index,
            "num_slices": lengths[study],
            "position_mm": gap_mm * index,
            "gap_mm": np.where(last, np.nan, gap_mm),
            "rows": 512,
            "columns": 512,
            "spacing_row_mm": 0.488,
            "spacing_col_mm": 0.488,
            "pixel_format": "16,1,-1024",
            "hu_repaired": False,
            "padded": (rng.random(num_studies) < 0.34)[study],
            "volume": "volumes/" + names + ".b2nd",
            **{name: labels[:, c] if known else np.nan for c, name in enumerate(TASK.classes)},
            "fold": np.nan,
        }
    )
    if dataset == "cq500":
        slices["patient_id"] = names
    return _Split(slices, labels, seen)


def _draw_levels(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(length, C) levels of one study and (length, C) levels as they are seen, before the noise of slices."""
    shares = np.array(CLASS_SHARES)
    bleeds = (rng.random(len(shares)) < shares) & (rng.random() < POSITIVE_STUDIES)
    resembles = rng.random(len(shares)) < LOOKALIKES * shares
    levels, seen = np.full((2, length, TASK.num_classes), QUIET_LEVEL)
    centre = rng.uniform(0.3, 0.75)  # what bleeds together lies together
    for c in np.flatnonzero(bleeds | resembles):
        middle, half = (centre + 0.08 * rng.standard_normal()) * length, rng.uniform(*SPAN) * length / 2
        depth = np.clip((half - np.abs(np.arange(length) - middle)) / RAMP, -1, 1)  # -1 far outside, 1 well inside
        column = TASK.classes.index(TASK.subtypes[c])
        levels[:, column] += bleeds[c] * RISE * (depth + 1) / 2
        seen[:, column] += rng.normal(*(SEEN_RISE if bleeds[c] else LOOKALIKE_RISE)) * (depth + 1) / 2
    subtypes = [c for c in range(TASK.num_classes) if c != TASK.headline_index]
    for of in (levels, seen):
        of[:, TASK.headline_index] = logit(1 - np.prod(1 - expit(of[:, subtypes]), axis=1))
    return levels, seen


def _draw_descriptors(rng: np.random.Generator, split: _Split) -> np.ndarray:
    """(N, C) probabilities through noise, calibrated per class on the split's own labels."""
    noisy = split.seen + NOISE_STD * rng.standard_normal(split.seen.shape)
    return expit(fit_calibration(noisy, split.labels.astype(np.float64)).apply(noisy))


def _write_prepared(work: WorkFolder, splits: tuple[_Split, ...], folds: pd.DataFrame) -> None:
    slices = conform(pd.concat([split.slices for split in splits]), slices_dtypes(TASK))
    slices = slices.sort_values(["dataset", *KEY], ignore_index=True)
    parts = [split.slices.assign(**dict(zip(TASK.classes, split.labels.T, strict=True))) for split in splits]
    keys = ["study_id", "dataset", "split", "patient_id", "num_slices"]
    studies = pd.concat(parts).groupby(keys, sort=False)[list(TASK.classes)].max().reset_index()
    studies.loc[studies.split == "test", list(TASK.classes)] = np.nan
    writer = ArtifactWriter(work.prepared, "prepared")
    writer.write_table("slices.parquet", slices)
    writer.write_table("studies.parquet", conform(studies, studies_dtypes(TASK)).sort_values(["dataset", "study_id"]))
    writer.write_table("folds.csv", folds)
    test = slices.slice_id[slices.split == "test"]
    writer.write_table("sample_ids.csv", pd.DataFrame({"ID": [f"{i}_{name}" for i in test for name in TASK.classes]}))
    writer.write_table("series_choice.csv", pd.DataFrame(columns=SERIES_CHOICE))
    writer.write_table("rejected.csv", pd.DataFrame(columns=REJECTED))
    facts = {"data": "phantom", "task": TASK.name, "num_slices": len(slices)}
    writer.commit(settings={"task": TASK.name, "simulated": True}, inputs={}, facts=facts)


def _write_fold(
    work: WorkFolder, fold: int, tables: dict[str, tuple[pd.DataFrame, np.ndarray, int | None]], train: _Split
) -> None:
    writer = ArtifactWriter(work.fold(RUN, fold), "fold")
    for name, (slices, seen, of) in tables.items():
        writer.write_table(f"{name}.parquet", make_predictions(slices, seen, TASK, of))
    writer.write_bytes("model.json", encode_json({"backbone": "simulated", "task": TASK.name}))
    facts = {"run": RUN, "fold": fold, "data": "phantom", "task": TASK.name, "num_slices": len(tables["oof"][0])}
    inputs = {"train_slices": digest_table(train.slices[["slice_id", "fold"]])}
    writer.commit(settings={"run": RUN, "backbone": "simulated"}, inputs=inputs, facts=facts)
