"""Errors that a user, a file or a config can cause; each ends the command with one message and its exit code."""

import difflib
from collections.abc import Iterable

MAX_WORD = 60
"""Characters of a longer text of a user that a message repeats."""


class IchkitError(Exception):
    """A user error: the message says what was expected, what was found, where, and how to fix it."""

    exit_code = 2


class ConfigError(IchkitError):
    """An invalid config file, `--set` value or option."""


class DataError(IchkitError):
    """A data folder, label file or DICOM tree that is missing or inconsistent."""


class FoldError(IchkitError):
    """Folds that split a patient, or a fold that does not exist."""


class ArtifactError(IchkitError):
    """An artifact folder that is missing, unfinished, damaged, or made from other settings."""


class ContractError(IchkitError):
    """A table that violates the out-of-fold contract or its schema."""


class DiskFullError(IchkitError):
    """The disk is full; finished work stays valid."""


class UploadError(IchkitError):
    """The competition site refused a submission, could not be reached, or did not report its status."""


class Stopped(IchkitError):
    """SIGTERM or SIGINT stopped the command after it saved its state; the same command continues from there."""

    exit_code = 75

    @classmethod
    def after(cls, saved: str) -> "Stopped":
        """The error for a stop; `saved` says what is saved."""
        return cls(f"stopped: {saved}. Run the same command again to continue.")


def shorten(text: str, most: int = MAX_WORD) -> str:
    """A text on one line of at most `most` characters; "..." marks what was cut from the middle."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else f"{text[: most - 23]}...{text[-20:]}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """A sentence that lists the choices, after the nearest spelling if one is close.

    Example:
        >>> nearest("resnet5", ["resnet50", "vit"])
        'Did you mean "resnet50"? Choices: resnet50, vit.'
    """
    choices = sorted(map(str, choices))
    close = difflib.get_close_matches(word, choices, n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Choices: {', '.join(choices) or 'none'}."
