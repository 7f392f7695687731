"""Probabilities as log odds and back, in float64."""

import numpy as np


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Log odds of probabilities strictly inside (0, 1), float64.

    Example:
        >>> float(to_logits(np.array(0.5)))
        0.0
    """
    probabilities = np.asarray(probabilities, np.float64)
    logits: np.ndarray = np.log(probabilities) - np.log1p(-probabilities)
    return logits


def to_probabilities(logits: np.ndarray) -> np.ndarray:
    """The sigmoid in float64, without overflow at either end.

    Example:
        >>> to_probabilities(np.array([-800.0, 0.0, 800.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    probabilities: np.ndarray = np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))
    return probabilities
