"""Weights of DINOv2 and DINOv3 vision transformers in every published layout, both ways and bit for bit.

    official   Meta's `.pth`: plain, in block chunks, or a training checkpoint ({"teacher": {"backbone.*", ...}})
    hf         Hugging Face folder; files and transformers 5's in-memory names are both read
    timm       timm folder; DINOv3 under the `_qkvb` names, which keep the q and v biases

A layout is a table from our names to theirs (`Spelling`) with a few entries that need more than a name, in `links`.
What hf and timm have no place for (masked k bias, rounded `periods`, `local_cls_norm`, our configuration) goes to
`tenfold.safetensors` beside the weights. Sizes are read off the shapes; the position rule, LayerNorm eps and pixel
statistics are in no `.pth` file and are decided by the layout.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.data.tensors import own_metadata, write_safetensors
from tenfold.errors import WeightsError
from tenfold.export.keymap import Link, Part, read_links, write_links
from tenfold.export.reading import SIDE, Source
from tenfold.export.weights import Family, Layout, Weights, config_of
from tenfold.nn.rope import AxialRope
from tenfold.vision.backbones.hf_fields import RELEASED_THETA, VIT_FIELDS, check_config, rope_theta, theta_of
from tenfold.vision.backbones.spellings import OFFICIAL_V2, OFFICIAL_V3, SPELLINGS, Spelling
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig

SATELLITE_MEAN, SATELLITE_STD = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)
BESIDE = "beside:"  # marks entries of the side file among a layout's tensors
# Fields that a reader without our side file decides by itself; writing refuses a model that they would change.
DECIDED = ("norm_eps", "heads", "positions", "mask_k_bias", "qkv_bias", "local_cls_norm", "mean", "std")


def read(source: Source, spelling: Spelling) -> Weights:
    tensors = spelling.normalized(source.tensors)
    config = config_of(source, lambda: infer(tensors, spelling, source), "vision transformer")
    theta = RELEASED_THETA
    if spelling.layout == "hf":
        plain = "gelu" if config.ffn == "gelu" else "silu"
        # transformers' DINOv2 looks at the activation of plain networks alone.
        check_config(source, plain if spelling.version == 3 or plain == "gelu" else None, VIT_FIELDS)
        theta = rope_theta(source) if spelling.version == 3 else theta
    exact = "exact" in (config.rope_periods, source.hints.get("rope_periods"))
    if theta != RELEASED_THETA and exact:
        raise WeightsError(
            f'{source.path}: rope_periods "exact" computes those of the released base {RELEASED_THETA}; config.json says '
            f'rope_theta = {theta}, whose periods are exact with rope_periods "file".'
        )
    tensors |= {BESIDE + name: tensor for name, tensor in source.side.items()}
    if spelling.merged_cls:
        tensors = _split_cls(tensors)
    state = read_links(links(config, spelling, theta), tensors, source.path)
    for name in [name for name in state if name.endswith("bias_mask")]:
        mask = state.pop(name)
        if not torch.equal(mask.float(), _bias_mask(mask)):
            raise WeightsError(f"{source.path}: {name} is not 1 for q and v and 0 for k; no released model has that.")
    return Weights(config, state)


def split(weights: Weights, spelling: Spelling) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(their tensors, entries of the side file)."""
    state = dict(weights.state)
    for name in [name for name in state if name.endswith("qkv.bias")]:
        if spelling is OFFICIAL_V3 and weights.config.mask_k_bias:
            state[name.replace("qkv.bias", "qkv.bias_mask")] = _bias_mask(state[name])
    written = write_links(links(weights.config, spelling), state)
    side = {name[len(BESIDE) :]: written.pop(name) for name in list(written) if name.startswith(BESIDE)}
    if spelling.merged_cls:
        side |= {"cls_token": written["cls_token"], "position_of_cls": written["pos_embed"][:, :1]}
        written["cls_token"] = written["cls_token"] + written["pos_embed"][:, :1]
        written["pos_embed"] = written["pos_embed"][:, 1:]
    return written, side


