"""The shared block is also wav2vec2's encoder layer, in its post-norm (base) and pre-norm (large) forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2EncoderLayer, Wav2Vec2EncoderLayerStableLayerNorm

from tenfold.nn.attention import AttentionConfig
from tenfold.nn.block import Block, BlockConfig
from tenfold.nn.ffn import GeluFFN

DIM, HEADS, HIDDEN = 96, 6, 200


def copy_layer(ours: Block, theirs: nn.Module) -> None:
    state = theirs.state_dict()

    def rows(leaf: str) -> torch.Tensor:
        return torch.cat([state[f"attention.{part}_proj.{leaf}"] for part in "qkv"])

    named = {
        "attention.out": "attention.out_proj", "norm1": "layer_norm", "norm2": "final_layer_norm",
        "ffn.up": "feed_forward.intermediate_dense", "ffn.down": "feed_forward.output_dense",
    }  # fmt: skip
    own = {f"{o}.{leaf}": state[f"{t}.{leaf}"] for o, t in named.items() for leaf in ("weight", "bias")}
    ours.load_state_dict(own | {f"attention.qkv.{leaf}": rows(leaf) for leaf in ("weight", "bias")})


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@torch.inference_mode()
def test_block_equals_wav2vec2_layer(norm_first: bool, padded: bool) -> None:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=DIM, num_attention_heads=HEADS, intermediate_size=HIDDEN, do_stable_layer_norm=norm_first
    )
    config._attn_implementation = "sdpa"
    theirs = (Wav2Vec2EncoderLayerStableLayerNorm if norm_first else Wav2Vec2EncoderLayer)(config).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, 0.0, 0.2)
    eps = config.layer_norm_eps
    ours = Block(BlockConfig(AttentionConfig(DIM, HEADS), norm_eps=eps, norm_first=norm_first), GeluFFN(DIM, HIDDEN))
    copy_layer(ours.eval(), theirs)
    x = torch.randn(3, 50, DIM)
    visible = (torch.arange(50) < torch.tensor([50, 31, 7])[:, None])[:, None, None, :] if padded else None
    additive = None if visible is None else torch.where(visible, 0.0, torch.finfo(torch.float32).min)
    expected = theirs(x, attention_mask=None if additive is None else additive.expand(3, 1, 50, 50))
    assert (ours(x, mask=visible) - expected).abs().max() <= 1e-5
