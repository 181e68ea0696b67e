"""Text to token ids and back: byte-level BPE from a GGUF file or a Hugging Face folder, chat templates, streaming.

    tokenizer = load_tokenizer("SmolLM2-135M-Instruct.Q4_1.gguf")           or a folder with tokenizer.json
    ids = tokenizer.encode("Why is the sky blue?")
    ids = tokenizer.chat([{"role": "user", "content": "Why is the sky blue?"}])
    stream = Stream(tokenizer); stream.add(id) -> the text that is certain by now

The merging itself is the `tokenizers` package's; templates are Jinja in a sandbox, as untrusted as the rest of the file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold.errors import DataError, MissingExtra, UsageError, WeightsError
from tenfold.export.gguf import field as gguf_field
from tenfold.export.reading import read_json
from tenfold.language.models.gguf_fields import check_fields

BROKEN = "\ufffd"  # what a decoder writes for bytes that are not a character (yet)
CONTROL, USER_DEFINED = 3, 4  # ggml's kinds of tokens that are matched as a whole
ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "</s>",
)  # an answer ends here, whatever eos says


@dataclass(frozen=True)
class Tokenizer:
    """`stop_ids` end an answer: `ends` are those that the model's files name besides eos. `template` is the chat template,
    None for a model without one."""

    backend: Any
    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    template: str | None = None
    specials: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token for the template
    ends: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def stop_ids(self) -> frozenset[int]:
        named = [self.backend.token_to_id(token) for token in ENDS]
        return frozenset(i for i in (*named, self.eos, *self.ends) if i is not None)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text. With `special` the text of a control token is that token (chat templates need it), and the
        beginning-of-text id is put in front where the model expects it."""
        ids = self.backend.encode(text, add_special_tokens=False).ids if special else self._plain(text)
        return [self.bos, *ids] if special and self.add_bos and self.bos is not None and ids[:1] != [self.bos] else ids

    def _plain(self, text: str) -> list[int]:
        """As `encode`, but what looks like a control token is ordinary text."""
        backend = self.backend
        if not getattr(backend, "encode_special_tokens", False):
            backend.encode_special_tokens = True
            try:
                return backend.encode(text, add_special_tokens=False).ids
            finally:
                backend.encode_special_tokens = False
        return backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def chat(self, messages: Sequence[Mapping[str, str]], answer: bool = True) -> list[int]:
        """Ids of a conversation in the model's template; with `answer` it ends where the assistant begins to speak.

        Raises UsageError for a model without a template or messages that the template refuses.
        """
        return self.encode(self.render(messages, answer))

    def render(self, messages: Sequence[Mapping[str, str]], answer: bool = True) -> str:
        """The conversation as text."""
        if self.template is None:
            raise UsageError("this model has no chat template: it continues text. Give a prompt instead of messages.")
        for message in messages:
            if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise UsageError("a message is {'role': 'system' | 'user' | 'assistant', 'content': text}.")
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise MissingExtra("jinja2", "language", "it fills chat templates") from error

        def refuse(reason: str) -> None:
            raise TemplateError(reason)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
        try:
            template = environment.from_string(self.template)
            return template.render(messages=list(messages), add_generation_prompt=answer, **self.specials)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise UsageError(f"the model's chat template does not take these messages ({error}).") from error


