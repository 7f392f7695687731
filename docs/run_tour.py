"""Runs the commands of docs/tour.md and inserts their output: `python docs/run_tour.py`; takes ten minutes.

The sh blocks run one after another, starting in an empty folder. The text block after each receives the output, of
which its first line may select `head=N` or `tail=N` lines, and the time.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).parent / "tour.md"
STEP = re.compile(r"```sh\n(?P<commands>.*?)```\n\n```text(?P<choice>[^\n]*)\n(?P<shown>.*?)```", flags=re.DOTALL)
_WIDTH = 100


def main() -> None:
    """Rewrites the page."""
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        ended = Path(scratch, "ended")
        ended.write_text(f"{scratch}\n", encoding="utf-8")

        def show(step: re.Match[str]) -> str:
            began = time.monotonic()
            printed = run(step["commands"], ended).replace(scratch, "~")
            lines = choose(printed.splitlines(), step["choice"])
            shown = "\n".join([*lines, f"[{time.monotonic() - began:.0f} s]"])
            return f"```sh\n{step['commands']}```\n\n```text{step['choice']}\n{shown}\n```"

        text = STEP.sub(show, text)
    PAGE.write_text(text, encoding="utf-8")


def run(commands: str, ended: Path) -> str:
    """The output of a block.

    Args:
        ended: a file with the folder to begin in; afterwards it holds the folder that the block ended in.
    """
    # The interpreter's folder first, so that it is its ichkit that runs.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    places = {"PATH": path, "COLUMNS": str(_WIDTH), "ENDED": str(ended)}
    done = subprocess.run(
        ["bash", "-ec", f'{commands}\npwd > "$ENDED"'],
        cwd=ended.read_text(encoding="utf-8").strip(),
        env=os.environ | places,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{commands}failed:\n{done.stdout}")
    return done.stdout


def choose(lines: list[str], choice: str) -> list[str]:
    """The first or last lines, as `head=N` or `tail=N` asks for, without blanks at the ends of lines and of the whole.

    Example:
        >>> choose(["a", "b", "c ", ""], " tail=2")
        ['b', 'c']
    """
    lines = "\n".join(line.rstrip() for line in lines).strip("\n").splitlines()
    kind, _, number = choice.strip().partition("=")
    return {"": lines, "head": lines[: int(number or 0)], "tail": lines[-int(number or 0) :]}[kind]


if __name__ == "__main__":
    main()
