"""Reference draft trees: the fixed shapes in which the acceptance of drafters is reported, so that figures can be compared.

What is drafted by default is another question, which a table answers for each kind of machine (drafting/dispatch.py).
`TREE_16` is the best tree of 16 nodes by tuning/tree_search.py for the shipped drafter, on prompts that were held back from its
training; `HYBRID_10_6` has the best ten and a chain of six from prompt lookup; `LOOKUP_6` is such a chain only.
"""

from __future__ import annotations

from tenfold.language.drafting.hybrid_trees import HybridTree
from tenfold.language.drafting.tree import Tree

TREE_16 = Tree.from_paths(
    [
        *([0], [1], [2], [3], [4], [5], [0, 0], [0, 1], [0, 2], [1, 0], [2, 0]),
        *([0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0, 0]),
    ]
)
TREE_10 = Tree.from_paths([[0], [1], [2], [3], [4], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 0, 0, 0]])
HYBRID_10_6 = HybridTree.of(TREE_10, 6)
LOOKUP_6 = Tree.chain(6)
