"""Loads a model, answers once, and prints the highest memory of this process beside what it has to hold, in bytes.

python peak_memory.py MODEL FORMAT CACHE_TOKENS
"""

import json
import re
import sys
from pathlib import Path

from tenfold.language.decoding.engine import LLM
from tenfold.language.sampling.sampling import SamplingParams

model, form, cache_tokens = sys.argv[1:]
llm = LLM(model, drafter="auto", weights=form, cache_tokens=int(cache_tokens))  # type: ignore[arg-type]
result = llm.chat([{"role": "user", "content": "Why is the sky blue?"}], SamplingParams(max_tokens=24))
pools = [llm.engine.runner.cache, llm.engine.runner.draft_cache]
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
assert peak is not None
print(
    json.dumps(
        {
            "peak": int(peak[1]) * 1024,
            "weights": llm.weight_bytes,
            "pages": sum(2 * pool.keys.numel() * pool.keys.element_size() for pool in pools if pool),
            "tokens": len(result.token_ids),
        }
    )
)
