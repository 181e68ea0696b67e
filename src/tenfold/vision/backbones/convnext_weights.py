"""Weights of DINOv3's ConvNeXt in every published layout, both ways and bit for bit.

    official   Meta's `.pth`; the final norm stands in it twice, as `norm.*` and as `norms.3.*`
    hf         Hugging Face folder; `model.stages.*`, and the older files without `model.`
    timm       timm folder, `stem.*` and `stages.N.blocks.N.*`

Sizes are read off the shapes; LayerNorm eps and pixel statistics are in no `.pth` file and are the released ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.data.tensors import own_metadata, write_safetensors
from tenfold.errors import WeightsError
from tenfold.export.keymap import Link, Part, read_links, write_links
from tenfold.export.reading import SIDE, Source
from tenfold.export.weights import Family, Layout, Weights, config_of
from tenfold.vision.backbones.convnext import ConvNeXt, ConvNextConfig
from tenfold.vision.backbones.hf_fields import CONVNEXT_FIELDS, check_config

ALIAS = "norms.3."  # the official model keeps a norm per stage; the last is the final one
# Fields that a reader without our side file decides by itself; writing refuses a model that they would change.
DECIDED = ("norm_eps", "mean", "std", "patch_size", "feature", "image_size")


@dataclass(frozen=True)
class Spelling:
    """How one layout names things. {i} is the stage, {j} the block or the place within a patch merge.

    stem: the first patch merge, where the convolution comes first; merge: the others, where the norm does.
    block: our part of a block -> theirs.   renames: spellings of the same layout, brought to this one when read.
    """

    layout: Literal["official", "hf", "timm"]
    stem: str
    merge: str
    prefix: str
    block: dict[str, str]
    norm: str
    signature: str
    renames: tuple[tuple[str, str], ...] = ()

    def recognises(self, source: Source) -> bool:
        return any(re.search(self.signature, name) for name in self.normalized(source.tensors))

    def normalized(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        result = {}
        for name, tensor in tensors.items():
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if not re.search(HEADS, name):
                result[name] = tensor
        return result

    def name(self, own: str) -> str:
        """Their name of our parameter."""
        part, *words = own.split(".")
        if part == "norm":
            return f"{self.norm}.{words[0]}"
        if part == "downsample":
            stage, kind, leaf = words
            place = ("conv", "norm") if stage == "0" else ("norm", "conv")
            pattern = self.stem if stage == "0" else self.merge
            return f"{pattern.format(i=stage, j=place.index(kind))}.{leaf}"
        stage, block, kind, *leaf = words
        return ".".join([self.prefix.format(i=stage, j=block) + self.block[kind], *leaf])


HEADS = r"^(dino_head|ibot_head)\."  # a training checkpoint holds heads beside the backbone
OFFICIAL = Spelling(
    "official",
    "downsample_layers.{i}.{j}",
    "downsample_layers.{i}.{j}",
    "stages.{i}.{j}.",
    {"depthwise": "dwconv", "norm": "norm", "up": "pwconv1", "down": "pwconv2", "gain": "gamma"},
    "norm",
    r"^downsample_layers\.\d+\.",
    ((r"^(module\.)?(backbone\.)?", ""),),
)
HF = Spelling(
    "hf",
    "model.stages.{i}.downsample_layers.{j}",
    "model.stages.{i}.downsample_layers.{j}",
    "model.stages.{i}.layers.{j}.",
    {
        "depthwise": "depthwise_conv",
        "norm": "layer_norm",
        "up": "pointwise_conv1",
        "down": "pointwise_conv2",
        "gain": "gamma",
    },
    "layer_norm",
    r"^model\.stages\.\d+\.(downsample_layers|layers)\.",
    ((r"^stages\.", "model.stages."),),
)
TIMM = Spelling(
    "timm",
    "stem.{j}",
    "stages.{i}.downsample.{j}",
    "stages.{i}.blocks.{j}.",
    {"depthwise": "conv_dw", "norm": "norm", "up": "mlp.fc1", "down": "mlp.fc2", "gain": "gamma"},
    "head.norm",
    r"^stages\.\d+\.blocks\.\d+\.conv_dw\.",
)
SPELLINGS = (HF, TIMM, OFFICIAL)


def links(config: ConvNextConfig, spelling: Spelling) -> list[Link]:
    """Where each of our parameters stands in this layout."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in ConvNeXt(config).state_dict().items()}
    return [Link(own, shape, Part(spelling.name(own), shape)) for own, shape in shapes.items()]


