"""The recipes of language models with memory layers: one table read by a few blocks instead of their own networks.

    tenfold train lm-memory-plus                     the paper's variant; also lm-memory-pkm, lm-memory-peer
    torchrun --nproc-per-node 4 -m tenfold train lm-memory-plus --size base --memory.group-size 4

Only `tiny` has been run to the end by us (docs/memory.md). `small` and `base` carry the proportions of Memory Layers at
Scale (arXiv 2412.09764): rates 1e-4 and, for the table, 1e-3; betas 0.9 and 0.95; clipping at 1.
"""

from __future__ import annotations

from typing import Literal

from tenfold.engine.config import OptimConfig, TrainerConfig
from tenfold.engine.schedule import Schedule
from tenfold.language.llama import LlamaConfig
from tenfold.language.pretrain import BYTES, FactsConfig, MemoryConfig, PretrainRecipe
from tenfold.nn.memory import Variant, centred_layers

Size = Literal["tiny", "small", "base"]
WIDTH = {"tiny": 128, "small": 512, "base": 768}
DEPTH = {"tiny": 4, "small": 8, "base": 12}
HEADS = {"tiny": 4, "small": 8, "base": 12}
SIDE = {"tiny": 128, "small": 256, "base": 1024}
KEY_DIM = {"tiny": 32, "small": 128, "base": 512}
LENGTH = {"tiny": 96, "small": 512, "base": 1024}


def lm_memory_plus(size: Size = "tiny") -> PretrainRecipe:
    """Gated and projected reads (the paper's Memory+)."""
    return _recipe(size, "plus")


def lm_memory_pkm(size: Size = "tiny") -> PretrainRecipe:
    """Plain product-key memory."""
    return _recipe(size, "pkm")


def lm_memory_peer(size: Size = "tiny") -> PretrainRecipe:
    """Experts of one hidden unit."""
    return _recipe(size, "peer")


def _recipe(size: Size, variant: Variant) -> PretrainRecipe:
    tiny = size == "tiny"
    width, depth = WIDTH[size], DEPTH[size]
    return PretrainRecipe(
        trainer=TrainerConfig(
            steps=300 if tiny else 20_000,
            precision="fp32" if tiny else "auto",
            checkpoint_every=100 if tiny else 1000,
            validate_every=100 if tiny else 1000,
        ),
        optim=OptimConfig(
            lr=3e-3 if tiny else 1e-4,
            betas=(0.9, 0.95),
            weight_decay=0.1,
            clip=1.0,
            schedule=Schedule("linear", warmup=1 / 32, final=0.01),
        ),
        model=LlamaConfig(
            vocabulary=BYTES,
            dim=width,
            hidden=4 * width,
            depth=depth,
            heads=HEADS[size],
            kv_heads=HEADS[size],
            context=LENGTH[size],
            rope_theta=5e5,
            activation="relu2",
            memory_layers=centred_layers(depth, 2 if tiny else 3),
            memory_side=SIDE[size],
            memory_heads=4,
            memory_top_k=16 if tiny else 32,
            memory_key_dim=KEY_DIM[size],
            memory_variant=variant,
        ),
        batch=16 if tiny else 64,
        length=LENGTH[size],
        memory=MemoryConfig(lr=1e-2 if tiny else 1e-3),
        facts=FactsConfig(kind="world"),
    )
