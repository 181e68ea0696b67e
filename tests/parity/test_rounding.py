"""Where speculation changes greedy text in a rounded format, the two tokens were within the format's own error.

In torch's bf16 a product over one row and one over seventeen are rounded differently, so a near tie may fall the other way.
It is no loss of quality, and it must be nothing else: at every first divergence the gap between the two tokens, in exact
arithmetic, is no larger than the error that the format makes on that very row. The compiled passes compute every row in one
order of sums: with them no text may part at all.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tenfold
from tenfold.kernels import decode
from tenfold.language.decoding.engine import LLM
from tenfold.language.drafting.reference_trees import LOOKUP_6
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.sampling.sampling import SamplingParams

pytestmark = [pytest.mark.samples, pytest.mark.slow]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("form", ["bf16", "int4"])
@torch.inference_mode()
def test_texts_part_only_at_ties_within_rounding(smollm2: Path, test_data: Path, form: str) -> None:
    files = sorted((test_data / "text/prompts").glob("*.jsonl"))
    texts = [json.loads(line)["turns"][0] for file in files for line in file.read_text().splitlines()[:4]]
    shape = Speculation(tree=LOOKUP_6)  # whatever the batch
    alone, quick = (LLM(smollm2, drafter=d, speculation=shape, weights=form) for d in (None, "ngram"))  # type: ignore[arg-type]
    exact = tenfold.load(smollm2)
    ids = [alone.tokenizer.chat([{"role": "user", "content": text}]) for text in texts]
    params = SamplingParams(max_tokens=40)
    parted = 0
    for prompt, a, b in zip(ids, alone.generate(ids, params), quick.generate(ids, params)):
        place = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids)) if x != y), None)
        if place is None:
            assert a.token_ids == b.token_ids
            continue
        parted += 1
        text = torch.tensor([[*prompt, *a.token_ids[:place]]])
        true = exact(text).logits[0, -1]
        error = float((alone.model(text).logits[0, -1].float() - true).abs().max())
        gap = abs(float(true[a.token_ids[place]] - true[b.token_ids[place]]))
        assert gap <= 2 * error
    assert not parted or decode.refusal() is not None
    print(f"{form}: {parted} of {len(ids)} answers of 40 tokens part at a tie within rounding")
