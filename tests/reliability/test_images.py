"""R6: whatever an image file holds, the reader gives right pixels or a DataError, and a loader skips up to its rate."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tenfold.data.loader import Loader
from tenfold.data.readers import read_image
from tenfold.data.sources import InMemory, open_source
from tenfold.errors import DataError

ENCODINGS = {
    "jpeg": {"format": "JPEG"},
    "progressive jpeg": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP"},
    "gif": {"format": "GIF"},
    "bmp": {"format": "BMP"},
    "tiff": {"format": "TIFF"},
    "lzw tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "ppm": {"format": "PPM"},
}


@pytest.fixture(scope="module")
def photograph(test_data: Path) -> Image.Image:
    row = next(pq.ParquetFile(test_data / "vision/imagenette160_val.parquet").iter_batches(batch_size=1))
    return Image.open(io.BytesIO(row["image"][0].as_py())).convert("RGB").crop((0, 0, 160, 90))


def encoded(image: Image.Image, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **how)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_or_none(data: bytes) -> np.ndarray | None:
    try:
        return read_image(data)
    except DataError:
        return None


def png_of(width: int, height: int) -> bytes:
    """A valid header, and almost nothing behind it."""
    chunks = (
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT" + zlib.compress(b"\0" * 100),
        b"IEND",
    )
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_truncated_file_is_never_half_a_picture(photograph: Image.Image, name: str) -> None:
    data = encoded(photograph, **ENCODINGS[name])
    whole = read_image(data)
    assert whole.shape == (90, 160, 3)
    outcomes = {percent: read_or_none(data[: len(data) * percent // 100]) for percent in range(1, 100)}
    wrong = [
        percent for percent, pixels in outcomes.items() if pixels is not None and not np.array_equal(pixels, whole)
    ]
    assert wrong == []
    assert sum(pixels is None for pixels in outcomes.values()) > 90


def test_a_header_of_sixty_thousand_pixels_a_side_is_refused_before_decoding() -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match=r"60000 x 60000|more pixels"):
        read_image(png_of(60_000, 60_000))
    with pytest.raises(DataError, match="60000 x 10"):
        read_image(png_of(60_000, 10))
    assert time.monotonic() - start < 2


def test_an_animation_gives_its_first_frame(photograph: Image.Image) -> None:
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "green", "blue")]
    for how in ({"format": "GIF"}, {"format": "WEBP", "lossless": True}, {"format": "PNG"}):
        data = encoded(frames[0], save_all=True, append_images=frames[1:], **how)
        assert np.array_equal(read_image(data), np.full((10, 20, 3), (255, 0, 0))), how


def test_cmyk_is_turned_into_the_same_colors(photograph: Image.Image) -> None:
    data = encoded(photograph.convert("CMYK"), format="JPEG", quality=95)
    difference = np.abs(read_image(data).astype(int) - np.array(photograph))
    assert difference.mean() < 4


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))
    for how in ({"format": "PNG"}, {"format": "TIFF"}):
        pixels = read_image(encoded(Image.fromarray(ramp), **how))
        assert np.array_equal(pixels, np.repeat((ramp // 257)[..., None], 3, axis=2)), how


def test_pixels_of_unknown_range_are_refused_by_name() -> None:
    for values in (np.ones((4, 4), np.float32), np.ones((4, 4), np.int32)):
        with pytest.raises(DataError, match=r"scan\.tif .*unknown range"):
            read_image(encoded(Image.fromarray(values), format="TIFF"), "scan.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(upright)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that makes the stored picture
    stored = image.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    pixels = read_image(encoded(stored, format=kind, exif=exif, **lossless))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() <= 4


def test_palette_grey_and_transparency_become_what_a_viewer_shows(photograph: Image.Image) -> None:
    grey = np.array(photograph.convert("L"))
    assert np.array_equal(read_image(encoded(photograph.convert("L"), format="PNG")), np.repeat(grey[..., None], 3, 2))
    palette = photograph.quantize(64)
    assert np.array_equal(read_image(encoded(palette, format="PNG")), np.array(palette.convert("RGB")))
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    assert read_image(encoded(half, format="PNG")).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_the_content_decides_not_the_ending(photograph: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(photograph, format="JPEG"))
    assert np.array_equal(read_image(path), read_image(encoded(photograph, format="JPEG")))


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 1000, b"hello, this is text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"photo\.jpg"):
        read_image(path)


def test_paths_that_are_no_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.jpg", Path("/dev/zero"), Path("a\0b.jpg")):
        with pytest.raises(DataError, match=r"is not a file|cannot be read"):
            read_image(path)


@pytest.fixture
def folder(photograph: Image.Image, tmp_path: Path) -> Path:
    """200 images in two classes, of which `break_images` may spoil some."""
    for index in range(200):
        path = tmp_path / ("cat" if index < 100 else "dog") / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        photograph.resize((8, 8), box=(index // 4, 0, index // 4 + 80, 80)).save(path)
    return tmp_path


def spoil(folder: Path, indices: range) -> None:
    for index in indices:
        (folder / ("cat" if index < 100 else "dog") / f"{index:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_skips_up_to_its_rate_and_then_stops(folder: Path, workers: int) -> None:
    spoil(folder, range(50, 52))  # 1 %
    loader = Loader(
        open_source(folder), lambda s, _: s.name, 50, seed=0, workers=workers, collate=list, error_rate=0.01
    )
    stream = iter(loader)
    names = [name for _ in range(4) for name in next(stream)]
    assert len(loader.unreadable) == 2
    assert sorted({Path(n).name for n in names}) == [f"{i:03d}.png" for i in range(200) if i not in (50, 51)]
    assert sum(n.endswith("052.png") for n in names) == 3

    spoil(folder, range(150, 151))
    loader = Loader(
        open_source(folder), lambda s, _: s.name, 50, seed=0, workers=workers, collate=list, error_rate=0.01
    )
    with pytest.raises(DataError, match=r"3 of 200 images.*1\.0%") as caught:
        for _, _ in zip(range(4), loader):
            pass
    assert all(f"{i:03d}.png" in str(caught.value) for i in (50, 51, 150))


def test_decoding_into_memory_replaces_up_to_the_rate_and_then_stops(folder: Path) -> None:
    spoil(folder, range(99, 100))
    kept = InMemory(open_source(folder), side=8, error_rate=0.01)
    assert len(kept.replaced) == 1
    assert "099.png" in kept.replaced[0]
    assert np.array_equal(kept.images[99], kept.images[100])
    assert kept.labels is not None
    assert kept.labels[99] == 1  # the label goes with the image
    spoil(folder, range(10, 14))
    with pytest.raises(DataError, match=r"010\.png.*more than|3 of 200"):
        InMemory(open_source(folder), side=8, error_rate=0.01)
