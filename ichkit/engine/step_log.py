"""The step log of training: one JSON line every few steps."""

import json
from pathlib import Path
from typing import Any

from ichkit.work.artifacts import write_bytes_atomically


class StepLog:
    """`steps.jsonl`: one JSON object per logged step, in order.

    Args:
        path: the file; lines of an earlier call stay.
        every: steps between two lines.
        writes: in distributed training, True in the main process only.
    """

    def __init__(self, path: Path, every: int, *, writes: bool = True) -> None:
        self._path, self._every, self._writes = path, every, writes

    def wants(self, step: int) -> bool:
        """True if a step, counted from 0 in its epoch, is logged."""
        return self._writes and step % self._every == 0

    def add(self, row: dict[str, Any]) -> None:
        """Appends a line; `row` has `epoch` and `step`, counted from 1."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def drop_from(self, epoch: int, step: int) -> None:
        """Drops the lines of steps that will be repeated: from `step` of `epoch` on, both counted from 0."""
        if not self._writes or not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # an incomplete line of a call that was killed
                continue
            if (row["epoch"] - 1, row["step"] - 1) < (epoch, step):
                kept.append(f"{line}\n")
        write_bytes_atomically(self._path, "".join(kept).encode())
