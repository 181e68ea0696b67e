"""A tiny target over bytes and its drafter as files, and prompts that another process has computed."""

from __future__ import annotations

from pathlib import Path

import torch

from gguf_files import fields, write
from language.drafting_models import saved, tiny_drafter, tiny_target
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.decoding.request import Page
from tenfold.language.models.llama import Llama
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.prefill_transfer import Identity

IDENTITY = Identity("target", "drafter", "fp32", 4)


def small_pair(path: Path) -> tuple[Path, Path]:
    """(the target's file, the drafter's) in this folder."""
    words = fields()
    target = tiny_target(vocabulary=len(words["tokenizer.ggml.tokens"]), dim=64, tied=False, context=300)  # type: ignore[arg-type]
    return _written(path, target)


def counting_pair(path: Path) -> tuple[Path, Path]:
    """The same with a target that counts down: behind token t comes t - 32, and the end before 0. A conversation's answer
    starts at 200, so it has 8 tokens, in every number format."""
    words = fields()
    size = len(words["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    target = tiny_target(vocabulary=size, dim=-(-size // 32) * 32, tied=False, context=300)
    for name, parameter in target.named_parameters():
        if name.endswith(("attention.out.weight", "ffn.down.weight")):
            parameter.zero_()
    target.embedding.weight.copy_(torch.eye(*target.embedding.weight.shape))
    head = target.get_parameter("head.weight").zero_()
    for token in range(size):
        head[max(token - 32, 0) if token else 200, token] = 1
    return _written(path, target)


def _written(path: Path, target: Llama) -> tuple[Path, Path]:
    written = write(path / "tiny.gguf", target, tokenizer=fields())
    return written, saved(tiny_drafter(target), path / "drafter.safetensors")


def computed(engine: LLMEngine, prompt: list[int]) -> dict[bytes, Page]:
    engine.add_request("prompt", prompt, SamplingParams(max_tokens=1), prefill_only=True)
    while engine.busy:
        for delta in engine.step():
            assert (delta.finish_reason, delta.text, delta.token_ids) == ("prefilled", "", [])
            assert delta.pages is not None
            return dict(delta.pages)
    raise AssertionError
