"""Sums of boosted trees, read from LightGBM's text and evaluated by numba, without LightGBM.

LightGBM and torch each load an OpenMP library, which conflict in one process on some systems: boosters are trained in
their own process, and predictions only need the text.
"""

from dataclasses import dataclass

import numba
import numpy as np

from ichkit.core.errors import ArtifactError

_VERSION = "v4"
_NODE_LINES = ("threshold", "split_feature", "decision_type", "left_child", "right_child", "split_gain")
_CATEGORICAL, _DEFAULT_LEFT, _MISSING_SHIFT, _MISSING_NAN = 1, 2, 2, 2


@dataclass(frozen=True)
class Trees:
    """The trees of one booster, their nodes and leaves in one row each.

    Attributes:
        node_start: (T + 1,) int64, the first node of each tree.
        leaf_start: (T + 1,) int64, the first leaf of each tree.
        feature: (nodes,) int64, the column of a node.
        threshold: (nodes,) float64; values up to it go left.
        goes_left_missing: (nodes,) bool, whether NaN goes left.
        left, right: (nodes,) int64, the next node of the tree, or ~leaf.
        leaf_value: (leaves,) float64, including the learning rate.
        gain: (nodes,) float64, the gain in training loss by each split.
    """

    node_start: np.ndarray
    leaf_start: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    goes_left_missing: np.ndarray
    left: np.ndarray
    right: np.ndarray
    leaf_value: np.ndarray
    gain: np.ndarray

    @property
    def num_trees(self) -> int:
        """Number of trees."""
        return len(self.node_start) - 1

    def predict(self, features: np.ndarray, num_trees: int | None = None) -> np.ndarray:
        """(N,) float64 sum of the first `num_trees` trees (default all) at each row of (N, F) float32 features."""
        if len(self.feature) and self.feature.max() >= features.shape[1]:
            raise ArtifactError(f"boosters: expected at most {features.shape[1]} features, found a split on another.")
        totals = np.zeros(len(features), np.float64)
        _sum_trees(
            np.ascontiguousarray(features, np.float32),
            self.num_trees if num_trees is None else min(num_trees, self.num_trees),
            self.node_start,
            self.leaf_start,
            self.feature,
            self.threshold,
            self.goes_left_missing,
            self.left,
            self.right,
            self.leaf_value,
            totals,
        )
        return totals

    def gains(self, num_features: int) -> np.ndarray:
        """(F,) float64 total gain of the splits on each column."""
        return np.bincount(self.feature, weights=self.gain, minlength=num_features)


def read_trees(text: str, where: str) -> Trees:
    """The trees of a LightGBM model text with one output and numeric features.

    Args:
        where: the file, for the message.

    Raises:
        ArtifactError: another version of the format, categorical splits, or truncated text.

    Source: LightGBM 4, `src/io/tree.cpp` (Tree::ToString, decision_type bits: 1 categorical, 2 default left, then two
        bits for missing values: 0 none, 1 zero, 2 NaN).
    """
    head, *blocks = text.split("\nTree=")
    fields = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
    if fields.get("version") != _VERSION or "end of trees" not in text:
        raise ArtifactError(
            f"{where}: expected LightGBM text of version {_VERSION} with its end, found version "
            f'"{fields.get("version", "")}". Run `ichkit stack` again.'
        )
    trees = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    kinds = np.concatenate([_numbers(tree, "decision_type", np.int64) for tree in trees] or [np.empty(0, np.int64)])
    missing = kinds >> _MISSING_SHIFT
    if (kinds & _CATEGORICAL).any() or not np.isin(missing, (0, _MISSING_NAN)).all():
        raise ArtifactError(f"{where}: expected numeric splits with NaN as missing. Run `ichkit stack` again.")

    def joined(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([_numbers(tree, name, dtype) for tree in trees] or [np.empty(0, dtype)])

    def starts(name: str) -> np.ndarray:
        return np.cumsum([0, *(len(_numbers(tree, name, np.float64)) for tree in trees)])

    for tree in trees:
        _check_structure(tree, where)
    threshold = joined("threshold", np.float64)
    return Trees(
        node_start=starts("threshold"),
        leaf_start=starts("leaf_value"),
        feature=joined("split_feature", np.int64),
        threshold=threshold,
        # A feature without missing values in training has kind 0: LightGBM then treats NaN as zero.
        goes_left_missing=np.where(missing == _MISSING_NAN, (kinds & _DEFAULT_LEFT) > 0, threshold >= 0),
        left=joined("left_child", np.int64),
        right=joined("right_child", np.int64),
        leaf_value=joined("leaf_value", np.float64),
        gain=joined("split_gain", np.float64),
    )


def _check_structure(tree: dict[str, str], where: str) -> None:
    """Checks that the nodes of a tree stay within its arrays and form no circle: compiled code does not check bounds.

    Raises:
        ArtifactError: inconsistent lengths, or a child that is neither a later node nor a leaf.

    Source: LightGBM 4, `src/io/tree.cpp`, Tree::Split: a node gets a higher number than its parent.
    """
    lengths = {name: len(tree.get(name, "").split()) for name in _NODE_LINES}
    num_nodes, num_leaves = lengths["threshold"], len(tree.get("leaf_value", "").split())
    is_whole = set(lengths.values()) == {num_nodes} and num_leaves == num_nodes + 1
    if is_whole:
        children = np.stack([_numbers(tree, name, np.int64) for name in ("left_child", "right_child")])
        are_nodes = (children > np.arange(num_nodes)) & (children < num_nodes)
        are_leaves = (~children >= 0) & (~children < num_leaves)
        is_whole = bool((are_nodes | are_leaves).all() and (_numbers(tree, "split_feature", np.int64) >= 0).all())
    if not is_whole:
        raise ArtifactError(f"{where}: a tree is not one that LightGBM wrote. Run `ichkit stack` again.")


def _numbers(tree: dict[str, str], name: str, dtype: type) -> np.ndarray:
    """A line of numbers; a tree of one leaf has no lines about nodes."""
    return np.array(tree.get(name, "").split(), dtype)


@numba.njit(cache=True)
def _sum_trees(
    features: np.ndarray,
    num_trees: int,
    node_start: np.ndarray,
    leaf_start: np.ndarray,
    feature: np.ndarray,
    threshold: np.ndarray,
    goes_left_missing: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    leaf_value: np.ndarray,
    totals: np.ndarray,
) -> None:
    """Adds the leaf values of each row of features to (N,) totals, tree after tree."""
    for row in range(len(features)):
        for tree in range(num_trees):
            first = node_start[tree]
            node = 0 if node_start[tree + 1] > first else ~0
            while node >= 0:
                at = first + node
                value = features[row, feature[at]]
                goes_left = goes_left_missing[at] if np.isnan(value) else value <= threshold[at]
                node = left[at] if goes_left else right[at]
            totals[row] += leaf_value[leaf_start[tree] + ~node]
