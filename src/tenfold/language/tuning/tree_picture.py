"""A drafting tree as a picture: how often each node is accepted, as the width of the line that leads to it. And what trees of
different sizes are worth.

    Path("tree.svg").write_text(standalone_svg(tree_svg(tree, node_shares(tree, replayed.ranks))))
    Path("speed.svg").write_text(speed_svg([(1, 60.0, 61.2), (8, 140.0, 138.9)]))

    A rows   K levels

Both are SVG that follows the reader's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

import torch
from jaxtyping import Int
from torch import Tensor

from tenfold.engine.report import Mark, plot_svg
from tenfold.engine.report_page import paint, standalone_svg
from tenfold.language.distillation.replay import accepted_lengths
from tenfold.language.drafting.tree import Tree

COLUMN, ROW, LEFT, TOP = 130, 32, 60, 30  # pixels


def node_shares(tree: Tree, ranks: Sequence[Int[Tensor, "_ k"]]) -> list[float]:
    """For every node but the root the share of the steps that accept it, along the closed loop (distillation/replay.py)."""
    counts, steps = torch.zeros(tree.nodes + 1), 0
    for table in ranks:
        lengths, at = accepted_lengths(tree, table).tolist(), 0
        while at < len(table) - 1:
            node = 0
            for k in range(lengths[at]):
                node = int(tree.children[node, int(table[at, k])])
                counts[node] += 1
            steps += 1
            at += lengths[at] + 1
    return (counts[1:] / max(1, steps)).tolist()


def accepted_tree(plans: Sequence[list[list[int]]], ranks: Sequence[Int[Tensor, "_ k"]]) -> str:
    """The picture of the first tree that has a node (by its rank paths), on the drafter's ranks of answers held back."""
    tree = Tree.from_paths(next((paths for paths in plans if paths), [[0]]))
    return tree_svg(tree, node_shares(tree, ranks))


def tree_svg(
    tree: Tree, shares: Sequence[float] = (), words: Sequence[str | None] = (), accepted: Collection[int] = ()
) -> str:
    """Levels from left to right, likelier draft tokens higher. With `shares` (one for each node but the root) a line is as
    wide as its node is often accepted, in percent. With `words` (one for each node; None was not drafted) one draft is shown,
    and the nodes `accepted` are filled."""
    rows: dict[int, float] = {}
    drawn = [n for n in range(tree.nodes + 1) if n == 0 or not words or words[n] is not None]

    def place(node: int, following: int) -> int:
        children = [c for c in tree.children[node].tolist() if c in drawn]
        for child in children:
            following = place(child, following)
        rows[node] = sum(rows[c] for c in children) / len(children) if children else following
        return following if children else following + 1

    height = (place(0, 0) - 1) * ROW + 2 * TOP if len(drawn) > 1 else 2 * TOP
    width = max(int(tree.depth[n]) for n in drawn) * COLUMN + 2 * LEFT
    at = {node: (LEFT + int(tree.depth[node]) * COLUMN, TOP + rows[node] * ROW) for node in drawn}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" '
        f'height="{height:.0f}" role="img" font-size="12">'
    ]
    for node in drawn[1:]:
        (x1, y1), (x2, y2) = at[tree.parents[node]], at[node]
        middle = (x1 + x2) / 2
        chosen = bool(words) and node in accepted
        color = "good" if chosen else "soft" if words else "line0"
        thickness = (3.0 if chosen else 1.0) if words else 0.5 + 14 * shares[node - 1]
        lines.append(
            f'<path d="M{x1:.0f} {y1:.1f} C{middle:.0f} {y1:.1f} {middle:.0f} {y2:.1f} {x2:.0f} {y2:.1f}" fill="none" '
            f'stroke="{paint(color)}" stroke-width="{thickness:.1f}" stroke-opacity="{1.0 if chosen else 0.55}"/>'
        )
    for node, (x, y) in at.items():
        if words:
            word, fill = words[node] or "", paint("good" if node == 0 or node in accepted else "page")
        else:
            word, fill = "root" if node == 0 else f"{100 * shares[node - 1]:.0f} %", paint("line0")
        edge = f' stroke="{paint("soft")}"' if words else ""
        lines.append(f'<circle cx="{x:.0f}" cy="{y:.1f}" r="4" fill="{fill}"{edge}/>')
        lines.append(
            f'<text x="{x:.0f}" y="{y - 8:.1f}" text-anchor="middle" fill="{paint("ink")}">{escape(word)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def speed_svg(points: Sequence[tuple[int, float, float]]) -> str:
    """Tokens per second by rows of the target's pass: (rows, measured, predicted) of every tree, as dots and rings."""
    series = {
        "measured": [(rows, measured) for rows, measured, _ in points],
        "predicted": [(rows, predicted) for rows, _, predicted in points],
    }
    marks: dict[str, Mark] = {"measured": "dot", "predicted": "ring"}
    return standalone_svg(plot_svg(series, "rows of a pass", "tokens per second", marks))
