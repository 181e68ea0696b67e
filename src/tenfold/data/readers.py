"""Bounded readers: every file that a user hands in goes through here and gives right values or a DataError.

    image = read_image("cat.jpg")                      uint8 (h, w, 3), upright, sRGB grey levels
    image = read_image(row["image"], name="row 17")    the same from encoded bytes in memory
    labels = read_json(path)                           bounded in size and depth
    depth = read_npy(path)                             never unpickles

The size is checked before anything is read, the header before anything is decoded; the contents decide the format, not
the file's ending. Archives (tar, zip) are in archives.py.
"""

from __future__ import annotations

import io
import json
import math
import stat
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from tenfold.errors import DataError, MissingExtra

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm"),
)
# What users have; not EPS, PDF or WMF, whose decoders start other programs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_IMAGE_BYTES = 256 * 2**20
MAX_PIXELS = 2**30 // 12  # 89 megapixels, 256 MiB of RGB: where Pillow itself begins to warn
MAX_SIDE = 32_768
MAX_JSON_BYTES = 2 * 2**20  # `[[],[],...` takes about 25 times its size in memory
MAX_JSON_DEPTH = 100
MAX_ARRAY_BYTES = 2**30
ORIENTATION = 0x0112  # EXIF tag
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF tag and its value


def read_bytes(path: Path | str, limit: int) -> bytes:
    """A regular file of at most `limit` bytes. Raises DataError for anything else, pipes and devices included."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is not a file.")
        if status.st_size > limit:
            raise DataError(f"{path} has {status.st_size:,} bytes; allowed are {limit:,}.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(data) > limit:
        raise DataError(f"{path} grew past {limit:,} bytes while it was read.")
    return data


def read_image(
    source: Path | str | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """An image as RGB grey levels, turned upright by its EXIF orientation.

    Grey, palette and CMYK become RGB, 16 bits are scaled to 8, transparent pixels stand on white, an animation gives
    its first frame. Raises DataError, naming `name` (by default the path), when the file is empty, truncated, no image,
    of a pixel type without a known range (floats, 32 bits), or larger than `max_pixels` in its header.
    """
    return read_oriented(source, name, max_pixels)[0]


def read_oriented(
    source: Path | str | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """The image as `read_image` gives it, and the EXIF orientation by which it was turned upright (1: as it is stored)."""
    PIL_Image = pillow()
    name = name or (str(source) if not isinstance(source, bytes) else "image")
    data = source if isinstance(source, bytes) else read_bytes(source, MAX_IMAGE_BYTES)
    if not data:
        raise DataError(f"{name} is empty.")
    try:
        with PIL_Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            if width * height > max_pixels or max(width, height) > MAX_SIDE:
                raise DataError(
                    f"{name} is {width} x {height} pixels; allowed are {max_pixels:,} in all and {MAX_SIDE:,} a side."
                )
            if image.format == "JPEG2000" and not image.mode.startswith("I;16") and (bits := _jpeg2000_bits(data)) > 8:
                raise DataError(
                    f"{name} is a JPEG 2000 of {bits} bits a colour, whose white the decoder makes black. Allowed are 8 "
                    f"bits, or 16 bits of grey: convert it to PNG or TIFF, which are read at 16 bits."
                )
            turned = orientation_of(image) if image.format == "TIFF" else None  # loading turns it and drops the tag
            image.load()
            pixels, orientation = _rgb(image, name), orientation_of(image)
            return np.ascontiguousarray(upright(pixels, orientation)), turned or orientation
    except DataError:
        raise
    except PIL_Image.UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image of a known format ({', '.join(_formats())}).") from error
    except (PIL_Image.DecompressionBombError, PIL_Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} has more pixels than the {max_pixels:,} allowed.") from error
    except MemoryError as error:
        raise DataError(f"{name} does not fit into memory.") from error
    except Exception as error:  # decoders raise whatever their parser met: struct.error, SyntaxError, EOFError, ...
        raise DataError(f"{name} cannot be decoded: {error or type(error).__name__}.") from error


def read_json(source: Path | str | bytes, name: str | None = None, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The values of a JSON document. Raises DataError when it is too large, nested too deeply, or not JSON."""
    name = name or (str(source) if not isinstance(source, bytes) else "JSON")
    data = source if isinstance(source, bytes) else read_bytes(source, max_bytes)
    if len(data) > max_bytes:
        raise DataError(f"{name} has {len(data):,} bytes of JSON; allowed are {max_bytes:,}.")
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise DataError(f"{name} is nested too deeply; allowed are {MAX_JSON_DEPTH} levels.") from error
    except ValueError as error:  # bad syntax, bad UTF-8, a number of thousands of digits
        raise DataError(f"{name} is not JSON: {error}.") from error
    if _depth_exceeds(value, MAX_JSON_DEPTH):
        raise DataError(f"{name} is nested too deeply; allowed are {MAX_JSON_DEPTH} levels.")
    return value


