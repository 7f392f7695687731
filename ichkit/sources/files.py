"""The files of a data root, in folders or zip files; zip members are read by offset, without the zip directory."""

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pandas as pd

from ichkit.core.errors import DataError
from ichkit.imaging.dicom import MAX_FILE_BYTES, UnreadableError

try:
    from isal import isal_zlib as fast_zlib  # twice as fast, with the same result
except ImportError:
    import zlib as fast_zlib

FILE_COLUMNS = ["relative", "container", "num_bytes", "zip_offset", "zip_bytes", "zip_method", "zip_crc"]
MAX_RATIO = 1000
"""A blank CT slice is compressed about 500 to 1; a zip bomb far more."""
_RATIO_FREE_BYTES = 16 * 1024**2
_LOCAL_HEADER_BYTES = 30
_LOCAL_MAGIC = b"PK\x03\x04"
_PLAIN = -1
_INFLATE_BYTES = 64 * 1024
_PACKED = {
    ".gz": "gzip",
    ".tgz": "tar",
    ".tar": "tar",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".zst": "Zstandard",
    ".7z": "7-Zip",
    ".rar": "RAR",
}
_READ_ELSEWHERE = ".nii.gz"
_UNREADABLE_FOLDER = "folder cannot be read"
_ENCRYPTED = 0x1 | 0x40 | 0x2000
"""Encrypted, strongly encrypted, and an encrypted directory. Source: PKWARE APPNOTE 4.4.4."""
_Row = tuple[str, str, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class FileRef:
    """One file, plain or a zip member.

    Attributes:
        relative: path below the root; for a zip member, the path of the zip file and that inside it.
        container: the plain file, or the zip file that contains it.
        num_bytes: uncompressed size.
        zip_offset: position of the member's local header; -1 for a plain file.
        zip_bytes, zip_method, zip_crc: compressed size, method and CRC-32 of the member.
    """

    relative: str
    container: str
    num_bytes: int
    zip_offset: int
    zip_bytes: int
    zip_method: int
    zip_crc: int = 0

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset`, or fewer at the end of the file.

        The CRC-32 of a zip member is checked unless only its first bytes are read: the rest are pixels, and damaged
        pixels must not be used.

        Raises:
            UnreadableError: missing, larger than `MAX_FILE_BYTES`, or a zip member that is damaged or of another length
                than its zip file states.
        """
        wanted = max(self.num_bytes - offset, 0) if length is None else length
        if length is None and wanted > MAX_FILE_BYTES:
            raise UnreadableError(f"file is larger than {MAX_FILE_BYTES // 1024**2} MB")
        try:
            # Unbuffered and without a path object: opening each file twice takes 2 % of the time of `prepare`.
            with open(self.container, "rb", buffering=0) as file:  # noqa: PTH123
                if self.zip_offset == _PLAIN:
                    file.seek(offset)
                    return file.read(wanted)
                return self._read_member(file, offset, wanted)
        except (zlib.error, fast_zlib.error) as error:
            raise UnreadableError("damaged zip member") from error
        except (OSError, struct.error) as error:
            raise UnreadableError(f"cannot be read ({type(error).__name__})") from error

    def _read_member(self, file: BinaryIO, offset: int, length: int) -> bytes:
        file.seek(self.zip_offset)
        local = file.read(_LOCAL_HEADER_BYTES)
        if local[:4] != _LOCAL_MAGIC:
            raise UnreadableError("damaged zip member")
        name_bytes, extra_bytes = struct.unpack_from("<HH", local, 26)
        file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
        end = min(offset + length, self.num_bytes)
        if offset == 0 and end < self.num_bytes:
            return self._unpack(file, end)
        # One byte more than stated, to detect a member that is longer.
        whole = self._unpack(file, self.num_bytes + 1)
        if len(whole) != self.num_bytes:
            raise UnreadableError("zip member has another length than its zip states")
        if fast_zlib.crc32(whole) != self.zip_crc:
            raise UnreadableError("damaged zip member (CRC differs)")
        return whole[offset:end]

    def _unpack(self, file: BinaryIO, wanted: int) -> bytes:
        """The first `wanted` bytes of the member whose data begin at the current position."""
        if self.zip_method == zipfile.ZIP_STORED:
            return file.read(min(wanted, self.zip_bytes))
        return _inflate(file, self.zip_bytes, max(wanted, 1))


def scan_files(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every file below a root, and the files rejected before they are opened.

    Args:
        root: a folder, which may contain zip files, or one zip file.

    Returns:
        files with `FILE_COLUMNS`, sorted by relative path; and rejected files with columns relative, reason: unreadable
        folders and files, broken links, other archives, and zip members.

    Raises:
        DataError: the root does not exist or is not readable.
    """
    if not root.exists():
        raise DataError(f"data: expected a folder or a zip at {root}, found nothing. Check the path.")
    refused: list[tuple[str, str]] = []
    plain = [(root.name, str(root), root.stat().st_size)] if root.is_file() else _walk(root, refused)
    if not plain and ("", _UNREADABLE_FOLDER) in refused:
        raise DataError(f"data: expected a folder that can be read at {root}; this user may not read it.")
    rows: list[_Row] = []
    for relative, path, num_bytes in plain:
        if not _is_unicode(path):
            refused.append((_as_text(relative), "file name is not UTF-8"))
        elif path.lower().endswith(".zip"):
            prefix = "" if root.is_file() else f"{relative}/"
            _list_members(Path(path), prefix, rows, refused)
        elif reason := _why_packed(relative):
            refused.append((relative, reason))
        else:
            rows.append((relative, path, num_bytes, _PLAIN, 0, 0, 0))
    files = pd.DataFrame(rows, columns=FILE_COLUMNS).astype({"relative": "str", "container": "str"})
    return files.sort_values("relative", ignore_index=True), pd.DataFrame(refused, columns=["relative", "reason"])


def file_refs(files: pd.DataFrame) -> list[FileRef]:
    """A reference for each row."""
    columns = [files[name].to_list() for name in FILE_COLUMNS]
    return [FileRef(*row) for row in zip(*columns, strict=True)]


def count_read(files: pd.DataFrame) -> tuple[int, int]:
    """Number and total size in bytes of the files that are read: larger ones than `MAX_FILE_BYTES` are rejected unread.

    Args:
        files: num_bytes.

    Example:
        >>> count_read(pd.DataFrame({"num_bytes": [500_000, 10**13]}))
        (1, 500000)
    """
    sizes = files["num_bytes"][files["num_bytes"] <= MAX_FILE_BYTES]
    return len(sizes), int(sizes.sum())


def digest_tables(files: pd.DataFrame, patterns: Collection[str]) -> str:
    """Digest of the content of the tables, in the order of their paths.

    Args:
        patterns: regular expressions for the relative paths of the tables; other files are not opened.

    Raises:
        DataError: a table cannot be read, or is larger than `MAX_FILE_BYTES`.
    """
    is_table = np.zeros(len(files), bool)
    for pattern in patterns:
        is_table |= files["relative"].str.contains(pattern, regex=True).to_numpy()
    sha = hashlib.sha256()
    for ref in file_refs(files[is_table]):
        try:
            sha.update(ref.read())
        except UnreadableError as error:
            raise DataError(f"{ref.relative}: expected a table of this data set: {error}.") from error
    return sha.hexdigest()[:16]


def find_one(files: pd.DataFrame, pattern: str) -> FileRef | None:
    """The file whose relative path matches a regular expression; of several the least nested; None without any."""
    found = files[files.relative.str.contains(pattern, regex=True)]
    if found.empty:
        return None
    depth = found.relative.str.count("/")
    return file_refs(found.iloc[np.argsort(depth.to_numpy(), kind="stable")[:1]])[0]


def _walk(root: Path, refused: list[tuple[str, str]]) -> list[tuple[str, str, int]]:
    """(path below the root with "/", path, bytes) of regular files; linked folders are followed once.

    Devices and pipes are ignored. Strings, because path objects take half the time for 870,000 files.

    Args:
        refused: unreadable folders and files and broken links are added to it.
    """
    found, folders, seen = [], [("", str(root))], set()
    while folders:
        prefix, folder = folders.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(folder))
        except OSError:
            refused.append((_as_text(prefix.rstrip("/")), _UNREADABLE_FOLDER))
            continue
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as error:
                reason = "broken link" if entry.is_symlink() else f"cannot be read ({type(error).__name__})"
                refused.append((_as_text(prefix + entry.name), reason))
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append((f"{prefix}{entry.name}/", entry.path))
            elif stat.S_ISREG(status.st_mode):
                found.append((prefix + entry.name, entry.path, status.st_size))
    return found


def _as_text(relative: str) -> str:
    """A path as valid UTF-8 text."""
    return relative.encode("utf-8", "backslashreplace").decode()


def _why_packed(relative: str) -> str:
    """Why a file is rejected by its suffix: an unsupported archive; empty for any other."""
    name = relative.lower()
    if name.endswith(_READ_ELSEWHERE):
        return ""
    kind = next((kind for suffix, kind in _PACKED.items() if name.endswith(suffix)), "")
    return f"{kind} archive: unpack it first (only zip is read)" if kind else ""


def _is_unicode(path: str) -> bool:
    """False for a file name that is not valid UTF-8 and so cannot be stored in a table."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _inflate(file: BinaryIO, zip_bytes: int, wanted: int) -> bytes:
    """The first `wanted` bytes of a deflated member; reads no more than needed."""
    library = zlib if wanted < _INFLATE_BYTES else fast_zlib  # a header alone is slower with the fast one
    inflater, pieces, left = library.decompressobj(-zlib.MAX_WBITS), [], wanted
    while left > 0 and zip_bytes > 0 and not inflater.eof:
        packed = file.read(min(zip_bytes, _INFLATE_BYTES))
        if not packed:
            break
        zip_bytes -= len(packed)
        pieces.append(inflater.decompress(packed, left))
        left -= len(pieces[-1])
    return b"".join(pieces)


def _list_members(path: Path, prefix: str, rows: list[_Row], refused: list[tuple[str, str]]) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
        num_bytes = path.stat().st_size
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        refused.append((prefix.rstrip("/") or path.name, f"zip cannot be read ({type(error).__name__})"))
        return
    # Members that share bytes let a small zip file unpack to any size although each ratio is harmless.
    if sum(info.compress_size for info in members) > num_bytes:
        refused.append((prefix.rstrip("/") or path.name, "zip members overlap"))
        return
    seen: set[str] = set()
    for info in members:
        relative = prefix + info.filename
        reason = _why_refused(info) or ("zip holds this name twice" if info.filename in seen else "")
        seen.add(info.filename)
        if not 0 <= info.header_offset < num_bytes:
            reason = "zip member lies outside its zip"
        if reason:
            refused.append((_as_text(relative), reason))
        else:
            place = (info.header_offset, info.compress_size, info.compress_type, info.CRC)
            rows.append((relative, str(path), info.file_size, *place))


def _why_refused(info: zipfile.ZipInfo) -> str:
    parts = PurePosixPath(info.filename.replace("\\", "/")).parts
    if info.filename.startswith(("/", "\\")) or ".." in parts or (parts and ":" in parts[0]):
        return "zip member's path leaves the zip"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "zip member is a link"
    if info.flag_bits & _ENCRYPTED:
        return "zip member is encrypted"
    if info.file_size > MAX_FILE_BYTES:
        return f"zip member is larger than {MAX_FILE_BYTES // 1024**2} MB"
    if info.file_size > _RATIO_FREE_BYTES and info.file_size > MAX_RATIO * max(info.compress_size, 1):
        return f"zip member is compressed more than {MAX_RATIO} to 1"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "zip member's compression is neither stored nor deflated"
    if info.filename.lower().endswith(".zip"):
        return "zip inside a zip: unpack the outer one first"
    return _why_packed(info.filename)
