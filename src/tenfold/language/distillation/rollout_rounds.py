"""Rollouts as training data of a drafter, in rounds: written by the target or read from files, each used for a few passes.

    rounds = RolloutRounds(config, target="smollm2-135m-instruct", aux_layers=None, seed=0)
    rounds.round(0)                                 the rollouts of the first round, written now or read from `stored`
    stream = RolloutStream(rounds, batch=4, shard=Shard(), seed=0)                (rollout_stream.py)

Online (the default): in every round the target first writes user turns (from the bare beginning of a conversation, at
temperature 1 with top-p 0.95), then answers them and the prompts of a file, half greedily and half at temperature 1. Rollouts
that repeat themselves are dropped; the rest stays in memory with its features for `reuse` passes. With `texts`, half of a
round continues a text behind many of its tokens instead: a target's features thousands of tokens deep are not those of a first
question, and a drafter that has not seen them drafts worse there. Offline: `stored` is a folder of shards
(distillation/rollouts.py; `keep` writes one per round), each a round; after the last comes the first again.

A round is a function only of (seed, number), so the place in the stream is three numbers and a resumed run writes the very
same round again. Benchmark prompts never enter: a file that has one is refused, and a written turn that is one is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch

from tenfold.config import require
from tenfold.data.atomic import aside
from tenfold.errors import DataError, UsageError
from tenfold.export.weights import load
from tenfold.language.decoding.engine import locate
from tenfold.language.distillation.benchmark_prompts import is_benchmark, refuse_benchmarks
from tenfold.language.distillation.rollout_writing import write
from tenfold.language.distillation.rollouts import Rollout, read_rollouts, repeats_itself, write_rollouts
from tenfold.language.drafting.drafter import default_aux_layers
from tenfold.language.drafting.weights import fingerprint
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama
from tenfold.language.models.prepare import open_target
from tenfold.language.models.text import read_documents
from tenfold.language.models.tokenizer import Tokenizer, load_tokenizer, read_prompts

RANDOM = "random-tiny"  # a target without weights or words, for tests of the machinery
SHORTEST = 8  # tokens of a rollout that is worth a place in a batch
TURN_CHARACTERS = (8, 400)  # of a user turn that is kept


@dataclass(frozen=True)
class RolloutConfig:
    """Prompts, and how the target continues them."""

    renamed: ClassVar = {"round_answers": "round_size"}

    stored: Path | None = None  # shards of rollouts to use instead of writing new ones
    keep: Path | None = None  # folder for a shard of every round that is written
    prompts: Path | None = (
        None  # .jsonl(.gz) with turns, question, prompt or instruction: half of every round's prompts
    )
    texts: Path | None = None  # documents (.txt, .parquet, .gz): half of every round continues a passage of them
    behind: tuple[int, int] = (256, 4096)  # shortest and longest such passage, in tokens
    kept_rows: int = 513  # of a prompt, its last ones: what the first row's window can see of it
    skip_last: int = 200  # prompts at the end of the file that are never used (for `tenfold language tree`)
    round_size: int = 256  # rollouts of a round
    max_tokens: int = 192  # of a rollout
    writers: int = 32  # rollouts generated together
    reuse: int = 3  # passes over a round
    held_back: int = 16  # greedy rollouts of the first round that are not trained on but scored

    def __post_init__(self) -> None:
        require(self.reuse >= 1, "rollouts.reuse", self.reuse, "a whole number >= 1")
        require(self.held_back >= 1, "rollouts.held_back", self.held_back, "a whole number >= 1")
        require(self.round_size >= 4, "rollouts.round_size", self.round_size, "a whole number >= 4")
        require(self.max_tokens >= SHORTEST, "rollouts.max_tokens", self.max_tokens, f"a whole number >= {SHORTEST}")
        require(self.writers >= 1, "rollouts.writers", self.writers, "a whole number >= 1")
        short, long = self.behind
        require(2 <= short <= long, "rollouts.behind", self.behind, "two lengths, 2 <= shortest <= longest")
        require(self.kept_rows >= 2, "rollouts.kept_rows", self.kept_rows, "a whole number >= 2")
        require(self.skip_last >= 0, "rollouts.skip_last", self.skip_last, "a whole number >= 0")


class RolloutRounds:
    """Rollouts of one target by number of the round. The newest round stays in memory."""

    def __init__(self, config: RolloutConfig, target: str, aux_layers: tuple[int, ...] | None, seed: int) -> None:
        self.config, self.name, self.seed = config, target, seed
        self._aux_layers = aux_layers
        self._last: tuple[int, list[Rollout], list[Rollout]] | None = None

    # ------------------------------------------------------------------------------------------------- the target

    @cached_property
    def target(self) -> Llama:
        """In the number format of its file: what the drafter is made from."""
        if self.name == RANDOM:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = Llama(LlamaConfig(vocabulary=64, dim=16, hidden=32, depth=7, heads=2, kv_heads=1, tied=True))
        else:
            model = load(locate(self.name))
        if not isinstance(model, Llama):
            raise UsageError(f"target = {self.name}: a {type(model).__name__}; a Llama is needed.")
        return model.eval().requires_grad_(False)

    @cached_property
    def _writer(self) -> Llama:
        """In the format that writes fastest here."""
        return self.target if self.name == RANDOM else open_target(locate(self.name), "auto").model

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        return None if self.name == RANDOM else load_tokenizer(locate(self.name))

    @property
    def aux_layers(self) -> tuple[int, ...]:
        return self._aux_layers or default_aux_layers(self.target.config.depth)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.target)

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end a rollout; the draft vocabulary always has them."""
        return frozenset({0}) if self.tokenizer is None else self.tokenizer.stop_ids

    # -------------------------------------------------------------------------------------------------- the rounds

    @cached_property
    def held_back(self) -> dict[str, list[Rollout]]:
        """Greedy rollouts of the first round that are only scored."""
        return {"held_back": self._split(0)[0]}

    def round(self, number: int) -> list[Rollout]:
        """The rollouts of a round, without those held back."""
        return self._split(number)[1]

    def sample(self) -> list[Rollout]:
        """What the draft vocabulary is chosen from: all stored rollouts, or the first round."""
        if self.config.stored is None:
            return [*self.held_back["held_back"], *self.round(0)]
        return [a for path in self._files for a in _worth_learning(read_rollouts(path))]

    def _split(self, number: int) -> tuple[list[Rollout], list[Rollout]]:
        if self._last is None or self._last[0] != number:
            index = number if self.config.stored is None else self._index(number)
            rollouts = _worth_learning(self._read(index))
            kept = [a for a in rollouts if a.temperature == 0][: self.config.held_back] if index == 0 else []
            marked = {id(a) for a in kept}
            self._last = (number, kept, [a for a in rollouts if id(a) not in marked])
        return self._last[1], self._last[2]

    @property
    def _files(self) -> list[Path]:
        assert self.config.stored is not None
        files = sorted(self.config.stored.glob("*.safetensors"))
        if not files:
            raise DataError(f"rollouts.stored = {self.config.stored} holds no rollouts (*.safetensors).")
        return files

    def _index(self, number: int) -> int:
        return number % len(self._files)

    def _read(self, index: int) -> list[Rollout]:
        if self.config.stored is not None:
            return read_rollouts(self._files[index])
        rollouts = self._write(index)
        if self.config.keep is not None:
            about = {"target": self.fingerprint, "aux_layers": list(self.aux_layers), "seed": self.seed, "round": index}
            with aside(self.config.keep / f"round-{index:05}.safetensors") as path:
                write_rollouts(path, rollouts, about)
        return rollouts

    # --------------------------------------------------------------------------------------------------- writing one

    def _write(self, number: int) -> list[Rollout]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        prompts = self._prompts(number, generator)
        temperatures = [float(i % 2) for i in range(len(prompts))]
        rollouts = write(
            self._writer,
            prompts,
            temperatures,
            max_tokens=self.config.max_tokens,
            stops=self.stops,
            aux_layers=self.aux_layers,
            generator=generator,
            batch=self.config.writers,
        )
        return [rollout.tail(self.config.kept_rows) for rollout in rollouts]

    def _prompts(self, number: int, generator: torch.Generator) -> list[list[int]]:
        count = self.config.round_size
        if self.tokenizer is None:
            return torch.randint(1, self.target.config.vocabulary, (count, 6), generator=generator).tolist()
        passages = self._passages(count // 2, generator) if self.config.texts is not None else []
        return [*self._conversations(number, count - len(passages), generator), *passages]

    def _passages(self, count: int, generator: torch.Generator) -> list[list[int]]:
        """Passages of the text that end anywhere; the logarithm of their length is uniform."""
        tokens, (short, long) = self._text, self.config.behind
        room = min(len(tokens), self.target.config.context - self.config.max_tokens)
        if room < long:
            raise UsageError(
                f"rollouts.behind = {short} {long}: allowed are 2 to {room} tokens with {self.config.texts}."
            )
        spread = torch.rand(count, generator=generator, dtype=torch.float64)
        lengths = (short * (long / short) ** spread).long().tolist()
        ends = [int(torch.randint(n, len(tokens) + 1, (), generator=generator)) for n in lengths]
        return [tokens[end - n : end] for n, end in zip(lengths, ends)]

    @cached_property
    def _text(self) -> list[int]:
        assert self.tokenizer is not None
        assert self.config.texts is not None
        return [t for d in read_documents(self.config.texts) for t in self.tokenizer.encode(d.text)]

    def _conversations(self, number: int, count: int, generator: torch.Generator) -> list[list[int]]:
        assert self.tokenizer is not None
        given = (
            []
            if not self._given
            else [self._given[(number * count + i) // 2 % len(self._given)] for i in range(0, count, 2)]
        )
        written = self._turns(count - len(given), generator)
        texts = [text for pair in zip(given, written) for text in pair] + written[len(given) :]
        return [self.tokenizer.chat([{"role": "user", "content": text}]) for text in texts]

    @cached_property
    def _given(self) -> list[str]:
        """The file's prompts in an order of their own."""
        if self.config.prompts is None:
            return []
        prompts = read_prompts(self.config.prompts)
        refuse_benchmarks(prompts, self.config.prompts)
        prompts = prompts[: len(prompts) - self.config.skip_last]
        if not prompts:
            raise DataError(f"{self.config.prompts}: nothing is left before the last {self.config.skip_last} prompts.")
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(self.seed))
        return [prompts[i] for i in order.tolist()]

    def _turns(self, count: int, generator: torch.Generator) -> list[str]:
        """User turns that the target writes itself behind the bare beginning of a conversation."""
        assert self.tokenizer is not None
        mark = "<<turn>>"
        opening = self.tokenizer.render([{"role": "user", "content": mark}], answer=False).split(mark)[0]
        start = self.tokenizer.encode(opening)
        turns: dict[str, None] = {}
        for _ in range(8):
            if len(turns) >= count:
                break
            asked = count - len(turns) + self.config.writers
            written = write(
                self._writer,
                [start] * asked,
                [1.0] * asked,
                max_tokens=96,
                stops=self.stops,
                aux_layers=(),
                generator=generator,
                top_p=0.95,
                batch=self.config.writers,
            )
            for rollout in written:
                ids = rollout.tokens[rollout.prompt :].tolist()
                text = self.tokenizer.decode(ids).strip()
                whole = ids[-1] in self.stops and TURN_CHARACTERS[0] <= len(text) <= TURN_CHARACTERS[1]
                if whole and not is_benchmark(text):
                    turns[text] = None
        if len(turns) < count:
            raise DataError(
                f"target = {self.name} wrote {len(turns)} usable user turns of {count}. Give --rollouts.prompts FILE."
            )
        return list(turns)[:count]


def _worth_learning(rollouts: list[Rollout]) -> list[Rollout]:
    return [a for a in rollouts if a.length >= SHORTEST and not repeats_itself(a.tokens[a.prompt :].tolist())]
