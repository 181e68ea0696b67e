"""A language model: text in and text out, the same in every mode that keeps all numbers, and drawn by its generator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.errors import UsageError
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.language_model import (
    LanguageModel,
    LanguageModelConfig,
    measure_layers,
    set_mode,
    visit_hidden_units,
)
from tenfold.language.models.text import END
from tenfold.nn.ffn import SquaredReLUFFN

CONFIG = LlamaConfig(256, 32, 96, 2, heads=2, kv_heads=2, context=32, tied=True, activation="relu2", sparsity="2:4")


@pytest.fixture
def lm() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(CONFIG)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, float(parameter.ndim == 1), 0.2)
    return model


def test_greedy_text_is_that_of_whole_passes(lm: LanguageModel) -> None:
    tokens = [*b"To be"]
    for _ in range(12):
        following = int(lm(torch.tensor([tokens])).logits[0, -1].argmax())
        if following == END:
            break
        tokens.append(following)
    assert lm.generate("To be", 12) == bytes(tokens[5:]).decode("utf-8", "replace")


def test_gathered_decoding_writes_the_text_of_dense_decoding(lm: LanguageModel) -> None:
    dense = lm.generate("A", 40)
    set_mode(lm, "gather")
    assert lm.generate("A", 40) == dense


def test_an_end_token_ends_the_text_and_is_no_part_of_it(lm: LanguageModel) -> None:
    with torch.no_grad():
        lm.embedding.weight[END] = lm(torch.tensor([[65]])).hidden[0, -1] * 100
    assert lm.generate("A", 9) == ""


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"temperature": -0.5}])
def test_a_length_or_temperature_that_cannot_be_is_refused(lm: LanguageModel, options: dict) -> None:
    with pytest.raises(UsageError, match="allowed >= 1, >= 0"):
        lm.generate("A", **options)


def test_a_model_without_squared_relu_has_no_modes() -> None:
    with pytest.raises(UsageError, match="mode 'gather' is for Squared-ReLU networks"):
        set_mode(nn.Linear(2, 2), "gather")


def test_a_vocabulary_larger_than_the_model_is_refused() -> None:
    small = LlamaConfig(100, 32, 96, 1, heads=2, kv_heads=2)
    with pytest.raises(UsageError, match=r"model\.vocabulary = 100: the text has 256"):
        LanguageModel(LanguageModelConfig(small))


def test_the_hidden_units_seen_are_those_of_the_dense_network(lm: LanguageModel) -> None:
    set_mode(lm, "gather")
    tokens = torch.randint(256, (2, 5))
    seen: dict[str, torch.Tensor] = {}
    visit_hidden_units(lm, tokens, lambda name, layer, y1: seen.update({name: y1}))
    assert {name: tuple(y1.shape) for name, y1 in seen.items()} == {f"blocks.{i}.ffn": (10, 96) for i in range(2)}
    first = lm.get_submodule("blocks.0.ffn")
    assert isinstance(first, SquaredReLUFFN)
    assert first.mode == "gather"


@pytest.mark.parametrize("mode", ["dense", "sparse24", "gather"])
def test_a_token_changes_nothing_before_it_with_a_cache_and_without(lm: LanguageModel, mode: str) -> None:
    set_mode(lm, mode)
    tokens = torch.randint(256, (1, 24), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 15] = (changed[0, 15] + 1) % 256
    with torch.inference_mode():
        first, second = lm(tokens).logits, lm(changed).logits
        assert torch.equal(first[:, :15], second[:, :15])
        assert not torch.equal(first[:, 15:], second[:, 15:])
        cache = lm.new_cache(batch=1)
        steps = [lm(tokens[:, i : i + 1], cache=cache).logits for i in range(15)]
    if mode != "sparse24":  # a single token has the same hidden units; sums differ in order alone
        assert torch.allclose(torch.cat(steps, 1), first[:, :15], rtol=1e-4, atol=1e-4)


def test_measuring_leaves_the_mode_and_tells_gather_the_share_of_zeros(lm: LanguageModel) -> None:
    set_mode(lm, "gather")
    found = measure_layers(lm, torch.randint(256, (2, 32)))
    layers = {name: lm.get_submodule(name) for name in found}
    assert sorted(layers) == ["blocks.0.ffn", "blocks.1.ffn"]
    assert all(layer.mode == "gather" and layer.zeros == found[name]["zeros"] for name, layer in layers.items())


def test_drawn_text_follows_its_generator(lm: LanguageModel) -> None:
    texts = [lm.generate("A", 30, temperature=1.0, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
