"""Linear probes on frozen patch features: a class for every pixel, a depth for every pixel, and their scores.

    score = segmentation_probe(train_cells, train_masks, val_cells, val_masks, classes=11, ignored=11)
    score.miou, score.accuracy, score.per_class

Protocol of DINOv2 and DINOv3 (arXiv 2304.07193, section 7.4; 2508.10104, section 6.1.2): batch norm and one 1 x 1
convolution on patch features, enlarged bilinearly. The loss is taken at random pixels, a few hundred of each image: it is
the pixel-wise loss in expectation and costs a hundredth of it on a CPU.

    N images   h w cells   H W pixels   D feature width   C classes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenfold.config import require
from tenfold.data.progress import Progress
from tenfold.errors import DataError

BINS, NEAREST_DEPTH, FARTHEST_DEPTH = 256, 1e-3, 10.0  # metres
EPOCHS = 60  # of about 46 steps on CamVid: at 20 the hand-made baseline is 4 points short of where it settles
PIXELS = 512  # random pixels of an image that enter the loss
Cells = Sequence[Float[Tensor, "_ _ d"]]
Masks = Sequence[Int[Tensor, "_ _"]]
Depths = Sequence[Float[Tensor, "_ _"]]


@dataclass(frozen=True)
class SegmentationScore:
    """Per cent. `per_class` is NaN for a class that is neither there nor predicted, and the mean leaves it out."""

    miou: float
    accuracy: float
    per_class: tuple[float, ...]


@dataclass(frozen=True)
class DepthScore:
    """Root mean square error in metres, mean |error| / depth, and per cent within a factor of 1.25."""

    rmse: float
    relative: float
    within: float


def confusion(
    predicted: Int[Tensor, "*s"], truth: Int[Tensor, "*s"], classes: int, ignored: int
) -> Int[Tensor, "classes wide"]:
    """Pixels by (true class, predicted class); the last column collects predictions that are not a class. Pixels whose true
    class is `ignored` are left out, whatever was predicted there."""
    kept = truth != ignored
    found = torch.where(predicted < classes, predicted, classes)[kept]
    counts = torch.bincount(truth[kept] * (classes + 1) + found, minlength=classes * (classes + 1))
    return counts.view(classes, classes + 1)


def class_iou(counts: Int[Tensor, "classes wide"]) -> Float[Tensor, " classes"]:
    """Intersection over union of each class, per cent; NaN for a class that is neither there nor predicted."""
    right = counts.diagonal().double()
    union = counts.sum(1) + counts[:, :-1].sum(0) - right
    return torch.where(union > 0, 100 * right / union, torch.nan)


def mean_iou(counts: Int[Tensor, "classes wide"]) -> float:
    """Mean over the classes that are there or predicted, of counts summed over all images."""
    return class_iou(counts).nanmean().item()


def segmentation_score(counts: Int[Tensor, "classes wide"]) -> SegmentationScore:
    accuracy = 100.0 * counts.diagonal().sum().item() / max(1, int(counts.sum()))
    return SegmentationScore(mean_iou(counts), accuracy, tuple(class_iou(counts).tolist()))


def cell_labels(
    mask: Int[Tensor, "height width"], grid: tuple[int, int] | torch.Size, classes: int, ignored: int
) -> Float[Tensor, "h w classes"]:
    """The share of each class in every cell; an ignored pixel belongs to none."""
    one_hot = F.one_hot(torch.where(mask == ignored, classes, mask), classes + 1)[..., :classes]
    return F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1).float(), (grid[0], grid[1])).permute(1, 2, 0)


class CellHead(nn.Module):
    """Batch norm and one 1 x 1 convolution (without running averages: the statistics are those of the training cells)."""

    def __init__(self, mean: Float[Tensor, " d"], variance: Float[Tensor, " d"], outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(len(mean))
        self.norm.running_mean, self.norm.running_var = mean.clone(), variance.clone()
        self.norm.eval()
        self.linear = nn.Linear(len(mean), outputs)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, cells: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        return self.linear(self.norm(cells.float().flatten(0, -2))).unflatten(0, cells.shape[:-1])


def at_points(cells: Float[Tensor, "h w k"], points: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
    """Values at (y, x) in [0, 1], between cells as bilinear enlargement gives them."""
    where = (points.flip(1) * 2 - 1)[None, None]
    values = F.grid_sample(cells.permute(2, 0, 1)[None], where, padding_mode="border", align_corners=False)
    return values[0, :, 0].T


def enlarge(cells: Float[Tensor, "h w k"], height: int, width: int) -> Float[Tensor, "k height width"]:
    """Bilinear, cell centres kept in place."""
    return F.interpolate(cells.permute(2, 0, 1)[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def segmentation_head(
    cells: Cells, masks: Masks, classes: int, ignored: int, epochs: int = EPOCHS, batch: int = 8, seed: int = 0
) -> CellHead:
    """Trains BN + 1 x 1 on frozen features; AdamW 1e-3 with a cosine to 0."""
    _check_sizes(cells, masks, "mask")

    def loss(logits: Tensor, truth: Tensor) -> Tensor:
        return F.cross_entropy(logits, truth)

    return _train(cells, masks, lambda mask: mask != ignored, classes, loss, 1e-3, epochs, batch, seed)


@torch.inference_mode()
def segment(head: CellHead, cells: Float[Tensor, "h w d"], height: int, width: int) -> Int[Tensor, "height width"]:
    """Class ids at full size."""
    return enlarge(head(cells), height, width).argmax(0)


def segmentation_probe(
    train: Cells,
    train_masks: Masks,
    val: Cells,
    val_masks: Masks,
    classes: int,
    ignored: int,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> SegmentationScore:
    """Trains on the first set, scores on the second at full size, all pixels of all images together."""
    head = segmentation_head(train, train_masks, classes, ignored, epochs, seed=seed)
    _check_sizes(val, val_masks, "mask")
    counts = torch.zeros(classes, classes + 1, dtype=torch.int64)
    for cells, mask in zip(val, val_masks):
        counts += confusion(segment(head, cells, *mask.shape), mask, classes, ignored)
    return segmentation_score(counts)


def silog(predicted: Float[Tensor, " n"], truth: Float[Tensor, " n"], share: float = 0.85) -> Float[Tensor, ""]:
    """Scale-invariant log loss: sqrt(mean g^2 - share * (mean g)^2), g = ln predicted - ln truth (arXiv 1406.2283)."""
    g = predicted.log() - truth.log()
    return (g.square().mean() - share * g.mean().square()).clamp_min(1e-12).sqrt()


def expected_depth(logits: Float[Tensor, "*b bins"]) -> Float[Tensor, "*b"]:
    """Metres: the mean of the bins' centres under the softmax of the logits."""
    edges = torch.linspace(NEAREST_DEPTH, FARTHEST_DEPTH, BINS + 1)
    return (logits.softmax(-1) * (edges[1:] + edges[:-1]) / 2).sum(-1)


