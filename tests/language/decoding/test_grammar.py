"""A tree's masks are those of walking every path by hand, and whatever is written under a schema is valid under it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import jsonschema
import pytest
import torch
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_files import bytes_tokenizer
from language.engine_models import NoisyTarget, tiny_llama
from tenfold.errors import UsageError
from tenfold.language.decoding import grammar as grammar_module
from tenfold.language.decoding.engine import LLMEngine
from tenfold.language.decoding.grammar import PIECE, Grammar, Grammars, lead
from tenfold.language.drafting.ngram import NgramDrafter
from tenfold.language.drafting.protocol import Draft
from tenfold.language.drafting.speculation import Speculation
from tenfold.language.drafting.tree import Tree
from tenfold.language.models.tokenizer import Tokenizer
from tenfold.language.sampling.sampling import SamplingParams

TOKENIZER = bytes_tokenizer()
VOCABULARY = TOKENIZER.size + 6  # a model's table may be longer than its tokenizer's
GRAMMARS = Grammars(TOKENIZER, VOCABULARY)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,4}$"}, "age": {"enum": [1, 22, 333]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS = [
    PERSON,
    {"enum": ["ab", "abba", "b"]},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False},
    {"anyOf": [{"type": "null"}, {"enum": [1, 2]}]},
]


def follow(text: str) -> list[int]:
    return TOKENIZER.encode(text, special=False)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_masks_of_a_tree_equal_accepting_and_rolling_back_by_hand(data: st.DataObject) -> None:
    grammar = GRAMMARS.json_schema(PERSON)
    text = follow('{"name": "ab", "age": 22}')
    start = data.draw(st.integers(0, len(text) - 1))
    parents = [0]
    for i in range(1, data.draw(st.integers(0, 9)) + 1):
        parents.append(data.draw(st.integers(parents[-1], i - 1)))
    tree = Tree(tuple(parents))
    tokens = []
    for node in range(1, len(parents)):  # mostly what may stand there, sometimes anything, sometimes nothing
        place = start + int(tree.depth[node]) - 1
        right = text[place] if place < len(text) else 0
        tokens.append(data.draw(st.sampled_from([right, right, right, 5, 257, -1])))
        if tree.parents[node] and tokens[tree.parents[node] - 1] < 0:
            tokens[-1] = -1
    state, oracle = grammar.matcher(), xgrammar.GrammarMatcher(grammar.compiled)
    for token in text[:start]:
        state.advance(token)
        assert oracle.accept_token(token)
    found = state.allowed(tree, torch.tensor(tokens, dtype=torch.int64))
    for node in range(len(parents)):
        path = [n for n in range(1, node + 1) if tree.mask[node, n]]
        accepted = 0
        for n in path:
            if tokens[n - 1] < 0 or oracle.is_terminated() or not oracle.accept_token(tokens[n - 1]):
                break
            accepted += 1
        if accepted == len(path):
            expected = torch.zeros(1, -(-VOCABULARY // 32), dtype=torch.int32)
            if not oracle.is_terminated():
                oracle.fill_next_token_bitmask(expected)
            bits = [bool(int(expected[0, i // 32]) >> (i % 32) & 1) for i in range(VOCABULARY)]
            assert found[node].tolist() == bits
        else:
            assert not found[node].any()
        oracle.rollback(accepted)
    again = state.allowed(tree, torch.tensor(tokens, dtype=torch.int64))
    assert torch.equal(found, again)  # the walk has left the state as it was


def answers(grammar: object, speculate: bool, heat: float) -> list[list[int]]:
    model = tiny_llama(VOCABULARY)
    tree = Tree.from_paths([[0], [1], [0, 0], [0, 0, 0]])
    drafter = NoisyTarget(model, 0.3) if speculate else None
    engine = LLMEngine(
        model,
        TOKENIZER,
        drafter,
        speculation=Speculation(planner=lambda n, s: (tree, "without_replacement")) if speculate else None,
    )
    found: dict[str, list[int]] = {}
    for i in range(2):
        params = SamplingParams(heat, max_tokens=60, seed=i, grammar=grammar)
        engine.add_request(str(i), [i + 1, 7], params)
        found[str(i)] = []
    while engine.busy:
        for delta in engine.step():
            found[delta.request_id] += delta.token_ids
    return list(found.values())


@pytest.mark.parametrize("schema", SCHEMAS, ids=[str(i) for i in range(len(SCHEMAS))])
def test_every_answer_is_valid_under_its_schema_with_and_without_speculation(schema: dict) -> None:
    grammar = GRAMMARS.json_schema(schema)
    greedy = answers(grammar, False, 0.0)
    assert answers(grammar, True, 0.0) == greedy  # the same text, in fewer passes
    for ids in [*greedy, *answers(grammar, True, 1.0)]:
        assert ids[-1] == 0  # the model itself would never stop here
        jsonschema.validate(json.loads(TOKENIZER.decode(ids)), schema)


@pytest.mark.parametrize("kind", ["prompt lookup", "tree"])
def test_what_a_grammar_forces_is_guessed_and_saves_passes(kind: str) -> None:
    model, grammar = tiny_llama(VOCABULARY), GRAMMARS.json_schema(PERSON)
    drafter = NgramDrafter() if kind == "prompt lookup" else NoisyTarget(model, 3.0)
    tree = Tree.chain(6) if kind == "prompt lookup" else Tree.from_paths([[0], [1], [0, 0], [1, 0], [1, 1], [1, 0, 0]])
    texts, calls = [], []
    for one, plan in ((None, None), (drafter, Speculation(planner=lambda n, s: (tree, "top_k")))):
        engine = LLMEngine(model, TOKENIZER, one, speculation=plan)
        engine.add_request("a", [1, 7], SamplingParams(max_tokens=60, grammar=grammar))
        ids = []
        while engine.busy:
            for delta in engine.step():
                ids += delta.token_ids
                calls += [delta.stats.calls] if delta.stats else []
        texts.append(TOKENIZER.decode(ids))
    assert texts[0] == texts[1]
    assert texts[0].startswith('{"name": "')
    assert calls[1] <= calls[0] - 10  # {"name": " and ", "age":  are 19 tokens of this vocabulary


def test_forced_tokens_never_take_the_place_of_a_draw() -> None:
    """A node drawn from q must stay what was drawn, or its siblings would be checked against another distribution."""
    state = GRAMMARS.json_schema(PERSON).matcher()
    tree = Tree.from_paths([[0], [1], [0, 0], [1, 0]])
    drawn = Draft(torch.full((1, 4), 5), torch.ones(1, 3, VOCABULARY) / VOCABULARY)
    assert lead([state], drawn, tree) is drawn
    mixed = replace(drawn, point=torch.tensor([[False, True, False, True]]))
    assert lead([state], mixed, tree).tokens.tolist() == [[5, *follow('{"')[:1], 5, *follow('{"')[1:]]]
    assert drawn.tokens.tolist() == [[5] * 4]
    assert lead([None], Draft(torch.full((1, 4), 5)), tree).tokens.tolist() == [[5] * 4]


def test_regular_expressions_and_grammars_bind_too() -> None:
    for grammar in (GRAMMARS.regex("(ab|cd){2,3}x"), GRAMMARS.ebnf('root ::= "ab" "ab" "x" | "cd" "ab" "x"')):
        for ids in answers(grammar, True, 1.0):
            assert re.fullmatch("(ab|cd){2,3}x", TOKENIZER.decode(ids))


def test_what_cannot_be_compiled_is_the_users_mistake() -> None:
    for make in (
        lambda: GRAMMARS.json_schema('{"type": '),
        lambda: GRAMMARS.json_schema({"type": "nonsense"}),
        lambda: GRAMMARS.regex("(ab"),
        lambda: GRAMMARS.ebnf("no rule"),
        lambda: GRAMMARS.regex("a" * 70_000),
    ):
        with pytest.raises(UsageError, match=r"cannot be used|at most"):
            make()


@pytest.mark.parametrize("make", [lambda g: g.regex("[^\\s\\S]"), lambda g: g.ebnf("root ::= root")])
def test_a_grammar_that_allows_no_text_is_refused_before_a_request_begins(make: Callable[[Grammars], Grammar]) -> None:
    with pytest.raises(UsageError, match="no text follows it"):
        make(GRAMMARS)


def test_forced_text_without_an_end_is_asked_for_in_pieces() -> None:
    """An endless one took all memory; the limit of the test is the number of tokens."""
    tree = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
    schema = {"type": "object", "properties": {"a": tree}, "required": ["a"], "additionalProperties": False}
    for grammar in (GRAMMARS.ebnf('root ::= "a" root'), GRAMMARS.json_schema(schema)):
        state = grammar.matcher()
        written: list[int] = []
        for _ in range(3 * PIECE):
            following = state.forced()
            assert 0 < len(following) <= PIECE
            state.advance(following[0])
            written.append(following[0])
        text = TOKENIZER.decode(written)
        assert text.startswith('{"a": [') or set(text) == {"a"}


def test_forced_text_is_tokenised_once_and_not_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "some words and more of them " * 40
    state = GRAMMARS.json_schema({"const": text}).matcher()
    expected, given, encode = TOKENIZER.encode(json.dumps(text), special=False), [], Tokenizer.encode

    def counted(self: Tokenizer, words: str, special: bool = True) -> list[int]:
        given.append(len(words))
        return encode(self, words, special)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    for token in expected:
        assert state.forced()[0] == token
        state.advance(token)
    assert sum(given) < 2 * len(text)
    assert max(given) <= PIECE


def test_forced_text_ends_at_a_choice_and_holds_whole_characters() -> None:
    state = GRAMMARS.ebnf('root ::= "a€" ("é" | "è")').matcher()
    assert TOKENIZER.decode(state.forced()) == "a€"
    for token in state.forced()[:2]:  # into the character
        state.advance(token)
    assert state.forced() == follow("a€")[2:]


def test_what_was_compiled_is_kept_within_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(TOKENIZER, VOCABULARY)
    monkeypatch.setattr(grammar_module, "CACHE", 100_000)
    first = grammars.regex("a{1,9}")
    assert grammars.regex("a{1,9}") is first
    for i in range(80):
        grammars.regex(f"a{{1,{i + 10}}}")
        assert grammars.kept <= 100_000
    assert grammars.regex("a{1,9}") is not first
