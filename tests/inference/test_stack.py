"""A compiled pass computes what the modules do, and a row has the same bits whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tenfold.inference.pages import PageAllocator, PagedCache, PageTable
from tenfold.kernels import decode
from tenfold.kernels.packed import Int4Linear, TiledLinear
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama
from tenfold.language.models.paged_forward import Passes, first_largest
from tenfold.language.models.prepare import pack_linears

pytestmark = pytest.mark.skipif(decode.refusal() is not None, reason=f"this machine: {decode.refusal()}")
VOCABULARY = 77


def model(form: str = "bf16") -> tuple[Llama, Llama]:
    """(packed, the same weights in fp32); its sizes are no multiples of a tile."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocabulary=VOCABULARY, dim=96, hidden=160, depth=3, heads=6, kv_heads=2, head_dim=32, rope_theta=500.0
    )
    exact = Llama(config).eval().requires_grad_(False)
    for parameter in exact.parameters():
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1), 0.2 if parameter.ndim == 2 else 0.1)
        parameter.copy_(parameter.bfloat16())
    packed = Llama(config)
    packed.load_state_dict(exact.state_dict())
    if form != "int4":
        return pack_linears(packed, form), exact  # type: ignore[return-value, arg-type]
    for block, other in zip(packed.blocks, exact.blocks):
        for stem in ("attention.qkv", "attention.out", "ffn.gate_up", "ffn.down"):
            outputs, inputs = block.get_parameter(f"{stem}.weight").shape
            codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
            scale, offset = torch.rand(2, outputs, inputs // 32) * 0.05 - torch.tensor([0.0, 0.2])[:, None, None]
            block.set_submodule(stem, Int4Linear(codes, scale, offset), strict=True)
            whole = codes * scale.repeat_interleave(32, 1) + offset.repeat_interleave(32, 1)
            other.get_parameter(f"{stem}.weight").copy_(whole)
    return pack_linears(packed, "bf16"), exact  # type: ignore[return-value]


def room(config: LlamaConfig, tables: int, pages: int = 40) -> tuple[PagedCache, list[PageTable]]:
    """Pages of 4 rows, given out in turns, so that the tables' pages do not stand side by side."""
    allocator = PageAllocator(pages, 4)
    cache = PagedCache(config.depth, config.kv_heads, config.width, pages, 4, torch.bfloat16)
    opened = [PageTable(4) for _ in range(tables)]
    for rows in range(4, pages * 4 // tables + 1, 4):
        for table in opened:
            assert allocator.cover(table, rows)
    return cache, opened


def in_text(forward: Passes, tokens: list[int], cuts: list[int]) -> Tensor:
    """Logits of every row when the text goes through in these chunks."""
    cache, (table,) = room(forward.model.config, 1)
    logits, at = [], 0
    for count in cuts:
        part = torch.tensor([tokens[at : at + count]])
        step = cache.step([table], [at], [count])
        logits.append(forward(part, torch.arange(at, at + count)[None], step).logits[0])
        at += count
    return torch.cat(logits)


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@torch.inference_mode()
def test_a_pass_gives_the_logits_of_the_exact_modules_up_to_rounding(form: str) -> None:
    packed, exact = model(form)
    forward = Passes(packed)
    assert forward.stack is not None
    tokens = torch.randint(VOCABULARY, (1, 21))
    cache, (table,) = room(packed.config, 1)
    out = forward(tokens, torch.arange(21)[None], cache.step([table], [0], [21]), None, (1, 2))
    expected = exact(tokens, aux_layers=(1, 2))
    for mine, theirs in ((out.logits, expected.logits), (out.aux, expected.aux), (out.hidden, expected.hidden)):
        assert mine is not None
        # This model amplifies rounding more than a trained one: another model's logits would be off by 1.4 of their norm.
        most = {"bf16": 0.04, "int8": 0.15, "int4": 0.08}[form]
        assert (mine.float() - theirs).norm() <= most * theirs.norm()
    assert torch.equal(first_largest(out.logits), out.logits.argmax(-1))


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_chunks_batches_trees_and_with_threads(form: str) -> None:
    forward = Passes(model(form)[0])
    torch.manual_seed(1)
    tokens = torch.randint(VOCABULARY, (26,)).tolist()
    alone = in_text(forward, tokens, [1] * 26)
    assert torch.equal(in_text(forward, tokens, [26]), alone)
    assert torch.equal(in_text(forward, tokens, [7, 1, 13, 5]), alone)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(in_text(forward, tokens, [9, 17]), alone)
    finally:
        torch.set_num_threads(threads)
    # A tree behind 20 tokens, two requests at once: its path 0, 2, 4, 6 holds the text's own tokens.
    tree = Tree.from_paths([[0], [1], [0, 0], [1, 0], [1, 1], [1, 0, 0]])
    path = [0, 2, 4, 6]
    cache, tables = room(forward.model.config, 2)
    texts = [tokens, torch.randint(VOCABULARY, (26,)).tolist()]
    starts = [20, 11]
    for text, table, start in zip(texts, tables, starts):
        forward(torch.tensor([text[:start]]), torch.arange(start)[None], cache.step([table], [0], [start]))
    nodes = torch.randint(VOCABULARY, (2, tree.nodes + 1))
    for b, (text, start) in enumerate(zip(texts, starts)):
        nodes[b, path] = torch.tensor(text[start : start + 4])
    positions = torch.tensor(starts)[:, None] + tree.depth
    step = cache.step(tables, starts, [tree.nodes + 1] * 2)
    out = forward(nodes, positions, step, tree.mask)
    assert torch.equal(out.logits[0, path], alone[20:24])
    assert torch.equal(out.logits[1, path], in_text(forward, texts[1], [26])[11:15])


@torch.inference_mode()
def test_a_window_hides_what_is_older() -> None:
    window = 5
    packed = model()[0]
    forward = Passes(packed)
    tokens = torch.randint(VOCABULARY, (1, 19))
    rotation = packed.rope(torch.arange(19))

    def run(start: int, cut: bool) -> Tensor:
        """The last rows behind `start` others, which are left out where no row may see them."""
        cache, (table,) = room(packed.config, 1)
        assert forward.stack is not None
        x = packed.embedding(tokens[0])
        whole = cache.step([table], [0], [19], None, window)
        if not start:
            return forward.stack.run(x, rotation, whole).x
        forward.stack.run(x[:start], packed.rope(torch.arange(start)), cache.step([table], [0], [start], None, window))
        lows = [start - window + 1] if cut else None
        step = cache.step([table], [start], [19 - start], lows, window)
        return forward.stack.run(x[start:], packed.rope(torch.arange(start, 19)), step).x

    assert torch.equal(run(0, False)[12:], run(12, False))
    assert torch.equal(run(12, True), run(12, False))
    # The first layer's rows see themselves and four before; three layers, so the last row depends on the last 13 tokens.
    before = run(0, False)[-1]
    tokens[0, 5] = (tokens[0, 5] + 1) % VOCABULARY
    assert torch.equal(run(0, False)[-1], before)
    tokens[0, 7] = (tokens[0, 7] + 1) % VOCABULARY
    assert not torch.equal(run(0, False)[-1], before)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 17, 130])
def test_tiled_weights_multiply_like_plain_ones_row_by_row(rows: int) -> None:
    torch.manual_seed(rows)
    weight, x = torch.randn(100, 66).bfloat16(), torch.randn(rows, 66).bfloat16()
    layer = TiledLinear(weight, None)
    y = layer.wide(x)
    assert torch.allclose(y, x.float() @ weight.float().t(), atol=1e-4)
    assert torch.equal(torch.cat([layer.wide(row[None]) for row in x]), y)


def test_a_stack_that_cannot_be_compiled_says_so_by_using_the_modules() -> None:
    config = LlamaConfig(vocabulary=VOCABULARY, dim=96, hidden=160, depth=1, heads=3, kv_heads=3, attention_bias=True)
    assert Passes(pack_linears(Llama(config), "bf16")).stack is None  # type: ignore[arg-type]
    assert Passes(Llama(config)).stack is None
