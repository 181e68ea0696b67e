"""Weights of EAGLE drafters: the layouts of EAGLE, SGLang (SpecForge) and speculators (vLLM), both ways, bit for bit.

    drafter = tenfold.load("EAGLE3-LLaMA3.1-Instruct-8B/")                a folder with config.json
    drafter = tenfold.load(folder, aux_layers=(2, 16, 29))                where the file does not say what it reads
    tenfold convert DRAFTER OUT --to sglang | speculators | eagle

Our own layout is SGLang's names with tenfold's metadata in the header. The layouts agree on the tensors and disagree on
what the words in config.json mean (drafting/config.py); what has two meanings and does not say which is refused.

Released loaders skip names that they do not know, so that a wrong key only lowers the acceptance. This one is strict, but
for the verifier's frozen copies that some files carry.

    H width   W draft vocabulary   V vocabulary
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tenfold.data.tensors import write_safetensors
from tenfold.errors import WeightsError
from tenfold.export.keymap import Link, Part, read_links, write_links
from tenfold.export.reading import Source
from tenfold.export.weights import Family, Layout, Weights, load
from tenfold.language.drafting.config import LayoutName, read_config, write_config
from tenfold.language.drafting.drafter import DrafterConfig, EagleDrafter, make_drafter, membership
from tenfold.language.models.gguf_weights import parameter
from tenfold.language.models.llama import Llama
from tenfold.nn.outline import outline

FROZEN_COPIES = ("verifier_norm.weight", "verifier_lm_head.weight")  # of the target, in speculators' files: not used
LAYERS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "norm2": ("post_attention_layernorm",),
    "ffn.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn.down": ("mlp.down_proj",),
    "embed_norm": ("input_layernorm",),
    "hidden_norm": ("hidden_norm",),
    "norm1": ("input_layernorm",),
}
OUTSIDE = {"fc": "fc", "norm": "norm", "head": "lm_head", "embedding": "embed_tokens"}


def fingerprint(target: Llama | Weights) -> str:
    """What ties a drafter to its target: SHA-256 of its sizes, its embedding and its first layer, in bf16 so that the number
    format of a file does not matter. 16 hex digits."""
    c = target.config
    sizes = [c.vocabulary, c.dim, c.hidden, c.depth, c.heads, c.kv_heads, c.width, float(c.rope_theta)]
    digest = hashlib.sha256(json.dumps(sizes).encode())
    state = target.state_dict() if isinstance(target, Llama) else target.state
    for name in sorted(n for n in state if n.startswith(("embedding.", "blocks.0."))):
        digest.update(name.encode())
        tensor = parameter(state, name, torch.bfloat16).detach().cpu().contiguous()
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def load_drafter(path: Path, allowed: str = "a drafter") -> EagleDrafter:
    """The drafter network in a file or folder. Raises WeightsError for weights of another kind."""
    network = load(path)
    if not isinstance(network.config, DrafterConfig):
        raise WeightsError(f"{path} is a {type(network).__name__}, not a drafter. Allowed: {allowed}.")
    return network  # type: ignore[return-value]


def check_target(config: DrafterConfig, target: Llama | Weights, where: object) -> None:
    """Raises WeightsError (exit code 4) unless the drafter fits this target: its fingerprint where it has one, else sizes."""
    c, t = config, target.config
    sizes = {"vocabulary": (c.vocabulary, t.vocabulary), "width": (c.target_dim or c.dim, t.dim)}
    wrong = [f"{what} {mine}, the target's {its}" for what, (mine, its) in sizes.items() if mine != its]
    if c.target and not wrong and c.target != (its := fingerprint(target)):
        wrong = [f"trained for the target {c.target}, this one is {its}"]
    if wrong:
        raise WeightsError(
            f"{where}: this drafter belongs to another target ({'; '.join(wrong)}). Use the target that it was trained "
            "for, --drafter ngram, or train one: tenfold train eagle3-smollm2 --target TARGET"
        )


def recognises(source: Source) -> bool:
    names = source.tensors
    return "fc.weight" in names and any(re.match(r"(midlayer|layers\.0)\.self_attn\.q_proj\.weight", n) for n in names)


def read(source: Source) -> Weights:
    tensors = canonical(source.tensors)
    config = read_config(source, tensors)
    return Weights(config, from_canonical(config, tensors, source.path))


def read_own(config: DrafterConfig, source: Source) -> Weights:
    """A file of ours, whose metadata has the configuration."""
    return Weights(config, from_canonical(config, canonical(source.tensors), source.path))


def own_tensors(weights: Weights) -> dict[str, Tensor]:
    """The tensors of our own layout."""
    return to_layout(weights, "sglang")


def to_layout(weights: Weights, layout: LayoutName) -> dict[str, Tensor]:
    """Tensors under the names of a layout."""
    config: DrafterConfig = weights.config
    state = dict(weights.state)
    ids = state.pop("ids", None)
    written = write_links(links(config), state)
    if layout == "eagle" and config.method == "eagle1":
        return written
    written = {_outward(name, layout): tensor for name, tensor in written.items()}
    if ids is not None:
        written["d2t"] = ids - torch.arange(len(ids))
        written["t2d"] = membership(ids, config.vocabulary)
    return written


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One spelling for all layouts: layers.N, their first norm input_layernorm (in layer 0 that of the embedding),
    fc_norm.N; without the frozen copies."""
    renamed = {}
    for name, tensor in tensors.items():
        if name in FROZEN_COPIES:
            continue
        new = re.sub(r"^midlayer\.", "layers.0.", name)
        new = re.sub(r"^additional_layers\.(\d+)\.", lambda m: f"layers.{int(m[1]) + 1}.", new)
        new = re.sub(r"^(layers\.[1-9]\d*\.)hidden_norm\.", r"\1input_layernorm.", new)
        new = re.sub(r"^aux_norm_(low|mid|high)\.", lambda m: f"fc_norm.{('low', 'mid', 'high').index(m[1])}.", new)
        if new in renamed:
            raise WeightsError(f"two tensors are {new}: one of them is called {name}.")
        renamed[new] = tensor
    return renamed


