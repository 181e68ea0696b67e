"""Packed weights compute what their numbers say: every format within its rounding, Q4_1 blocks as they are stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gguf_files import write
from language.engine_models import tiny_llama
from tenfold.export.gguf import open_gguf
from tenfold.kernels.formats import pack, quickest
from tenfold.kernels.packed import Int4Linear, PackedWeight, PlainLinear, unpack_q4_1

needs_bf16 = pytest.mark.skipif(quickest() != "bf16", reason="this machine has no fast bf16")


def error(form: str, rows: int) -> float:
    """Largest difference to the exact product, relative to its largest value."""
    torch.manual_seed(rows)
    weight, x = torch.randn(64, 96), torch.randn(rows, 96)
    layer = pack(weight, None, form)
    y = layer(x if form == "fp32" else x.bfloat16()).float()
    return float((y - x @ weight.t()).abs().max() / (x @ weight.t()).abs().max())


@pytest.mark.parametrize("rows", [1, 5, 17, 64])
@pytest.mark.parametrize(
    ("form", "most"), [("fp32", 1e-6), pytest.param("bf16", 0.01, marks=needs_bf16), ("int8", 0.03)]
)
def test_formats_differ_from_the_exact_product_by_their_rounding(form: str, most: float, rows: int) -> None:
    assert error(form, rows) <= most


@needs_bf16
@pytest.mark.parametrize("rows", [1, 4, 17, 130])
def test_a_reordered_weight_serves_every_number_of_rows_like_a_plain_one(rows: int) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(80, 64), torch.randn(80), torch.randn(2, rows, 64).bfloat16()
    expected = torch.nn.functional.linear(x.float(), weight.bfloat16().float(), bias.bfloat16().float())
    assert (pack(weight, bias, "bf16")(x).float() - expected).abs().max() <= 0.01 * expected.abs().max()


def test_q4_1_blocks_run_as_they_are_stored(tmp_path: Path) -> None:
    file = open_gguf(write(tmp_path / "m.gguf", tiny_llama(64, dim=64, hidden=96), quantised=True))
    for name in ("blk.0.ffn_up.weight", "blk.1.attn_output.weight"):
        codes, scale, offset = unpack_q4_1(file.blocks(name))
        exact = file.tensor(name)
        assert torch.equal(scale.repeat_interleave(32, 1) * codes + offset.repeat_interleave(32, 1), exact)
        x = torch.randn(7, exact.shape[1])
        y = Int4Linear(codes, scale, offset)(x.bfloat16()).float()
        assert (y - x @ exact.t()).abs().max() <= 0.02 * (x @ exact.t()).abs().max()


def test_a_weight_without_tiles_says_so() -> None:
    layer = pack(torch.ones(3, 8), None, "fp32")
    assert isinstance(layer, PlainLinear)
    assert (layer.outputs, layer.inputs, layer.tiled, layer.bytes) == (3, 8, False, 96)
    with pytest.raises(TypeError, match="PlainLinear has no tiles"):
        _ = PackedWeight.native.fget(layer)  # type: ignore[misc]
