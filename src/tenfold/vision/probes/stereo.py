"""Dense matching against the truth: the sample stereo pair, four ways to make it harder, and what raw patches score.

    pair = sample_pair()
    for name, view in views(pair.right).items():
        pck(nearest cells..., pair, view)              per cent of cells whose match is within 8 pixels

The pair is `stereo_motorcycle` of scikit-image (Middlebury 2014), 500 x 741, true disparity on 92.7 % of the pixels. Each
left cell with a known disparity looks for its nearest neighbour in the *whole* right view, not on its line; the error is
measured in pixels of the unchanged right image, so all views are scored alike.

    h w cells of the left image   p cells with known disparity
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tenfold.data.archives import read_zip
from tenfold.data.readers import read_image, read_npy
from tenfold.data.samples import fetch
from tenfold.images.augment import opencv
from tenfold.vision.probes.correspond import nearest

SCALE, DEGREES, HUE, GAMMA, BLUR = 1.5, 20.0, 90, 2.0, 1.5
Features = Callable[[Tensor], Tensor]  # image uint8 (H, W, 3) -> cells (h, w, D)


@dataclass(frozen=True)
class StereoPair:
    """A pixel at (x, y) on the left is at (x - disparity, y) on the right; NaN where it is unknown."""

    left: UInt8[Tensor, "h w 3"]
    right: UInt8[Tensor, "h w 3"]
    disparity: Float[Tensor, "h w"]


@dataclass(frozen=True)
class View:
    """A changed right image and the affine map (2 x 3) from its pixels back to those of the unchanged one."""

    image: UInt8[Tensor, "_ _ 3"]
    back: Float[Tensor, "2 3"]


def sample_pair() -> StereoPair:
    """The scikit-image sample, fetched when the cache lacks it."""
    folder = fetch("scikit-image")
    left, right = (torch.from_numpy(read_image(folder / f"motorcycle_{side}.png")) for side in ("left", "right"))
    member = read_zip(folder / "motorcycle_disp.npz", ["arr_0.npy"], max_bytes=1 << 24)["arr_0.npy"]
    disparity = torch.from_numpy(read_npy(member, "motorcycle_disp.npz").astype(np.float32))
    return StereoPair(left, right, torch.where(disparity.isfinite(), disparity, torch.nan))


def views(right: UInt8[Tensor, "h w 3"]) -> dict[str, View]:
    """The right image as it is, with other colours and blurred, larger, and turned about its centre."""
    cv2 = opencv()
    image = right.numpy()
    height, width = image.shape[:2]
    darker = np.round(255 * (image / 255.0) ** GAMMA).astype(np.uint8)
    hsv = cv2.cvtColor(darker, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + HUE // 2) % 180  # OpenCV counts hue in steps of 2 degrees
    other = cv2.GaussianBlur(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), (0, 0), BLUR)
    larger = cv2.resize(image, (round(width * SCALE), round(height * SCALE)), interpolation=cv2.INTER_CUBIC)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), DEGREES, 1.0)
    turned = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    same = np.eye(2, 3)
    return {
        "plain": _view(image, same),
        "colour change": _view(other, same),
        f"scale {SCALE}": _view(larger, same / SCALE),
        f"rotation {DEGREES:g}": _view(turned, cv2.invertAffineTransform(turn)),
    }


def _view(image: np.ndarray, back: np.ndarray) -> View:
    return View(torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.asarray(back, np.float32)))


def known_cells(pair: StereoPair, stride: int) -> tuple[Bool[Tensor, "h w"], Float[Tensor, "h w 2"]]:
    """Which left cells have a true disparity at their centre, and where (x, y) they are in the right image."""
    rows, columns = (side // stride for side in pair.disparity.shape)
    y, x = torch.meshgrid(_centres(rows, stride), _centres(columns, stride), indexing="ij")
    disparity = pair.disparity[y.long(), x.long()]
    return disparity.isfinite(), torch.stack([x - disparity, y], dim=2)


def pck(
    index: Int[Tensor, " p"], columns: int, pair: StereoPair, view: View, stride: int, within: tuple[int, ...] = (8, 16)
) -> dict[int, float]:
    """Per cent of the left cells (all h w of them, in rows) whose match `index` in the view, a grid of `columns` cells, lies
    within so many pixels of the truth."""
    known, truth = known_cells(pair, stride)
    found = torch.stack([index % columns, index // columns], dim=1).float() * stride + stride // 2
    back = found @ view.back[:, :2].T + view.back[:, 2]
    error = (back - truth.flatten(0, 1)).norm(dim=1)[known.flatten()]
    return {pixels: 100 * (error <= pixels).double().mean().item() for pixels in within}


def matching_scores(
    pair: StereoPair, features: Features, stride: int, only: tuple[str, ...] = ()
) -> dict[str, dict[int, float]]:
    """PCK of every view, or of those named in `only`: {"plain": {8: ..., 16: ...}, ...}."""
    cells = features(pair.left)
    scores = {}
    for name, view in views(pair.right).items():
        if only and name not in only:
            continue
        seen = features(view.image)
        index, _ = nearest(cells, seen)
        scores[name] = pck(index, seen.shape[1], pair, view, stride)
    return scores


def constant_disparity(pair: StereoPair, stride: int, within: tuple[int, ...] = (8, 16)) -> dict[int, float]:
    """The baseline that looks at nothing: every cell is moved by the median disparity."""
    known, truth = known_cells(pair, stride)
    x = _centres(known.shape[1], stride)
    disparity = (x[None] - truth[..., 0])[known]
    error = (disparity - disparity.median()).abs()
    return {pixels: 100 * (error <= pixels).double().mean().item() for pixels in within}


def _centres(count: int, stride: int) -> Tensor:
    return torch.arange(count) * float(stride) + stride // 2