def _outward(name: str, layout: LayoutName) -> str:
    """A canonical name in the spelling of a layout."""
    if layout == "speculators":
        return name
    name = re.sub(r"^layers\.0\.", "midlayer.", name)
    name = re.sub(r"^(layers\.[1-9]\d*\.)input_layernorm\.", r"\1hidden_norm.", name)
    return re.sub(r"^layers\.(\d+)\.", lambda m: f"additional_layers.{int(m[1]) - 1}.", name)


def from_canonical(config: DrafterConfig, tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    d2t, t2d = tensors.pop("d2t", None), tensors.pop("t2d", None)
    state = read_links(links(config), tensors, where)
    damaged = sorted(name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all()))
    if damaged:
        raise WeightsError(
            f"{where}: not finite numbers (NaN or infinite) in {', '.join(damaged[:8])}{' ...' if len(damaged) > 8 else ''}: "
            "the training diverged or the file is damaged. Fetch or train it again."
        )
    if not config.reduced:
        # A file whose draft vocabulary is the whole one may still carry the two tables, if they say so.
        if d2t is not None and d2t.count_nonzero():
            raise WeightsError(f"{where}: d2t moves ids, but the draft vocabulary is the whole one.")
        return state
    if d2t is None:
        raise WeightsError(
            f"{where}: d2t is missing: which of {config.vocabulary} ids the {config.draft_vocabulary} are."
        )
    ids = d2t.long() + torch.arange(len(d2t))  # the file holds offsets
    if len(ids) != config.draft_vocabulary or int(ids.min()) < 0 or int(ids.max()) >= config.vocabulary:
        raise WeightsError(f"{where}: d2t does not name {config.draft_vocabulary} ids of {config.vocabulary}.")
    if t2d is not None and not torch.equal(membership(ids, config.vocabulary), t2d.bool()):
        raise WeightsError(f"{where}: d2t and t2d name different ids.")
    if not bool((ids.diff() > 0).all()):
        raise WeightsError(f"{where}: d2t's ids do not ascend; its numbers are offsets (id - position), not ids.")
    return {**state, "ids": ids}


def links(config: DrafterConfig) -> list[Link]:
    """Our parameters and the canonical names that they are made of."""
    c = config
    with outline():
        shapes = {n: tuple(t.shape) for n, t in make_drafter(c).state_dict().items() if n != "ids"}
    heads, groups = c.heads * c.width, c.kv_heads * c.width
    rows = {"attention.qkv": (heads, groups, groups), "ffn.gate_up": (c.hidden, c.hidden)}
    result = []
    for own, shape in shapes.items():
        stem, _, leaf = own.rpartition(".")
        if stem in OUTSIDE:
            result.append(Link(own, shape, Part(f"{OUTSIDE[stem]}.{leaf}", shape)))
        elif stem.startswith("fc_norms."):
            name = "input_norm" if c.norm_before_fc else f"fc_norm.{stem.rpartition('.')[2]}"
            result.append(Link(own, shape, Part(f"{name}.{leaf}", shape)))
        else:
            number, part = _layer(stem, c.method)
            sizes = rows.get(part, (shape[0],))
            names = [f"layers.{number}.{name}.{leaf}" for name in LAYERS[part]]
            result.append(
                Link(own, shape, *(Part(n, (size, *shape[1:])) for n, size in zip(names, sizes, strict=True)))
            )
    return result


def _layer(stem: str, method: Literal["eagle1", "eagle3"]) -> tuple[int, str]:
    """The layer's number in the file and the part's name: `first` is layer 0 of an EAGLE-3 drafter."""
    head, _, rest = stem.partition(".")
    if head == "first":
        return 0, rest
    number, _, part = rest.partition(".")
    return int(number) + (method == "eagle3"), part


def _writer(layout: LayoutName):
    def write(weights: Weights, path: Path) -> None:
        config = write_config(weights.config, layout, weights.state, path)
        path.mkdir()
        write_safetensors(path / "model.safetensors", to_layout(weights, layout))
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    return write


def state_of(drafter: EagleDrafter) -> Weights:
    """A drafter's weights, for `own_tensors` and the layouts."""
    return Weights(drafter.config, dict(drafter.state_dict()))


def _is(layout: LayoutName):
    def test(source: Source) -> bool:
        from tenfold.language.drafting.config import layout_of

        return recognises(source) and layout_of(source.config) == layout

    return test


FAMILY = Family(
    "drafter",
    DrafterConfig,
    make_drafter,
    tuple(Layout(name, _is(name), read, _writer(name)) for name in ("sglang", "speculators", "eagle")),
    own=(read_own, own_tensors),
)