def depth_probe(
    train: Cells,
    train_depths: Depths,
    val: Cells,
    val_depths: Depths,
    epochs: int = EPOCHS,
    rate: float = 3e-4,
    seed: int = 0,
) -> DepthScore:
    """BN + 1 x 1 to 256 bins, scale-invariant log loss, AdamW. Depth outside [1e-3, 10] metres counts as unknown.

    The published rate is meant for tens of thousands of steps: a set of few images needs a larger one.
    """
    _check_sizes(train, train_depths, "depth")
    _check_sizes(val, val_depths, "depth")

    def loss(logits: Tensor, truth: Tensor) -> Tensor:
        return silog(expected_depth(logits), truth)

    head = _train(train, train_depths, known_depth, BINS, loss, rate, epochs, 8, seed)
    with torch.inference_mode():
        predicted = [expected_depth(enlarge(head(c), *d.shape).movedim(0, -1)) for c, d in zip(val, val_depths)]
    return depth_score(predicted, val_depths)


def depth_score(predicted: Depths, truth: Depths) -> DepthScore:
    """Over all pixels of known depth, of all images together."""
    kept = [known_depth(t) for t in truth]
    p = torch.cat([part[k] for part, k in zip(predicted, kept)]).double()
    t = torch.cat([part[k] for part, k in zip(truth, kept)]).double()
    if len(t) == 0:
        raise DataError(f"depth: no pixel lies in [{NEAREST_DEPTH}, {FARTHEST_DEPTH}] metres.")
    factor = torch.maximum(p / t, t / p)
    return DepthScore(
        (p - t).square().mean().sqrt().item(),
        ((p - t).abs() / t).mean().item(),
        100 * (factor < 1.25).double().mean().item(),
    )


def known_depth(depth: Float[Tensor, "*s"]) -> Tensor:
    """True where the depth is a number within the bins."""
    return (depth >= NEAREST_DEPTH) & (depth <= FARTHEST_DEPTH)


def _train(
    cells: Cells,
    targets: Sequence[Tensor],
    known: Callable[[Tensor], Tensor],
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    rate: float,
    epochs: int,
    batch: int,
    seed: int,
) -> CellHead:
    require(epochs >= 1, "epochs", epochs, "a whole number >= 1")
    generator = torch.Generator().manual_seed(seed)
    places = [known(target).nonzero() for target in targets]
    usable = [i for i, place in enumerate(places) if len(place)]
    if not usable:
        raise DataError("no training pixel has a label: every mask is ignored, or every depth unknown.")
    sample = torch.cat([c.flatten(0, 1)[:: max(1, len(cells) // 8)].float() for c in cells])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = CellHead(sample.mean(0), sample.var(0, correction=0), outputs)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=1e-2)
    per_epoch = math.ceil(len(usable) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    with Progress("training the probe", epochs * per_epoch) as progress:
        for _ in range(epochs):
            order = torch.randperm(len(usable), generator=generator).tolist()
            for chosen in (order[i : i + batch] for i in range(0, len(order), batch)):
                inputs, truths = [], []
                for i in (usable[j] for j in chosen):
                    at = places[i][torch.randint(len(places[i]), (PIXELS,), generator=generator)]
                    size = torch.tensor(targets[i].shape)
                    inputs.append(at_points(cells[i].float(), (at + 0.5) / size))
                    truths.append(targets[i][at[:, 0], at[:, 1]])
                # the head is affine, so it may be applied after the enlargement
                value = loss(head(torch.cat(inputs)), torch.cat(truths))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
                progress.advance()
    return head.eval()


def _check_sizes(cells: Cells, targets: Sequence[Tensor], kind: str) -> None:
    if len(cells) != len(targets) or not cells:
        raise DataError(f"{kind}: {len(targets)} of them for {len(cells)} images; each image needs one.")
    for i, (grid, target) in enumerate(zip(cells, targets)):
        ratio = (target.shape[0] / grid.shape[0]) / (target.shape[1] / grid.shape[1])
        if not 0.8 < ratio < 1.25:
            raise DataError(
                f"{kind} {i} is {target.shape[0]} x {target.shape[1]}, of other proportions than its features, "
                f"{grid.shape[0]} x {grid.shape[1]}."
            )
