"""Greedy text of the engine, with and without speculation, is transformers' text, token by token, on real prompts (fp32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tenfold.language.decoding.engine import LLM
from tenfold.language.drafting.reference_trees import HYBRID_10_6, TREE_16
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.tokenizer import load_tokenizer
from tenfold.language.sampling.sampling import SamplingParams

pytestmark = [pytest.mark.samples, pytest.mark.slow]


@pytest.mark.timeout(10_800)  # a dynamic tree has 59 nodes, and fp32 pays for each
@pytest.mark.parametrize(("each", "tokens"), [(2, 32), (13, 128)])
@torch.inference_mode()
def test_greedy_text_equals_transformers_generate(smollm2: Path, test_data: Path, each: int, tokens: int) -> None:
    files = sorted((test_data / "text/prompts").glob("*.jsonl"))
    texts = [json.loads(line)["turns"][0] for file in files for line in file.read_text().splitlines()[:each]]
    tokenizer = load_tokenizer(smollm2)
    ids = [tokenizer.chat([{"role": "user", "content": text}]) for text in texts]
    read = AutoModelForCausalLM.from_pretrained
    theirs: Any = read(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32).eval()
    expected = []
    for prompt in ids:
        given = torch.tensor([prompt])
        mask = torch.ones_like(given)
        out = theirs.generate(given, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=2)
        expected.append(out[0, len(prompt) :].tolist())
    del theirs
    plans = ((None, "auto"), ("ngram", Tree.chain(5)), ("auto", TREE_16), ("auto", "dynamic"), ("auto", HYBRID_10_6))
    for drafter, tree in plans:
        llm = LLM(smollm2, drafter=drafter, weights="fp32")
        llm.engine.speculation = Speculation(tree)  # type: ignore[arg-type]
        found = [result.token_ids for result in llm.generate(ids, SamplingParams(max_tokens=tokens))]
        assert found == expected, (drafter, tree)
        # Alone as in a batch of eight; over the long set for plain decoding and the tree of 16.
        for prompt, text in zip(ids[: None if each == 2 or tree in ("auto", TREE_16) else 1], expected):
            assert llm.generate([prompt], SamplingParams(max_tokens=tokens))[0].token_ids == text, (drafter, tree)
        print(f"{drafter}, {tree}: {len(found)} texts are the same", flush=True)
