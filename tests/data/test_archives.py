"""Tar and zip archives made to harm: nothing lands outside, and each is refused in under 2 s and in little memory."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from refusals import refused
from tenfold.data.archives import compressed, read_zip, scan_tar, unpack_tar
from tenfold.data.sources import open_source
from tenfold.errors import DataError

MIB = 2**20


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
    with refused(DataError, r"a\.tar: .*(outside|neither)"):
        unpack_tar(path, tmp_path / "deep" / "target")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar", "deep"]
    assert not Path("/tmp/tenfold-out.txt").exists()
    with refused(DataError, r"a\.tar"):
        open_source(path)


def test_an_honest_tar_is_unpacked_whole(tmp_path: Path) -> None:
    unpack_tar(tar_of(tmp_path / "a.tar", member("a/b.txt", size=3)), tmp_path / "target")
    assert (tmp_path / "target/a/b.txt").read_bytes() == b"xxx"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "target"]
    with refused(DataError, "exists"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "target")


def test_a_million_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(tarfile.TarInfo("x").tobuf() * 10_000)
    with refused(DataError, "more than 5,000 entries"):
        list(scan_tar(path, max_members=5_000))
    with refused(DataError, "more than 1,000 entries"):
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
    with refused(DataError, r"huge"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_member_that_claims_a_terabyte_is_refused(tmp_path: Path) -> None:
    info = member("huge", size=2**40)
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with refused(DataError, "more than"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "target")
    with refused(DataError, r"torn|images"):
        open_source(tmp_path / "a.tar")


def test_a_pax_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = member("header", tarfile.XHDTYPE)
    info.size = 2 * 2**30
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.write(b"\0" * 4 * MIB)
    with refused(DataError, "header of"):
        list(scan_tar(tmp_path / "a.tar.gz"))


@pytest.mark.parametrize("cut", [100, 700, 1100, 5000])
def test_a_torn_tar_is_named(tmp_path: Path, cut: int) -> None:
    whole = tar_of(tmp_path / "whole.tar", member("a.jpg", size=9000), member("b.jpg", size=9000)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    with refused(DataError, r"a\.tar"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_zip_bomb_is_refused_by_its_promise_and_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("big", "w") as file:
        for _ in range(300):
            file.write(b"\0" * MIB)
    with refused(DataError, r"big unpacks to 314,572,800 bytes"):
        read_zip(path, ["big"], max_bytes=100 * MIB)
    data = path.read_bytes()
    lie = data.replace(struct.pack("<I", 300 * MIB), struct.pack("<I", 10))
    assert lie != data
    path.write_bytes(lie)
    with refused(DataError, r"bomb\.zip"):
        read_zip(path, ["big"], max_bytes=100 * MIB)


def test_a_zip_with_a_huge_table_of_contents_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    path.write_bytes(b"\0" * 1000 + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65_534, 65_534, 400 * MIB, 0, 0))
    with refused(DataError, "table of contents"):
        read_zip(path, ["a"])
    path.write_bytes(b"PK\x06\x07" + b"\0" * 16 + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0))
    with refused(DataError, "zip64"):
        read_zip(path, ["a"])


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_regular_files_come_in_file_order_with_their_bytes_whatever_the_compression(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    mode = "w:" + ending.removeprefix("tar").removeprefix(".")
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.addfile(member("folder", tarfile.DIRTYPE))
        for name, data in (("folder/b", b"second"), ("a", b""), ("c", b"third" * 300)):
            tar.addfile(member(name, size=len(data)), io.BytesIO(data))
    assert compressed(path) == (ending != "tar")
    found = [(m.name, m.read()) for m in scan_tar(path)]
    assert found == [("folder/b", b"second"), ("a", b""), ("c", b"third" * 300)]


def test_the_offset_of_a_member_of_a_plain_tar_is_where_its_bytes_stand(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", member("b", size=700), member("c", size=5))
    whole = path.read_bytes()
    assert [whole[m.offset : m.offset + m.size] for m in scan_tar(path)] == [b"", b"x" * 700, b"x" * 5]


def test_a_damaged_member_of_a_zip_is_refused_and_an_absent_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good", b"1234")
        archive.writestr("bad", b"to be changed")
    path.write_bytes(path.read_bytes().replace(b"to be changed", b"to be CHANGED"))
    assert read_zip(path, ["good"]) == {"good": b"1234"}
    with refused(DataError, r"a\.zip is not a zip that can be read"):
        read_zip(path, ["good", "bad"])
    with refused(DataError, r"a\.zip has no member absent"):
        read_zip(path, ["absent"])
