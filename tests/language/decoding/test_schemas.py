"""Fifty schemas, four prompts each, a real model: what was not cut by its length is valid, and speculation pays."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jsonschema
import pytest

from language.json_schemas import SCHEMAS
from tenfold.language.decoding.engine import LLM, Result
from tenfold.language.sampling.sampling import SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.samples]
PROMPTS = [
    "Describe something you see on a walk, as JSON.",
    "Invent an entry for a catalogue, as JSON.",
    "Jane Miller, 34, bought three red apples in Berlin on 2021-05-17. Extract what fits, as JSON.",
    "Answer with one JSON value: what comes to your mind?",
]
MOST = 128  # tokens


def test_the_schemas_are_fifty_and_differ() -> None:
    assert len(SCHEMAS) == len({json.dumps(s) for s in SCHEMAS}) == 50
    for schema in SCHEMAS:
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("heat", [0.0, 0.8])
def test_every_answer_that_is_not_cut_is_valid(heat: float, smollm2: Path) -> None:
    llm = LLM(smollm2, drafter="auto", max_batch=8)
    prompts, params = [], []
    for schema in SCHEMAS:
        grammar = llm.grammars.json_schema(schema)
        for text in PROMPTS:
            prompts.append(llm.tokenizer.chat([{"role": "user", "content": text}]))
            params.append(SamplingParams(heat, max_tokens=MOST, seed=len(prompts), grammar=grammar))
    results = llm.generate(prompts, params)
    cut = 0
    for i, result in enumerate(results):
        if result.finish_reason == "length":
            cut += 1
            continue
        jsonschema.validate(json.loads(result.text), SCHEMAS[i // len(PROMPTS)], jsonschema.Draft202012Validator)
    print(f"temperature {heat}: {len(results) - cut} of {len(results)} complete and valid, {cut} cut at {MOST} tokens")
    assert cut <= len(results) // 10


def test_speculation_under_a_grammar_is_at_least_as_fast_as_plain_decoding(smollm2: Path) -> None:
    """Tokens per second of this thread's CPU time, the two engines in turns."""
    engines = {"plain": LLM(smollm2, drafter=None, max_batch=1), "drafter": LLM(smollm2, drafter="auto", max_batch=1)}
    chosen = SCHEMAS[17:18] + SCHEMAS[30:34] + SCHEMAS[48:49]
    spent, tokens, calls = (dict.fromkeys(engines, 0.0) for _ in range(3))
    for round_ in range(2):
        for schema in chosen:
            for name, llm in engines.items():
                params = SamplingParams(max_tokens=MOST, grammar=llm.grammars.json_schema(schema))
                prompt = llm.tokenizer.chat([{"role": "user", "content": PROMPTS[round_]}])
                start = time.thread_time()
                result: Result = llm.generate([prompt], params)[0]
                spent[name] += time.thread_time() - start
                tokens[name] += result.stats.tokens
                calls[name] += result.stats.calls
    rate = {name: tokens[name] / spent[name] for name in engines}
    print({name: f"{rate[name]:.1f} tokens/s, TPC {tokens[name] / calls[name]:.2f}" for name in engines})
    assert rate["drafter"] >= rate["plain"]
