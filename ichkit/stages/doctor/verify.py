"""Checks every artifact of a work folder against the digests taken when it was written."""

import json
from pathlib import Path

from ichkit.core.errors import ArtifactError
from ichkit.core.progress import Meter, logger
from ichkit.work.artifacts import digest_file, find_damage, has_artifact, read_manifest
from ichkit.work.folder import WorkFolder


def run(work: WorkFolder, submissions: Path) -> list[str]:
    """One line for everything that is damaged; an empty list where all is as it was written.

    Raises:
        ArtifactError: there is no artifact to check.
    """
    folders = find_artifacts(work)
    if not folders:
        raise ArtifactError(f"{work.root}: expected artifacts, found none. Run `ichkit prepare` first, or name --work.")
    damage, num_files = [], 0
    with Meter("verify", len(folders), "artifacts") as meter:
        for folder in folders:
            try:
                manifest = read_manifest(folder)
            except ArtifactError as error:
                damage.append(str(error))
                continue
            damage += find_damage(folder, manifest)
            num_files += len(manifest.files)
            meter.advance()
    damage += _check_submissions(submissions)
    logger.info("verify: %d artifacts with %d files, %d damaged", len(folders), num_files, len(damage))
    return damage


def find_artifacts(work: WorkFolder) -> list[Path]:
    """Every finished artifact folder of a work folder."""
    candidates = [work.prepared, *sorted(work.runs.glob("*/fold*")), *sorted(work.stacks.glob("*")), work.scores]
    return [folder for folder in candidates if folder.suffix not in (".partial", ".old") and has_artifact(folder)]


def _check_submissions(folder: Path) -> list[str]:
    """Submissions whose digest stands in the note beside them and is another."""
    damage = []
    for note in sorted(folder.glob("*.json")):
        csv = note.with_suffix(".csv")
        try:
            expected = json.loads(note.read_text())["sha256"]
        except (ValueError, KeyError, TypeError):
            damage.append(f"{note}: not the note of a submission")
            continue
        if not csv.is_file() or digest_file(csv) != expected:
            damage.append(f"{csv}: missing, or changed since it was written (SHA-256 differs)")
    return damage
