"""`tenfold eval zeroshot`: classes by sentences, beside chance, the head before training and the linear probe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tenfold.data.tensors import save_own
from tenfold.errors import DataError, UsageError
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.evaluate_text import ZeroShot, aligned_of, zeroshot
from vision.labelled_images import colour_folder
from vision.text_inputs import BACKBONE, small_aligned


def saved(path: Path, backbone: bool = True) -> Path:
    model = small_aligned(backbone=backbone)
    return save_own(path, model.state_dict(), "text-aligned", model.config)


@pytest.mark.samples
def test_scores_stand_beside_chance_the_untrained_head_and_the_linear_probe(tmp_path: Path) -> None:
    weights = saved(tmp_path / "aligned.safetensors")
    train, val = colour_folder(tmp_path / "train", blue=6, red=6), colour_folder(tmp_path / "val", blue=1, red=3)
    (tmp_path / "words.json").write_text(json.dumps({"blue": ["blue"], "red": ["red"]}))
    rows = zeroshot(ZeroShot(weights, val, train=train, descriptions=tmp_path / "words.json"))
    assert (rows["val images"], rows["classes"]) == (4, 2)
    assert rows["most frequent class"] == 75.0
    assert rows["zero-shot, descriptions"] == rows["zero-shot, unseen templates"]  # each class described by its name
    assert rows["descriptions nearest to their own name, of text alone"] == 100.0
    assert rows["zero-shot, seen templates"] in (0.0, 25.0, 50.0, 75.0, 100.0)
    assert rows["linear probe on the backbone, labelled"] == 100.0
    with pytest.raises(DataError, match="'blue' needs a list of texts"):
        (tmp_path / "words.json").write_text(json.dumps({"red": ["red"]}))
        zeroshot(ZeroShot(weights, val, descriptions=tmp_path / "words.json"))
    with pytest.raises(DataError, match=r"the classes of .*val are not those of .*other"):
        zeroshot(ZeroShot(weights, val, train=colour_folder(tmp_path / "other", blue=2, green=2)))
    with pytest.raises(DataError, match="has no labels, and zero-shot accuracy needs them"):
        zeroshot(ZeroShot(weights, val / "red"))


def test_weights_without_their_backbone_take_one_and_ask_for_it(tmp_path: Path) -> None:
    weights = saved(tmp_path / "head.safetensors", backbone=False)
    with pytest.raises(UsageError, match="a vision transformer of width 48: add --backbone W"):
        aligned_of(weights, None)
    network = VisionTransformer(BACKBONE)
    own = save_own(tmp_path / "vit.safetensors", network.state_dict(), "vit", BACKBONE)
    model = aligned_of(weights, own)
    assert model.backbone is not None
    assert not model.training
    assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in network.state_dict().items())


def test_weights_that_know_no_words_say_how_to_make_some_that_do(tmp_path: Path) -> None:
    config = VitConfig(16, 1, 2)
    path = save_own(tmp_path / "vit.safetensors", config.build().state_dict(), "vit", config)
    with pytest.raises(UsageError, match=r"holds a VisionTransformer, which knows no words.*--backbone .*vit"):
        aligned_of(path, None)
