"""`looks.csv`, the evaluation log: every time that an external set or the locked patients were scored."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import pandas as pd

from ichkit.core.csv_tables import read_csv
from ichkit.core.errors import ArtifactError
from ichkit.work.artifacts import encode_table, write_bytes_atomically
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import hold

COLUMNS = ["utc", "set", "source", "config_digest", "tables_digest", "command"]
_KEY = ["set", "source", "tables_digest"]


@dataclass(frozen=True)
class Scored:
    """One source that is scored on one set.

    Attributes:
        set: an external set, or the locked patients.
        source: the run or the kind of a stack.
        config_digest: digest of its settings.
        tables_digest: digest of the predictions that are scored.
        command: what scored it.
    """

    set: str
    source: str
    config_digest: str
    tables_digest: str
    command: str


def record_looks(work: WorkFolder, scored: Iterable[Scored]) -> None:
    """Adds a row with the time for each whose predictions were not scored on that set before; rows are never removed.

    Scoring the same predictions again adds no row.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    new = pd.DataFrame([{"utc": now, **asdict(one)} for one in scored], columns=COLUMNS)
    with hold(work.looks):
        before = read_looks(work)
        table = pd.concat([before, new], ignore_index=True).drop_duplicates(_KEY)
        if len(table) == len(before):
            return
        write_bytes_atomically(work.looks, encode_table(table, work.looks.suffix))


def read_looks(work: WorkFolder) -> pd.DataFrame:
    """The rows of `looks.csv`, the oldest first; columns `COLUMNS`.

    Raises:
        ArtifactError: the file is damaged.
    """
    if not work.looks.is_file():
        return pd.DataFrame(columns=COLUMNS)
    try:
        return read_csv(work.looks, dtype=dict.fromkeys(COLUMNS, "str"))[COLUMNS]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{work.looks}: expected a CSV with the columns {', '.join(COLUMNS)}: {error} It counts how often the "
            "external sets were scored; restore it from a copy, or remove it and say so in your report."
        ) from error
