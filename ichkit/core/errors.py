"""Every failure that a user, a file or a config can cause; each ends the command with one message and its exit code."""

import difflib
from collections.abc import Iterable


class IchkitError(Exception):
    """A failure the user can mend: the message says what was expected, what was found, where, and what to do."""

    exit_code = 2


class ConfigError(IchkitError):
    """A config file, a `--set` or an option that cannot be used."""


class DataError(IchkitError):
    """A data folder, label file or DICOM tree that is missing or contradicts itself."""


class FoldError(IchkitError):
    """Folds that break the patient-wise contract, or a fold that does not exist."""


class ArtifactError(IchkitError):
    """An artifact folder that is missing, unfinished, damaged, or made from other settings."""


class ContractError(IchkitError):
    """A table that breaks the out-of-fold contract or the columns of a schema."""


class DiskFullError(IchkitError):
    """The disk ended before the work did; what was finished stays valid."""


class UploadError(IchkitError):
    """The competition site refused a submission, could not be reached, or did not say what became of it."""


class Stopped(IchkitError):
    """SIGTERM or SIGINT arrived and everything was saved; the same command goes on from here."""

    exit_code = 75

    @classmethod
    def after(cls, saved: str) -> "Stopped":
        """With the words that every stop ends in; `saved` says what is safe."""
        return cls(f"stopped: {saved}. Run the same command again to go on.")


def nearest(word: str, choices: Iterable[str]) -> str:
    """A sentence that lists the choices and, where one is close, the nearest spelling.

    Example:
        >>> nearest("resnet5", ["resnet50", "vit"])
        'Did you mean "resnet50"? Choices: resnet50, vit.'
    """
    choices = sorted(map(str, choices))
    close = difflib.get_close_matches(word, choices, n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Choices: {', '.join(choices) or 'none'}."
