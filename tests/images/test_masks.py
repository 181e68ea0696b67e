"""Masks in every way that they are stored give the same classes, and lie over their photographs whatever the EXIF turn."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.data.readers import upright
from tenfold.errors import DataError
from tenfold.images.frames import open_frames, refuse_one_class
from tenfold.images.masks import read_mask

IDS = np.array([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]], np.uint8)


def png(pixels: np.ndarray, palette: list[int] | None = None, orientation: int | None = None) -> bytes:
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({"exif": exif} if orientation is not None else {}))
    return buffer.getvalue()


def packed(ids: np.ndarray, bits: int) -> bytes:
    """A grey PNG of few bits, which Pillow does not write."""
    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()) for row in ids]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def frames_of(folder: Path, *pairs: tuple[bytes, bytes]) -> Path:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number, (image, mask) in enumerate(pairs):
        (folder / f"images/{number}.png").write_bytes(image)
        (folder / f"masks/{number}.png").write_bytes(mask)
    return folder


@pytest.mark.parametrize(
    "stored",
    [
        png(IDS),
        png(IDS * 255),
        png(IDS, palette=[0, 0, 0, 255, 0, 0]),
        png(IDS.astype(bool)),
        packed(IDS, 1),
        packed(IDS, 2),
        packed(IDS, 4),
        png(IDS.astype(np.uint16)),
        png(IDS.astype(np.uint16) * 65_535),
        png(np.repeat(IDS[..., None], 3, 2)),
        png(np.repeat(IDS[..., None] * 255, 3, 2)),
        png(np.dstack([IDS * 200, IDS * 0, IDS * 30])),
        png(np.dstack([IDS * 200, IDS * 0, IDS * 30, IDS * 0 + 255])),
        png(np.dstack([IDS, IDS * 0 + 255])),
    ],
)
def test_two_classes_are_two_however_they_are_stored(tmp_path: Path, stored: bytes) -> None:
    frames = open_frames(frames_of(tmp_path, (png(np.zeros((3, 4, 3), np.uint8)), stored)))
    assert len(frames.classes) == 2
    assert np.array_equal(frames.masks[0].numpy(), IDS)
    refuse_one_class(frames)


@pytest.mark.parametrize("bits", [2, 4])
def test_ids_of_few_bits_are_not_spread(bits: int) -> None:
    ids = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    assert np.array_equal(read_mask(packed(ids, bits)).values, ids)


def test_ids_above_255_are_kept_and_255_is_one_of_them(tmp_path: Path) -> None:
    ids = np.array([[0, 255, 300, 65_535]], np.uint16)
    frames = open_frames(frames_of(tmp_path, (png(np.zeros((1, 4, 3), np.uint8)), png(ids))))
    assert (frames.masks[0].numpy() == ids).all()
    assert (len(frames.classes), frames.ignored) == (301, 65_535)


def test_255_beside_other_ids_stays_ignored(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255]], np.uint8)
    frames = open_frames(frames_of(tmp_path, (png(np.zeros((1, 3, 3), np.uint8)), png(ids))))
    assert (frames.classes, frames.ignored) == (("0", "1"), 255)


def test_one_class_left_is_refused_with_the_reason(tmp_path: Path) -> None:
    blank = np.zeros((1, 3), np.uint8)
    frames = open_frames(frames_of(tmp_path, (png(np.zeros((1, 3, 3), np.uint8)), png(blank))))
    with pytest.raises(DataError, match="class 0 alone beside 255, which means 'ignored'"):
        refuse_one_class(frames)


def test_colours_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    with pytest.raises(DataError, match="colours; allowed are 256"):
        open_frames(frames_of(tmp_path, (png(noise), png(noise))))
    with pytest.raises(DataError, match="transparent"):
        read_mask(png(np.dstack([IDS, IDS, IDS, IDS])))


SQUARE, OBLONG = (12, 12), (12, 20)


def drawn(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A red rectangle as it is stored, and its mask."""
    image, mask = np.full((*shape, 3), 128, np.uint8), np.zeros(shape, np.uint8)
    image[1:5, 2:9], mask[1:5, 2:9] = (255, 0, 0), 1
    return image, mask


def fits(folder: Path, number: int = 0) -> bool:
    frames = open_frames(folder)
    red = (frames.images[number].numpy()[..., 1] < 50).astype(np.int64)
    return np.array_equal(red, frames.masks[number].numpy())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [SQUARE, OBLONG])
def test_a_mask_lies_over_its_turned_photograph(tmp_path: Path, orientation: int, shape: tuple[int, int]) -> None:
    image, mask = drawn(shape)
    picture, shown = png(image, orientation=orientation), np.ascontiguousarray(upright(mask, orientation))
    assert fits(frames_of(tmp_path / "stored", (picture, png(mask))))
    assert fits(frames_of(tmp_path / "tagged", (picture, png(mask, orientation=orientation))))
    assert fits(frames_of(tmp_path / "shown", (picture, png(shown, orientation=1))))
    other, its = drawn(OBLONG)  # one photograph of the set that says how all masks were drawn
    pair = png(other, orientation=6), png(np.ascontiguousarray(upright(its, 6)))
    assert fits(frames_of(tmp_path / "set", (picture, png(shown)), pair))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_depth_map_is_turned_alike(tmp_path: Path, orientation: int) -> None:
    image, mask = drawn(OBLONG)
    for part in ("images", "depths"):
        (tmp_path / part).mkdir()
    (tmp_path / "images/a.png").write_bytes(png(image, orientation=orientation))
    np.save(tmp_path / "depths/a.npy", mask.astype(np.float32))
    frames = open_frames(tmp_path, "depth")
    assert np.array_equal(frames.depths[0].numpy() == 1, frames.images[0].numpy()[..., 1] < 50)
