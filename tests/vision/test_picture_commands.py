"""`tenfold vision pca | match | track | segment` and `tenfold eval` as a person runs them, on a random mini network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tenfold.cli import main
from vision.dense_inputs import cut, mini_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(mini_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def clip(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip") / "clip.parquet"
    return cut(test_data / "vision/camvid_val.parquet", out, slice(0, 8), 96, 72)


@pytest.fixture(scope="module")
def photographs(clip: Path) -> Path:
    folder = clip.parent / "photographs"
    folder.mkdir()
    for i, data in enumerate(pq.read_table(clip)["image"].to_pylist()[:2]):
        (folder / f"{i}.png").write_bytes(data)
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def only_png(folder: Path, count: int) -> None:
    """The pictures open, and nothing else is left in the folder (an unfinished file would be)."""
    files = sorted(folder.iterdir())
    assert [file.suffix for file in files] == [".png"] * count
    assert not any(file.name.startswith(".") for file in files)
    for file in files:
        Image.open(file).verify()


def test_pca_and_segment_write_one_picture_per_image(
    weights: str, photographs: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = str(photographs)
    assert said(capsys, "vision", "pca", weights, pictures, "--out", str(tmp_path / "pca"))["images"] == 2
    only_png(tmp_path / "pca", 2)
    found = said(capsys, "vision", "segment", weights, pictures, "--out", str(tmp_path / "one"))
    assert all(0 < s["object"] < 1 for s in dict(found["share of pixels"]).values())  # type: ignore[call-overload]
    only_png(tmp_path / "one", 2)
    train = ["--train", str(clip), "--epochs", "2", "--out", str(tmp_path / "classes")]
    found = said(capsys, "vision", "segment", weights, pictures, *train)
    each: Any = found["share of pixels"]
    for shares in each.values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    only_png(tmp_path / "classes", 2)


@pytest.mark.parametrize("verb", ["pca", "segment"])
def test_a_broken_image_is_named_and_the_others_are_drawn(
    verb: str, weights: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG and then nothing")
    words = ["vision", verb, weights, str(broken), str(photographs), "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 3
    assert "left out: " + str(broken) in capsys.readouterr().err
    only_png(tmp_path / "out", 2)


def test_names_of_a_data_set_never_leave_the_folder(weights: str, clip: Path, tmp_path: Path) -> None:
    table = pq.read_table(clip).slice(0, 2)
    names = [f"x/../../../escaped_{i}" for i in range(2)]
    table = table.set_column(table.column_names.index("name"), "name", [names])
    pq.write_table(table, tmp_path / "clip.parquet")
    words = ["vision", "track", weights, str(tmp_path / "clip.parquet"), "--frames", "2", "--out"]
    assert main([*words, str(tmp_path / "deep/out")]) == 0
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")} == {
        f"deep/out/{i:04d}-escaped_{i}.png" for i in range(2)
    }


def test_an_image_matches_itself_cell_by_cell(
    weights: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(photographs / "0.png")
    points = tmp_path / "points.json"
    out = ["--out", str(tmp_path / "m/matches.png"), "--points", str(points)]
    numbers = said(capsys, "vision", "match", weights, image, image, *out)
    assert numbers["share"] == 1.0
    only_png(tmp_path / "m", 1)
    for row in json.loads(points.read_text()):
        assert np.abs(np.subtract(row["left"], row["right"])).max() <= 4  # half a cell


def test_track_writes_every_frame_and_the_floors(
    weights: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = said(capsys, "vision", "track", weights, str(clip), "--frames", "4", "--out", str(tmp_path / "t"))
    assert {"mIoU, these weights", "mIoU, copy the first frame", "mIoU, DIS optical flow"} <= set(numbers)
    only_png(tmp_path / "t", 4)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["vision", "track", "{w}", "{clip}", "--frames", "1"], 3, "at least 2 frames"),
        (["vision", "track", "{w}", "{clip}", "--frames", "90"], 3, "the file has 8 frames"),
        (["vision", "pca", "{w}", "{empty}"], 3, "no images in"),
        (["vision", "match", "{w}", "{clip}", "{clip}"], 3, "not an image"),
        (["eval", "segmentation", "{w}", "--val", "{clip}"], 2, "lacks --train (a path)"),
        (["eval", "knn", "{w}"], 2, "lacks --train (a path) and --val (a path)"),
        (["eval", "depth", "{w}", "--train", "{clip}", "--val", "{clip}"], 3, "no column depth"),
        (["eval", "traking", "{w}"], 2, "Did you mean 'tracking'"),
        (["eval", "matching", "{w}", "--size", "64"], 2, "unknown flag --size"),
        (["eval", "--train", "{clip}", "knn"], 2, "--train comes before the task"),
    ],
)
def test_a_mistake_says_what_is_needed(
    weights: str,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([word.format(w=weights, clip=clip, empty=empty) for word in words]) == code
    assert message in capsys.readouterr().err
