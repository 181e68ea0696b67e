"""A pass over pages has the logits of the model itself, for whole texts, chunks, trees and several requests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.engine_models import TREE, tiny_llama
from tenfold.inference.pages import PageAllocator, PagedCache, PageTable
from tenfold.language.models.llama import Llama
from tenfold.language.models.paged_forward import Passes, first_largest
from tenfold.language.models.prepare import pack_linears


def room(model: Llama, requests: int) -> tuple[PagedCache, list[PageTable]]:
    c, pages = model.config, PageAllocator(60, 4)
    cache = PagedCache(c.depth, c.kv_heads, c.width, 60, 4, model.embedding.weight.dtype)
    tables = [PageTable(4) for _ in range(requests)]
    for rows in range(4, 33, 4):  # in turns, so that no text's pages stand side by side
        assert all(pages.cover(table, rows) for table in tables)
    return cache, tables


@pytest.mark.parametrize("form", ["fp32", "bf16"])
@torch.inference_mode()
def test_chunks_of_several_requests_have_the_logits_of_the_model(form: str) -> None:
    exact = tiny_llama()
    model = exact if form == "fp32" else pack_linears(tiny_llama(), "bf16")
    assert isinstance(model, Llama)
    forward, (cache, tables) = Passes(model), room(model, 2)
    texts = [torch.randint(23, (13,)), torch.randint(23, (9,))]
    at = [0, 0]
    for counts in ([4, 2], [9, 7]):
        tokens = torch.cat([text[a : a + n] for text, a, n in zip(texts, at, counts)])[None]
        positions = torch.cat([torch.arange(a, a + n) for a, n in zip(at, counts)])[None]
        out = forward(tokens, positions, cache.step(tables, at, counts), aux_layers=(1,))
        assert out.aux is not None
        for b, part in enumerate(zip(out.logits[0].split(counts), out.aux[0].split(counts))):
            whole = exact(texts[b][None], aux_layers=(1,))
            for mine, theirs in zip(part, (whole.logits, whole.aux)):
                expected = theirs[0, at[b] : at[b] + counts[b]]
                off = float((mine.float() - expected).norm() / expected.norm())
                assert off < (1e-5 if form == "fp32" else 0.1)
        at = [a + n for a, n in zip(at, counts)]


@torch.inference_mode()
def test_a_path_of_a_tree_has_the_logits_of_its_text_and_only_wanted_rows_come() -> None:
    model = tiny_llama()
    forward, (cache, (table,)) = Passes(model), room(model, 1)
    prompt, nodes = torch.randint(23, (6,)), torch.randint(23, (1, TREE.nodes + 1))
    forward(prompt[None], torch.arange(6)[None], cache.step([table], [0], [6]))
    step = cache.step([table], [6], [TREE.nodes + 1])
    wanted = torch.tensor([3, 0])
    out = forward(nodes, 6 + TREE.depth[None], step, TREE.mask, logit_rows=wanted)
    for row, node in zip(out.logits, wanted.tolist()):
        path = [n for n in range(TREE.nodes + 1) if TREE.mask[node, n]]
        text = torch.cat([prompt, nodes[0, path]])[None]
        torch.testing.assert_close(row, model(text).logits[0, -1], rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=4))
def test_of_equal_logits_the_first_is_taken(rows: list[list[int]]) -> None:
    assert first_largest(torch.tensor(rows, dtype=torch.float32)).tolist() == [row.index(max(row)) for row in rows]
