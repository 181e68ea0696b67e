"""Request bodies of OpenAI's API (pydantic models of /v1/completions and /v1/chat/completions), and their sampling parameters.

    params = sampling_params(body, max_tokens=16, logprobs=None, grammar=None)
    grammar = grammar_of(body.response_format, llm.grammars)

Importing this needs the extra [serve].
"""

from __future__ import annotations

import re
from typing import Any, Literal

from tenfold.errors import MissingExtra, UsageError
from tenfold.language.decoding.grammar import Grammars
from tenfold.language.sampling.sampling import SamplingParams

try:
    from pydantic import BaseModel, Field, model_validator
except ImportError as error:
    raise MissingExtra("pydantic", "serve") from error

PROMPTS, CHOICES = 64, 16  # of one request at most
SURROGATE = re.compile("[\ud800-\udfff]")


class StreamOptions(BaseModel):
    include_usage: bool = False


class JSONSchema(BaseModel):
    name: str = "schema"
    schema_: dict[str, Any] = Field(default={}, alias="schema")


class ResponseFormat(BaseModel):
    """What the answer has to follow; `regex` and `ebnf` carry their text in `value`."""

    type: Literal["text", "json_object", "json_schema", "regex", "ebnf"] = "text"
    json_schema: JSONSchema | None = None
    value: str | None = None


class Common(BaseModel):
    """The fields that both routes have."""

    @model_validator(mode="before")
    @classmethod
    def _whole_characters(cls, body: Any) -> Any:
        """Half a surrogate pair cannot be text: JavaScript's slice() leaves one of an emoji."""
        left = [body]
        while left:
            part = left.pop()
            if isinstance(part, dict):
                left += [*part, *part.values()]
            elif isinstance(part, list):
                left += part
            elif isinstance(part, str) and not part.isascii() and (half := SURROGATE.search(part)):
                code = f"\\u{ord(half[0]):04x}"
                raise ValueError(f"{code} is half of a surrogate pair and no character. Send the whole character.")
        return body

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=1 << 20)
    n: int = Field(default=1, ge=1, le=CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=0, lt=1 << 62)
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)


class Completion(Common):
    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=20)


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatCompletion(Common):
    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


def sampling_params(body: Common, max_tokens: int, logprobs: int | None, grammar: Any) -> SamplingParams:
    """The engine's parameters for a body. logprobs: alternatives for every token, None without log-probabilities."""
    return SamplingParams(
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        max_tokens=max_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=body.seed,
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        grammar=grammar,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
    )


def grammar_of(wanted: ResponseFormat, grammars: Grammars) -> Any:
    """The compiled grammar of a response format. Raises UsageError for one that lacks its text or does not compile."""
    if wanted.type == "json_object":
        return grammars.json()
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise UsageError("response_format: json_schema lacks the field json_schema.")
        return grammars.json_schema(wanted.json_schema.schema_)
    if not wanted.value:
        raise UsageError(f"response_format: {wanted.type} lacks the field value.")
    return grammars.regex(wanted.value) if wanted.type == "regex" else grammars.ebnf(wanted.value)
