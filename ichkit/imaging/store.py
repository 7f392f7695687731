"""The Hounsfield store: one compressed int16 volume per study, one chunk per slice, and the tables beside them."""

import dataclasses
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError
from ichkit.core.roles import Role, order_external
from ichkit.core.tasks import Task
from ichkit.imaging.parts import WHOLE, PartSettings
from ichkit.imaging.steps import Origin
from ichkit.work.artifacts import FileDigest, Manifest, check_sizes, read_table, read_whole, write_bytes_atomically
from ichkit.work.schemas import CROPS, sort_rows

# blosc2 compresses a frame's table of offsets with four threads, once a chunk, whatever was asked of it: with a process
# for each core that takes as long as the pixels, and the bytes depend on the threads. Only this variable keeps it at 1.
os.environ["BLOSC_NTHREADS"] = "1"

FACTS_NAME = "slice_facts.parquet"
CROPS_NAME = "crops.parquet"
HEADER_FACTS_NAME = "header_facts.parquet"
SUBGROUPS_NAME = "subgroups.parquet"
"""dataset, study_id, and a column for each subgroup column of the label files, of the studies with slices."""
FLOW = "image flow"
"""The fact of the manifest that counts the images of each source: found, beyond_limit, and read by split."""
Codec = Literal["compact", "fast"]
"""How volumes are compressed: the pixels are the same."""
COMPACT: Codec = "compact"
_CODECS: dict[Codec, tuple[blosc2.Codec, int]] = {"compact": (blosc2.Codec.ZSTD, 1), "fast": (blosc2.Codec.LZ4, 5)}
"""Codec of blosc2 and its level."""
_FEW_BLOCKS = 8
_BLOCK_VALUES = 131_072  # 256 kB of int16: under a percent larger than 64 kB, and 7 % less time


def encode_volume(volume: np.ndarray, codec: Codec = COMPACT) -> bytes:
    """A (S, H, W) or (S, M, H, W) int16 volume as a blosc2 frame, one chunk per slice.

    The same volume gives the same bytes. A chunk holds the M sequences of its slice.

    Source: byte shuffle, and ZSTD level 1 (compact) or LZ4 level 5 (fast). On real head CT, LZ4 took 0.56 of the time
        to write and to read, and 1.2 to 1.25 times the bytes; bit shuffle and other levels were no better.
    """
    assert volume.dtype == np.int16
    assert volume.ndim in (3, 4)
    name, level = _CODECS[codec]
    array = blosc2.empty(
        volume.shape,
        dtype=volume.dtype,
        chunks=(1, *volume.shape[1:]),
        blocks=(*(1,) * (volume.ndim - 2), _block_rows(*volume.shape[-2:]), volume.shape[-1]),
        cparams=blosc2.CParams(codec=name, clevel=level, typesize=2, filters=[blosc2.Filter.SHUFFLE], nthreads=1),
        dparams=blosc2.DParams(nthreads=1),
    )
    # Chunk by chunk, because a chunk is a slice as it lies in memory; assigning to the array would copy each first.
    for row, image in enumerate(np.ascontiguousarray(volume)):
        array.schunk.update_data(row, image, copy=False)
    frame: bytes = array.to_cframe()
    return frame


def _block_rows(height: int, width: int) -> int:
    """Rows of a block: as many as fit `_BLOCK_VALUES` and divide the height, so that a chunk has no padding.

    Stated, not left to the library, whose own choice follows the processor's caches.
    """
    fitting = [rows for rows in range(1, height + 1) if height % rows == 0 and rows * width <= _BLOCK_VALUES]
    best = max(fitting, default=1)
    return best if best * width * _FEW_BLOCKS >= _BLOCK_VALUES else height


def write_volume(folder: Path, key: str, volume: np.ndarray, codec: Codec = COMPACT) -> tuple[str, FileDigest]:
    """Writes a volume below `folder`; returns its path relative to it and its digest.

    Args:
        key: hex digest that names the file; its first two digits name the subfolder, so that no folder grows too long.
        volume: (S, H, W) or (S, M, H, W) int16 HU.
    """
    relative = volume_path(key)
    return relative, write_bytes_atomically(folder / relative, encode_volume(volume, codec))


def volume_path(key: str) -> str:
    """Path of the volume of that key, relative to the store."""
    return f"volumes/{key[:2]}/{key}.b2nd"


def open_volume(path: Path) -> blosc2.NDArray:
    """A lazily read (S, H, W) int16 array.

    Raises:
        ArtifactError: missing or damaged.
    """
    try:
        return blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
    except (OSError, RuntimeError, ValueError) as error:
        raise _damaged(path) from error


