"""Files of a data root, whether they lie in folders or in zips; zip members are read by offset, without a directory."""

import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pandas as pd

from ichkit.core.errors import DataError
from ichkit.imaging.dicom import MAX_FILE_BYTES, UnreadableError

FILE_COLUMNS = ["relative", "container", "num_bytes", "zip_offset", "zip_bytes", "zip_method"]
MAX_RATIO = 1000
"""A blank CT slice deflates about 500 to 1; a bomb goes far beyond that."""
_RATIO_FREE_BYTES = 16 * 1024**2
_LOCAL_HEADER_BYTES = 30
_LOCAL_MAGIC = b"PK\x03\x04"
_PLAIN = -1
_INFLATE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class FileRef:
    """One file, plain or a zip member.

    Attributes:
        relative: path below the root; a member's stands behind its zip's.
        container: the plain file, or the zip that holds it.
        num_bytes: size when unpacked.
        zip_offset: where the member's local header begins; -1 for a plain file.
        zip_bytes, zip_method: compressed size and method of the member.
    """

    relative: str
    container: str
    num_bytes: int
    zip_offset: int
    zip_bytes: int
    zip_method: int

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset`, or fewer where the file ends.

        Raises:
            UnreadableError: gone, shorter than its zip says, or damaged.
        """
        try:
            # Unbuffered and without a path object: opening twice a file is a fiftieth of all the time of `prepare`.
            with open(self.container, "rb", buffering=0) as file:  # noqa: PTH123
                if self.zip_offset == _PLAIN:
                    file.seek(offset)
                    return file.read(-1 if length is None else length)
                return self._read_member(file, offset, self.num_bytes - offset if length is None else length)
        except (OSError, zlib.error, struct.error) as error:
            raise UnreadableError(f"cannot be read ({type(error).__name__})") from error

    def _read_member(self, file: BinaryIO, offset: int, length: int) -> bytes:
        file.seek(self.zip_offset)
        local = file.read(_LOCAL_HEADER_BYTES)
        if local[:4] != _LOCAL_MAGIC:
            raise UnreadableError("damaged zip member")
        name_bytes, extra_bytes = struct.unpack_from("<HH", local, 26)
        file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
        end = min(offset + length, self.num_bytes)
        if self.zip_method == zipfile.ZIP_STORED:
            file.seek(offset, os.SEEK_CUR)
            return file.read(max(0, min(end, self.zip_bytes) - offset))
        return _inflate(file, self.zip_bytes, max(end, 1))[offset:end]


def scan_files(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every file below a root, and the zip members that are refused.

    Args:
        root: a folder, which may hold zips, or one zip.

    Returns:
        files with `FILE_COLUMNS`, sorted by relative path, and refused members with columns relative, reason.

    Raises:
        DataError: nothing there.
    """
    if not root.exists():
        raise DataError(f"data: expected a folder or a zip at {root}, found nothing. Check the path.")
    plain = [(root.name, str(root), root.stat().st_size)] if root.is_file() else _walk(root)
    rows: list[tuple[str, str, int, int, int, int]] = []
    refused: list[tuple[str, str]] = []
    for relative, path, num_bytes in plain:
        if not _is_unicode(path):
            refused.append((relative.encode("ascii", "backslashreplace").decode(), "file name is not UTF-8"))
        elif path.lower().endswith(".zip"):
            prefix = "" if root.is_file() else f"{relative}/"
            _list_members(Path(path), prefix, rows, refused)
        else:
            rows.append((relative, path, num_bytes, _PLAIN, 0, 0))
    files = pd.DataFrame(rows, columns=FILE_COLUMNS).astype({"relative": "str", "container": "str"})
    return files.sort_values("relative", ignore_index=True), pd.DataFrame(refused, columns=["relative", "reason"])


def file_ref(row: tuple) -> FileRef:
    """The reference of one row with `FILE_COLUMNS`."""
    relative, container, num_bytes, zip_offset, zip_bytes, zip_method = row
    return FileRef(relative, container, int(num_bytes), int(zip_offset), int(zip_bytes), int(zip_method))


def file_refs(files: pd.DataFrame) -> list[FileRef]:
    """A reference for each row."""
    columns = [files[name].to_list() for name in FILE_COLUMNS]
    return [file_ref(row) for row in zip(*columns, strict=True)]


def find_one(files: pd.DataFrame, pattern: str) -> FileRef | None:
    """The file whose relative path matches a regular expression, the one least deep where several do; else None."""
    found = files[files.relative.str.contains(pattern, regex=True)]
    if found.empty:
        return None
    depth = found.relative.str.count("/")
    return file_refs(found.iloc[np.argsort(depth.to_numpy(), kind="stable")[:1]])[0]


def _walk(root: Path) -> list[tuple[str, str, int]]:
    """(path below the root with "/", path, bytes) of regular files; linked folders are followed once.

    Devices and pipes are not files. Plain strings, because a path object each is half the time on 870,000 files.
    """
    found, folders, seen = [], [("", str(root))], set()
    while folders:
        prefix, folder = folders.pop()
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in os.scandir(folder):
            try:
                status = entry.stat()
            except OSError:  # a link to nowhere
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append((f"{prefix}{entry.name}/", entry.path))
            elif stat.S_ISREG(status.st_mode):
                found.append((prefix + entry.name, entry.path, status.st_size))
    return found


def _is_unicode(path: str) -> bool:
    """False for a name whose bytes on disk are no UTF-8: no table could hold it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _inflate(file: BinaryIO, zip_bytes: int, wanted: int) -> bytes:
    """The first `wanted` bytes of a deflated member; no more of it is read than that takes."""
    inflater, pieces, left = zlib.decompressobj(-zlib.MAX_WBITS), [], wanted
    while left > 0 and zip_bytes > 0 and not inflater.eof:
        packed = file.read(min(zip_bytes, _INFLATE_BYTES))
        if not packed:
            break
        zip_bytes -= len(packed)
        pieces.append(inflater.decompress(packed, left))
        left -= len(pieces[-1])
    return b"".join(pieces)


def _list_members(path: Path, prefix: str, rows: list, refused: list) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        refused.append((prefix.rstrip("/") or path.name, f"zip cannot be read ({type(error).__name__})"))
        return
    for info in members:
        relative = prefix + info.filename
        reason = _why_refused(info)
        if reason:
            refused.append((relative, reason))
        else:
            place = (info.header_offset, info.compress_size, info.compress_type)
            rows.append((relative, str(path), info.file_size, *place))


def _why_refused(info: zipfile.ZipInfo) -> str:
    parts = PurePosixPath(info.filename.replace("\\", "/")).parts
    if info.filename.startswith(("/", "\\")) or ".." in parts or (parts and ":" in parts[0]):
        return "zip member's path leaves the zip"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "zip member is a link"
    if info.flag_bits & 1:
        return "zip member is encrypted"
    if info.file_size > MAX_FILE_BYTES:
        return f"zip member is larger than {MAX_FILE_BYTES // 1024**2} MB"
    if info.file_size > _RATIO_FREE_BYTES and info.file_size > MAX_RATIO * max(info.compress_size, 1):
        return f"zip member is compressed more than {MAX_RATIO} to 1"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "zip member's compression is neither stored nor deflated"
    return ""
