"""Constrained decoding (JSON schema, regular expression, grammar): a mask over the vocabulary for every node of a draft tree.

    grammars = Grammars(tokenizer, vocabulary=49152)
    params = SamplingParams(grammar=grammars.json_schema({"type": "object", ...}))
    state = params.grammar.matcher();  state.allowed(tree, draft_tokens) -> (N, V);  state.advance(token)

Where a grammar leaves one continuation only (names of fields, punctuation), its tokens take the place of the tree's last
branch: they are verified like any draft token, so nothing but the number of passes changes. One call of xgrammar walks a whole
tree. The mask comes before the softmax of verification, so the answer has exactly the distribution of constrained sampling
without speculation. xgrammar: arXiv 2411.15100.

    N root and nodes   n nodes   V vocabulary
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tenfold.errors import MissingExtra, UsageError
from tenfold.language.drafting.protocol import Draft
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.tokenizer import Tokenizer

LONGEST = 64 << 10  # characters of a schema, expression or grammar
CACHE = 64 << 20  # bytes of compiled grammars that are kept


class Grammars:
    """Compiles grammars for one tokenizer; what was compiled before is kept. `vocabulary` is the model's."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary

    def json_schema(self, schema: str | dict[str, Any]) -> Grammar:
        """Compact JSON that is valid under the schema. Raises UsageError for a schema that cannot be used."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return self._compiled("JSON schema", text, lambda c: c.compile_json_schema(text, any_whitespace=False))

    def regex(self, pattern: str) -> Grammar:
        return self._compiled("regular expression", pattern, lambda c: c.compile_regex(pattern))

    def ebnf(self, grammar: str) -> Grammar:
        """A grammar in xgrammar's EBNF, with the rule `root`."""
        return self._compiled("grammar", grammar, lambda c: c.compile_grammar(grammar))

    def json(self) -> Grammar:
        """Any JSON."""
        return self._compiled("JSON", "", lambda c: c.compile_builtin_json_grammar())

    def _compiled(self, what: str, text: str, compile_: Any) -> Grammar:
        if len(text) > LONGEST:
            raise UsageError(f"a {what} of {len(text):,} characters: at most {LONGEST:,} are taken.")
        try:
            return Grammar(compile_(self._compiler), self.vocabulary, self.tokenizer)
        except (RuntimeError, ValueError, TypeError) as error:  # xgrammar's errors are RuntimeErrors
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1][:300]
            reason = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", reason)  # its clock, and a place in its source
            raise UsageError(f"this {what} cannot be used: {reason}") from error

    @cached_property
    def _compiler(self) -> Any:
        x = _xgrammar()
        words = {i: word for word, i in self.tokenizer.backend.get_vocab(with_added_tokens=True).items()}
        kind = x.VocabType.BYTE_FALLBACK
        if type(self.tokenizer.backend.decoder).__name__ == "ByteLevel":
            kind = x.VocabType.BYTE_LEVEL
        stops = sorted(self.tokenizer.stop_ids)
        listed = [words.get(i, "") for i in range(self.vocabulary)]
        info = x.TokenizerInfo(listed, kind, vocab_size=self.vocabulary, stop_token_ids=stops)
        return x.GrammarCompiler(info, max_threads=1, cache_limit_bytes=CACHE)


class Grammar:
    """A compiled grammar; every request gets a matcher of its own."""

    def __init__(self, compiled: Any, vocabulary: int, tokenizer: Tokenizer) -> None:
        self.compiled, self.vocabulary, self.tokenizer = compiled, vocabulary, tokenizer

    def matcher(self) -> GrammarState:
        return GrammarState(_xgrammar().GrammarMatcher(self.compiled), self.vocabulary, self.tokenizer)


class GrammarState:
    """The state of one answer. It has taken every emitted token, the root of the next tree among them."""

    def __init__(self, matcher: Any, vocabulary: int, tokenizer: Tokenizer) -> None:
        self._matcher, self._vocabulary, self._tokenizer = matcher, vocabulary, tokenizer

    @property
    def complete(self) -> bool:
        """Whether the end token has been taken."""
        return self._matcher.is_terminated()

    def advance(self, token: int) -> None:
        if not self.complete:
            accepted = self._matcher.accept_token(token)
            assert accepted, f"token {token} was emitted against the grammar"

    def forced(self) -> list[int]:
        """The tokens of the text that must follow, as the tokenizer would write it; none where there is a choice."""
        text = "" if self.complete else self._matcher.find_jump_forward_string()
        return self._tokenizer.encode(text, special=False) if text else []

    def allowed(self, tree: Tree, tokens: Int[Tensor, " n"]) -> Bool[Tensor, "N V"]:
        """What may follow the root and every node; a row of a node that the grammar forbids is all False, and no path leads
        there. Leaves the state as it is."""
        size = tree.nodes + 1
        # Zeros first: below a refused node the buffer is not written.
        bits = torch.zeros(size, -(-self._vocabulary // 32), dtype=torch.int32)
        children, siblings = _links(tree, tokens)
        given = torch.cat([torch.zeros(1, dtype=torch.int64), tokens.clamp_min(0)])
        self._matcher.traverse_draft_tree(children, siblings, given, bits)
        places = torch.arange(32, dtype=torch.int32)
        return ((bits[:, :, None] >> places) & 1).bool().flatten(1)[:, : self._vocabulary]


def lead(grammars: Sequence[GrammarState | None], draft: Draft, tree: Tree) -> Draft:
    """The proposal with what the grammars force on the branch of the root's last child, which must consist of point masses: it
    is where a chain from prompt lookup is, and with rule top_k every node is one."""
    if tree.nodes == 0:
        return draft
    chain = [int(tree.children[0].max())]
    while (below := int(tree.next_token[chain[-1]])) >= 0:
        chain.append(below)
    beside = [n for n in range(1, tree.nodes + 1) if tree.mask[n, chain[0]] and n not in chain]
    tokens = draft.tokens
    for b, grammar in enumerate(grammars):
        forced = grammar.forced()[: len(chain)] if grammar else []
        exact = draft.q is None or (draft.point is not None and bool(draft.point[b, [n - 1 for n in chain]].all()))
        if not forced or not exact:
            continue
        if tokens is draft.tokens:
            tokens = tokens.clone()
        row = torch.full((len(chain),), -1)
        row[: len(forced)] = torch.tensor(forced)
        tokens[b, [n - 1 for n in chain]] = row.to(tokens.device)
        tokens[b, [n - 1 for n in beside]] = -1
    return draft if tokens is draft.tokens else replace(draft, tokens=tokens)


def _links(tree: Tree, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """First child and next sibling of every node, leaving out the nodes without a draft token."""
    if bool((tokens >= 0).all()):
        return tree.next_token, tree.next_sibling
    child, sibling = [-1] * (tree.nodes + 1), [-1] * (tree.nodes + 1)
    last: dict[int, int] = {}
    for node, token in enumerate(tokens.tolist(), 1):
        if token < 0:
            continue
        parent = tree.parents[node]
        if parent in last:
            sibling[last[parent]] = node
        else:
            child[parent] = node
        last[parent] = node
    return torch.tensor(child), torch.tensor(sibling)


def _xgrammar() -> Any:
    try:
        import xgrammar
    except ImportError as error:
        raise MissingExtra("xgrammar", "language", "it keeps answers to a grammar") from error
    return xgrammar
