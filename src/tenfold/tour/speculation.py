"""The tour's speculative decoding panel: greedy answers with and without draft tokens, the time saved, a draft tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import thread_time
from typing import TYPE_CHECKING, Any

from tenfold.engine.report import Report
from tenfold.tour.page import say

if TYPE_CHECKING:
    from tenfold.language.decoding.engine import LLMEngine
    from tenfold.language.decoding.request import Stats
    from tenfold.language.drafting.protocol import Draft
    from tenfold.language.drafting.tree import Tree

PROMPTS = (
    "A baker makes 12 loaves an hour for 5 hours and sells 41 of them. How many are left?",
    "Write three sentences about a walk by the sea.",
    "List the planets of the solar system, one per line.",
)
TOKENS = 96
RUNS = 2  # of every answer; the faster one counts. Time is that of the thread, so that other work on the machine does not count
SIDES = {"target only": None, "prompt lookup": "ngram", "trained drafter": "auto"}


@dataclass
class Answer:
    """One answer: its text, what it cost, how many tokens there were after how many seconds, and the drafts on its way."""

    text: str = ""
    stats: Stats | None = None
    written: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])
    drafts: list[DraftedStep] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.written[-1][0]


@dataclass(frozen=True)
class DraftedStep:
    """A tree, the token of each node (-1 where none was drafted), and the accepted nodes from the root down."""

    tree: Tree
    tokens: list[int]
    accepted: list[int]


def speculation_panel() -> Report:
    """Target passes, seconds and texts of three prompts on each side, then pictures of the accepted draft tokens."""
    from tenfold.language.decoding.engine import LLMEngine, locate
    from tenfold.language.drafting.speculation import choose_drafter
    from tenfold.language.models.prepare import open_target
    from tenfold.language.models.tokenizer import load_tokenizer

    say("fetching SmolLM2-135M-Instruct (98 MB, once) and answering three prompts")
    path = locate("smollm2-135m-instruct")
    target, tokenizer = open_target(path, "auto", "auto"), load_tokenizer(path)
    chosen = {side: choose_drafter(drafter, target) for side, drafter in SIDES.items()}
    engines = {side: LLMEngine(target.model, tokenizer, drafter) for side, (drafter, _) in chosen.items()}
    answers: dict[str, list[Answer]] = {side: [] for side in SIDES}
    with one_thread():
        for prompt in PROMPTS:
            ids = tokenizer.chat([{"role": "user", "content": prompt}])
            runs = [{side: answer(engine, ids) for side, engine in engines.items()} for _ in range(RUNS)]
            for side in SIDES:
                answers[side].append(min((run[side] for run in runs), key=lambda a: a.seconds))
    plain, drafted = answers["target only"], answers["trained drafter"]
    report = Report("speculation")
    report.text(
        f"SmolLM2-135M-Instruct in {target.form}, the number format that is the default on this machine, answers three prompts "
        f"greedily; seconds are those of one core. Draft tokens are checked by the target in one pass over a tree, and only "
        f"those that it would have written itself are accepted. With the trained drafter: "
        f"{chosen['trained drafter'][1]}. The baselines are the target only, which saves nothing, and prompt lookup, which "
        f"needs no training."
    )
    report.table("three answers together", [summary(side, found, plain) for side, found in answers.items()])
    rows = []
    for prompt, without, with_drafts in zip(PROMPTS, plain, drafted):
        rows.append(
            {
                "prompt": prompt,
                "target only, s": f"{without.seconds:.2f}",
                "trained drafter, s": f"{with_drafts.seconds:.2f}",
                "time saved": saved(with_drafts.seconds, without.seconds),
                "tokens per target pass": f"{tokens_per_pass([with_drafts]):.2f}",
                "answer": with_drafts.text,
            }
        )
    report.table("prompt by prompt", rows)
    gains = [w.seconds - d.seconds for w, d in zip(plain, drafted)]
    shown = gains.index(max(gains))
    report.plot(
        f"tokens written over time: {PROMPTS[shown]}",
        {side: found[shown].written for side, found in answers.items()},
        x="seconds",
        y="tokens",
    )
    add_trees(report, [step for found in drafted for step in found.drafts], tokenizer)
    return report


def summary(side: str, answers: Sequence[Answer], plain: Sequence[Answer]) -> dict[str, str]:
    """A row of the table: a side's cost over all prompts, and whether its texts are the target's own."""
    seconds, alone = sum(a.seconds for a in answers), sum(a.seconds for a in plain)
    same = sum(a.text == b.text for a, b in zip(answers, plain))
    return {
        "side": side,
        "tokens per target pass": f"{tokens_per_pass(answers):.2f}",
        "seconds": f"{seconds:.2f}",
        "time saved": saved(seconds, alone),
        "same texts as the target only": f"{same} of {len(plain)}",
    }


def saved(seconds: float, baseline: float) -> str:
    return f"{100 * (1 - seconds / baseline):.0f} %"


def tokens_per_pass(answers: Sequence[Answer]) -> float:
    stats = [a.stats for a in answers if a.stats is not None]
    return sum(s.tokens for s in stats) / max(1, sum(s.calls for s in stats))


def answer(engine: LLMEngine, ids: list[int]) -> Answer:
    """One greedy answer, with the time of every delta since the request."""
    from tenfold.language.sampling.sampling import SamplingParams

    made, count = Answer(), 0
    with watched(engine.runner.drafter) as drafts:
        start = thread_time()
        engine.add_request("tour", ids, SamplingParams(temperature=0.0, max_tokens=TOKENS))
        while engine.busy:
            for delta in engine.step():
                made.text += delta.text
                made.stats = delta.stats or made.stats
                count += len(delta.token_ids)
                made.written.append((thread_time() - start, count))
                if drafts:
                    tree, tokens = drafts.pop()
                    made.drafts.append(DraftedStep(tree, tokens, accepted_path(tree, tokens, delta.token_ids)))
    return made


@contextmanager
def watched(drafter: Any) -> Iterator[list[tuple[Tree, list[int]]]]:
    """The drafts that `drafter` makes within the block: each tree, and the token of each of its nodes. The object stays the
    same one, because the engine plans by what it is."""
    drafts: list[tuple[Tree, list[int]]] = []
    if drafter is None:
        yield drafts
        return
    own = drafter.draft

    def draft(states: Any, tree: Tree, *rest: Any) -> Draft:
        made = own(states, tree, *rest)
        drafts.append((tree, [-1, *made.tokens[0].tolist()]))
        return made

    drafter.draft = draft
    try:
        yield drafts
    finally:
        del drafter.draft


def accepted_path(tree: Tree, tokens: Sequence[int], emitted: Sequence[int]) -> list[int]:
    """The accepted nodes: from the root down, the child whose token was emitted."""
    path, node = [], 0
    for token in emitted:
        children = [c for c in range(1, len(tree.parents)) if tree.parents[c] == node and tokens[c] == token]
        if not children:
            break
        node = children[0]
        path.append(node)
    return path


def add_trees(report: Report, steps: Sequence[DraftedStep], tokenizer: Any) -> None:
    """The draft with the most accepted tokens, word by word, and how often each node of the commonest tree was accepted."""
    from tenfold.language.tuning.tree_picture import tree_svg

    if not steps:
        return
    best = max(steps, key=lambda step: len(step.accepted))
    words = ["root", *(None if token < 0 else word(tokenizer, token) for token in best.tokens[1:])]
    report.svg("one draft: the accepted tokens are filled", tree_svg(best.tree, words=words, accepted=best.accepted))
    trees = [step.tree for step in steps]
    common = max(trees, key=trees.count)
    alike = [step for step in steps if step.tree == common]
    shares = [sum(node in step.accepted for step in alike) / len(alike) for node in range(1, common.nodes + 1)]
    report.svg(
        f"how often each draft token was accepted, in {len(alike)} drafts of one shape", tree_svg(common, shares)
    )


def word(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token]).replace("\n", "⏎").strip()[:14] or "(space)"


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, whose time is then all the time of a step."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
