"""Trees of draft tokens for tree attention: the root is the last emitted token, its descendants are draft tokens, and the
target verifies all of them in one pass because each sees its ancestors only.

    tree = Tree.from_paths([[0], [1], [0, 0]])         two draft tokens for the next place, one more behind the better
    tree = Tree.from_paths(json.load(open("mc_sim_7b_63.json")))       rank paths as the EAGLE and Medusa files hold them
    tree = Tree.chain(4)                               four draft tokens in a row
    logits = model(nodes, positions, cache, tree_mask=tree.mask).logits

Node 0 is the root; nodes are numbered level by level, siblings by rank (the drafter's order of preference). Everything
that a step needs is an index tensor made once, so that no step runs Python per node. EAGLE: arXiv 2401.15077, section 3.1;
tree attention: arXiv 2305.09781.

    N nodes and the root   n nodes   R children of a node at most   P nodes with children ("inner"), the root among them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tenfold.errors import UsageError

LIMIT = 1024  # nodes


@dataclass(frozen=True)
class Level:
    """One step of drafting: the inner nodes of one depth get children. All are int64 index tensors.

    inner (m): nodes of this depth with children, in order; inner_rows (m): their rows among all inner nodes.
    children (c): nodes of the next depth, in order; owner (c): which of `inner` is the parent; rank (c): which of the
    parent's children. parents_inner_rows (m): rows of the parents among all inner nodes (the root's own for the root).
    mask (m, s): which of the s inner nodes of depth 1 up to this one an inner node sees (itself and its ancestors): the
    mask of a drafter whose store holds the rows of those nodes behind the text. Empty for the root.
    """

    depth: int
    inner: Tensor
    inner_rows: Tensor
    parents_inner_rows: Tensor
    children: Tensor
    owner: Tensor
    rank: Tensor
    mask: Tensor

    @cached_property
    def width(self) -> int:
        """Children of the widest node of this level."""
        return int(self.rank.max()) + 1

    def on(self, device: torch.device) -> Level:
        """The same with its tensors on a device."""
        moved = replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "depth"})
        moved.__dict__["width"] = self.width  # known here, so that nothing waits for the device
        return moved


@runtime_checkable
class Proposer(Protocol):
    """What a tree needs of a drafter (drafting/protocol.py, `Drafter`, which knows trees)."""

    def draft(self, states: Any, tree: Tree, rule: Any, temperatures: Any, uniforms: Any) -> Any: ...


@dataclass(frozen=True)
class Tree:
    """`parents[i]` is the parent of node i (the root's is 0). Raises UsageError unless nodes are in level order with
    siblings side by side. It is a `Shape` and a `DraftTrees` of drafting/protocol.py."""

    parents: tuple[int, ...]
    shared: ClassVar[bool] = True
    needs_distribution: ClassVar[bool] = False
    needs_lookup: ClassVar[bool] = False
    looked_up: ClassVar[int] = 0  # nodes of a chain from prompt lookup, as of a `HybridTree`

    def __post_init__(self) -> None:
        p = self.parents
        earlier = all(parent < i for i, parent in enumerate(p) if i)
        if not (p and p[0] == 0 and earlier and list(p) == sorted(p) and min(p) == 0):
            raise UsageError(f"parents = {p}: a tree lists its nodes level by level, children of a node side by side.")
        if len(p) > LIMIT + 1:
            raise UsageError(f"a tree of {len(p) - 1} nodes: at most {LIMIT} are allowed.")

    @staticmethod
    def chain(length: int) -> Tree:
        """`length` draft tokens, each behind the one before; 0 drafts nothing."""
        if length < 0:
            raise UsageError(f"a chain of {length} tokens: allowed is a whole number >= 0.")
        return Tree((0, *range(length)))

    @staticmethod
    def from_paths(paths: Sequence[Sequence[int]]) -> Tree:
        """Rank paths from the root: [0, 2] is the third child of the first child. Any order; every prefix and every
        better-ranked sibling must be there."""
        wanted = sorted({tuple(path) for path in paths}, key=lambda path: (len(path), path))
        number: dict[tuple[int, ...], int] = {(): 0}
        parents = [0]
        for path in wanted:
            if not path or not all(isinstance(rank, int) and rank >= 0 for rank in path):
                raise UsageError(f"tree path {list(path)}: a path is one or more whole numbers >= 0.")
            elder = (*path[:-1], path[-1] - 1)
            if path[:-1] not in number or (path[-1] > 0 and elder not in number):
                lacking = path[:-1] if path[:-1] not in number else elder
                raise UsageError(f"tree path {list(path)}: the path {list(lacking)} is missing before it.")
            number[path] = len(parents)
            parents.append(number[path[:-1]])
        return Tree(tuple(parents))

    @property
    def nodes(self) -> int:
        """Draft tokens; the root is not one."""
        return len(self.parents) - 1

    @property
    def in_company(self) -> Tree:
        """The tree itself."""
        return self

    @property
    def fixed(self) -> Tree:
        """The tree itself: it is the same for every text."""
        return self

    @property
    def own(self) -> Tree:
        """The drafter's part of the tree, as of a `HybridTree`: all of it."""
        return self

    def propose(self, drafter: Proposer, states: Any, rule: Any, temperatures: Any, uniforms: Any) -> Any:
        """The drafter's proposal in this tree, and the tree."""
        return drafter.draft(states, self, rule, temperatures, uniforms), self

    def on(self, device: torch.device) -> Tree:
        """The same tree with its index tensors on a device, so that no step copies them. Made once for each device."""
        return self if device.type == "cpu" else _moved(self, device)

    @cached_property
    def parent(self) -> Int[Tensor, " N"]:
        """`parents` as a tensor."""
        return torch.tensor(self.parents)

    @cached_property
    def paths(self) -> list[list[int]]:
        """The rank path of every node but the root: what `from_paths` takes."""
        paths: list[list[int]] = [[]]
        for node in range(1, len(self.parents)):
            paths.append([*paths[self.parents[node]], int(self.rank[node])])
        return paths[1:]

    @cached_property
    def depth(self) -> Int[Tensor, " N"]:
        """Distance from the root."""
        depth = [0] * len(self.parents)
        for node, parent in enumerate(self.parents[1:], 1):
            depth[node] = depth[parent] + 1
        return torch.tensor(depth)

    @cached_property
    def height(self) -> int:
        """Depth of the deepest node: a step emits at most one token more."""
        return int(self.depth[-1])

    @cached_property
    def rank(self) -> Int[Tensor, " N"]:
        """Place among the siblings; 0 for the root."""
        seen: dict[int, int] = {}
        rank = [0]
        for parent in self.parents[1:]:
            rank.append(seen.get(parent, 0))
            seen[parent] = rank[-1] + 1
        return torch.tensor(rank)

    @cached_property
    def mask(self) -> Bool[Tensor, "N N"]:
        """Row i is True at i and its ancestors."""
        mask = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], 1):
            mask[node] |= mask[parent]
        return mask

    @cached_property
    def ancestors(self) -> Int[Tensor, "N K"]:
        """The path from the root to every node, itself last, then -1: K is height + 1."""
        table = torch.full((len(self.parents), self.height + 1), -1)
        for node, parent in enumerate(self.parents):
            table[node] = table[parent]
            table[node, self.depth[node]] = node
        return table

    @cached_property
    def children(self) -> Int[Tensor, "N R"]:
        """Children of every node by rank, -1 where there is none; R is at least 1."""
        table = torch.full((len(self.parents), int(self.rank.max()) + 1), -1)
        for node, parent in enumerate(self.parents[1:], 1):
            table[parent, self.rank[node]] = node
        return table

    @property
    def siblings(self) -> int:
        """Children of the node that has the most; at least 1."""
        return self.children.shape[1]

    def children_of(self, node: Int[Tensor, " B"]) -> Int[Tensor, "B R"]:
        """Rows of `children`, one for each request."""
        return self.children[node]

    def inner_row_of(self, node: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Entries of `inner_row`, one for each request."""
        return self.inner_row[node]

    def behind_parents(self, best: Int[Tensor, "B N"]) -> Int[Tensor, "B n"]:
        """Of one token behind every node, the one behind each node's parent."""
        return best[:, self.parent[1:]]

    def deepest(self, hit: Bool[Tensor, "B N"]) -> Int[Tensor, " B"]:
        """The deepest node that is a hit with all its ancestors; the root is one."""
        missed = (~hit).float() @ self.mask.t().float()  # ancestors, itself among them, that are not hits
        return torch.where(missed == 0, self.depth, -1).argmax(-1)

    def depth_of(self, node: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Entries of `depth`, one for each request."""
        return self.depth[node]

    def path_to(self, node: Int[Tensor, " B"]) -> Int[Tensor, "B K"]:
        """Rows of `ancestors`, one for each request."""
        return self.ancestors[node]

    def one(self, request: int) -> Tree:
        """The tree of one request."""
        return self

    def mask_of(self, request: int) -> Bool[Tensor, "N N"]:
        """The mask of one request."""
        return self.mask

    def spread(self, able: list[int], batch: int) -> Tree:
        """The tree of a whole batch, when only some requests could be drafted for."""
        return self

    @cached_property
    def next_token(self) -> Int[Tensor, " N"]:
        """First child of every node, -1 for none (the form that grammars walk)."""
        return self.children[:, 0].contiguous()

    @cached_property
    def next_sibling(self) -> Int[Tensor, " N"]:
        """The sibling of the next rank, -1 for none."""
        p = self.parents
        same = [i + 1 if 0 < i < self.nodes and p[i + 1] == p[i] else -1 for i in range(len(p))]
        return torch.tensor(same)

    @cached_property
    def inner(self) -> Int[Tensor, " P"]:
        """Nodes with children, in order; a draft has one distribution of the next token for each."""
        return torch.tensor(sorted(set(self.parents[1:])), dtype=torch.int64)

    @cached_property
    def inner_row(self) -> Int[Tensor, " N"]:
        """Row of every node in `inner`, -1 for a leaf."""
        rows = torch.full((len(self.parents),), -1)
        rows[self.inner] = torch.arange(len(self.inner))
        return rows

    @cached_property
    def levels(self) -> list[Level]:
        """The steps of drafting, from the root down: `height` of them."""
        parents, levels = self.parent, []
        for depth in range(self.height):
            inner = self.inner[self.depth[self.inner] == depth]
            rows = self.inner_row[inner]
            children = (self.depth == depth + 1).nonzero()[:, 0]
            owner = self.inner_row[parents[children]] - rows[0]
            below = self.inner[1 : int(rows[-1]) + 1]  # inner nodes of depth 1 to this one
            mask = self.mask[inner][:, below] if depth else torch.empty(1, 0, dtype=torch.bool)
            above = self.inner_row[parents[inner]]
            levels.append(Level(depth, inner, rows, above, children, owner, self.rank[children], mask))
        return levels


TENSORS = (
    "parent",
    "depth",
    "rank",
    "mask",
    "ancestors",
    "children",
    "next_token",
    "next_sibling",
    "inner",
    "inner_row",
)


@lru_cache(maxsize=256)
def _moved(tree: Tree, device: torch.device) -> Tree:
    moved = Tree(tree.parents)
    known = {name: getattr(tree, name).to(device) for name in TENSORS}
    levels = [level.on(device) for level in tree.levels]
    moved.__dict__.update(known, height=tree.height, levels=levels)  # where cached properties keep their values
    return moved
