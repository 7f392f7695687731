"""The names beside an artifact that belong to its writer: unfinished work, set-aside folders, each with a mark inside.

Nothing here is called by a reader, and nothing without the mark is ever removed or renamed: `X.old` and `X.partial` are
names that people give to their own copies too.
"""

import contextlib
import errno
import json
import shutil
from pathlib import Path

from ichkit.core.errors import ArtifactError, DiskFullError

MANIFEST_NAME = "manifest.json"
_PARTIAL, _SET_ASIDE = ".partial", ".ichkit-old"
MARK = ".ichkit-unfinished"
"""The file by which ichkit knows a folder as its own unfinished or set-aside work."""


def partial_of(final: Path) -> Path:
    """Where unfinished work on a folder lives."""
    return final.with_name(final.name + _PARTIAL)


def set_aside_of(final: Path) -> Path:
    """Where an older folder waits while its successor is put in place: it comes back if that fails."""
    return final.with_name(f".{final.name}{_SET_ASIDE}")


def final_of(path: Path) -> Path:
    """The folder that this one is, or is unfinished or set-aside work on."""
    name = path.name
    is_set_aside = name.startswith(".") and name.endswith(_SET_ASIDE)
    return path.with_name(name[1:].removesuffix(_SET_ASIDE) if is_set_aside else name.removesuffix(_PARTIAL))


def _trash_of(final: Path) -> Path:
    """Where a folder goes that is to be removed, so that a kill never leaves half of it under its own name."""
    return final.with_name(f".{final.name}.ichkit-trash")


def disk_full(path: Path, error: OSError) -> DiskFullError | OSError:
    """The same error, or where the disk is full one that says how much room is left and that the rest is safe."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    return DiskFullError(
        f"disk: {path.parent} is full ({free / 1e6:.0f} MB free). What was finished stays valid. "
        "Free some room, or choose another disk with --work, and run the same command again."
    )


def is_private(path: Path) -> bool:
    """True for a name of set-aside work or of a lock, which no user's file has."""
    return path.name.startswith(".") and path.name.endswith((_SET_ASIDE, ".ichkit-trash", ".ichkit-lock"))


def is_marked(folder: Path) -> bool:
    """True for unfinished or set-aside work of ichkit."""
    return (folder / MARK).is_file()


def is_empty(folder: Path) -> bool:
    """True where nothing is in a folder, or it does not exist."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def open_partial(final: Path, *, resume: bool, keeps: tuple[str, ...] = ()) -> Path:
    """The folder for unfinished work on `final`, marked, as it was left or without what it held.

    Args:
        resume: keep what it holds.
        keeps: files that stay in any case, and at every moment.

    Raises:
        ArtifactError: a folder of that name exists that ichkit did not make, or `final` is no artifact.
    """
    partial = partial_of(final)
    refuse_foreign(final)
    if not is_marked(partial) and not is_empty(partial):
        raise ArtifactError(
            f"{partial}: expected unfinished work of ichkit (it has a file {MARK}), found a folder of someone else. It "
            "is left as it is: rename it, or remove it if it is unfinished work of an ichkit before 0.2."
        )
    if not resume and partial.exists():
        if any((partial / name).exists() for name in keeps):
            for path in sorted(partial.iterdir()):
                if path.name not in (MARK, *keeps):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            discard(partial)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / MARK).touch()
    return partial


def put_in_place(final: Path) -> None:
    """Moves finished work from `<final>.partial` to `final`; an older folder there is set aside first, removed last.

    What the manifest does not list was only needed on the way, and is removed.
    """
    _remove_unlisted(partial_of(final))
    if not is_empty(final):
        _move_into(final, set_aside_of(final))
    partial_of(final).rename(final)
    settle(final)


def settle(final: Path) -> None:
    """Finishes what a writer of this folder left half done when it was killed; only for who holds the folder's lock."""
    partial, old = partial_of(final), set_aside_of(final)
    _remove_container(_trash_of(final))
    _remove_container(_trash_of(partial))
    if is_marked(partial) and (partial / MANIFEST_NAME).is_file():
        put_in_place(final)
    elif is_marked(old) and is_empty(final) and (old / final.name).is_dir():
        (old / final.name).rename(final)
    if is_marked(final):
        (final / MARK).unlink()
    _remove_container(old)


def discard(folder: Path) -> None:
    """Removes a folder of ichkit: renamed first, deleted after, so that it is whole or gone at every moment.

    Raises:
        ArtifactError: it has neither a manifest nor the mark.
    """
    if not folder.exists():
        return
    refuse_foreign(folder)
    _move_into(folder, _trash_of(folder))
    _remove_container(_trash_of(folder))


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder that ichkit did not write.

    Raises:
        ArtifactError: it holds something, and neither a manifest nor the mark.
    """
    if not (is_empty(folder) or is_marked(folder) or (folder / MANIFEST_NAME).is_file()):
        raise ArtifactError(
            f"{folder}: expected a folder that ichkit wrote (with {MANIFEST_NAME}), an empty one or none, found "
            "something else, which is left as it is. Move it away, or choose another place."
        )


def _remove_unlisted(folder: Path) -> None:
    """Checkpoints, notes and half files of killed processes: only once the manifest is there are they of no use."""
    if not (folder / MANIFEST_NAME).is_file():
        return
    listed = {MANIFEST_NAME, MARK, *json.loads((folder / MANIFEST_NAME).read_bytes())["files"]}
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if not path.is_dir():
            if path.relative_to(folder).as_posix() not in listed:
                path.unlink()
        elif is_empty(path):
            path.rmdir()


def _move_into(folder: Path, container: Path) -> None:
    """Puts a folder into a private one, which gets its mark first."""
    if not is_marked(container) and not is_empty(container):
        raise ArtifactError(f"{container}: expected a folder of ichkit with its mark {MARK}, found none. Rename it.")
    container.mkdir(exist_ok=True)
    (container / MARK).touch()
    folder.rename(container / folder.name)


def _remove_container(container: Path) -> None:
    """Removes a set-aside folder and what is in it, its mark last; one without mark only where it is empty."""
    if not container.is_dir():
        return
    if is_marked(container):
        for path in container.iterdir():
            if path.name != MARK:
                shutil.rmtree(path)
        (container / MARK).unlink()
    with contextlib.suppress(OSError):
        container.rmdir()
