"""Captions: templates and articles, class names as sentences, and what is no caption named by file, row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tenfold.data.sources import open_source
from tenfold.errors import DataError, UsageError
from tenfold.vision.text.captions import fill, open_captions, templates


def test_seen_and_unseen_templates_share_none_and_articles_fit() -> None:
    seen, unseen, every = (templates(part) for part in ("seen", "unseen", "all"))
    assert len(every) == len(set(every)) == 80
    assert not set(seen) & set(unseen)
    assert {*seen, *unseen} == set(every)
    assert all(line.count("{}") == 1 for line in every)
    assert fill("a photo of a {}.", "owl") == "a photo of an owl."
    assert fill("a {} at night.", "church") == "a church at night."


def test_left_out_classes_are_not_trained_on(labelled: Path) -> None:
    source = open_source(labelled)
    assert source.labels is not None
    data = open_captions(labelled, source, ("church", "tench"))
    left = {source.classes.index(name) for name in ("church", "tench")}
    assert len(data) == sum(label not in left for label in source.labels)
    assert all(data[i].label not in left for i in range(len(data)))
    with pytest.raises(UsageError, match="'chruch' is not a class"):
        open_captions(labelled, source, ("chruch",))


@pytest.mark.parametrize("bad", [None, "", "  ", [], ["fine", None]])
def test_a_caption_that_is_none_names_file_row_and_column(bad: Any, labelled: Path, tmp_path: Path) -> None:
    images = pq.read_table(labelled)["image"].slice(0, 3)
    captions = ["one", bad, "three"] if isinstance(bad, str) or bad is None else [["one"], bad, ["three"]]
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"image": images, "text": captions}), path)
    with pytest.raises(DataError, match=r"pairs\.parquet, row 1, column text"):
        open_captions(path, open_source(path))


def test_labels_lead_from_an_image_to_its_sentences(labelled: Path, tmp_path: Path) -> None:
    source = open_source(labelled)
    by_class = open_captions(labelled, source)
    assert by_class.by_class
    for n in (0, 63):
        name = source.classes[source[n].label or 0]
        assert by_class.texts[by_class[n].label or 0] == [fill(line, name) for line in templates("seen")]
    captions = [f"picture {n}" for n in range(64)]
    pq.write_table(
        pa.table({"image": pq.read_table(labelled)["image"], "caption": captions}), tmp_path / "pairs.parquet"
    )
    pairs = open_captions(tmp_path / "pairs.parquet", open_source(tmp_path / "pairs.parquet"))
    assert not pairs.by_class
    assert [pairs.texts[pairs[n].label or 0] for n in range(3)] == [["picture 0"], ["picture 1"], ["picture 2"]]
    with pytest.raises(UsageError, match="has captions and no classes to leave out"):
        open_captions(tmp_path / "pairs.parquet", source, ("church",))
