"""Checks every artifact of a work folder against the digests taken when it was written."""

from pathlib import Path

from ichkit.core.errors import ArtifactError
from ichkit.core.progress import Meter, logger
from ichkit.validation.notes import is_csv_unchanged, note_names, read_note
from ichkit.work.artifacts import find_damage
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory


def run(work: WorkFolder, submissions: Path) -> list[str]:
    """One line for each damaged file or manifest; empty if all are unchanged.

    Raises:
        ArtifactError: there is no artifact to check.
    """
    entries = take_inventory(work).finished
    if not entries:
        raise ArtifactError(f"{work.root}: expected artifacts, found none. Run `ichkit prepare` first, or name --work.")
    damage, num_files = [], 0
    with Meter("verify", len(entries), "artifacts") as meter:
        for entry in entries:
            damage += [entry.damage] if entry.damage else find_damage(entry.folder, entry.manifest)
            num_files += 0 if entry.damage else len(entry.manifest.files)
            meter.advance()
    for name in note_names(submissions):
        try:
            note = read_note(submissions, name)
        except ArtifactError as error:
            damage.append(str(error))
            continue
        if note is not None and not is_csv_unchanged(submissions, note):
            damage.append(f"{submissions / note['csv']}: missing, or changed since it was written (SHA-256 differs)")
    logger.info("verify: %d artifacts with %d files, %d damaged", len(entries), num_files, len(damage))
    return damage
