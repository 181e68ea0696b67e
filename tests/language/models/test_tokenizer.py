"""Streaming text is whole text, whatever the tokens cut; templates and files that lie are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_files import bytes_tokenizer
from tenfold.errors import DataError, UsageError, WeightsError
from tenfold.language.models.tokenizer import Stream, load_tokenizer, read_prompts


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_streamed_text_is_the_text(text: str) -> None:
    tokenizer = bytes_tokenizer()
    stream = Stream(tokenizer)
    pieces = [stream.add(i) for i in tokenizer.encode(text, special=False)]
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert "".join([*pieces, stream.end()]) == text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 256), max_size=30), st.integers(1, 4))
def test_streaming_any_bytes_in_any_groups_gives_their_decoding(ids: list[int], group: int) -> None:
    tokenizer = bytes_tokenizer()
    stream = Stream(tokenizer)
    pieces = [stream.add(*ids[i : i + group]) for i in range(0, len(ids), group)]
    assert "".join([*pieces, stream.end()]) == tokenizer.decode(ids)


def test_control_tokens_are_tokens_only_where_asked() -> None:
    tokenizer = bytes_tokenizer()
    assert tokenizer.encode("ab<end>") == [257, 0]
    plain = tokenizer.encode("ab<end>", special=False)
    assert 0 not in plain
    assert tokenizer.decode(plain) == "ab<end>"
    assert tokenizer.encode("ab<end>") == [257, 0]  # and the switch is back
    assert tokenizer.stop_ids == {0}


def test_a_conversation_is_rendered_in_a_sandbox() -> None:
    tokenizer = bytes_tokenizer()
    assert tokenizer.render([{"role": "user", "content": "ab"}]) == "[user]ab<end>"
    with pytest.raises(UsageError, match="no chat template"):
        bytes_tokenizer(**{"tokenizer.chat_template": None}).chat([])
    with pytest.raises(UsageError, match="a message is"):
        tokenizer.render([{"role": "user"}])
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UsageError, match="does not take"):
        bytes_tokenizer(**{"tokenizer.chat_template": escape}).render([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "known in GGUF is gpt2"),
        ({"tokenizer.ggml.pre": "mystery"}, "known are smollm"),
        ({"tokenizer.ggml.merges": ["x y z"]}, "cannot be used"),
        ({"tokenizer.ggml.token_type": [1]}, "without a kind"),
        ({"tokenizer.ggml.tokens": 5}, "tokenizer.ggml.tokens is missing"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        bytes_tokenizer(**changes)


def test_a_folder_with_a_tokenizer_file_gives_the_same_ids(tmp_path: Path) -> None:
    ours = bytes_tokenizer()
    ours.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}, "chat_template": "x"}')
    again = load_tokenizer(tmp_path)
    assert again.encode("abba 12 ab<end>") == ours.encode("abba 12 ab<end>")
    assert (again.eos, again.template) == (0, "x")
    with pytest.raises(WeightsError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere" / "x")


def test_prompts_come_one_per_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"turns": ["b", "c"]}\n')
    assert read_prompts(file) == ["a", "b"]
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_prompts(file)
