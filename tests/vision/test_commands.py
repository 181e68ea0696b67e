"""`tenfold vision embed` as a person runs it, on real photographs, good and bad."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tenfold.cli import main
from tenfold.data.tensors import save_own
from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = VisionTransformer(VIT_CONFIGS["mini"])
    path = tmp_path_factory.mktemp("weights") / "mini.safetensors"
    save_own(path, model.state_dict(), "vit", model.config)
    return path


@pytest.fixture
def photos(test_data: Path, tmp_path: Path) -> Path:
    """Three photographs, one of them upright only by its EXIF tag, and a file that is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = next(pq.ParquetFile(test_data / "vision/imagenette160_val.parquet").iter_batches(batch_size=3))
    for i, data in enumerate(rows["image"]):
        (folder / f"{i}.webp").write_bytes(data.as_py())
    with Image.open(folder / "2.webp") as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.convert("RGB").resize((160, 96)).save(folder / "3.jpg", exif=exif)
    return folder


def test_features_go_to_parquet_with_a_picture_of_each(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, maps = tmp_path / "f.parquet", tmp_path / "maps"
    words = ["vision", "embed", str(weights), str(photos), "--out", str(out), "--pictures", str(maps), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    table = pq.read_table(out)
    assert table.num_rows == 4
    assert len(table["feature"][0].as_py()) == 2 * 192
    pictures = sorted(maps.glob("*.png"))
    assert len(pictures) == 4
    with Image.open(pictures[3]) as upright:
        assert upright.height > 96  # turned by its tag: 160 high


def test_a_broken_image_is_named_and_the_others_are_written(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"\x89PNG and then nothing")
    out = tmp_path / "maps.safetensors"
    assert main(["vision", "embed", str(weights), str(photos), "--out", str(out), "--features", "map"]) == 3
    said = capsys.readouterr()
    assert "broken.png" in said.err
    maps = load_file(out)
    assert len(maps) == 4
    assert maps[str(photos / "0.webp")].shape == (20, 20, 192)


def test_no_name_loses_what_was_computed(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "0.webp", photos / os.fsdecode(b"caf\xe9.webp"))
    shutil.copy(photos / "0.webp", photos / ("x" * 250 + ".webp"))
    shutil.copy(photos / "0.webp", photos / "two\nlines.webp")
    for out in (tmp_path / "f.parquet", tmp_path / "f.safetensors"):
        maps = tmp_path / out.suffix[1:]
        words = ["vision", "embed", str(weights), str(photos), "--out", str(out), "--pictures", str(maps), "--json"]
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["images"] == 7
        assert len(list(maps.glob("*.png"))) == 7
    names = pq.read_table(tmp_path / "f.parquet")["path"].to_pylist()
    assert str(photos / r"caf\xe9.webp") in names
    assert set(load_file(tmp_path / "f.safetensors")) == set(names)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--out", "f.csv"], 2, ".parquet"),
        (["--out", "f.parquet", "--features", "map"], 2, ".safetensors"),
        (["--out", "f.parquet", "--size", "4"], 2, "one patch"),
    ],
)
def test_a_wrong_flag_says_what_is_allowed_and_writes_nothing(
    weights: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    words = [str(tmp_path / word) if word.startswith("f.") else word for word in words]
    assert main(["vision", "embed", str(weights), str(photos), *words]) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("f.*"))


def test_an_empty_folder_is_an_error_of_data(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    words = ["vision", "embed", str(weights), str(tmp_path / "nothing"), "--out", str(tmp_path / "f.parquet")]
    assert main(words) == 3
    assert "no images" in capsys.readouterr().err