def read_rows(path: Path, volume: blosc2.NDArray, first: int, last: int) -> np.ndarray:
    """(last - first, H, W) int16 HU of an open volume; only the chunks of these slices are read.

    Args:
        path: of the volume, for the message.

    Raises:
        ArtifactError: a chunk is damaged.
    """
    try:
        return np.asarray(volume[first:last])
    except (RuntimeError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(f"{path}: no readable volume. `ichkit verify` lists what is damaged.")


@dataclass(frozen=True)
class Prepared:
    """A finished `prepared` folder: tables in memory, volumes on disk.

    Attributes:
        slices: columns of `schemas.slices_dtypes`, sorted by dataset, study_id, slice_index.
        studies: columns of `schemas.studies_dtypes`.
        folds: patient_id, fold.
    """

    folder: Path
    task: Task
    manifest: Manifest
    slices: pd.DataFrame
    studies: pd.DataFrame
    folds: pd.DataFrame

    @classmethod
    def open(cls, folder: Path, task: Task) -> "Prepared":
        """The store in that folder.

        Raises:
            ArtifactError: missing, unfinished, made with another task, or a table of it cannot be read.
        """

        def read(manifest: Manifest) -> Prepared:
            _check_task(folder, manifest, task)
            check_sizes(folder, manifest)
            slices, studies = (
                read_table(folder / name, manifest.sha256_of(name)) for name in ("slices.parquet", "studies.parquet")
            )
            dtypes = {"patient_id": str, "fold": int}
            folds = read_table(folder / "folds.csv", manifest.sha256_of("folds.csv"), dtype=dtypes)
            return cls(folder, task, manifest, slices, studies, folds)

        return read_whole(folder, read)

    @cached_property
    def fold_numbers(self) -> list[int]:
        """Every fold of `folds.csv`, ascending."""
        return sorted(int(fold) for fold in self.folds.fold.unique())

    @property
    def num_folds(self) -> int:
        """Number of folds."""
        return len(self.fold_numbers)

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps applied to its volumes, rows of `imaging.steps.STEPS`."""
        return tuple(self.manifest.settings.get("steps", ()))

    @cached_property
    def parts(self) -> PartSettings:
        """How its studies were cut."""
        return PartSettings.from_json(self.manifest.settings.get("parts"))

    @property
    def sequences(self) -> dict[str, Any]:
        """How several sequences became one volume (`imaging.sequences.SequenceSettings`); empty for one."""
        return dict(self.manifest.settings.get("sequences", {}))

    def header_facts(self) -> pd.DataFrame:
        """dataset, study_id and the facts of headers that were asked for; no rows if none was (`header_facts`)."""
        if not self.manifest.settings.get("header_facts"):
            return pd.DataFrame({"dataset": pd.Series(dtype="str"), "study_id": pd.Series(dtype="str")})
        return self.read_table(HEADER_FACTS_NAME)

    def study_groups(self) -> pd.DataFrame:
        """dataset, study_id, and the facts that make subgroups: of headers, and columns of the label files."""
        facts = self.header_facts()
        if SUBGROUPS_NAME not in self.manifest.files:
            return facts
        own = self.read_table(SUBGROUPS_NAME)
        return own if facts.empty else facts.merge(own, on=["dataset", "study_id"], how="outer")

    def crops(self) -> pd.DataFrame:
        """`crops.parquet`: the part of the source image in each volume; no rows without steps and parts."""
        if not self.steps and self.parts.kind == WHOLE:
            return pd.DataFrame(columns=list(CROPS))
        return self.read_table(CROPS_NAME)

    @cached_property
    def origins(self) -> dict[str, Origin]:
        """The part of the source image in each volume, by volume; empty in a store without steps and parts."""
        crops = self.crops()
        fields = [field.name for field in dataclasses.fields(Origin) if field.name in crops]
        return {row["volume"]: Origin(**{name: row[name] for name in fields}) for row in crops.to_dict("records")}

    def external_sets(self) -> tuple[str, ...]:
        """The external sets by name; the standard one is always the first, even without slices."""
        tables = (self.slices, self.studies)
        return order_external({name for table in tables for name in table.dataset[table.split == Role.EXTERNAL]})

    def split(self, name: str) -> pd.DataFrame:
        """The slices of "train", "test" or an external set, sorted by study_id and slice_index, with a fresh index.

        Raises:
            ArtifactError: there is no such external set.
        """
        is_own = self.slices.split == name
        if name not in ("train", "test"):
            if name not in self.external_sets():
                raise ArtifactError(
                    f'{self.folder}: no external set "{name}" is prepared, only {", ".join(self.external_sets())}. '
                    f"Run `ichkit prepare --external {name}=PATH --labels CSV`."
                )
            is_own = (self.slices.dataset == name) & (self.slices.split == Role.EXTERNAL)
        return sort_rows(self.slices[is_own])

    def sample_ids(self) -> pd.DataFrame:
        """ID of the sample submission, in its order."""
        return self.read_table("sample_ids.csv", dtype={"ID": str})

    def rejected(self) -> pd.DataFrame:
        """Rejected files, with the reason."""
        text = ["dataset", "split", "slice_id", "study_id", "series_id", "file", "reason"]
        return self.read_table("rejected.csv", dtype=dict.fromkeys(text, str))

    def read_volume(self, relative: str) -> np.ndarray:
        """(S, H, W) int16 HU of one study, row i is slice_index i."""
        volume = open_volume(self.folder / relative)
        return read_rows(self.folder / relative, volume, 0, len(volume))

    def read_slices(self, relative: str, first: int, last: int) -> np.ndarray:
        """(last - first, H, W) int16 HU, slices first to last - 1; only their chunks are read."""
        return read_rows(self.folder / relative, open_volume(self.folder / relative), first, last)

    def slice_facts(self) -> pd.DataFrame:
        """Facts from pixels and orientation of each slice, rows as in `slices`: slice_id, dataset, and two facts.

        brain_share is the share of pixels from 0 to 80 HU, tilt_degrees the angle of the slice to the axial plane.
        """
        return self.read_table(FACTS_NAME)

    def read_table(self, name: str, **options: Any) -> pd.DataFrame:
        """One of its tables, compared with its digest; `options` are for pandas."""
        return read_table(self.folder / name, self.manifest.sha256_of(name), **options)


def _check_task(folder: Path, manifest: Manifest, task: Task) -> None:
    """Refuses a store that was made with another task."""
    found = manifest.settings.get("task")
    if found != task.name:
        raise ArtifactError(
            f'{folder}: expected a store of the task "{task.name}", found one of "{found}". Use the config it was '
            "prepared with, or another --work folder."
        )
