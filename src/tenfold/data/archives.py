"""Archives from strangers: tar and zip, read without a path, link, device or size being believed.

    for member in scan_tar(path): member.name, member.data        regular files only, in file order
    unpack_tar(path, folder)                                      all or nothing
    read_zip(path, ["a/b.txt"])                                   {name: bytes} of the members asked for

Everything refused is a DataError that names the archive and the member.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tenfold.data.atomic import aside
from tenfold.errors import DataError

MAX_MEMBERS = 200_000  # to read from
MAX_UNPACKED_MEMBERS = 10_000  # to make files of
MAX_UNPACKED = 16 * 2**30
MAX_ZIP_DIRECTORY = 8 * 2**20  # the table of contents: about 100,000 members
MAX_HEADER = 2**20  # a pax header or long name; tarfile reads it whole, whatever size it claims
COMPRESSIONS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


@dataclass(frozen=True)
class TarMember:
    """A regular file of a tar: where its bytes stand in the (decompressed) archive, and how to read them now."""

    name: str
    offset: int
    size: int
    read: Callable[[], bytes]


def compressed(path: Path) -> bool:
    """Whether the tar is gzip, bzip2 or xz, so that its members cannot be read out of order."""
    try:
        with path.open("rb") as file:
            return file.read(6).startswith(tuple(COMPRESSIONS))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def scan_tar(path: Path, max_members: int = MAX_MEMBERS) -> Iterator[TarMember]:
    """The regular files of a tar, one by one; folders are passed over. `member.read()` works until the next is asked for.

    Raises DataError for links, devices, sparse files, names that leave the archive, more than `max_members` entries, a
    torn archive, and a compressed one that unpacks to more than 16 GiB.
    """
    max_bytes = MAX_UNPACKED if compressed(path) else 2**63  # only a compressed tar can claim more than it holds
    with _opened(path) as stream, _tar(path, stream) as tar:
        for info in _entries(path, tar, max_members, max_bytes):
            if info.isfile():
                yield TarMember(info.name, info.offset_data, info.size, lambda i=info: _member(path, stream, i))


def unpack_tar(
    path: Path, folder: Path, max_members: int = MAX_UNPACKED_MEMBERS, max_bytes: int = MAX_UNPACKED
) -> None:
    """Unpacks a tar into a new folder; when anything is refused, nothing of it stays."""
    if folder.exists():
        raise DataError(f"{folder} exists; choose a folder that does not.")
    with aside(folder) as target:
        target.mkdir()
        with _opened(path) as stream, _tar(path, stream) as tar:
            for info in _entries(path, tar, max_members, max_bytes):
                try:
                    tar.extract(info, target, filter="data")
                except tarfile.TarError as error:
                    raise DataError(f"{path}: {info.name} is refused: {error}.") from error
                except OSError as error:
                    if isinstance(error, (gzip.BadGzipFile, FileExistsError, NotADirectoryError, IsADirectoryError)):
                        raise DataError(f"{path}: {info.name} cannot be unpacked: {error}.") from error
                    raise  # a full disk is not the archive's fault: `aside` says so


def read_zip(path: Path, names: Sequence[str], max_bytes: int = 2**30) -> dict[str, bytes]:
    """The members `names` of a zip. Raises DataError when one is absent, damaged, or larger than `max_bytes`."""
    found: dict[str, bytes] = {}
    try:
        _check_zip_directory(path)
        with zipfile.ZipFile(path) as archive:
            for name in names:
                try:
                    info = archive.getinfo(name)
                except KeyError:
                    raise DataError(f"{path} has no member {name}.") from None
                if info.file_size > max_bytes:
                    raise DataError(f"{path}: {name} unpacks to {info.file_size:,} bytes; allowed are {max_bytes:,}.")
                with archive.open(info) as member:  # zipfile reads no more than the header promises
                    found[name] = member.read(max_bytes)
    except (*BROKEN, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is not a zip that can be read: {error}.") from error
    return found


def _check_zip_directory(path: Path) -> None:
    """Bounds the table of contents, which zipfile reads whole, from the record at the end of the file."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 65_557))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise DataError(f"{path} is not a zip: its end record is missing.")
    if tail[max(0, at - 20) :].startswith(b"PK\x06\x07"):
        raise DataError(f"{path} is a zip64 archive, which is not read here.")
    (directory,) = struct.unpack("<I", tail[at + 12 : at + 16])
    if directory > MAX_ZIP_DIRECTORY:
        raise DataError(f"{path} has a table of contents of {directory:,} bytes; allowed are {MAX_ZIP_DIRECTORY:,}.")


class _Bounded(io.RawIOBase):
    """A stream that refuses to read more than a header's worth at once."""

    def __init__(self, stream: io.BufferedIOBase, path: Path) -> None:
        self.stream, self.path = stream, path

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise DataError(f"{self.path} has a header of {size:,} bytes; allowed are {MAX_HEADER:,}.")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()


def _opened(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        opener = next((o for m, o in COMPRESSIONS.items() if magic.startswith(m)), None)
        return closing(opener(path) if opener else path.open("rb"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _tar(path: Path, stream: io.BufferedIOBase) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=_Bounded(stream, path), mode="r:")  # type: ignore[arg-type]
    except BROKEN as error:
        raise DataError(f"{path} is not a tar: {error}.") from error


def _entries(path: Path, tar: tarfile.TarFile, max_members: int, max_bytes: int) -> Iterator[tarfile.TarInfo]:
    count = total = 0
    while True:
        try:
            info = tar.next()
        except BROKEN as error:
            raise DataError(f"{path} is torn: {error}.") from error
        if info is None:
            _check_end(path, tar)
            return
        # tarfile keeps every header, 1 KB each, for searches by name that are not made here.
        tar.members.clear()  # type: ignore[attr-defined]
        count, total = count + 1, total + info.size
        if total > max_bytes:
            raise DataError(f"{path} unpacks to more than {max_bytes:,} bytes ({info.name}).")
        if count > max_members:
            raise DataError(f"{path} has more than {max_members:,} entries; split it into shards.")
        name = PurePosixPath(info.name)
        if name.is_absolute() or ".." in name.parts:
            raise DataError(f"{path}: {info.name} points outside the archive.")
        if info.issparse() or not (info.isfile() or info.isdir()):
            raise DataError(f"{path}: {info.name} is neither a plain file nor a folder (link, device or sparse file).")
        yield info


def _check_end(path: Path, tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged or torn header for the end of the archive; the end is a block of zeros."""
    stream: Any = tar.fileobj
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise DataError(f"{path} is torn or damaged at byte {tar.offset:,}.")


def _member(path: Path, stream: io.BufferedIOBase, info: tarfile.TarInfo) -> bytes:
    try:
        stream.seek(info.offset_data)
        data = stream.read(info.size)
    except BROKEN as error:
        raise DataError(f"{path}: {info.name} cannot be read: {error}.") from error
    if len(data) != info.size:
        raise DataError(f"{path}: {info.name} is cut short: {len(data):,} of {info.size:,} bytes.")
    return data
