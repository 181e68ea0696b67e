"""Every field of a request body reaches the sampling parameter of its name."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from gguf_files import bytes_tokenizer
from tenfold.errors import UsageError
from tenfold.language.decoding.grammar import Grammars
from tenfold.language.sampling.sampling import SamplingParams
from tenfold.language.serving.bodies import ChatCompletion, Completion, ResponseFormat, grammar_of, sampling_params


def test_every_field_reaches_the_parameter_of_its_name() -> None:
    body = Completion(
        prompt="a",
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        seed=3,
        ignore_eos=True,
        repetition_penalty=1.5,
        frequency_penalty=-0.5,
        presence_penalty=0.75,
        stop=["x", "y"],
    )
    assert sampling_params(body, max_tokens=9, logprobs=2, grammar="g") == SamplingParams(
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        max_tokens=9,
        stop=("x", "y"),
        seed=3,
        ignore_eos=True,
        logprobs=2,
        grammar="g",
        repetition_penalty=1.5,
        frequency_penalty=-0.5,
        presence_penalty=0.75,
    )
    assert sampling_params(Completion(prompt="a", stop="x"), max_tokens=1, logprobs=None, grammar=None).stop == ("x",)


def test_bodies_out_of_bounds_are_refused() -> None:
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"n": 17}, {"max_tokens": 0}):
        with pytest.raises(ValidationError):
            Completion(prompt="a", **wrong)
    with pytest.raises(ValidationError):
        ChatCompletion(messages=[])


def test_a_response_format_without_its_text_says_which_field_is_missing() -> None:
    grammars = Grammars(bytes_tokenizer(), 258)
    with pytest.raises(UsageError, match="lacks the field json_schema"):
        grammar_of(ResponseFormat(type="json_schema"), grammars)
    with pytest.raises(UsageError, match="regex lacks the field value"):
        grammar_of(ResponseFormat(type="regex"), grammars)
    assert grammar_of(ResponseFormat(type="regex", value="a+"), grammars) is not None


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a\ud83d"},
        {"prompt": ["a", "\udc00b"]},
        {"prompt": "a", "stop": ["x", "\ud800"]},
        {"prompt": "a", "model": "\ud83d"},
        {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"\ud83d": 1}}}},
    ],
)
def test_half_a_character_is_the_clients_mistake_wherever_it_is(body: dict) -> None:
    with pytest.raises(ValidationError, match="half of a surrogate pair"):
        Completion.model_validate(json.loads(json.dumps(body)))
    assert Completion.model_validate({"prompt": "\U0001f600", "stop": ["é"]}).prompt == "\U0001f600"
