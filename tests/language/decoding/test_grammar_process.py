"""A grammar that would take hours or all memory is refused at its limit, and the next one is compiled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from gguf_files import bytes_tokenizer
from tenfold.errors import UsageError
from tenfold.language.decoding.grammar import Grammar, Grammars

TOKENIZER = bytes_tokenizer()
BOMBS: dict[str, Callable[[Grammars], Grammar]] = {
    "optional letters": lambda g: g.regex("a?" * 20_000),
    "deep nesting": lambda g: g.regex("(" * 30_000 + "a" + ")" * 30_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_within_its_time_and_the_next_grammar_compiles(bomb: str) -> None:
    grammars = Grammars(TOKENIZER, TOKENIZER.size, seconds=1.5)
    assert grammars.regex("ab").matcher().forced()  # starts the process
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"cannot be used.*"):
        BOMBS[bomb](grammars)
    assert time.monotonic() - start < 10
    start = time.monotonic()
    with pytest.raises(UsageError, match="cannot be used"):
        BOMBS[bomb](grammars)
    assert time.monotonic() - start < 0.2  # a refusal is kept
    assert grammars.regex("abc").matcher().forced()
    grammars.close()


def test_a_compilation_in_progress_ends_with_the_process() -> None:
    grammars = Grammars(TOKENIZER, TOKENIZER.size, seconds=60)
    grammars.regex("ab")
    timer = threading.Timer(0.5, grammars.close)
    timer.start()
    start = time.monotonic()
    with pytest.raises(UsageError, match="compilation failed"):
        BOMBS["optional letters"](grammars)
    assert time.monotonic() - start < 10
    assert grammars.regex("abc")
    grammars.close()
