"""The vision transformer of DINOv2 and DINOv3: one class, every released size a configuration.

    model = VisionTransformer(VIT_CONFIGS["dinov3-s"])
    out = model(images)                          images (B, 3, H, W), normalised; H and W multiples of the patch
    out.cls_token, out.register_tokens, out.patch_tokens      (B, D) (B, R, D) (B, h, w, D), after the final norm

DINOv2: arXiv 2304.07193 (learned positions). DINOv3: arXiv 2508.10104 (axial RoPE only on patch tokens, registers).
Sequence: [CLS, registers, patches].

    B batch   H W image sides   h w patch grid   R registers   P = h w   D width
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tenfold.config import require
from tenfold.errors import UsageError
from tenfold.inference.prepared import HalfBlock, PackedBlock
from tenfold.kernels.linear import Workspace
from tenfold.kernels.machine import bf16_refusal
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.embed import ConvStem, PatchEmbed, resize_positions
from tenfold.nn.ffn import GeluFFN, SquaredReLUFFN, SwiGLUFFN
from tenfold.nn.memory import MemoryLayer, insert_memory
from tenfold.nn.rope import AxialRope, Rotation
from tenfold.nn.sparse24 import Sparsity24
from tenfold.vision.backbones.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    BackboneConfig,
    VisionOutput,
    fit_to_patches,
)


@dataclass(frozen=True)
class VitConfig(BackboneConfig):
    """Sizes and switches. `positions`: learned (antialias | offset resize rule, see nn/embed.py) or rope.

    `rope_rescale` r draws one factor for both axes, log-uniform in [1/r, r], for each block and crop group while
    training. `rope_periods`: those in the file (released ones are rounded to bf16), or computed again in fp32 ("exact", as
    Hugging Face and timm do). `local_cls_norm` gives local crops their own final norm for CLS and registers while training.
    """

    kind: ClassVar[str] = "vit"
    takes_masks: ClassVar[bool] = True

    dim: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 16
    channels: int = 3
    ffn: Literal["gelu", "swiglu", "relu2"] = "gelu"
    sparsity: Literal["none", "2:4"] = "none"  # 2:4: may train sparse (nn/sparse24.py); needs relu2
    hidden: int | None = None  # width of the feed-forward network; None is 4 * dim
    registers: int = 0
    positions: Literal["rope", "antialias", "offset"] = "rope"
    grid: int = 37  # side of the learned position grid
    stem: Literal["patch", "conv"] = "patch"
    norm_eps: float = 1e-6
    layer_scale: float | None = 1e-5
    qkv_bias: bool = True
    mask_k_bias: bool = False
    drop_path: float = 0.0
    rope_rescale: float | None = None
    rope_periods: Literal["file", "exact"] = "file"
    local_cls_norm: bool = False
    fan_in_init: bool = False  # std min(0.05, fan_in ** -0.5) instead of 0.02
    memory_layers: tuple[int, ...] = ()  # blocks (0-based) whose feed-forward network is a lookup in one shared table
    memory_side: int = 64  # sub-keys of each half; the table has their square in slots
    feature: Literal["cls", "patch-mean"] = "cls"  # what is taken for the whole image
    image_size: int = 224  # side in pixels at which the weights are evaluated by default
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "patch_size", "channels", "grid", "image_size"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "a whole number >= 1")
        require(self.dim % self.heads == 0, "model.heads", self.heads, f"a divisor of model.dim = {self.dim}")
        require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "a share in [0, 1)")
        sparse = "none, or 2:4 with model.ffn relu2"
        require(self.sparsity == "none" or self.ffn == "relu2", "model.sparsity", self.sparsity, sparse)
        require(self.hidden is None or self.hidden >= 1, "model.hidden", self.hidden, "None or a whole number >= 1")
        require(0 < self.norm_eps < 1, "model.norm_eps", self.norm_eps, "a number between 0 and 1")
        scale, rescale = self.layer_scale, self.rope_rescale
        require(scale is None or scale > 0, "model.layer_scale", scale, "None or a number above 0")
        require(rescale is None or rescale >= 1, "model.rope_rescale", rescale, "None or a factor >= 1")
        require(all(value > 0 for value in self.std), "model.std", self.std, "three numbers above 0")
        deep = all(0 <= i < self.depth for i in self.memory_layers)
        require(deep, "model.memory_layers", self.memory_layers, f"blocks from 0 to {self.depth - 1}")
        require(self.memory_side >= 1, "model.memory_side", self.memory_side, "a whole number >= 1")
        require(self.registers >= 0, "model.registers", self.registers, "a whole number >= 0")
        require(
            self.stem == "patch" or self.patch_size == 8, "model.patch_size", self.patch_size, "8 with the conv stem"
        )
        if self.positions == "rope":
            require(
                self.dim // self.heads % 4 == 0, "model.dim", self.dim, "4 * heads * a whole number, for axial RoPE"
            )

    def build(self) -> VisionTransformer:
        """The network, with initial weights."""
        return VisionTransformer(self)

    def layer_of(self, name: str) -> tuple[int, int] | None:
        """Blocks count from the input; the embeddings are layer 0, and the final norm and heads take the full rate."""
        words, layers = name.split("."), self.depth + 1
        if "blocks" in words:
            return int(words[words.index("blocks") + 1]) + 1, layers
        embeds = any(part in name for part in ("patch_embed", "pos_embed", "_token"))
        return (0, layers) if embeds else None

    def student_of(self, teacher: BackboneConfig) -> VitConfig:
        """This size with the patches and pixel statistics of `teacher`, without stochastic depth."""
        if self.stem == "conv" and teacher.patch_size != self.patch_size:
            raise UsageError(f"it has patches of {self.patch_size} pixels, the teacher of {teacher.patch_size}.")
        return replace(
            self,
            patch_size=teacher.patch_size,
            drop_path=0.0,
            mean=teacher.mean,
            std=teacher.std,
            feature=teacher.feature,
            image_size=teacher.image_size,
        )


def _feed_forward(config: VitConfig, hidden: int) -> nn.Module:
    if config.ffn == "relu2":
        return SquaredReLUFFN(config.dim, hidden, sparsity=Sparsity24() if config.sparsity == "2:4" else None)
    return (GeluFFN if config.ffn == "gelu" else SwiGLUFFN)(config.dim, hidden)


def _v2(dim: int, depth: int, heads: int, registers: int = 0, hidden: int | None = None) -> VitConfig:
    return VitConfig(
        dim,
        depth,
        heads,
        patch_size=14,
        registers=registers,
        ffn="swiglu" if hidden else "gelu",
        hidden=hidden,
        positions="antialias" if registers else "offset",
    )


def _v3(dim: int, depth: int, heads: int, hidden: int | None = None, qkv_bias: bool = True) -> VitConfig:
    return VitConfig(
        dim,
        depth,
        heads,
        registers=4,
        ffn="swiglu" if hidden else "gelu",
        hidden=hidden,
        norm_eps=1e-5,
        qkv_bias=qkv_bias,
        mask_k_bias=qkv_bias,
        rope_rescale=2.0,
        local_cls_norm=not qkv_bias,
    )


VIT_CONFIGS: dict[str, VitConfig] = {
    "dinov2-s": _v2(384, 12, 6),
    "dinov2-b": _v2(768, 12, 12),
    "dinov2-l": _v2(1024, 24, 16),
    "dinov2-g": _v2(1536, 40, 24, hidden=4096),
    "dinov2-s-reg": _v2(384, 12, 6, registers=4),
    "dinov2-b-reg": _v2(768, 12, 12, registers=4),
    "dinov2-l-reg": _v2(1024, 24, 16, registers=4),
    "dinov2-g-reg": _v2(1536, 40, 24, registers=4, hidden=4096),
    "dinov3-s": _v3(384, 12, 6),
    "dinov3-s+": _v3(384, 12, 6, hidden=1536),
    "dinov3-b": _v3(768, 12, 12),
    "dinov3-l": _v3(1024, 24, 16),
    "dinov3-l+": _v3(1024, 24, 16, hidden=4096),
    "dinov3-h+": _v3(1280, 32, 20, hidden=5120),
    "dinov3-7b": _v3(4096, 40, 32, hidden=8192, qkv_bias=False),
    "tiny": VitConfig(192, 12, 3, registers=4, rope_rescale=2.0),
    "mini": VitConfig(
        192,
        4,
        3,
        patch_size=8,
        positions="antialias",
        grid=6,
        stem="conv",
        layer_scale=None,
        fan_in_init=True,
        feature="patch-mean",
        image_size=48,
    ),
}


class VisionTransformer(Backbone):
    """Patch embedding, transformer blocks and final norm over [CLS, registers, patches], in any released size."""

    config: VitConfig

    def __init__(self, config: VitConfig, fit: Literal["resize", "strict"] = "resize") -> None:
        super().__init__(config, fit)
        c = config
        if c.stem == "patch":
            self.patch_embed: nn.Module = PatchEmbed(c.channels, c.dim, c.patch_size)
        else:
            self.patch_embed = ConvStem(c.channels, c.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, c.dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, c.registers, c.dim)) if c.registers else None
        learned = c.positions != "rope"
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + c.grid**2, c.dim)) if learned else None
        self.rope = None if learned else AxialRope(c.dim // c.heads, recompute=c.rope_periods == "exact")
        block = BlockConfig(
            AttentionConfig(c.dim, c.heads, qkv_bias=c.qkv_bias, mask_k_bias=c.mask_k_bias),
            norm_eps=c.norm_eps,
            layer_scale=c.layer_scale,
            drop_path=c.drop_path,
        )
        hidden = c.hidden or 4 * c.dim
        self.blocks = nn.ModuleList(Block(block, _feed_forward(c, hidden)) for _ in range(c.depth))
        if c.memory_layers:
            insert_memory(self, c.memory_layers, c.memory_side, heads=4, top_k=min(16, c.memory_side), key_dim=32)
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps)
        self.local_cls_norm = nn.LayerNorm(c.dim, eps=c.norm_eps) if c.local_cls_norm else None
        self._initialize()

    def _initialize(self) -> None:
        for token in (self.cls_token, self.register_tokens, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = min(0.05, module.in_features**-0.5) if self.config.fan_in_init else 0.02
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, MemoryLayer):
                module.reset_parameters()

    @property
    def prefix(self) -> int:
        """Tokens before the patches: CLS and registers."""
        return 1 + self.config.registers

    def forward(
        self, images: Float[Tensor, "b c height width"], masks: Bool[Tensor, "b p"] | None = None
    ) -> VisionOutput:
        """`masks` is True where a patch is replaced by the mask token."""
        x, grid = self.tokens(images, masks)
        for block, rotation in zip(self.blocks, self._rotations(grid)):
            x = block(x, rotation)
        return self.output(x, grid)

    def for_inference(self, dtype: torch.dtype = torch.float32) -> VisionTransformer:
        """A copy that only computes features, faster: same values to rounding. One call at a time may use it.

        dtype: float32 or bfloat16, of the weights. On a CPU without bf16 units bf16 weights are widened once and
        multiplied in fp32 (`kernels.machine.bf16_refusal` says so), and features come in fp32. Training, packed crops and
        saving need the model itself.
        """
        require(dtype in (torch.float32, torch.bfloat16), "dtype", dtype, "torch.float32 or torch.bfloat16")
        model = copy.deepcopy(self).eval().requires_grad_(False)
        periods = None if model.rope is None else model.rope.periods.clone()
        model = model.to(dtype)
        if model.rope is not None and periods is not None:
            model.rope.periods = periods  # they are exact or rounded as released, whatever the weights are
        if self.config.ffn == "relu2":  # its rows are not reordered: gather mode has a use for them as they are
            return model
        if self.cls_token.device.type == "cpu" and (dtype == torch.float32 or bf16_refusal()):
            model, workspace = model.float(), Workspace()
            model.blocks = nn.ModuleList(
                block if isinstance(block.ffn, MemoryLayer) else PackedBlock(block, workspace)  # type: ignore[arg-type]
                for block in model.blocks
            )
        elif self.cls_token.device.type == "cpu":
            model.blocks = nn.ModuleList(
                own if isinstance(block.ffn, MemoryLayer) else HalfBlock(block)  # type: ignore[arg-type]
                for own, block in zip(model.blocks, self.blocks)
            )
        return model

    def forward_crops(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None
    ) -> list[VisionOutput]:
        """Crops of several sizes in one pass, each (B_i, 3, H_i, W_i); the first group is the global one."""
        pairs = [self.tokens(image, mask) for image, mask in zip(images, masks or [None] * len(images))]
        xs, grids = [x for x, _ in pairs], [grid for _, grid in pairs]
        for block in self.blocks:
            xs = block(xs, [self.rotation(grid) for grid in grids])
        return [self.output(x, grid, local=i > 0) for i, (x, grid) in enumerate(zip(xs, grids))]

    def train_without_masks(self) -> None:
        """The mask token takes part in no step then."""
        self.mask_token.requires_grad_(False)

    def get_intermediate_layers(
        self,
        images: Float[Tensor, "b c height width"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], ...]:
        """Patch tokens after the last `n` blocks (or after the blocks named by index), each (B, P, D), or (B, D, h, w)
        with `reshape`; with `return_class_token` pairs of them and the (B, D) CLS token."""
        depth = len(self.blocks)
        wanted = list(range(depth - n, depth)) if isinstance(n, int) else [i % depth for i in n]
        if isinstance(n, int):
            require(1 <= n <= depth, "n", n, f"1 to {depth} blocks")
        x, grid = self.tokens(images, None)
        layers = {}
        for i, (block, rotation) in enumerate(zip(self.blocks, self._rotations(grid))):
            x = block(x, rotation)
            if i in wanted:  # a packed block overwrites its input
                layers[i] = self.norm(x) if norm else x.clone()
        results = []
        for i in wanted:
            patches, cls = layers[i][:, self.prefix :], layers[i][:, 0]
            if reshape:
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            results.append((patches, cls) if return_class_token else patches)
        return tuple(results)

    def tokens(self, images: Tensor, masks: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        """(B, prefix + P, D) and the grid (h, w)."""
        p = self.config.patch_size
        images = fit_to_patches(images, p, self.fit).to(self.cls_token.dtype)
        grid = (images.shape[2] // p, images.shape[3] // p)
        x = self.patch_embed(images)
        if masks is not None:
            if masks.shape != x.shape[:2]:
                raise UsageError(
                    f"masks have the shape {tuple(masks.shape)}; these images have {grid[0]} x {grid[1]} patches, so "
                    f"({x.shape[0]}, {x.shape[1]}) is needed."
                )
            x = torch.where(masks[..., None], self.mask_token.to(x.dtype), x)
        cls = self.cls_token
        if self.pos_embed is not None:
            side, rule = self.config.grid, self.config.positions
            learned = self.pos_embed[0, 1:].unflatten(0, (side, side))
            assert rule != "rope"
            x = x + resize_positions(learned, *grid, rule).flatten(0, 1).to(x.dtype)
            cls = cls + self.pos_embed[:, :1]
        parts = [cls.expand(len(x), -1, -1).to(x.dtype)]
        if self.register_tokens is not None:
            parts.append(self.register_tokens.expand(len(x), -1, -1).to(x.dtype))
        return torch.cat([*parts, x], dim=1), grid

    def rotation(self, grid: tuple[int, int]) -> Rotation | None:
        """The rotation of one block for one group of crops; rescaled at random while training."""
        if self.rope is None:
            return None
        rescale = 1.0
        if self.training and self.config.rope_rescale:
            limit = math.log(self.config.rope_rescale)
            rescale = math.exp(float(torch.empty(()).uniform_(-limit, limit)))
        return self.rope(*grid, rescale)

    def _rotations(self, grid: tuple[int, int]) -> list[Rotation | None]:
        """One per block: drawn for each in training, the same for all otherwise."""
        if self.training:
            return [self.rotation(grid) for _ in self.blocks]
        return [self.rotation(grid)] * len(self.blocks)

    def output(self, x: Tensor, grid: tuple[int, int], local: bool = False) -> VisionOutput:
        y = self.norm(x)
        head = y[:, : self.prefix]
        if local and self.training and self.local_cls_norm is not None:
            head = self.local_cls_norm(x[:, : self.prefix])
        return VisionOutput(head[:, 0], head[:, 1:], y[:, self.prefix :].unflatten(1, grid))
