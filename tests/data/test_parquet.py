"""Parquet files: every row is the image, label and name that were written, in any order of reading; others are named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tenfold.data.parquet import ParquetSource, parquet_column, parquet_rows
from tenfold.errors import DataError


def encoded(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3 + shade, 2), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None, group: int = 3) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=group)
    return path


def images(count: int, first: int = 0) -> list[bytes]:
    return [encoded(first + i) for i in range(count)]


def test_rows_of_several_files_and_row_groups_are_found_in_any_order(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", {"img": images(7)})
    two = write(tmp_path / "two.parquet", {"img": images(5, first=7)})
    source = ParquetSource([one, two])
    assert len(source) == 12
    for index in (11, 0, 6, 7, 3, 2, 11):
        sample = source[index]
        assert sample.image.shape == (2, 3 + index, 3)
        assert (sample.image[..., 0] == index).all()
        assert sample.name == (f"{one}, row {index}" if index < 7 else f"{two}, row {index - 7}")
    for outside in (-1, 12):
        with pytest.raises(IndexError):
            source[outside]


def test_labels_may_be_names_numbers_or_absent(tmp_path: Path) -> None:
    def source(**columns: list[Any]) -> ParquetSource:
        return ParquetSource([write(tmp_path / "a.parquet", {"image": images(3), **columns})])

    named = source(labels=["dog", "cat", "dog"])
    assert named.classes == ("cat", "dog")
    assert [named[i].label for i in range(3)] == [1, 0, 1]
    numbered = source(label=[2, 0, 1])
    assert numbered.classes == ("0", "1", "2")
    assert numbered.labels is not None
    assert numbered.labels.tolist() == [2, 0, 1]
    for unlabelled in (source(), source(label=[-1, -1, -1])):
        assert (unlabelled.labels, unlabelled.classes, unlabelled[0].label) == (None, (), None)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, None, 1], "rows without a label"),
        ([0.5, 0.5, 1.0], "labels are float"),
        ([0, -1, 1], "labels run from -1 to 1"),
        ([0, 3, 1], "labels run from 0 to 3, and there are 3 classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, labels: list[Any], said: str) -> None:
    path = write(tmp_path / "a.parquet", {"image": images(3), "label": labels}, {"classes": "a,b,c"})
    with pytest.raises(DataError, match=rf"a\.parquet.*{said}"):
        ParquetSource([path])


def test_a_row_without_an_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    source = ParquetSource([write(tmp_path / "a.parquet", {"image": [encoded(1), None, encoded(2)]})])
    assert source[2].image.shape == (2, 5, 3)
    with pytest.raises(DataError, match=r"a\.parquet, row 1 has no image bytes"):
        source[1]
    with pytest.raises(DataError, match=r"b\.parquet has no rows"):
        ParquetSource([write(tmp_path / "b.parquet", {"image": pa.array([], pa.binary())})])


def test_whole_columns_come_with_the_optional_ones_that_are_there(tmp_path: Path) -> None:
    columns = {"text": ["a", "b", "c", "d"], "n": [1, None, 3, 4], "rest": [0.0] * 4}
    path = write(tmp_path / "a.parquet", columns, {"classes": "über,b"})
    rows, metadata = parquet_rows(path, ("text",), optional=("n", "absent"))
    assert rows == {"text": ["a", "b", "c", "d"], "n": [1, None, 3, 4]}
    assert metadata == {"classes": "über,b"}
    with pytest.raises(DataError, match=r"a\.parquet has no column x, y; its columns are text, n, rest"):
        parquet_rows(path, ("x", "text", "y"))
    with pytest.raises(DataError, match="does not exist"):
        parquet_rows(tmp_path / "absent.parquet", ("text",))
    (tmp_path / "torn.parquet").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"torn\.parquet is not a parquet file that can be read"):
        parquet_rows(tmp_path / "torn.parquet", ("text",))


def test_the_first_of_several_columns_is_found_and_other_files_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pq", {"caption": ["a", "b"], "text": ["c", "d"]})
    assert parquet_column(path, ("text", "caption")) == ("text", ["c", "d"])
    assert parquet_column(path, ("content",)) is None
    (tmp_path / "a.txt").write_text("text")
    assert parquet_column(tmp_path / "a.txt", ("text",)) is None


def test_every_pixel_of_a_row_survives_the_copy_of_a_source(tmp_path: Path) -> None:
    import pickle

    source = ParquetSource([write(tmp_path / "a.parquet", {"image": images(4), "label": [0, 1, 1, 0]})])
    before = source[3].image
    copied = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copied[3].image, before)
    assert [copied[i].label for i in range(4)] == [0, 1, 1, 0]
