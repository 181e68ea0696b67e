"""The weights in the package: found by name, with a card, and better than the floors beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tenfold
from tenfold.cli import main
from tenfold.data.samples import fetch
from tenfold.errors import WeightsError
from tenfold.export.reading import ASSETS, shipped
from tenfold.vision.backbones.vit import VisionTransformer
from tenfold.vision.evaluate import LabelledImages, knn

NAME = "dinov3-mini"


def test_name_finds_the_file_and_its_card() -> None:
    assert NAME in shipped()
    model, file = tenfold.load(NAME), ASSETS / f"{NAME}.safetensors"
    assert isinstance(model, VisionTransformer)
    same = tenfold.load(file).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    assert file.stat().st_size <= 10_000_000
    card = file.with_suffix(".md").read_text()
    for word in (
        "Recipe",
        "Commit",
        "Data",
        "ImageNet",
        "research",
        "k-NN",
        "untrained",
        "pixels",
        "may not be claimed",
    ):
        assert word in card, word


def test_a_file_of_that_name_comes_first_and_a_near_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="Did you mean dinov3-mini"):
        tenfold.load("dinov3-mimi")
    with pytest.raises(WeightsError) as raised:
        tenfold.load("runs/dinov3-mimi.pth")  # a path, so names are beside the point
    assert "ship" not in str(raised.value)
    Path(NAME).mkdir()
    with pytest.raises(WeightsError, match="dinov3-mini"):
        tenfold.load(NAME)  # an empty folder of the user's own


def test_a_command_takes_it_at_first_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = sorted(p for p in fetch("scikit-image").iterdir() if p.suffix in (".png", ".jpg"))[:2]
    out = tmp_path / "pictures"
    assert main(["vision", "pca", NAME, *map(str, photographs), "--size", "128", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    assert len(list(out.glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("limit", "least", "above"), [(1000, 30.0, 3.0), pytest.param(None, 55.0, 15.0, marks=pytest.mark.slow)]
)
def test_its_neighbours_are_of_its_class(test_data: Path, limit: int | None, least: float, above: float) -> None:
    folder = test_data / "vision"
    files = (folder / "imagenette160_train.parquet", folder / "imagenette160_val.parquet")
    scores = knn(LabelledImages(Path(NAME), *files, limit=limit))
    assert scores["k-NN 20, these weights"] >= least
    assert scores["k-NN 20, these weights"] >= max(scores["k-NN 20, untrained"], scores["k-NN 20, raw pixels"]) + above