def links(config: VitConfig, spelling: Spelling, theta: float = RELEASED_THETA) -> list[Link]:
    """Where each of our parameters stands in this layout. theta: the base of rotary periods that it does not hold."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in VisionTransformer(config).state_dict().items()}
    result = []
    for own, shape in shapes.items():
        if own.endswith("qkv.bias"):
            result += _bias_links(own, shape, config, spelling)
            continue
        names = spelling.names(own, gated=config.ffn == "swiglu")
        if names:
            rows = (shape[0] // len(names), *shape[1:])
            rows = (1, *shape) if own == "mask_token" and spelling.wide_mask_token else rows
            result.append(Link(own, shape, *(Part(name, rows) for name in names)))
        else:
            result.append(Link(own, shape, Part(BESIDE + own, shape, _absent(own, shape, config, theta))))
    return result


def _bias_links(own: str, shape: tuple[int, ...], config: VitConfig, spelling: Spelling) -> list[Link]:
    third = (shape[0] // 3,)
    names = spelling.names(own)
    if len(names) == 1:
        mask = own.replace("qkv.bias", "qkv.bias_mask")
        masked = [Link(mask, shape, Part(names[0] + "_mask", shape))] if config.mask_k_bias else []
        return [Link(own, shape, Part(names[0], shape)), *masked]
    q, k, v = names
    inside = spelling.k_bias == "always" or (spelling.k_bias == "unmasked" and not config.mask_k_bias)
    beside = Part(BESIDE + own.replace("qkv.bias", "k_bias"), third, torch.zeros(third))
    return [Link(own, shape, Part(q, third), Part(k, third) if inside else beside, Part(v, third))]


def _absent(own: str, shape: tuple[int, ...], config: VitConfig, theta: float) -> Tensor:
    """What an entry is when the file came without our side file."""
    if own == "rope.periods":
        return AxialRope.exact(config.dim // config.heads, theta)
    return torch.ones(shape) if own == "local_cls_norm.weight" else torch.zeros(shape)


def infer(tensors: Mapping[str, Tensor], spelling: Spelling, source: Source) -> VitConfig:
    """The configuration of these weights. One wrong tensor must not decide a size, so blocks vote on it."""
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if found := re.match(spelling.block.replace("{}", r"(\d+)"), name):
            blocks.setdefault(int(found[1]), {})[name[found.end() :]] = tensor

    def vote(*owns: str, axis: int = 0, gated: bool = False) -> int | None:
        sizes: Counter[int] = Counter()
        for own in owns:
            leaves = [name.removeprefix(spelling.block.format(0)) for name in spelling.names("blocks.0." + own, gated)]
            for block in blocks.values():
                if all(leaf in block and block[leaf].ndim > axis for leaf in leaves):
                    sizes[sum(block[leaf].shape[axis] for leaf in leaves)] += 1
        return sizes.most_common(1)[0][0] if sizes else None

    def entry(own: str, ndim: int) -> Tensor | None:
        names = spelling.names(own)
        tensor = tensors.get(names[0]) if names else None
        return tensor if tensor is not None and tensor.ndim == ndim else None

    dim = vote("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
    down = vote("ffn.down.weight", axis=1) or vote("ffn.down.weight", axis=1, gated=True)
    if not dim or not down:
        raise WeightsError(f"{source.path}: no block of it has both norm1 and a feed-forward network.")
    gated = vote("ffn.gate_up.weight") == 2 * down
    patch, registers, positions = entry("patch_embed.weight", 4), entry("register_tokens", 3), entry("pos_embed", 3)
    v2 = spelling.version == 2
    biased = vote("attention.qkv.bias") is not None if spelling.k_bias == "always" else _biased(spelling, blocks)
    config = VitConfig(
        dim=dim,
        depth=max(blocks) + 1,
        heads=max(1, source.config.get("num_attention_heads") or dim // (128 if dim == 4096 else 64)),
        patch_size=patch.shape[-1] if patch is not None else (14 if v2 else 16),
        channels=patch.shape[1] if patch is not None else 3,
        ffn="swiglu" if gated else "gelu",
        hidden=down if gated or down != 4 * dim else None,
        registers=registers.shape[1] if registers is not None else 0,
        positions="rope" if not v2 else "antialias" if registers is not None else "offset",
        grid=round((positions.shape[1] - (not spelling.merged_cls)) ** 0.5) if positions is not None else 37,
        norm_eps=source.config.get("layer_norm_eps") or (1e-6 if v2 else 1e-5),
        qkv_bias=biased,
        mask_k_bias=not v2 and biased and _masked(spelling, blocks),
        rope_rescale=None if v2 else source.config.get("pos_embed_rescale", 2.0),
        local_cls_norm=any(name.startswith("local_cls_norm.") for name in tensors),
    )
    mean, std = source.preprocessor.get("image_mean"), source.preprocessor.get("image_std")
    if mean and std:
        return replace(config, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    # The satellite models differ from the others in their pixel statistics, which no `.pth` file holds.
    if "sat493m" in source.path.name or (config.local_cls_norm and dim == 1024):
        return replace(config, mean=SATELLITE_MEAN, std=SATELLITE_STD)
    return config


def _biased(spelling: Spelling, blocks: Mapping[int, Mapping[str, Tensor]]) -> bool:
    q = spelling.names("blocks.0.attention.qkv.bias")[0].removeprefix(spelling.block.format(0))
    return any(q in block for block in blocks.values())


def _masked(spelling: Spelling, blocks: Mapping[int, Mapping[str, Tensor]]) -> bool:
    if spelling is OFFICIAL_V3:
        return any("attn.qkv.bias_mask" in block for block in blocks.values())
    if spelling.k_bias == "unmasked":
        return not any("attention.k_proj.bias" in block for block in blocks.values())
    return True


def _bias_mask(bias: Tensor) -> Tensor:
    mask = torch.ones_like(bias)
    mask[len(bias) // 3 : 2 * len(bias) // 3] = 0
    return mask


def _split_cls(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm adds the position of CLS into its token: takes them apart again, by the side file or as token + 0."""
    tensors = dict(tensors)
    token, position = tensors.pop(BESIDE + "cls_token", None), tensors.pop(BESIDE + "position_of_cls", None)
    merged, grid = tensors.get("cls_token"), tensors.get("pos_embed")
    if merged is None or grid is None or grid.ndim != 3 or merged.shape != grid[:, :1].shape:
        return tensors
    if token is None or position is None or not torch.equal(token + position, merged):
        token, position = merged, torch.zeros_like(merged)
    return tensors | {"cls_token": token, "pos_embed": torch.cat([position, grid], dim=1)}


