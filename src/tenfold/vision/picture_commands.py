"""`tenfold vision pca | match | track | segment | zeroshot`: what frozen features see, as PNG pictures and numbers.

Each verb is a dataclass and a function, as in commands.py; pictures are written aside and renamed, and the numbers go to
standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from tenfold.errors import DataError, UsageError

if TYPE_CHECKING:
    from tenfold.images.frames import Frames
    from tenfold.vision.backbones.backbone import Backbone


@dataclass(frozen=True)
class Pca:
    """Photographs beside the first three principal components of their patch features, as red, green and blue.

    $ tenfold vision pca dinov3-mini photos/ --out pca/

    The components are shared by all the images of the call: a colour means the same in all of them.
    """

    weights: tyro.conf.Positional[Path]  # a weights file, Hugging Face folder, run folder, or dinov3-mini, which ships
    images: tyro.conf.Positional[tuple[Path, ...]]  # image files, or folders of them
    out: Path = Path("pca")  # folder for one PNG per image
    size: int | None = None  # shorter side in pixels (default: as it is, at most 512 on the longer side)
    json: bool = False  # print the numbers as JSON


def pca(options: Pca) -> int:
    from tenfold.data.file_names import output_name
    from tenfold.data.progress import track as counted
    from tenfold.images.drawing import write_png
    from tenfold.vision.backbones.backbone import model_of
    from tenfold.vision.backbones.images import find_images, open_readable
    from tenfold.vision.probes.correspond import beside, dense_features, pca_map

    notes: list[str] = []
    files = find_images(options.images, notes)
    model = model_of(options.weights).for_inference()
    patch = model.config.patch_size
    failures: list[str] = []
    images = list(open_readable(files, options.size, patch, failures))
    cells = [dense_features(model, image) for _, image in counted(images, "features", len(images))]
    for number, ((file, image), picture) in enumerate(zip(images, pca_map(cells) if cells else [])):
        write_png(options.out / output_name(number, file.stem, ".png"), beside(image, picture))
    _say(options.json, {"images": len(images), "pictures": str(options.out)})
    return _left_out(failures, notes)


@dataclass(frozen=True)
class Match:
    """Matches between two images: mutual nearest neighbours of their patch features, as coloured lines.

    $ tenfold vision match dinov3-mini left.png right.png --out matches.png
    $ tenfold vision match dinov3-mini left.png right.png --points points.json      every match, in pixels

    Right matches of a rigid scene run together; a line that crosses the others is wrong.
    """

    weights: tyro.conf.Positional[Path]  # a weights file, Hugging Face folder, run folder, or dinov3-mini, which ships
    left: tyro.conf.Positional[Path]  # an image
    right: tyro.conf.Positional[Path]  # another view of the same
    out: Path = Path("matches.png")  # the picture
    points: Path | None = None  # also write every match: left (x, y), right (x, y), similarity
    most: int = 100  # lines drawn, the most similar first
    stride: int | None = None  # pixels between features, to which matches are exact (default: one patch)
    json: bool = False  # print the numbers as JSON


def match(options: Match) -> int:
    import torch

    from tenfold.data.atomic import write_atomic
    from tenfold.data.readers import read_image
    from tenfold.images.drawing import match_lines, write_png
    from tenfold.vision.backbones.backbone import model_of
    from tenfold.vision.probes.correspond import dense_features
    from tenfold.vision.probes.correspond import match as match_cells

    if options.most < 1:
        raise UsageError(f"--most {options.most}: allowed is a whole number >= 1.")
    images = [torch.from_numpy(read_image(file)) for file in (options.left, options.right)]
    model = model_of(options.weights).for_inference()
    stride = options.stride or model.config.patch_size
    cells = [dense_features(model, image, stride) for image in images]
    found = match_cells(cells[0], cells[1])
    source, target = (found.source + 0.5) * stride, (found.target + 0.5) * stride
    write_png(options.out, match_lines(images[0], images[1], source[: options.most], target[: options.most]))
    if options.points:
        rows = [
            {"left": a, "right": b, "similarity": s}
            for a, b, s in zip(source.tolist(), target.tolist(), found.similarity.tolist())
        ]
        write_atomic(options.points, json.dumps(rows).encode())
    total = cells[0].shape[0] * cells[0].shape[1]
    numbers = {
        "picture": str(options.out),
        "cells": total,
        "mutual matches": len(found),
        "share": round(len(found) / total, 4),
        "median similarity": round(float(found.similarity.median()), 4) if len(found) else None,
    }
    return _say(options.json, numbers)


@dataclass(frozen=True)
class Track:
    """Carries the first frame's labels through a clip and draws them over its frames; the baselines stand beside the score.

    $ tenfold vision track dinov3-mini clip.parquet --frames 10 --out track/
    $ tenfold vision track dinov3-mini clip/ --frames 20          clip/images/*.jpg and clip/masks/*.png of the same names

    The score (mIoU over the frames after the first) needs masks of all frames, which is what the file must hold.
    """

    weights: tyro.conf.Positional[Path]  # a weights file, Hugging Face folder, run folder, or dinov3-mini, which ships
    clip: tyro.conf.Positional[Path]  # parquet (name, image, mask) or a folder of images/ and masks/
    out: Path = Path("track")  # folder for one PNG per frame: the truth left, what was carried right
    frames: int = 10  # how many, from the first
    stride: int = 8  # pixels between features
    temperature: float = 0.1  # of the votes; `tenfold eval tracking --train` chooses it
    json: bool = False  # print the numbers as JSON


def track(options: Track) -> int:
    from tenfold.data.file_names import output_name
    from tenfold.data.progress import track as counted
    from tenfold.images.drawing import overlay, side_by_side, write_png
    from tenfold.images.frames import open_frames, refuse_one_class
    from tenfold.vision.backbones.backbone import model_of
    from tenfold.vision.probes.correspond import dense_features
    from tenfold.vision.probes.dense import cell_labels
    from tenfold.vision.probes.tracking import propagate_labels, propagation_miou, to_pixels, tracking_floors

    frames = open_frames(options.clip, "mask", options.frames)
    refuse_one_class(frames)
    clip = frames.clips(options.frames)[0]
    model = model_of(options.weights).for_inference()
    images = [frames.images[i] for i in clip]
    cells = [dense_features(model, image, options.stride) for image in counted(images, "features", len(images))]
    classes = len(frames.classes)
    first = cell_labels(frames.masks[0], cells[0].shape[:2], classes, frames.ignored)
    soft = propagate_labels(cells, first, temperature=options.temperature)
    for i, labels in enumerate(soft):
        truth = frames.masks[i]
        carried = to_pixels(labels, *truth.shape)
        pair = [overlay(images[i], truth, classes), overlay(images[i], carried, classes)]
        write_png(options.out / output_name(i, frames.names[i], ".png"), side_by_side(pair))
    score = propagation_miou(frames, cells, [clip], options.temperature)
    floors = {f"mIoU, {name}": value for name, value in tracking_floors(frames, [clip]).items()}
    return _say(
        options.json, {"pictures": str(options.out), "frames": len(clip), "mIoU, these weights": score, **floors}
    )


@dataclass(frozen=True)
class Segment:
    """Tints what the features segment: with --train the classes of those masks, without it the most salient object.

    $ tenfold vision segment W photos/ --out segments/                                  one object per image, no labels
    $ tenfold vision segment W photos/ --train camvid_train.parquet --out segments/     a linear probe's classes

    The object is found without any label (LOST, arXiv 2109.14279); how good it is depends only on the weights.
    """

    weights: tyro.conf.Positional[Path]  # a weights file, Hugging Face folder, run folder, or dinov3-mini, which ships
    images: tyro.conf.Positional[tuple[Path, ...]]  # image files, or folders of them
    out: Path = Path("segments")  # folder for one PNG per image
    train: Path | None = None  # images with masks that a linear probe learns from: parquet, or images/ and masks/
    limit: int | None = None  # use only its first rows
    epochs: int = 60  # passes over it
    size: int | None = None  # shorter side of the images in pixels (default: as it is, at most 512 on the longer side)
    json: bool = False  # print the numbers as JSON


def segment(options: Segment) -> int:
    from tenfold.data.file_names import output_name, readable_name
    from tenfold.data.progress import track as counted
    from tenfold.images.drawing import overlay, side_by_side, write_png
    from tenfold.images.frames import open_frames, refuse_one_class
    from tenfold.vision.backbones.backbone import model_of
    from tenfold.vision.backbones.images import find_images, open_readable
    from tenfold.vision.probes.correspond import dense_features, object_mask
    from tenfold.vision.probes.dense import segment as segment_cells

    notes: list[str] = []
    files = find_images(options.images, notes)
    frames = open_frames(options.train, "mask", options.limit) if options.train else None
    model = model_of(options.weights).for_inference()
    if frames:
        refuse_one_class(frames)
    head = _probe(model, frames, options.epochs) if frames else None
    names = frames.classes if frames else ("object",)
    shares: dict[str, dict[str, float]] = {}
    failures: list[str] = []
    readable = open_readable(files, options.size, model.config.patch_size, failures)
    for number, (file, image) in counted(enumerate(readable), "segmenting", len(files)):
        cells = dense_features(model, image)
        if head is None:
            mask = (~object_mask(cells, *image.shape[:2])).long()  # 1 is not a class here, and stays untinted
        else:
            mask = segment_cells(head, cells, *image.shape[:2])
        write_png(
            options.out / output_name(number, file.stem, ".png"),
            side_by_side([image, overlay(image, mask, len(names))]),
        )
        found = {name: float((mask == i).float().mean()) for i, name in enumerate(names)}
        shares[readable_name(file)] = {name: round(share, 4) for name, share in found.items() if share > 0}
    _say(options.json, {"pictures": str(options.out), "share of pixels": shares})
    return _left_out(failures, notes)


@dataclass(frozen=True)
class Zeroshot:
    """Which of your words fits each photograph, by the nearest sentence; with --out also where, as tinted patches.

    $ tenfold vision zeroshot runs/dinov3-text photos/ --classes church parachute "golf ball"
    $ tenfold vision zeroshot dinotxt.pth photos/ --backbone dinov3_vitl16.pth --classes cat dog --out where/

    The weights are a run of `tenfold train dinov3-text`, or a dino.txt file with its backbone. Words that the training
    never saw are answered as well, and often wrongly: see docs/vision.md.
    """

    weights: tyro.conf.Positional[Path]  # text-aligned weights or run folder
    images: tyro.conf.Positional[tuple[Path, ...]]  # image files, or folders of them
    classes: tuple[str, ...]  # the words to choose from, two or more
    backbone: Path | None = None  # the backbone of a dino.txt file, which comes without
    out: Path | None = None  # folder for one PNG per image: the photograph, and the class of each patch over it
    size: int | None = None  # shorter side in pixels (default: as it is, at most 512 on the longer side)
    json: bool = False  # print the numbers as JSON


def zeroshot(options: Zeroshot) -> int:
    import torch

    from tenfold.data.file_names import output_name, readable_name
    from tenfold.data.progress import track as counted
    from tenfold.images.drawing import overlay, side_by_side, write_png
    from tenfold.images.resize import resize
    from tenfold.vision.backbones.images import find_images, open_readable
    from tenfold.vision.evaluate_text import aligned_of
    from tenfold.vision.text.captions import templates
    from tenfold.vision.text.zeroshot import class_vectors, image_vectors, segment_by_text

    if len(set(options.classes)) < 2:
        raise UsageError(f"--classes {' '.join(options.classes)}: give two or more different words.")
    notes: list[str] = []
    files = find_images(options.images, notes)
    model = aligned_of(options.weights, options.backbone)
    assert model.backbone is not None
    config, names = model.backbone.config, options.classes
    failures: list[str] = []
    readable = open_readable(files, options.size, config.patch_size, failures)
    classes = class_vectors(model, names, templates("all"))
    scale = float(model.logit_scale.detach().exp())
    found: dict[str, dict[str, float]] = {}
    for number, (file, image) in counted(enumerate(readable), "reading", len(files)):
        square = resize(image, config.image_size, config.image_size)
        shares = (scale * image_vectors(model, square[None].numpy()) @ classes.T).softmax(1)[0]
        order = shares.argsort(descending=True)
        found[readable_name(file)] = {names[i]: round(float(shares[i]), 4) for i in order.tolist()}
        if options.out:
            with torch.inference_mode():
                where = segment_by_text(model, image, classes)
            picture = side_by_side([image, overlay(image, where, len(names))])
            write_png(options.out / output_name(number, file.stem, ".png"), picture)
    if options.json:
        _say(True, {"pictures": str(options.out) if options.out else None, "images": found})
        return _left_out(failures, notes)
    for file, shares in found.items():
        print(f"{file}  " + "  ".join(f"{name} {share:.2f}" for name, share in list(shares.items())[:3]))
    return _left_out(failures, notes)


def _probe(model: Backbone, frames: Frames, epochs: int) -> Any:
    from tenfold.data.progress import track as counted
    from tenfold.vision.probes.correspond import dense_features
    from tenfold.vision.probes.dense import segmentation_head

    images = counted(frames.images, "features of the training images", len(frames))
    cells = [dense_features(model, image).half() for image in images]
    return segmentation_head(cells, frames.masks, len(frames.classes), frames.ignored, epochs)


def _left_out(failures: Sequence[str], notes: Sequence[str]) -> int:
    """Says what was not read, on standard error; the exit code."""
    for line in [f"left out: {failure}" for failure in failures] + [*notes]:
        print(f"tenfold: {line}", file=sys.stderr)
    return DataError.exit_code if failures else 0


def _say(as_json: bool, numbers: Mapping[str, Any]) -> int:
    if as_json:
        print(json.dumps(numbers))
        return 0
    for name, value in numbers.items():
        print(f"{name:<28} {value:8.2f}" if isinstance(value, float) else f"{name:<28} {value}")
    return 0
