"""`tenfold bench ffn`: decoding one token with a Squared-ReLU network whose zeros are skipped, against the whole products.

Width 2,048, hidden 8,192, one thread. Weights of 24 layers and as many active sets take turns, so that nothing stays in a
cache. The peer is the best of F.linear, torch.mv and torch.compile in the same number format; both formats are shown,
because a processor without units for bf16 multiplies it more slowly than fp32. What is active is found within the timing.

Active units are drawn at random for the shares of the acceptance marks. If `tenfold bench ffn-quality` has trained its
models, the same is shown for their own share of zeros, which is what such small models reach.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import mean, median
from time import thread_time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.bench.ffn_quality import FOLDER
from tenfold.bench.table import interleave, on_threads, ratio
from tenfold.kernels.bag import nonzero_bag
from tenfold.kernels.native import large_pages, library
from tenfold.nn.ffn import SquaredReLUFFN, neuron_major
from tenfold.nn.sparse24 import backends

DIM, HIDDEN, LAYERS = 2048, 8192, 24
SHARES = (0.90, 0.95)
MARKS = {0.90: {"gather, C++": 5.0, "gather, torch": 4.0}, 0.95: {"gather, C++": 9.0, "gather, torch": 8.0}}
ROUNDS = 25
Side = Callable[[], object]


def run() -> dict[str, Any]:
    torch.manual_seed(0)
    with on_threads(1), torch.no_grad():
        rows = [row for dtype in (torch.bfloat16, torch.float32) for row in _both(dtype)]
    refused = [f"{b.name}: {b.refused_because}" for b in backends() if not b.available]
    notes = [
        f"d {DIM}, h {HIDDEN}, batch 1, one thread, its processor time; weights of {LAYERS} layers and their active sets in "
        f"turns; medians of {ROUNDS} turns; marks are for bf16: down-projection 5x (C++) and 4x (torch) at 90 %, 9x and 8x at "
        "95 %, whole network 1.6x at 90 %",
        "limits where both sides read at one bandwidth: 10x and 20x for the down-projection at 90 % and 95 % zeros, 1.82x for "
        "the whole network at 90 %, 2x at all; a figure above them says that the peer does not reach the memory's bandwidth "
        "in this format (GB/s: of the weights that a side has to read)",
        f"rows of the acceptance table that need CUDA (fused packing, fp8 and bf16 2:4 products) were not run: "
        f"{'; '.join(refused)}",
    ]
    return {"title": "Feed-forward network of one token, zeros skipped", "rows": rows, "notes": notes}


def _both(dtype: torch.dtype) -> list[dict[str, Any]]:
    layers = LAYERS if dtype == torch.bfloat16 else LAYERS // 2  # the same bytes
    ups, downs = _weights(HIDDEN, DIM, dtype, layers), _weights(DIM, HIDDEN, dtype, layers)
    stored = [neuron_major(down) for down in downs]
    rows = [row for share in SHARES for row in _down(share, downs, stored)]
    rows += _whole("0.90", 0.90, ups, downs)
    trained = _trained_zeros()
    if trained is not None:
        rows += _whole(f"{trained:.2f}, as in the trained byte models", trained, ups, downs)
    return rows


def _weights(rows: int, cols: int, dtype: torch.dtype, layers: int) -> list[Tensor]:
    first = (torch.randn(rows, cols) * cols**-0.5).to(dtype)
    # On large pages like the rows of ours, so that the peers do not lose by where their weights stand.
    return [large_pages(torch.empty_like(first)).copy_(first) for _ in range(layers)]


def _down(share: float, downs: list[Tensor], stored: list[Tensor]) -> list[dict[str, Any]]:
    hidden = [(F.relu(torch.randn(HIDDEN)) + 0.01) * (torch.rand(HIDDEN) > share) for _ in downs]
    hidden = [y.square().to(downs[0].dtype) for y in hidden]
    compiled = torch.compile(lambda weight, y: F.linear(y[None], weight))
    peers: dict[str, Callable[[int], object]] = {
        "F.linear": lambda i: F.linear(hidden[i][None], downs[i]),
        "torch.mv": lambda i: torch.mv(downs[i], hidden[i]),
        "compiled": lambda i: compiled(downs[i], hidden[i]),
    }
    ours: dict[str, Callable[[int], object]] = {
        "gather, torch": lambda i: nonzero_bag(stored[i], hidden[i][None], compiled=False)
    }
    if library() is not None:
        ours["gather, C++"] = lambda i: nonzero_bag(stored[i], hidden[i][None])
    what = f"down-projection, zeros {share}"
    return _measured(what, peers, ours, len(downs), downs[0].dtype, (1, 1 - share), MARKS[share])


def _whole(words: str, share: float, ups: list[Tensor], downs: list[Tensor]) -> list[dict[str, Any]]:
    dtype = ups[0].dtype
    # A bias moves the units of a random input so that this share of them is not positive.
    shift = -float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(share)))
    bias = torch.full((HIDDEN,), shift, dtype=dtype)
    xs = [torch.randn(1, DIM).to(dtype) for _ in ups]
    networks = [_network(up, down, bias) for up, down in zip(ups, downs)]
    for network in networks:
        network.mode = "gather"
        network.down_rows()  # copied before anything is timed

    def dense_linear(i: int) -> Tensor:
        return F.linear(F.relu(F.linear(xs[i], ups[i], bias)).square(), downs[i])

    def dense_mv(i: int) -> Tensor:
        return torch.mv(downs[i], F.relu(torch.addmv(bias, ups[i], xs[i][0])).square())

    whole = torch.compile(dense_layer)
    peers = {
        "F.linear": dense_linear,
        "torch.mv": dense_mv,
        "compiled": lambda i: whole(xs[i], ups[i], bias, downs[i]),
    }
    ours = {"gather": lambda i: networks[i](xs[i])}
    what, marks = f"whole network, zeros {words}", {"gather": 1.6} if share == 0.9 else {}
    return _measured(what, peers, ours, len(ups), dtype, (2, 2 - share), marks)


def dense_layer(x: Tensor, up: Tensor, bias: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x, up, bias)).square(), down)


def _network(up: Tensor, down: Tensor, bias: Tensor) -> SquaredReLUFFN:
    with torch.device("meta"):
        network = SquaredReLUFFN(DIM, HIDDEN)
    network.up.weight, network.up.bias = (nn.Parameter(x, requires_grad=False) for x in (up, bias))
    network.down.weight = nn.Parameter(down, requires_grad=False)
    return network


def _measured(
    what: str,
    peers: dict[str, Callable[[int], object]],
    ours: dict[str, Callable[[int], object]],
    layers: int,
    dtype: torch.dtype,
    read: tuple[float, float],
    marks: dict[str, float],
) -> list[dict[str, Any]]:
    sides = {name: _turns(work, layers) for name, work in {**peers, **ours}.items()}
    # Processor time: on a shared machine the wall clock of the longer side has more of its neighbours in it.
    with torch.inference_mode():
        seconds = interleave(sides, rounds=ROUNDS, clock=thread_time)
    best = min(peers, key=lambda name: median(seconds[name]))
    rows = []
    for name, times in seconds.items():
        middle, low, high = ratio(times, seconds[best])
        row = {"what": what, "format": str(dtype).removeprefix("torch."), "side": name}
        size = read[name in ours] * DIM * HIDDEN * dtype.itemsize
        row |= {"median us": round(1e6 * median(times)), "GB/s": round(1e-9 * size / median(times), 1)}
        row |= {"over the best peer": round(middle, 2), "spread": f"{low:.2f} to {high:.2f}"}
        row |= {"mark": marks.get(name, "") if dtype == torch.bfloat16 else ""}
        rows.append(row)
    return rows


def _turns(work: Callable[[int], object], layers: int) -> Side:
    turn = count()
    return lambda: work(next(turn) % layers)


def _trained_zeros() -> float | None:
    """Mean share of zeros of the trained models of `bench ffn-quality`, if it was run here."""
    found = [json.loads(path.read_text()) for path in Path(FOLDER).glob("relu2-24-*/results.json")]
    return mean(layer["zeros"] for result in found for layer in result["layers"].values()) if found else None
