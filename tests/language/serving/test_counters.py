"""Metrics of a language server: every finished answer adds what it has cost, and the engine's state is read when asked."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from language.small_pair import small_pair
from tenfold.language.decoding.engine import LLM
from tenfold.language.decoding.request import Stats
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.counters import counters, prefill_results, watch
from tenfold.serve.metrics import Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    """Name and labels -> value of what a scraper reads."""
    families = text_string_to_metric_families(metrics.page().decode())
    found = [sample for family in families for sample in family.samples]
    return {" ".join([s.name.removeprefix("tenfold_"), *s.labels.values()]): s.value for s in found}


def test_answers_add_up_by_depth_and_only_drafts_count_as_drafts() -> None:
    metrics = Metrics()
    count = counters(metrics)
    count(Stats(prompt_tokens=5, cached_tokens=2, tokens=7, calls=5, drafts=4, drafted=12, accepted=[2, 1]))
    count(Stats(prompt_tokens=3, tokens=3, calls=3))
    found = samples(metrics)
    assert found["spec_decode_num_drafts_total"] == 4
    assert found["spec_decode_num_draft_tokens_total"] == 12
    assert found["spec_decode_num_accepted_tokens_total"] == 3
    assert found["spec_decode_num_accepted_tokens_per_pos_total 0"] == 2
    assert found["spec_decode_num_accepted_tokens_per_pos_total 1"] == 1
    assert found["prompt_tokens_total"] == 8
    assert found["cached_prompt_tokens_total"] == 2
    assert found["generation_tokens_total"] == 10


def test_prefilled_prompts_are_counted_by_result_under_both_names() -> None:
    metrics = Metrics()
    count = prefill_results(metrics)
    for result in ("used", "used", "damaged"):
        count(result)
    found = samples(metrics)
    for name in ("prefill_prompts_total", "handover_prompts_total"):
        assert (found[f"{name} used"], found[f"{name} damaged"]) == (2, 1)


def test_pages_and_requests_are_those_of_the_engine_at_that_moment(tmp_path: Path) -> None:
    llm, metrics = LLM(small_pair(tmp_path)[0], None, weights="fp32", cache_tokens=256), Metrics()
    watch(llm, metrics)
    assert samples(metrics)["used_pages"] == 0
    llm.engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=4))
    assert samples(metrics)["engine_requests"] == 1
    llm.engine.step()
    assert samples(metrics)["used_pages"] > 0
    llm.engine.abort("a")
    found = samples(metrics)
    assert (found["used_pages"], found["engine_requests"]) == (0, 0)
