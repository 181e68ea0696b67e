"""Llama: a cache changes nothing, a row sees only what is before it, and features are the inputs of the layers asked for."""

from __future__ import annotations

import pytest
import torch

from language.engine_models import tiny_llama
from tenfold.errors import UsageError
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama, check_aux_layers, initialise_by_width


@torch.inference_mode()
def test_a_text_in_parts_through_a_cache_has_the_logits_of_the_whole() -> None:
    model = tiny_llama()
    tokens = torch.randint(23, (2, 14))
    whole = model(tokens).logits
    cache = model.new_cache(batch=2, capacity=4)
    parts = [model(part, cache=cache).logits for part in tokens.split([5, 1, 1, 7], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_rotations_are_relative() -> None:
    model = tiny_llama()
    tokens = torch.randint(23, (1, 9))
    shifted = model(tokens, positions=torch.arange(100, 109)[None])
    torch.testing.assert_close(shifted.logits, model(tokens).logits, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_features_are_the_inputs_of_the_layers_asked_for_in_their_order() -> None:
    model = tiny_llama(depth=3)
    tokens = torch.randint(23, (2, 6))
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = model(tokens, aux_layers=(2, 0))
    assert out.aux is not None
    assert torch.equal(out.aux, torch.cat([seen[2], seen[0]], -1))
    assert torch.equal(seen[0], model.embedding(tokens))
    assert torch.equal(model.logits(out.hidden), out.logits)


def test_layers_and_texts_that_are_not_there_are_refused() -> None:
    check_aux_layers((0, 2), 3)
    for layers in ((3,), (-1,)):
        with pytest.raises(UsageError, match="allowed are 0 to 2"):
            check_aux_layers(layers, 3)
    with pytest.raises(UsageError, match="at least one token"):
        tiny_llama()(torch.empty(1, 0, dtype=torch.int64))


def test_matrices_start_with_one_over_the_root_of_their_inputs() -> None:
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocabulary=500, dim=64, hidden=256, depth=8, heads=4, kv_heads=4))
    initialise_by_width(model)
    for name, parameter in model.blocks.named_parameters():
        if parameter.ndim == 2:
            writes = name.endswith(("attention.out.weight", "down.weight"))
            expected = (parameter.shape[1] * (16 if writes else 1)) ** -0.5
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.05), name
    assert float(model.embedding.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.05)


@torch.inference_mode()
def test_only_the_wanted_rows_get_logits() -> None:
    model = tiny_llama()
    tokens = torch.randint(0, 23, (2, 7))
    some = model(tokens, logit_rows=torch.tensor([6, 13]))
    assert torch.allclose(some.logits, model(tokens).logits[:, -1], atol=1e-6)
    with pytest.raises(UsageError, match="allowed are 0 to 1"):
        model(tokens, aux_layers=(2,))
