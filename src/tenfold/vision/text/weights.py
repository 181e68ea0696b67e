"""Weights of text alignment: dino.txt's published file both ways, and sentence encoders in BERT's names.

    official (text-aligned)     vision head, text tower and scale; the backbone is a file of its own
    hf (sentence-encoder)       Hugging Face folder of a BERT; its pooler, which sentence encoders do not use, is left out

Round trips keep every bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tenfold.data.tensors import write_safetensors
from tenfold.errors import WeightsError
from tenfold.export.keymap import Link, Part, read_links, write_links
from tenfold.export.reading import Source
from tenfold.export.weights import Family, Layout, Weights, config_of
from tenfold.vision.text.aligned import AlignedConfig, TextAligned
from tenfold.vision.text.towers import SentenceEncoder, TextConfig

VISION, TEXT = "visual_model.head.", "text_model.backbone."
# Our module or parameter within a block -> theirs (several: joined along the rows).
VISION_BLOCK = {
    "norm1": ("norm1",),
    "attention.qkv": ("attn.qkv",),
    "attention.out": ("attn.proj",),
    "scale1": ("ls1.gamma",),
    "norm2": ("norm2",),
    "ffn.gate_up": ("mlp.w1", "mlp.w2"),
    "ffn.down": ("mlp.w3",),
    "scale2": ("ls2.gamma",),
}
TEXT_BLOCK = {
    "norm1": ("attention_norm",),
    "attention.qkv": ("attention.qkv",),
    "attention.out": ("attention.proj",),
    "norm2": ("ffn_norm",),
    "ffn.up": ("feed_forward.fc1",),
    "ffn.down": ("feed_forward.fc2",),
}
OTHERS = {
    "vision_head.norm": VISION + "ln_final",
    "vision_head.projection": VISION + "linear_projection",
    "text_tower.words": TEXT + "token_embedding",
    "text_tower.positions": TEXT + "positional_embedding",
    "text_tower.norm": TEXT + "ln_final",
    "text_projection": "text_model.head.linear_projection",
    "logit_scale": "logit_scale",
}
BERT_BLOCK = {
    "attention.qkv": tuple(f"attention.self.{part}" for part in ("query", "key", "value")),
    "attention.out": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "ffn.up": ("intermediate.dense",),
    "ffn.down": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}
BERT = {
    "words.weight": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "segments": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
UNUSED = re.compile(r"^(pooler\.|embeddings\.position_ids$)")


def dinotxt_links(config: AlignedConfig) -> list[Link]:
    """Where each of our parameters stands in a dino.txt file."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in TextAligned(config).state_dict().items()}
    result = []
    for own, shape in shapes.items():
        if own.startswith("backbone."):
            continue
        side, table = (VISION, VISION_BLOCK) if own.startswith("vision_head.") else (TEXT, TEXT_BLOCK)
        result.append(
            _block_link(own, shape, r"(?:vision_head|text_tower)\.blocks\.", side + "blocks.", table)
            or Link(own, shape, Part(_other(own), shape))
        )
    return result


def _other(own: str) -> str:
    if own in OTHERS:
        return OTHERS[own]
    stem, _, leaf = own.rpartition(".")
    return f"{OTHERS[stem]}.{leaf}"


