"""Image-text alignment of dino.txt: a frozen backbone, a small head over all its tokens, and a text tower.

dino.txt: arXiv 2412.16334; DINOv3: arXiv 2508.10104, section 5.3.

    model = tenfold.load("runs/dinov3-text")                    or a dino.txt file, then model.attach(tenfold.load(BACKBONE))
    x, t = model.encode_image(images), model.encode_text(["a photo of a cat", "a photo of a dog"])
    (x @ t.T).argmax(1)                                         unit vectors (B, E) and (T, E)

    images ──► backbone (frozen) ──► [CLS, registers, patches] ──► 2 blocks, LayerNorm ──► [CLS ; mean patch]
    texts  ──► tower ──► linear

    B images   T texts   D width of the backbone   E = 2 D width of the common space   h w patch grid
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.config import require
from tenfold.errors import UsageError
from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import SwiGLUFFN
from tenfold.vision.backbones.backbone import VisionOutput
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.text.tokens import tokenizer
from tenfold.vision.text.towers import TextConfig, build_text_tower

LARGEST_SCALE = math.log(100)


@dataclass(frozen=True)
class AlignedConfig:
    """`dim` and `heads` of the vision head are the backbone's; `backbone` is None in files that come without it."""

    dim: int = 1024
    heads: int = 16
    blocks: int = 2
    embed: int | None = None  # width of the common space; None is 2 * dim, which needs no projection of image tokens
    drop_path: float = 0.3
    norm_eps: float = 1e-5
    text: TextConfig = field(default_factory=TextConfig)
    backbone: VitConfig | None = None

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "blocks"):
            require(getattr(self, name) >= 1, f"align.{name}", getattr(self, name), "a whole number >= 1")
        require(self.dim % self.heads == 0, "align.heads", self.heads, f"a divisor of align.dim = {self.dim}")
        even = self.embed is None or (self.embed >= 2 and self.embed % 2 == 0)
        require(even, "align.embed", self.embed, "None or an even whole number (CLS and mean patch take half each)")
        require(0 < self.norm_eps < 1, "align.norm_eps", self.norm_eps, "a number between 0 and 1")
        require(0 <= self.drop_path < 1, "align.drop_path", self.drop_path, "a share in [0, 1)")
        own = self.backbone
        require(own is None or own.dim == self.dim, "align.dim", self.dim, f"the backbone's {own.dim if own else 0}")

    @property
    def width(self) -> int:
        """Of the common space."""
        return self.embed or 2 * self.dim

    @property
    def hidden(self) -> int:
        """Of the head's SwiGLU: two thirds of 4 * dim, rounded up to 64."""
        return -(-int(self.dim * 4 * 2 / 3) // 64) * 64


class VisionHead(nn.Module):
    """(B, N, D) tokens of a backbone -> (B, N, E / 2): pre-norm blocks without positions, LayerNorm, projection."""

    def __init__(self, config: AlignedConfig) -> None:
        super().__init__()
        c = config
        block = BlockConfig(
            AttentionConfig(c.dim, c.heads, qkv_bias=False),
            norm_eps=c.norm_eps,
            layer_scale=1e-5,
            drop_path=c.drop_path,
        )
        self.blocks = nn.ModuleList(Block(block, SwiGLUFFN(c.dim, c.hidden)) for _ in range(c.blocks))
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps)
        half = c.width // 2
        self.projection = nn.Linear(c.dim, half, bias=False) if half != c.dim else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return tokens if self.projection is None else self.projection(tokens)


class TextAligned(nn.Module):
    """A frozen backbone, the head over its tokens, a text tower, and the scale of their cosines."""

    def __init__(self, config: AlignedConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = None if config.backbone is None else VisionTransformer(config.backbone)
        self.vision_head = VisionHead(config)
        self.text_tower = build_text_tower(config.text)
        self.text_projection = nn.Linear(config.text.dim, config.width, bias=False)
        nn.init.normal_(self.text_projection.weight, std=config.text.dim**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # natural logarithm of the scale

    def attach(self, backbone: nn.Module) -> TextAligned:
        """Gives the model its backbone, where the file had none (dino.txt files do not). Returns the model."""
        if not isinstance(backbone, VisionTransformer) or backbone.config.dim != self.config.dim:
            width = f" of width {backbone.config.dim}" if isinstance(backbone, VisionTransformer) else ""
            raise UsageError(
                f"a {type(backbone).__name__}{width} is not the backbone of this head: a vision transformer of width "
                f"{self.config.dim} is."
            )
        self.backbone = backbone
        return self

    def image_tokens(self, images: Float[Tensor, "b c height width"]) -> VisionOutput:
        """What the frozen backbone says of normalised images."""
        if self.backbone is None:
            raise UsageError(
                f"these weights come without their backbone, a vision transformer of width {self.config.dim}: give it "
                "(--backbone, or model.attach(tenfold.load(BACKBONE)))."
            )
        return self.backbone(images)

    def aligned_tokens(self, output: VisionOutput) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b h w e"]]:
        """CLS (B, E/2) and patch tokens (B, h, w, E/2) after the head."""
        patches = output.patch_tokens
        tokens = torch.cat([output.cls_token[:, None], output.register_tokens, patches.flatten(1, 2)], dim=1)
        y = self.vision_head(tokens)
        return y[:, 0], y[:, -patches.shape[1] * patches.shape[2] :].unflatten(1, patches.shape[1:3])

    def pooled(self, output: VisionOutput) -> Float[Tensor, "b e"]:
        """[CLS ; mean patch], not normalised."""
        cls, patches = self.aligned_tokens(output)
        return torch.cat([cls, patches.flatten(1, 2).mean(1)], dim=1)

    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Float[Tensor, "t e"]:
        """Of token ids, not normalised."""
        return self.text_projection(self.text_tower(ids, mask))

    def encode_image(self, images: Float[Tensor, "b c height width"]) -> Float[Tensor, "b e"]:
        """Unit vectors of normalised images."""
        return F.normalize(self.pooled(self.image_tokens(images)), dim=1)

    def encode_text(self, texts: Sequence[str], batch: int = 256) -> Float[Tensor, "t e"]:
        """Unit vectors of sentences."""
        tokens = tokenizer(self.config.text.kind)
        device = self.logit_scale.device
        parts = []
        for start in range(0, len(texts), batch):
            ids, mask = tokens(texts[start : start + batch])
            parts.append(F.normalize(self.text_features(ids.to(device), mask.to(device)), dim=1))
        return torch.cat(parts)

    def encode_patches(self, images: Float[Tensor, "b c height width"]) -> Float[Tensor, "b h w e"]:
        """Unit vectors (B, h, w, E/2), to compare with the second half of a text's vector, which is the patches' side."""
        return F.normalize(self.aligned_tokens(self.image_tokens(images))[1], dim=-1)
