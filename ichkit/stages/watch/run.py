"""`ichkit watch`: predicts the studies that arrive in a folder, each once."""

import errno
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pandas as pd

from ichkit.core.errors import DataError, DiskFullError, IchkitError
from ichkit.core.progress import StopFlag, format_count, format_seconds, logger, stop_on_signal
from ichkit.engine.parallel import run_tasks
from ichkit.sources.folder import hide_files, salted
from ichkit.sources.plan import count_reasons
from ichkit.stages.predict.model import RESEARCH_NOTE
from ichkit.stages.predict.run import NothingUsableError, ReadyModel, load_model, write_prediction
from ichkit.stages.watch.arrivals import Arrival, Arrivals
from ichkit.stages.watch.entries import (
    FAILED,
    KIND,
    PREDICTED,
    REJECTED,
    Attempts,
    Outcome,
    commit,
    read_entries,
    write_summary,
)
from ichkit.stages.watch.plan import LOOSE_NAME, STUDY_PREFIX, SUMMARY_NAME, WatchOptions, WatchPlan, begin_output, plan
from ichkit.work.artifacts import ArtifactWriter, encode_table, write_bytes_atomically
from ichkit.work.locks import holding
from ichkit.work.patients import read_salt
from ichkit.work.places import discard

__all__ = ["WatchOptions", "WatchPlan", "plan", "run"]

_MAX_ATTEMPTS = 3
_LOOK_SHARE = 0.2
"""Of the time at most is spent on looking at the folder."""
_SECONDS_BETWEEN_CHECKS = 0.1
_NOTHING = pd.DataFrame()


@holding(lambda given: given["plan"].options.out)
def run(plan: WatchPlan) -> str:
    """Predicts the studies of a folder as they become complete; returns what is done, as part of a sentence.

    It goes on until a stop is requested, or with `is_once` until all that are complete are predicted.

    Raises:
        Stopped: a stop was requested; every study that was begun is finished.
        ArtifactError, ConfigError: weights are missing or damaged; the output folder has other content.
        DiskFullError: the disk is full.
    """
    out = plan.options.out
    begin_output(out, plan.settings)
    with stop_on_signal() as stop:
        watcher = _Watcher(plan, load_model(plan.base), read_salt(out), stop)
        logger.info("watch: %s into %s. %s", plan.options.path, out, RESEARCH_NOTE)
        while True:
            began = time.monotonic()
            num_waiting = watcher.look()
            spent = time.monotonic() - began
            watcher.predict_complete()
            stop.check(watcher.describe())
            if plan.options.is_once:
                if num_waiting:
                    logger.info("watch: %s not complete yet", format_count(num_waiting, "study", "studies"))
                return watcher.describe()
            _pause(max(plan.options.poll_seconds, spent / _LOOK_SHARE), stop)
            stop.check(watcher.describe())


