"""`tenfold eval speculative`: tokens per call of a drafter, beside prompt lookup, and that the text stays the target's own.

    tenfold eval speculative DRAFTER --val prompts/gsm8k.jsonl

The measurements are in tuning/measure.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from tenfold.errors import UsageError
from tenfold.language.decoding.engine import LLM, locate
from tenfold.language.distillation.rollouts import repeats_itself
from tenfold.language.drafting.drafter import default_aux_layers
from tenfold.language.drafting.reference_trees import TREE_16
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.weights import check_target, load_drafter
from tenfold.language.models.prepare import open_target
from tenfold.language.models.text import read_documents
from tenfold.language.models.tokenizer import load_tokenizer, read_prompts
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.tuning.measure import TOKENS, engine_tpc, figures, replay, through_engine, write_greedily


@dataclass(frozen=True)
class SpeculativeTask:
    """Tokens per call of a drafter by replay and through the engine, beside prompt lookup; and whether the text stays the
    same."""

    weights: tyro.conf.Positional[Path]  # a drafter that tenfold.load reads, or its run folder
    val: Path  # a .jsonl file of prompts, or a folder of such files
    limit: int | None = None  # use only the first prompts of each file
    lengths: tuple[int, ...] = ()  # with --val a text: continue it behind so many of its tokens (512 4096, say)
    target: str = "smollm2-135m-instruct"  # the model that it drafts for
    json: bool = False  # print as JSON


def speculative(options: SpeculativeTask) -> dict[str, Any]:
    """The verb `tenfold eval speculative`."""
    if options.lengths:
        return by_length(options)
    files = sorted(options.val.glob("*.jsonl")) if options.val.is_dir() else [options.val]
    if not files:
        raise UsageError(f"--val {options.val}: the folder holds no .jsonl files.")
    path = locate(options.target)
    target = open_target(path, "auto")
    network = load_drafter(options.weights)
    check_target(network.config, target.source, options.weights)
    aux = network.config.aux_layers or default_aux_layers(target.model.config.depth)
    tokenizer = load_tokenizer(path)
    llms = {"none": LLM(path, None), "drafter": LLM(path, options.weights, Speculation(tree=TREE_16))}
    report: dict[str, Any] = {}
    for file in files:
        prompts = [tokenizer.chat([{"role": "user", "content": p}]) for p in read_prompts(file)[: options.limit]]
        answers = write_greedily(target, prompts, tokenizer.stop_ids, aux=aux)
        report |= {f"{file.stem}/{k}": v for k, v in figures(network, replay(network, target, answers)).items()}
        report |= {f"{file.stem}/{k}": v for k, v in through_engine(llms, prompts).items()}
    return report


def by_length(options: SpeculativeTask) -> dict[str, Any]:
    """Greedy TPC of the tree of 16 behind long and short contexts that end at the same places of a text."""
    path = locate(options.target)
    longest = max(options.lengths)
    llm = LLM(path, options.weights, Speculation(tree=TREE_16), max_batch=1, cache_tokens=longest + 16 * TOKENS)
    tokens = [t for d in read_documents(options.val) for t in llm.tokenizer.encode(d.text)]
    allowed = min(llm.model.config.context - TOKENS, len(tokens))
    if not 2 <= min(options.lengths) <= longest <= allowed:
        raise UsageError(f"--lengths {' '.join(map(str, options.lengths))}: allowed are 2 to {allowed} tokens here.")
    ends = torch.linspace(longest, len(tokens), options.limit or 16).long().tolist()
    report: dict[str, Any] = {"places": len(ends)}
    for length in options.lengths:
        prompts = [tokens[end - length : end] for end in ends]
        results = llm.generate(prompts, SamplingParams(max_tokens=TOKENS))
        report[f"engine TPC tree 16 behind {length} tokens"] = engine_tpc(
            [r for r in results if not repeats_itself(r.token_ids)]
        )
        report[f"engine TPC tree 16 behind {length} tokens, all answers"] = engine_tpc(results)
    return report
