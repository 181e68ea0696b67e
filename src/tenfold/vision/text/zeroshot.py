"""Zero-shot classification: an image is what the nearest sentence says (CLIP, arXiv 2103.00020, section 3.1).

    classes = class_vectors(model, ["cat", "dog"], templates("all"))    (C, E), the mean over templates, unit length
    (image_vectors(model, images) @ classes.T).argmax(1)

    n images   C classes   E width of the common space   h w patch grid

Vectors of classes are made once, for any number of images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tenfold.data.readers import read_json
from tenfold.errors import DataError
from tenfold.vision.backbones.images import normalize
from tenfold.vision.text.aligned import TextAligned
from tenfold.vision.text.captions import fill


@torch.no_grad()
def class_vectors(
    model: TextAligned,
    names: Sequence[str],
    templates: Sequence[str],
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> Float[Tensor, "c e"]:
    """One unit vector per class: the mean of the unit vectors of its sentences, which are the templates with the class's
    name in them, or with each of its descriptions where there are some."""
    rows = []
    for name in names:
        words = [name] if descriptions is None else descriptions[name]
        rows.append(model.encode_text([fill(template, word) for template in templates for word in words]).mean(0))
    return F.normalize(torch.stack(rows), dim=1).cpu()


@torch.no_grad()
def image_vectors(
    model: TextAligned, images: UInt8[np.ndarray, "n side side 3"], batch: int = 64
) -> Float[Tensor, "n e"]:
    """Unit vectors of images in grey levels."""
    assert model.backbone is not None
    config, device = model.backbone.config, model.logit_scale.device
    chunks = torch.from_numpy(images).split(batch)
    return torch.cat([model.encode_image(normalize(chunk.to(device), config)).float().cpu() for chunk in chunks])


@torch.no_grad()
def segment_by_text(
    model: TextAligned, image: UInt8[Tensor, "H W 3"], classes: Float[Tensor, "c e"]
) -> Int[Tensor, "H W"]:
    """The class whose sentences are nearest to each patch, as a map of the image's size. Patches are compared with the
    second half of the text vectors, the side of the mean patch; similarities are upsampled, not decisions."""
    assert model.backbone is not None
    cells = model.encode_patches(normalize(image, model.backbone.config)[None])[0]
    half = F.normalize(classes[:, classes.shape[1] // 2 :], dim=1)
    alike = (cells.float().cpu() @ half.T).permute(2, 0, 1)[None]
    return F.interpolate(alike, size=image.shape[:2], mode="bilinear")[0].argmax(0)


def read_descriptions(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """{class: [description, ...]} from a JSON file. Raises DataError that names the class it lacks."""
    try:
        values = read_json(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected an object from class names to lists of texts.")
    found = {}
    for name in names:
        texts = values.get(name)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise DataError(f"{path}: {name!r} needs a list of texts; it has {json.dumps(texts)}.")
        found[name] = texts
    return found
