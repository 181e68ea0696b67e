"""Image-caption pairs, from what users have: a parquet file with captions, or labelled images and templates.

    data = open_captions(Path("pairs.parquet"))            columns image and caption (text, or a list of texts)
    data = open_captions(Path("imagenette.parquet"))       class names in templates, without such a column
    data[3].image, data.texts[data[3].label]               an image and the sentences that describe it

Class names as captions make zero-shot classification of those classes a labelled task; `by_class` says that it is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from tenfold.data.parquet import parquet_column
from tenfold.data.sample import Sample
from tenfold.data.sources import Source
from tenfold.errors import DataError, UsageError

COLUMNS = ("caption", "captions", "text")


class Captioned:
    """A source whose labels index `texts`: the sentences of one image, or those of its class (`by_class`)."""

    def __init__(self, source: Source, texts: Sequence[Sequence[str]], by_class: bool, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows
        self.texts, self.by_class = texts, by_class
        self.classes: tuple[str, ...] = ()
        own = source.labels
        self.labels = own[rows] if by_class and own is not None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[int(self._rows[index])]
        return Sample(sample.image, int(self.labels[index]), sample.name)


def templates(part: str = "all") -> list[str]:
    """The sentences in which a class name stands in place of {}: `seen` in training, `unseen`, or all 80."""
    lines = files("tenfold.vision").joinpath("templates.txt").read_text("utf-8").splitlines()
    return {"all": lines, "seen": lines[0::2], "unseen": lines[1::2]}[part]


def fill(template: str, name: str) -> str:
    """The template with a class name in it, and the article that goes with it."""
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return template.replace("a {}", f"{article} {{}}").replace("A {}", f"{article.capitalize()} {{}}").format(name)


def open_captions(path: Path | None, source: Source, leave_out: Sequence[str] = ()) -> Captioned:
    """`source` (opened from `path`, None for the sample photographs) with its sentences.

    leave_out: classes whose images are not used. Raises DataError for a caption that is not a text, naming file, row and
    column; UsageError for a class that is not there, and for images with neither captions nor labels.
    """
    column = parquet_column(path, COLUMNS) if path is not None and path.is_file() else None
    rows = np.arange(len(source))
    if column is not None:
        name, values = column
        if leave_out:
            raise UsageError(f"leave_out = {tuple(leave_out)}: {path} has captions and no classes to leave out.")
        return Captioned(
            source, [_texts(v, f"{path}, row {i}, column {name}") for i, v in enumerate(values)], False, rows
        )
    if source.labels is None:
        raise DataError(
            f"{path} has no column {', '.join(COLUMNS)} and no labels: give a parquet file with columns image and caption."
        )
    for name in leave_out:
        if name not in source.classes:
            raise UsageError(f"leave_out = {name!r} is not a class of {path}. Allowed: {', '.join(source.classes)}.")
    left = [source.classes.index(name) for name in leave_out]
    texts = [[fill(template, name) for template in templates("seen")] for name in source.classes]
    return Captioned(source, texts, True, rows[~np.isin(source.labels, left)])


def _texts(value: object, where: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise DataError(f"{where}: {value!r} is not a caption (a text, or a list of texts).")
    return texts
