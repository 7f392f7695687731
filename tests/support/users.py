"""Another user, as containers and clusters have it: nobody, without a home, who cannot write the package."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

NOBODY = 65534


def run_as_nobody(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python as uid 65534 with HOME=/nonexistent; skips where this process may not do that.

    CAP_DAC_READ_SEARCH lets that user read the interpreter wherever it is installed; nothing lets it write there.

    Args:
        folder: where its working directory and its temporary folder are made.
    """
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    for name in ("here", "tmp"):
        (folder / name).mkdir(exist_ok=True)
        os.chown(folder / name, NOBODY, NOBODY)
    read = "dac_read_search"
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    become += [f"--inh-caps=+{read}", f"--ambient-caps=+{read}", f"--bounding-set=-all,+{read}"]
    if subprocess.run([*become, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel or container does not grant the capability")
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    own = {
        "HOME": "/nonexistent",
        "TMPDIR": str(folder / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [*become, sys.executable, *map(str, words)],
        cwd=folder / "here",
        env=kept | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done


def world_folder() -> Path:
    """A folder that every user can reach; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="ichkit-test-", dir="/tmp" if os.access("/tmp", os.W_OK) else None))
    folder.chmod(0o755)
    return folder
