"""Text shared by the sections about study and methods: counts with their nouns, and lists."""

from collections.abc import Mapping, Sequence

_SINGULARS = {"studies": "study", "series": "series", "classes": "class"}


def say_count(number: int, plural: str) -> str:
    """A number with its noun.

    Example:
        >>> say_count(1, "studies"), say_count(1200, "slices")
        ('1 study', '1,200 slices')
    """
    return f"{number:,} {_SINGULARS.get(plural, plural.removesuffix('s')) if number == 1 else plural}"


def say_counts(counts: Mapping[str, int]) -> str:
    """Counts with their nouns, as part of a sentence.

    Example:
        >>> say_counts({"patients": 2, "slices": 1000})
        '2 patients, 1,000 slices'
    """
    return ", ".join(say_count(number, plural) for plural, number in counts.items())


def join_words(words: Sequence[str], last: str = "and") -> str:
    """A list as part of a sentence.

    Example:
        >>> join_words(["a", "b", "c"])
        'a, b and c'
    """
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
