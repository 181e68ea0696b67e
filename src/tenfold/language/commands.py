"""`tenfold language generate` and `tenfold language chat`: text generation at the command line, with speculative decoding."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from tenfold.errors import DataError, UsageError
from tenfold.kernels.formats import FormatChoice

if TYPE_CHECKING:
    import torch

    from tenfold.language.decoding.engine import LLM
    from tenfold.language.decoding.request import Stats
    from tenfold.language.sampling.sampling import SamplingParams


@dataclass(frozen=True)
class Generate:
    """Answers prompts with a language model, and says what each cost.

    $ tenfold language generate "Explain tides to a child"
    $ tenfold language generate --prompts FILE.jsonl --max-tokens 128 --json
    $ tenfold language generate "Once upon a time" --raw --temperature 0.8 --top-p 0.95 --seed 1
    $ tenfold language generate "An author and a year" --schema schema.json

    With a drafter the text is what the target would write without one; TPC is the tokens per pass of the target.
    """

    texts: tyro.conf.Positional[tuple[str, ...]] = ()  # the prompts
    prompts: Path | None = None  # more of them, one JSON object per line: prompt, question, or turns
    model: str = "smollm2-135m-instruct"  # a name (the sample is fetched once), a GGUF file, or a folder
    drafter: str = "auto"  # auto | ngram | none | a drafter's file
    weights: FormatChoice = "auto"  # weight format that decodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    raw: bool = False  # continue the text instead of answering in the chat template
    max_tokens: int = 256
    temperature: float = 0.0  # 0: always the most likely token
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None  # the same seed gives the same answer
    repetition_penalty: float = 1.0  # above 1: against tokens that are in the prompt or the answer already
    stop: tuple[str, ...] = ()  # texts that end an answer
    schema: Path | None = None  # JSON schema that the answer has to follow
    regex: str | None = None  # regular expression that the answer has to follow
    batch: int = 8  # prompts computed together
    dispatch: Path | None = None  # table of `tenfold language tree`: which tree for which batch
    json: bool = False  # print as JSON, one line per prompt


def generate(options: Generate) -> int:
    from tenfold.language.models.tokenizer import read_prompts

    texts = [*options.texts, *(read_prompts(options.prompts) if options.prompts else [])]
    if not texts:
        raise UsageError('no prompt. Type: tenfold language generate "Why is the sky blue?", or give --prompts FILE.')
    if not all(text.strip() for text in texts):
        raise UsageError("a prompt is empty.")
    params = _params(options)
    llm = _open(options)
    if options.schema:
        params = replace(params, grammar=llm.grammars.json_schema(_text(options.schema)))
    elif options.regex:
        params = replace(params, grammar=llm.grammars.regex(options.regex))
    ids = [
        llm.tokenizer.encode(t) if options.raw else llm.tokenizer.chat([{"role": "user", "content": t}]) for t in texts
    ]
    if len(ids) == 1 and not options.json:
        stats = _show(llm, ids[0], params)[1]
        print(f"\n{_cost(llm, stats)}")
        return 0
    for text, result in zip(texts, llm.generate(ids, params)):
        if options.json:
            print(json.dumps({"prompt": text, "text": result.text, **_numbers(result.finish_reason, result.stats)}))
        else:
            print(f"> {text}\n{result.text}\n[TPC {result.stats.tokens_per_call:.2f}]\n")
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error


@dataclass(frozen=True)
class Chat:
    """A conversation in the terminal; an empty line or the end of the input leaves it."""

    model: str = "smollm2-135m-instruct"  # a name (the sample is fetched once), a GGUF file, or a folder
    drafter: str = "auto"  # auto | ngram | none | a drafter's file
    weights: FormatChoice = "auto"  # weight format that decodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    system: str | None = None  # a system turn, instead of the template's own
    max_tokens: int = 512  # of one answer
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    seed: int | None = None
    batch: int = 1


def chat(options: Chat) -> int:
    params = _params(options)
    llm = _open(options)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    for line in _lines():
        messages.append({"role": "user", "content": line})
        text, stats = _show(llm, llm.tokenizer.chat(messages), params)
        print(f"\n[{stats.tokens_per_second:.0f} tokens/s, TPC {stats.tokens_per_call:.2f}]", file=sys.stderr)
        messages.append({"role": "assistant", "content": text})
    return 0


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _open(options: Generate | Chat) -> LLM:
    from tenfold.language.decoding.engine import LLM

    llm = LLM(
        options.model, drafter=options.drafter, weights=options.weights, max_batch=options.batch, device=options.device
    )
    _dispatch(llm, options.dispatch if isinstance(options, Generate) else None)
    for note in llm.notes:
        print(note, file=sys.stderr)
    return llm


def _dispatch(llm: LLM, table: Path | None) -> None:
    if table is not None:
        from tenfold.language.tuning.tree_search import dispatch

        dispatch(llm, table)


def _params(options: Generate | Chat) -> SamplingParams:
    from tenfold.language.sampling.sampling import SamplingParams

    return SamplingParams(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        stop=options.stop if isinstance(options, Generate) else (),
        seed=options.seed,
        repetition_penalty=options.repetition_penalty if isinstance(options, Generate) else 1.0,
    )


def _show(llm: LLM, ids: list[int], params: SamplingParams) -> tuple[str, Stats]:
    """Prints an answer as it is written."""
    text, stats = "", None
    for delta in llm.stream(ids, params):
        print(delta.text, end="", flush=True)
        text += delta.text
        stats = delta.stats or stats
    print()
    assert stats is not None
    return text, stats


def _cost(llm: LLM, stats: Stats) -> str:
    """The line under an answer: tokens per pass, per second, and the memory rate beside what this machine reads at most."""
    seconds = max(1e-9, (stats.finished or 0) - (stats.first_token or 0))
    rate = max(0, stats.calls - 1) * llm.weight_bytes / seconds / 1e9
    return (
        f"{stats.tokens} tokens in {stats.calls} passes: TPC {stats.tokens_per_call:.2f}, {stats.tokens_per_second:.1f} "
        f"tokens/s; weights read at {rate:.1f} GB/s of "
        f"{read_rate(llm.engine.runner.device):.1f} GB/s"
    )


def read_rate(device: torch.device) -> float:
    """GB/s at which this process reads a device's memory now, with its threads: the limit of decoding."""
    import torch

    megabytes = 256 if device.type == "cpu" else 8192  # more than fits into a cache
    block = torch.ones(megabytes << 18, device=device)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        float(block.sum())  # waits
        best = max(best, block.numel() * 4 / (time.perf_counter() - start) / 1e9)
    return best


def _numbers(reason: str, stats: Stats) -> dict[str, Any]:
    return {
        "finish_reason": reason,
        "prompt_tokens": stats.prompt_tokens,
        "tokens": stats.tokens,
        "passes": stats.calls,
        "tpc": round(stats.tokens_per_call, 3),
        "tokens_per_second": round(stats.tokens_per_second, 2),
        "drafted": stats.drafted,
        "accepted_by_depth": stats.accepted,
    }
