"""The folders next to an artifact that its writer uses: unfinished work, set-aside and deleted folders, each marked.

Readers never call these functions, and no folder without the mark is removed or renamed: users may give names such as
`X.old` and `X.partial` to their own copies.
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
"""The file that marks a folder as unfinished or set-aside work of ichkit."""


def partial_of(final: Path) -> Path:
    """The folder of unfinished work on an artifact."""
    return final.with_name(final.name + _PARTIAL)


def set_aside_of(final: Path) -> Path:
    """The folder that keeps the old artifact while the new one is renamed; it is restored if that fails."""
    return final.with_name(f".{final.name}{_SET_ASIDE}")


def final_of(path: Path) -> Path:
    """The artifact folder to which a folder belongs: itself, or the one it is unfinished or set-aside work on."""
    name = path.name
    is_set_aside = name.startswith(".") and name.endswith(_SET_ASIDE)
    return path.with_name(name[1:].removesuffix(_SET_ASIDE) if is_set_aside else name.removesuffix(_PARTIAL))


def _trash_of(final: Path) -> Path:
    """The folder to which an artifact is renamed before it is deleted, so that a kill never leaves half of it."""
    return final.with_name(f".{final.name}.ichkit-trash")


def disk_full(path: Path, error: OSError) -> DiskFullError | OSError:
    """The same error or, if the disk is full, one that states the free space and that finished work is safe."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    return DiskFullError(
        f"disk: {path.parent} is full ({free / 1e6:.0f} MB free). Finished work stays valid. "
        "Free some space, or choose another disk with --work, and run the same command again."
    )


def is_private(path: Path) -> bool:
    """True for the name of set-aside work or of a lock file."""
    return path.name.startswith(".") and path.name.endswith((_SET_ASIDE, ".ichkit-trash", ".ichkit-lock"))


def is_marked(folder: Path) -> bool:
    """True for unfinished or set-aside work of ichkit."""
    return (folder / MARK).is_file()


def is_empty(folder: Path) -> bool:
    """True if a folder is empty or does not exist."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def open_partial(final: Path, *, resume: bool, keeps: tuple[str, ...] = ()) -> Path:
    """The marked folder for unfinished work on `final`, with its earlier content or empty.

    Args:
        resume: keep its content.
        keeps: files that are never removed.

    Raises:
        ArtifactError: a folder of that name was not written by ichkit, or `final` is not an artifact.
    """
    partial = partial_of(final)
    refuse_foreign(final)
    if not is_marked(partial) and not is_empty(partial):
        raise ArtifactError(
            f"{partial}: expected unfinished work of ichkit (marked by a file {MARK}), found another folder, which is "
            "left unchanged. Rename it, or remove it if it is unfinished work of ichkit before 0.2."
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
    """Renames finished work from `<final>.partial` to `final`; an old folder there is set aside first and removed last.

    Files that the manifest does not list are intermediate and removed.
    """
    _remove_unlisted(partial_of(final))
    if not is_empty(final):
        _move_into(final, set_aside_of(final))
    partial_of(final).rename(final)
    settle(final)


def settle(final: Path) -> None:
    """Completes or undoes what a killed writer of this folder left; only for the holder of the folder's lock."""
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
    """Removes a folder of ichkit: it is renamed before it is deleted, so that it is never partly deleted.

    Raises:
        ArtifactError: it has neither a manifest nor the mark.
    """
    if not folder.exists():
        return
    refuse_foreign(folder)
    _move_into(folder, _trash_of(folder))
    _remove_container(_trash_of(folder))


def refuse_foreign(folder: Path) -> None:
    """Checks that a folder was written by ichkit, is empty or does not exist.

    Raises:
        ArtifactError: it has content, but neither a manifest nor the mark.
    """
    if not (is_empty(folder) or is_marked(folder) or (folder / MANIFEST_NAME).is_file()):
        raise ArtifactError(
            f"{folder}: expected a folder that ichkit wrote (with {MANIFEST_NAME}), an empty one or none, found "
            "other content, which is left unchanged. Move it away, or choose another folder."
        )


def _remove_unlisted(folder: Path) -> None:
    """Removes checkpoints, notes and partly written files; they are not needed once the manifest is written."""
    if not (folder / MANIFEST_NAME).is_file():
        return
    listed = {MANIFEST_NAME, MARK, *json.loads((folder / MANIFEST_NAME).read_bytes())["files"]}
    for path in sorted(folder.rglob("*"), reverse=True):  # the content of a folder before the folder
        if not path.is_dir():
            if path.relative_to(folder).as_posix() not in listed:
                path.unlink()
        elif is_empty(path):
            path.rmdir()


def _move_into(folder: Path, container: Path) -> None:
    """Moves a folder into a private one, which is marked first."""
    if not is_marked(container) and not is_empty(container):
        raise ArtifactError(
            f"{container}: expected a folder of ichkit, marked by a file {MARK}, found another "
            "folder, which is left unchanged. Rename it."
        )
    container.mkdir(exist_ok=True)
    (container / MARK).touch()
    folder.rename(container / folder.name)


def _remove_container(container: Path) -> None:
    """Removes a set-aside folder with its content, the mark last; one without a mark only if it is empty."""
    if not container.is_dir():
        return
    if is_marked(container):
        for path in container.iterdir():
            if path.name != MARK:
                shutil.rmtree(path)
        (container / MARK).unlink()
    with contextlib.suppress(OSError):
        container.rmdir()
