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
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tenfold.errors import MissingExtra, UsageError
from tenfold.language.decoding.grammar_process import CompileProcess
from tenfold.language.drafting.protocol import Draft
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.tokenizer import Tokenizer

LONGEST = 64 << 10  # characters of a schema, expression or grammar
CACHE = 64 << 20  # bytes of compiled grammars that are kept
PIECE = 128  # bytes of forced text that are asked for at once: there may be no end of it
SPECIAL = 256  # in place of a first byte, for tokens that have no text


class Grammars:
    """Compiles grammars for one tokenizer, each within `seconds` and in another process (decoding/grammar_process.py); what
    was compiled before is kept. `vocabulary` is the model's."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, seconds: float = 10.0) -> None:
        self.tokenizer, self.vocabulary, self.seconds = tokenizer, vocabulary, seconds
        self._kept: OrderedDict[tuple[str, str], tuple[Grammar | UsageError, int]] = OrderedDict()
        self._process: CompileProcess | None = None
        self._lock, self._one = threading.Lock(), threading.Lock()

    def json_schema(self, schema: str | dict[str, Any]) -> Grammar:
        """Compact JSON that is valid under the schema. Raises UsageError for a schema that cannot be used."""
        return self._compiled("JSON schema", schema if isinstance(schema, str) else json.dumps(schema))

    def regex(self, pattern: str) -> Grammar:
        return self._compiled("regular expression", pattern)

    def ebnf(self, grammar: str) -> Grammar:
        """A grammar in xgrammar's EBNF, with the rule `root`."""
        return self._compiled("grammar", grammar)

    def json(self) -> Grammar:
        """Any JSON."""
        return self._compiled("JSON", "")

    def start(self) -> None:
        """Starts the process that compiles, which takes some seconds."""
        self._compiling().start()

    def close(self) -> None:
        """Ends the process that compiles, and what waits for it; a later grammar starts another."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.close()

    @property
    def kept(self) -> int:
        """Bytes of what was compiled before."""
        return sum(size for _, size in self._kept.values())

    def _compiled(self, what: str, text: str) -> Grammar:
        if len(text) > LONGEST:
            raise UsageError(f"a {what} of {len(text):,} characters: at most {LONGEST:,} are taken.")
        made = self._known(what, text)
        if made is None:
            with self._one:  # another thread may have been busy with the same one
                made = self._known(what, text) or self._make(what, text)
        if isinstance(made, UsageError):  # a refusal is kept too: it may have cost all of its time
            raise UsageError(str(made))
        return made

    def _known(self, what: str, text: str) -> Grammar | UsageError | None:
        with self._lock:
            if (what, text) not in self._kept:
                return None
            self._kept.move_to_end((what, text))
            return self._kept[what, text][0]

    def _make(self, what: str, text: str) -> Grammar | UsageError:
        size = 2 * len(text) + 1000
        try:
            compiled = _xgrammar().CompiledGrammar.deserialize_json(self._compiling().compile(what, text), self._info)
            made: Grammar | UsageError = Grammar(compiled, self.vocabulary, self.tokenizer, self._first_bytes)
            size += compiled.memory_size_bytes
        except UsageError as error:
            made = error
        with self._lock:
            self._kept[what, text] = (made, size)
            while self.kept > CACHE and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return made

    @cached_property
    def _info(self) -> Any:
        x = _xgrammar()
        words = {i: word for word, i in self.tokenizer.backend.get_vocab(with_added_tokens=True).items()}
        kind = x.VocabType.BYTE_FALLBACK
        if type(self.tokenizer.backend.decoder).__name__ == "ByteLevel":
            kind = x.VocabType.BYTE_LEVEL
        stops = sorted(self.tokenizer.stop_ids)
        listed = [words.get(i, "") for i in range(self.vocabulary)]
        return x.TokenizerInfo(listed, kind, vocab_size=self.vocabulary, stop_token_ids=stops)

    def _compiling(self) -> CompileProcess:
        with self._lock:
            if self._process is None:
                self._process = CompileProcess(self._info.serialize_json(), self.seconds)
            return self._process

    @cached_property
    def _first_bytes(self) -> FirstBytes:
        outside = {*self._info.stop_token_ids, *self._info.special_token_ids}
        words = self._info.decoded_vocab
        return FirstBytes([SPECIAL if i in outside or not w else w[0] for i, w in enumerate(words)])


class FirstBytes:
    """The first byte of every token's text, to see in a mask of allowed tokens whether they all begin with the same one."""

    def __init__(self, first: Sequence[int]) -> None:
        self._first = np.array(first, np.int16)
        self._others: dict[int, np.ndarray] = {}

    def common(self, bits: np.ndarray) -> int | None:
        """The byte with which all tokens of a mask begin; None where there is a choice, or nothing."""
        places = bits.nonzero()[0]
        if not len(places):
            return None
        lowest = int(bits[places[0]]) & 0xFFFFFFFF
        byte = int(self._first[int(places[0]) * 32 + (lowest & -lowest).bit_length() - 1])
        return None if byte == SPECIAL or (bits & self._without(byte)).any() else byte

    def _without(self, byte: int) -> np.ndarray:
        """A mask of the tokens that do not begin with this byte."""
        if byte not in self._others:
            flags = np.zeros(-(-len(self._first) // 32) * 32, bool)
            flags[: len(self._first)] = self._first != byte
            self._others[byte] = np.packbits(flags, bitorder="little").view(np.int32)
        return self._others[byte]


class Grammar:
    """A compiled grammar; every request gets a matcher of its own."""

    def __init__(self, compiled: Any, vocabulary: int, tokenizer: Tokenizer, first_bytes: FirstBytes) -> None:
        self.compiled, self.vocabulary, self.tokenizer = compiled, vocabulary, tokenizer
        self.first_bytes = first_bytes

    def matcher(self) -> GrammarState:
        return GrammarState(_xgrammar().GrammarMatcher(self.compiled), self)


class GrammarState:
    """The state of one answer. It has taken every emitted token, the root of the next tree among them."""

    def __init__(self, matcher: Any, grammar: Grammar) -> None:
        self._matcher, self._vocabulary, self._tokenizer = matcher, grammar.vocabulary, grammar.tokenizer
        self._first_bytes = grammar.first_bytes
        self._bits = torch.zeros(1, -(-self._vocabulary // 32), dtype=torch.int32)
        self._following: list[int] | None = None  # forced tokens from here on; None: not looked for yet

    @property
    def complete(self) -> bool:
        """Whether the end token has been taken."""
        return self._matcher.is_terminated()

    def advance(self, token: int) -> None:
        """Raises UsageError at a dead end: where the grammar allows no token at all, not even the end."""
        if self.complete:
            return
        if not self._matcher.accept_token(token):
            if not self._mask(self._matcher).any():
                raise UsageError("the grammar has come to a dead end: no token may follow this text, not even the end.")
            raise RuntimeError(f"token {token} was emitted against the grammar")
        self._following = self._following[1:] or None if self._following and self._following[0] == token else None

    def forced(self) -> list[int]:
        """The first tokens of the text that must follow, as the tokenizer would write it; none where there is a choice."""
        if self._following is None:
            text, cut = self._forced_text()
            found = self._tokenizer.encode(text, special=False) if text else []
            # Where the text continues beyond the piece its last tokens are not those that the tokenizer would write.
            self._following = found[: max(1, 3 * len(found) // 4)] if cut else found
        return self._following

    def _forced_text(self) -> tuple[str, bool]:
        """At most PIECE bytes, and whether there may be more. Characters that are not whole are left out."""
        found = bytearray()
        if not self.complete:
            probe = self._matcher.fork()
            while len(found) < PIECE and (byte := self._first_bytes.common(self._mask(probe))) is not None:
                if not probe.accept_string(bytes([byte])):
                    break
                found.append(byte)
        try:
            return found.decode(), len(found) == PIECE
        except UnicodeDecodeError as error:
            return found[: error.start].decode(), len(found) == PIECE

    def _mask(self, matcher: Any) -> np.ndarray:
        """The tokens that may follow, a bit each."""
        self._bits.zero_()
        matcher.fill_next_token_bitmask(self._bits)
        return self._bits[0].numpy()

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
        try:
            forced = grammar.forced()[: len(chain)] if grammar else []
        except Exception:  # these are proposals: the masks, or the next token, say what is wrong with its grammar
            forced = []
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
