"""Penultimate-layer embeddings of the fold networks, aligned to one space.

The networks of different folds are trained on different patients, so their feature spaces differ by a rotation even
with the same initial weights. It is estimated on slices without labels, which have embeddings from every network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError
from ichkit.core.roles import OUT_OF_FOLD
from ichkit.core.stack_config import EmbeddingsConfig
from ichkit.work.artifacts import check_digests, read_manifest
from ichkit.work.folder import WorkFolder

TRAINED_BY = "ichkit train --embeddings"
INITIAL_WEIGHTS = "initial_weights"
_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class Projection:
    """The projection of one network's features to the shared space.

    Attributes:
        matrix: (F, E) float32: a rotation, then the first E principal components of the reference network.
        offset: (E,) float32.
    """

    matrix: np.ndarray
    offset: np.ndarray

    def apply(self, features: np.ndarray) -> np.ndarray:
        """(N, E) float32 of (N, F) float16, block by block, so that a file is never loaded completely."""
        projected = np.empty((len(features), len(self.offset)), np.float32)
        for first in range(0, len(features), _BLOCK_ROWS):
            block = slice(first, first + _BLOCK_ROWS)
            projected[block] = np.asarray(features[block], np.float32) @ self.matrix + self.offset
        return projected

    def as_array(self) -> np.ndarray:
        """(F + 1, E) float32: the matrix, then the offset, as stored."""
        return np.concatenate([self.matrix, self.offset[None]])

    @classmethod
    def of_array(cls, array: np.ndarray) -> "Projection":
        """The projection that `as_array` wrote."""
        return cls(array[:-1], array[-1])


@dataclass(frozen=True)
class Anchored:
    """The embeddings of one run with their projections to the shared space.

    Attributes:
        features: split, then fold, to (N, F) float16, rows as in that table; memory-mapped.
        projections: by fold.
        digests: name to SHA-256 of each file.
    """

    features: Mapping[str, Mapping[int, np.ndarray]]
    projections: Mapping[int, Projection]
    digests: Mapping[str, str]

    def project(self, split: str, fold: int) -> np.ndarray:
        """(N, E) float32 embeddings of the rows of one table."""
        return self.projections[fold].apply(self.features[split][fold])


def embeddings_name(split: str) -> str:
    """The file with the embeddings of "oof", "test" or an external set in the folder of a fold."""
    return f"embeddings_{split}.npy"


def read_embeddings(
    work: WorkFolder,
    run: str,
    folds: Sequence[int],
    tables: Mapping[str, Mapping[int, pd.DataFrame]],
    config: EmbeddingsConfig,
) -> Anchored:
    """The embeddings of a run's folds, checked and aligned.

    Args:
        tables: split, then fold, to the predictions table with the same rows.

    Raises:
        ArtifactError: a fold has none or they do not fit its table, its initial weights differ from those of the other
            folds, or there are too few slices without labels for the alignment.
    """
    manifests = {fold: read_manifest(work.fold(run, fold)) for fold in folds}
    starts = {fold: manifest.facts.get(INITIAL_WEIGHTS) for fold, manifest in manifests.items()}
    if None in starts.values() or len(set(starts.values())) > 1:
        raise ArtifactError(
            f"embeddings: expected all folds of run {run} to have started from the same weights, found "
            f"{', '.join(f'fold {fold}: {start or chr(63)}' for fold, start in starts.items())}; their spaces cannot "
            f"be aligned. Train them with one seed and version: `{TRAINED_BY} --run {run} --fresh` with its -c."
        )
    features: dict[str, dict[int, np.ndarray]] = {split: {} for split in tables}
    digests = {}
    for fold in folds:
        for split in tables:
            path = work.fold(run, fold) / embeddings_name(split)
            features[split][fold] = open_embeddings(path, len(tables[split][fold]))
            check_digests(path.parent, manifests[fold], [path.name])
            digests[f"{run}/fold{fold}/{path.name}"] = manifests[fold].sha256_of(path.name)
    if len({values.shape[1] for of_fold in features.values() for values in of_fold.values()}) > 1:
        raise ArtifactError(f"embeddings: the folds of run {run} differ in size. Train them again with `{TRAINED_BY}`.")
    return Anchored(features, fit_projections(_choose_anchors(features, run), config), digests)


def fit_projections(anchors: Mapping[int, np.ndarray], config: EmbeddingsConfig) -> dict[int, Projection]:
    """For each fold the rotation to the space of the first fold, followed by the principal components of that space.

    Args:
        anchors: fold to (A, F) features of the same slices, none of them labelled.

    Source: Schönemann 1966 (orthogonal Procrustes); principal components of the first fold's anchors, chosen here,
        because thousands of columns would not fit in memory.
    """
    first = next(iter(anchors))
    rows = np.unique(np.linspace(0, len(anchors[first]) - 1, config.max_anchors).round().astype(np.int64))
    reference = np.asarray(anchors[first][rows], np.float64)
    centre = reference.mean(axis=0)
    _, variances, directions = np.linalg.svd(np.cov(reference.T), hermitian=True)
    kept = directions[: min(config.size, int((variances > 0).sum()))].T  # (F, E)
    projections = {}
    for fold, features in anchors.items():
        own = np.asarray(features[rows], np.float64)
        own_centre = own.mean(axis=0)
        left, _, right = np.linalg.svd((own - own_centre).T @ (reference - centre))
        rotation = np.eye(len(centre)) if fold == first else left @ right
        matrix = rotation @ kept
        projections[fold] = Projection(matrix.astype(np.float32), (-own_centre @ matrix).astype(np.float32))
    return projections


def open_embeddings(path: Path, num_rows: int) -> np.ndarray:
    """(num_rows, F) float16 embeddings of one table, mapped into memory.

    Raises:
        ArtifactError: the file cannot be read or has other rows than its table.
    """
    try:
        values: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: expected embeddings, cannot read them ({error}). Create them with "
            f"`{TRAINED_BY}`: finished folds keep their weights."
        ) from error
    if values.ndim != 2 or len(values) != num_rows:
        raise ArtifactError(
            f"{path}: expected {num_rows} rows as in its table, found shape {values.shape}. Run `{TRAINED_BY}` again."
        )
    return values


def _choose_anchors(features: Mapping[str, Mapping[int, np.ndarray]], run: str) -> Mapping[int, np.ndarray]:
    """The slices for the alignment, which no model is trained on: the test split, else an external set."""
    unseen = [split for split in features if split != OUT_OF_FOLD]
    for split in unseen:
        num_rows, size = next(iter(features[split].values())).shape
        if num_rows > size:
            return features[split]
    found = ", ".join(f"{len(next(iter(features[split].values())))} of {split}" for split in unseen)
    raise ArtifactError(
        f"embeddings: expected more than {size} slices without labels to align the folds of run {run}, found "
        f"{found}. Prepare more test or external studies, or switch off stack.embeddings.enabled."
    )