class _Watcher:
    """The state of one call: what has arrived and what is done.

    Args:
        salt: of the names of folders.
    """

    def __init__(self, plan: WatchPlan, loaded: ReadyModel, salt: bytes, stop: StopFlag) -> None:
        self._plan, self._loaded, self._salt, self._stop = plan, loaded, salt, stop
        self._out, self._settle = plan.options.out, plan.options.settle_seconds
        self._settings = plan.settings
        workers = plan.base.config.prepare.workers
        self._arrivals = Arrivals(plan.options.path, salt, partial(run_tasks, workers=workers), stop)
        self._there: list[Arrival] = []
        self._done = read_entries(self._out)
        self._attempts = Attempts(self._out)
        self._again = {key for key, entry in self._done.items() if entry.status == FAILED}
        # Studies that need nothing although their files are others than in their entry, by key with the stamp.
        self._seen: dict[str, str] = {}
        self._has_looked, self._is_lost, self._loose = False, False, ""
        write_summary(self._out, self._done.values(), plan.base.task)

    def describe(self) -> str:
        """What is done, as part of a sentence."""
        counts = Counter(entry.status for entry in self._done.values())
        said = ", ".join(f"{counts[status]} {status}" for status in (PREDICTED, REJECTED, FAILED) if counts[status])
        count = format_count(len(self._done), "study", "studies")
        return f"{count}{f' ({said})' if said else ''} in {self._out / SUMMARY_NAME}"

    def look(self) -> int:
        """Looks at the folder; returns the number of studies that are not complete yet."""
        try:
            self._there = self._arrivals.look()
        except (DataError, OSError) as error:
            if not self._has_looked:
                raise
            if not self._is_lost:
                logger.warning("watch: the folder cannot be read (%s); it is looked at again", type(error).__name__)
            self._there, self._is_lost = [], True
            return 0
        self._has_looked, self._is_lost = True, False
        self._list_loose()
        return sum(not self._is_complete(one) for one in self._there)

    def predict_complete(self) -> None:
        """Predicts every complete study that needs it; those that ended a process before come last."""
        waiting = [one for one in self._there if self._is_complete(one) and self._needs_look(one)]
        waiting.sort(key=lambda one: (self._attempts.count(self._name(one.key)), one.since))
        for one in waiting:
            self._stop.check(self.describe())
            if one.is_unchanged():
                self._take(one)

    def _is_complete(self, one: Arrival) -> bool:
        return time.monotonic() - one.since >= self._settle

    def _needs_look(self, one: Arrival) -> bool:
        entry = self._done.get(one.key)
        is_known = entry is not None and entry.stamp == one.stamp and one.key not in self._again
        return not is_known and self._seen.get(one.key) != one.stamp

    def _name(self, key: str) -> str:
        """The folder of a study: that of its entry, or a digest, since ids of a header do not become names."""
        return self._done[key].folder if key in self._done else STUDY_PREFIX + salted(self._salt, "watch", key)

    def _take(self, one: Arrival) -> None:
        """Predicts a study unless its entry has all of its files; files that went away since do not matter."""
        self._seen[one.key] = one.stamp
        digests, entry = one.digest(), self._done.get(one.key)
        if entry is not None and digests <= entry.digests and one.key not in self._again:
            return
        began, name = time.monotonic(), self._name(one.key)
        files = format_count(len(one.files), "file")
        logger.info("watch: %s: %s%s", name, files, "" if entry is None else ", predicted again: its files changed")
        writer = ArtifactWriter(self._out / name, KIND)
        num_before = self._attempts.count(name)
        self._attempts.begin(name)
        try:  # what ends the process at once does not come to the end of this block, and counts
            if num_before >= _MAX_ATTEMPTS:
                died = f"the process ended {num_before} times while it was predicted"
                outcome = Outcome(REJECTED, died, _NOTHING)
            else:
                outcome = self._predict(one, writer.folder)
            if not one.is_unchanged():
                logger.info("watch: %s: its files changed meanwhile; it is waited for again", name)
                self._seen.pop(one.key)
                discard(writer.folder)
                return
            facts = {"key": one.key, "stamp": one.stamp, "num_files": len(one.files)}
            self._done[one.key] = commit(writer, self._settings, facts, outcome, digests)
        finally:
            self._attempts.end(name)
        self._again.discard(one.key)
        write_summary(self._out, self._done.values(), self._plan.base.task)
        said = outcome.status + (f": {outcome.reason}" if outcome.reason else "")
        logger.info("watch: %s: %s, %s", name, format_seconds(time.monotonic() - began), said)

    def _predict(self, one: Arrival, folder: Path) -> Outcome:
        try:
            prediction = write_prediction(self._plan.of_study(one.files, folder), self._salt, self._loaded)
        except NothingUsableError as error:
            return Outcome(REJECTED, error.reasons, _NOTHING)
        except DiskFullError:
            raise
        except IchkitError as error:
            return Outcome(FAILED, str(error), _NOTHING)
        except Exception as error:  # one study must not end the watch, whatever is wrong with it
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            logger.debug("watch: internal error", exc_info=True)
            return Outcome(FAILED, f"internal error ({type(error).__name__}); --debug shows where", _NOTHING)
        return Outcome(PREDICTED, "", prediction.studies)

    def _list_loose(self) -> None:
        """Writes the table of the files that belong to no study, if it has changed."""
        loose = self._arrivals.find_loose(time.monotonic() - self._settle)
        listed = hide_files(loose.rename(columns={"relative": "file"}), self._salt)
        text = encode_table(listed, ".csv")
        if (path := self._out / LOOSE_NAME).is_file() and path.read_bytes() == text:
            return
        write_bytes_atomically(path, text)
        if len(loose):
            logger.info("watch: %s of no CT study: %s", format_count(len(loose), "file"), count_reasons(loose))


def _pause(seconds: float, stop: StopFlag) -> None:
    """Waits, or until a stop is requested."""
    until = time.monotonic() + seconds
    while not stop and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _SECONDS_BETWEEN_CHECKS))
