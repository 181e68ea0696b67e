"""Patch features against patch features: matches between two images, the PCA picture, and the object without a label.

    cells = dense_features(model, image, stride=8)            image uint8 (H, W, 3) -> (H/8, W/8, D)
    found = match(cells_left, cells_right)                    found.source, found.target: (n, 2) rows of (x, y) in cells
    pixels = (found.target + 0.5) * 8

Matches: mutual nearest neighbours by cosine, at the centres of cells (a smaller stride places them finer; a parabola through
the neighbouring similarities was tried, and moved matches away from known shifts).
Object: LOST (arXiv 2109.14279, section 3): the seed is the patch that resembles fewest others, for an object covers less of
an image than its surroundings; what resembles the seed is joined to it.

    L images   h w patch grid   D feature width   n matches
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tenfold.config import require
from tenfold.images.resize import resize
from tenfold.vision.backbones.backbone import Backbone
from tenfold.vision.backbones.images import normalize

CHUNK = 1024  # rows of the similarity matrix at once


@dataclass(frozen=True)
class Matches:
    """Cell positions (x, y), 0 is the centre of the first cell; cosine similarity of each pair."""

    source: Float[Tensor, "n 2"]
    target: Float[Tensor, "n 2"]
    similarity: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.similarity)


@torch.inference_mode()
def dense_features(
    model: Backbone, image: UInt8[Tensor, "height width 3"], stride: int | None = None, crop: int | None = None
) -> Float[Tensor, "h w d"]:
    """Patch tokens, one per `stride` pixels (the image is enlarged by patch / stride; None is one per patch).

    An image that is larger than `crop` pixels (after that) is read through overlapping windows of that side, moved by two
    thirds of it, and features are averaged where windows overlap. What follows on them in a linear probe is affine, so this
    is the same as averaging its logits.
    """
    patch = model.config.patch_size
    stride = stride or patch
    require(stride >= 1, "stride", stride, "a whole number of pixels >= 1")
    require(crop is None or crop >= patch, "crop", crop, f"at least one patch ({patch} pixels)")
    rows, columns = (max(1, side // stride) for side in image.shape[:2])
    used = image[: rows * stride, : columns * stride] if min(image.shape[:2]) >= stride else image
    device = next(model.parameters()).device
    x = normalize(resize(used, rows * patch, columns * patch).to(device), model.config)[None]
    span = max(rows, columns) if crop is None else crop // patch
    total = torch.zeros(rows, columns, model.config.dim, device=device)
    count = torch.zeros(rows, columns, 1, device=device)
    for top in _starts(rows, span):
        for left in _starts(columns, span):
            part = x[..., top * patch : (top + span) * patch, left * patch : (left + span) * patch]
            tokens = model(part).patch_tokens[0].float()
            total[top : top + span, left : left + span] += tokens
            count[top : top + span, left : left + span] += 1
    return (total / count).cpu()


def _starts(length: int, span: int) -> list[int]:
    """Where windows of `span` begin so that they cover `length` with a third of overlap; the last ends at the border."""
    last = max(0, length - span)
    return [*range(0, last, max(1, span * 2 // 3)), last]


def raw_patches(
    image: UInt8[Tensor, "height width 3"], side: int, stride: int = 8, per_channel: bool = False
) -> Float[Tensor, "h w d"]:
    """The baseline: the pixels of the side x side square around each cell (borders repeated), without their mean.

    `per_channel` takes out the mean of each colour by itself, which a change of colours survives better.
    """
    rows, columns = image.shape[0] // stride, image.shape[1] // stride
    require(min(rows, columns) >= 1, "image", tuple(image.shape), f"at least {stride} pixels a side")
    x = image[: rows * stride, : columns * stride].permute(2, 0, 1)[None].float() / 255
    border = (side - stride) // 2
    pixels = F.unfold(F.pad(x, (border,) * 4, mode="replicate"), side, stride=stride)[0].T
    parts = pixels.unflatten(1, (3, -1)) if per_channel else pixels[:, None]
    return (parts - parts.mean(2, keepdim=True)).flatten(1).unflatten(0, (rows, columns))


def nearest(
    source: Float[Tensor, "h w d"], target: Float[Tensor, "H W d"]
) -> tuple[Int[Tensor, " p"], Float[Tensor, " p"]]:
    """For each of the P = h w source cells the most similar target cell (flat index) and the cosine."""
    a, b = (F.normalize(x.flatten(0, 1).float(), dim=1) for x in (source, target))
    best = [(rows @ b.T).max(1) for rows in a.split(CHUNK)]
    return torch.cat([part.indices for part in best]), torch.cat([part.values for part in best])


def match(
    source: Float[Tensor, "h w d"],
    target: Float[Tensor, "H W d"],
    mutual: bool = True,
    most: int | None = None,
) -> Matches:
    """Nearest neighbours of the source's cells in the target, most similar first, at most `most` of them.

    mutual: only pairs that choose each other.
    """
    index, similarity = nearest(source, target)
    chosen = torch.arange(len(index))
    if mutual:
        back, _ = nearest(target, source)
        chosen = chosen[back[index] == chosen]
    chosen = chosen[similarity[chosen].argsort(descending=True, stable=True)][:most]
    index, similarity = index[chosen], similarity[chosen]
    return Matches(_xy(chosen, source.shape[1]), _xy(index, target.shape[1]), similarity)


def _xy(index: Tensor, columns: int) -> Tensor:
    return torch.stack([index % columns, index // columns], dim=1).float()


def discover(patch_tokens: Float[Tensor, "h w d"], seeds: int = 100) -> Bool[Tensor, "h w"]:
    """The mask of the most salient object, in cells, without any label (LOST, arXiv 2109.14279).

    Seed: fewest patches with a positive product. Expansion: among the `seeds` patches of lowest degree those that resemble
    the seed; a patch belongs to the object when its product with the expanded set sums above 0. The part connected to the
    seed is the answer. Features have their mean taken out, so that a product above 0 means "more alike than usual".
    """
    rows, columns = patch_tokens.shape[:2]
    x = patch_tokens.flatten(0, 1).float()
    x = F.normalize(x - x.mean(0), dim=1)
    alike = x @ x.T
    degree = (alike > 0).sum(1)
    order = degree.argsort(stable=True)
    seed = int(order[0])
    expanded = order[:seeds]
    expanded = expanded[alike[seed, expanded] > 0]
    mask = (alike[:, expanded].sum(1) > 0).reshape(rows, columns)
    mask[seed // columns, seed % columns] = True
    return _connected(mask, seed)


def object_mask(cells: Float[Tensor, "h w d"], height: int, width: int) -> Bool[Tensor, "height width"]:
    """`discover` at the size of the image."""
    inside = discover(cells)[None, None].float()
    return F.interpolate(inside, size=(height, width), mode="nearest")[0, 0] > 0.5


def _connected(mask: Tensor, seed: int) -> Tensor:
    """The part of the mask that four-neighbour steps reach from the seed."""
    reached = torch.zeros_like(mask)
    reached.view(-1)[seed] = True
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    while True:
        grown = (F.conv2d(reached[None, None].float(), cross, padding=1)[0, 0] > 0) & mask
        if grown.equal(reached):
            return reached
        reached = grown


def pca_map(patch_tokens: Sequence[Float[Tensor, "_ _ d"]], percent: float = 1.0) -> list[Float[Tensor, "_ _ 3"]]:
    """First three principal components of all patches together, each stretched to [0, 1], as one picture per image.

    The components are shared by the images, so a colour means the same in all of them. `percent` of the values at each
    end is clipped, which keeps one odd patch from greying the rest. Signs are fixed (the largest weight of a component
    is positive), so the same features always give the same colours.
    """
    tokens = torch.cat([t.reshape(-1, t.shape[-1]).float() for t in patch_tokens])
    centered = tokens - tokens.mean(0)
    count = min(3, *centered.shape)
    covariance = centered.T @ centered
    _, vectors = torch.linalg.eigh(covariance.double())
    components = vectors[:, -count:].flip(1).float()
    strongest = components.abs().argmax(0)
    components = components * components[strongest, torch.arange(count)].sign()
    projected = F.pad(centered @ components, (0, 3 - count))
    low = torch.quantile(projected, percent / 100, dim=0)
    high = torch.quantile(projected, 1 - percent / 100, dim=0)
    colors = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    pictures = colors.split([t.shape[0] * t.shape[1] for t in patch_tokens])
    return [p.reshape(*t.shape[:2], 3) for p, t in zip(pictures, patch_tokens)]


def beside(image: UInt8[Tensor, "height width 3"], picture: Float[Tensor, "h w 3"]) -> UInt8[Tensor, "height wide 3"]:
    """The image and its patch picture enlarged to the same size (nearest: one square per patch), left and right."""
    height, width = image.shape[:2]
    large = F.interpolate(picture.permute(2, 0, 1)[None], size=(height, width), mode="nearest")[0].permute(1, 2, 0)
    gap = torch.full((height, max(2, width // 100), 3), 255, dtype=torch.uint8)
    return torch.cat([image, gap, (large * 255).round().to(torch.uint8)], dim=1)
