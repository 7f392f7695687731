"""Where compiled kernels are cached when neither the installed package nor the home folder can be written to."""

import atexit
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"
_PACKAGE = Path(__file__).resolve().parents[1]


def provide_kernel_cache(package: Path = _PACKAGE) -> None:
    """Sets `NUMBA_CACHE_DIR` to a private temporary folder if numba can write to none of its default cache folders.

    Numba caches beside the source, else below the user's home, and fails to define a cached kernel if it can write to
    neither (numba 0.60 to 0.68), as in a container with a read-only installation and no home. Called before any module
    of this package imports numba; worker processes inherit the variable.

    Args:
        package: folder of the installed package.
    """
    if os.environ.get(VARIABLE) or _is_writable(package) or _is_writable(_user_caches()):
        return
    folder = str(_private_folder(f"ichkit-numba-{_user()}"))
    os.environ[VARIABLE] = folder
    if "numba" in sys.modules:  # a notebook may have imported it first; it reads the variable only on import
        sys.modules["numba"].config.CACHE_DIR = folder


def _is_writable(folder: Path) -> bool:
    """True if files can be created in a folder, or in its nearest existing parent."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _user_caches() -> Path:
    """The user's cache folder as numba finds it; the rules of its vendored `appdirs`."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home())
    if sys.platform == "darwin":
        return Path("~/Library/Caches").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _private_folder(name: str) -> Path:
    """A folder below the temporary one that no other user can write to; it is reused by later processes.

    Numba's cache holds pickles, so an existing folder of another user is not used; then the folder belongs to this
    process alone and is removed when it exits.
    """
    folder = Path(tempfile.gettempdir()) / name
    try:
        folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
        found = folder.lstat()
        is_own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if stat.S_ISDIR(found.st_mode) and is_own and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return folder
    except OSError:  # a file or a dangling link has that name
        pass
    alone = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, alone, ignore_errors=True)
    return alone
