"""Label propagation through a clip by patch features, from its first frame; baselines: copying, optical flow.

    soft = propagate_labels(features, first, temperature=0.07)     list of (h, w, C), one for each frame
    mask = to_pixels(soft[5], 360, 480)                            (360, 480) of class ids

Protocol of DINO and DINOv3 (arXiv 2104.14294, section 4.2; 2508.10104, section 6.1.6): a cell takes the labels of its 5
most similar cells among the first frame and the 7 before it, at most 12 cells away, weighted by exp(cosine / temperature).

    T frames   h w cells   D feature width   C classes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tenfold.config import require
from tenfold.images.augment import opencv
from tenfold.images.frames import Frames
from tenfold.vision.probes.dense import cell_labels, confusion, mean_iou

TEMPERATURES = (0.02, 0.05, 0.1, 0.2)


def propagate_labels(
    features: Sequence[Float[Tensor, "h w d"]],
    first: Float[Tensor, "h w c"],
    context: int = 7,
    window: int = 12,
    neighbors: int = 5,
    temperature: float = 0.07,
) -> list[Float[Tensor, "h w c"]]:
    """Soft labels of every frame; those of the first are `first` as it is given."""
    require(len(features) >= 2, "features", len(features), "at least 2 frames")
    require(temperature > 0, "temperature", temperature, "a number above 0")
    require(min(context, window, neighbors) >= 1, "neighbors", (context, window, neighbors), "whole numbers >= 1")
    unit = [F.normalize(frame.float(), dim=2) for frame in features]
    labels = [first]
    for t in range(1, len(unit)):
        sources = sorted({0, *range(max(0, t - context), t)})
        labels.append(
            _carry(unit[t], [unit[s] for s in sources], [labels[s] for s in sources], window, neighbors, temperature)
        )
    return labels


def _carry(
    target: Tensor, sources: list[Tensor], labels: list[Tensor], window: int, neighbors: int, temperature: float
) -> Tensor:
    """One frame. Row by row, so that only the rows within the window are multiplied."""
    rows, columns = target.shape[:2]
    bank, known = torch.stack(sources), torch.stack(labels)  # (S, h, w, D) (S, h, w, C)
    step = torch.arange(columns)
    far = ((step[:, None] - step[None]).abs() > window)[:, None, None, :]  # (w, 1, 1, w)
    result = []
    for row in range(rows):
        near = slice(max(0, row - window), row + window + 1)
        keys, values = bank[:, near], known[:, near].flatten(0, 2)
        similarity = (target[row] @ keys.flatten(0, 2).T).view(columns, *keys.shape[:3])
        similarity = similarity.masked_fill(far, -torch.inf).flatten(1)
        best = similarity.topk(min(neighbors, similarity.shape[1]), dim=1)
        weight = (best.values / temperature).softmax(1)
        result.append((weight[..., None] * values[best.indices]).sum(1))
    return torch.stack(result)


def to_pixels(soft: Float[Tensor, "h w c"], height: int, width: int) -> Int[Tensor, "height width"]:
    """Class ids at full size: soft labels enlarged bilinearly, then the largest."""
    large = F.interpolate(soft.permute(2, 0, 1)[None], size=(height, width), mode="bilinear", align_corners=False)
    return large[0].argmax(0)


def optical_flow(images: Sequence[UInt8[Tensor, "h w 3"]]) -> list[Float[np.ndarray, "h w 2"]]:
    """For frames 1 to T - 1, where each pixel was in the frame before: (x, y) offsets by DIS (arXiv 1603.03590)."""
    cv2 = opencv()
    grey = [cv2.cvtColor(image.numpy(), cv2.COLOR_RGB2GRAY) for image in images]
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return [search.calc(later, earlier, None) for earlier, later in pairwise(grey)]


def flow_masks(flows: Sequence[Float[np.ndarray, "h w 2"]], first: Int[Tensor, "h w"]) -> Iterator[Int[Tensor, "h w"]]:
    """The baseline that knows only motion: the first mask moved along the flow, for each frame after it."""
    cv2 = opencv()
    current = first.numpy().astype(np.uint8)
    y, x = np.mgrid[: current.shape[0], : current.shape[1]].astype(np.float32)
    for flow in flows:
        current = cv2.remap(
            current, x + flow[..., 0], y + flow[..., 1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
        )
        yield torch.from_numpy(current.astype(np.int64))


def propagation_miou(
    frames: Frames,
    features: Sequence[Float[Tensor, "h w d"]],
    clips: Sequence[range],
    temperature: float,
) -> float:
    """mIoU over all frames of all clips but the first of each, which is given."""
    total = torch.zeros(len(frames.classes), len(frames.classes) + 1, dtype=torch.int64)
    for clip in clips:
        first = cell_labels(frames.masks[clip[0]], features[clip[0]].shape[:2], len(frames.classes), frames.ignored)
        soft = propagate_labels([features[i] for i in clip], first, temperature=temperature)
        for i, labels in zip(clip[1:], soft[1:]):
            truth = frames.masks[i]
            total += confusion(to_pixels(labels, *truth.shape), truth, len(frames.classes), frames.ignored)
    return mean_iou(total)


def choose_temperature(
    frames: Frames,
    features: Sequence[Float[Tensor, "h w d"]],
    clips: Sequence[range],
    temperatures: Sequence[float] = TEMPERATURES,
) -> float:
    """The temperature that carries the labels of these (training) clips best."""
    return max(temperatures, key=lambda temperature: propagation_miou(frames, features, clips, temperature))


def tracking_floors(frames: Frames, clips: Sequence[range]) -> dict[str, float]:
    """mIoU of copying the first mask, and of moving it along optical flow."""
    classes, ignored = len(frames.classes), frames.ignored
    copied = torch.zeros(classes, classes + 1, dtype=torch.int64)
    moved = copied.clone()
    for clip in clips:
        flows = optical_flow([frames.images[i] for i in clip])
        first = frames.masks[clip[0]]
        for i, mask in zip(clip[1:], flow_masks(flows, first)):
            copied += confusion(first, frames.masks[i], classes, ignored)
            moved += confusion(mask, frames.masks[i], classes, ignored)
    return {"copy the first frame": mean_iou(copied), "DIS optical flow": mean_iou(moved)}
