"""One rule for all random numbers: each generator is seeded from the run's seed and the purpose it serves."""

import hashlib

import numpy as np


def derive_seed(seed: int, *place: str | int) -> int:
    """A 63-bit seed that depends on the run's seed and every part of `place`, and on nothing else.

    Args:
        seed: the run's seed.
        place: purpose, then fold, epoch, index or anything else that distinguishes two uses.

    Source: chosen here, because hashing keeps streams independent and the same in every process and worker count.

    Example:
        >>> derive_seed(0, "augment", 1, 2) == derive_seed(0, "augment", 1, 2)
        True
    """
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def make_generator(seed: int, *place: str | int) -> np.random.Generator:
    """A NumPy generator for one use, seeded by `derive_seed`."""
    return np.random.default_rng(derive_seed(seed, *place))
