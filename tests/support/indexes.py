"""The index and the plan of a small tree of DICOM, without a pool of workers."""

from functools import partial
from pathlib import Path

import pandas as pd

from ichkit.engine.parallel import run_tasks
from ichkit.sources.files import scan_files
from ichkit.sources.folder import plan_folder
from ichkit.sources.index import read_index
from ichkit.sources.plan import SourcePlan, order_slices


def index_of(root: Path) -> pd.DataFrame:
    """The headers of every file below a root."""
    files, _ = scan_files(root)
    return read_index(files, None, run=partial(run_tasks, workers=1))


def plan_of(root: Path, override: pd.DataFrame | None = None) -> SourcePlan:
    """What `predict` would take of a root."""
    return plan_folder(index_of(root), b"salt", override, judges_hu=True)


def slices_of(root: Path) -> pd.DataFrame:
    """The slices of a root in the order in which they are predicted."""
    return order_slices(plan_of(root).files)[1]
