"""R4 and R5: archives, arrays and JSON made to harm. Nothing runs, nothing lands outside, refused in under 2 s, in little
memory."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import resource
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tenfold.data.archives import read_zip, scan_tar, unpack_tar
from tenfold.data.readers import read_json, read_npy
from tenfold.data.sources import open_source
from tenfold.errors import DataError

MIB = 2**20


@contextmanager
def refused(match: str) -> Iterator[None]:
    """A DataError within 2 s, for less than 200 MiB (the peak of this process, which never falls)."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DataError, match=match):
        yield
    assert time.process_time() - start < 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("first.txt"))
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


HOSTILE = {
    "parent": member("../out.txt", size=3),
    "deep parent": member("a/../../out.txt", size=3),
    "absolute": member("/tmp/tenfold-out.txt", size=3),
    "symbolic link out": member("link", tarfile.SYMTYPE, "../../out.txt"),
    "hard link out": member("link", tarfile.LNKTYPE, "/etc/passwd"),
    "character device": member("null", tarfile.CHRTYPE),
    "block device": member("disk", tarfile.BLKTYPE),
    "pipe": member("pipe", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_leaves_nothing_inside_or_outside(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "a.tar", HOSTILE[name])
    with refused(r"a\.tar: .*(outside|neither)"):
        unpack_tar(path, tmp_path / "deep" / "target")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar", "deep"]
    assert not Path("/tmp/tenfold-out.txt").exists()
    with refused(r"a\.tar"):
        open_source(path)


def test_an_honest_tar_is_unpacked_whole(tmp_path: Path) -> None:
    unpack_tar(tar_of(tmp_path / "a.tar", member("a/b.txt", size=3)), tmp_path / "target")
    assert (tmp_path / "target/a/b.txt").read_bytes() == b"xxx"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "target"]
    with refused("exists"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "target")


def test_a_million_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(tarfile.TarInfo("x").tobuf() * 10_000)
    with refused("more than 5,000 entries"):
        list(scan_tar(path, max_members=5_000))
    with refused("more than 1,000 entries"):
        unpack_tar(path, tmp_path / "target", max_members=1_000)
    assert not (tmp_path / "target").exists()


def test_a_sparse_terabyte_is_refused(tmp_path: Path) -> None:
    info = member("huge", tarfile.GNUTYPE_SPARSE)
    info.size = 512
    buffer = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    buffer[386:410] = b"00000000000\x0000000001000\x00"  # one piece of 512 bytes at 0
    buffer[483:495] = b"\x80" + (2**40).to_bytes(11, "big")  # the size after expansion
    buffer[148:156] = b" " * 8
    buffer[148:156] = f"{sum(buffer[:512]):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(bytes(buffer) + b"\0" * 512 * 3)
    with refused(r"huge"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_member_that_claims_a_terabyte_is_refused(tmp_path: Path) -> None:
    info = member("huge", size=2**40)
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with refused("more than"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "target")
    with refused(r"torn|images"):
        open_source(tmp_path / "a.tar")


def test_a_pax_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = member("header", tarfile.XHDTYPE)
    info.size = 2 * 2**30
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.write(b"\0" * 4 * MIB)
    with refused("header of"):
        list(scan_tar(tmp_path / "a.tar.gz"))


@pytest.mark.parametrize("cut", [100, 700, 1100, 5000])
def test_a_torn_tar_is_named(tmp_path: Path, cut: int) -> None:
    whole = tar_of(tmp_path / "whole.tar", member("a.jpg", size=9000), member("b.jpg", size=9000)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    with refused(r"a\.tar"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_zip_bomb_is_refused_by_its_promise_and_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("big", "w") as file:
        for _ in range(300):
            file.write(b"\0" * MIB)
    with refused(r"big unpacks to 314,572,800 bytes"):
        read_zip(path, ["big"], max_bytes=100 * MIB)
    data = path.read_bytes()
    lie = data.replace(struct.pack("<I", 300 * MIB), struct.pack("<I", 10))
    assert lie != data
    path.write_bytes(lie)
    with refused(r"bomb\.zip"):
        read_zip(path, ["big"], max_bytes=100 * MIB)


def test_a_zip_with_a_huge_table_of_contents_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    path.write_bytes(b"\0" * 1000 + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65_534, 65_534, 400 * MIB, 0, 0))
    with refused("table of contents"):
        read_zip(path, ["a"])
    path.write_bytes(b"PK\x06\x07" + b"\0" * 16 + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0))
    with refused("zip64"):
        read_zip(path, ["a"])


class _Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_in_an_array_does_not_run(tmp_path: Path) -> None:
    objects = np.empty(1, object)
    objects[0] = _Runs(tmp_path / "ran")
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(_Runs(tmp_path / "ran")))
    for name in ("a.npy", "b.npy"):
        with refused(name):
            read_npy(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shape", [(10**12,), (2**62, 4), (3,)])
def test_an_array_header_that_promises_other_bytes_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    (tmp_path / "a.npy").write_bytes(buffer.getvalue() + b"\0" * 64)
    with refused(r"a\.npy is torn"):
        read_npy(tmp_path / "a.npy")
    np.save(tmp_path / "good.npy", np.arange(6).reshape(2, 3))
    assert read_npy(tmp_path / "good.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b"[" + b"[]," * 2_000_000 + b"1]", "allowed are"),
        (b"1" * 100_000, "not JSON"),
        (b'{"a": ', "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
    ],
    ids=["open brackets", "deep", "wide", "digits", "cut", "bytes"],
)
def test_a_json_bomb_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with refused(rf"a\.json.*{why}"):
        read_json(tmp_path / "a.json")


def test_the_largest_json_allowed_stays_within_the_memory_allowed() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(read_json(b"[" + b"[]," * 690_000 + b"1]")) == 690_001
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200
