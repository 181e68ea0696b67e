"""Training recipes of language models, each a plain function that returns its configuration.

One dial: `--size` tiny (bytes, about two minutes on a CPU), small (30 M parameters, a BPE of 8,192), base (124 M). All
kinds of one size see the same text in the same order; SwiGLU and Squared-ReLU have the same number of parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from tenfold.engine.recipe import TrainerConfig
from tenfold.engine.schedule import OptimConfig, Schedule
from tenfold.language.models.config import LlamaConfig
from tenfold.language.pretraining.pretrain import MemoryConfig, PretrainRecipe
from tenfold.nn.memory import centred_layers
from tenfold.nn.sparse24 import Sparsity24

Size = Literal["tiny", "small", "base"]

_MODELS = {  # hidden: of Squared-ReLU; SwiGLU takes two thirds of it
    "tiny": LlamaConfig(256, 128, 516, 3, heads=4, kv_heads=4, context=96, tied=True),
    "small": LlamaConfig(8192, 512, 2048, 8, heads=8, kv_heads=8, context=512, tied=True),
    "base": LlamaConfig(50304, 768, 3072, 12, heads=12, kv_heads=12, context=1024, tied=True),
}
_MEMORY: dict[str, dict[str, Any]] = {
    "tiny": {"memory_side": 128, "memory_heads": 4, "memory_top_k": 16, "memory_key_dim": 32},
    "small": {"memory_side": 256, "memory_heads": 4, "memory_top_k": 32, "memory_key_dim": 128},
    "base": {"memory_side": 1024, "memory_heads": 4, "memory_top_k": 32, "memory_key_dim": 512},
}
_STEPS = {"tiny": 800, "small": 4000, "base": 20_000}
_BATCH = {"tiny": 16, "small": 32, "base": 256}
_RATES = {"tiny": 3e-3, "small": 1e-3, "base": 6e-4}


def lm_swiglu_dense(size: Size = "tiny") -> PretrainRecipe:
    """The usual gated network: what the others are compared with."""
    hidden = round(_MODELS[size].hidden / 1.5)
    return _recipe(size, hidden=hidden, activation="swiglu")


def lm_relu2_dense(size: Size = "tiny") -> PretrainRecipe:
    """Squared-ReLU, dense throughout."""
    return _recipe(size)


def lm_relu2_24(size: Size = "tiny") -> PretrainRecipe:
    """Squared-ReLU with 2:4 activation sparsity after a dense warm-up (arXiv 2503.16672) and dense again for the last sixth
    (arXiv 2602.06183): in short runs the sparse weight gradients cost more than those steps do."""
    return _recipe(size, sparsity="2:4")


def lm_moe_top1(size: Size = "tiny") -> PretrainRecipe:
    """Eight experts of which a token takes one: the multiplications of the dense model, the parameters of eight."""
    return _recipe(size, experts=8)


def lm_memory_plus(size: Size = "tiny") -> PretrainRecipe:
    """Memory+ layers (arXiv 2412.09764) in place of some feed-forward networks, one shared table."""
    return _memory(size, "plus")


def lm_memory_pkm(size: Size = "tiny") -> PretrainRecipe:
    """Product-key memory (arXiv 1907.05242)."""
    return _memory(size, "pkm")


def lm_memory_peer(size: Size = "tiny") -> PretrainRecipe:
    """A million experts of one unit (arXiv 2407.04153), at tiny size 16,384."""
    return _memory(size, "peer")


def _memory(size: Size, variant: str) -> PretrainRecipe:
    depth = 4 if size == "tiny" else _MODELS[size].depth  # of three tiny layers the memory would take all
    layers = (1, 3) if size == "tiny" else centred_layers(depth, 3)
    recipe = _recipe(size, depth=depth, memory_layers=layers, memory_variant=variant, **_MEMORY[size])
    return dataclasses.replace(recipe, memory=MemoryConfig(lr=1e-2 if size == "tiny" else 1e-3))


def _recipe(size: Size, **changes: Any) -> PretrainRecipe:
    model = dataclasses.replace(_MODELS[size], **{"activation": "relu2", **changes})
    tiny = size == "tiny"
    return PretrainRecipe(
        trainer=TrainerConfig(
            steps=_STEPS[size],
            precision="fp32" if tiny else "auto",
            checkpoint_every=200 if tiny else 1000,
            validate_every=200 if tiny else 1000,
            log_every=20,
        ),
        optim=OptimConfig(
            lr=_RATES[size],
            betas=(0.9, 0.95),
            weight_decay=0.1,
            clip=1.0,
            schedule=Schedule("linear", warmup=0.05, final=0.01),
        ),
        tokens="bytes" if tiny else "bpe",
        batch=_BATCH[size],
        length=model.context,
        model=model,
        sparsity=Sparsity24(warmup_steps=0.1, cooldown_steps=1 / 6),
    )
