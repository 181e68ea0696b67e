"""How much a drafter saves: tokens per call of the target, acceptance by depth, and that the text stays the target's own.

    tenfold eval speculative DRAFTER --val prompts/gsm8k.jsonl

Two measurements. The replay (language/replay.py) takes the target's greedy answers and says for every shape of tree what the
closed loop accepts. The engine then decodes for real with the trees that it uses, counts, and the texts are compared with
those of the target alone. Every figure is a TPC: emitted tokens per decoding call, the target's own token counted, the
prompt's pass not. Small greedy models often repeat themselves and repetition is easy to guess, so the figures
are for answers that do not; those with all answers stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from jaxtyping import Int
from torch import Tensor

from tenfold.errors import UsageError, WeightsError
from tenfold.export.weights import load
from tenfold.language.answer_writing import write
from tenfold.language.answers import Answer, repeats_itself
from tenfold.language.draft_vocabulary import count_tokens, coverage
from tenfold.language.drafter import EagleDrafter, default_aux_layers
from tenfold.language.drafter_weights import check_target
from tenfold.language.engine import LLM, Result, locate
from tenfold.language.ngram import LONGEST, HybridTree, Places
from tenfold.language.prepare import Target, open_target
from tenfold.language.replay import accepted_lengths, token_ranks, tokens_per_call
from tenfold.language.sampling import SamplingParams
from tenfold.language.speculation import LOOK_UP, SIXTEEN, TEN_AND_SIX, Speculation
from tenfold.language.text import read_documents
from tenfold.language.tokenizer import load_tokenizer, read_prompts
from tenfold.language.tree import Tree

TOKENS = 128  # of an answer
DEPTH = 6  # levels that the replay looks at


@dataclass(frozen=True)
class SpeculativeTask:
    """Tokens per call of a drafter by replay and through the engine, beside look-up; and whether the text stays the same."""

    weights: tyro.conf.Positional[Path]  # a drafter that tenfold.load reads, or its run folder
    val: Path  # a .jsonl file of prompts, or a folder of such files
    limit: int | None = None  # use only the first prompts of each file
    lengths: tuple[int, ...] = ()  # with --val a text: go on with it behind so many of its tokens (512 4096, say)
    target: str = "smollm2-135m-instruct"  # the model that is guessed for
    json: bool = False  # print as JSON


@dataclass(frozen=True)
class Replayed:
    """Greedy answers to one set of prompts, with the drafter's ranks (`token_ranks`) and what look-up would accept (A)."""

    answers: list[Answer]
    ranks: list[Int[Tensor, "_ k"]]
    looked_up: list[Int[Tensor, " _"]]

    @property
    def kept(self) -> list[int]:
        """Answers that do not repeat themselves."""
        return [i for i, a in enumerate(self.answers) if not repeats_itself(a.tokens[a.prompt :].tolist())]

    def lengths(self, tree: Tree | HybridTree) -> list[Int[Tensor, " _"]]:
        """What every start of every answer would accept of a tree."""
        if isinstance(tree, Tree):
            return [accepted_lengths(tree, ranks) for ranks in self.ranks]
        chain = len(tree.chain)
        own = [accepted_lengths(tree.own, ranks) for ranks in self.ranks]
        return [torch.maximum(a, b.clamp_max(chain)) for a, b in zip(own, self.looked_up)]

    def tpc(self, tree: Tree | HybridTree, which: Sequence[int] | None = None) -> float:
        lengths = self.lengths(tree)
        return tokens_per_call([lengths[i] for i in (self.kept if which is None else which)])

    def look_up_tpc(self, chain: int, which: Sequence[int] | None = None) -> float:
        chosen = self.kept if which is None else which
        return tokens_per_call([self.looked_up[i].clamp_max(chain) for i in chosen])

    def by_depth(self, tree: Tree) -> list[float]:
        """Share of the calls that accept at least 1, 2, ... nodes, along the closed loop."""
        hits, calls = torch.zeros(tree.height), 0
        lengths = self.lengths(tree)
        for i in self.kept:
            steps, at = lengths[i].tolist(), 0
            while at < len(steps) - 1:
                hits[: steps[at]] += 1
                calls += 1
                at += steps[at] + 1
        return (hits / max(1, calls)).tolist()


def look_up_lengths(answer: Answer, chain: int, longest: int = LONGEST) -> Int[Tensor, " a"]:
    """How many looked-up tokens every start of an answer would accept (starts as in `token_ranks`)."""
    tokens, places, lengths = answer.tokens.tolist(), Places(longest), []
    for root in range(answer.prompt - 1, len(tokens)):
        found = places.find(tokens[: root + 1], chain)
        true = tokens[root + 1 :]
        length = 0
        while length < min(len(found), len(true)) and found[length] == true[length]:
            length += 1
        lengths.append(length)
    return torch.tensor(lengths)


