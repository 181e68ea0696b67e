"""Squared-ReLU networks: three modes of one network, and when a model changes between them."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from tenfold.errors import UsageError
from tenfold.nn.ffn import SquaredReluFFN
from tenfold.nn.sparse24 import Sparsity24
from tenfold.nn.sparsity import WINDOW, SparsityController


def network(threshold: float = 0.0, dim: int = 16, hidden: int = 64, bias: bool = False) -> SquaredReluFFN:
    """With `threshold` the hidden values are lowered by it (the last input is 1), so that more of them are zero."""
    torch.manual_seed(0)
    ffn = SquaredReluFFN(dim, hidden, bias=bias, sparsity=None if bias else Sparsity24())
    with torch.no_grad():
        ffn.up.weight[:, -1] -= threshold
    return ffn


def inputs(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    x[..., -1] = 1.0
    return x


@pytest.mark.parametrize("threshold", [-2.0, 0.0, 0.4, 3.0])
@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_gather_equals_dense(threshold: float, tokens: int, bias: bool) -> None:
    ffn = network(threshold, bias=bias)
    x = inputs(1, tokens, 16)
    with torch.no_grad():
        dense = ffn(x)
        ffn.mode = "gather"
        ffn(x[:, :1])  # what single tokens show decides how several are computed
        torch.testing.assert_close(ffn(x), dense, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            torch.cat([ffn(x[:, i : i + 1]) for i in range(tokens)], 1), dense, rtol=1e-5, atol=1e-6
        )


def test_gather_reads_rows_for_few_tokens_and_multiplies_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    ffn = network(0.6)
    ffn.mode = "gather"
    read = []
    monkeypatch.setattr("tenfold.nn.ffn.bag", lambda table, index, weight: read.append(index.shape) or table[:1])
    with torch.no_grad():
        hidden = ffn.up(inputs(1, 16)).relu()
        share = float((hidden == 0).float().mean())
        assert share > 0.8
        ffn._bags(hidden)
        ffn._bags(inputs(3, 64))
        assert len(read) == 1 + 3
        assert ffn._bags(inputs(8, 64)) is None, "1 - s^8 of the rows are more than half"
        assert network()._bags(inputs(1, 64).abs()) is None, "nothing is zero"


def test_gather_keeps_name_shape_and_values_of_the_weights() -> None:
    ffn = network()
    before = copy.deepcopy(ffn.state_dict())
    ffn.mode = "gather"
    after = ffn.state_dict()
    assert list(after) == ["up.weight", "down.weight"]
    assert all(after[name].equal(before[name]) for name in before)
    assert ffn.down.weight.t().is_contiguous()


@pytest.mark.parametrize("mode", ["dense", "sparse24", "gather"])
def test_no_token_changes_another(mode: str) -> None:
    ffn = network(0.4)
    ffn.mode = mode
    ffn.zero_share = 0.99
    x = inputs(1, 9, 16)
    other = x.clone()
    other[:, 5] = -x[:, 5]
    with torch.no_grad():
        a, b = ffn(x), ffn(other)
    assert a[:, :5].equal(b[:, :5])
    assert not a[:, 5].equal(b[:, 5])


def test_gather_gives_gradients_by_plain_products() -> None:
    ffn = network(0.4)
    x = inputs(1, 1, 16)
    dense = torch.autograd.grad(ffn(x).sum(), [ffn.down.weight])[0]
    ffn.mode = "gather"
    assert torch.autograd.grad(ffn(x).sum(), [ffn.down.weight])[0].equal(dense)


def test_sparse24_follows_autocast() -> None:
    ffn = network()
    ffn.mode = "sparse24"
    x = inputs(2, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ffn(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert ffn.up.weight.grad is not None
    assert ffn.up.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), ffn(x), rtol=0.1, atol=0.05)


def test_wrong_modes_are_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean 'gather'"):
        network().mode = "gathr"
    with pytest.raises(UsageError, match="no 2:4 configuration"):
        SquaredReluFFN(4, 8).mode = "sparse24"
    with pytest.raises(UsageError, match="without biases"):
        SquaredReluFFN(4, 8, bias=True, sparsity=Sparsity24())


def stack(config: Sparsity24) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(SquaredReluFFN(16, 64, sparsity=config) for _ in range(2)), SquaredReluFFN(16, 64))


def modes(model: torch.nn.Module) -> list[str]:
    return [m.mode for m in model.modules() if isinstance(m, SquaredReluFFN)]


def test_a_model_is_dense_then_sparse_then_dense_again() -> None:
    model = stack(Sparsity24(warmup_steps=5, cooldown_steps=3, max_dropped=1.0))
    controller = SparsityController(model, total_steps=30)
    seen = []
    for step in range(30):
        controller.step(step)
        model(inputs(8, 16))
        seen.append(modes(model))
    assert seen == [["dense"] * 3] * 5 + [["sparse24", "sparse24", "dense"]] * 22 + [["dense"] * 3] * 3
    assert [row["layer"] for row in controller.stats()] == ["0", "1"]
    assert all(0.3 < row["zeros"] < 0.7 and 0 < row["dropped"] < 0.2 for row in controller.stats())


def test_a_layer_that_would_lose_too_much_stays_dense_and_a_resumed_run_knows() -> None:
    model = stack(Sparsity24(warmup_steps=WINDOW, max_dropped=0.05))
    with torch.no_grad():
        model[1].up.weight[:, -1] += 5  # almost everything is positive: half of the mass would go
    controller = SparsityController(model, total_steps=1000)
    x = inputs(64, 16)
    for step in range(WINDOW + 7):
        controller.step(step)
        for layer in model:
            layer(x)
    assert modes(model) == ["sparse24", "dense", "dense"]
    refused = controller.stats()[1]["refused"]
    assert "activation mass" in refused
    state = json.loads(json.dumps(controller.state_dict()))
    again = stack(Sparsity24(warmup_steps=WINDOW, max_dropped=0.05))
    again.load_state_dict(model.state_dict())
    resumed = SparsityController(again, total_steps=1000)
    resumed.load_state_dict(state)
    for step in range(WINDOW + 7, 2 * WINDOW + 3):
        for c, m in ((controller, model), (resumed, again)):
            c.step(step)
            for layer in m:
                layer(x)
    assert resumed.stats() == controller.stats()
    assert modes(again) == ["sparse24", "dense", "dense"]
