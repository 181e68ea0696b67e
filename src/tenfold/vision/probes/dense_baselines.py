"""Baselines of dense prediction without a network: the most frequent class, where things usually are, colour and texture.

    segmentation_floors(train, val, patch=16)        {"majority class": 2.7, "position prior": 16.7, ...} mIoU
    depth_floors(train, val)                         {"mean depth": ..., ...} RMSE in metres

A probe that does not beat these has learned nothing that its network knows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from tenfold.images.frames import Frames
from tenfold.vision.probes.dense import (
    EPOCHS,
    cell_labels,
    confusion,
    depth_probe,
    depth_score,
    enlarge,
    known_depth,
    mean_iou,
    segmentation_probe,
)

CELL = 4  # pixels of a hand-made feature
SCALES = (1, 3, 7)  # cells over which colour and texture are averaged
PRIOR_GRID = (90, 120)  # cells of the position prior


def handmade(image: UInt8[Tensor, "height width 3"], cell: int = CELL) -> Float[Tensor, "h w d"]:
    """Colour, texture and position of each cell: means and standard deviations of colour and edge strength in four directions
    over squares of three sizes, and the monomials of (y, x) up to the third degree. D = 54."""
    rows, columns = max(1, image.shape[0] // cell), max(1, image.shape[1] // cell)
    x = image.permute(2, 0, 1)[None].float() / 255
    grey = x.mean(1, keepdim=True)
    dx, dy = F.pad(grey.diff(dim=3), (0, 1)), F.pad(grey.diff(dim=2), (0, 0, 0, 1))
    edges = torch.cat([dx.abs(), dy.abs(), (dx + dy).abs(), (dx - dy).abs()], dim=1)
    spread = torch.log(x.amax(1, keepdim=True) - x.amin(1, keepdim=True) + 0.02)
    planes = F.adaptive_avg_pool2d(torch.cat([x, spread, edges, x.square()], dim=1), (rows, columns))
    parts = []
    for scale in SCALES:
        mean = F.avg_pool2d(planes, scale, 1, scale // 2, count_include_pad=False)
        spread = (mean[:, 8:] - mean[:, :3].square()).clamp_min(0).sqrt()
        parts += [mean[:, :4], (mean[:, 4:8] + 1e-3).log(), spread, mean[:, :3].square(), mean[:, :1] * mean[:, 2:3]]
    y, z = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    powers = [y**a * z**b for a in range(4) for b in range(4) if 0 < a + b <= 3]
    return torch.cat([torch.cat(parts, dim=1)[0], torch.stack(powers)]).permute(1, 2, 0).contiguous()


def segmentation_floors(train: Frames, val: Frames, patch: int, epochs: int = EPOCHS) -> dict[str, float]:
    """mIoU, per cent; and the ceiling of any method that gives one answer for a patch."""
    classes, ignored = len(train.classes), train.ignored
    shares = sum((cell_labels(mask, PRIOR_GRID, classes, ignored) for mask in train.masks), torch.zeros(1))
    assert isinstance(shares, Tensor)
    majority = int(shares.sum((0, 1)).argmax())
    rows = ("majority class", "position prior", f"ceiling: true labels of {patch} px patches")
    totals = {name: torch.zeros(classes, classes + 1, dtype=torch.int64) for name in rows}
    for mask in val.masks:
        height, width = mask.shape
        grid = (max(1, height // patch), max(1, width // patch))
        predictions = (
            torch.full_like(mask, majority),
            enlarge(shares, height, width).argmax(0),
            enlarge(cell_labels(mask, grid, classes, ignored), height, width).argmax(0),
        )
        for name, predicted in zip(rows, predictions):
            totals[name] += confusion(predicted, mask, classes, ignored)
    scores = {name: mean_iou(total) for name, total in totals.items()}
    made = segmentation_probe(
        [handmade(image) for image in train.images],
        train.masks,
        [handmade(image) for image in val.images],
        val.masks,
        classes,
        ignored,
        epochs,
    )
    ceiling = scores.pop(rows[2])
    return {**scores, "colour, texture, position": made.miou, rows[2]: ceiling}


def depth_floors(train: Frames, val: Frames, epochs: int = EPOCHS) -> dict[str, float]:
    """RMSE in metres of the mean training depth, and of the probe on colour, texture and position."""
    values = torch.cat([depth[known_depth(depth)] for depth in train.depths])
    mean = float(values.mean()) if len(values) else 1.0
    constant = depth_score([torch.full_like(depth, mean) for depth in val.depths], val.depths)
    made = depth_probe(
        [handmade(image) for image in train.images],
        train.depths,
        [handmade(image) for image in val.images],
        val.depths,
        epochs,
    )
    return {"mean depth": constant.rmse, "colour, texture, position": made.rmse}
