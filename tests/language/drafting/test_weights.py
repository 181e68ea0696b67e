"""The layouts of EAGLE, SGLang and speculators, and the seven ways in which their words mislead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from language.drafter_folders import edited, folder, loaded, same
from language.drafting_models import AUX, saved, tiny_drafter, tiny_target
from language.engine_models import finish
from tenfold.errors import UsageError, WeightsError
from tenfold.export.weights import convert
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.drafting.drafter import DrafterConfig, Eagle1Drafter, Eagle3Drafter
from tenfold.language.drafting.tree_drafter import TreeDrafter
from tenfold.language.drafting.weights import check_target, fingerprint
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.nn.rope import RopeScaling

VARIANTS: list[dict[str, Any]] = [
    {},
    {"layers": 3},
    {"norm_output": True, "norm_before_residual": True, "rope_theta": 5000.0},
    {"draft_vocabulary": 96, "sliding_window": 64},
    {"aux_layers": (1, 2, 4, 6), "own_embedding": True, "attention_bias": True},
    {"fc_norm": True, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("to", ["sglang", "speculators"])
def test_round_trips_keep_every_bit_and_every_switch(tmp_path: Path, variant: dict, to: str) -> None:
    drafter = tiny_drafter(tiny_target(), target="0123456789abcdef", **variant).bfloat16()
    there = folder(tmp_path, drafter, to)
    same(loaded(there), drafter)
    again = convert(there, tmp_path / "again", to=to)
    first, second = load_file(there / "model.safetensors"), load_file(again / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert (there / "config.json").read_text() == (again / "config.json").read_text()
    same(loaded(convert(there, tmp_path / "back.safetensors")), drafter)


def test_eagle_layout_of_both_methods(tmp_path: Path) -> None:
    target = tiny_target()
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    one = tiny_drafter(target, method="eagle1", fc_bias=True, layers=2)
    there = folder(tmp_path / "one", one, "eagle")
    names = set(load_file(there / "model.safetensors"))
    assert {"fc.weight", "fc.bias", "layers.0.self_attn.q_proj.weight", "layers.1.input_layernorm.weight"} <= names
    assert "layers.0.input_layernorm.weight" not in names
    same(loaded(there), one)
    three = tiny_drafter(target)
    there = folder(tmp_path / "three", three, "eagle")
    assert "midlayer.self_attn.q_proj.weight" in load_file(there / "model.safetensors")
    same(loaded(there, aux_layers=AUX), three)


def test_names_of_the_sglang_layout(tmp_path: Path) -> None:
    there = folder(tmp_path, tiny_drafter(tiny_target(), layers=2), "sglang")
    tensors, config = load_file(there / "model.safetensors"), json.loads((there / "config.json").read_text())
    projections = [f"self_attn.{p}_proj.weight" for p in "qkvo"] + [
        f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")
    ]
    norms = ["input_layernorm.weight", "hidden_norm.weight", "post_attention_layernorm.weight"]
    assert set(tensors) == {
        "fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d",
        *(f"midlayer.{n}" for n in projections + norms),
        *(f"additional_layers.0.{n}" for n in projections + norms[1:]),
    }  # fmt: skip
    assert tensors["midlayer.self_attn.q_proj.weight"].shape == (32, 64)
    assert tensors["fc.weight"].shape == (32, 96)
    assert tensors["d2t"].dtype == torch.int64
    assert tensors["t2d"].dtype == torch.bool
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["draft_vocab_size"] == 48


def test_names_of_the_speculators_layout(tmp_path: Path) -> None:
    there = folder(tmp_path, tiny_drafter(tiny_target(), layers=2), "speculators")
    names, config = set(load_file(there / "model.safetensors")), json.loads((there / "config.json").read_text())
    assert {
        "layers.0.hidden_norm.weight",
        "layers.0.input_layernorm.weight",
        "layers.1.input_layernorm.weight",
    } <= names
    assert "layers.1.hidden_norm.weight" not in names
    assert config["speculators_model_type"] == "eagle3"
    assert config["transformer_layer_config"]["hidden_size"] == 32


def test_pitfall_3_d2t_holds_offsets(tmp_path: Path) -> None:
    drafter = tiny_drafter(tiny_target())
    there = folder(tmp_path, drafter, "sglang")
    tensors = load_file(there / "model.safetensors")
    assert torch.equal(tensors["d2t"] + torch.arange(48), drafter.ids)
    assert torch.equal(tensors["t2d"].nonzero()[:, 0], drafter.ids)
    save_file(tensors | {"d2t": drafter.ids}, there / "model.safetensors")  # ids where offsets belong
    with pytest.raises(WeightsError, match="d2t"):
        loaded(there)


def test_pitfall_4_eagle1_without_bias_has_one(tmp_path: Path) -> None:
    there = edited(folder(tmp_path, tiny_drafter(tiny_target(), method="eagle1", fc_bias=True), "eagle"), bias=None)
    assert loaded(there).config.fc_bias is True
    with pytest.raises(WeightsError, match=r"fc\.bias"):
        loaded(edited(there, bias=False))


def test_pitfall_7_wrong_keys_are_refused_and_frozen_copies_are_not(tmp_path: Path) -> None:
    there = folder(tmp_path, tiny_drafter(tiny_target()), "sglang")
    tensors = load_file(there / "model.safetensors")
    save_file(tensors | {"verifier_norm.weight": torch.ones(32), "verifier_lm_head.weight": torch.ones(96, 32)},
              there / "model.safetensors")  # fmt: skip
    loaded(there)
    renamed = {n.replace("hidden_norm", "hiden_norm"): t for n, t in tensors.items()}
    save_file(renamed, there / "model.safetensors")
    with pytest.raises(WeightsError, match="hiden_norm"):
        loaded(there)


def test_pitfall_7_a_drafter_is_tied_to_its_target() -> None:
    target, other = tiny_target(0), tiny_target(5)
    config = tiny_drafter(target, target=fingerprint(target)).config
    check_target(config, target, "drafter")
    check_target(config, tiny_target(0).bfloat16(), "drafter")  # the number format is not the model
    with pytest.raises(WeightsError, match="another target") as error:
        check_target(config, other, "drafter")
    assert error.value.exit_code == 4
    with pytest.raises(WeightsError, match="vocabulary"):
        check_target(config, tiny_target(vocabulary=64), "drafter")


def test_aliases_of_other_writers_are_read(tmp_path: Path) -> None:
    drafter = tiny_drafter(tiny_target(), fc_norm=True)
    there = folder(tmp_path, drafter, "sglang")
    tensors = load_file(there / "model.safetensors")
    for number, word in enumerate(("low", "mid", "high")):
        tensors[f"aux_norm_{word}.weight"] = tensors.pop(f"fc_norm.{number}.weight")
    save_file({n.replace("midlayer", "layers.0"): t for n, t in tensors.items()}, there / "model.safetensors")
    same(loaded(there), drafter)


def test_kinds_are_recognised(tmp_path: Path) -> None:
    target = tiny_target()
    own = saved(tiny_drafter(target), tmp_path / "own.safetensors")
    assert isinstance(loaded(own), Eagle3Drafter)
    one = saved(tiny_drafter(target, method="eagle1"), tmp_path / "one.safetensors")
    assert isinstance(loaded(one), Eagle1Drafter)
    assert isinstance(loaded(own).config, DrafterConfig)


@pytest.mark.parametrize("to", ["sglang", "speculators"])
def test_a_drafter_of_another_width_has_its_own_embedding_and_drafts(to: str, tmp_path: Path) -> None:
    """The released class embeds in the drafter's width (V, H), whatever the width of the target."""
    target = tiny_target()
    narrow = {"dim": 16, "hidden": 24, "heads": 2, "kv_heads": 1, "head_dim": 8, "target_dim": target.config.dim}
    drafter = tiny_drafter(target, own_embedding=True, **narrow)
    there = folder(tmp_path, drafter, to)
    tensors = load_file(there / "model.safetensors")
    assert tensors["embed_tokens.weight"].shape == (96, 16)
    same(loaded(there), drafter)
    check_target(drafter.config, target, there)
    alone = LLMEngine(target, max_batch=1, cache_tokens=400)
    drafted = LLMEngine(target, None, TreeDrafter(loaded(there), target), max_batch=1, cache_tokens=400)
    request = {"a": ([1, 2, 3], SamplingParams(max_tokens=12))}
    assert finish(drafted, request) == finish(alone, request)

    del tensors["embed_tokens.weight"]
    save_file(tensors, there / "model.safetensors")
    with pytest.raises(WeightsError, match=r"own_embedding = False.*own width 16: the target's is 32"):
        loaded(there)


def test_an_eagle1_drafter_of_another_width_is_refused() -> None:
    with pytest.raises(UsageError, match="eagle1 predicts the target's feature"):
        DrafterConfig("eagle1", dim=16, heads=2, kv_heads=2, target_dim=32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    drafter = tiny_drafter(tiny_target())
    with torch.no_grad():
        drafter.get_parameter("head.weight")[3, 1] = value
    with pytest.raises(WeightsError, match=r"not finite numbers .* in lm_head\.weight"):
        loaded(saved(drafter, tmp_path / "own.safetensors"))
