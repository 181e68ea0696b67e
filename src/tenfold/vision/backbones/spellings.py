"""How each published layout spells the parameters of a vision transformer: data, and the rules to recognise it.

`Spelling.names("blocks.3.attention.qkv.weight")` gives the names of the parts that make our tensor in that layout, or
nothing when the layout has no place for it. `SPELLINGS` is in the order in which a file is tried.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from tenfold.export.reading import Source

Names = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Spelling:
    """One layout of one generation.

    block: the prefix of block {}.   stems: our module or parameter -> theirs (several: joined along the rows).
    down: the last projection of the feed-forward network, plain and gated.
    signature: a file has this layout when some key matches it and none matches `without`.
    k_bias: the layout stores the bias of k always, only when it is not masked, or never.
    merged_cls: the position of CLS is already in its token.   wide_mask_token: stored as (1, 1, D).
    renames: spellings of the same layout that are brought to this one before anything else, as regular expressions.
    """

    layout: Literal["official", "hf", "timm"]
    version: Literal[2, 3]
    block: str
    stems: Names
    down: tuple[str, str]
    signature: str
    without: str = "$^"
    k_bias: Literal["always", "unmasked", "never"] = "always"
    merged_cls: bool = False
    wide_mask_token: bool = False
    in_memory: bool = False
    renames: tuple[tuple[str, str], ...] = ()
    ignored: str = field(default="$^")  # entries of a training checkpoint that are not part of the backbone

    def recognises(self, source: Source) -> bool:
        names = list(self.normalized(source.tensors))
        return any(re.search(self.signature, n) for n in names) and not any(re.search(self.without, n) for n in names)

    def normalized(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        result = {}
        for name, tensor in tensors.items():
            if re.search(self.ignored, name):
                continue
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            result[name] = tensor
        return result

    def names(self, own: str, gated: bool = False) -> tuple[str, ...]:
        found = re.match(r"blocks\.(\d+)\.(.*)", own)
        prefix, rest = (self.block.format(found[1]), found[2]) if found else ("", own)
        if rest in self.stems:
            return tuple(prefix + name for name in self.stems[rest])
        stem, _, leaf = rest.rpartition(".")
        stems = (self.down[gated],) if stem == "ffn.down" else self.stems.get(stem, ())
        return tuple(f"{prefix}{name}.{leaf}" for name in stems)


def _same(*names: str) -> Names:
    return {name: (name,) for name in names}


_TOKENS = _same("cls_token", "mask_token", "pos_embed")
_NORMS = _same("norm1", "norm2", "norm")
_SCALES: Names = {"scale1": ("ls1.gamma",), "scale2": ("ls2.gamma",)}
_PATCH: Names = {"patch_embed": ("patch_embed.proj",)}
_ATTENTION: Names = {"attention.qkv": ("attn.qkv",), "attention.out": ("attn.proj",)}
_GELU: Names = {"ffn.up": ("mlp.fc1",)}

# A training checkpoint holds heads beside the backbone; block_chunks puts a chunk's number before the block's.
_CHUNKED = ((r"^(module\.)?backbone\.", ""), (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."))
_HEADS = r"^(module\.)?(dino_head|ibot_head)\."

OFFICIAL_V2 = Spelling(
    "official",
    2,
    "blocks.{}.",
    {
        **_TOKENS,
        **_NORMS,
        **_SCALES,
        **_PATCH,
        **_ATTENTION,
        **_GELU,
        "register_tokens": ("register_tokens",),
        "ffn.gate_up": ("mlp.w12",),
    },
    down=("mlp.fc2", "mlp.w3"),
    signature=r"^blocks\.\d+\.ls[12]\.gamma$",
    without=r"^(storage_tokens|rope_embed\.|reg_token)|bias_mask$",
    renames=_CHUNKED,
    ignored=_HEADS,
)
OFFICIAL_V3 = Spelling(
    "official",
    3,
    "blocks.{}.",
    {
        **_TOKENS,
        **_NORMS,
        **_SCALES,
        **_PATCH,
        **_ATTENTION,
        **_GELU,
        "register_tokens": ("storage_tokens",),
        "rope.periods": ("rope_embed.periods",),
        "local_cls_norm": ("local_cls_norm",),
        "ffn.gate_up": ("mlp.w1", "mlp.w2"),
    },
    down=("mlp.fc2", "mlp.w3"),
    signature=r"^(storage_tokens|rope_embed\.periods)$|bias_mask$",
    without=r"^pos_embed$",
    renames=_CHUNKED,
    ignored=_HEADS,
)

_HF_EMBEDDINGS: Names = {
    "cls_token": ("embeddings.cls_token",),
    "mask_token": ("embeddings.mask_token",),
    "register_tokens": ("embeddings.register_tokens",),
    "scale1": ("layer_scale1.lambda1",),
    "scale2": ("layer_scale2.lambda1",),
}
HF_V2 = Spelling(
    "hf",
    2,
    "encoder.layer.{}.",
    {
        **_HF_EMBEDDINGS,
        **_same("norm1", "norm2"),
        **_GELU,
        "norm": ("layernorm",),
        "pos_embed": ("embeddings.position_embeddings",),
        "patch_embed": ("embeddings.patch_embeddings.projection",),
        "attention.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
        "attention.out": ("attention.output.dense",),
        "ffn.gate_up": ("mlp.weights_in",),
    },
    down=("mlp.fc2", "mlp.weights_out"),
    signature=r"^encoder\.layer\.\d+\.layer_scale[12]\.lambda1$",
    without=r"^encoder\.layer\.\d+\.attention\.[qkvo]_proj\.",
)
HF_V2_IN_MEMORY = Spelling(
    "hf",
    2,
    "encoder.layer.{}.",
    {
        **HF_V2.stems,
        "attention.qkv": tuple(f"attention.{part}_proj" for part in "qkv"),
        "attention.out": ("attention.o_proj",),
        "ffn.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    },
    down=("mlp.fc2", "mlp.down_proj"),
    signature=r"^encoder\.layer\.\d+\.attention\.[qkvo]_proj\.",
    in_memory=True,
)
HF_V3 = Spelling(
    "hf",
    3,
    "layer.{}.",
    {
        **_HF_EMBEDDINGS,
        **_NORMS,
        "patch_embed": ("embeddings.patch_embeddings",),
        "attention.qkv": tuple(f"attention.{part}_proj" for part in "qkv"),
        "attention.out": ("attention.o_proj",),
        "ffn.up": ("mlp.up_proj",),
        "ffn.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    },
    down=("mlp.down_proj", "mlp.down_proj"),
    signature=r"^layer\.\d+\.(layer_scale[12]\.lambda1|attention\.[qkvo]_proj\.weight)$",
    k_bias="unmasked",
    wide_mask_token=True,
    renames=((r"^model\.layer\.", "layer."),),
)

TIMM_V3 = Spelling(
    "timm",
    3,
    "blocks.{}.",
    {
        **_same("cls_token"),
        **_NORMS,
        **_PATCH,
        **_GELU,
        "register_tokens": ("reg_token",),
        "attention.qkv": ("attn.qkv",),
        "attention.qkv.bias": ("attn.q_bias", "attn.k_bias", "attn.v_bias"),
        "attention.out": ("attn.proj",),
        "scale1": ("gamma_1",),
        "scale2": ("gamma_2",),
        "ffn.gate_up": ("mlp.fc1_g", "mlp.fc1_x"),
    },
    down=("mlp.fc2", "mlp.fc2"),
    signature=r"^blocks\.\d+\.gamma_[12]$",
    k_bias="never",
)
TIMM_V2 = Spelling(
    "timm",
    2,
    "blocks.{}.",
    {
        **_same("cls_token", "pos_embed"),
        **_NORMS,
        **_SCALES,
        **_PATCH,
        **_ATTENTION,
        **_GELU,
        "ffn.gate_up": ("mlp.fc1",),
    },
    down=("mlp.fc2", "mlp.fc2"),
    signature=r"^blocks\.\d+\.ls[12]\.gamma$",
    without=r"^(mask_token|register_tokens|storage_tokens|reg_token|rope_embed\.)|bias_mask$|^blocks\.\d+\.\d+\.",
)
TIMM_V2_REGISTERS = Spelling(
    "timm",
    2,
    "blocks.{}.",
    {**TIMM_V2.stems, "register_tokens": ("reg_token",)},
    down=("mlp.fc2", "mlp.fc2"),
    signature=r"^reg_token$",
    without=r"^blocks\.\d+\.gamma_[12]$",
    merged_cls=True,
)

SPELLINGS = (HF_V3, HF_V2, HF_V2_IN_MEMORY, TIMM_V3, TIMM_V2_REGISTERS, TIMM_V2, OFFICIAL_V3, OFFICIAL_V2)
