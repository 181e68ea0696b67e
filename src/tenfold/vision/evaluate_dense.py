"""`tenfold eval segmentation | depth | discovery | tracking | matching`: frozen patches beside baselines without a network.

Every function takes its flags and returns rows of {what: number}; the row of the weights comes first, then
the same network untrained, then what pixels, positions and motion give.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from tenfold.data.progress import track
from tenfold.images.frames import Frames, matching, open_frames, refuse_one_class
from tenfold.vision.backbones.backbone import Backbone, model_of
from tenfold.vision.probes.correspond import dense_features, object_mask, raw_patches
from tenfold.vision.probes.dense import EPOCHS, depth_probe, segmentation_probe
from tenfold.vision.probes.dense_baselines import depth_floors, segmentation_floors
from tenfold.vision.probes.discovery import blind_boxes, discovery_score
from tenfold.vision.probes.stereo import constant_disparity, matching_scores, sample_pair
from tenfold.vision.probes.tracking import TEMPERATURES, choose_temperature, propagation_miou, tracking_floors

CROP = 1024  # pixels; a larger image is read through a sliding window
TRAINING_CLIPS = 3  # on which the temperature is chosen


@dataclass(frozen=True)
class DenseProbe:
    """Scores a linear probe on frozen patch features, beside the same network untrained and baselines of position and colour.

    segmentation: images with masks, as parquet (columns image, mask: PNG of class ids) or a folder of images/ and masks/.
    depth: images with depth, as parquet (columns image, depth: .npy in metres) or a folder of images/ and depths/.
    """

    weights: tyro.conf.Positional[Path]  # a backbone that tenfold.load reads, or a run folder
    train: Path  # images that the probe is trained on
    val: Path  # images that are scored, with the same classes
    limit: int | None = None  # use only the first images of each set
    stride: int | None = None  # pixels between features; one patch by default
    epochs: int = EPOCHS  # passes over the training set
    json: bool = False  # print as JSON


@dataclass(frozen=True)
class Discovery:
    """Finds the one object of each image without labels, beside the untrained network, raw patches and fixed boxes."""

    weights: tyro.conf.Positional[Path]  # a backbone that tenfold.load reads, or a run folder
    val: Path  # images with masks, 0 for background: parquet (columns image, mask) or a folder of images/ and masks/
    limit: int | None = None  # use only the first images
    stride: int | None = None  # pixels between features; one patch by default
    json: bool = False  # print as JSON


@dataclass(frozen=True)
class Tracking:
    """Carries the first frame's labels through clips, beside copying them, optical flow, raw patches and the untrained
    network.

    Sets are the frames of a clip in order, each with its mask: parquet (columns name, image, mask) or a folder.
    """

    weights: tyro.conf.Positional[Path]  # a backbone that tenfold.load reads, or a run folder
    val: Path  # clips that are scored
    train: Path | None = None  # other clips, on which the temperature is chosen; the middle of the grid without
    limit: int | None = None  # use only the first frames
    frames: int = 10  # of a clip, the first of which is labelled
    stride: int = 8  # pixels between features
    json: bool = False  # print as JSON


@dataclass(frozen=True)
class Matching:
    """Matches the sample stereo pair, plain and changed, beside the untrained network and raw patches."""

    weights: tyro.conf.Positional[Path]  # a backbone that tenfold.load reads, or a run folder
    stride: int = 8  # pixels between features
    json: bool = False  # print as JSON


def segmentation(options: DenseProbe) -> dict[str, Any]:
    """Mean IoU, per cent, of BN + 1 x 1 on frozen patch features."""
    train, val = (open_frames(path, "mask", options.limit) for path in (options.train, options.val))
    for frames in (train, val):
        refuse_one_class(frames)
    matching(train, val)
    rows: dict[str, Any] = {"train images": len(train), "val images": len(val), "classes": len(train.classes)}
    patch, epochs = options.stride or 1, options.epochs
    for name, network in networks(options.weights).items():
        cells = [features(network, part, options.stride, name) for part in (train, val)]
        patch = options.stride or network.config.patch_size
        score = segmentation_probe(
            cells[0], train.masks, cells[1], val.masks, len(train.classes), train.ignored, epochs
        )
        rows[f"mIoU, {name}"] = score.miou
        rows[f"pixels right, {name}"] = score.accuracy
    floors = segmentation_floors(train, val, patch, epochs)
    return rows | {f"mIoU, {name}": value for name, value in floors.items()}


def depth(options: DenseProbe) -> dict[str, Any]:
    """RMSE in metres and mean relative error of 256 bins on frozen patch features."""
    train, val = (open_frames(path, "depth", options.limit) for path in (options.train, options.val))
    epochs = options.epochs
    rows: dict[str, Any] = {"train images": len(train), "val images": len(val)}
    for name, network in networks(options.weights).items():
        cells = [features(network, part, options.stride, name) for part in (train, val)]
        score = depth_probe(cells[0], train.depths, cells[1], val.depths, epochs)
        rows |= {f"RMSE m, {name}": score.rmse, f"|error| / depth, {name}": score.relative}
        rows[f"within 1.25, {name}"] = score.within
    return rows | {f"RMSE m, {name}": value for name, value in depth_floors(train, val, epochs).items()}


def discovery(options: Discovery) -> dict[str, Any]:
    """CorLoc and mask IoU, per cent, of the one object that features find in each image without labels."""
    frames = open_frames(options.val, "mask", options.limit)
    sizes = [(image.shape[0], image.shape[1]) for image in frames.images]
    sources = {
        **{
            name: lambda image, n=network: dense_features(n, image, options.stride, CROP)
            for name, network in networks(options.weights).items()
        },
        "raw 16 px patches": lambda image: raw_patches(image, 16, 16),
    }
    found = {
        name: [
            object_mask(embed(image), *size)
            for image, size in zip(track(frames.images, f"features, {name}", len(frames)), sizes)
        ]
        for name, embed in sources.items()
    }
    for name in blind_boxes(1, 1):
        found[name] = [blind_boxes(*size)[name] for size in sizes]
    rows: dict[str, Any] = {"val images": len(frames)}
    for name, masks in found.items():
        score = discovery_score(masks, frames)
        rows |= {f"CorLoc, {name}": score.corloc, f"mask IoU, {name}": score.miou}
    return rows


def tracking(options: Tracking) -> dict[str, Any]:
    """Mean IoU, per cent, of the first frame's labels carried through clips of --frames frames. The temperature is chosen on
    clips of --train; without it the middle of the grid is taken and said."""
    val = open_frames(options.val, "mask", options.limit)
    refuse_one_class(val)
    clips = val.clips(options.frames)
    rows: dict[str, Any] = {"clips": len(clips), "frames of a clip": options.frames}
    train = open_frames(options.train, "mask", TRAINING_CLIPS * options.frames) if options.train else None
    stride = options.stride
    sources = {
        **{
            name: lambda image, n=network: dense_features(n, image, stride, CROP)
            for name, network in networks(options.weights).items()
        },
        "raw 16 px patches": lambda image: raw_patches(image, 16, stride),
    }
    for name, embed in sources.items():
        temperature = TEMPERATURES[len(TEMPERATURES) // 2]
        if train is not None:
            cells = [embed(image) for image in train.images]
            temperature = choose_temperature(train, cells, train.clips(options.frames))
        cells = [embed(image) for image in track(val.images, f"features, {name}", len(val))]
        rows[f"mIoU, {name}"] = propagation_miou(val, cells, clips, temperature)
        rows[f"temperature, {name}"] = temperature
    return rows | {f"mIoU, {name}": value for name, value in tracking_floors(val, clips).items()}


def match_stereo(options: Matching) -> dict[str, Any]:
    """PCK at 8 and 16 pixels on the sample stereo pair: plain, other colours, larger, turned."""
    pair, stride = sample_pair(), options.stride
    sources = {
        **{
            name: lambda image, n=network: dense_features(n, image, stride)
            for name, network in networks(options.weights).items()
        },
        "raw 32 px patches": lambda image: raw_patches(image, 32, stride),
        "raw patches, colours centred": lambda image: raw_patches(image, 32, stride, per_channel=True),
    }
    rows: dict[str, Any] = {"stride": stride}
    for name, embed in sources.items():
        for view, score in matching_scores(pair, embed, stride).items():
            rows |= {f"PCK{pixels} {view}, {name}": value for pixels, value in score.items()}
    return rows | {f"PCK{p} plain, constant disparity": v for p, v in constant_disparity(pair, stride).items()}


def networks(weights: Path) -> dict[str, Backbone]:
    """The weights, and the same network with its initial ones."""
    model = model_of(weights)
    return {"these weights": model.for_inference(), "untrained": initial(model.config).for_inference()}


def initial(config: Any) -> Backbone:
    """The network with its initial weights, always the same ones: the baseline of every score."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build()


def features(model: Backbone, frames: Frames, stride: int | None, name: str) -> list[Tensor]:
    """Patch features of every frame, in half precision (367 frames of 45 x 60 x 384 are 0.8 GB then)."""
    images = track(frames.images, f"features, {name}", len(frames))
    return [dense_features(model, image, stride, CROP).half() for image in images]
