"""The switch from dense to sparse: by the schedule, refused by what a layer would lose, and remembered."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenfold.nn.ffn import SquaredReLUFFN
from tenfold.nn.sparse24 import Sparsity24
from tenfold.nn.sparse_training import SparsityController


def network(layers: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(SquaredReLUFFN(16, 64, sparsity=Sparsity24()) for _ in range(layers)))


def modes(model: nn.Module, controller: SparsityController, total: int) -> list[str]:
    found = []
    for step in range(total):
        controller.step(step)
        model(torch.randn(32, 16))
        found.append("".join(layer.mode[0] for layer in controller.layers.values()))
    return found


def test_warm_up_and_cool_down_are_dense() -> None:
    model = network()
    controller = SparsityController(model, Sparsity24(warmup_steps=0.3, cooldown_steps=2, max_dropped=1.0), total=10)
    assert modes(model, controller, 10) == ["dd"] * 3 + ["ss"] * 5 + ["dd"] * 2


def test_a_layer_that_would_lose_too_much_stays_dense_and_says_why() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("1.up.weight").abs_()  # every unit of a token has one sign: four of four are active or none
    controller = SparsityController(model, Sparsity24(warmup_steps=2, max_dropped=0.12), total=6)
    model[0].register_forward_hook(lambda *_: torch.rand(32, 16))  # positive inputs of the second
    assert modes(model, controller, 6) == ["dd", "dd", "sd", "sd", "sd", "sd"]
    first, second = controller.stats().values()
    assert not first.refused
    assert second.features > 0.3
    assert "0.12" in second.refused
    assert "step 1" in second.refused


def test_decisions_survive_the_checkpoint() -> None:
    model = network()
    controller = SparsityController(model, Sparsity24(warmup_steps=1, max_dropped=0.0), total=4)
    modes(model, controller, 2)
    again = SparsityController(network(), Sparsity24(warmup_steps=1, max_dropped=0.0), total=4)
    controller.step(2)  # as after a step, before it is saved
    again.load_state_dict(controller.state_dict())
    assert [layer.mode for layer in again.layers.values()] == ["dense", "dense"]
    assert again.state_dict() == controller.state_dict()


def test_a_run_that_goes_on_after_the_switch_is_sparse_at_once() -> None:
    controller = SparsityController(network(), Sparsity24(warmup_steps=1, max_dropped=1.0), total=9)
    for step in range(4):
        controller.step(step)
    again = SparsityController(network(), Sparsity24(warmup_steps=1, max_dropped=1.0), total=9)
    again.step(0)
    again.load_state_dict(controller.state_dict())
    assert [layer.mode for layer in again.layers.values()] == ["sparse24", "sparse24"]


def test_ranks_decide_by_their_mean() -> None:
    model = network(1)

    def half(shares: Tensor) -> Tensor:  # another rank that loses nothing
        return shares / 2

    alone = SparsityController(model, Sparsity24(warmup_steps=1, max_dropped=1.0), total=3)
    modes(model, alone, 2)
    loss = next(iter(alone.stats().values())).features
    bound = Sparsity24(warmup_steps=1, max_dropped=0.75 * loss)
    for mean, mode in ((lambda shares: shares, "d"), (half, "s")):
        model, torch_seed = network(1), torch.manual_seed(1)
        assert torch_seed is not None
        assert modes(model, SparsityController(model, bound, 3, mean), 3)[-1] == mode


def test_validation_is_not_counted() -> None:
    model = network(1)
    controller = SparsityController(model, Sparsity24(warmup_steps=1), total=4)
    controller.step(0)
    model.eval()(torch.randn(4, 16))
    assert model[0].watched == []