def read_npy(source: Path | str | bytes, name: str | None = None, max_bytes: int = MAX_ARRAY_BYTES) -> np.ndarray:
    """The array of a `.npy` file. Raises DataError when it holds Python objects (which would be unpickled), or when its
    header promises other than the bytes that follow."""
    name = name or (str(source) if not isinstance(source, bytes) else "array")
    data = source if isinstance(source, bytes) else read_bytes(source, max_bytes)
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(buffer)
        if dtype.hasobject:
            raise DataError(f"{name} holds Python objects, which are never unpickled here.")
        promised, present = math.prod(shape) * dtype.itemsize, len(data) - buffer.tell()
        if min(shape, default=0) < 0 or promised != present:
            raise DataError(f"{name} is torn: its header promises {promised:,} bytes and {present:,} follow.")
        buffer.seek(0)
        return np.load(buffer, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{name} is not a .npy array: {error}.") from error


@cache
def pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "it reads images") from error
    Image.init()  # registers every format, so that `formats` can name those wanted
    return Image


@cache
def _formats() -> tuple[str, ...]:
    return tuple(name for name in FORMATS if name in pillow().OPEN)


def _rgb(image: Any, name: str) -> UInt8[np.ndarray, "h w 3"]:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's own conversion clips at 255 and makes nearly every 16-bit image white.
        grey = np.asarray(image).astype(np.uint32)
        if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            grey = 65_535 - grey  # which Pillow does for 1 and 8 bits alone
        return np.repeat(((grey * 255 + 32_767) // 65_535).astype(np.uint8)[..., None], 3, axis=2)
    if mode in ("I", "F"):
        raise DataError(f"{name} has {'32-bit' if mode == 'I' else 'floating-point'} pixels of unknown range.")
    if image.has_transparency_data:
        layers = np.asarray(image.convert("RGBA")).astype(np.uint16)
        alpha = layers[..., 3:]
        return ((layers[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _jpeg2000_bits(data: bytes) -> int:
    """Bits of the deepest channel, from the SIZ segment of the code stream; 0 when there is none."""
    start = data.find(b"\xff\x4f\xff\x51")
    channels = data[start + 42 : start + 42 + 3 * int.from_bytes(data[start + 40 : start + 42])] if start >= 0 else b""
    return max(((size & 0x7F) + 1 for size in channels[::3]), default=0)


def orientation_of(image: Any) -> int:
    """1 to 8 of the EXIF standard. Read after decoding: the TIFF reader turns the picture itself and then drops the tag."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
        return 1  # a torn EXIF block does not make the pixels wrong
    return value if isinstance(value, int) else 1


def upright(pixels: Shaped[np.ndarray, "h w *c"], orientation: int) -> Shaped[np.ndarray, "H W *c"]:
    """Values 1 to 8 of the EXIF standard; anything else leaves the picture as it is stored."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True
