"""Feed-forward networks equal their formulas in every mode; experts are the best ones of each token, balanced, and causal."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch

from tenfold.errors import UsageError
from tenfold.nn.ffn import ExpertFFN, GeluFFN, SquaredReLUFFN, SwiGLUFFN, neuron_major
from tenfold.nn.sparse24 import Sparsity24


def test_feed_forward_networks_equal_their_formulas() -> None:
    x = torch.randn(4, 6)
    gelu, gated, relu = GeluFFN(6, 10), SwiGLUFFN(6, 10), SquaredReLUFFN(6, 10)
    up = x @ gelu.up.weight.T + gelu.up.bias
    erf = 0.5 * up * (1 + torch.erf(up / math.sqrt(2)))
    assert torch.allclose(gelu(x), erf @ gelu.down.weight.T + gelu.down.bias, atol=1e-6)
    gate, value = (x @ gated.gate_up.weight.T + gated.gate_up.bias).split(10, dim=-1)
    hidden = gate * torch.sigmoid(gate) * value
    assert torch.allclose(gated(x), hidden @ gated.down.weight.T + gated.down.bias, atol=1e-6)
    assert torch.allclose(relu(x), (x @ relu.up.weight.T).clamp_min(0) ** 2 @ relu.down.weight.T, atol=1e-6)


@pytest.mark.parametrize("mode", ["dense", "sparse24", "gather"])
def test_no_token_changes_the_result_of_another(mode: str) -> None:
    torch.manual_seed(0)
    ffn = SquaredReLUFFN(32, 72, sparsity=Sparsity24())
    ffn.mode, ffn.zeros = mode, 0.99
    x = torch.randn(1, 21, 32)
    for grad in (False, True) if mode != "gather" else (False,):
        with torch.set_grad_enabled(grad):
            before, changed = ffn(x), x.clone()
            changed[:, 13] = 100 * torch.randn(32)
            after = ffn(changed)
        others = [i for i in range(21) if i != 13]
        assert torch.equal(before[:, others], after[:, others])
        assert not torch.equal(before[:, 13], after[:, 13])


def test_gathering_equals_the_dense_network() -> None:
    torch.manual_seed(0)
    ffn = SquaredReLUFFN(48, 200)
    x = torch.randn(5, 48)
    with torch.no_grad():
        dense = ffn(x)
        ffn.mode = "gather"
        ffn.zeros = 0.99
        assert torch.allclose(ffn(x), dense, rtol=1e-5, atol=1e-6)
        assert torch.allclose(ffn(x[0]), dense[0], rtol=1e-5, atol=1e-6)
        assert not ffn(torch.zeros(1, 48)).any()  # no row is read at all
        ffn.down.weight.mul_(2)  # the neuron-major copy follows the weights
        assert torch.allclose(ffn(x[:1]), 2 * dense[:1], rtol=1e-5, atol=1e-6)


def test_modes_that_cannot_be_are_refused() -> None:
    ffn = SquaredReLUFFN(4, 8)
    with pytest.raises(UsageError, match="sparsity=Sparsity24"):
        ffn.mode = "sparse24"
    with pytest.raises(UsageError, match="gather"):
        ffn.mode = "gathr"
    with pytest.raises(UsageError, match="biases"):
        SquaredReLUFFN(4, 8, bias=True, sparsity=Sparsity24())


def test_what_would_be_dropped_is_recorded_while_it_is_watched_in_training_only() -> None:
    ffn, x = SquaredReLUFFN(8, 32), torch.randn(12, 8)
    plain = ffn(x)
    ffn.watched = []
    assert torch.equal(ffn.train()(x), plain)
    ffn.eval()(x)
    assert len(ffn.watched) == 1
    assert float(ffn.watched[0].zeros) == pytest.approx(float((ffn.up(x) <= 0).float().mean()))


def test_a_neuron_major_copy_has_a_row_for_every_hidden_unit() -> None:
    down = torch.randn(6, 50, dtype=torch.bfloat16)
    rows = neuron_major(down)
    assert torch.equal(rows, down.t())
    assert rows.is_contiguous()


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_a_token_s_result_is_the_weighted_sum_of_its_best_experts(top_k: int) -> None:
    torch.manual_seed(0)
    ffn, x = ExpertFFN(8, 12, experts=4, top_k=top_k), torch.randn(2, 5, 8)
    y = ffn(x)
    for token, result in zip(x.flatten(0, 1), y.flatten(0, 1)):
        chances = ffn.router(token).softmax(-1)
        best = chances.argsort(descending=True)[:top_k].tolist()
        assert torch.allclose(result, sum(chances[e] * ffn.experts[e](token) for e in best), atol=1e-6)


def test_tokens_do_not_compete() -> None:
    torch.manual_seed(0)
    ffn, x = ExpertFFN(8, 12, experts=4), torch.randn(1, 9, 8)
    changed = x.clone()
    changed[:, 6] = torch.randn(8)
    assert torch.allclose(ffn(x)[:, :6], ffn(changed)[:, :6], atol=1e-6)


def test_balance_is_one_when_all_are_used_alike_and_their_number_when_one_is() -> None:
    ffn = ExpertFFN(4, 4, experts=4)
    with torch.no_grad():
        ffn.router.weight.copy_(20 * torch.eye(4))
    ffn(torch.eye(4))
    assert ffn.balance is not None
    assert float(ffn.balance.detach()) == pytest.approx(1.0, abs=1e-4)
    ffn(torch.eye(4)[:1].repeat(4, 1))
    assert float(ffn.balance.detach()) == pytest.approx(4.0, abs=1e-4)


def test_the_router_learns_from_the_balance() -> None:
    ffn = ExpertFFN(4, 4, experts=4)
    ffn(torch.randn(16, 4))
    assert ffn.balance is not None
    ffn.balance.backward()
    assert ffn.router.weight.grad is not None
    assert ffn.router.weight.grad.abs().sum() > 0


def test_more_choices_than_experts_are_refused() -> None:
    with pytest.raises(UsageError, match="1 to 3"):
        ExpertFFN(4, 4, experts=3, top_k=4)


def gathering(dim: int = 16, hidden: int = 64) -> SquaredReLUFFN:
    torch.manual_seed(0)
    ffn = SquaredReLUFFN(dim, hidden).eval()
    ffn.mode = "gather"
    return ffn


def fused(optimizer: type, ffn: SquaredReLUFFN) -> None:
    steps = optimizer(ffn.parameters(), lr=0.1, fused=True)
    for p in ffn.parameters():
        p.grad = torch.randn_like(p)
    steps.step()


CHANGES: dict[str, Callable[[SquaredReLUFFN], object]] = {
    "fused AdamW": lambda ffn: fused(torch.optim.AdamW, ffn),
    "fused SGD": lambda ffn: fused(torch.optim.SGD, ffn),
    "assign": lambda ffn: ffn.load_state_dict({n: 2 * t for n, t in ffn.state_dict().items()}, assign=True),
    "copy": lambda ffn: ffn.load_state_dict({n: 2 * t for n, t in ffn.state_dict().items()}),
    "data": lambda ffn: ffn.down.weight.data.mul_(2),
    "in place": lambda ffn: ffn.down.weight.detach().mul_(2),
    "another tensor": lambda ffn: setattr(ffn.down, "weight", torch.nn.Parameter(2 * ffn.down.weight.detach())),
    "another type": lambda ffn: ffn.double().float().down.weight.data.mul_(3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("inference", [False, True])
def test_gather_reads_the_weights_of_now(change: Callable[[SquaredReLUFFN], object], inference: bool) -> None:
    ffn, x = gathering(), torch.randn(1, 16)
    mode = torch.inference_mode if inference else torch.no_grad
    with mode():
        before = ffn(x)
    change(ffn)
    with mode():
        after = ffn(x)
        ffn.mode = "dense"
        assert torch.allclose(after, ffn(x), atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)


def test_gather_takes_weights_that_were_loaded_in_inference_mode() -> None:
    with torch.inference_mode():
        ffn, x = gathering(), torch.randn(1, 16)
        before = ffn(x)
        ffn.load_state_dict({n: 2 * t for n, t in ffn.state_dict().items()})
        assert torch.allclose(ffn(x), 8 * before, atol=1e-4)  # up counts twice


@torch.inference_mode()
def test_gather_of_no_tokens_is_empty_and_a_copied_network_has_its_own_rows() -> None:
    ffn = gathering()
    assert ffn(torch.randn(0, 16)).shape == (0, 16)
    assert ffn(torch.randn(2, 0, 16)).shape == (2, 0, 16)
    x = torch.randn(1, 16)
    assert torch.equal(copy.deepcopy(ffn)(x), ffn(x))
    assert ffn.down_rows() is ffn.down_rows()  # and is made once
