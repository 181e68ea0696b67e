"""Distillation keeps the trainer's promises, and its losses are what they say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import tenfold
from language.drafting_models import saved, tiny_drafter, tiny_rollouts, tiny_target
from tenfold.config import config_hash
from tenfold.engine.conformance import check_task
from tenfold.engine.task import Shard
from tenfold.engine.trainer import Trainer
from tenfold.errors import DataError, UsageError
from tenfold.language.distillation.benchmark_prompts import (
    benchmark_hashes,
    is_benchmark,
    prompt_hash,
    refuse_benchmarks,
)
from tenfold.language.distillation.distill import Distillation, DistillConfig, DrafterShape, go_on_from
from tenfold.language.distillation.draft_vocabulary import choose, coverage, expected_counts
from tenfold.language.distillation.losses import distillation_loss
from tenfold.language.distillation.recipes import eagle3_smoke
from tenfold.language.distillation.rollout_rounds import RolloutConfig, RolloutRounds
from tenfold.language.distillation.rollout_stream import RolloutStream
from tenfold.language.distillation.rollout_writing import write
from tenfold.language.distillation.rollouts import Rollout, collate, read_rollouts, repeats_itself, write_rollouts
from tenfold.language.drafting.drafter import Eagle3Drafter, membership
from tenfold.language.models.text import ByteVocabulary
from tenfold.language.models.tokenizer import read_prompts
from tenfold.training import reopen, run_recipe


@pytest.mark.parametrize("method", ["eagle3", "eagle1"])
def test_task_keeps_the_trainers_promises(method: str) -> None:
    size = None if method == "eagle1" else 32
    check_task(dataclasses.replace(eagle3_smoke(), drafter=DrafterShape(method=method, draft_vocabulary=size)))


def as_the_last_version_wrote_it(path: Path) -> None:
    """A run's configuration by the former names of its fields."""
    saved = json.loads(path.read_text())
    rollouts = saved["config"].pop("rollouts")
    rollouts["round_answers"] = rollouts.pop("round_size")
    saved["config"]["answers"] = rollouts
    path.write_text(json.dumps(saved))


def test_checkpoints_of_the_last_version_are_those_of_this_configuration() -> None:
    """The hash that it wrote, when the field `rollouts` was named `answers`."""
    assert config_hash(eagle3_smoke()) == "cfcde9ca4f7ce15038b767ed200915b53ab7d51cd6d7c597a17eb1f6c72e7b9f"


def test_run_resumes_with_the_same_bits_and_delivers_a_drafter(tmp_path: Path) -> None:
    recipe = eagle3_smoke()
    recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, steps=16))
    straight = Trainer(recipe.make_task(), recipe, tmp_path / "straight", name="eagle3-smoke").fit()
    short = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, checkpoint_every=7))

    class Cut(Exception):
        pass

    class Stopping(Trainer):
        def _record(self) -> None:
            super()._record()
            if self.step == 9:
                raise Cut

    with pytest.raises(Cut):
        Stopping(short.make_task(), short, tmp_path / "cut", name="eagle3-smoke").fit()
    as_the_last_version_wrote_it(tmp_path / "cut/config.json")
    name, reopened = reopen(tmp_path / "cut")
    assert reopened == short
    again = run_recipe(name, reopened, tmp_path / "cut", resume=True)
    assert again["loss"] == straight["loss"]
    one, two = (tenfold.load(tmp_path / run / "final.safetensors") for run in ("straight", "cut"))
    assert isinstance(one, Eagle3Drafter)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_validation_scores_answers_as_they_are_stored(tmp_path: Path) -> None:
    """Features are kept in bf16, the drafter trains in fp32."""
    g = torch.Generator().manual_seed(0)
    rollouts = [
        Rollout(
            torch.randint(64, (20,), generator=g),
            4,
            torch.randn(20, 64, generator=g),
            torch.zeros(20, dtype=torch.int32),
        )
        for _ in range(8)
    ]
    write_rollouts(tmp_path / "rollouts.safetensors", rollouts, {})
    smoke = eagle3_smoke()
    task = dataclasses.replace(smoke, rollouts=dataclasses.replace(smoke.rollouts, stored=tmp_path)).make_task()
    scores = task.validate(task.build().eval())
    assert scores.keys() == {"tpc_chain4_held_back"}
    assert 1 <= scores["tpc_chain4_held_back"] < 2  # random guesses among 64 tokens


