"""Commands as a person types them from a page: processes of their own, in a folder outside the checkout."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import ichkit

ROOT = Path(__file__).parents[2]
_SECONDS = 900


def lines_below(page, heading):
    """The lines of all sh blocks below a heading of a page, in order.

    Args:
        page: path in the repository.
        heading: with its marks, such as "## Quick start".
    """
    text = (ROOT / page).read_text(encoding="utf-8").split(f"\n{heading}", 1)[1]
    level = heading.split()[0]
    section = re.split(rf"^#{{1,{len(level)}}} ", text, flags=re.MULTILINE)[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL) for line in block.splitlines()]


class Shell:
    """A terminal: it has a folder, and the ichkit of this process, be it installed or a checkout."""

    def __init__(self, folder):
        self.folder = Path(folder)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("ICHKIT_", "PYTHON"))}
        source = str(Path(ichkit.__file__).parents[1])
        self._environment = own | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": source}

    def types(self, line, more=None):
        """Runs the commands of a line one after another; returns what they printed, both streams.

        Args:
            more: name of an ichkit command to further words for it.
        """
        printed = ""
        for words in (shlex.split(part) for part in line.split("&&")):
            if words[0] == "cd":
                self.folder /= words[1]
            elif words[0] == "ichkit":
                printed += self._run([*words[1:], *map(str, (more or {}).get(words[1], ()))])
            else:
                assert words[0] == "pip", line  # what runs this test is installed
        return printed

    def _run(self, words):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ichkit", *words],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}:\n{done.stdout[-3000:]}"
        return done.stdout
