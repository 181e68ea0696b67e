"""A tree's tables say the same as its paths, and a tree checked in one pass gives what each of its paths gives alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import UsageError
from tenfold.inference.pages import PageAllocator, PagedCache
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama

MC_SIM = [
    [0], [1], [2], [3], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0], [2, 1], [3, 0], [0, 0, 0], [0, 0, 1], [0, 0, 2],
    [0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1], [1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 0, 0],
    [0, 0, 0, 0, 1],
]  # fmt: skip  # the shape that EAGLE and Medusa publish as mc_sim_7b_63


@st.composite
def trees(draw: st.DrawFn, limit: int = 12) -> Tree:
    parents = [0]
    for i in range(1, draw(st.integers(0, limit)) + 1):
        parents.append(draw(st.integers(parents[-1], i - 1)))
    return Tree(tuple(parents))


def llama() -> Llama:
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocabulary=53, dim=32, hidden=48, depth=2, heads=4, kv_heads=2))
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.3)
    return model.eval()


@settings(max_examples=60, deadline=None)
@given(trees())
def test_paths_and_tables_describe_the_same_tree(tree: Tree) -> None:
    assert Tree.from_paths(tree.paths[::-1]) == tree
    for node in range(1, tree.nodes + 1):
        path = tree.paths[node - 1]
        assert (len(path), path[-1]) == (tree.depth[node], tree.rank[node])
        at = 0
        for rank in path:  # by the table of children, and by first child and siblings
            step = int(tree.next_token[at])
            for _ in range(rank):
                step = int(tree.next_sibling[step])
            at = int(tree.children[at, rank])
            assert step == at
        assert at == node
        seen = tree.mask[node].nonzero()[:, 0].tolist()
        assert seen == sorted({0, node} | {1 + tree.paths.index(path[:k]) for k in range(1, len(path))})


@settings(max_examples=60, deadline=None)
@given(trees())
def test_levels_cover_every_node_once_in_order(tree: Tree) -> None:
    assert len(tree.levels) == tree.height
    assert [n for level in tree.levels for n in level.children.tolist()] == list(range(1, tree.nodes + 1))
    below: list[int] = []
    for level in tree.levels:
        for child, owner, rank in zip(level.children.tolist(), level.owner.tolist(), level.rank.tolist()):
            assert tree.parents[child] == level.inner[owner]
            assert tree.rank[child] == rank
        assert tree.inner[level.inner_rows].tolist() == level.inner.tolist()
        for node, above in zip(level.inner.tolist(), level.parents_inner_rows.tolist()):
            assert tree.inner[above] == tree.parents[node]
        if level.depth:
            below += level.inner.tolist()
            assert torch.equal(level.mask, tree.mask[level.inner][:, below])


def test_the_published_tree_has_25_nodes_in_five_levels() -> None:
    tree = Tree.from_paths(MC_SIM)
    assert (tree.nodes, tree.height, len(tree.inner)) == (25, 5, 11)
    assert Tree.chain(3).parents == (0, 0, 1, 2)
    assert Tree.chain(0).levels == []


@pytest.mark.parametrize(
    ("paths", "message"),
    [([[0, 0]], r"\[0\] is missing"), ([[0], [2]], r"\[1\] is missing"), ([[-1]], ">= 0"), ([[]], ">= 0")],
)
def test_a_path_without_its_elders_is_refused(paths: list[list[int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tree.from_paths(paths)


@settings(max_examples=15, deadline=None)
@given(trees(8), st.booleans())
@torch.inference_mode()
def test_a_tree_in_one_pass_equals_each_path_alone(tree: Tree, paged: bool) -> None:
    model, size = llama(), tree.nodes + 1
    prompts, nodes = torch.randint(0, 53, (2, 9)), torch.randint(0, 53, (2, size))
    positions = (9 + tree.depth).expand(2, -1)
    if paged:
        allocator, pool = PageAllocator(40, 4), PagedCache(2, 2, 8, 40, 4)
        tables = [allocator.open(6), allocator.open(30)]  # the first has to grow past what is held for it
        assert all(allocator.cover(table, 9 + size) for table in tables)
        model(prompts, cache=pool.step(tables, [0, 0], [9, 9]))
        out = model(nodes, positions, pool.step(tables, [9, 9], [size, size]), tree.mask, aux_layers=(0, 1))
    else:
        cache = model.new_cache(2)
        model(prompts, cache=cache)
        out = model(nodes, positions, cache, tree.mask, aux_layers=(0, 1))
    for node in range(size):
        path = [i for i in range(size) if tree.mask[node, i]]
        alone = model(torch.cat([prompts, nodes[:, path]], 1), aux_layers=(0, 1))
        assert torch.allclose(out.logits[:, node], alone.logits[:, -1], atol=1e-4)
        assert torch.allclose(out.aux[:, node], alone.aux[:, -1], atol=1e-4)
        assert torch.allclose(out.hidden[:, node], alone.hidden[:, -1], atol=1e-4)


@torch.inference_mode()
def test_after_keeping_a_path_the_pages_hold_a_fresh_prefill() -> None:
    model, tree = llama(), Tree.from_paths(MC_SIM)
    allocator = PageAllocator(60, 4)
    tables = [allocator.open(3), allocator.open(100), allocator.open(3)]
    pool = PagedCache(2, 2, 8, 60, 4)
    prompts = [torch.randint(0, 53, (n,)) for n in (5, 13, 2)]
    lengths = [len(p) for p in prompts]
    for table, length in zip(tables, lengths):
        assert allocator.cover(table, length + 26)
    ragged = torch.cat([torch.arange(n) for n in lengths])[None]
    model(torch.cat(prompts)[None], ragged, pool.step(tables, [0, 0, 0], lengths))
    nodes = torch.randint(0, 53, (3, 26))
    positions = torch.tensor(lengths)[:, None] + tree.depth
    model(nodes, positions, pool.step(tables, lengths, [26] * 3), tree.mask)
    paths = [[0, 4, 9, 18], [0, 2], [0]]
    paths = [[i for i in range(26) if tree.mask[path[-1], i]] for path in paths]
    pool.keep(tables, lengths, paths)
    for table, prompt, row, path in zip(tables, prompts, nodes, paths):
        cache = model.new_cache(1)
        text = torch.cat([prompt, row[path]])
        model(text[None], cache=cache)
        keys, values = pool.load(table.slots(0, len(text)))
        for i, layer in enumerate(cache.layers):
            assert torch.allclose(keys[i], layer.keys[0, :, : len(text)], atol=1e-4)
            assert torch.allclose(values[i], layer.values[0, :, : len(text)], atol=1e-4)
        allocator.close(table)
    assert allocator.free == 60
