"""What training writes down as it goes: one JSON line per some steps."""

import json
from pathlib import Path
from typing import Any

from ichkit.work.artifacts import write_bytes_atomically


class Journal:
    """`steps.jsonl`: how each step went, one JSON object a line, in the order of the steps.

    Args:
        path: the file; lines of an earlier call stay.
        every: steps between two lines.
        writes: False in all processes but one, where several train one network.
    """

    def __init__(self, path: Path, every: int, *, writes: bool = True) -> None:
        self._path, self._every, self._writes = path, every, writes

    def wants(self, step: int) -> bool:
        """True where a step, counted from 0 in its epoch, is one of those that get a line."""
        return self._writes and step % self._every == 0

    def add(self, row: dict[str, Any]) -> None:
        """Writes a line; it has `epoch` and `step`, counted from 1."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def forget_from(self, epoch: int, step: int) -> None:
        """Drops the lines of steps that will be done again: from `step` of `epoch` on, both counted from 0."""
        if not self._writes or not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # half a line, of a call that was killed
                continue
            if (row["epoch"] - 1, row["step"] - 1) < (epoch, step):
                kept.append(f"{line}\n")
        write_bytes_atomically(self._path, "".join(kept).encode())