def read(source: Source, spelling: Spelling) -> Weights:
    tensors = spelling.normalized(source.tensors)
    config = config_of(source, lambda: infer(tensors, spelling, source), "ConvNeXt")
    if spelling.layout == "hf":
        check_config(source, "gelu", CONVNEXT_FIELDS)
    if spelling.layout == "official":
        for name in [name for name in tensors if name.startswith(ALIAS)]:
            alias, norm = tensors.pop(name), "norm." + name.removeprefix(ALIAS)
            if norm in tensors and not torch.equal(tensors[norm], alias):
                raise WeightsError(f"{source.path}: {name} is not equal to {norm}, whose other name it is.")
            tensors.setdefault(norm, alias)
    return Weights(config, read_links(links(config, spelling), tensors, source.path))


def infer(tensors: Mapping[str, Tensor], spelling: Spelling, source: Source) -> ConvNextConfig:
    """The configuration of these weights. One wrong tensor must not decide a size, so a stage's vectors vote on it."""
    votes: dict[int, Counter[int]] = {}
    blocks: dict[int, int] = {}
    pattern = re.escape(spelling.prefix).replace(r"\{i\}", r"(\d+)").replace(r"\{j\}", r"(\d+)")
    widths = tuple(spelling.block[kind] for kind in ("depthwise", "norm", "down", "gain"))
    for name, tensor in tensors.items():
        if found := re.match(pattern, name):
            stage, block = int(found[1]), int(found[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
            if tensor.ndim == 1 and name[found.end() :].startswith(widths):
                votes.setdefault(stage, Counter())[len(tensor)] += 1
    if sorted(votes) != [0, 1, 2, 3]:
        raise WeightsError(f"{source.path}: a ConvNeXt has the stages 0, 1, 2, 3; found are {sorted(votes)}.")
    stem = tensors.get(spelling.name("downsample.0.conv.weight"))
    first, second, third, fourth = ((blocks[i], votes[i].most_common(1)[0][0]) for i in range(4))
    config = ConvNextConfig(
        depths=(first[0], second[0], third[0], fourth[0]),
        dims=(first[1], second[1], third[1], fourth[1]),
        channels=stem.shape[1] if stem is not None and stem.ndim == 4 else 3,
        norm_eps=source.config.get("layer_norm_eps") or 1e-6,
    )
    mean, std = source.preprocessor.get("image_mean"), source.preprocessor.get("image_std")
    return replace(config, mean=tuple(map(float, mean)), std=tuple(map(float, std))) if mean and std else config


def split(weights: Weights, spelling: Spelling) -> dict[str, Tensor]:
    """Tensors under their names."""
    written = write_links(links(weights.config, spelling), weights.state)
    if spelling.layout == "official":
        written |= {ALIAS + leaf: written[f"norm.{leaf}"] for leaf in ("weight", "bias")}
    return written


def write_official(weights: Weights, path: Path) -> None:
    """One `.pth` file of torch with only the tensors."""
    _require_decided(weights, "official")
    torch.save({name: tensor.clone() for name, tensor in split(weights, OFFICIAL).items()}, path)


def write_folder(weights: Weights, path: Path, spelling: Spelling) -> None:
    """A folder with model.safetensors, the configuration files of the layout, and our configuration beside them."""
    from tenfold.vision.backbones.hub_files import convnext_hf_files, convnext_timm_files, write_json

    path.mkdir()
    write_safetensors(path / "model.safetensors", split(weights, spelling))
    write_safetensors(path / SIDE, {}, own_metadata("convnext", weights.config))
    files: dict[str, Any]
    if spelling.layout == "hf":
        files = convnext_hf_files(weights.config)
    else:
        files = convnext_timm_files(weights.config)
    for name, content in files.items():
        write_json(path / name, content)


def _require_decided(weights: Weights, layout: str) -> None:
    released = ConvNextConfig()
    for field in DECIDED:
        if getattr(weights.config, field) != getattr(released, field):
            raise WeightsError(
                f"the {layout} layout does not store {field}: it would be read back as {getattr(released, field)}, and "
                f"this model has {getattr(weights.config, field)}. Use --to own."
            )


def _layout(spelling: Spelling) -> Layout:
    def write(weights: Weights, path: Path) -> None:
        if spelling.layout == "official":
            write_official(weights, path)
        else:
            write_folder(weights, path, spelling)

    return Layout(spelling.layout, spelling.recognises, lambda source: read(source, spelling), write)


FAMILY = Family("convnext", ConvNextConfig, ConvNeXt, tuple(_layout(spelling) for spelling in SPELLINGS))
