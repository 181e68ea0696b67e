"""Small labelled images for tests: one folder per class, each class a colour of its own with a little of another."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def colour_folder(folder: Path, side: int = 24, **counts: int) -> Path:
    """`colour_folder(path, red=3, blue=5)`: so many different images of each colour, classes in alphabetical order."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            colour = tuple(value or 3 * n for value in COLOURS[name])
            Image.new("RGB", (side, side), colour).save(folder / name / f"{n:02}.png")
    return folder
