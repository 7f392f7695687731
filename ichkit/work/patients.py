"""Whose scans a model has learnt from, as digests that travel with it, so that no one is tested by what saw them."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ichkit.core.errors import ArtifactError
from ichkit.work.artifacts import write_bytes_atomically

PATIENTS_NAME = "patients.json"
SALT_NAME = "salt"


def read_salt(folder: Path) -> bytes:
    """The secret salt of the digests in a folder, made by the first call; that of ICHKIT_SALT where it is set.

    Every call must give a patient the same digest, or folds and names of folders would change.
    """
    named = os.environ.get("ICHKIT_SALT")
    if named:
        return named.encode()[:64]
    path = folder / SALT_NAME
    if not path.exists():
        write_bytes_atomically(path, secrets.token_hex(16).encode())
        path.chmod(0o600)
    return path.read_bytes()


def digest_patients(slices: pd.DataFrame) -> list[str]:
    """Sorted digests of the patients and the studies of some slices.

    A patient of a folder is a digest with the salt of its work folder; two work folders that hold one study meet in the
    digest of its id.

    Args:
        slices: columns patient_id and study_id; a part of a study counts as its study.

    Example:
        >>> len(digest_patients(pd.DataFrame({"patient_id": ["p", "p"], "study_id": ["1:left", "1:right"]})))
        2
    """
    studies = slices["study_id"].str.rsplit(":", n=1).str[0]
    ids = {("patient", str(one)) for one in slices["patient_id"].unique()}
    ids |= {("study", str(one)) for one in studies.unique()}
    return sorted(hashlib.blake2b("\x1f".join(one).encode(), digest_size=8).hexdigest() for one in ids)


def encode_patients(digests: Iterable[str]) -> bytes:
    """The bytes of `PATIENTS_NAME`."""
    return json.dumps(sorted(set(digests)), separators=(",", ":")).encode()


def decode_patients(path: Path) -> set[str]:
    """The digests in a file of `encode_patients`.

    Raises:
        ArtifactError: it is not such a file.
    """
    try:
        found = json.loads(path.read_bytes())
        if not (isinstance(found, list) and all(isinstance(one, str) for one in found)):
            raise ValueError("not a list of texts")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: expected a list of digests, found something else. Export the model again."
        ) from error
    return set(found)
