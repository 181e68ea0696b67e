"""A tiny target over bytes and its drafter as files, and prompts that another process has computed."""

from __future__ import annotations

from pathlib import Path

from gguf_files import fields, write
from language.drafting_models import saved, tiny_drafter, tiny_target
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.decoding.request import Page
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.prefill_transfer import Identity

IDENTITY = Identity("target", "drafter", "fp32", 4)


def small_pair(path: Path) -> tuple[Path, Path]:
    """(the target's file, the drafter's) in this folder."""
    words = fields()
    target = tiny_target(vocabulary=len(words["tokenizer.ggml.tokens"]), dim=64, tied=False, context=300)  # type: ignore[arg-type]
    written = write(path / "tiny.gguf", target, tokenizer=words)
    return written, saved(tiny_drafter(target), path / "drafter.safetensors")


def computed(engine: LLMEngine, prompt: list[int]) -> dict[bytes, Page]:
    engine.add_request("prompt", prompt, SamplingParams(max_tokens=1), prefill_only=True)
    while engine.busy:
        for delta in engine.step():
            assert (delta.finish_reason, delta.text, delta.token_ids) == ("prefilled", "", [])
            assert delta.pages is not None
            return dict(delta.pages)
    raise AssertionError
