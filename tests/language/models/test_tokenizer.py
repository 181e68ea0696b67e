"""Streaming text is whole text, whatever the tokens cut; templates and files that lie are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_files import bytes_tokenizer, fields
from tenfold.errors import DataError, UsageError, WeightsError
from tenfold.language.models.tokenizer import Stream, from_gguf, load_tokenizer, read_prompts


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


BOS = {"tokenizer.ggml.bos_token_id": 0}


@pytest.mark.parametrize(
    ("changes", "adds"),
    [
        ({"tokenizer.ggml.pre": "llama-bpe"}, True),
        ({"tokenizer.ggml.pre": "llama3"}, True),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, False),
        ({"tokenizer.ggml.pre": "smollm"}, False),
        ({"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.add_bos_token": True}, True),
    ],
)
def test_bos_is_added_where_llama_cpp_adds_it_and_never_twice(changes: dict[str, object], adds: bool) -> None:
    tokenizer = bytes_tokenizer(**BOS, **changes)
    assert (tokenizer.encode("ab")[0] == 0) == adds
    assert tokenizer.encode("<end>ab").count(0) == 1  # a template that writes it
    assert 0 not in tokenizer.encode("ab", special=False)


def test_a_vocabulary_that_asks_for_a_bos_without_naming_one_is_refused() -> None:
    with pytest.raises(WeightsError, match="bos_token_id names no token"):
        bytes_tokenizer(**{"tokenizer.ggml.pre": "llama-bpe"})
    with pytest.raises(WeightsError, match="add_eos_token = True"):
        bytes_tokenizer(**{"tokenizer.ggml.add_eos_token": True})


def test_ends_of_a_gguf_file_are_eos_eot_and_eom() -> None:
    changes = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 7}
    assert bytes_tokenizer(**changes).stop_ids == {0, 5, 7}


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [(5, None, {0, 5}), ([5, 6], 7, {0, 5, 6, 7}), (None, [8], {0, 8}), (99999, None, {0})],
)
def test_ends_of_a_folder_are_those_of_both_its_configurations(
    generation: object, config: object, ends: set[int], tmp_path: Path
) -> None:
    bytes_tokenizer().backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    assert load_tokenizer(tmp_path).stop_ids == ends
    (tmp_path / "config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(WeightsError, match=r"config\.json: eos_token_id = '</s>'; allowed are"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_file_without_a_splitting_is_cut_as_llama_cpp_cuts_it(pre: str | None) -> None:
    given = {**fields(), "tokenizer.ggml.pre": pre}
    tokenizer = from_gguf({name: value for name, value in given.items() if value is not None}, Path("m.gguf"))
    pieces = tokenizer.backend.pre_tokenizer.pre_tokenize_str("In 2024 we paid $1,234.56!")
    wanted = ["In", "Ġ", "202", "4", "Ġwe", "Ġpaid", "Ġ", "$", "1", ",", "234", ".", "56", "!"]
    assert [piece for piece, _ in pieces] == wanted
