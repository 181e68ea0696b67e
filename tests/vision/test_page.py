"""Every command of docs/vision.md runs, in the order of the page, on real photographs and small networks."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tenfold.cli import main
from tenfold.data.tensors import save_own
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from vision.dense_inputs import cut, npy, png, write
from vision.recipe_flags import SMALL, flags

PAGE = Path(__file__).resolve().parents[2] / "docs/vision.md"
FEW = ["--trainer.steps", "1", "--trainer.workers", "0", "--trainer.device", "cpu", "--trainer.precision", "fp32"]
TEXT = ["--batch", "4", "--source-side", "64", *FEW]
SHORT = {
    "dinov3-mini": ["--batch", "4", "--crops.local-crops", "2", *FEW],
    "dinov3": [*SMALL, *FEW],
    "dinov3-gram": [*SMALL, *FEW],
    "dinov3-highres": [*SMALL, "--resolutions", "64", "32", "96", "1.0", *FEW],
    "dinov2": [*SMALL, "--crops.global-size", "56", "--crops.local-size", "28", *FEW],
    "dinov3-distill": [
        *flags(
            {"batch": 2, "source-side": 64, "crops.global-size": 64, "crops.local-size": 32, "crops.local-crops": 1}
        ),
        *FEW,
    ],
    "dinov3-text": TEXT,
}
CLIP = ["--clip.dim", "32", "--clip.depth", "1", "--clip.heads", "2"]
EPOCHS = {"segmentation": ["--epochs", "2"], "depth": ["--epochs", "2"], "attentive": ["--epochs", "1"]}


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    lines = [
        line.partition("#")[0].strip() for language, block in blocks if not language for line in block.splitlines()
    ]
    return [shlex.split(line)[1:] for line in lines if line.startswith("tenfold ")]


def shortened(words: list[str]) -> list[str]:
    """The command with the flags that make it quick; what the page says stays as it is."""
    if words[:1] == ["train"] and words[1] in SHORT:
        return [*words, *SHORT[words[1]], *(CLIP if "clip" in words else [])]
    if words[:1] == ["eval"]:
        return [*words, *EPOCHS.get(words[1], [])]
    if words[:2] == ["vision", "segment"] and "--train" in words:
        return [*words, "--epochs", "2"]
    return words


@pytest.fixture
def desk(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the page's commands name."""
    torch.manual_seed(0)
    config = VitConfig(dim=48, depth=1, heads=2, layer_scale=1.0, image_size=64)
    for name in ("W", "WEIGHTS"):
        save_own(tmp_path / name / "model.safetensors", VisionTransformer(config).state_dict(), "vit", config)
    rows = pq.ParquetFile(test_data / "vision/imagenette160_val.parquet").read_row_group(0)
    for name, part in (("train", rows.slice(0, 30)), ("val", rows.slice(30, 30))):
        pq.write_table(part, tmp_path / f"{name}.parquet")
        (tmp_path / "imagenet" / name).mkdir(parents=True)
        for i, (data, label) in enumerate(zip(part["image"].to_pylist(), part["label"].to_pylist())):
            folder = tmp_path / "imagenet" / name / str(label)
            folder.mkdir(exist_ok=True)
            (folder / f"{i}.webp").write_bytes(data)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in rows["image"].to_pylist()[:4]]
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(images):
        image.save(tmp_path / f"photos/{i}.png")
        image.save(tmp_path / ("a.jpg", "b.png", "left.png", "right.png")[i])
    captions = pa.array([f"picture number {i}" for i in range(30)])
    pq.write_table(pa.table({"image": rows["image"].slice(0, 30), "caption": captions}), tmp_path / "pairs.parquet")
    classes = rows.schema.metadata[b"classes"].decode().split(",")
    (tmp_path / "words.json").write_text(json.dumps({name: [f"kind of {name}"] for name in classes}))
    camvid = test_data / "vision"
    for name, source, count in (("camvid_train", "train", 6), ("camvid_val", "val", 4), ("clip", "val", 10)):
        cut(camvid / f"camvid_{source}.parquet", tmp_path / f"{name}.parquet", slice(0, count), 96, 64)
    cut(camvid / "camvid_train.parquet", tmp_path / "clips.parquet", slice(0, 10), 96, 64)
    squares = [png(np.pad(np.ones((40, 40), np.uint8), 12)) for _ in range(2)]
    small = [png(np.array(image.resize((64, 64)))) for image in images[:2]]
    write(tmp_path / "objects.parquet", small, mask=squares)
    for part, content in (("images", small), ("depths", [npy(np.full((64, 64), 2.0, np.float32))] * 2)):
        (tmp_path / "DIR" / part).mkdir(parents=True)
        for i, data in enumerate(content):
            (tmp_path / "DIR" / part / f"{i}.{'png' if part == 'images' else 'npy'}").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.samples
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_page_runs(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands()
    assert len(found) >= 25
    for words in found:
        if words[:2] == ["train", "--resume"]:  # the run of the page's torchrun line
            (first,) = [w for w in found if w[:2] == ["train", "dinov3-mini"] and "--data" in w]
            assert main([*shortened(first), "--out", words[2]]) == 0
        code = main(shortened(words))
        said = capsys.readouterr()
        assert code == 0, (words, said.err)
    for left in ("features.parquet", "maps.safetensors", "matches.png", "points.json", "runs/dinov3-text/report.html"):
        assert (desk / left).exists(), left
