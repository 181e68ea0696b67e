"""A drafting tree as a picture: how often each node is accepted, as the width of the line that leads to it. And what trees of
different sizes are worth.

Path("tree.svg").write_text(tree_svg(tree, node_shares(tree, replayed.ranks)))
Path("speed.svg").write_text(speed_svg([(1, 60.0, 61.2), (8, 140.0, 138.9)]))

A rows   K levels
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tenfold.language.distillation.replay import accepted_lengths
from tenfold.language.drafting.tree import Tree

COLUMN, ROW, LEFT, TOP = 130, 30, 60, 30  # pixels


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


def tree_svg(tree: Tree, shares: Sequence[float]) -> str:
    """Levels from left to right, better guesses higher; each node has its share in percent."""
    rows: dict[int, float] = {}

    def place(node: int, following: int) -> int:
        children = [c for c in tree.children[node].tolist() if c >= 0]
        for child in children:
            following = place(child, following)
        rows[node] = sum(rows[c] for c in children) / len(children) if children else following
        return following if children else following + 1

    height = place(0, 0) * ROW + 2 * TOP
    width = tree.height * COLUMN + 2 * LEFT
    at = {node: (LEFT + int(tree.depth[node]) * COLUMN, TOP + rows[node] * ROW) for node in rows}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for node, share in enumerate(shares, 1):
        (x1, y1), (x2, y2) = at[tree.parents[node]], at[node]
        middle = (x1 + x2) / 2
        lines.append(
            f'<path d="M{x1:.0f} {y1:.1f} C{middle:.0f} {y1:.1f} {middle:.0f} {y2:.1f} {x2:.0f} {y2:.1f}" fill="none" '
            f'stroke="#2a6f97" stroke-width="{0.5 + 14 * share:.1f}" stroke-opacity="0.55"/>'
        )
    for node, (x, y) in at.items():
        word = "root" if node == 0 else f"{100 * shares[node - 1]:.0f} %"
        lines.append(f'<circle cx="{x:.0f}" cy="{y:.1f}" r="4" fill="#013a63"/>')
        lines.append(f'<text x="{x:.0f}" y="{y - 8:.1f}" text-anchor="middle" fill="#222">{word}</text>')
    return "\n".join([*lines, "</svg>", ""])


def speed_svg(points: Sequence[tuple[int, float, float]]) -> str:
    """Tokens per second by rows of the target's pass: (rows, measured, predicted) of every tree, as dots and
    rings."""
    width, height, left, bottom = 560, 300, 60, 40
    most = 1.1 * max(max(measured, predicted) for _, measured, predicted in points)
    widest = max(rows for rows, _, _ in points) + 1

    def place(rows: float, speed: float) -> tuple[float, float]:
        return left + rows / widest * (width - left - 20), height - bottom - speed / most * (height - bottom - 20)

    step = 10 ** math.floor(math.log10(most)) // (2 if most < 5 * 10 ** math.floor(math.log10(most)) else 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for k in range(int(most / step) + 1):
        x, y = place(0, k * step)
        lines.append(f'<path d="M{x:.0f} {y:.1f} H{width - 20}" stroke="#ddd"/>')
        lines.append(f'<text x="{x - 6:.0f}" y="{y + 4:.1f}" text-anchor="end" fill="#222">{k * step:.0f}</text>')
    for rows in sorted({rows for rows, _, _ in points}):
        x, y = place(rows, 0)
        lines.append(f'<text x="{x:.0f}" y="{y + 14:.1f}" text-anchor="middle" fill="#222">{rows}</text>')
    for rows, measured, predicted in points:
        (x, y), (_, ring) = place(rows, measured), place(rows, predicted)
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#013a63"/>')
        lines.append(f'<circle cx="{x:.1f}" cy="{ring:.1f}" r="7" fill="none" stroke="#2a6f97"/>')
    lines.append(f'<text x="{width / 2:.0f}" y="{height - 8}" text-anchor="middle" fill="#222">rows of a pass</text>')
    lines.append(f'<text x="{left}" y="14" fill="#222">tokens per second: dots measured, rings predicted</text>')
    return "\n".join([*lines, "</svg>", ""])