def write_official(weights: Weights, path: Path) -> None:
    """One `.pth` file of torch with only the tensors."""
    spelling = OFFICIAL_V3 if weights.config.positions == "rope" else OFFICIAL_V2
    _require_layout_fits(weights, "official", spelling, path)
    written, _ = split(weights, spelling)
    torch.save({name: tensor.clone() for name, tensor in written.items()}, path)


def write_folder(weights: Weights, path: Path, layout: Literal["hf", "timm"]) -> None:
    """A folder with model.safetensors, the configuration files of `layout`, and our side file."""
    from tenfold.vision.backbones.hub_files import hf_files, timm_files, write_json

    version = 3 if weights.config.positions == "rope" else 2
    spelling = next(
        s
        for s in SPELLINGS
        if s.layout == layout
        and s.version == version
        and (not s.merged_cls or weights.config.registers > 0)
        and not s.in_memory
    )
    _require_layout_fits(weights, layout, spelling, path)
    theta = theta_of(weights.state["rope.periods"], path) if version == 3 else RELEASED_THETA
    if layout == "timm" and theta != RELEASED_THETA:
        raise WeightsError(
            f"the timm layout does not store rope_theta, and this model has {theta}. Use --to hf, or own."
        )
    written, side = split(weights, spelling)
    path.mkdir()
    write_safetensors(path / "model.safetensors", written)
    write_safetensors(path / SIDE, side, own_metadata("vit", weights.config))
    files: dict[str, Any] = hf_files(weights.config, theta) if layout == "hf" else timm_files(weights.config)
    for name, content in files.items():
        write_json(path / name, content)


def _require_layout_fits(weights: Weights, layout: str, spelling: Spelling, path: Path) -> None:
    config: VitConfig = weights.config
    if config.stem != "patch" or config.layer_scale is None or config.ffn == "relu2":
        what = "a convolutional stem" if config.stem != "patch" else "no LayerScale"
        what = "Squared-ReLU networks" if config.ffn == "relu2" else what
        raise WeightsError(f"this model has {what}; the {layout} layout cannot hold it. Use --to own.")
    k_biases = {n: t.chunk(3)[1] for n, t in weights.state.items() if n.endswith("qkv.bias")}
    if layout == "timm" and spelling.version == 3 and not config.mask_k_bias:
        lost = [name for name, bias in k_biases.items() if bias.count_nonzero()]
        if lost:
            raise WeightsError(
                f"timm's names have no bias of k, and it is not zero in {', '.join(lost[:4])}. Use --to hf."
            )
    if layout == "hf":
        return  # its configuration file says all of it
    name = path.name if layout == "official" else ""
    again = infer(split(weights, spelling)[0], spelling, Source(path.with_name(name or "model"), {}))
    ignored = () if layout == "official" else ("mean", "std", "local_cls_norm", "mask_k_bias")
    for field in DECIDED:
        if field not in ignored and getattr(again, field) != getattr(config, field):
            hint = (
                ' Put "sat493m" into the file name.'
                if field in ("mean", "std") and config.mean == SATELLITE_MEAN
                else ""
            )
            raise WeightsError(
                f"the {layout} layout does not store {field}: it would be read back as {getattr(again, field)}, and "
                f"this model has {getattr(config, field)}.{hint} Use --to own."
            )


def _layout(name: str, write: Callable[[Weights, Path], None]) -> list[Layout]:
    def reader(spelling: Spelling) -> Layout:
        return Layout(name, spelling.recognises, lambda source: read(source, spelling), write)

    return [reader(spelling) for spelling in SPELLINGS if spelling.layout == name]


FAMILY = Family(
    "vit",
    VitConfig,
    VisionTransformer,
    (
        *_layout("hf", lambda weights, path: write_folder(weights, path, "hf")),
        *_layout("timm", lambda weights, path: write_folder(weights, path, "timm")),
        *_layout("official", write_official),
    ),
)
