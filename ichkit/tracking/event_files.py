"""TensorBoard event files, one folder for each experiment."""

import importlib
import time
from collections.abc import Mapping
from typing import Any

from ichkit.tracking.tracker import Experiment

_VERSION = "brain.Event:2"
"""Of the file format; TensorBoard expects it in the first event."""


class EventFile:
    """A new event file in the folder of the experiment; TensorBoard shows all files of a folder as one curve.

    It is written record by record, because the writers of tensorboardX and of torch name the file after the host.
    """

    def __init__(self, experiment: Experiment) -> None:
        records = importlib.import_module("tensorboardX.record_writer")
        self._events: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        self._summary: Any = importlib.import_module("tensorboardX.summary")
        folder = experiment.folder / experiment.name
        folder.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in folder.glob("events.out.tfevents.*"))
        self._writer: Any = records.RecordWriter(str(folder / f"events.out.tfevents.{number:010d}.ichkit"))
        self._write(file_version=_VERSION)
        if number == 0 and experiment.config:
            lines = [f"| {name} | {value} |" for name, value in experiment.config.items()]
            table = "\n".join(["| setting | value |", "|---|---|", *lines])
            self._write(summary=self._summary.text("config", table), step=0)
        self._writer.flush()

    @property
    def token(self) -> str:
        """Nothing: the folder is found by the experiment's name."""
        return ""

    def log(self, values: Mapping[str, float], axis: str, at: int) -> None:
        """One scalar for each value, with `at` as its step."""
        for name, value in values.items():
            self._write(summary=self._summary.scalar(name, value), step=at)
        self._writer.flush()

    def close(self, *, is_finished: bool) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())