def write_greedily(target: Target, prompts: Sequence[Sequence[int]], stops: frozenset[int], aux: tuple[int, ...],
                   max_tokens: int = TOKENS) -> list[Answer]:  # fmt: skip
    return write(
        target.model,
        prompts,
        [0.0] * len(prompts),
        max_tokens=max_tokens,
        stops=stops,
        aux_layers=aux,
        generator=torch.Generator().manual_seed(0),
    )


def replay(drafter: EagleDrafter, target: Target, answers: list[Answer], depth: int = DEPTH) -> Replayed:
    weight = target.source.state["embedding.weight"]

    def embed(tokens: Tensor) -> Tensor:
        return torch.nn.functional.embedding(tokens, weight).float()

    wide = [Answer(a.tokens, a.prompt, a.features.float(), a.argmax, a.temperature) for a in answers]
    with torch.no_grad():
        ranks = token_ranks(drafter.float(), embed, wide, depth)
    return Replayed(answers, ranks, [look_up_lengths(a, depth) for a in answers])


def speculative(options: SpeculativeTask) -> dict[str, Any]:
    """The verb `tenfold eval speculative`."""
    if options.lengths:
        return by_length(options)
    files = sorted(options.val.glob("*.jsonl")) if options.val.is_dir() else [options.val]
    if not files:
        raise UsageError(f"--val {options.val}: the folder holds no .jsonl files.")
    path = locate(options.target)
    target = open_target(path, "auto")
    network = load(options.weights)
    if not isinstance(network, EagleDrafter):
        raise WeightsError(f"{options.weights} is a {type(network).__name__}, not a drafter.")
    check_target(network.config, target.source, options.weights)
    aux = network.config.aux_layers or default_aux_layers(target.model.config.depth)
    tokenizer = load_tokenizer(path)
    llms = {"none": LLM(path, None), "drafter": LLM(path, options.weights, Speculation(tree=SIXTEEN))}
    report: dict[str, Any] = {}
    for file in files:
        prompts = [tokenizer.chat([{"role": "user", "content": p}]) for p in read_prompts(file)[: options.limit]]
        answers = write_greedily(target, prompts, tokenizer.stop_ids, aux)
        report |= {f"{file.stem}/{k}": v for k, v in figures(network, replay(network, target, answers)).items()}
        report |= {f"{file.stem}/{k}": v for k, v in through_engine(llms, prompts).items()}
    return report


def figures(network: EagleDrafter, replayed: Replayed) -> dict[str, Any]:
    """TPC of the usual shapes, look-up as the floor beside them."""
    every = range(len(replayed.answers))
    trees = {"chain 4": Tree.chain(4), "tree 16": SIXTEEN, "hybrid 10 + 6": TEN_AND_SIX}
    result: dict[str, Any] = {"answers": len(every), "answers that repeat": len(every) - len(replayed.kept)}
    if network.config.reduced:
        counts = count_tokens(replayed.answers, network.config.vocabulary)
        result["draft vocabulary covers"] = coverage(network.ids, counts)
    result["TPC no drafter (floor)"] = 1.0
    result["TPC look-up 6 (floor)"] = replayed.look_up_tpc(LOOK_UP.nodes)
    for name, tree in trees.items():
        result[f"TPC {name}"] = replayed.tpc(tree)
        result[f"TPC {name}, all answers"] = replayed.tpc(tree, every)
    for depth, share in enumerate(replayed.by_depth(SIXTEEN), 1):
        result[f"tree 16 accepts >= {depth}"] = share
    return result


def through_engine(llms: Mapping[str, LLM], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Decodes for real, with and without the drafter: TPC, and how many answers are the same to the last token."""
    params = SamplingParams(max_tokens=TOKENS)
    alone = llms["none"].generate(list(prompts), params)
    result: dict[str, Any] = {}
    for name in llms:
        if name == "none":
            continue
        drafted = llms[name].generate(list(prompts), params)
        same = sum(a.token_ids == b.token_ids for a, b in zip(alone, drafted, strict=True))
        result["engine TPC tree 16"] = engine_tpc([r for r in drafted if not repeats_itself(r.token_ids)])
        result["engine TPC tree 16, all answers"] = engine_tpc(drafted)
        result["same text as without a drafter"] = f"{same} of {len(alone)} in {llms[name].format}"
    return result


def by_length(options: SpeculativeTask) -> dict[str, Any]:
    """Greedy TPC of the tree of 16 behind long and short contexts that end at the same places of a text."""
    path = locate(options.target)
    longest = max(options.lengths)
    llm = LLM(path, options.weights, Speculation(tree=SIXTEEN), max_batch=1, cache_tokens=longest + 16 * TOKENS)
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


def engine_tpc(results: Sequence[Result]) -> float:
    """TPC over several answers, the prompt's pass not counted: its last token is the first root."""
    return sum(r.stats.tokens for r in results) / max(1, sum(r.stats.calls for r in results))