def _block_link(
    own: str, shape: tuple[int, ...], ours: str, theirs: str, table: Mapping[str, tuple[str, ...]]
) -> Link | None:
    """The link of a parameter inside a block; None when it is in none."""
    found = re.match(ours + r"(\d+)\.(.*)", own)
    if not found:
        return None
    number, rest = found.groups()
    stem, leaf = (rest, "") if rest in table else rest.rpartition(".")[::2]
    names = table[stem]
    rows = (shape[0] // len(names), *shape[1:])
    return Link(own, shape, *(Part(".".join(filter(None, (theirs + number, name, leaf))), rows) for name in names))


def read_dinotxt(source: Source) -> Weights:
    tensors = dict(source.tensors)
    config = config_of(source, lambda: infer_dinotxt(tensors, source.path), "dino.txt")
    if "logit_scale" in tensors and tensors["logit_scale"].ndim == 0:  # as earlier versions of tenfold wrote it
        tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    return Weights(config, read_links(dinotxt_links(config), tensors, source.path))


def infer_dinotxt(tensors: Mapping[str, Tensor], where: object) -> AlignedConfig:
    """Sizes from the shapes; heads are 64 wide in both towers."""

    def size(name: str, axis: int) -> int:
        if name not in tensors or tensors[name].ndim <= axis:
            raise WeightsError(f"{where}: {name} is missing or of another shape, and the sizes follow from it.")
        return tensors[name].shape[axis]

    def depth(prefix: str) -> int:
        numbers = [int(m[1]) for m in (re.match(re.escape(prefix) + r"blocks\.(\d+)\.", name) for name in tensors) if m]
        return max(numbers, default=-1) + 1

    dim, text_dim = size(VISION + "ln_final.weight", 0), size(TEXT + "ln_final.weight", 0)
    width = size("text_model.head.linear_projection.weight", 0)
    text = TextConfig(
        "clip",
        text_dim,
        depth(TEXT),
        max(1, text_dim // 64),
        vocabulary=size(TEXT + "token_embedding.weight", 0),
        positions=size(TEXT + "positional_embedding", 0),
    )
    embed = width if width != 2 * dim else None
    return AlignedConfig(dim, max(1, dim // 64), depth(VISION), embed, text=text)


def write_dinotxt(weights: Weights, path: Path) -> None:
    """One `.pth` file of torch. The backbone is not in it, as in the published one."""
    config: AlignedConfig = weights.config
    if config.text.kind != "clip":
        raise WeightsError("this model's text tower is a sentence encoder; dino.txt files hold CLIP's. Use --to own.")
    for what, have, inferred in (
        ("heads of the vision head", config.heads, max(1, config.dim // 64)),
        ("heads of the text tower", config.text.heads, max(1, config.text.dim // 64)),
        ("norm_eps", config.norm_eps, AlignedConfig.norm_eps),
    ):
        if have != inferred:
            raise WeightsError(f"the official layout does not store the {what}: {inferred} would be read, not {have}.")
    state = {name: tensor for name, tensor in weights.state.items() if not name.startswith("backbone.")}
    written = write_links(dinotxt_links(config), state)
    torch.save({name: tensor.clone() for name, tensor in written.items()}, path)


def bert_links(config: TextConfig) -> list[Link]:
    """Where each parameter of a sentence encoder stands in a BERT."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in SentenceEncoder(config).state_dict().items()}
    return [
        _block_link(own, shape, r"blocks\.", "encoder.layer.", BERT_BLOCK) or Link(own, shape, Part(BERT[own], shape))
        for own, shape in shapes.items()
    ]


def read_bert(source: Source) -> Weights:
    tensors = {name.removeprefix("bert."): tensor for name, tensor in source.tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not UNUSED.match(name)}
    words, positions = (tensors.get(BERT[name]) for name in ("words.weight", "positions"))
    if words is None or positions is None or words.ndim != 2 or positions.ndim != 2:
        raise WeightsError(f"{source.path}: no word and position embeddings in it, from which the sizes follow.")
    numbers = [int(m[1]) for m in (re.match(r"encoder\.layer\.(\d+)\.", name) for name in tensors) if m]
    dim = words.shape[1]
    config = TextConfig(
        "minilm",
        dim,
        max(numbers, default=0) + 1,
        source.config.get("num_attention_heads") or max(1, dim // 32),
        vocabulary=words.shape[0],
        positions=positions.shape[0],
        norm_eps=source.config.get("layer_norm_eps") or 1e-12,
    )
    return Weights(config, read_links(bert_links(config), tensors, source.path))


def write_bert(weights: Weights, path: Path) -> None:
    """A folder that `transformers.AutoModel.from_pretrained(..., add_pooling_layer=False)` loads."""
    c: TextConfig = weights.config
    path.mkdir()
    write_safetensors(path / "model.safetensors", write_links(bert_links(c), weights.state))
    model = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": c.dim,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": 4 * c.dim,
        "hidden_act": "gelu",
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.positions,
        "type_vocab_size": 2,
        "layer_norm_eps": c.norm_eps,
        "pad_token_id": 0,
    }
    (path / "config.json").write_text(json.dumps(model, indent=2) + "\n")


def _has(source: Source, *names: str) -> bool:
    return all(any(key.startswith(name) for key in source.tensors) for name in names)


ALIGNED = Family(
    "text-aligned",
    AlignedConfig,
    TextAligned,
    (Layout("official", lambda s: _has(s, "visual_model.", "text_model."), read_dinotxt, write_dinotxt),),
)


def _is_bert(source: Source) -> bool:
    found = [name.removeprefix("bert.") for name in source.tensors]
    return any(re.match(r"encoder\.layer\.\d+\.attention\.self\.query\.weight$", name) for name in found)


SENTENCE = Family("sentence-encoder", TextConfig, SentenceEncoder, (Layout("hf", _is_bert, read_bert, write_bert),))
