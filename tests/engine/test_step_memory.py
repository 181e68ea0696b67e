"""Activation checkpointing learns the same with fewer activations kept, and automatic precision follows the machine."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from engine.watched_task import Layer, Watched, fit
from tenfold.engine.step_memory import autocast_type, recompute
from tenfold.kernels import machine


def test_recomputed_layers_keep_their_inputs_only_and_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(Layer(), Layer())
    x = torch.randn(3, 4)

    def gradients() -> tuple[list[torch.Tensor], int]:
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = layers(x).square().sum()
        return list(torch.autograd.grad(loss, list(layers.parameters()))), kept

    plain, whole = gradients()
    recompute(layers)
    again, few = gradients()
    assert all(a.equal(b) for a, b in zip(plain, again, strict=True))
    assert few < whole


def test_without_gradients_nothing_is_run_twice() -> None:
    layer = Layer()
    recompute([layer])
    with torch.no_grad():
        layer(torch.randn(2, 4))
    assert layer.calls == 1


def test_marked_layers_run_again_in_the_backward_and_learn_the_same(tmp_path: Path) -> None:
    kept, again = (fit(Watched(), tmp_path / str(on), activation_checkpointing=on) for on in (False, True))
    assert [layer.calls for layer in kept.model.layers] == [2, 2]
    assert [layer.calls for layer in again.model.layers] == [4, 4]
    for ours, theirs in zip(kept.model.state_dict().values(), again.model.state_dict().values()):
        assert ours.equal(theirs)


def test_automatic_precision_follows_the_units_that_decoding_asks_for() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (autocast_type("auto", cpu) is torch.bfloat16) == (machine.bf16_refusal() is None)
    assert autocast_type("auto", cuda) is torch.bfloat16
    assert autocast_type("fp32", cuda) is None
    assert autocast_type("bf16", cpu) is torch.bfloat16