@pytest.mark.parametrize("method", ["eagle3", "eagle1"])
def test_training_makes_the_guesses_better(method: str) -> None:
    target = tiny_target()
    rollouts = tiny_rollouts(target, 8, length=16)
    drafter = tiny_drafter(target, **({"method": "eagle1"} if method == "eagle1" else {"draft_vocabulary": 96}))
    drafter.bind(target)
    model = Distillation(drafter, target, DistillConfig(levels=3)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    alphas = []
    for _ in range(60):
        losses = model(collate(rollouts))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        alphas.append(float(losses["alpha_0"]))
    assert alphas[-1] > alphas[0] + 0.2


def test_positions_that_the_loss_counts() -> None:
    """Only rows whose next law lies in the rollout and whose best guess is in the draft vocabulary."""
    target = tiny_target()
    rollouts = tiny_rollouts(target, 3)
    drafter = tiny_drafter(target)
    model = Distillation(drafter, target, DistillConfig(levels=2))
    batch = collate(rollouts)
    whole = model(batch)
    beyond = {k: v.clone() for k, v in batch.items()}
    for b, rollout in enumerate(rollouts):  # what no counted position may depend on
        beyond["features"][b, len(rollout.tokens) - 1 :] += 9.0
        beyond["argmax"][b, : rollout.prompt - 1] = 0
        beyond["argmax"][b, len(rollout.tokens) - 1 :] = 0
    assert torch.equal(model(beyond)["loss"], whole["loss"])
    inside = membership(drafter.ids, 96)
    counted = [sum(bool(inside[int(a.argmax[i])]) for i in range(a.prompt - 1, len(a.tokens) - 1)) for a in rollouts]
    by_hand = []
    with torch.no_grad():
        for rollout in rollouts:
            features, hidden = rollout.features[None, :, :96], rollout.features[:, 96:]
            _, logits = drafter.step(
                target.embedding(rollout.tokens[None, 1:]),
                drafter.fuse(features[:, :-1]),
                torch.arange(len(rollout.tokens) - 1),
            )
            for i in range(rollout.prompt - 2, len(rollout.tokens) - 2):
                if inside[int(rollout.argmax[i + 1])]:
                    law = target.logits(hidden[i + 1])[drafter.ids].softmax(-1)
                    by_hand.append(-(law * logits[0, i].log_softmax(-1)).sum())
    assert len(by_hand) == sum(counted)
    torch.testing.assert_close(whole["loss_0"], torch.stack(by_hand).mean(), atol=1e-5, rtol=1e-5)


def test_losses_agree_with_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(5, 7, generator=generator).softmax(-1)
    logits = torch.randn(5, 7, generator=generator)
    q = logits.softmax(-1)
    alpha = 1 - (p - q).abs().sum(-1) / 2
    kl = -(p * q.log()).sum(-1)
    weight = (-3 * alpha).exp()
    wanted = {"kl": kl, "tv": 1 - alpha, "nla": -alpha.log(), "lk_hybrid": weight * kl + (1 - weight) * (1 - alpha)}
    for name, value in wanted.items():
        loss, seen = distillation_loss(name, p, logits)  # pyright: ignore
        torch.testing.assert_close(loss, value)
        torch.testing.assert_close(seen, alpha)
    assert distillation_loss("nla", torch.eye(2), torch.tensor([[-200.0, 200.0], [200.0, -200.0]]))[0].isfinite().all()


def test_going_on_from_a_drafter_carries_rows_by_target_id(tmp_path: Path) -> None:
    target = tiny_target()
    old, new = tiny_drafter(target, seed=1), tiny_drafter(target, seed=9)
    assert isinstance(old, Eagle3Drafter)
    assert isinstance(new, Eagle3Drafter)
    fresh = new.head.weight.detach().clone()
    go_on_from(new, saved(old, tmp_path / "old.safetensors"))
    assert torch.equal(new.fc.weight, old.fc.weight)
    olds = {int(i): n for n, i in enumerate(old.ids)}
    both = [(n, olds[int(i)]) for n, i in enumerate(new.ids) if int(i) in olds]
    assert 0 < len(both) < 48
    for mine, its in both:
        assert torch.equal(new.head.weight[mine], old.head.weight[its])
    for n, i in enumerate(new.ids):
        if int(i) not in olds:
            assert torch.equal(new.head.weight[n], fresh[n])
    with pytest.raises(UsageError, match="another shape"):
        go_on_from(tiny_drafter(target, layers=2), tmp_path / "old.safetensors")


def test_draft_vocabulary_takes_the_most_expected_ids_and_those_it_must() -> None:
    counts = torch.tensor([0.0, 5.0, 1.0, 9.0, 1.0, 0.0])
    ids = choose(counts, 3, always=(5,))
    assert ids.tolist() == [1, 3, 5]
    assert coverage(ids, counts) == 14 / 16
    target = tiny_target()
    rollouts = tiny_rollouts(target, 2)
    counts = expected_counts(rollouts, target.embedding.weight)
    assert counts.sum().item() == pytest.approx(sum(a.length for a in rollouts), rel=1e-4)


def test_writing_answers_what_the_target_says_and_features_are_its_own() -> None:
    target = tiny_target()
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10], [11]]
    rollouts = write(
        target,
        prompts,
        [0.0, 1.0, 0.0, 1.0],
        max_tokens=9,
        stops={0},
        aux_layers=(1, 3, 5),
        generator=torch.Generator().manual_seed(0),
        batch=2,
    )
    assert [a.tokens[: a.prompt].tolist() for a in rollouts] == prompts
    for rollout in rollouts:
        out = target(rollout.tokens[None].long(), aux_layers=(1, 3, 5))
        assert out.aux is not None
        n = len(rollout.tokens) - 1
        torch.testing.assert_close(
            rollout.features[:n].float(), torch.cat([out.aux, out.hidden], -1)[0, :n], atol=0.1, rtol=0.02
        )
        best = out.logits[0].argmax(-1)
        assert rollout.argmax[rollout.prompt - 1 : n].tolist() == best[rollout.prompt - 1 : n].tolist()
        if rollout.temperature == 0:
            assert rollout.tokens[rollout.prompt :].tolist() == best[rollout.prompt - 1 : n].tolist()
    hot = write(
        target,
        [[1, 2, 3]] * 64,
        [1.0] * 64,
        max_tokens=1,
        stops={0},
        aux_layers=(),
        generator=torch.Generator().manual_seed(1),
        batch=64,
    )
    assert len({int(a.tokens[-1]) for a in hot}) > 3


