"""`<name>.json` next to a submission: provenance of the CSV, its upload, and its Kaggle scores."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ichkit.core.errors import ArtifactError, ConfigError, nearest
from ichkit.work.artifacts import digest_file, encode_json, write_bytes_atomically
from ichkit.work.locks import holding

_SCORES = ("public_score", "private_score", "recorded_utc")


def note_path(submissions: Path, name: str) -> Path:
    """The path of the note of a submission."""
    return submissions / f"{name}.json"


def note_names(submissions: Path) -> list[str]:
    """The names of all submissions with a note, sorted."""
    return sorted(path.stem for path in submissions.glob("*.json"))


def read_note(submissions: Path, name: str) -> dict[str, Any] | None:
    """The note of a submission; None if there is none.

    Raises:
        ArtifactError: the file is not a note.
    """
    path = note_path(submissions, name)
    if not path.exists():
        return None
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        lacking = {"name", "csv", "sha256", "tables", "earlier_scores", *_SCORES} - note.keys()
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: expected the note of a submission, found no JSON object ({error}).") from error
    if lacking:
        raise ArtifactError(
            f"{path}: expected the note of a submission, it lacks {sorted(lacking)}. Move it away and run "
            "`ichkit submit` again."
        )
    return note


@holding(lambda given: given["submissions"])
def write_note(submissions: Path, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes the note of a submission and returns it.

    Recorded scores and the upload are kept for the same CSV; scores of another CSV are moved to `earlier_scores`.

    Args:
        facts: at least csv, sha256 (of the CSV) and tables (path to digest of its inputs). If the existing note has the
            same facts, the file is unchanged, including its creation time.

    Raises:
        ArtifactError: an existing file of that name is not a note.
    """
    old = read_note(submissions, name)
    if old is not None and {"name": name, **facts}.items() <= old.items():
        return old
    earlier = list(old["earlier_scores"]) if old is not None else []
    if old is not None and old["recorded_utc"] is not None:
        earlier.append({"sha256": old["sha256"], **{key: old[key] for key in _SCORES}})
    scores: dict[str, Any] = dict.fromkeys(_SCORES)
    for row in [row for row in earlier if row["sha256"] == facts["sha256"]]:
        earlier.remove(row)
        scores = {key: row[key] for key in _SCORES}
    note = {"name": name, **facts, "created_utc": _now(), **scores, "earlier_scores": earlier}
    if old is not None and "upload" in old and old["sha256"] == facts["sha256"]:
        note["upload"] = old["upload"]
    write_bytes_atomically(note_path(submissions, name), encode_json(note))
    return note


@holding(lambda given: given["submissions"])
def record_scores(submissions: Path, name: str, public: float | None, private: float | None) -> dict[str, Any]:
    """Writes Kaggle scores into the note of a submission and returns it; a score that is not given is kept.

    Raises:
        ConfigError: no such submission, no score, or a score that is negative or not finite.
        ArtifactError: the CSV has changed.
    """
    both = {"public_score": public, "private_score": private}
    given = {key: float(score) for key, score in both.items() if score is not None}
    if not given or not all(math.isfinite(score) and score >= 0 for score in given.values()):
        raise ConfigError(
            f"leaderboard --record {name}: expected --public, --private or both, each a loss of 0 or more, found "
            f"{given or 'neither'}."
        )
    note = read_present(submissions, name)
    note = {**note, **given, "recorded_utc": _now()}
    write_bytes_atomically(note_path(submissions, name), encode_json(note))
    return note


@holding(lambda given: given["submissions"])
def record_upload(submissions: Path, name: str, answer: str | None) -> dict[str, Any]:
    """Records in the note of a submission that an upload has started or ended, and returns the note.

    Args:
        answer: the answer of Kaggle without secrets; None before the upload, so that an interrupted one is recognised.

    Raises:
        ConfigError: no such submission.
        ArtifactError: the CSV has changed.
    """
    note = read_present(submissions, name)
    note = {**note, "upload": {"sha256": note["sha256"], "answer": answer, "utc": _now()}}
    write_bytes_atomically(note_path(submissions, name), encode_json(note))
    return note


def read_present(submissions: Path, name: str) -> dict[str, Any]:
    """The note of a submission whose CSV is unchanged.

    Raises:
        ConfigError: no such submission.
        ArtifactError: the CSV has changed or is missing.
    """
    note = read_note(submissions, name)
    if note is None:
        shown = nearest(name, note_names(submissions))
        raise ConfigError(f'leaderboard: {submissions} holds no submission "{name}". {shown}')
    if not is_csv_unchanged(submissions, note):
        raise ArtifactError(
            f"{submissions / note['csv']}: expected the CSV with SHA-256 {note['sha256'][:16]}..., it has changed or "
            "is missing, so the score cannot be assigned to it. Run `ichkit submit` again."
        )
    return note


def refuse_foreign(submissions: Path, name: str, sha256: str) -> None:
    """Checks that a submission replaces no file that `submit` did not write.

    Args:
        sha256: digest of the CSV to be written; a killed `submit` may have written it without its note.

    Raises:
        ConfigError: there is another CSV of that name, without a note.
    """
    path = submissions / f"{name}.csv"
    if path.exists() and read_note(submissions, name) is None and not (path.is_file() and digest_file(path) == sha256):
        raise ConfigError(
            f"submit: {path}: expected no file or one that `ichkit submit` wrote, with {note_path(submissions, name)}; "
            "found another one, which is left unchanged. Move it away, or choose another folder with --submissions."
        )


def is_csv_unchanged(submissions: Path, note: dict[str, Any]) -> bool:
    """True if the CSV of a note exists and has the digest in the note."""
    path, digest = submissions / note["csv"], str(note["sha256"])
    return path.is_file() and digest_file(path) == digest


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
