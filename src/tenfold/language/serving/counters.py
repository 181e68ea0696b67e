"""Prometheus metrics of a language server: speculative decoding and acceptance, KV cache pages, disaggregated prefill.

    done = counters(app.state.metrics)                 called with the cost of every finished answer
    watch(llm, app.state.metrics)

Names and meanings of acceptance are vLLM's (`spec_decode_num_accepted_tokens`), under the prefix `tenfold_`.
"""

from __future__ import annotations

from collections.abc import Callable

from tenfold.language.decoding.engine import LLM
from tenfold.language.decoding.request import Stats
from tenfold.serve.metrics import Metrics


def watch(llm: LLM, metrics: Metrics) -> None:
    """What the engine holds, read when /metrics is asked for."""
    pages, scheduler = llm.engine.runner.pages, llm.engine.scheduler
    metrics.gauge("used_pages", "KV cache pages in use", lambda: pages.count - pages.free)
    metrics.gauge("engine_requests", "requests in the engine", lambda: len(scheduler.running) + len(scheduler.waiting))


def counters(metrics: Metrics) -> Callable[[Stats], None]:
    """Adds the counters of speculative decoding; returns what counts one finished answer."""
    drafts = metrics.counter("spec_decode_num_drafts", "passes of the target that verified a draft")
    drafted = metrics.counter("spec_decode_num_draft_tokens", "draft tokens")
    accepted = metrics.counter("spec_decode_num_accepted_tokens", "draft tokens that were accepted")
    placed = metrics.counter(
        "spec_decode_num_accepted_tokens_per_pos", "draft tokens that were accepted, by depth", ("position",)
    )
    prompt = metrics.counter("prompt_tokens", "prompt tokens")
    cached = metrics.counter("cached_prompt_tokens", "prompt tokens found in the prefix cache")
    written = metrics.counter("generation_tokens", "emitted tokens")

    def count(stats: Stats) -> None:
        drafts.inc(stats.drafts)
        drafted.inc(stats.drafted)
        accepted.inc(sum(stats.accepted))
        for depth, times in enumerate(stats.accepted):
            placed.labels(str(depth)).inc(times)
        prompt.inc(stats.prompt_tokens)
        cached.inc(stats.cached_tokens)
        written.inc(stats.tokens)

    return count


def prefill_results(metrics: Metrics) -> Callable[[str], None]:
    """Adds the counter of prompts that are prefilled in another process; returns what counts one by its result."""
    text = "prompts by what became of their KV cache pages"
    prompts = metrics.counter("prefill_prompts", text, ("result",))
    former = metrics.counter("handover_prompts", f"{text} (the former name of prefill_prompts)", ("result",))

    def count(result: str) -> None:
        prompts.labels(result).inc()
        former.labels(result).inc()

    return count