class Stream:
    """One answer, token by token: `add` returns the text that no later token can change. A character of several tokens
    comes when it is whole; `end` returns what is left."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        self._ids: list[int] = []
        self._shown = self._kept = 0  # ids whose text is out; ids before them that a decoder needs for the spaces

    def add(self, *ids: int) -> str:
        self._ids += ids
        text = self._pending()
        return "" if text.endswith(BROKEN) else self._out(text)

    def end(self) -> str:
        return self._out(self._pending())

    def _pending(self) -> str:
        return self._decode(self._ids[self._kept :])[len(self._decode(self._ids[self._kept : self._shown])) :]

    def _out(self, text: str) -> str:
        self._kept, self._shown = self._shown, len(self._ids)
        return text


def load_tokenizer(path: str | Path) -> Tokenizer:
    """From a GGUF file, or a folder (or a file in it) with tokenizer.json. Raises WeightsError when there is none."""
    path = Path(path)
    if path.suffix == ".gguf":
        from tenfold.export.gguf import open_gguf

        return from_gguf(open_gguf(path).metadata, path)
    return from_folder(path if path.is_dir() else path.parent)


def from_gguf(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """The vocabulary in a GGUF file's fields."""
    values = dict(metadata)
    check_fields(values, ("tokenizer.",), path)
    kind, pre = gguf_field(values, "tokenizer.ggml.model", str, path), values.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise WeightsError(f"{path}: a tokenizer of the kind {kind!r}; known in GGUF is gpt2 (byte-level BPE).")
    tokenizers = _tokenizers()
    words = gguf_field(values, "tokenizer.ggml.tokens", list, path)
    merges = [tuple(m.split(" ", 1)) for m in gguf_field(values, "tokenizer.ggml.merges", list, path)]
    kinds = values.get("tokenizer.ggml.token_type") or [1] * len(words)
    vocabulary = {word: i for i, word in enumerate(words)}
    if len(vocabulary) != len(words) or len(kinds) != len(words):
        raise WeightsError(f"{path}: the vocabulary has {len(words)} entries, some of them twice or without a kind.")
    try:
        model = tokenizers.models.BPE(vocabulary, merges, ignore_merges=pre in SPLITS and SPLITS[pre] is LLAMA3)
        backend = tokenizers.Tokenizer(model)
    except Exception as error:  # the package raises a bare Exception for merges that do not fit
        raise WeightsError(f"{path}: its vocabulary cannot be used ({error}).") from error
    if pre not in SPLITS:
        raise WeightsError(f"{path}: the word splitting {pre!r} is not known; known are {', '.join(SPLITS)}.")
    backend.pre_tokenizer = _splitter(tokenizers, SPLITS[pre])
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = [words[i] for i, k in enumerate(kinds) if k == CONTROL]
    backend.add_special_tokens([tokenizers.AddedToken(word, normalized=False, special=True) for word in special])
    extra = [words[i] for i, k in enumerate(kinds) if k == USER_DEFINED]
    backend.add_tokens([tokenizers.AddedToken(word, normalized=False) for word in extra])
    ids = {name: values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    ids = {name: i if isinstance(i, int) and 0 <= i < len(words) else None for name, i in ids.items()}
    specials = {f"{name}_token": words[i] for name in ("bos", "eos") if (i := ids[name]) is not None}
    template = values.get("tokenizer.chat_template")
    add_bos = values.get("tokenizer.ggml.add_bos_token")
    if add_bos is None:  # llama.cpp adds it for this splitting unless the file says no
        add_bos = SPLITS[pre] is LLAMA3
    if add_bos and ids["bos"] is None:
        raise WeightsError(
            f"{path}: its prompts begin with a beginning-of-text token (tokenizer.ggml.add_bos_token, or the splitting "
            f"{pre}), but tokenizer.ggml.bos_token_id names no token of its vocabulary."
        )
    ends = frozenset(i for i in (ids["eot"], ids["eom"]) if i is not None)
    return Tokenizer(backend, ids["bos"], ids["eos"], bool(add_bos), template, specials, ends)


# How text is cut into words before merging, by ggml's name of it. A file without the name is cut as llama.cpp's "default".
GPT2 = "gpt2"  # the regular expression of GPT-2
DIGITS = "digits"  # every digit alone, then GPT-2's
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    _GPT2_WORDS,
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)  # one after the other, each inside the pieces
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: dict[str, str | tuple[str, ...]] = {
    "smollm": DIGITS,
    "default": DEFAULT,
    "gpt-2": GPT2,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
}


def _splitter(tokenizers: Any, kind: str | tuple[str, ...]) -> Any:
    pre = tokenizers.pre_tokenizers
    if kind == GPT2:
        return pre.ByteLevel(add_prefix_space=False)
    if kind == DIGITS:
        return pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    expressions = (kind,) if isinstance(kind, str) else kind
    splits = [pre.Split(tokenizers.Regex(one), behavior="isolated") for one in expressions]
    return pre.Sequence([*splits, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def from_folder(folder: Path) -> Tokenizer:
    """tokenizer.json, with tokenizer_config.json and chat_template.jinja where they are there."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise WeightsError(
            f"{folder}: no tokenizer.json in it. Give a GGUF file or the folder of a Hugging Face model."
        )
    try:
        backend = _tokenizers().Tokenizer.from_file(str(file))
    except MissingExtra:
        raise
    except Exception as error:  # a bare Exception for any damage
        raise WeightsError(f"{file}: cannot be used ({error}).") from error
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    names = {name: _word(config.get(f"{name}_token")) for name in ("bos", "eos")}
    ids = {name: backend.token_to_id(word) if word else None for name, word in names.items()}
    template = config.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text()
    add_bos = config.get("add_bos_token")
    if add_bos is None:  # newer files say it in the post-processor alone
        add_bos = ids["bos"] is not None and backend.encode("a").ids[:1] == [ids["bos"]]
    specials = {f"{name}_token": word for name, word in names.items() if word}
    ends = frozenset(i for i in _named_ends(folder) if i < backend.get_vocab_size(with_added_tokens=True))
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(
        backend, ids["bos"], ids["eos"], bool(add_bos), template if isinstance(template, str) else None, specials, ends
    )


def _named_ends(folder: Path) -> list[int]:
    """eos_token_id of generation_config.json and config.json: a number, or a list. Raises WeightsError for anything else."""
    ends: list[int] = []
    for name in ("generation_config.json", "config.json"):
        said = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        listed = said if isinstance(said, list) else [] if said is None else [said]
        if not all(type(i) is int for i in listed):
            raise WeightsError(
                f"{folder / name}: eos_token_id = {said!r}; allowed are a token's number, or a list of them."
            )
        ends += [i for i in listed if i >= 0]
    return ends


def read_prompts(path: Path) -> list[str]:
    """One prompt per line of a JSONL file (.gz too): `prompt`, `question`, `instruction`, or the first of `turns`."""
    prompts = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error}).") from error
        keys = ("prompt", "question", "instruction")
        text = next((row[k] for k in keys if isinstance(row.get(k), str)), None) if isinstance(row, dict) else None
        if text is None and isinstance(row, dict) and isinstance(row.get("turns"), list) and row["turns"]:
            text = row["turns"][0]
        if not isinstance(text, str) or not text:
            raise DataError(f"{path}, line {number}: no prompt; allowed are {', '.join(keys)}, turns.")
        prompts.append(text)
    return prompts


def _word(value: Any) -> str | None:
    """A special token in tokenizer_config.json: text, or an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers", "language", "it cuts text into tokens") from error
    return tokenizers
