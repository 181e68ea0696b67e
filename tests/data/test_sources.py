"""The three kinds of source hold the same images, labels and classes; decoding once keeps what a floor needs."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tenfold.data.readers import read_image
from tenfold.data.sample import Sample
from tenfold.data.sources import InMemory, Source, open_source
from tenfold.errors import DataError

CLASSES = ("cat", "dog")
ROWS = 6


def encoded(index: int) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (5 + index, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(path: Path) -> Path:
    for i in range(ROWS):
        file = path / CLASSES[i % 2] / "deep" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(i))
    (path / "cat" / "notes.txt").write_text("not an image")
    (path / "cat" / "._0.png").write_text("left by another system")
    return path


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, metadata: dict[str, str], struct: bool = False, label: str = "label") -> Path:
    images = [encoded(i) for i in range(ROWS)]
    column = [{"bytes": data, "path": None} for data in images] if struct else images
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
    table = pa.table({"image": pa.array(column, kind), label: [i % 2 for i in range(ROWS)]})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    return path


def contents(source: Source) -> set[tuple[bytes, str]]:
    assert source.labels is not None
    assert [source[i].label for i in range(len(source))] == source.labels.tolist()
    return {(source[i].image.tobytes(), source.classes[int(source.labels[i])]) for i in range(len(source))}


EXPECTED = {(read_image(encoded(i)).tobytes(), CLASSES[i % 2]) for i in range(ROWS)}
HUGGING_FACE = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": list(CLASSES)}}}}


def test_a_folder_has_one_class_per_subfolder(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path))
    assert source.classes == CLASSES
    assert contents(source) == EXPECTED
    assert source[0].name.endswith("cat/deep/0.png")


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    source = open_source(tmp_path)
    assert (len(source), source.labels, source.classes, source[1].label) == (3, None, (), None)


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize(
    "metadata",
    [{"classes": "cat,dog"}, {"classes": '["cat", "dog"]'}, {"huggingface": json.dumps(HUGGING_FACE)}],
    ids=["commas", "json", "huggingface"],
)
def test_parquet_takes_bytes_and_structs_and_both_ways_of_class_names(
    tmp_path: Path, metadata: dict[str, str], struct: bool
) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", metadata, struct))
    assert source.classes == CLASSES
    assert contents(source) == EXPECTED
    assert contents(pickle.loads(pickle.dumps(source))) == EXPECTED


def test_a_folder_of_parquet_shards_is_one_source(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet"):
        write_parquet(tmp_path / name, {"classes": "cat,dog"})
    source = open_source(tmp_path)
    assert len(source) == 2 * ROWS
    assert source[5].name.endswith("a.parquet, row 5")
    assert source[ROWS + 5].name.endswith("b.parquet, row 5")
    assert np.array_equal(source[ROWS + 1].image, source[1].image)


def test_a_webdataset_tar_takes_its_labels_from_beside_the_image(tmp_path: Path) -> None:
    numbers, names = {}, {}
    for i in range(ROWS):
        numbers |= {f"{i:03d}.png": encoded(i), f"{i:03d}.cls": str(i % 2).encode()}
        names |= {f"x/{i:03d}.png": encoded(i), f"x/{i:03d}.json": json.dumps({"label": CLASSES[i % 2]}).encode()}
    source = open_source(write_tar(tmp_path / "numbers.tar", numbers))
    assert source.classes == ("0", "1")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1] * 3
    assert contents(open_source(write_tar(tmp_path / "names.tar", names))) == EXPECTED


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.xz"])
def test_a_tar_of_folders_has_one_class_per_folder(tmp_path: Path, ending: str) -> None:
    members = {f"set/{CLASSES[i % 2]}/{i}.png": encoded(i) for i in range(ROWS)}
    mode = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[ending]
    source = open_source(write_tar(tmp_path / f"a.{ending}", members, mode))
    assert contents(source) == EXPECTED


def test_an_image_without_its_label_is_named(tmp_path: Path) -> None:
    members = {"1.png": encoded(1), "1.cls": b"0", "2.png": encoded(2)}
    with pytest.raises(DataError, match=r"1 images have no .* first 2\.png"):
        open_source(write_tar(tmp_path / "a.tar", members))


def test_what_holds_no_images_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"image": [[1, 2]], "label": [0]}), tmp_path / "lists.parquet")
    write_parquet(tmp_path / "few.parquet", {"classes": "cat"})
    (tmp_path / "torn.parquet").write_bytes(b"PAR1" + b"x" * 100)
    (tmp_path / "a.zip").write_bytes(b"PK")
    for name, why in {
        "empty": "no images",
        "absent": "does not exist",
        "text.parquet": "no column image or img; its columns are text",
        "lists.parquet": "column image is list",
        "few.parquet": "labels run from 0 to 1, and there are 1 classes",
        "torn.parquet": "cannot be read|can be read",
        "a.zip": "neither a folder",
    }.items():
        with pytest.raises(DataError, match=why):
            open_source(tmp_path / name)


def test_in_memory_keeps_squashed_images_and_means_of_the_originals(test_data: Path) -> None:
    source = open_source(test_data / "vision/imagenette160_val.parquet")
    assert len(source) == 1991
    assert source.classes[:2] == ("tench", "English springer")

    class First:
        labels, classes = source.labels[:40], source.classes  # type: ignore[index]

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Sample:
            return source[index]

    kept = InMemory(First(), side=48)
    assert kept.images.shape == (40, 48, 48, 3)
    assert np.array_equal(kept.labels, First.labels)
    assert kept.replaced == []
    for index in (0, 17, 39):
        original = source[index].image
        squashed = np.array(Image.fromarray(original).resize((48, 48), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(kept.images[index] - squashed).max() <= 1
        means = original.reshape(16, 10, 16, 10, 3).mean((1, 3))
        assert np.abs(kept.thumbnails[index] - means).max() <= 0.51
    assert kept[17].label == source[17].label
    assert kept[17].name == source[17].name


def test_more_images_than_memory_is_said_before_decoding(test_data: Path) -> None:
    source = open_source(test_data / "vision/imagenette160_val.parquet")
    with pytest.raises(DataError, match=r"GiB are free: choose a smaller side"):
        InMemory(source, side=16_384)
