"""Shards of rollouts give back what was written and refuse what does not fit; tails keep everything behind the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from language.drafting_models import tiny_rollouts, tiny_target
from tenfold.data.tensors import read_safetensors, write_safetensors
from tenfold.errors import DataError
from tenfold.language.distillation.rollouts import collate, read_rollouts, repeats_itself, write_rollouts


def test_a_shard_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no rollouts"):
        read_rollouts(tmp_path)
    path = tmp_path / "a.safetensors"
    write_rollouts(path, tiny_rollouts(tiny_target(), 2), {})
    tensors, _ = read_safetensors(path)
    for changes, message in (
        ({"lengths": tensors["lengths"] + 1}, "lengths add up to"),
        ({"prompts": torch.zeros_like(tensors["prompts"])}, "a prompt before it"),
        ({"prompts": tensors["lengths"]}, "a token of its own"),
    ):
        write_safetensors(path, tensors | changes)
        with pytest.raises(DataError, match=message):
            read_rollouts(tmp_path)
    write_safetensors(path, {name: tensor for name, tensor in tensors.items() if name != "argmax"})
    with pytest.raises(DataError, match="it lacks argmax"):
        read_rollouts(path)


def test_padding_is_behind_the_end_only() -> None:
    rollouts = tiny_rollouts(tiny_target(), 3)
    batch = collate(rollouts)
    for b, rollout in enumerate(rollouts):
        length = int(batch["lengths"][b])
        assert length == len(rollout.tokens)
        assert batch["tokens"][b, :length].tolist() == rollout.tokens.tolist()
        assert torch.equal(batch["features"][b, :length], rollout.features)
        assert not batch["tokens"][b, length:].any()


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_tail_keeps_what_was_written_and_the_last_rows_of_the_prompt(rows: int) -> None:
    rollout = tiny_rollouts(tiny_target(), 1, prompt=6)[0]
    tail = rollout.tail(rows)
    assert tail.length == rollout.length
    assert tail.prompt == min(rows, rollout.prompt)
    assert tail.tokens.tolist() == rollout.tokens.tolist()[-len(tail.tokens) :]
    assert torch.equal(tail.features, rollout.features[-len(tail.tokens) :])


def test_shards_give_back_what_was_written(tmp_path: Path) -> None:
    rollouts = tiny_rollouts(tiny_target(), 3)
    write_rollouts(tmp_path / "a.safetensors", rollouts, {"round": 0})
    back = read_rollouts(tmp_path)
    for a, b in zip(rollouts, back, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.prompt == b.prompt
        assert torch.equal(a.features.bfloat16(), b.features)
        assert a.argmax.tolist() == b.argmax.tolist()


def test_repetition_is_over_half_of_the_8_grams() -> None:
    assert repeats_itself([1, 2, 3, 4] * 12)
    assert not repeats_itself([*list(range(40)), 1, 2, 3])
    assert not repeats_itself([5] * 7)
