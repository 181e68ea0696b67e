"""`tenfold language tree`: the drafting trees that are fastest on this machine, measured offline, as dispatch.json."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from tenfold.errors import UsageError

SAMPLED = 8  # prompts on which the rules are compared


@dataclass(frozen=True)
class SearchTree:
    """Finds the tree of every batch size that gives the most tokens per second, and writes the table that decoding reads.

    $ tenfold language tree DRAFTER --prompts FILE.jsonl --out dispatch.json

    The prompts must not be those that anything is judged by later: take ones that were held back. One half of them chooses,
    the other half checks the prediction, which is printed beside what was counted there.
    """

    drafter: tyro.conf.Positional[Path]  # a drafter's file or folder
    prompts: Path  # .jsonl or .jsonl.gz
    target: str = "smollm2-135m-instruct"  # the model that it drafts for
    limit: int = 48  # prompts used, from the end of the file (which training leaves out)
    batches: tuple[int, ...] = (1, 2, 4, 8)  # requests at once
    out: Path = Path("dispatch.json")
    picture: Path | None = None  # SVG file: the tree of the smallest batch, each node with how often it is accepted
    json: bool = False  # print as JSON


def tree(options: SearchTree) -> None:
    import torch

    from tenfold.language.decoding.engine import LLM, locate
    from tenfold.language.drafting.dispatch import Dispatcher
    from tenfold.language.drafting.ngram import HybridDrafter, NgramDrafter
    from tenfold.language.drafting.weights import check_target, load_drafter
    from tenfold.language.models.prepare import open_target
    from tenfold.language.models.tokenizer import read_prompts
    from tenfold.language.tuning.measure import replay, write_greedily
    from tenfold.language.tuning.tree_costs import measure_costs
    from tenfold.language.tuning.tree_search import halves, machine, rules_at_temperature, search

    if options.limit < 8:
        raise UsageError(f"--limit {options.limit}: at least 8 prompts are needed, half to choose and half to check.")
    if not options.batches or min(options.batches) < 1:
        raise UsageError(f"--batches {options.batches}: allowed are whole numbers >= 1.")
    network, target = load_drafter(options.drafter), open_target(locate(options.target))
    check_target(network.config, target.source, options.drafter)
    llm = LLM(options.target, options.drafter, max_batch=max(options.batches))
    own = llm.drafter
    assert own is not None
    llm.drafter = llm.engine.runner.drafter = HybridDrafter(own, NgramDrafter())
    texts = read_prompts(options.prompts)[-options.limit :]
    prompts = [llm.tokenizer.chat([{"role": "user", "content": text}]) for text in texts]
    print(f"writing {len(prompts)} answers ...", file=sys.stderr)
    answers = write_greedily(target, prompts, llm.tokenizer.stop_ids, aux=own.aux_layers)
    choosing, checking = halves(replay(network, target, answers))
    print("measuring costs ...", file=sys.stderr)
    with torch.inference_mode():
        costs = measure_costs(llm, prompts, sorted(set(options.batches)))
    entries = search(choosing, costs, "0")
    print("comparing rules at temperature 1 ...", file=sys.stderr)
    sampled = rules_at_temperature(llm, entries, prompts[:SAMPLED])
    hot = [replace(e, temperature=">0", rule=rule, tpc=tpc[rule]) for e, (rule, tpc) in zip(entries, sampled)]
    Dispatcher(network.config.target, own.fingerprint(), machine(), (*entries, *hot)).save(options.out)
    if options.picture is not None:
        from tenfold.language.tuning.tree_picture import accepted_tree

        options.picture.write_text(accepted_tree([e.paths for e in entries], checking.ranks))
    rows = []
    for e in entries:
        tpc, ms = e.tpc or 1.0, e.ms or 1.0  # the search has both
        rows.append(
            {
                "batch": e.batch,
                "nodes": len(e.paths) + e.looked_up,
                "looked up": e.looked_up,
                "tpc": round(tpc, 3),
                "tpc on the other half": round(checking.tpc(e.shape), 3),
                "ms": round(ms, 2),
                "tokens per second": round(1e3 * tpc * e.batch / ms, 1),
            }
        )
    rows += [
        {"batch": e.batch, "temperature": 1.0, "rule": e.rule, **{f"tpc rule {r}": round(v, 3) for r, v in tpc.items()}}
        for e, (_, tpc) in zip(hot, sampled)
        if e.paths
    ]
    if options.json:
        print(json.dumps({"out": str(options.out), "entries": rows}, indent=2))
        return
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    print(options.out)