def test_shards_give_back_what_was_written(tmp_path: Path) -> None:
    rollouts = tiny_rollouts(tiny_target(), 3)
    write_rollouts(tmp_path / "a.safetensors", rollouts, {"round": 0})
    back = read_rollouts(tmp_path)
    for a, b in zip(rollouts, back, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.prompt == b.prompt
        assert torch.equal(a.features.bfloat16(), b.features)
        assert a.argmax.tolist() == b.argmax.tolist()


def test_stream_shows_every_answer_and_splits_over_ranks() -> None:
    rounds = RolloutRounds(eagle3_smoke().rollouts, "random-tiny", None, seed=3)
    whole = RolloutStream(rounds, 4, Shard(), 0)
    parts = [RolloutStream(rounds, 4, Shard(rank, 2), 0) for rank in (0, 1)]
    for batch, *own in zip(range(7), *parts):
        one = next(iter(whole))
        both = [row[row != 0].tolist() for part in own for row in part["tokens"]]
        assert sorted(row[row != 0].tolist() for row in one["tokens"]) == sorted(both), batch
    with pytest.raises(UsageError, match="ranks"):
        RolloutStream(rounds, 3, Shard(0, 2), 0)


@torch.no_grad()
def test_a_window_learns_the_same_from_an_answers_tail() -> None:
    """Positions are relative and the features have seen the whole prompt, so what no row sees may go."""
    target, window = tiny_target(), 6
    rollouts = tiny_rollouts(target, 4, prompt=20)
    drafter = tiny_drafter(target, sliding_window=window)
    model = Distillation(drafter, target, DistillConfig(levels=3))
    whole = model(collate(rollouts))
    kept = model(collate([a.tail(window + 1) for a in rollouts]))
    assert kept["loss_0"].isfinite()
    assert all(abs(float(whole[k] - kept[k])) < 1e-5 for k in whole), (whole, kept)
    assert abs(float(whole["loss"] - model(collate([a.tail(3) for a in rollouts]))["loss"])) > 1e-3
    assert rollouts[0].tail(100) is rollouts[0]


def test_passages_are_pieces_of_the_text_of_the_lengths_that_were_asked_for(tmp_path: Path) -> None:
    text = "".join(f"{i} " for i in range(4000))
    (tmp_path / "long.txt").write_text(text)
    config = RolloutConfig(texts=tmp_path / "long.txt", behind=(16, 512))
    rounds = RolloutRounds(config, "random-tiny", None, seed=0)
    vars(rounds)["tokenizer"] = ByteVocabulary()
    found = rounds._passages(200, torch.Generator().manual_seed(1))
    assert found == rounds._passages(200, torch.Generator().manual_seed(1))
    assert all(bytes(p).decode() in text for p in found)
    lengths = sorted(len(p) for p in found)
    assert 16 <= lengths[0] < 24
    assert 340 < lengths[-1] <= 512
    assert 60 < lengths[100] < 135  # the middle one of a uniform logarithm: 90
    long = RolloutRounds(dataclasses.replace(config, behind=(16, 10**6)), "random-tiny", None, seed=0)
    vars(long)["tokenizer"] = ByteVocabulary()
    with pytest.raises(UsageError, match=r"rollouts\.behind = 16 1000000: allowed are 2 to"):
        long._passages(4, torch.Generator())


def test_benchmark_prompts_are_refused_however_they_are_spaced(test_data: Path, tmp_path: Path) -> None:
    shipped = [p for f in sorted((test_data / "text/prompts").glob("*.jsonl")) for p in read_prompts(f)]
    assert len(shipped) == 320
    assert all(is_benchmark(p) for p in shipped)
    assert len(benchmark_hashes()) == 400
    with pytest.raises(DataError, match="benchmark"):
        refuse_benchmarks(["What is two and two?", shipped[7].upper().replace(" ", "  ")], "here")
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "fine"}) + "\n" + json.dumps({"turns": [shipped[0]]}) + "\n")
    rounds = RolloutRounds(RolloutConfig(prompts=path, skip_last=0), "random-tiny", None, seed=0)
    with pytest.raises(DataError, match="benchmark"):
        _ = rounds._given
    train = read_prompts(test_data / "text/gsm8k_train.jsonl.gz")
    assert len(train) == 7473
    assert not any(prompt_hash(p) in benchmark_hashes() for p in train)


def test_repetition_is_over_half_of_the_8_grams() -> None:
    assert repeats_itself([1, 2, 3, 4] * 12)
    assert not repeats_itself([*list(range(40)), 1, 2, 3])
    assert not repeats_itself([5] * 7)
