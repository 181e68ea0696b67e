"""Weights of text alignment: dino.txt's file and a BERT come back bit for bit, and what does not fit is listed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold.data.tensors import read_safetensors, save_own, write_safetensors
from tenfold.errors import WeightsError
from tenfold.export.weights import Weights, convert, load, read
from tenfold.vision.text.aligned import AlignedConfig, TextAligned
from tenfold.vision.text.towers import SentenceEncoder, TextConfig
from tenfold.vision.text.weights import ALIGNED, dinotxt_links

BERT = TextConfig("minilm", 64, 2, 2, vocabulary=30, positions=9, norm_eps=1e-12)


def dinotxt(folder: Path, embed: int | None = None) -> tuple[Path, dict[str, torch.Tensor]]:
    config = AlignedConfig(128, 2, 2, embed, text=TextConfig(dim=64, depth=2, heads=1, vocabulary=100, positions=9))
    torch.manual_seed(0)
    state = {name: torch.randn_like(tensor) for name, tensor in TextAligned(config).state_dict().items()}
    path = folder / "own.safetensors"
    save_own(path, state, "text-aligned", config)
    file = convert(path, folder / "dinotxt.pth", to="official")
    return file, torch.load(file, weights_only=True)


@pytest.mark.parametrize("embed", [None, 96])
def test_a_dino_txt_file_comes_back_with_the_same_bits(embed: int | None, tmp_path: Path) -> None:
    file, tensors = dinotxt(tmp_path, embed)
    assert tensors["visual_model.head.blocks.1.mlp.w2.weight"].shape == (384, 128)  # 4 * 128 * 2/3, up to 64
    assert tensors["logit_scale"].shape == (1,)  # the official class has nn.Parameter(torch.empty(1))
    assert ("visual_model.head.linear_projection.weight" in tensors) == (embed is not None)
    middle = convert(file, tmp_path / "again.safetensors")
    back = torch.load(convert(middle, tmp_path / "back.pth", to="official"), weights_only=True)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert read(file)[1].config == read(tmp_path / "own.safetensors")[1].config


@pytest.mark.parametrize("shape", [(1,), ()])  # as published, and as earlier versions of tenfold wrote it
def test_a_logit_scale_of_either_shape_is_read_and_written_as_published(shape: tuple[int, ...], tmp_path: Path) -> None:
    file, tensors = dinotxt(tmp_path)
    torch.save(tensors | {"logit_scale": torch.full(shape, 4.5)}, file)
    _, weights = read(file)
    assert weights.state["logit_scale"].tolist() == [4.5]
    again = torch.load(convert(file, tmp_path / "b.pth", to="official"), weights_only=True)
    assert again["logit_scale"].shape == (1,)


def test_a_missing_or_extra_key_of_a_dino_txt_file_is_listed(tmp_path: Path) -> None:
    file, tensors = dinotxt(tmp_path)
    tensors["text_model.backbone.blocks.1.feed_forward.fc.weight"] = tensors.pop(
        "text_model.backbone.blocks.1.feed_forward.fc1.weight"
    )
    torch.save(tensors, file)
    with pytest.raises(WeightsError, match=r"1 missing:\n.*fc1\.weight  \(nearest: .*fc\.weight\)"):
        load(file)


def test_the_published_sizes_have_their_shapes_and_names() -> None:
    """ViT-L's head and the 24 x 1280 text tower, without memory."""
    config = AlignedConfig()
    parts = {part.name: part.shape for link in dinotxt_links(config) for part in link.parts}
    assert config.hidden == 2752
    assert config.width == 2048
    assert parts["text_model.backbone.token_embedding.weight"] == (49_408, 1280)
    assert parts["text_model.backbone.positional_embedding"] == (77, 1280)
    assert parts["text_model.head.linear_projection.weight"] == (2048, 1280)
    assert parts["text_model.backbone.blocks.23.attention.qkv.weight"] == (3840, 1280)
    assert "text_model.backbone.blocks.0.attention.qkv.bias" not in parts
    assert parts["visual_model.head.blocks.1.mlp.w1.weight"] == (2752, 1024)
    assert not any("rope" in name or "linear_projection.bias" in name for name in parts)
    with torch.device("meta"):
        model = ALIGNED.build(config)
    assert sum(p.numel() for p in model.get_submodule("text_tower").parameters()) / 1e6 == pytest.approx(535.8, abs=0.3)
    assert Weights(config, dict(model.state_dict())).state["logit_scale"].shape == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 4}, "does not store the heads of the vision head: 2 would be read, not 4"),
        ({"norm_eps": 1e-6}, "does not store the norm_eps"),
        ({"text": BERT}, "text tower is a sentence encoder; dino.txt files hold CLIP's"),
    ],
)
def test_a_model_that_a_dino_txt_file_would_change_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    text = TextConfig(dim=64, depth=1, heads=1, vocabulary=20, positions=9)
    config = replace(AlignedConfig(128, 2, 1, text=text), **change)
    path = save_own(tmp_path / "own.safetensors", TextAligned(config).state_dict(), "text-aligned", config)
    with pytest.raises(WeightsError, match=message):
        convert(path, tmp_path / "out.pth", to="official")
    assert not (tmp_path / "out.pth").exists()


def bert(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A Hugging Face folder of a sentence encoder, and our tensors of it."""
    torch.manual_seed(0)
    state = {name: torch.randn_like(value) for name, value in SentenceEncoder(BERT).state_dict().items()}
    own = save_own(folder / "own.safetensors", state, "sentence-encoder", BERT)
    return convert(own, folder / "hf", to="hf"), state


def test_a_bert_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    folder, state = bert(tmp_path)
    assert read(folder)[1].config == BERT
    loaded = load(folder).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_bert_with_a_prefix_and_a_pooler_is_read_as_one_without(tmp_path: Path) -> None:
    folder, state = bert(tmp_path)
    stored, _ = read_safetensors(folder / "model.safetensors")
    wrapped = {f"bert.{name}": value for name, value in stored.items()}
    pooler = {"bert.pooler.dense.weight": torch.zeros(64, 64), "bert.embeddings.position_ids": torch.arange(9)[None]}
    write_safetensors(folder / "model.safetensors", wrapped | pooler)
    loaded = load(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_bert_without_embeddings_says_that_its_sizes_follow_from_them(tmp_path: Path) -> None:
    folder, _ = bert(tmp_path)
    stored, _ = read_safetensors(folder / "model.safetensors")
    del stored["embeddings.word_embeddings.weight"]
    write_safetensors(folder / "model.safetensors", stored)
    with pytest.raises(WeightsError, match="no word and position embeddings in it"):
        load(folder)
