"""The layout of the released memory-layer code, on generated checkpoints: names, shapes, bits, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tenfold
from tenfold.data.tensors import save_own
from tenfold.errors import WeightsError
from tenfold.export.weights import convert
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama

CONFIG = LlamaConfig(
    vocabulary=20,
    dim=8,
    hidden=12,
    depth=4,
    heads=2,
    kv_heads=1,
    memory_layers=(1, 3),
    memory_side=5,
    memory_heads=3,
    memory_top_k=2,
    memory_key_dim=4,
    qk_norm="none",
)


def own(path: Path, **changes: Any) -> tuple[Llama, Path]:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **changes)
    model = Llama(config).eval()
    return model, save_own(path / "own.safetensors", model.state_dict(), "llama", config)


def table_of(model: torch.nn.Module) -> torch.Tensor:
    return model.get_parameter("memory.values")


@pytest.mark.parametrize("variant", ["plus", "pkm", "peer"])
def test_there_and_back_keeps_every_bit_and_the_model_computes_the_same(tmp_path: Path, variant: str) -> None:
    model, path = own(tmp_path, memory_variant=variant)
    convert(path, tmp_path / "theirs", to="memory")
    loaded = tenfold.load(tmp_path / "theirs")
    assert loaded.config == model.config
    state = loaded.state_dict()
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    tokens = torch.randint(20, (2, 6))
    assert loaded(tokens).logits.equal(model(tokens).logits)
    convert(tmp_path / "theirs", tmp_path / "again", to="memory")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "again"))
    assert first.keys() == second.keys()
    assert all(value.equal(second[name]) for name, value in first.items())


def test_names_and_shapes_are_those_of_the_released_code(tmp_path: Path) -> None:
    model, path = own(tmp_path)
    theirs = load_file(convert(path, tmp_path / "theirs", to="memory") / "model.safetensors")
    under = {
        name.removeprefix("layers.1.feed_forward."): tuple(t.shape) for name, t in theirs.items() if ".1.feed" in name
    }
    assert under == {
        "keys": (2 * 3 * 5, 2),
        "values.weight": (25, 8),
        "query_proj.query_mlps.0.weight": (12, 8),
        "query_proj.query_mlps.0.bias": (12,),
        "value_proj.weight": (8, 8),
        "value_proj.bias": (8,),
        "swilu_projection.weight": (8, 8),
        "swilu_projection.bias": (8,),
    }
    assert sum("values" in name for name in theirs) == 1
    blocks: Any = model.blocks
    keys = blocks[1].ffn.keys
    assert theirs["layers.1.feed_forward.keys"].view(3, 2, 5, 2).equal(keys)
    first = blocks[0].attention.qkv.weight[0:4]  # the first head's q: pairs (0, 2), (1, 3) stand side by side there
    assert theirs["layers.0.attention.wq.weight"][:4].equal(first[[0, 2, 1, 3]])


def test_a_repeated_table_is_taken_when_equal_and_refused_when_not(tmp_path: Path) -> None:
    model, path = own(tmp_path)
    folder = convert(path, tmp_path / "theirs", to="memory")
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.3.feed_forward.values.weight"] = tensors["layers.1.feed_forward.values.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert table_of(tenfold.load(folder)).equal(table_of(model))
    del tensors["layers.1.feed_forward.values.weight"]  # under another layer alone
    save_file(tensors, folder / "model.safetensors")
    assert table_of(tenfold.load(folder)).equal(table_of(model))
    tensors["layers.1.feed_forward.values.weight"] = tensors["layers.3.feed_forward.values.weight"] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="share one table"):
        tenfold.load(folder)


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    _, path = own(tmp_path)
    folder = convert(path, tmp_path / "theirs", to="memory")
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.feed_forward.valeu_proj.bias"] = tensors.pop("layers.1.feed_forward.value_proj.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="nearest"):
        tenfold.load(folder)
    described = json.loads((folder / "config.json").read_text())
    del described["productkey_args"]["mem_knn"]
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(WeightsError, match="mem_knn"):
        tenfold.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json"):
        tenfold.load(folder)


@pytest.mark.parametrize(
    ("changes", "layout"), [({"qk_norm": "query"}, "memory"), ({"activation": "relu2"}, "memory"), ({}, "hf")]
)
def test_a_layout_that_would_lose_something_is_refused(tmp_path: Path, changes: dict[str, str], layout: str) -> None:
    _, path = own(tmp_path, **changes)
    with pytest.raises(WeightsError, match="Allowed"):
        convert(path, tmp_path / "theirs", to=layout)
    assert not (tmp_path / "theirs").exists()
