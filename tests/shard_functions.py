"""Functions for worker processes. They stand in a file of their own because a worker imports its function by name, and
pytest's test modules have none."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.errors import UsageError
from tenfold.shards.executor import map_function


@dataclass(frozen=True)
class Row:
    """One encoded image of a parquet file."""

    source: Path
    index: int


def thumbnail(row: Row, target: Path) -> None:
    """Decodes one image and writes an 8x8 grey thumbnail and its hash."""
    import io

    import pyarrow.parquet as parquet
    from PIL import Image

    column = parquet.ParquetFile(row.source).read_row_group(0, columns=["image"]).column("image")
    cell = column[row.index].as_py()
    image = Image.open(io.BytesIO(cell["bytes"] if isinstance(cell, dict) else cell)).convert("L").resize((8, 8))
    pixels = np.asarray(image)
    target.write_text(f"{hashlib.sha256(pixels.tobytes()).hexdigest()}\n{pixels.tolist()}\n")


def count_words(text: str, target: Path) -> None:
    """Word counts in order of first appearance in a *set*, and draws of the global generators: what tells workers apart."""
    words = list(set(text.split()))
    draws = [random.random(), float(np.random.rand())]
    with target.open("w") as file:
        for word in words:
            file.write(f"{word} {text.split().count(word)}\n")
            file.flush()
        file.write(f"{draws} {os.environ['OMP_NUM_THREADS']}\n")


@map_function("tests.draw", formerly=("elsewhere:draw",))
def draw(text: str, target: Path) -> None:
    """What the global generators give for this item: it depends on the seed that the journal's header gives."""
    target.write_text(f"{text} {random.random()}")


def slow_count(text: str, target: Path) -> None:
    """The same, with a pause in the middle of the file in which a kill finds half of it."""
    with target.open("w") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        time.sleep(0.02)
        file.write(text[len(text) // 2 :])


def folder_of_words(text: str, target: Path) -> None:
    target.mkdir()
    for number, word in enumerate(text.split()[:3]):
        (target / f"{number}.txt").write_text(word)


def fail_on_b(key: str, target: Path) -> None:
    if key == "b":
        raise ValueError("this one is broken")
    target.write_text(key)


def die_once(path: Path, target: Path) -> None:
    """Killed from inside, as by the system when memory runs out, the first time that it sees an item named b."""
    mark = path / "died"
    if target.name.endswith("b") and not mark.exists():
        mark.touch()
        target.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    target.write_text(target.name.rpartition("-")[2])


def report_pid(folder: Path, target: Path) -> None:
    """Says which process works on it, then waits long enough to be killed; quick once the mark is there."""
    (folder / f"pid-{os.getpid()}").touch()
    if not (folder / "go").exists():
        time.sleep(60)
    target.write_text("done")


def fill_disk(key: str, target: Path) -> None:
    """/dev/full gives the kernel's own "no space left" at the write."""
    target.write_text(key)
    if key == "b":
        Path("/dev/full").write_text(key)


def write_nothing(key: str, target: Path) -> None:
    pass


def refuse(key: str, target: Path) -> None:
    raise UsageError("side = 7: allowed is a multiple of 8")


def exit_early(key: str, target: Path) -> None:
    sys.exit(3)


def repeat(times: int, text: str, target: Path) -> None:
    target.write_text(text * times)
